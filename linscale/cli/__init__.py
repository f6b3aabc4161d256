"""The command line: a dictionary of verbs to functions. A function's signature and docstring are its options and help.

Tables go to standard output, or JSON with --json; progress and errors go to standard error. Exit status: 0 when all
went well or SIGTERM stopped training, which was saved, 1 when some runs of a study or some checks of the doctor
failed, 2 for bad input, 130 when interrupted, 143 when SIGTERM stopped anything else.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import itertools
import logging
import signal
import sys
from collections.abc import Callable, Mapping

import pydantic
import tyro

from linscale import __version__
from linscale.config import UserError, explain
from linscale.distributed import Terminated, sigterm_raises

Verbs = Mapping[str, "str | Verbs"]

VERBS: Verbs = {  # "module.function" under linscale.cli, imported only when called: most verbs need no torch
    "info": "info.info",
    "data": {"prepare": "data.prepare", "verify": "data.verify"},
    "train": "train.train",
    "runs": "runs.runs",
    "study": {"plan": "study.plan", "run": "study.run", "status": "study.status", "report": "study.report"},
    "results": "results.results",
    "points": "points.points",
    "fit": "fit.fit",
    "predict": "predict.predict",
    "compare": "compare.compare",
    "plan": "plan.plan",
    "evaluate": "evaluate.evaluate",
    "tasks": {"list": "tasks.list_sets", "prepare": "tasks.prepare"},
    "generate": "generate.generate",
    "chat": "chat.chat",
    "serve": "serve.serve",
    "state": {
        "create": "state.create",
        "list": "state.list_states",
        "show": "state.show",
        "fork": "state.fork",
        "delete": "state.delete",
    },
    "linearize": "linearize.linearize",
    "import": "exchange.import_model",
    "export": "exchange.export_model",
    "doctor": "doctor.doctor",
}

SUMMARIES = {
    "info": "parameters, FLOPs and decoding state of any architecture and size",
    "data prepare": "text files to a folder of token shards",
    "data verify": "check a prepared folder against its checksums",
    "train": "train one model, or go on with it",
    "runs": "what is running, done and failed",
    "study plan": "print the bill of a study before anything runs",
    "study run": "train what is missing of a ladder, fit the laws, write the report",
    "study status": "where every run of a study stands",
    "study report": "fit and report again from what is trained so far",
    "results": "SQL over what runs recorded",
    "points": "what a table, run folder, W&B, lm-eval or transformers source holds, as one table",
    "fit": "a scaling law from any table of runs, with intervals",
    "predict": "what a fit expects of compute or of a model, and what a loss takes",
    "compare": "compute multipliers at equal loss, and where laws cross, with intervals",
    "plan": "a budget to a model, its bill, and the ladder of small runs to train first",
    "evaluate": "measure checkpoints: perplexity, zero-shot tasks, recall in context, loss on any text",
    "tasks list": "the evaluation sets: where each is, its licence, whether it is intact",
    "tasks prepare": "build a folder of evaluation sets from files or the Hub",
    "generate": "continue a prompt or a saved state with a trained model",
    "chat": "talk with a trained model, whose state is kept between turns",
    "serve": "a trained model behind the OpenAI API, with its saved states",
    "state create": "read a text once, of any length, and save the state behind it",
    "state list": "the saved states of a run",
    "state show": "what is recorded of a saved state",
    "state fork": "copy a saved state to another name",
    "state delete": "delete a saved state",
    "linearize": "a LLaMA-family folder as a model of constant memory, trained by a recipe",
    "import": "a run folder from a Hugging Face folder of the LLaMA family",
    "export": "a trained model as a Hugging Face folder that transformers loads",
    "doctor": "what this machine has, which kernels it runs and why, and whether their numbers are right",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (by default this process's) and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="linscale: %(message)s", level=logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" rather than nothing
    try:
        with sigterm_raises():
            return _dispatch(VERBS, words, "linscale")
    except UserError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}; what was written before is kept", 2)
    except Terminated:
        return _complain("terminated; run the same command again to go on", 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _complain("interrupted; run the same command again to go on", 128 + signal.SIGINT)


def _complain(message: str, status: int) -> int:
    print(f"linscale: {message}", file=sys.stderr)
    return status


def _dispatch(verbs: Verbs, words: list[str], program: str) -> int:
    if words[:1] == ["--version"]:
        print(f"linscale {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_usage(program), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in verbs:
        raise UserError(f"unknown command '{program} {verb}'; expected one of {', '.join(verbs)}")
    chosen = verbs[verb]
    if not isinstance(chosen, str):
        return _dispatch(chosen, rest, f"{program} {verb}")
    module, function = chosen.split(".")
    command = getattr(importlib.import_module(f"linscale.cli.{module}"), function)
    return _parse(command, rest, f"{program} {verb}")() or 0


def _parse(command: Callable[..., int | None], words: list[str], program: str) -> Callable[[], int | None]:
    """`command` with the arguments that `words` give it. Raises UserError for words that do not fit."""
    bind = functools.update_wrapper(functools.partial(functools.partial, command), command)
    description = (inspect.getdoc(command) or "").split("\n\nArgs:")[0]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            flags = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(bind, args=words, prog=program, description=description, config=flags)
    except SystemExit as end:
        if not end.code:
            raise
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, pydantic.ValidationError):
            cause = cause.__context__
        problem = _text_of_box(complaint.getvalue()) if cause is None else explain(cause)
        raise UserError(f"{problem} (see {program} --help)") from None


def _text_of_box(box: str) -> str:
    """What tyro says in a box of several lines, drawn with or without Unicode, as one line without its title."""
    lines = [line.strip(" │") for line in box.splitlines() if line.strip() and line[0] not in "╭╰"]
    parts = [list(group) for rule, group in itertools.groupby(lines, lambda line: not line.strip("─-")) if not rule]
    said = parts if "╭" in box else parts[1:]
    return "; ".join(" ".join(part) for part in said if not part[0].startswith("For full helptext")) or box.strip()


def _usage(program: str) -> str:
    prefix = program.removeprefix("linscale").strip()
    lines = [f"usage: {program} COMMAND ...   (each command explains itself with --help)", ""]
    for name, summary in SUMMARIES.items():
        if name.startswith(prefix):
            lines.append(f"  {'linscale ' + name:<24}{summary}")
    return "\n".join(lines)

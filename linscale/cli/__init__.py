"""The command line: a dictionary of verbs to functions. A function's signature and docstring are its options and help.

Tables go to standard output, or JSON with --json; progress and errors go to standard error. Exit status: 0 when all
went well, 1 when some runs of a study failed, 2 for bad input, 130 when interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping

import tyro

from linscale import __version__
from linscale.config import UserError

Verbs = Mapping[str, "str | Verbs"]

VERBS: Verbs = {  # "module.function" under linscale.cli, imported only when called: most verbs need no torch
    "info": "info.info",
    "data": {"prepare": "data.prepare", "verify": "data.verify"},
    "train": "train.train",
    "study": {"plan": "study.plan", "run": "study.run", "status": "study.status", "report": "study.report"},
    "generate": "generate.generate",
}

SUMMARIES = {
    "info": "parameters, FLOPs and decoding state of any architecture and size",
    "data prepare": "text files to a folder of token shards",
    "data verify": "check a prepared folder against its checksums",
    "train": "train one model, or go on with it",
    "study plan": "print the bill of a study before anything runs",
    "study run": "train what is missing of a ladder, fit the laws, write the report",
    "study status": "where every run of a study stands",
    "study report": "fit and report again from what is trained so far",
    "generate": "continue a prompt with a trained model",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (by default this process's) and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="linscale: %(message)s", level=logging.WARNING)
    try:
        return _dispatch(VERBS, words, "linscale")
    except UserError as error:
        print(f"linscale: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("linscale: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        sys.stderr.close()
        return 0


def _dispatch(verbs: Verbs, words: list[str], program: str) -> int:
    if words[:1] == ["--version"]:
        print(f"linscale {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help"):
        print(_usage(program))
        return 0 if words else 2
    verb, rest = words[0], words[1:]
    if verb not in verbs:
        raise UserError(f"unknown command '{program} {verb}'; expected one of {', '.join(verbs)}")
    chosen = verbs[verb]
    if not isinstance(chosen, str):
        return _dispatch(chosen, rest, f"{program} {verb}")
    module, function = chosen.split(".")
    command = getattr(importlib.import_module(f"linscale.cli.{module}"), function)
    return tyro.cli(command, args=rest, prog=f"{program} {verb}", config=(tyro.conf.FlagCreatePairsOff,)) or 0


def _usage(program: str) -> str:
    prefix = program.removeprefix("linscale").strip()
    lines = [f"usage: {program} COMMAND ...   (each command explains itself with --help)", ""]
    for name, summary in SUMMARIES.items():
        if name.startswith(prefix):
            lines.append(f"  {'linscale ' + name:<24}{summary}")
    return "\n".join(lines)

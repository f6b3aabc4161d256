"""The suites of `linscale evaluate`: the tasks behind each name.

A suite is a name in SUITES and a function from Options to tasks. Whatever can be found wrong without a model is found
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from linscale.cli.output import print_note
from linscale.cli.suite_options import Options
from linscale.config import UserError
from linscale.evaluate import questions

if TYPE_CHECKING:
    from linscale.evaluate.scrolls import Context
    from linscale.evaluate.task import Task


class Absent(NamedTuple):
    """A task of a suite that cannot be run for lack of a file, which is no error."""

    why: str


Found: TypeAlias = "Sequence[Task | Absent]"


def recall(options: Options) -> Found:
    from linscale.evaluate.axis import parse_axis
    from linscale.evaluate.passkey import passkey_tasks
    from linscale.evaluate.recall import recall_tasks

    chosen = options.recall
    lengths = parse_axis("passkey_lengths", chosen.passkey_lengths)
    return [*recall_tasks(chosen.sizes, chosen.examples), *passkey_tasks(lengths, chosen.examples)]


def text(options: Options) -> Found:
    if not options.text.text:
        raise UserError("suite text: no file; name some with --text, such as builtin:tinyshakespeare")
    return [_whole(path, options) for path in options.text.text]


def ppl(options: Options) -> Found:
    from linscale.data.sets import find_set, verified_content
    from linscale.evaluate.passages import Passages

    wikitext = find_set(options.sets.data, "wikitext2_raw_test")
    verified_content(wikitext)
    last_words = _present(["lambada_openai"], options)
    tasks = [_whole(wikitext, options), *last_words, *(_whole(path, options) for path in options.text.text)]
    if not any(isinstance(each, Absent) for each in last_words):
        tasks.append(Passages(find_set(options.sets.data, "lambada_openai_test"), options.sets.limit))
    return tasks


def _whole(path: Path, options: Options) -> Task:
    from linscale.evaluate.text import TextLoss

    task = TextLoss(path, options.text.window, options.text.stride)
    assert task.digest  # read now: a file that is missing or damaged is said before a model is loaded
    return task


def csr(options: Options) -> Found:
    return [*(_single(name, options)[0] for name in CSR), *_present(["lambada_openai", "sciq"], options)]


def _single(name: str, options: Options) -> Found:
    from linscale.evaluate.zero_shot import zero_shot_task

    return [zero_shot_task(name, options.sets.data, options.sets.limit)]


def _present(names: Sequence[str], options: Options) -> Found:
    """Tasks whose sets may be missing."""
    from linscale.data.sets import absence
    from linscale.evaluate.questions import FORMS
    from linscale.evaluate.zero_shot import is_there

    found: list[Task | Absent] = []
    for name in names:
        if is_there(name, options.sets.data):
            found += _single(name, options)
        else:
            found.append(Absent(f"{name}: left out; its set {absence(options.sets.data, FORMS[name].file)}"))
    return found


def needle(options: Options) -> Found:
    from linscale.data.sets import find_set, look_for_set, verified_content
    from linscale.evaluate.axis import parse_axis
    from linscale.evaluate.haystack import read_haystack
    from linscale.evaluate.needle import ESSAYS, SEED, needle_tasks

    chosen, path = options.needle, options.needle.filler
    grid = parse_axis("lengths", chosen.lengths), parse_axis("depths", chosen.depths)
    if path is None:
        if look_for_set(options.sets.data, ESSAYS) is None:
            get = f"linscale tasks prepare DIR --sets {ESSAYS} --from ESSAYS_FOLDER"
            raise UserError(
                f"suite needle: no filler; name a text with --filler, or make {ESSAYS} for --data with: {get}"
            )
        path = find_set(options.sets.data, ESSAYS)
        verified_content(path)
    return needle_tasks(chosen.modes, read_haystack(path, SEED), *grid)


def scrolls(options: Options) -> Found:
    from linscale.evaluate.scrolls import FORMS, scrolls_tasks

    chosen, folder = options.scrolls, options.sets.data
    if folder is None:
        raise UserError("suite scrolls: no files; name their folder with --data")
    tasks = scrolls_tasks(folder, chosen.scrolls, _context(chosen.context), chosen.max_tokens, options.sets.limit)
    absent = FORMS.keys() - {task.name for task in tasks} if not chosen.scrolls else set()
    files = [f"{name} ({FORMS[name].file}.jsonl)" for name in FORMS if name in absent]
    return [*tasks, *([Absent(f"suite scrolls: left out, for not in {folder}: {', '.join(files)}")] if files else [])]


def _context(text: str) -> Context:
    if text == "train":
        return "train"
    if text == "none":
        return "none"
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise UserError(f"context = {text!r}: expected train, none, or a number of tokens such as 4096")


def harness(task: str, options: Options) -> Found:
    """A task of lm-evaluation-harness."""
    from linscale.evaluate.harness_task import HarnessTask

    chosen = options.harness
    found = HarnessTask(task, chosen.include, chosen.hub, chosen.shots, options.sets.limit)
    found.prepare()
    return [found]


CSR = tuple(questions.CSR)
SINGLE = (*CSR, "lambada_openai", "sciq", "commonsense_qa", "mmlu")
SUITES: Mapping[str, Callable[[Options], Found]] = {
    "ppl": ppl,
    "csr": csr,
    "recall": recall,
    "text": text,
    "needle": needle,
    "scrolls": scrolls,
    **{name: partial(_single, name) for name in SINGLE},
}
DEFAULT = ("recall",)
HARNESS = "lm-eval:"


def suite_names(words: Sequence[Sequence[str]]) -> list[str]:
    """The suites that options such as `--suite ppl,csr recall --suite text` name, each once. Raises UserError for
    one that does not exist."""
    names = [name for group in words for word in group for name in word.split(",")]
    known = f"there are {', '.join(SUITES)} and {HARNESS}TASK"
    if words and not (names and all(names)):
        raise UserError(f"suite: a name is empty; {known}")
    for name in names:
        if name not in SUITES and not (name.startswith(HARNESS) and name != HARNESS):
            raise UserError(f"suite = {name!r}: no such suite; {known}")
    return list(dict.fromkeys(names or DEFAULT))


def build_tasks(names: Sequence[str], options: Options) -> list[Task]:
    """The tasks of the suites, each once, in order, and then without parts of the model; those that lack a file are
    named on standard error.

    Raises UserError for whatever is wrong with options and files.
    """
    tasks: dict[str, Task] = {}
    absent: set[Absent] = set()
    for name in names:
        build = SUITES[name] if name in SUITES else partial(harness, name.removeprefix(HARNESS))
        found = build(options)
        if not found:
            raise UserError(f"suite {name}: its options leave nothing to measure, such as --modes without a name")
        for task in found:
            if isinstance(task, Absent):
                if task not in absent:
                    print_note(task.why)
                absent.add(task)
            elif tasks.setdefault(task.name, task) != task:
                raise UserError(f"suite {name}: {task.name} stands for two different things; give files other names")
    return [*tasks.values(), *_without(list(tasks.values()), options)]


def _without(tasks: Sequence[Task], options: Options) -> list[Task]:
    from linscale.evaluate.without import Without

    return [Without(task, part) for part in dict.fromkeys(options.ablation.without) for task in tasks]

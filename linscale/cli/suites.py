"""The suites of `linscale evaluate`: the tasks behind each name, and what can be chosen about them.

A suite is a name in SUITES and a function from Options to tasks. Its options are a group of Options, whose docstrings
are the help. Whatever can be found wrong without a model is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from linscale.config import UserError, config

if TYPE_CHECKING:
    from linscale.evaluate.task import Task


@config
class RecallOptions:
    """suite recall"""

    sizes: tuple[Annotated[int, Field(ge=2)], ...] = (4, 16, 64)
    """How much is to be held."""
    examples: Annotated[int, Field(ge=1)] = 64
    """Sequences of each kind and size."""


@config
class TextOptions:
    """suite text"""

    text: tuple[Path, ...] = ()
    """Files as `linscale data prepare` takes them, or builtin:tinyshakespeare."""
    window: Annotated[int, Field(ge=1)] = 2048
    """Tokens of a window; longer ones than in training are welcome."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Tokens a window moves on; by default windows stand side by side."""


@config
class SetOptions:
    """suite csr"""

    data: Path | None = None
    """The folder of evaluation sets, such as piqa_valid.jsonl.zst."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The first records of each set alone."""


@config
class Options:
    """What can be chosen of every suite."""

    recall: RecallOptions = RecallOptions()
    text: TextOptions = TextOptions()
    sets: SetOptions = SetOptions()


def recall(options: Options) -> Sequence[Task]:
    from linscale.evaluate.recall import recall_tasks

    return recall_tasks(options.recall.sizes, options.recall.examples)


def text(options: Options) -> Sequence[Task]:
    from linscale.evaluate.text import TextLoss

    chosen = options.text
    if not chosen.text:
        raise UserError("suite text: no file; name some with --text, such as builtin:tinyshakespeare")
    tasks = [TextLoss(path, chosen.window, chosen.stride) for path in chosen.text]
    for task in tasks:
        task.digest  # noqa: B018  read now: a file that is missing or damaged is said before a model is loaded
    return tasks


def csr(options: Options) -> Sequence[Task]:
    from linscale.evaluate.multiple_choice import csr_tasks

    if options.sets.data is None:
        raise UserError("suite csr: no files; name their folder with --data")
    return csr_tasks(options.sets.data, options.sets.limit)


SUITES: Mapping[str, Callable[[Options], Sequence[Task]]] = {"recall": recall, "text": text, "csr": csr}
DEFAULT = ("recall",)


def suite_names(words: Sequence[Sequence[str]]) -> list[str]:
    """The suites that options such as `--suite ppl,csr recall --suite text` name, each once. Raises UserError for
    one that does not exist."""
    names = [name for group in words for word in group for name in word.split(",")]
    if words and not (names and all(names)):
        raise UserError(f"suite: a name is empty; there are {', '.join(SUITES)}")
    for name in names:
        if name not in SUITES:
            raise UserError(f"suite = {name!r}: no such suite; there are {', '.join(SUITES)}")
    return list(dict.fromkeys(names or DEFAULT))


def build_tasks(names: Sequence[str], options: Options) -> list[Task]:
    """The tasks of the suites, each once, in order. Raises UserError for whatever is wrong with their options and
    files."""
    tasks: dict[str, Task] = {}
    for name in names:
        for task in SUITES[name](options):
            if tasks.setdefault(task.name, task) != task:
                raise UserError(f"suite {name}: {task.name} stands for two different things; give files other names")
    return list(tasks.values())

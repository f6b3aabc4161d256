"""Zero-shot tasks by name, on files that have been read: what is missing or altered is known before a model is."""

from __future__ import annotations

from pathlib import Path

from linscale.data.sets import find_set, look_for_set
from linscale.evaluate.mmlu import Mmlu
from linscale.evaluate.multiple_choice import MultipleChoice
from linscale.evaluate.questions import FORMS


def zero_shot_task(name: str, folder: Path | None = None, limit: int | None = None) -> MultipleChoice:
    """A task of FORMS on the file of its set, in `folder` or as it ships. Raises UserError where the file is missing,
    or its content has changed."""
    kind = Mmlu if name == "mmlu" else MultipleChoice
    task = kind(name, find_set(folder, FORMS[name].file), limit)
    assert task.questions  # read now
    return task


def is_there(name: str, folder: Path | None = None) -> bool:
    """Whether there is a file for a task of FORMS."""
    return look_for_set(folder, FORMS[name].file) is not None

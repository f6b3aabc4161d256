"""Suites of tasks: which task belongs to which, their order, and the parts of the means over CSR and SCROLLS."""

from __future__ import annotations

import re
from functools import cache
from typing import TypeAlias

from linscale.evaluate.questions import CSR

ROUGE = ("rouge1", "rouge2", "rougeL")
SCROLLS = {
    "gov_report": ROUGE, "summ_screen_fd": ROUGE, "qmsum": ROUGE, "qasper": ("f1",), "narrative_qa": ("f1",),
    "quality": ("em",), "contract_nli": ("em",),
}  # fmt: skip
"""The seven tasks of SCROLLS and their 13 numbers."""
SUITES = {
    "csr": "Common sense, zero-shot",
    "mmlu": "MMLU",
    "recall": "Recall in context",
    "text": "Loss on texts",
    "needle": "Needle in a haystack",
    "scrolls": "Long documents",
    "lm-eval": "Through lm-evaluation-harness",
    "other": "Other tasks",
}
"""Groups of tasks in the order in which they are shown, and their titles."""
BARE = {
    "csr": re.compile(rf"({'|'.join(CSR)}|lambada_openai|sciq|commonsense_qa)"),
    "scrolls": re.compile(r"(qmsum|leval)-.*"),
}
"""Tasks whose name does not begin with their suite's."""
MMLU = ("acc", "acc_stem", "acc_other", "acc_social_sciences", "acc_humanities")
"""Its metrics over all questions and over areas; others are of single subjects."""
Natural: TypeAlias = tuple[tuple[bool, int, str], ...]


@cache
def suite_of(task: str) -> str:
    """The key in SUITES of the group that a task belongs to."""
    prefix = (name for name in SUITES if re.match(rf"{name}(?![A-Za-z0-9])", task))
    return next(prefix, next((name for name, tasks in BARE.items() if tasks.fullmatch(task)), "other"))


def plain_name(task: str) -> str:
    """The name of a task in CSR or SCROLLS, without its suite before it."""
    return task.removeprefix("scrolls-").removeprefix("scrolls_")


@cache
def place_of(task: str) -> tuple[int, int, Natural]:
    """A key that sorts tasks: by suite, those of CSR and SCROLLS in their order, and x-4 before x-16."""
    order = [*CSR, *SCROLLS]
    known = order.index(plain_name(task)) if plain_name(task) in order else len(order)
    natural = tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", task))
    return [*SUITES].index(suite_of(task)), known, natural

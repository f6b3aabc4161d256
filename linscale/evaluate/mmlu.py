"""MMLU: 57 subjects in four areas, zero-shot, with the means of lm-evaluation-harness 0.4.13.

The mean of an area, and of all, weighs every question the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from linscale.data.sets import read_set
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.multiple_choice import MultipleChoice, choice_metrics
from linscale.evaluate.task import Result, mean_result
from linscale.models import LanguageModel

AREAS = {
    "stem": (
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry", "college_computer_science",
        "college_mathematics", "college_physics", "computer_security", "conceptual_physics", "electrical_engineering",
        "elementary_mathematics", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics", "machine_learning",
    ),
    "other": (
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management",
        "marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting",
        "professional_medicine", "virology",
    ),
    "social_sciences": (
        "econometrics", "high_school_geography", "high_school_government_and_politics", "high_school_macroeconomics",
        "high_school_microeconomics", "high_school_psychology", "human_sexuality", "professional_psychology",
        "public_relations", "security_studies", "sociology", "us_foreign_policy",
    ),
    "humanities": (
        "formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history",
        "international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios", "philosophy",
        "prehistory", "professional_law", "world_religions",
    ),
}  # fmt: skip
"""Areas and their subjects, as the harness groups them."""
SUBJECTS = tuple(subject for subjects in AREAS.values() for subject in subjects)


@dataclass(frozen=True)
class Mmlu(MultipleChoice):
    """All subjects as one task; `limit` takes the first questions of each."""

    @property
    def metrics(self) -> Sequence[str]:
        """acc of all, acc_AREA and acc_SUBJECT."""
        return ("acc", *(f"acc_{name}" for name in (*AREAS, *SUBJECTS)))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What is asked, by subjects. Raises UserError when the file's content has changed."""
        of: dict[str, list[dict[str, Any]]] = {subject: [] for subject in SUBJECTS}
        for record in read_set(self.path):
            of[record["subject"]].append(record)
        return [record for records in of.values() for record in records[: self.limit]]

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """The accuracy of every subject, of the areas and of all."""
        right: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
        answers = choice_metrics(self.questions, self.answers(model, tokenizer))["acc"]
        for record, value in zip(self.records, answers, strict=True):
            right[record["subject"]].append(value)
        subjects = {
            name: mean_result(f"acc_{name}", torch.tensor(values), len(values)) for name, values in right.items()
        }
        areas = [pooled(f"acc_{area}", [subjects[name] for name in names]) for area, names in AREAS.items()]
        return [pooled("acc", subjects.values()), *areas, *subjects.values()]


def pooled(metric: str, results: Iterable[Result]) -> Result:
    """The mean over the questions of several results, and its standard error from the variance inside of them, pooled
    (lm_eval.api.metrics.pooled_sample_stderr)."""
    results = list(results)
    count = sum(result.count for result in results)
    mean = sum(result.value * result.count for result in results) / count
    errors = [result.se for result in results]
    if None in errors:
        return Result(metric, mean, None, count)
    squares = sum(
        (result.count - 1) * result.count * (error or 0.0) ** 2 for result, error in zip(results, errors, strict=True)
    )
    return Result(metric, mean, math.sqrt(squares / (count - len(results)) / count), count)

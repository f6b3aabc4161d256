"""How far a model is from its teacher, on the validation split: what checkpoints of such runs are measured by too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.perplexity import Validation
from linscale.evaluate.task import Result, mean_result
from linscale.models import LanguageModel
from linscale.train.objective import Attention, Logits, Objective, Text, Texts


@dataclass(frozen=True)
class Agreement:
    """The metrics of an objective with a teacher; on the texts of the validation loss."""

    objective: Attention | Logits
    validation: Validation

    @property
    def name(self) -> str:
        return "teacher"

    @property
    def metrics(self) -> Sequence[str]:
        return self.objective.metrics

    def version(self, tokenizer: Tokenizer) -> str:
        settings: Mapping[str, Any] = self.validation.settings
        return f"{self.validation.version(tokenizer)}-{settings['teacher']['fingerprint']}"

    def obstacle(self, model: LanguageModel, tokenizer: Tokenizer) -> str | None:
        return None  # it was trained with this teacher

    def run(self, model: LanguageModel, tokenizer: Tokenizer) -> list[Result]:
        """divergence: nats per token; attention_error: of the layers, in units of what the teacher's give."""

        def measures(tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None) -> Tensor:
            return self.objective.measures(model, Texts(tokens, targets, cu_seqlens))

        means, count = self.validation.means(model, measures)
        return [mean_result(name, means[:, place], count) for place, name in enumerate(self.metrics)]


def tasks_of(objective: Objective, validation: Any) -> list[Any]:
    """What every checkpoint of a run is measured by: its validation, and its teacher where it has one."""
    return [validation] if isinstance(objective, Text) else [validation, Agreement(objective, validation)]

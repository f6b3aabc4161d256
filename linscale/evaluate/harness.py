"""Our models in lm-evaluation-harness: an adapter, so that any of its tasks runs on them.

model, tokenizer = linscale.load("runs/small")
lm_eval.simple_evaluate(model=harness_model(model, tokenizer), tasks=["lambada_openai"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from linscale.config import UserError
from linscale.data.tokenizer import Tokenizer
from linscale.evaluate.likelihood import score
from linscale.evaluate.task import losses_in_pieces
from linscale.generate.batch import greedy, text_before
from linscale.models import LanguageModel

NEW_TOKENS = 256  # generated where a task sets no number, as the harness has it


def harness_model(model: LanguageModel, tokenizer: Tokenizer) -> Any:
    """An `lm_eval.api.model.LM` of a model: it cuts text into tokens as the harness does, and nothing is truncated,
    whatever the length. Raises UserError when lm-eval is not installed."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise UserError("lm-eval is not installed: pip install 'linscale[eval]'") from None
    adapter: Any = type("HarnessModel", (Requests, TemplateLM), {})()
    adapter.model, adapter.vocabulary = model.eval(), tokenizer
    return adapter


class Requests:
    """What the harness asks of a model; its base class TemplateLM does the rest."""

    model: LanguageModel
    vocabulary: Tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What opens a text that has no context."""
        return self.vocabulary.bos_id

    @property
    def tokenizer_name(self) -> str:
        return f"{self.vocabulary.name}-{self.vocabulary.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text; there are no special ones to add."""
        return self.vocabulary.encode(string)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        pairs = [(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        return [(likelihood.nats, likelihood.greedy) for likelihood in score(self.model, pairs)]

    @torch.no_grad()
    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts behind the end of the text before, in nats; a text of any length is one window."""
        return [self._whole(self.tok_encode(request.args[0])) for request in requests]

    def _whole(self, tokens: list[int]) -> float:
        if not tokens:
            return 0.0
        return -losses_in_pieces(self.model, torch.tensor([self.prefix_token_id, *tokens])).sum().item()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The most probable continuation of each prompt, up to its first stop string, in batches of prompts with the
        same options. Raises UserError for sampling."""
        alike: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(_limits(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for (most, stops), numbers in alike.items():
            prompts = [self.tok_encode(requests[number].args[0]) or [self.prefix_token_id] for number in numbers]
            made = greedy(self.model, self.vocabulary, prompts, max_tokens=most, stop=stops)
            found.update(
                (n, text_before(self.vocabulary, tokens, stops)) for n, tokens in zip(numbers, made, strict=True)
            )
        return [found[number] for number in range(len(requests))]


def _limits(options: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Tokens that a request may make, and the strings that end it."""
    if options.get("do_sample") and options.get("temperature") != 0:
        raise UserError("do_sample = True: expected greedy generation, such as do_sample = False")
    stops = options.get("until") or []
    stops = [stops] if isinstance(stops, str) else stops
    return options.get("max_gen_toks") or NEW_TOKENS, tuple(stop for stop in stops if stop)

"""Tokens read by a decoding step."""

import torch

from linscale.generate.step import DecodingStep


def steps(step: DecodingStep, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (S, T, V) of tokens (S, T) read one by one."""
    found = []
    for column in tokens.T:
        step.tokens.copy_(column)
        step.run()
        found.append(step.logits.clone())
    return torch.stack(found, 1)

"""A layer of every model: a mixer and an MLP, each behind a norm and added to what it reads."""

from __future__ import annotations

from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.nn.functional import dropout

from linscale.layers import Context, SRMSNorm


class Mixer(Protocol):
    """How a layer moves information through time: x (B, T, D) and its state in, y (B, T, D) and its new state out."""

    def __call__(self, x: Tensor, state: Any, context: Context) -> tuple[Tensor, Any]: ...


class Block(nn.Module):
    """x + mixer(norm x), then x + mlp(norm x). x (B, T, D)."""

    def __init__(self, d_model: int, eps: float, mixer: nn.Module, norm: type[SRMSNorm], mlp: nn.Module) -> None:
        super().__init__()
        self.dropout = 0.0  # of what is added to x, in training: see train/parallel.py
        self.mixer_norm, self.mixer = norm(d_model, eps), mixer
        self.mlp_norm, self.mlp = norm(d_model, eps), mlp

    def forward(self, x: Tensor, state: Any, context: Context) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.mixer_norm(x), state, context)
        if not (self.dropout and self.training):
            x = x + y
            return x + self.mlp(self.mlp_norm(x)), state
        x = x + dropout(y, self.dropout)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout), state

    def watch(self, x: Tensor, context: Context, before: bool) -> tuple[Tensor, Tensor, Tensor]:
        """`forward` of texts that start afresh; and beside x, what enters the mixer (B, T, D) and what `mix` gives of
        it."""
        entered, mixer = self.mixer_norm(x), cast(Any, self.mixer)
        # The class's, not its own: behind that a sharded block lets go of its weights.
        left = Block.mix(self, entered, context, before)
        x = x + (mixer.o_proj(left) if before else left)
        return x + self.mlp(self.mlp_norm(x)), entered, left

    def mix(self, x: Tensor, context: Context, before: bool) -> Tensor:
        """What the mixer makes of texts that start afresh, of what enters it behind its norm, x (B, T, D): what it adds
        to the stream (B, T, D), or with `before` what its o_proj reads (B, T, H V)."""
        mixer: Any = self.mixer
        y: Tensor = (mixer.attend if before else mixer)(x, None, context)[0]
        return y

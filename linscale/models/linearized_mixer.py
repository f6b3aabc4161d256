"""The mixer of a linearized LLaMA: linear attention made of choices, on the projections of a softmax layer. The model,
its config and the equations: linearized.py."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from linscale.distributed import copy_into
from linscale.layers import LRPE, Context
from linscale.layers.decay_gate import SPREAD, DecayGate, ForgetGate
from linscale.layers.delta_rule import delta_attention
from linscale.layers.feature_map import DenseFeatures, HeadFeatures
from linscale.layers.head_norm import GROUP_EPS, HeadGroupNorm, HeadRMSNorm, averaged_attention
from linscale.layers.linear_attention import stepped_attention
from linscale.layers.rope import attention_factor, rope_frequencies
from linscale.layers.short_conv import ShortConv, convolved, with_tails
from linscale.models.tnl import decay_slopes
from linscale.ops import angles, rotate_half

if TYPE_CHECKING:
    from linscale.models.linearized import LinearizedConfig

OPEN = 1.2784645  # silu of it is 1: an output gate's first value
LITTLE = -2.1972246  # sigmoid of it is 0.1: a write gate's; what is read is then, as softmax has it, a mean of many


class LinearAttention(nn.Module):
    """The mixer; its state (B, H, K, V), or (B, H, K, V + 1) where the last column holds the sums of similarities.

    With convolutions there are rows behind the K: see `short_conv.with_tails`.
    """

    log_decay: Tensor | None

    def __init__(self, config: LinearizedConfig, layer: int) -> None:
        super().__init__()
        self.linear, self.layer, self.init_std = config.linear, layer, config.init_std
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.rope_base, self.rope_scaling = config.rope_base, config.rope_scaling
        d_model, kv_width = config.d_model, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        taps = config.linear.conv
        self.q_conv, self.k_conv, self.v_conv = (
            ShortConv(width, taps) if taps else None for width in (d_model, kv_width, kv_width)
        )
        self.q_features, self.k_features = self._feature_maps()
        width = config.linear.feature_width(config.head_dim)
        self.lrpe = LRPE(config.n_heads, width) if config.linear.rotary == "lrpe" else None
        self.decay_gate = self._decay_gate(d_model, width)
        fixed = config.linear.decay in ("lightning", "retnet")
        self.register_buffer("log_decay", torch.empty(config.n_heads) if fixed else None, persistent=False)
        self.norm: nn.Module | None = None
        if config.linear.normalizer == "group":
            self.norm = HeadGroupNorm(d_model, GROUP_EPS)
        elif config.linear.normalizer == "rms":
            self.norm = HeadRMSNorm(d_model, config.norm_eps)
        self.output_gate = nn.Linear(d_model, d_model) if config.linear.gate else None
        self.write_gate = nn.Linear(d_model, config.n_heads) if config.linear.update == "delta" else None
        self.reset_log_decay()

    def _feature_maps(self) -> tuple[DenseFeatures | HeadFeatures | None, DenseFeatures | HeadFeatures | None]:
        """Of queries and keys; of keys None where they have the queries'."""
        kind, width = self.linear.features, self.linear.feature_dim or self.head_dim
        if kind == "relu":
            grouped = self.n_kv_heads != self.n_heads
            keys = DenseFeatures(self.n_kv_heads, self.head_dim, width) if grouped else None
            return DenseFeatures(self.n_heads, self.head_dim, width), keys
        if kind == "softmax" or kind == "exp":
            normed = self.linear.normalizer != "none"
            shape = self.n_heads, self.head_dim, width
            return HeadFeatures(*shape, kind, bounded=normed), HeadFeatures(*shape, kind, bounded=False)
        return None, None

    def _decay_gate(self, d_model: int, width: int) -> DecayGate | ForgetGate | None:
        if self.linear.keys == "forget":
            return ForgetGate(self.n_heads, width)
        if self.linear.gated:
            return DecayGate(d_model, self.n_heads, width if self.linear.decay == "channel" else None)
        return None

    def reset_log_decay(self) -> None:
        """The fixed rates of decay, which checkpoints do not hold."""
        if self.log_decay is not None:
            rates = torch.tensor(fixed_decay(self.linear.decay, self.n_heads), dtype=torch.float64)
            copy_into(self.log_decay, rates)

    def reset_new_parameters(self, seed: int) -> None:
        """First values of `new_parameters`, by the seed and the layer alone: features and gates begin near the layer
        that they are put into, but for relu's, which begin as SUPRA's."""
        generator = torch.Generator().manual_seed(2**32 * (self.layer + 1) + seed)
        for features in (self.q_features, self.k_features):
            if isinstance(features, DenseFeatures):
                features.reset(generator)
            elif features is not None:
                features.reset(self.init_std, generator)
        if isinstance(self.decay_gate, DecayGate):
            self.decay_gate.reset(generator)
        elif self.decay_gate is not None:
            self.decay_gate.reset()
        for gate, first in ((self.output_gate, OPEN), (self.write_gate, LITTLE)):
            if gate is not None:
                values = torch.randn(gate.weight.shape, generator=generator) * SPREAD * gate.in_features**-0.5
                copy_into(gate.weight, values)
                copy_into(gate.bias, torch.full(gate.bias.shape, first))
        for conv in self._convs():
            conv.reset()
        if self.lrpe is not None:
            self.lrpe.reset_parameters()
        if isinstance(self.norm, HeadRMSNorm):
            copy_into(self.norm.weight, torch.ones(self.norm.weight.shape))
        self.reset_log_decay()

    def forward(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> (B, T, D), and the state behind it."""
        o, state = self.attend(x, state, context)
        return self.o_proj(o), state

    def attend(self, x: Tensor, state: Tensor | None, context: Context) -> tuple[Tensor, Tensor]:
        """What o_proj reads, (B, T, H V), and the state."""
        read, tails = [self.q_proj(x), self.k_proj(x), self.v_proj(x)], None
        if self.linear.conv:
            keys = self.linear.key_width(self.head_dim)
            read, state, tails = convolved(self._convs(), read, state, keys, context)
        q, k, log_decay = self._queries_keys(read[0], read[1], x, context)
        v = self._for_every_head(read[2].unflatten(-1, (self.n_kv_heads, -1)))
        if self.write_gate is not None:
            o, state = delta_attention(q, k, v, self.write_gate(x), log_decay, state, context)
        elif self.linear.normalizer == "denominator":
            o, state = averaged_attention(q, k, v, log_decay, state, context)
        else:
            o, state = stepped_attention(q, k * k.shape[-1] ** -0.5, v, log_decay, state, context)
        o = (o if self.norm is None else self.norm(o)).flatten(2)
        o = o if self.output_gate is None else o * silu(self.output_gate(x))
        return o, state if tails is None else with_tails(state, tails)

    def _convs(self) -> list[ShortConv]:
        return [conv for conv in (self.q_conv, self.k_conv, self.v_conv) if conv is not None]

    def _queries_keys(self, q: Tensor, k: Tensor, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor | None]:
        """q, k (B, T, H, K) as the recurrence takes them, of what the projections gave, and its log_decay."""
        if isinstance(self.decay_gate, ForgetGate):
            q, k = self._by_head(q, k, context)
            q = self._mapped(q, self.q_features)
            k, log_decay = self.decay_gate(self._for_every_head(k))
        else:
            q, k = self._features(q, k, context)
            log_decay = self.log_decay if self.decay_gate is None else self.decay_gate(x)
        if self.linear.rotary == "after":
            q, k = self._rotated(q, k, context)
        if self.lrpe is not None:
            q, k = self.lrpe(q, k, context.positions)
            if log_decay is not None and log_decay.ndim == 4:
                log_decay = torch.cat([log_decay, log_decay], -1)  # a channel's cosine and sine fade alike
        return q, k, log_decay

    def _by_head(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """q (B, T, H, d) and k (B, T, G, d), rotated where that comes before the features."""
        q, k = q.unflatten(-1, (self.n_heads, -1)), k.unflatten(-1, (self.n_kv_heads, -1))
        return self._rotated(q, k, context) if self.linear.rotary == "before" else (q, k)

    def _features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """φ(q) and φ(k), (B, T, H, K)."""
        q, k = self._by_head(q, k, context)
        dense = isinstance(self.q_features, DenseFeatures)
        k = k if dense else self._for_every_head(k)
        q, k = self._mapped(q, self.q_features), self._mapped(k, self.k_features or self.q_features)
        return q, self._for_every_head(k) if dense else k

    def _mapped(self, x: Tensor, features: nn.Module | None) -> Tensor:
        if features is not None:
            mapped: Tensor = features(x)
            return mapped
        return silu(x) if self.linear.features == "silu" else x

    def _rotated(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        frequencies = rope_frequencies(q.shape[-1], self.rope_base, self.rope_scaling, q.device)
        cos, sin = angles(context.positions, frequencies, q.dtype)
        if self.linear.rotary == "before" and (factor := attention_factor(self.rope_scaling)) != 1:
            cos, sin = cos * factor, sin * factor  # sharpens q and k themselves
        return rotate_half(q, cos, sin), rotate_half(k, cos, sin)

    def _for_every_head(self, x: Tensor) -> Tensor:
        """(B, T, G, K) -> (B, T, H, K): consecutive copies."""
        return x if x.shape[2] == self.n_heads else x.repeat_interleave(self.n_heads // x.shape[2], dim=2)


def fixed_decay(kind: Literal["lightning", "retnet"] | str, n_heads: int) -> list[float]:
    """log γ of each head: lightning, ALiBi's slopes, negative; retnet, log(1 - 2^(-5-h)) for h = 0, 1, ..."""
    if kind == "retnet":
        return [math.log1p(-(2.0 ** (-5 - head))) for head in range(n_heads)]
    return [-slope for slope in decay_slopes(n_heads)]

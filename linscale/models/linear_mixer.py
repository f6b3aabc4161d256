"""The choices that a linearized model's linear attention is made of, and those of published ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from linscale.config import config
from linscale.layers.short_conv import tail_rows


@config
class LinearMixer:
    """Linear attention in the place of softmax attention, whose projections of queries, keys and values it keeps."""

    features: Literal["none", "silu", "relu", "softmax", "exp"] = "relu"
    """What q and k go through. relu: relu(W x + b) over all heads, one W for both unless heads share keys; softmax:
    [softmax(W x), softmax(-W x)] in each head; exp: the same with exp. silu and none have no weights."""
    feature_dim: PositiveInt | None = None
    "Rows of W for each head, by default head_dim. Softmax and exp features are twice as many."
    rotary: Literal["after", "before", "none", "lrpe"] = "after"
    """RoPE on the features (SUPRA), or before them, as the softmax layers have it; lrpe: cosFormer2's learned angles
    on the features, which they double."""
    decay: Literal["none", "lightning", "retnet", "head", "channel"] = "lightning"
    """How the past fades. Fixed by head: lightning, exp(-2^(-8h/H)) with h = 1..H; retnet, 1 - 2^(-5-h) with h from 0.
    By the data: head, one gate a head; channel, one a feature."""
    keys: Literal["features", "forget"] = "features"
    "forget: the gate is sigmoid of k and a bias, and the key is 1 - gate (HGRN2); needs decay = 'channel'."
    normalizer: Literal["group", "denominator", "rms", "none"] = "group"
    """group: each head's output less its mean, over its deviation (SUPRA); denominator: over the sum of similarities,
    as in softmax; rms: RMSNorm of each head with a gain."""
    gate: bool = False
    "Whether a SiLU gate from the layer's input multiplies what o_proj reads."
    update: Literal["add", "delta"] = "add"
    """What a step does to the state. add: k vᵀ is added; delta: what is held under k is replaced by v, as far as a gate
    of each head says (Gated DeltaNet, arXiv 2412.06464), with queries and keys of length 1."""
    conv: NonNegativeInt = 0
    """Tokens that a short causal convolution sees, one filter a channel, on what the projections of q, k and v give,
    before anything else; it begins as the identity. 2 to 8, or 0: there is none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.feature_dim is not None and not self.learned:
            raise ValueError(f"feature_dim = {self.feature_dim}: features = '{self.features}' have no W; leave it out")
        if self.features == "relu" and self.rotary == "after" and (self.feature_dim or 0) % 2:
            raise ValueError(f"feature_dim = {self.feature_dim}: RoPE turns pairs of features; expected an even number")
        if self.decay == "channel" and self.rotary == "after":
            raise ValueError(
                "rotary = 'after' turns pairs of features, which decay = 'channel' fades apart; expected 'before', "
                "'lrpe' or 'none'"
            )
        if self.keys == "forget" and self.decay != "channel":
            raise ValueError(f"decay = '{self.decay}': keys = 'forget' are made from a gate; expected 'channel'")
        if self.keys == "forget" and self.learned:
            raise ValueError(f"features = '{self.features}': keys = 'forget' have none; expected 'silu' or 'none'")
        if self.normalizer == "denominator" and not (self.learned and self.rotary in ("before", "none")):
            raise ValueError(
                "normalizer = 'denominator' divides by similarities, which must not be negative; expected features = "
                f"'relu', 'softmax' or 'exp' with rotary = 'before' or 'none', got '{self.features}' with "
                f"'{self.rotary}'"
            )
        return self

    @model_validator(mode="after")
    def _delta_fits(self) -> Self:
        if self.update == "delta" and self.decay not in ("head", "none"):
            raise ValueError(f"decay = '{self.decay}': update = 'delta' fades by head; expected 'head' or 'none'")
        if self.update == "delta" and self.normalizer == "denominator":
            raise ValueError(
                "normalizer = 'denominator': update = 'delta' has no sum of similarities; expected 'rms', 'group' or "
                "'none'"
            )
        return self

    @model_validator(mode="after")
    def _conv_fits(self) -> Self:
        if self.conv == 1 or self.conv > 8:
            raise ValueError(f"conv = {self.conv}: expected 2 to 8 tokens, or 0 for none")
        return self

    @property
    def learned(self) -> bool:
        """Whether the features have weights."""
        return self.features in ("relu", "softmax", "exp")

    @property
    def gated(self) -> bool:
        """Whether the data decide about the decay."""
        return self.decay in ("head", "channel")

    @property
    def in_one_piece(self) -> str | None:
        """The choice for which ranks cannot share a sequence, or None."""
        return "update = 'delta'" if self.update == "delta" else f"conv = {self.conv}" if self.conv else None

    def feature_width(self, head_dim: int) -> int:
        """Features of a head."""
        return (self.feature_dim or head_dim) * (2 if self.features in ("softmax", "exp") else 1)

    def key_width(self, head_dim: int) -> int:
        """K of the state: features as the recurrence sees them."""
        return self.feature_width(head_dim) * (2 if self.rotary == "lrpe" else 1)

    def value_width(self, head_dim: int) -> int:
        """Columns of the state: V, and one for the sum of similarities."""
        return head_dim + (self.normalizer == "denominator")

    def tail_rows(self, n_heads: int, kv_heads: int, head_dim: int) -> int:
        """Rows of the state behind those of its keys: the last inputs of the short convolutions."""
        numbers = max(self.conv - 1, 0) * (n_heads + 2 * kv_heads) * head_dim
        return tail_rows(numbers, n_heads, self.value_width(head_dim))


MIXERS: Mapping[str, LinearMixer] = {
    "supra": LinearMixer(),  # arXiv 2405.06640
    "t2r": LinearMixer(rotary="before", decay="none", normalizer="denominator"),  # arXiv 2103.13076
    "hedgehog": LinearMixer(features="softmax", rotary="before", decay="none", normalizer="denominator"),  # 2402.04347
    "gated": LinearMixer(features="softmax", rotary="before", decay="head", normalizer="denominator"),
    "tnl": LinearMixer(features="silu", rotary="lrpe", normalizer="rms", gate=True),  # arXiv 2307.14995
    "hgrn2": LinearMixer(
        features="silu", rotary="none", decay="channel", keys="forget", normalizer="rms"
    ),  # 2404.07904
    "cosformer2": LinearMixer(features="silu", rotary="lrpe", decay="none", normalizer="rms", gate=True),  # 2406.16690
    "delta": LinearMixer(
        features="none", rotary="before", decay="head", normalizer="none", gate=True, update="delta", conv=4
    ),  # 2412.06464, with its convolutions, but for the activation behind them
}
"""By name: published mixers, on the projections of a softmax layer."""

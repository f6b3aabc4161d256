"""Linear mixers that between them have every part of a decoding step of a linearized layer."""

import torch

from linscale.layers.rope import RopeScaling
from linscale.models import LanguageModel, build_model
from linscale.models.linear_mixer import LinearMixer
from linscale.models.linearized import MIXERS, LinearizedConfig

STEPPED = {
    **{name: mixer for name, mixer in MIXERS.items() if name != "t2r"},
    "channels": LinearMixer(features="softmax", rotary="none", decay="channel", normalizer="rms", conv=3),
    "lrpe": LinearMixer(features="relu", rotary="lrpe", decay="channel", normalizer="group", gate=True),
    "halves": LinearMixer(features="softmax", rotary="lrpe", decay="none", normalizer="group"),
    "after": LinearMixer(features="silu", rotary="after", decay="retnet", normalizer="none", conv=2),
    "folded": LinearMixer(
        features="relu", rotary="after", decay="none", normalizer="rms", update="delta", feature_dim=32
    ),
    "averages": LinearMixer(
        features="softmax", rotary="before", decay="channel", normalizer="denominator", gate=True, conv=4,
        feature_dim=32,
    ),
    "turned": LinearMixer(features="silu", rotary="before", decay="channel", keys="forget", normalizer="rms"),
    "forgets": LinearMixer(features="silu", rotary="lrpe", decay="channel", keys="forget", normalizer="group"),
}  # fmt: skip
YARN = RopeScaling(kind="yarn", factor=4.0, original_length=4)


def linearized(linear: LinearMixer, *softmax_layers: int, n_layers: int = 2) -> LanguageModel:
    """A small model with heads of 16, two of four sharing keys and values; no weight of it is what it is at first."""
    config = LinearizedConfig(
        vocab_size=61, d_model=64, head_dim=16, n_kv_heads=2, n_layers=n_layers, d_ff=40, linear=linear,
        softmax_layers=softmax_layers, rope_scaling=YARN,
    )  # fmt: skip
    model = build_model(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if x.ndim > 1 and "theta" not in name:
                x.mul_(3)
            x.add_(0.1 * torch.randn_like(x))
    return model

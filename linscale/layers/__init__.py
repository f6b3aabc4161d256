"""Layers: the modules that the models are put together from. A mixer takes (x, state, context), gives (y, state)."""

from linscale.layers.context import Context
from linscale.layers.linear_attention import linear_attention
from linscale.layers.lrpe import LRPE
from linscale.layers.mlp import GLU
from linscale.layers.norm import RMSNorm, SRMSNorm
from linscale.layers.output_gate import LowRankGate
from linscale.layers.rope import RopeScaling
from linscale.layers.softmax_attention import KeyValues, SoftmaxAttention, going_through_a_book
from linscale.layers.tpe import ToeplitzEncoding

__all__ = [
    "GLU",
    "LRPE",
    "Context",
    "KeyValues",
    "LowRankGate",
    "RMSNorm",
    "RopeScaling",
    "SRMSNorm",
    "SoftmaxAttention",
    "ToeplitzEncoding",
    "going_through_a_book",
    "linear_attention",
]

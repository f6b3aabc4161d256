"""Layers: the modules that the models are put together from. A mixer takes (x, state, context), gives (y, state)."""

from linscale.layers.context import Context
from linscale.layers.left_state import AlphaForm, LeftState
from linscale.layers.linear_attention import linear_attention
from linscale.layers.lrpe import LRPE
from linscale.layers.mlp import GLU, MLP
from linscale.layers.norm import LayerNorm, RMSNorm, SRMSNorm
from linscale.layers.output_gate import LowRankGate
from linscale.layers.products import Products
from linscale.layers.rope import RopeScaling
from linscale.layers.softmax_attention import KeyValues, SoftmaxAttention, going_through_a_book
from linscale.layers.tpe import ToeplitzEncoding
from linscale.layers.window_attention import WindowAttention

__all__ = [
    "GLU",
    "LRPE",
    "MLP",
    "AlphaForm",
    "Context",
    "KeyValues",
    "LayerNorm",
    "LeftState",
    "LowRankGate",
    "Products",
    "RMSNorm",
    "RopeScaling",
    "SRMSNorm",
    "SoftmaxAttention",
    "ToeplitzEncoding",
    "WindowAttention",
    "going_through_a_book",
    "linear_attention",
]

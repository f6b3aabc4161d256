"""Operators: pure functions of tensors. A form (reference, chunk) is chosen by `backend`, and by nothing else."""

from linscale.ops.cross_entropy import linear_cross_entropy
from linscale.ops.decay_attention import decay_attention, decay_attention_step
from linscale.ops.delta_rule import delta_rule, delta_rule_step
from linscale.ops.linear_scan import linear_scan
from linscale.ops.rotary import angles, rotate_half, rotate_lrpe

__all__ = [
    "angles",
    "decay_attention",
    "decay_attention_step",
    "delta_rule",
    "delta_rule_step",
    "linear_cross_entropy",
    "linear_scan",
    "rotate_half",
    "rotate_lrpe",
]

"""What stands in for softmax's sum over linear attention's outputs (B, T, H, V): a norm of each head, or that sum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from linscale.layers.context import Context
from linscale.layers.linear_attention import stepped_attention
from linscale.layers.norm import RMSNorm, SRMSNorm

GROUP_EPS = 1e-5  # SUPRA's, in the place of the model's norm_eps
SMALLEST = 1e-12  # added to sums of similarities: a token that is similar to none reads 0
WIDTHS = (64, 128, 256)  # V of the quickest kernels


class HeadGroupNorm(SRMSNorm):
    """(o - mean) / sqrt(variance + eps) over the V channels of each head, nothing learned (SUPRA, arXiv 2405.06640).

    Any positive factor of a head cancels, up to eps.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return super().forward(wide - wide.mean(-1, keepdim=True)).to(x.dtype)


class HeadRMSNorm(RMSNorm):
    """RMSNorm over the V channels of each head, x (B, T, H, V), with a learned gain for each channel of all, (H V,)."""

    def forward(self, x: Tensor) -> Tensor:
        return SRMSNorm.forward(self, x) * self.weight.view(x.shape[-2:]).to(x.dtype)


def averaged_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, context: Context
) -> tuple[Tensor, Tensor]:
    """`linear_attention` divided by the sum of similarities, an average of values: Σ_s w_ts v_s / Σ_s w_ts.

    The sum is one more channel of v, of ones, and the last column of the state (B, H, K, V + 1). q and k must not be
    negative. The division is in float32, or float64 for such inputs.
    """
    width = v.shape[-1]
    wide = width + 1
    if v.is_cuda and v.shape[1] > 1:
        wide = next((fits for fits in WIDTHS if fits >= wide), wide)
    v = torch.cat([v, v.new_ones(*v.shape[:-1], 1), v.new_zeros(*v.shape[:-1], wide - width - 1)], -1)
    before = None if state is None else pad(state, (0, wide - width - 1))
    o, after = stepped_attention(q, k, v, log_decay, before, context)
    sums = o if o.dtype == torch.float64 else o.float()
    averages = sums[..., :width] / (sums[..., width : width + 1] + SMALLEST)
    return averages.to(o.dtype), after[..., : width + 1].contiguous()

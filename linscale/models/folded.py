"""Feature maps folded into the projections before them, for inference: W_φ (W_q x) + b = (W_φ W_q) x + b.

A layer then reads a token by four matrices, as a LLaMA's does (SUPRA, arXiv 2405.06640).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from linscale.layers import Context
from linscale.layers.feature_map import DenseFeatures, HeadFeatures
from linscale.models.language_model import LanguageModel
from linscale.models.linearized import Linearized, LinearizedConfig
from linscale.models.linearized_mixer import LinearAttention


class FoldedAttention(LinearAttention):
    """A linear layer whose q_proj and k_proj give what its feature maps apply their activation to."""

    def __init__(self, config: LinearizedConfig, mixer: LinearAttention) -> None:
        """Shares with `mixer` all that stays as it is."""
        with torch.device("meta"):
            super().__init__(config, mixer.layer)
        for name in ("v_proj", "o_proj", "lrpe", "decay_gate", "norm", "output_gate", "write_gate", "log_decay"):
            setattr(self, name, getattr(mixer, name))
        queries, keys = mixer.q_features, mixer.k_features or mixer.q_features
        assert queries is not None
        assert keys is not None
        self.q_proj = _product(mixer.q_proj, queries, mixer.n_heads)
        self.k_proj = _product(mixer.k_proj, keys, mixer.n_heads)
        self.q_features = self.k_features = None
        self.activated = queries.activated, keys.activated

    def _features(self, q: Tensor, k: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        width = self.linear.feature_dim or self.head_dim
        q, k = (
            activated(product.unflatten(-1, (-1, width)))
            for activated, product in zip(self.activated, (q, k), strict=True)
        )
        return q, self._for_every_head(k)


def can_fold(model: LanguageModel) -> bool:
    """Whether it has feature maps with weights right behind its projections: no rotation between them, and no
    convolution, which filters every channel of a projection by itself."""
    if not isinstance(model, Linearized):
        return False
    linear = model.config.linear
    return linear.learned and linear.rotary != "before" and not linear.conv


def fold(model: LanguageModel) -> LanguageModel:
    """A model that gives what `model` gives, up to rounding, from folded projections; all else of it is shared.

    Its states are those of `model`. Where nothing can be folded it is `model` itself.
    """
    if not can_fold(model):
        return model
    folded: LanguageModel = _shallow(model)
    blocks = nn.ModuleList()
    for block in model.blocks:
        new = _shallow(block)
        if isinstance(block.mixer, LinearAttention):
            assert isinstance(model.config, LinearizedConfig)
            new.mixer = FoldedAttention(model.config, block.mixer).train(model.training)
        blocks.append(new)
    folded.blocks = blocks
    return folded


def _shallow(module: Any) -> Any:
    """A module with the same parts, some of which can then be replaced."""
    new = copy.copy(module)
    new._modules = dict(module._modules)
    return new


@torch.no_grad()
def _product(projection: nn.Linear, features: DenseFeatures | HeadFeatures, n_heads: int) -> nn.Linear:
    """One map for both; products in float32 at least."""
    first = projection.weight if projection.weight.dtype == torch.float64 else projection.weight.float()
    second = features.weight.to(first.dtype)
    if isinstance(features, DenseFeatures):
        weight, bias = second @ first, features.bias
    else:
        heads = first.unflatten(0, (-1, second.shape[1]))  # (H or G, d, D)
        heads = heads.repeat_interleave(n_heads // len(heads), dim=0)
        weight, bias = torch.einsum("hdf,hdx->hfx", second, heads).flatten(0, 1), None
    with torch.device("meta"):
        found = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    found.weight = nn.Parameter(weight.to(projection.weight.dtype), requires_grad=False)
    if bias is not None:
        found.bias = nn.Parameter(bias.to(projection.weight.dtype), requires_grad=False)
    return found

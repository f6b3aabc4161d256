"""The published family: six sizes of four architectures, and the 1B variants of width and depth.

Source: arXiv 2406.16690, with its inconsistencies resolved so that these shapes give back its own parameter counts and
PFLOPs per step: the number of heads is d_model/128 throughout (the tables print 8 at widths 512 and 768 and 16 at
1536), d_ff is 8/3 · d_model rounded up to a multiple of 256 (1B: 4096, where a table prints 5632), and 410M has 26
layers for LLaMA and HGRN2 but 25 for TNL and cosFormer2, whose output gate costs the difference.
"""

from __future__ import annotations

from linscale.config import UserError
from linscale.models.cosformer2 import CosFormer2Config
from linscale.models.hgrn2 import HGRN2Config
from linscale.models.language_model import LanguageModelConfig
from linscale.models.linearized import LinearizedConfig
from linscale.models.llama import LlamaConfig
from linscale.models.recurrent_transformer import RecurrentTransformerConfig
from linscale.models.tnl import TNLConfig

CONFIGS: dict[str, type[LanguageModelConfig]] = {
    "llama": LlamaConfig,
    "tnl": TNLConfig,
    "hgrn2": HGRN2Config,
    "cosformer2": CosFormer2Config,
    "recurrent_transformer": RecurrentTransformerConfig,
    "linearized": LinearizedConfig,
}

SIZES: dict[str, tuple[int, int]] = {  # (d_model, n_layers)
    "70M": (512, 6),
    "160M": (768, 12),
    "410M": (1024, 26),
    "1B": (1536, 32),
    "3B": (2560, 35),
    "7B": (4096, 32),
    "1B-1792x24": (1792, 24),
    "1B-2048x18": (2048, 18),
    "1B-3072x8": (3072, 8),
}

SHALLOWER = {("tnl", "410M"): 25, ("cosformer2", "410M"): 25}  # n_layers


def preset(arch: str, size: str) -> LanguageModelConfig:
    """The config of a published model, e.g. preset("tnl", "410M"). Raises UserError naming what exists."""
    if arch not in CONFIGS:
        raise UserError(f"arch = {arch!r}: expected one of {', '.join(CONFIGS)}")
    if size not in SIZES:
        raise UserError(f"size = {size!r}: expected one of {', '.join(SIZES)}")
    d_model, n_layers = SIZES[size]
    return CONFIGS[arch](d_model=d_model, n_layers=SHALLOWER.get((arch, size), n_layers))

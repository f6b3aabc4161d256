"""Counts by named convention: parameters, FLOPs and memory of a config, without building the model.

Exact     `count_parameters`, tied to numel() by a test; `flops_per_token`, every matrix product as this code runs it.
Paper     `paper_parameters` and `paper_flops_per_step`: the closed forms of arXiv 2406.16690 that define N and C in
          its laws. They leave out embeddings and head, put 8/3 · d_model for the GLU's width in FLOPs, and drop small
          terms.

A multiply-accumulate is 2 FLOPs, training is three times the forward pass. Softmax layers of a hybrid are counted as
LLaMA's, the others as their architecture's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from linscale.models.language_model import LanguageModelConfig
from linscale.ops.decay_attention.chunk import CHUNK


@dataclass(frozen=True)
class ParameterCount:
    """Elements of every tensor, by what they do. The sum is exactly numel()."""

    embedding: int
    head: int
    mixer: int
    gate: int
    mlp: int
    norm: int
    position: int
    lower_bound: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding - self.head


def architectures(config: LanguageModelConfig) -> list[str]:
    """What each layer is: the config's arch, or "llama" in the softmax layers of a hybrid."""
    return ["llama" if config.is_softmax(layer) else arch(config) for layer in range(config.n_layers)]


def arch(config: LanguageModelConfig) -> str:
    """The architecture a config belongs to: "llama", "tnl", "hgrn2" or "cosformer2"."""
    return str(config.arch)  # type: ignore[attr-defined]


def count_parameters(config: LanguageModelConfig) -> ParameterCount:
    """Every element of every parameter, from the config alone."""
    d, layers = config.d_model, architectures(config)
    gated = sum(layer in ("tnl", "cosformer2") for layer in layers)
    rotated = layers.count("cosformer2") + (layers[0] == "tnl")  # LRPE: every cosFormer2 layer, the first of TNL
    name = arch(config)
    return ParameterCount(
        embedding=config.vocab_size * d,
        head=0 if config.tie_embeddings else config.vocab_size * d,
        mixer=4 * d * d * len(layers),
        gate=2 * d * config.head_dim * gated,
        mlp=3 * d * config.glu_width * len(layers),
        norm=d * (2 * len(layers) + 1) if name == "llama" else 0,
        position=d * rotated + (d * config.head_dim if name == "cosformer2" else 0),
        lower_bound=d * len(layers) if name == "hgrn2" else 0,
    )


def paper_parameters(config: LanguageModelConfig) -> int:
    """N, the non-embedding parameters by the paper's general formula:

        LLaMA 4ld² + 3ldg    TNL + 2ldt    HGRN2 + ld    cosFormer2 + 2ldt + de       g = d_ff, t = e = head_dim

    Norms and rotation angles are not counted.
    """
    count = count_parameters(config)
    toeplitz = config.d_model * config.head_dim if arch(config) == "cosformer2" else 0
    lower_bound = config.d_model * architectures(config).count("hgrn2")
    return count.mixer + count.gate + count.mlp + toeplitz + lower_bound


def paper_flops_per_step(config: LanguageModelConfig, sequences: int = 480, length: int = 8192) -> float:
    """C of one training step on `sequences` x `length` tokens by the paper's closed forms, embeddings excluded:

    72 b n l d² (1 + bracket)     LLaMA       n/(6d)  + 5/(18d)
                                  TNL         1/(2h)  + 5/(18d)
                                  HGRN2       1/(3h)  + 29/(72d)     and 12 d l once
                                  cosFormer2  3/(4h)  + 23/(72d)     and 12 b n d²/h once, for the TPE
    """
    d, h, tokens = config.d_model, config.n_heads, sequences * length
    bracket = {
        "llama": length / (6 * d) + 5 / (18 * d),
        "tnl": 1 / (2 * h) + 5 / (18 * d),
        "hgrn2": 1 / (3 * h) + 29 / (72 * d),
        "cosformer2": 3 / (4 * h) + 23 / (72 * d),
    }
    flops = sum(72 * tokens * d**2 * (1 + bracket[layer]) for layer in architectures(config))
    if arch(config) == "hgrn2":
        flops += 12 * d * config.n_layers
    if arch(config) == "cosformer2":
        flops += 12 * tokens * d**2 / h
    return flops


def flops_per_token(
    config: LanguageModelConfig, mode: Literal["train", "prefill", "step"], length: int = 8192
) -> float:
    """Matrix-product FLOPs for one token as this code runs it, head included, averaged over a sequence of `length`.

    train    forward and backward, 3 x prefill
    prefill  forward over `length` tokens; softmax counts the causal half, linear attention whole chunks
    step     decoding one token after `length` others
    """
    count = count_parameters(config)
    toeplitz = config.d_model * config.head_dim if arch(config) == "cosformer2" else 0
    dense = 2 * (count.mixer + count.gate + count.mlp + config.vocab_size * config.d_model)
    mixing = sum(_mixing_flops(config, layer, name, mode, length) for layer, name in enumerate(architectures(config)))
    # TPE by the recurrence: up 2de, recurrence de, down 2de.
    forward = dense + mixing + 5 * toeplitz
    return 3 * forward if mode == "train" else forward


def _mixing_flops(config: LanguageModelConfig, layer: int, name: str, mode: str, length: int) -> float:
    """FLOPs a token of moving information through time in one layer, all heads."""
    if name == "llama":
        seen = length if mode == "step" else (length + 1) / 2
        return 4 * config.d_model * seen  # q·k and weights·v: 2 d each for every position seen
    k, v = key_width(config, layer), config.head_dim
    state = 5 * k * v if mode == "step" else 4 * k * v  # read 2KV, write 2KV; a step also decays the state, KV
    chunk = 0 if mode == "step" else 2 * min(CHUNK, length) * (k + v)  # scores and their product with v
    return config.n_heads * (state + chunk)


def key_width(config: LanguageModelConfig, layer: int) -> int:
    """K of a linear layer's state: head_dim, or twice that where LRPE doubles it."""
    doubled = arch(config) == "cosformer2" or (arch(config) == "tnl" and layer == 0)
    return config.head_dim * (2 if doubled else 1)


def state_elements(config: LanguageModelConfig, length: int = 8192) -> int:
    """Elements of one sequence's decoding state after `length` tokens; only softmax layers depend on it."""
    elements = config.d_model * config.head_dim if arch(config) == "cosformer2" else 0
    for layer, name in enumerate(architectures(config)):
        softmax = name == "llama"
        elements += 2 * config.d_model * length if softmax else config.d_model * key_width(config, layer)
    return elements

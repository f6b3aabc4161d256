"""The shape of a model, and what follows from it alone: parameters and FLOPs, in plain arithmetic without torch.

Exact     `count_parameters`, every element; `flops_per_token`, every matrix product as linscale's code runs it, and
          the filters of convolutions over time.
Paper     `paper_parameters` and `paper_flops_per_step`: the closed forms of arXiv 2406.16690 that define N and C in
          its laws. They leave out embeddings and head, put 8/3 · d_model for the GLU's width in FLOPs, and drop small
          terms.

A multiply-accumulate is 2 FLOPs, training is three times the forward pass. Softmax layers of a hybrid are counted as
LLaMA's, the others as their architecture's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["train", "prefill", "step"]
ARCHS = ("llama", "tnl", "hgrn2", "cosformer2")
CHUNK = 32  # steps of a chunk that linear attention is counted with; the operators' own, which a test compares
DELTA_CHUNK = 64  # of the delta rule's


@dataclass(frozen=True)
class Windows:
    """What a recurrent transformer is counted from beside its shape."""

    block: int
    """Tokens of a block K."""
    matrices: int
    """Of an MLP: 3 of a GLU, 2 without a gate."""
    table: int
    """Rows of the table of positions, or 0."""
    left: tuple[int, int, int]
    """What decides about the left state, elements a layer: a matrix, single numbers, gains of norms."""
    slots: int
    """Of a layer's state, each K x D."""
    closes: bool
    """Whether the last block of a text goes through its layer once more."""


@dataclass(frozen=True)
class Linear:
    """What a linear layer of a linearized model is counted from beside its shape."""

    keys: int
    """K of its state."""
    values: int
    """Columns of its state: V, or V + 1."""
    features: int
    """Elements of the matrices of its feature maps, and of the filters of its convolutions."""
    products: int
    """Multiply-accumulates of a token there: the elements, twice those of a matrix for both queries and keys."""
    gates: int
    """Elements of the matrices of its gates."""
    biases: int
    gains: int
    """Of norms of its heads."""
    angles: int
    delta: bool = False
    """Whether its states are overwritten, by the delta rule."""
    tails: int = 0
    """Rows of its state behind the K: the last inputs of its convolutions."""


@dataclass(frozen=True)
class Shape:
    """What parameters and FLOPs are counted from."""

    arch: str
    """One of ARCHS, "recurrent_transformer" or "linearized"."""
    d_model: int
    head_dim: int
    d_ff: int
    """Inner width of the GLU. Not read by the paper's FLOPs."""
    vocab_size: int
    """Rows of the embedding. Not read where embedding and head are left out."""
    layers: tuple[str, ...]
    """What each layer is: the arch, or "llama" in the softmax layers of a hybrid."""
    tied: bool = True
    """Whether the head is the embedding."""
    n_kv_heads: int | None = None
    """Heads of keys and values in softmax layers, and in linearized ones; None for all."""
    windows: Windows | None = None
    """Of a recurrent transformer; its softmax layers have its MLP."""
    linear: Linear | None = None
    """Of a linearized model."""

    @property
    def n_heads(self) -> int:
        return self.d_model // self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values, of a softmax layer."""
        return self.head_dim * (self.n_kv_heads or self.n_heads)


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
    """HGRN2: of its gates; a recurrent transformer: its alphas; a linearized model: biases."""

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def non_embedding(self) -> int:
        return self.total - self.embedding - self.head


def count_parameters(shape: Shape) -> ParameterCount:
    """Every element of every parameter."""
    d, layers, name = shape.d_model, shape.layers, shape.arch
    gated = sum(layer in ("tnl", "cosformer2") for layer in layers)
    rotated = layers.count("cosformer2") + (layers[0] == "tnl")  # LRPE: every cosFormer2 layer, the first of TNL
    windows, recurrent = shape.windows, layers.count("recurrent_transformer")
    matrix, numbers, gains = windows.left if windows else (0, 0, 0)
    linear, linearized = shape.linear, layers.count("linearized")
    if linear is not None:
        matrix, numbers, gains, recurrent = linear.gates, linear.biases, linear.gains, linearized
    return ParameterCount(
        embedding=shape.vocab_size * d,
        head=0 if shape.tied else shape.vocab_size * d,
        mixer=4 * d * d * len(layers)
        - 2 * d * (d - shape.kv_width) * (layers.count("llama") + linearized)
        + (linear.features * linearized if linear else 0),
        gate=2 * d * shape.head_dim * gated + matrix * recurrent,
        mlp=(windows.matrices if windows else 3) * d * shape.d_ff * len(layers),
        norm=(d * (2 * len(layers) + 1) if name == "llama" or windows or linear else 0) + gains * recurrent,
        position=d * rotated
        + d * (shape.head_dim if name == "cosformer2" else windows.table if windows else 0)
        + (linear.angles * linearized if linear else 0),
        lower_bound=d * len(layers) if name == "hgrn2" else numbers * recurrent,
    )


def paper_parameters(shape: Shape) -> int:
    """N, the non-embedding parameters by the paper's general formula:

        LLaMA 4ld² + 3ldg    TNL + 2ldt    HGRN2 + ld    cosFormer2 + 2ldt + de       g = d_ff, t = e = head_dim

    Norms and rotation angles are not counted. Where heads share keys and values, 4d² of a softmax layer is less.
    """
    count = count_parameters(shape)
    toeplitz = shape.d_model * shape.head_dim if shape.arch == "cosformer2" else 0
    lower_bound = shape.d_model * shape.layers.count("hgrn2")
    return count.mixer + count.gate + count.mlp + toeplitz + lower_bound


def paper_flops_per_step(shape: Shape, sequences: int, length: int) -> float:
    """C of one training step on `sequences` x `length` tokens by the paper's closed forms, embeddings excluded:

    72 b n l d² (1 + bracket)     LLaMA       n/(6d)  + 5/(18d)
                                  TNL         1/(2h)  + 5/(18d)
                                  HGRN2       1/(3h)  + 29/(72d)     and 12 d l once
                                  cosFormer2  3/(4h)  + 23/(72d)     and 12 b n d²/h once, for the TPE

    Of a recurrent transformer and a linearized model, which have none there, every matrix product but the head.
    """
    if shape.windows is not None or shape.linear is not None:
        return flops_per_token(shape, "train", length, head=False) * sequences * length
    d, h, tokens = shape.d_model, shape.n_heads, sequences * length
    bracket = {
        "llama": length / (6 * d) + 5 / (18 * d),
        "tnl": 1 / (2 * h) + 5 / (18 * d),
        "hgrn2": 1 / (3 * h) + 29 / (72 * d),
        "cosformer2": 3 / (4 * h) + 23 / (72 * d),
    }
    flops = sum(72 * tokens * d**2 * (1 + bracket[layer]) for layer in shape.layers)
    if shape.arch == "hgrn2":
        flops += 12 * d * len(shape.layers)
    if shape.arch == "cosformer2":
        flops += 12 * tokens * d**2 / h
    return flops


def flops_per_token(shape: Shape, mode: Mode, length: float, *, head: bool = True) -> float:
    """Matrix-product FLOPs for one token as linscale runs it, averaged over a sequence of `length`.

    train    forward and backward, 3 x prefill
    prefill  forward over `length` tokens; softmax counts the causal half, linear attention whole chunks
    step     decoding one token after `length` others

    `head` says whether the head counts; looking up an embedding is no matrix product.
    """
    count = count_parameters(shape)
    toeplitz = shape.d_model * shape.head_dim if shape.arch == "cosformer2" else 0
    dense: float = 2 * (count.mixer + count.gate + count.mlp + (shape.vocab_size * shape.d_model if head else 0))
    mixing = sum(_mixing_flops(shape, layer, name, mode, length) for layer, name in enumerate(shape.layers))
    if shape.windows is not None:
        dense += _second_pass(shape, count, mode, length)
    if shape.linear is not None:
        dense += 2 * (shape.linear.products - shape.linear.features) * shape.layers.count("linearized")
    # TPE by the recurrence: up 2de, recurrence de, down 2de.
    forward = dense + mixing + 5 * toeplitz
    return 3 * forward if mode == "train" else forward


def _second_pass(shape: Shape, count: ParameterCount, mode: Mode, length: float) -> float:
    """FLOPs a token of the products that a recurrent transformer makes again: each token goes through a layer twice,
    and where texts are closed as published the last block a third time. Its gate reads twice as well."""
    assert shape.windows is not None
    layers = shape.layers.count("recurrent_transformer")
    share = layers / len(shape.layers)
    closing = 0.0
    if shape.windows.closes and layers:
        closing = 1.0 if mode == "step" else ((length - 1) % shape.windows.block + 1) / length
    mixer = 4 * shape.d_model**2 * layers
    return 2 * ((1 + closing) * (mixer + count.mlp * share) + count.gate)


def _window_flops(shape: Shape, windows: Windows, mode: Mode, length: float) -> float:
    """FLOPs a token of attention in one layer: on the right over the block before and its own so far, on the left over
    its own so far; a step reads whole caches under a mask."""
    block, last = windows.block, (length - 1) % windows.block + 1
    if mode == "step":
        return 4 * shape.d_model * block * (4 if windows.closes else 3)
    whole = length - last
    seen = (block + 1) * whole + (last + 1) * last  # own block, both passes
    seen += block * max(0.0, length - block)  # the block before
    return 4 * shape.d_model * (seen + windows.closes * last * (last + 1) / 2) / length


def _mixing_flops(shape: Shape, layer: int, name: str, mode: Mode, length: float) -> float:
    """FLOPs a token of moving information through time in one layer, all heads."""
    if name == "llama":
        seen = length if mode == "step" else (length + 1) / 2
        return 4 * shape.d_model * seen  # q·k and weights·v: 2 d each for every position seen
    if shape.windows is not None:
        return _window_flops(shape, shape.windows, mode, length)
    k, v = key_width(shape, layer), shape.linear.values if shape.linear else shape.head_dim
    if shape.linear is not None and shape.linear.delta:
        return shape.n_heads * _delta_flops(k, v, mode, length)
    state = 5 * k * v if mode == "step" else 4 * k * v  # read 2KV, write 2KV; a step also decays the state, KV
    chunk = 0 if mode == "step" else 2 * min(CHUNK, length) * (k + v)  # scores and their product with v
    return shape.n_heads * (state + chunk)


def _delta_flops(k: int, v: int, mode: Mode, length: float) -> float:
    """FLOPs a token of the delta rule in one head. A step reads twice, writes and decays; the products of a chunk are
    k kᵀ, q kᵀ, T (k v), scores u; an inverse by halves; then F (k v), u and o by the state, and the state's own."""
    if mode == "step":
        return 7 * k * v
    chunk = min(DELTA_CHUNK, length)
    inside = 2 * chunk * (3 * k + 2 * v) + 2 * max(chunk * chunk - 16, 0) / 3
    return inside + 2 * k * k + 6 * k * v + 2 * k * k * v / chunk


def key_width(shape: Shape, layer: int) -> int:
    """K of a linear layer's state: head_dim, or twice that where LRPE doubles it; a linearized model's own."""
    if shape.linear is not None:
        return shape.linear.keys
    doubled = shape.arch == "cosformer2" or (shape.arch == "tnl" and layer == 0)
    return shape.head_dim * (2 if doubled else 1)


def state_elements(shape: Shape, length: int) -> int:
    """Elements of one sequence's decoding state after `length` tokens; only softmax layers depend on it."""
    elements = shape.d_model * shape.head_dim if shape.arch == "cosformer2" else 0
    for layer, name in enumerate(shape.layers):
        if name == "llama":
            elements += 2 * shape.kv_width * length
        elif shape.windows is not None:
            elements += shape.windows.slots * shape.windows.block * shape.d_model
        else:
            values, tails = (shape.linear.values, shape.linear.tails) if shape.linear else (shape.head_dim, 0)
            elements += shape.n_heads * (key_width(shape, layer) + tails) * values
    return elements

"""Counts by named convention: parameters, FLOPs and memory of a config, without building the model.

The arithmetic is `linscale.shape`, which needs no torch; here it is given a config. Exact: `count_parameters`, tied to
numel() by a test, and `flops_per_token`. Paper: `paper_parameters` and `paper_flops_per_step`, which define N and C.
"""

from __future__ import annotations

from linscale import shape
from linscale.models.language_model import LanguageModelConfig
from linscale.models.linearized import LinearizedConfig
from linscale.models.recurrent_state import CLOSES
from linscale.models.recurrent_transformer import RecurrentTransformerConfig
from linscale.shape import Linear, Mode, ParameterCount, Shape, Windows


def architectures(config: LanguageModelConfig) -> list[str]:
    """What each layer is: the config's arch, or "llama" in the softmax layers of a hybrid."""
    return ["llama" if config.is_softmax(layer) else arch(config) for layer in range(config.n_layers)]


def arch(config: LanguageModelConfig) -> str:
    """The architecture a config belongs to: a key of sizes.CONFIGS."""
    return str(config.arch)  # type: ignore[attr-defined]


def shape_of(config: LanguageModelConfig) -> Shape:
    """What counts are made from."""
    return Shape(
        arch=arch(config),
        d_model=config.d_model,
        head_dim=config.head_dim,
        d_ff=config.glu_width,
        vocab_size=config.vocab_size,
        layers=tuple(architectures(config)),
        tied=config.tie_embeddings,
        n_kv_heads=config.n_kv_heads,
        windows=_windows(config) if isinstance(config, RecurrentTransformerConfig) else None,
        linear=_linear(config) if isinstance(config, LinearizedConfig) else None,
    )


def _windows(config: RecurrentTransformerConfig) -> Windows:
    r, d, heads = config.recurrence, config.d_model, config.n_heads
    numbers = 0 if r.forgets else {"fixed": 0, "learned": 1, "channel": d, "gated": heads}[r.alpha_form]
    gains = 0 if r.forgets else d * (r.normed + (r.alpha_form == "gated"))
    return Windows(
        block=r.block,
        matrices=3 if r.mlp == "swiglu" else 2,
        table=r.table or 0,
        left=(d * heads if r.alpha_form == "gated" else 0, numbers, gains),
        slots=r.slots,
        closes=r.slots == CLOSES,
    )


def _linear(config: LinearizedConfig) -> Linear:
    m, d, heads, head_dim = config.linear, config.d_model, config.n_heads, config.head_dim
    width = m.feature_width(head_dim)
    features = products = biases = 0
    if m.features == "relu":  # dense over all heads, of queries and of keys
        queries, keys = heads * head_dim * heads * width, config.kv_heads**2 * head_dim * width
        shared = config.kv_heads == heads
        features, products = queries + (0 if shared else keys), queries + keys
        biases = width * (heads + (0 if shared else config.kv_heads))
    elif m.learned:  # W of each head, half as wide as what it gives
        features = products = 2 * heads * head_dim * (width // 2)
    convs = m.conv * (d + 2 * config.kv_heads * head_dim)
    rates = {"head": heads, "channel": heads * width}.get(m.decay, 0)
    writes = heads if m.update == "delta" else 0
    return Linear(
        keys=m.key_width(head_dim),
        values=m.value_width(head_dim),
        features=features + convs,
        products=products + convs,
        gates=d * (0 if m.keys == "forget" else rates) + d * d * m.gate + d * writes,
        biases=biases + rates + d * m.gate + writes,
        gains=d if m.normalizer == "rms" else 0,
        angles=heads * width if m.rotary == "lrpe" else 0,
        delta=m.update == "delta",
        tails=m.tail_rows(heads, config.kv_heads, head_dim),
    )


def count_parameters(config: LanguageModelConfig) -> ParameterCount:
    """Every element of every parameter, from the config alone."""
    return shape.count_parameters(shape_of(config))


def paper_parameters(config: LanguageModelConfig) -> int:
    """N, the non-embedding parameters by the paper's general formula."""
    return shape.paper_parameters(shape_of(config))


def paper_flops_per_step(config: LanguageModelConfig, sequences: int = 480, length: int = 8192) -> float:
    """C of one training step on `sequences` x `length` tokens by the paper's closed forms, embeddings excluded."""
    return shape.paper_flops_per_step(shape_of(config), sequences, length)


def flops_per_token(config: LanguageModelConfig, mode: Mode, length: int = 8192) -> float:
    """Matrix-product FLOPs for one token as this code runs it, head included, averaged over a sequence of `length`.

    train    forward and backward, 3 x prefill
    prefill  forward over `length` tokens; softmax counts the causal half, linear attention whole chunks
    step     decoding one token after `length` others
    """
    return shape.flops_per_token(shape_of(config), mode, length)


def key_width(config: LanguageModelConfig, layer: int) -> int:
    """K of a linear layer's state: head_dim, or twice that where LRPE doubles it; a linearized model's own."""
    return shape.key_width(shape_of(config), layer)


def state_shape(config: LanguageModelConfig, layer: int) -> tuple[int, ...]:
    """Of one sequence's state of a layer that is not softmax attention."""
    if isinstance(config, RecurrentTransformerConfig):
        return config.recurrence.slots, config.recurrence.block, config.d_model
    if isinstance(config, LinearizedConfig):
        linear = _linear(config)
        return config.n_heads, linear.keys + linear.tails, linear.values
    return config.n_heads, key_width(config, layer), config.head_dim


def state_elements(config: LanguageModelConfig, length: int = 8192) -> int:
    """Elements of one sequence's decoding state after `length` tokens; only softmax layers depend on it."""
    return shape.state_elements(shape_of(config), length)

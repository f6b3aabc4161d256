"""config.json of a LLaMA in a Hugging Face folder: read into our config, and written from it.

Whatever would change a logit and is not ours is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from linscale.config import UserError, parse
from linscale.layers import RopeScaling
from linscale.models import LlamaConfig

MODEL_TYPES = ("llama", "mistral")
PLAIN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None,),
    "logits_scaling": (None,),
}
"""Fields with the only values that they may have where they are set."""
MISTRAL = {"sliding_window": 4096, "num_key_value_heads": 8}
"""What transformers takes a Mistral to have where its config.json does not say."""
SCALINGS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate", "attention_factor",
        "mscale", "mscale_all_dim",
    },
}  # fmt: skip
"""Keys that each kind of rope scaling has."""
DYNAMIC = (
    "its angles depend on the longest text of the batch; up to max_position_embeddings it is the same as none, for "
    "which set rope_scaling to null"
)


def read_llama_config(values: Mapping[str, Any], source: str) -> LlamaConfig:
    """Our config of a LLaMA from the content of its config.json. Raises UserError naming `source` and the field."""
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{source}: model_type = {kind!r}: expected one of {', '.join(MODEL_TYPES)}, or linscale")
    if kind == "mistral":
        values = MISTRAL | dict(values)
    for field, allowed in PLAIN.items():
        if field in values and values[field] not in allowed:
            raise UserError(f"{source}: {field} = {values[field]!r}: not supported; expected {allowed[0]!r}")
    width, heads = _whole(values, "hidden_size", source), _whole(values, "num_attention_heads", source)
    head_dim = values.get("head_dim") or width // heads
    if head_dim * heads != width:
        raise UserError(
            f"{source}: head_dim = {head_dim}: {heads} heads make {head_dim * heads}, not hidden_size = {width}; "
            "only heads that fill the width are supported"
        )
    base, scaling = _rope(values, source)
    kv_heads = values.get("num_key_value_heads") or heads
    shape = {
        "arch": "llama",
        "vocab_size": _whole(values, "vocab_size", source),
        "d_model": width,
        "n_layers": _whole(values, "num_hidden_layers", source),
        "head_dim": head_dim,
        "d_ff": _whole(values, "intermediate_size", source),
        "rope_base": base,
        "rope_scaling": scaling,
        "n_kv_heads": None if kv_heads == heads else kv_heads,
        "norm_eps": values.get("rms_norm_eps", 1e-6),
        "init_std": values.get("initializer_range") or 0.02,
        "tie_embeddings": bool(values.get("tie_word_embeddings", False)),
    }
    found: LlamaConfig = parse(LlamaConfig, shape, source=source)
    return found


def _whole(values: Mapping[str, Any], field: str, source: str) -> int:
    value = values.get(field)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{source}: {field} = {value!r}: expected a whole number of at least 1")
    return value


def _rope(values: Mapping[str, Any], source: str) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    field = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise UserError(f"{source}: {field} = {found!r}: expected a table, or null")
    found = dict(found)
    base = found.pop("rope_theta", None) or values.get("rope_theta") or 10_000.0
    kinds = [found.pop(key, None) for key in ("rope_type", "type")]
    kind = str(kinds[0] or kinds[1] or "default")
    if found.pop("partial_rotary_factor", None) not in (None, 1):
        raise UserError(f"{source}: {field}.partial_rotary_factor: not supported; expected whole heads to turn")
    if kind == "default":
        return base, None
    if kind not in SCALINGS:
        why = DYNAMIC if kind == "dynamic" else f"expected one of default, {', '.join(SCALINGS)}"
        raise UserError(f"{source}: {field}.rope_type = {kind!r}: not supported; {why}")
    if unknown := sorted(set(found) - SCALINGS[kind]):
        if kind == "linear" and unknown == ["original_max_position_embeddings"]:
            found.pop(unknown[0])  # written by some tools; linear scaling does not read it
        else:
            raise UserError(f"{source}: {field}.{unknown[0]}: not a field of rope_type = {kind!r}")
    original = found.pop("original_max_position_embeddings", None)
    if kind != "linear":
        found["original_length"] = original or values.get("max_position_embeddings")
    if kind == "yarn":
        _complete_yarn(found, values, source)
    return base, {"kind": kind, **{key: value for key, value in found.items() if value is not None}}


def _complete_yarn(found: dict[str, Any], values: Mapping[str, Any], source: str) -> None:
    """Put in numbers what a YaRN scaling leaves to be computed, by transformers' rules."""
    longest, original = values.get("max_position_embeddings"), found["original_length"]
    if found.get("factor") is None:
        if not longest or not original:
            raise UserError(f"{source}: rope scaling yarn without factor; expected one, such as 4.0")
        found["factor"] = longest / original
    one, all_dim = found.pop("mscale", None), found.pop("mscale_all_dim", None)
    if found.get("attention_factor") is None and one and all_dim and found["factor"] > 1:
        found["attention_factor"] = (0.1 * one * math.log(found["factor"]) + 1) / (
            0.1 * all_dim * math.log(found["factor"]) + 1
        )
    for turns in ("beta_fast", "beta_slow"):
        found[turns] = found.get(turns) or None


def write_llama_config(config: LlamaConfig, context: int) -> dict[str, Any]:
    """config.json of a LLaMA, less its dtype and special tokens; `context` tokens are what it was trained for.

    In the words of transformers 4, which 5 reads as well.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.glu_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "max_position_embeddings": context,
        "rope_theta": config.rope_base,
        "rope_scaling": None if config.rope_scaling is None else _write_scaling(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return found
    found["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        return found | {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
    return found if scaling.attention_factor is None else found | {"attention_factor": scaling.attention_factor}

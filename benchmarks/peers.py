"""The operators of flash-linear-attention that do what ours do, as its own layers call them.

All take (B, T, H, ...) and scale = 1. Constant decay is `chunk_simple_gla` with one log decay a head; its lightning
attention is the same kernels under a schedule of decays fixed in the code, so its time is comparable and its results
are not. No decay is `chunk_linear_attn` without the denominator, and per-channel decay `chunk_gla` with the state laid
out (V, K), as its HGRN2 layer asks. For one decay a token and head its chunk form refuses the backward pass on Hopper
with Triton before 3.7.1 (without tilelang); its fused form and the per-channel operator with that decay repeated over
the channels stand in.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import Operator
from rows import Inputs, Row
from torch import Tensor


@dataclass(frozen=True)
class Peer:
    """One way to have an operator from the peer."""

    name: str
    call: Operator
    same_function: bool = True  # False: comparable in time, not in results
    forward_only: str = ""  # why its backward pass is not asked for


def version() -> str | None:
    """The peer's version, None where it is not installed or does not import."""
    if importlib.util.find_spec("fla") is None:
        return None
    try:
        importlib.import_module("fla.ops.gla")
    except Exception as error:  # a package that it needs, or a GPU that it does not know
        print(f"flash-linear-attention is installed but does not import: {error}")
        return None
    for package in ("flash-linear-attention", "fla-core"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return str(importlib.import_module("fla").__version__)


def peers_of(row: Row) -> list[Peer]:
    """Every way to have the row's operator from the peer; the fastest of them is the one to beat."""
    makers: dict[str, Callable[[], list[Peer]]] = {
        "none": no_decay,
        "head": constant_decay,
        "token": token_decay,
        "channel": channel_decay,
    }
    return makers[row.kind]()


def no_decay() -> list[Peer]:
    from fla.ops.linear_attn import chunk_linear_attn

    def linear_attn(x: Inputs) -> Tensor:
        return chunk_linear_attn(x.q, x.k, x.v, scale=1.0, normalize=False)[0]

    return [Peer("chunk_linear_attn", linear_attn)]


def constant_decay() -> list[Peer]:
    from fla.ops.lightning_attn import chunk_lightning_attn
    from fla.ops.simple_gla import chunk_simple_gla

    def simple_gla(x: Inputs) -> Tensor:
        return chunk_simple_gla(x.q, x.k, x.v, g_gamma=x.log_decay, scale=1.0)[0]

    def lightning(x: Inputs) -> Tensor:
        return chunk_lightning_attn(x.q, x.k, x.v, layer_idx=0, num_layers=12, scale=1.0)[0]

    return [Peer("chunk_simple_gla", simple_gla), Peer("chunk_lightning_attn", lightning, same_function=False)]


def token_decay() -> list[Peer]:
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla

    def simple_gla(x: Inputs) -> Tensor:
        return chunk_simple_gla(x.q, x.k, x.v, g=x.log_decay, scale=1.0)[0]

    def fused(x: Inputs) -> Tensor:
        return fused_chunk_simple_gla(x.q, x.k, x.v, g=x.log_decay, scale=1.0)[0]

    def repeated(x: Inputs) -> Tensor:
        assert x.log_decay is not None
        decay = x.log_decay[..., None].expand_as(x.q).contiguous()
        return chunk_gla(x.q, x.k, x.v, decay, scale=1.0, state_v_first=True)[0]

    return [
        Peer("chunk_simple_gla", simple_gla, forward_only=refused_backward()),
        Peer("fused_chunk_simple_gla", fused),
        Peer("chunk_gla, decay repeated", repeated),
    ]


def channel_decay() -> list[Peer]:
    from fla.ops.gla import chunk_gla

    def gla(x: Inputs) -> Tensor:
        return chunk_gla(x.q, x.k, x.v, x.log_decay, scale=1.0, state_v_first=True)[0]

    return [Peer("chunk_gla", gla)]


def refused_backward() -> str:
    """Why the peer's chunk form has no backward pass for one decay a token here, or ''. It raises RuntimeError, but
    only after minutes of tuning what comes before."""
    import triton

    release = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
    if hopper and (3, 4, 0) <= release < (3, 7, 1) and importlib.util.find_spec("tilelang") is None:
        return f"refuses its backward pass on Hopper with Triton {triton.__version__}"
    return ""

"""Causal softmax attention inside windows so short that one program holds all of a head.

    o_i = Σ_{j<=i} softmax_j(q_i · k_j / sqrt(K)) v_j        q and k turned by RoPE first, weights dropped out at will

The windows of a recurrent transformer come one after the other, and what each costs is the number of kernels: here one
forward and one backward, from the product for q, k and v to what the output projection takes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from linscale.ops.backend import Backend, choose
from linscale.ops.rotary import rotate_half

LONGEST, WIDEST = 128, 128  # tokens of a window and channels of a head that the kernels take


def window_attention(
    qkv: Tensor, n_heads: int, turns: Tensor | None, *, dropout: float = 0.0, seed: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:  # fmt: skip
    """o (B, M, D) of windows qkv (B, M, 3D), in which q, k and v of all heads follow one another.

    turns    (2, M, K/2), cosine and sine of every place; None: nothing is turned
    dropout  the share of weights that are dropped out; with it a `seed` on the device, int64 (1,): the same one drops
             the same weights, which differ between forms
    backend  "triton", "chunk" (plain PyTorch), or "auto". Raises ValueError where "triton" cannot run
    """
    head = qkv.shape[2] // (3 * n_heads)
    chosen = choose(backend, qkv.device, qkv.dtype, obstacle(qkv.shape[1], head))
    if chosen.form == "triton":
        from linscale.ops.window_attention.kernel import attend  # imports Triton

        if dropout and seed is None:
            raise ValueError("seed = None: with dropout it says which weights are dropped out")
        return attend(qkv, n_heads, turns, dropout, seed)
    return plain(qkv, n_heads, turns, dropout)


def obstacle(tokens: int, head: int) -> str | None:
    """Why the kernels cannot take windows of so many tokens and heads of this width, or None."""
    if tokens > LONGEST:
        return f"windows of {tokens} tokens: the kernels take up to {LONGEST}"
    return f"heads of width {head}: the kernels take up to {WIDEST}" if head > WIDEST else None


def plain(qkv: Tensor, n_heads: int, turns: Tensor | None, dropout: float = 0.0) -> Tensor:
    """The definition, by PyTorch's own attention; it draws what is dropped out from torch's generator."""
    q, k, v = (x.unflatten(-1, (n_heads, -1)) for x in qkv.chunk(3, -1))  # (B, M, H, K)
    if turns is not None:
        cos, sin = turns[:, None]
        q, k = rotate_half(q, cos, sin), rotate_half(k, cos, sin)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    return o.transpose(1, 2).flatten(2)


__all__ = ["obstacle", "plain", "window_attention"]

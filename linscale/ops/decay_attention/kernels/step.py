"""One step of `decay_attention`: S <- exp(g) S + k vᵀ, o = scale · Sᵀ q. It reads the state once and writes it once."""

import triton
import triton.language as tl

from linscale.ops.decay_attention.kernels.common import CHANNEL, HEAD, NONE


@triton.jit
def step_kernel(
    q, k, v, g, state, out, new_state,
    q_row, q_head, k_row, k_head, v_row, v_head, g_row, g_head, s_row, s_head, s_key, scale,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """One program: (row of the batch, head, slice of BV columns). out (B, H, V), new_state (B, H, K, V)."""
    program = tl.program_id(0)
    across: tl.constexpr = (V + BV - 1) // BV
    columns = (program % across) * BV + tl.arange(0, BV)
    head = tl.cast((program // across) % H, tl.int64)
    row = tl.cast(program // (across * H), tl.int64)
    wide = tl.arange(0, BK)
    known = (wide[:, None] < K) & (columns[None, :] < V)
    s = tl.load(
        state + row * s_row + head * s_head + wide[:, None] * s_key + columns[None, :], mask=known, other=0.0
    ).to(tl.float32)
    q_tile = tl.load(q + row * q_row + head * q_head + wide, mask=wide < K, other=0.0).to(tl.float32)
    k_tile = tl.load(k + row * k_row + head * k_head + wide, mask=wide < K, other=0.0).to(tl.float32)
    v_tile = tl.load(v + row * v_row + head * v_head + columns, mask=columns < V, other=0.0).to(tl.float32)
    if KIND == CHANNEL:
        s *= tl.exp(tl.load(g + row * g_row + head * g_head + wide, mask=wide < K, other=0.0).to(tl.float32))[:, None]
    elif KIND == HEAD:
        s *= tl.exp(tl.load(g + head * g_head).to(tl.float32))
    elif KIND != NONE:
        s *= tl.exp(tl.load(g + row * g_row + head * g_head).to(tl.float32))
    s += k_tile[:, None] * v_tile[None, :]
    o = tl.sum(s * q_tile[:, None], axis=0) * scale
    tl.store(out + (row * H + head) * V + columns, o.to(out.dtype.element_ty), mask=columns < V)
    at = (row * H + head) * K * V + wide[:, None] * V + columns[None, :]
    tl.store(new_state + at, s.to(new_state.dtype.element_ty), mask=known)

"""TPE: a causal Toeplitz filter over the embeddings that tells cosFormer2 where it is.

Each channel c is filtered by a sum of e exponentials with shared rates:

    hₜ[c, j] = λ_j hₜ₋₁[c, j] + xₜ[c]
    yₜ[c]    = Σ_j b[c, j] hₜ[c, j]  =  Σ_{s<=t} F[c, t-s] x_s[c],   F[c, m] = Σ_j b[c, j] λ_j^m

The cosFormer2 paper gives its size (D·e parameters) and its cost (up, recurrence and down, 2nDe + nDe + nDe) but not
its form. This one matches both: b is learned and λ is not, for the count leaves no room for it. λ_j = exp(-1/τ_j)
with τ log-spaced over 1 to 1000 steps. b starts small, and its first entry, the fastest exponential's, is then set so
that F[c, 0] = 1: at first the current token passes with unit weight and the one before with 1/e. (Shifting all of b
alike would also give F[c, 0] = 1, but with an average over a thousand tokens behind it: the token itself drowns, and
training stays at the loss of letter frequencies for its first hundreds of steps.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from linscale.distributed import copy_into
from linscale.ops.backend import without_autocast
from linscale.ops.linear_scan import exclusive_linear_scan
from linscale.ops.packing import ChunkLayout
from linscale.ops.pieces import Piece, gather, state_before

CHUNK = 32
LONGEST = 1000.0  # steps, the largest τ


class ToeplitzEncoding(nn.Module):
    """y, state = TPE(x, state, cu_seqlens):  x (B, T, D), state (B, D, e) or (N, D, e) when packed -> y (B, T, D)."""

    log_rate: Tensor

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_model, width))  # b
        self.register_buffer("log_rate", torch.empty(width), persistent=False)  # log λ_j = -1/τ_j
        self.reset_parameters(0.0)

    def reset_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """b ~ N(0, std²/e), then b[c, 0] such that Σ_j b[c, j] = 1 for every channel c."""
        width = self.weight.shape[1]
        self.reset_rates()
        with torch.no_grad():
            noise = torch.randn(self.weight.shape, generator=generator) * (std / width**0.5)
            noise[:, 0] = 1 - noise[:, 1:].sum(1)
            copy_into(self.weight, noise)

    def reset_rates(self) -> None:
        """log λ_j = -1/τ_j, which is not learned."""
        with torch.no_grad():
            self.log_rate.copy_(-(LONGEST ** -torch.linspace(0, 1, len(self.log_rate), dtype=torch.float64)))

    def forward(
        self, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None, piece: Piece | None = None
    ) -> tuple[Tensor, Tensor]:
        if piece is not None:
            return self._in_pieces(x, piece)
        return self._whole(x, state, cu_seqlens)

    def _in_pieces(self, x: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
        """A sequence of which every rank holds T steps: what the state before adds to y, Σ_j b[c, j] λ_j^t h[c, j]."""
        y, added = self._whole(x, None, None)
        rates = self.log_rate.to(added.dtype)
        fade = (x.shape[1] * rates).view(1, 1, 1, -1).expand(piece.size, -1, -1, -1)
        before = state_before(gather(added, piece), fade, piece)  # (B, D, e)
        powers = (torch.arange(1, x.shape[1] + 1, device=x.device, dtype=added.dtype)[:, None] * rates).exp()  # (T, e)
        with without_autocast(x.device):
            y = y + ((before * self.weight.to(added.dtype)) @ powers.mT).mT.to(x.dtype)
        return y, added + (x.shape[1] * rates).exp() * before

    def _whole(self, x: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
        # In chunks of C steps: a Toeplitz product inside the chunk, the e-fold state between chunks.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        size = max(1, min(CHUNK, x.shape[1]))
        layout = None if cu_seqlens is None else ChunkLayout(cu_seqlens, x, size)
        empty = -x.shape[1] % size
        spread = pad(x, (0, 0, 0, empty)) if layout is None else layout.spread(x)
        chunks = spread.unflatten(1, (-1, size)).transpose(2, 3).to(dtype)  # (B, N, D, C)
        steps = torch.arange(size + 1, device=x.device, dtype=dtype)
        powers = (steps[:, None] * self.log_rate.to(dtype)).exp()  # λ_j^m: (C + 1, e)
        weight = self.weight.to(dtype)
        with without_autocast(x.device):
            near = self._within_chunks(chunks, weight @ powers[:-1].mT)
            update = chunks @ powers[:-1].flip(0)  # (B, N, D, e)
            cu_chunks = None if layout is None else layout.cu_chunks
            start = None if state is None else state.to(dtype)
            decay = powers[-1].view(1, 1, 1, -1)
            before, final = exclusive_linear_scan(update, decay, state=start, cu_seqlens=cu_chunks)
            y = near + (before * weight) @ powers[1:].mT
        # The empty steps at the end of a sequence decayed its state: λ >= 1/e, so 31 steps are undone safely.
        extra = torch.full((1,), empty, device=x.device) if layout is None else layout.empty
        final = final * (-extra.to(dtype)[:, None, None] * self.log_rate.to(dtype)).exp()
        y = y.transpose(2, 3).flatten(1, 2).to(x.dtype)
        return (y[:, : x.shape[1]] if layout is None else layout.gather(y)), final

    @staticmethod
    def _within_chunks(chunks: Tensor, taps: Tensor) -> Tensor:
        """Σ_{s<=r} F[c, r-s] x_s[c]:  chunks (B, N, D, C), taps F (D, C) -> (B, N, D, C)."""
        size = taps.shape[1]
        lag = torch.arange(size, device=taps.device)[:, None] - torch.arange(size, device=taps.device)
        toeplitz = taps[:, lag.clamp(min=0)].tril()  # (D, C, C)
        columns = chunks.permute(2, 3, 0, 1).flatten(2)  # (D, C, B N)
        return (toeplitz @ columns).unflatten(2, chunks.shape[:2]).permute(2, 3, 0, 1)

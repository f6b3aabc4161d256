"""The angles of a step's positions, made for all layers at once: on a CPU one layer's cost as much as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from linscale.generate.packing import Attention, Layer
from linscale.ops.decode.plain import Turns
from linscale.ops.rotary import angles


class Turning:
    """RoPE's frequencies, which softmax layers share, and LRPE's, of which every layer has its own."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._mixers = [layer.mixer for layer in layers]
        softmax = [mixer.frequencies for mixer in self._mixers if isinstance(mixer, Attention)]
        self._rope = softmax[0] if softmax else None
        own = [mixer.theta for mixer in self._mixers if not isinstance(mixer, Attention) and mixer.theta is not None]
        self._lrpe = torch.stack(own) if own else None  # (layers that have it, H, V)

    def of(self, positions: Tensor) -> list[dict[str, Turns]]:
        """What `plain.mix` and `plain.attend` take as `turns`, by name, for every layer; positions (S,)."""
        rope: dict[str, Turns] = {}
        if self._rope is not None:
            rope["turns"] = angles(positions, self._rope, torch.float32)
        own: Iterator[Turns] = iter(())
        if self._lrpe is not None:
            cos, sin = angles(positions, self._lrpe, torch.float32)
            own = zip(cos.unbind(1), sin.unbind(1), strict=True)
        return [
            rope if isinstance(mixer, Attention) else {} if mixer.theta is None else {"turns": next(own)}
            for mixer in self._mixers
        ]

"""The angles of a step's positions, made for all layers at once: on a CPU one layer's cost as much as a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from linscale.generate.packing import Attention, Layer
from linscale.ops.decode import LinearMix
from linscale.ops.decode.plain import Turns
from linscale.ops.rotary import angles


class Turning:
    """RoPE's frequencies, which softmax layers share, and linearized ones, and LRPE's, of which every layer has its
    own."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._mixers = [layer.mixer for layer in layers]
        softmax = [mixer.frequencies for mixer in self._mixers if isinstance(mixer, Attention)]
        self._rope = softmax[0] if softmax else None
        linear = [mixer.frequencies for mixer in self._mixers if isinstance(mixer, LinearMix)]
        self._linear = linear[0] if linear else None
        own = [mixer.theta for mixer in self._mixers if not isinstance(mixer, Attention) and mixer.theta is not None]
        self._lrpe = torch.stack(own) if own else None  # (layers that have it, H, V)

    def of(self, positions: Tensor) -> list[dict[str, Turns]]:
        """What `plain.mix`, `linear_mix` and `attend` take as `turns`, by name, for every layer; positions (S,)."""
        rope, linear = (
            {} if frequencies is None else {"turns": angles(positions, frequencies, torch.float32)}
            for frequencies in (self._rope, self._linear)
        )
        own: Iterator[Turns] = iter(())
        if self._lrpe is not None:
            cos, sin = angles(positions, self._lrpe, torch.float32)
            own = zip(cos.unbind(1), sin.unbind(1), strict=True)
        found = []
        for mixer in self._mixers:
            if isinstance(mixer, Attention):
                found.append(rope)
            elif mixer.theta is not None:
                found.append({"turns": next(own)})
            else:
                found.append(linear if isinstance(mixer, LinearMix) else {})
        return found

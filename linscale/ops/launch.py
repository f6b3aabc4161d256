"""Launching a kernel with as little work on the host as can be: a training step makes thousands of launches.

Triton's own call works out, argument by argument, which compiled form fits: near a tenth of a millisecond for kernels
with many arguments, as long as the kernel runs. Here the first call of a form goes that way; later ones find the
compiled kernel by a key of everything that Triton specialises on, and hand it plain addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

_COMPILED: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
MOST = 10_000  # forms remembered: lengths of sequences are part of a form


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: Sequence[int | float],
    constants: dict[str, Any],
    warps: int,
    stages: int = 1,
) -> None:
    """Run `programs` programs of a kernel on the device of its tensors.

    tensors, numbers  what precedes the constants in its signature, in order
    constants         its tl.constexpr parameters by name, all of them, in any order that stays the same
    """
    if programs == 0:
        return
    if not isinstance(kernel, JITFunction):  # Triton's interpreter
        kernel[(programs,)](*tensors, *numbers, **constants)
        return
    device = tensors[0].device.index
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, numbers, constants, warps, stages)
        return
    addresses = [x.data_ptr() for x in tensors]
    forms = [x.dtype for x in tensors]
    aligned = [address % 16 for address in addresses]
    key = (kernel, device, warps, stages, *constants.values(), *forms, *aligned, *numbers)
    known = _COMPILED.get(key)
    if known is None:
        if len(_COMPILED) >= MOST:
            _COMPILED.clear()
        compiled = kernel[(programs,)](*tensors, *numbers, **constants, num_warps=warps, num_stages=stages)
        tail = tuple(constants[name] for name in kernel.arg_names[len(tensors) + len(numbers) :])
        _COMPILED[key] = compiled, (*numbers, *tail)
    else:
        compiled, tail = known
        compiled[(programs, 1, 1)](*addresses, *tail)

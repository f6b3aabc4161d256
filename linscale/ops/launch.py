"""Launching a kernel with as little work on the host as can be: a training step makes thousands of launches.

Triton's own call works out, argument by argument, which compiled form fits: near a tenth of a millisecond for kernels
with many arguments, as long as the kernel runs. Here the first call of a form goes that way; later ones find the
compiled kernel by a key of everything that Triton specialises on, and hand its launcher plain addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

MOST = 10_000  # launches remembered by `launch`: lengths of sequences are part of them
# Versions whose compiled kernels are known to be run with (grid, stream, function, metadata, hooks, arguments).
DIRECT = (3, 4) <= tuple(int(part) for part in triton.__version__.split(".")[:2]) <= (3, 7)


class Launch:
    """A kernel and all that it is launched with but tensors: made once, called for every call of the same shapes.

    programs   how many for each piece of work
    numbers    what stands between the tensors and the constants in its signature, in order
    constants  its tl.constexpr parameters by name, all of them
    early      it may begin before the kernel before it has ended, and sees to it that this does no harm (NVIDIA's
               programmatic dependent launch, from Hopper on)
    """

    def __init__(
        self, kernel: Any, programs: int, numbers: Sequence[int | float], constants: dict[str, Any], warps: int,
        stages: int = 1, early: bool = False,
    ) -> None:  # fmt: skip
        self.kernel, self.programs, self.numbers, self.constants = kernel, programs, tuple(numbers), constants
        self.warps, self.stages, self.early = warps, stages, early
        self._interpreted = not isinstance(kernel, JITFunction)
        self._compiled: dict[tuple[Any, ...], Any] = {}
        names = kernel.arg_names[len(kernel.arg_names) - len(constants) :]
        self._tail = (*self.numbers, *(constants[name] for name in names))

    def __call__(self, pieces: int, tensors: Sequence[Tensor]) -> None:
        """Work on so many pieces, on the device of the tensors, which come first in the kernel's signature."""
        programs = pieces * self.programs
        if programs == 0:
            return
        if self._interpreted:
            self.kernel[(programs,)](*tensors, *self.numbers, **self.constants)
            return
        device = tensors[0].device.index
        if device != torch.cuda.current_device():
            with torch.cuda.device(device):
                self(pieces, tensors)
            return
        addresses = [x.data_ptr() for x in tensors]
        form = (device, *[x.dtype for x in tensors], *[address & 15 for address in addresses])
        compiled = self._compiled.get(form)
        if compiled is None:
            self._compiled[form] = self.kernel[(programs,)](
                *tensors, *self.numbers, **self.constants, num_warps=self.warps, num_stages=self.stages,
                **({"launch_pdl": True} if self.early else {}),
            )  # fmt: skip
        elif DIRECT and not _hooked():
            compiled.run(
                programs, 1, 1, driver.active.get_current_stream(device), compiled.function, compiled.packed_metadata,
                None, None, None, *addresses, *self._tail,
            )  # fmt: skip
        else:
            compiled[(programs, 1, 1)](*addresses, *self._tail)


def _hooked() -> bool:
    """Whether someone, a profiler say, wants to hear of launches."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    # A hook or None in Triton 3.4, a chain of hooks from 3.5 on.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


_LAUNCHES: dict[tuple[Any, ...], Launch] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: Sequence[int | float],
    constants: dict[str, Any],
    warps: int,
    stages: int = 1,
    early: bool = False,
) -> None:
    """Run `programs` programs of a kernel, for callers that work out anew for every call what a `Launch` holds.

    constants  in any order that stays the same
    """
    key = (
        kernel.fn,
        warps,
        stages,
        early,
        *constants.values(),
        *numbers,
    )  # .fn: the hash of a kernel itself costs more
    known = _LAUNCHES.get(key)
    if known is None:
        if len(_LAUNCHES) >= MOST:
            _LAUNCHES.clear()
        known = _LAUNCHES[key] = Launch(kernel, 1, numbers, constants, warps, stages, early)
    known(programs, tensors)

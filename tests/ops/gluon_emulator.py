"""Runs Gluon kernels on the CPU, a tile at a time, and is strict about what is asynchronous.

    run(kernel, programs, tensors, numbers, constants)      as `linscale.ops.launch.launch`

Triton's interpreter does not know Gluon. Here a kernel's Python function runs with the names of Gluon's language bound
to those of gluon_tiles.py and to the methods of `Machine`. Only values are followed; of layouts, only what a change of
layout does to shared memory. What a GPU gets wrong in silence raises `HazardError`, or reads as NaN (integers: -1):

    shared memory   NaN until written, and where last written in another type, layout or shape of tile
    async copies    NaN until `wait_group` covers them, masked lanes 0 from then
    warpgroup_mma   its result is unusable until a wait that covers it returns it. What it reads may not be overwritten
                    until such a wait and a `thread_barrier` after it: other warps may still be behind. What it reads
                    needs, since it was written, a `fence_async_shared` and a `thread_barrier`
    global memory   raises outside the storage of the tensor; masked lanes without `other` are NaN
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import CellType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.runtime.jit import JITFunction

from .gluon_tiles import (
    GLUON_TYPES,
    LANGUAGE,
    TORCH_TYPES,
    HazardError,
    Pointer,
    Tile,
    counted,
    poison,
    product,
    scalar,
    spread,
)

GRANULE = 2  # bytes of shared memory that share a record


def run(
    kernel: Any,
    programs: int,
    tensors: Sequence[Tensor],
    numbers: Sequence[int | float],
    constants: dict[str, Any],
    warps: int = 4,
    stages: int = 1,
    fences: bool = True,
    releases: bool = True,
) -> None:
    """One program after the other.

    fences    whether a warpgroup_mma needs a fence and a barrier after the writes to what it reads
    releases  whether a write needs a barrier after the wait for the asynchronous warpgroup_mma that read there. Triton
              adds one only if it sees none since that was issued; one that it adds for other reasons may serve as well
    """
    machine = Machine(programs, warps, fences, releases)
    function = Binder(machine).function(kernel)
    for program in range(programs):
        machine.start(program)
        function(*map(argument, tensors), *map(scalar, numbers), **{name: plain(x) for name, x in constants.items()})


def argument(tensor: Tensor) -> Pointer:
    flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    return Pointer(flat, Tile(torch.tensor(tensor.storage_offset())))


def plain(value: Any) -> Any:
    return value.value if isinstance(value, gl.constexpr) else value


class Memory:
    """An allocation of shared memory; of each granule, when it was written, in what form, and what mma last read it."""

    def __init__(self, size: int) -> None:
        self.bytes = torch.full((size,), 0xFF, dtype=torch.uint8)  # NaN in every floating type
        self.written, self.form, self.reader = (torch.zeros(size // GRANULE, dtype=torch.int32) for _ in range(3))
        self.forms: dict[tuple[Any, ...], int] = {}


class Shared:
    """A view of shared memory: a strided tensor over the bytes of a Memory."""

    def __init__(self, machine: Machine, memory: Memory, values: Tensor, layout: Any, form: int | None = None) -> None:
        self.machine, self.memory, self.values, self.layout = machine, memory, values, layout
        key = (values.dtype, repr(layout), *values.shape[-2:])
        self.form = memory.forms.setdefault(key, len(memory.forms) + 1) if form is None else form

    shape = property(lambda self: list(self.values.shape))
    rank = property(lambda self: self.values.ndim)
    numel = property(lambda self: self.values.numel())
    dtype = property(lambda self: GLUON_TYPES[self.values.dtype])
    type = property(lambda self: SimpleNamespace(shape=self.shape, element_ty=self.dtype, layout=self.layout))

    def view(self, values: Tensor) -> Shared:
        return Shared(self.machine, self.memory, values, self.layout, self.form)

    def index(self, index: int | Tile) -> Shared:
        if not 0 <= int(index) < self.shape[0]:
            raise HazardError(f"index {int(index)} of shared memory of shape {self.shape}")
        return self.view(self.values[int(index)])

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        if isinstance(start, Tile):
            raise TypeError("a slice of shared memory starts at a constant")
        return self.view(self.values.narrow(dim, start, length))

    def permute(self, order: Sequence[int]) -> Shared:
        return self.view(self.values.permute(*order))

    def reshape(self, shape: Sequence[int]) -> Shared:
        return self.view(self.values.view(*shape))

    def _reinterpret(self, dtype: Any, shape: Sequence[int], layout: Any) -> Shared:
        values = self.values.view(-1).view(TORCH_TYPES[dtype])[: math.prod(shape)].view(*shape)
        return Shared(self.machine, self.memory, values, layout)

    def _keep_alive(self) -> None:
        pass

    def granules(self, record: Tensor) -> Tensor:
        """Of a record of the memory, what is of this view: (*shape, granules of an element)."""
        each = self.values.element_size() // GRANULE
        strides = [stride * each for stride in self.values.stride()]
        return record.as_strided((*self.shape, each), (*strides, 1), self.values.storage_offset() * each)

    def load(self, layout: Any = None) -> Tile:
        if len(self.memory.forms) == 1:
            return Tile(self.values.clone())
        fits = (self.granules(self.memory.form) == self.form).all(-1)
        return Tile(torch.where(fits, self.values, poison((), self.values.dtype)))

    def store(self, value: Tile) -> None:
        if value.shape != self.shape or value.dtype != self.dtype:
            raise TypeError(f"{value.shape} {value.dtype} stored to shared memory of {self.shape} {self.dtype}")
        self.write(value.values)

    def write(self, values: Tensor) -> int:
        """Returns the time of the write."""
        self.machine.check_free(int(self.granules(self.memory.reader).max()))
        self.values.copy_(values)
        now = self.machine.tick()
        self.granules(self.memory.form).fill_(self.form)
        self.granules(self.memory.written).fill_(now)
        return now

    def read_by_mma(self, number: int) -> Tensor:
        self.machine.check_visible(int(self.granules(self.memory.written).max()))
        self.granules(self.memory.reader).fill_(number)
        return self.load().values


@dataclass(eq=False)
class Copy:
    """An asynchronous copy on its way."""

    target: Shared
    values: Tensor
    issued: int
    group: int | None = None


@dataclass
class Machine:
    """What runs one program: the part of Gluon's language that has a state. Times are counts of events."""

    programs: int
    warps: int
    fences: bool
    releases: bool
    copies: list[Copy] = field(default_factory=list)

    def start(self, program: int) -> None:
        self.program = program
        self.copies.clear()
        self.groups = 0  # of copies, committed so far
        self.clock = self.fenced = self.met = 0  # times: now, of the last fence, of the last barrier
        self.issued = self.finished = 0  # warpgroup_mma
        self.waited = [0]  # when each finished warpgroup_mma had been waited for; synchronous ones need no barrier

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def check_free(self, reader: int) -> None:
        """May a write overwrite what warpgroup_mma number `reader` reads?"""
        if reader > self.finished:
            raise HazardError(f"shared memory is overwritten while warpgroup_mma {reader} of the program reads it")
        if self.releases and self.met < self.waited[reader]:
            raise HazardError(
                f"no thread_barrier between the wait for warpgroup_mma {reader} and a write where it read"
            )

    def check_visible(self, written: int) -> None:
        """May a warpgroup_mma read what was written at that time?"""
        for name, time in (("fence_async_shared", self.fenced), ("thread_barrier", self.met)):
            if self.fences and time < written:
                raise HazardError(f"no {name} between a write to shared memory and a warpgroup_mma that reads it")

    def program_id(self, axis: int) -> Tile:
        return scalar(self.program if axis == 0 else 0)

    def num_programs(self, axis: int) -> Tile:
        return scalar(self.programs if axis == 0 else 1)

    def num_warps(self) -> int:
        return self.warps

    def load(self, pointer: Pointer, mask: Any = None, other: Any = None, **hints: Any) -> Tile:
        offsets, flat = pointer.offsets.values, pointer.flat
        if mask is None:
            return Tile(flat[pointer.checked(offsets)])
        active = spread(mask, offsets.shape, torch.bool)
        values = poison((), flat.dtype) if other is None else spread(other, offsets.shape, flat.dtype)
        if not flat.numel():
            pointer.checked(offsets[active])
            return Tile(values.expand(offsets.shape))
        inside = torch.where(active, offsets, 0)  # an address that is there, whose value is not taken
        return Tile(torch.where(active, flat[pointer.checked(inside)], values))

    def store(self, pointer: Pointer, value: Any, mask: Any = None, **hints: Any) -> None:
        offsets = pointer.offsets.values
        values = spread(value, offsets.shape, pointer.flat.dtype)
        active = spread(True if mask is None else mask, offsets.shape, torch.bool)
        pointer.flat[pointer.checked(offsets[active])] = values[active]

    def allocate_shared_memory(self, dtype: Any, shape: Sequence[int], layout: Any, value: Any = None) -> Shared:
        size = TORCH_TYPES[dtype].itemsize
        if size < GRANULE:
            raise NotImplementedError(f"shared memory of {dtype}")
        memory = Memory(math.prod(shape) * size)
        shared = Shared(self, memory, memory.bytes.view(TORCH_TYPES[dtype]).view(*shape), layout)
        if value is not None:
            shared.store(value)
        return shared

    def async_copy_global_to_shared(self, smem: Shared, pointer: Pointer, mask: Any = None, **hints: Any) -> None:
        values = self.load(pointer, mask, 0).values
        if list(values.shape) != smem.shape or values.dtype != smem.values.dtype:
            raise TypeError(f"{values.shape} {values.dtype} copied to shared memory of {smem.shape} {smem.dtype}")
        self.copies.append(Copy(smem, values, smem.write(poison((), values.dtype))))

    def inline_asm_elementwise(self, asm: str, *args: Any, **options: Any) -> None:
        if not asm.startswith("griddepcontrol."):  # here every kernel runs to its end before the next begins
            raise NotImplementedError(f"the emulator lacks {asm}")

    def commit_group(self) -> None:
        self.groups += 1
        for copy in self.copies:
            copy.group = copy.group or self.groups

    def wait_group(self, num_outstanding: int = 0) -> None:
        arrived = [copy for copy in self.copies if copy.group and copy.group <= self.groups - num_outstanding]
        self.copies = [copy for copy in self.copies if copy not in arrived]
        for copy in arrived:
            if (copy.target.granules(copy.target.memory.written) != copy.issued).any():
                raise HazardError("shared memory is written to while an asynchronous copy to it is on its way")
            copy.target.write(copy.values)

    def fence_async_shared(self, cluster: bool = False) -> None:
        self.fenced = self.tick()

    def thread_barrier(self) -> None:
        self.met = self.tick()

    def warpgroup_mma_init(self, value: Tile) -> Tile:
        return Tile(value.values, 0)

    def warpgroup_mma(
        self, a: Tile | Shared, b: Shared, acc: Tile, *, use_acc: Any = True, precision: str | None = None,
        is_async: bool = False, max_num_imprecise_acc: int | None = None,
    ) -> Tile:  # fmt: skip
        self.issued += 1
        operands = [x.read_by_mma(self.issued) if isinstance(x, Shared) else x.values for x in (a, b)]
        result = product(*operands, precision)
        if acc.held.shape != result.shape or acc.held.dtype != torch.float32:
            raise TypeError(f"a product of {tuple(result.shape)} in an accumulator of {acc.shape} {acc.dtype}")
        result = result + acc.held if use_acc else result
        if is_async:
            return Tile(result, self.issued)
        self.finish(self.issued - 1)
        self.waited.append(self.waited[-1])
        self.finished = self.issued
        return Tile(result)

    def finish(self, number: int) -> None:
        now = self.tick()
        while self.finished < number:
            self.finished += 1
            self.waited.append(now)

    def warpgroup_mma_wait(self, num_outstanding: int = 0, deps: Sequence[Any] | None = None) -> Any:
        if deps is None:
            raise ValueError("warpgroup_mma_wait without deps")
        self.finish(self.issued - num_outstanding)
        done = tuple(self.waited_for(x) if isinstance(x, Tile) else x for x in deps)
        return done[0] if len(done) == 1 else done

    def waited_for(self, tile: Tile) -> Tile:
        unfinished = tile.pending is not None and tile.pending > self.finished
        return Tile(tile.held, tile.pending if unfinished else None)


class Binder:
    """Gives kernels, and what they call, the language of a machine in place of Gluon's."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.globals: dict[int, dict[str, Any]] = {}

    def function(self, kernel: Any) -> FunctionType:
        fn = kernel.fn
        cells = tuple(CellType(self.bound(cell.cell_contents)) for cell in fn.__closure__ or ())
        defaults = tuple(plain(value) for value in fn.__defaults__ or ())
        function = FunctionType(fn.__code__, self.names(fn.__globals__), fn.__name__, defaults, cells)
        function.__kwdefaults__ = {name: plain(value) for name, value in (fn.__kwdefaults__ or {}).items()}
        return function

    def names(self, names: dict[str, Any]) -> dict[str, Any]:
        """The globals of a module, bound once."""
        if id(names) not in self.globals:
            bound = self.globals[id(names)] = {"range": counted}
            bound.update((name, self.bound(value)) for name, value in list(names.items()))
        return self.globals[id(names)]

    def bound(self, value: Any) -> Any:
        if isinstance(value, ModuleType):
            return Module(self, value) if value.__name__.startswith("triton.") else value
        if isinstance(value, gl.constexpr):
            return value.value
        if isinstance(value, JITFunction):
            ours = value.fn.__module__.startswith("triton.")
            return self.operation(value.fn.__name__) if ours else self.function(value)
        special = isinstance(value, type) and value in (gl.constexpr, gl.static_range, tl.range)
        if special or getattr(value, "__triton_builtin__", False) is True:
            return self.operation(value.__name__)
        return value

    def operation(self, name: str) -> Callable[..., Any]:
        def missing(*args: Any, **options: Any) -> None:
            raise NotImplementedError(f"the emulator lacks {name}")

        return LANGUAGE.get(name) or getattr(self.machine, name, missing)


class Module:
    """A module of Gluon's, whose names are bound when they are asked for."""

    def __init__(self, binder: Binder, module: ModuleType) -> None:
        self._binder, self._module = binder, module

    def __getattr__(self, name: str) -> Any:
        value = self._binder.bound(getattr(self._module, name))
        setattr(self, name, value)
        return value

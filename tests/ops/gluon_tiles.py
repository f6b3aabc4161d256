"""What Gluon's kernels hold in registers, as torch tensors: tiles, pointers, and the operations that need no machine.

Part of gluon_emulator.py. Types are promoted as Triton does, int32 wraps, and integers are divided towards zero.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

TORCH_TYPES = {
    gl.int1: torch.bool,
    gl.int8: torch.int8,
    gl.int16: torch.int16,
    gl.int32: torch.int32,
    gl.int64: torch.int64,
    gl.uint8: torch.uint8,
    gl.float16: torch.float16,
    gl.bfloat16: torch.bfloat16,
    gl.float32: torch.float32,
    gl.float64: torch.float64,
}
GLUON_TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


class HazardError(RuntimeError):
    """The result of a kernel would depend on timing, or on memory that is not its own."""


class Tile:
    """A tensor in registers; with `pending`, the result of that warpgroup_mma, which nothing has waited for."""

    def __init__(self, held: Tensor, pending: int | None = None) -> None:
        self.held, self.pending = held, pending

    @property
    def values(self) -> Tensor:
        if self.pending is not None:
            raise HazardError(
                "the result of an asynchronous warpgroup_mma is used before a warpgroup_mma_wait returned it"
            )
        return self.held

    shape = property(lambda self: list(self.held.shape))
    dtype = property(lambda self: GLUON_TYPES[self.held.dtype])
    type = property(lambda self: SimpleNamespace(shape=self.shape, element_ty=self.dtype, layout=gl.AutoLayout()))
    T = property(lambda self: Tile(self.values.mT))

    def to(self, dtype: Any, bitcast: bool = False) -> Tile:
        dtype = TORCH_TYPES[dtype]
        return Tile(self.values.view(dtype) if bitcast else cast(self.values, dtype))

    def __getitem__(self, slices: Any) -> Tile:
        slices = slices if isinstance(slices, tuple) else (slices,)
        if any(part not in (None, slice(None)) for part in slices) or slices.count(slice(None)) != self.held.ndim:
            raise TypeError(f"a tile of shape {self.shape} takes a `:` for each dimension, and None, got {slices}")
        return Tile(self.values[slices])

    def item(self) -> Any:
        if self.held.ndim:
            raise TypeError(f"a tile of shape {self.shape} where one number is needed")
        return self.values.item()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __index__(self) -> int:
        return operator.index(self.item())

    __int__ = __index__

    def __neg__(self) -> Tile:
        return Tile(-self.values)

    def __invert__(self) -> Tile:
        return Tile(~self.values)


@dataclass
class Pointer:
    """Addresses in global memory: elements of `flat`."""

    flat: Tensor
    offsets: Tile

    shape = property(lambda self: self.offsets.shape)
    dtype = property(lambda self: gl.pointer_type(GLUON_TYPES[self.flat.dtype]))

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.flat, self.offsets + other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Pointer:
        return Pointer(self.flat, self.offsets - other)

    def __getitem__(self, slices: Any) -> Pointer:
        return Pointer(self.flat, self.offsets[slices])

    def checked(self, offsets: Tensor) -> Tensor:
        """Offsets that are inside the storage."""
        if offsets.numel():
            first, last = (int(x) for x in offsets.aminmax())
            if first < 0 or last >= self.flat.numel():
                raise HazardError(f"elements {first} to {last} of a storage of {self.flat.numel()}")
        return offsets


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


@lru_cache(4096)
def whole_number(value: int, dtype: torch.dtype) -> Tensor:
    """Made once: kernels ask for the same few again and again. Nobody writes to it."""
    return torch.tensor(value, dtype=dtype)


def number(value: Any, dtype: torch.dtype) -> Tensor:
    return whole_number(value, dtype) if type(value) is int else torch.tensor(value, dtype=dtype)


def scalar(value: Any) -> Tile:
    """A number with the type that Triton gives it; a tile as it is."""
    if isinstance(value, Tile):
        return value
    if isinstance(value, bool | float):
        return Tile(torch.tensor(value))
    return Tile(number(value, torch.int32 if -(2**31) <= value < 2**31 else torch.int64))


def spread(value: Any, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A number or tile in every lane of a tile of `shape`."""
    values = scalar(value).values
    if values.ndim not in (0, len(shape)):
        raise TypeError(f"a tile of shape {list(values.shape)} where {list(shape)} or one number is needed")
    if dtype == torch.bool and values.dtype != torch.bool:
        raise TypeError(f"a mask of {values.dtype}")
    return cast(values, dtype).expand(tuple(shape))


def poison(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), math.nan if dtype.is_floating_point else -1, dtype=dtype)


def matched(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    """Two operands in their common type; a Python number takes the tile's, but for a fraction among integers."""
    if not isinstance(a, Tile):
        if not isinstance(b, Tile):
            return matched(scalar(a), b)
        return matched(b, a)[::-1]
    x = a.values
    if not isinstance(b, Tile):
        dtype = torch.float32 if isinstance(b, float) and not x.is_floating_point() else x.dtype
        return cast(x, dtype), number(b, dtype)
    y = b.values
    if x.ndim and y.ndim and x.ndim != y.ndim:
        raise TypeError(f"tiles of different ranks: {a.shape} and {b.shape}")
    if x.dtype == y.dtype:
        return x, y
    dtype = torch.promote_types(x.dtype, y.dtype)
    return cast(x, dtype), cast(y, dtype)


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tile]:
    return lambda a, b, **options: Tile(function(*matched(a, b)))


def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Tile]:
    return lambda x: Tile(function(scalar(x).values))


def divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.dtype == torch.float64 else a.float() / b.float()


def divide_whole(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        raise TypeError("// is of integers")
    return torch.div(a, b, rounding_mode="trunc")


def add_operator(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    operation = binary(function)
    forward = lambda self, other: NotImplemented if isinstance(other, Pointer) else operation(self, other)  # noqa: E731
    setattr(Tile, f"__{name}__", forward)
    setattr(Tile, f"__r{name}__", lambda self, other: operation(other, self))


for _name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift", "lt", "le", "gt", "ge", "eq", "ne"):
    add_operator(_name, getattr(operator, f"__{_name}__"))
for _name, _function in (("truediv", divide), ("floordiv", divide_whole), ("mod", torch.fmod)):
    add_operator(_name, _function)


def product(a: Tensor, b: Tensor, precision: str | None = None) -> Tensor:
    """In float32. The tensor cores ignore the last 13 bits of float32 operands, unless precision says otherwise."""
    if a.dtype != b.dtype or a.shape[-1] != b.shape[-2]:
        raise TypeError(f"product of {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}")
    if a.dtype == torch.float32 and precision in (None, "tf32"):
        a, b = ((x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    return a.float() @ b.float()


def dot(a: Tile, b: Tile, acc: Tile | None = None, input_precision: str | None = None, **options: Any) -> Tile:
    result = product(a.values, b.values, input_precision)
    return Tile(result if acc is None else result + acc.values)


def reduction(function: Callable[..., Tensor]) -> Callable[..., Tile]:
    def reduce(input: Tile, axis: int | None = None, keep_dims: bool = False, dtype: Any = None) -> Tile:
        values = input.values if dtype is None else input.to(dtype).values
        values = values.int() if values.dtype == torch.bool else values
        axes = tuple(range(values.ndim)) if axis is None else axis
        return Tile(function(values, dim=axes, keepdim=keep_dims).to(values.dtype))

    return reduce


def where(condition: Any, a: Any, b: Any) -> Tile:
    return Tile(torch.where(scalar(condition).values, *matched(a, b)))


def full(shape: Sequence[int], value: Any, dtype: Any, layout: Any = None) -> Tile:
    return Tile(spread(scalar(value).to(dtype), shape, TORCH_TYPES[dtype]))


def full_like(input: Tile, value: Any, shape: Any = None, dtype: Any = None, layout: Any = None) -> Tile:
    return full(input.shape if shape is None else shape, value, input.dtype if dtype is None else dtype)


def associative_scan(input: Any, axis: int, combine_fn: Callable[..., Any], reverse: bool = False) -> Any:
    """By distances 1, 2, 4, ...: any order gives the same but for rounding."""
    parts = [x.values.movedim(axis, 0) for x in (input if isinstance(input, tuple) else (input,))]
    parts = [x.flip(0) if reverse else x for x in parts]
    distance = 1
    while distance < len(parts[0]):
        joined = combine_fn(*(Tile(x[:-distance]) for x in parts), *(Tile(x[distance:]) for x in parts))
        joined = joined if isinstance(joined, tuple) else (joined,)
        parts = [torch.cat([x[:distance], y.values.to(x.dtype)]) for x, y in zip(parts, joined, strict=True)]
        distance *= 2
    done = tuple(Tile((x.flip(0) if reverse else x).movedim(0, axis)) for x in parts)
    return done if isinstance(input, tuple) else done[0]


def reduce(input: Any, axis: int, combine_fn: Callable[..., Any], keep_dims: bool = False) -> Any:
    scanned = associative_scan(input if isinstance(input, tuple) else (input,), axis, combine_fn)
    last = [x.values.narrow(axis, -1, 1) for x in scanned]
    done = tuple(Tile(x if keep_dims else x.squeeze(axis)) for x in last)
    return done if isinstance(input, tuple) else done[0]


def counted(*bounds: int | Tile, **options: Any) -> Iterator[Tile]:
    """`range`, whose numbers are in registers."""
    wide = any(isinstance(bound, Tile) and bound.held.dtype == torch.int64 for bound in bounds)
    dtype = torch.int64 if wide else torch.int32
    return (Tile(torch.tensor(i, dtype=dtype)) for i in range(*(int(bound) for bound in bounds)))


def check(condition: Any, message: str = "", **options: Any) -> None:
    if not (condition.values.all() if isinstance(condition, Tile) else condition):
        raise AssertionError(message)


def same(x: Any, *hints: Any, **options: Any) -> Any:
    return x


ELEMENTWISE = ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "sin", "cos", "erf", "abs", "floor", "ceil")

# By the names of Gluon's language (and Triton's).
LANGUAGE: dict[str, Callable[..., Any]] = {
    **{name: unary(getattr(torch, name)) for name in ELEMENTWISE},
    **{name: binary(getattr(torch, name)) for name in ("maximum", "minimum", "add", "sub", "mul")},
    "sum": reduction(torch.sum),
    "max": reduction(torch.amax),
    "min": reduction(torch.amin),
    "cumsum": lambda x, axis=0, reverse=False: associative_scan(x, axis, operator.add, reverse),
    "fma": lambda x, y, z: x * y + z,
    "cdiv": lambda x, div: (x + div - 1) // div,
    "where": where,
    "arange": lambda start, end, layout=None: Tile(torch.arange(start, end, dtype=torch.int32)),
    "full": full,
    "full_like": full_like,
    "zeros": lambda shape, dtype, layout=None: full(shape, 0, dtype),
    "zeros_like": lambda input, **options: full_like(input, 0, **options),
    "cast": lambda x, dtype, **options: scalar(x).to(dtype, **options),
    "to_tensor": scalar,
    "expand_dims": lambda x, axis: Tile(x.values.unsqueeze(axis)),
    "permute": lambda x, dims: Tile(x.values.permute(*dims)),
    "trans": lambda x: x.T,
    "reshape": lambda x, shape: Tile(x.values.reshape(*shape)),
    "broadcast": lambda a, b: tuple(map(Tile, torch.broadcast_tensors(a.values, b.values))),
    "join": lambda a, b: Tile(torch.stack(torch.broadcast_tensors(*matched(a, b)), -1)),
    "split": lambda x: tuple(map(Tile, x.values.unbind(-1))),
    "gather": lambda x, index, axis: Tile(x.values.gather(axis, index.values.long())),
    "associative_scan": associative_scan,
    "reduce": reduce,
    **dict.fromkeys(("dot", "dot_fma", "mma_v2"), dot),
    "range": counted,
    "static_range": range,
    **dict.fromkeys(("static_assert", "device_assert", "assume"), check),
    **dict.fromkeys(("static_print", "device_print"), lambda *values, **options: None),
    **dict.fromkeys(("constexpr", "convert_layout", "set_auto_layout"), same),
    **dict.fromkeys(("multiple_of", "max_contiguous", "max_constancy"), same),
}
for _name in ("sum", "max", "min", "reduce", "associative_scan", "permute", "trans", "reshape", "split", "expand_dims"):
    setattr(Tile, _name, LANGUAGE[_name])

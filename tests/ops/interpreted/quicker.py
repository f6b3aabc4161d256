"""Triton's interpreter without what it does again and again: the same answers in about half the time.

Before every kernel and every call of a function in one it looks through all members of `triton.language` for those to
replace, and makes a table of dtypes for every tensor. Here both are found once. These are names inside Triton: a
version of it that has them no more is left as it is.
"""

import functools
import inspect

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Once a process, before the first kernel runs."""
    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        interpreter._patch_builtin = _patch_builtin
    if hasattr(interpreter, "_get_np_dtype"):
        of_scalar = functools.cache(interpreter._get_np_dtype)
        pointer = interpreter._get_np_dtype(tl.pointer_type(tl.int8))
        interpreter._get_np_dtype = lambda kind: pointer if kind.scalar.is_ptr() else of_scalar(kind.scalar)


@functools.cache
def _builtins(module: object) -> list[str]:
    """Names of the members that have to be replaced, in a module or class that still has all of them."""
    return [name for name, member in inspect.getmembers(module) if tl.core.is_builtin(member)]


def _patch_builtin(module: object, builder: object, scope: object) -> None:
    for name in _builtins(module):
        member = getattr(module, name)
        if tl.core.is_builtin(member):  # else it is replaced already
            interpreter._patch_attr(module, name, member, builder, scope)

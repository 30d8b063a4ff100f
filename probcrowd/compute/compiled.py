"""Compile loops to machine code with numba."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function, **options: Any) -> Function:
    """Compile a function to run without the interpreter's lock; cache it on disk where possible."""
    plain = inspect.unwrap(function)  # numba cannot compile wrappers that check types
    try:
        machine: Any = numba.njit(plain, nogil=True, cache=True, **options)
    except RuntimeError:  # no folder for the cache
        machine = numba.njit(plain, nogil=True, **options)
    return machine


# Inlined, because a call passes every array of a record one by one, which costs more than the work on one
# item. Sums
# in any order let distances use vector instructions.
inlined: Any = partial(compiled, forceinline=True, fastmath={"reassoc", "contract"})

# For long loops over arrays without infinities or NaN
fast: Any = partial(
    compiled, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"}
)

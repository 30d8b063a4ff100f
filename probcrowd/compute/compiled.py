"""Loops in machine code."""

from __future__ import annotations

import inspect
from typing import Any

import numba


def fast(function: Any) -> Any:
    """That function in machine code, without the interpreter's lock; kept on disk where a folder can be written."""
    options: dict[str, Any] = {
        "nogil": True,
        "boundscheck": False,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    }
    plain = inspect.unwrap(function)  # what checks shapes cannot be compiled
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # no folder for the cache
        return numba.njit(plain, **options)

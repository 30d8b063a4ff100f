"""Run small workloads on one thread.

On small arrays threads mostly wait for each other: up to 50 times slower on a busy machine. One thread also
fixes the order of summation, so that results have the same bits on any number of cores.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """Limit BLAS, and torch if it is loaded, to one thread inside; do nothing unless `small`.

    Use it in a `with`, or as the decorator `@one_thread()`.
    """
    if not small:
        yield
        return
    torch = sys.modules.get("torch")  # not imported here: tables of annotations need no torch
    before = torch.get_num_threads() if torch else 1
    with threadpool_limits(1, "blas"):
        try:
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            if torch:
                torch.set_num_threads(before)

"""Few threads where there is little to do: for small arrays several wait for each other most of the time, beside other jobs fifty times longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread(small: bool) -> Iterator[None]:
    """One thread of torch and of BLAS inside if the work is small; as many as before if not."""
    before = torch.get_num_threads()
    with threadpool_limits(1, "blas") if small else nullcontext():
        torch.set_num_threads(1 if small else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

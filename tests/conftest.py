"""Start every test with one torch thread and no leftover Pyro state; two can be slower."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pyro.clear_param_store()
    yield


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Torch and JAX compute in double precision inside."""
    import jax

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)

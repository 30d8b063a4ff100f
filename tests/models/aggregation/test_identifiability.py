"""Volumes identify what coupled cross-entropy leaves open, on the designed crowds of
`benchmarks/identifiability.py` at one size.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "identifiability", ROOT / "benchmarks" / "identifiability.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["identifiability"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("case", "method", "strength"),
    [("no experts", "geocrowdnet-f", 0.01), ("experts", "geocrowdnet-w", 0.003)],
)
def test_a_volume_finds_the_matrices_that_coupled_cross_entropy_misses(
    bench: ModuleType, case: str, method: str, strength: float
) -> None:
    found = {
        name: bench.error(case, 32000, 0, epochs=40, selection="last", **options)[0]
        for name, options in {
            "ccem": {"method": "ccem"},
            "volume": {"method": method, "strength": strength},
        }.items()
    }
    assert found["volume"] < 0.06 and found["ccem"] > 0.1


def test_a_mixture_of_other_matrices_gives_labels_the_same_probabilities(bench: ModuleType) -> None:
    """What makes the crowd without experts a counter-example: far less certain items and better annotators
    explain every label as well.
    """
    kinds, confusion = bench.truth("no experts", np.random.default_rng(0))
    shrink = 0.8 * np.eye(3) + 0.2 / 3
    other = np.linalg.solve(shrink, confusion)
    assert other.min() > 0 and np.abs(other - confusion).max() > 0.08
    np.testing.assert_allclose(
        np.einsum("nt,jtl->njl", kinds @ shrink, other),
        np.einsum("nt,jtl->njl", kinds, confusion),
        atol=1e-12,
    )


def test_the_crowd_is_what_it_says(bench: ModuleType) -> None:
    kinds, confusion = bench.truth("experts", np.random.default_rng(0))
    assert kinds.max() < 0.95
    for known in range(3):
        assert (
            confusion[known, known, known] == 1
            and confusion[known, [k for k in range(3) if k != known], known].max() == 0
        )
    _, said, classes, confusion = bench.crowd("no experts", 20000, 0)
    assert bench.truth("no experts", np.random.default_rng(0))[0][:10].max(1) == pytest.approx(0.98)
    counts = np.zeros_like(confusion)
    np.add.at(counts, (said["annotator"], classes, said["label"]), 1)
    np.testing.assert_allclose(counts / counts.sum(-1, keepdims=True), confusion, atol=0.08)

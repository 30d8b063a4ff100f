"""Both sides of the thresholds of aggregators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probcrowd.estimators.aggregation import incremental
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.estimators.results import Fitted
from probcrowd.inference.aggregation.e_step import Expectation, Statistics


def fitted() -> DawidSkene:
    """Fit four items of two annotators."""
    table = pd.DataFrame(
        {"item": [0, 0, 1, 1, 2, 2, 3, 3], "annotator": [*"abababab"], "label": [*"xxyyxyyx"]}
    )
    return DawidSkene(dependence="ignore", confidence="plug-in").fit(table)


def record(aggregator: DawidSkene) -> Fitted:
    """Return the private record."""
    return aggregator._fitted


@pytest.mark.parametrize(("count", "listed"), [(0.7e-6, False), (1e-6, False), (1.5e-6, True)])
def test_counts_above_a_millionth_are_listed(count: float, listed: bool) -> None:
    aggregator = fitted()
    counts = np.ones_like(record(aggregator).rows.counts)
    counts[0, 0] = count
    aggregator._fitted = replace(record(aggregator), rows=replace(record(aggregator).rows, counts=counts))
    assert len(aggregator.counts_) == counts.size - (not listed)


@pytest.mark.parametrize(("step", "rounds"), [(0.7e-6, 2), (1.5e-6, 50)])
def test_rounds_end_when_no_responsibility_changes_by_a_millionth_and_after_fifty(
    step: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def moving(packed: Any, scores: Any, *, responsibilities: np.ndarray) -> Expectation:
        nonlocal calls
        calls += 1
        responsibilities[:] = 0.5 + np.array([step, -step]) * calls
        return Expectation(Statistics(np.zeros_like(scores.log_table), np.ones(2)), 0.0)

    aggregator = fitted()
    monkeypatch.setattr(incremental, "e_step", moving)
    aggregator.partial_fit(pd.DataFrame({"item": [9], "annotator": ["a"], "label": ["x"]}))
    assert calls == rounds


def test_only_aggregators_with_additive_counts_have_a_partial_fit() -> None:
    from probcrowd.estimators.catalogue import AGGREGATORS

    able = {name for name, kind in AGGREGATORS.items() if hasattr(kind(), "partial_fit")}
    assert able == {"dawid-skene", "one-coin", "zencrowd"}
    with pytest.raises(AttributeError, match="refit_gap_"):
        _ = AGGREGATORS["mace"]().fit(pd.DataFrame({"item": [0], "annotator": [0], "label": [0]})).refit_gap_

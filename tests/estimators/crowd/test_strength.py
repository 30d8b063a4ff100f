"""Selection of a strength: one standard error, permuted classes, divergence."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from probcrowd.estimators.crowd.strength import STRENGTHS, compare_strengths, select_strength


def comparison(lost: list[float], error: float, permuted: list[bool]) -> pd.DataFrame:
    columns = {"score": -np.array(lost), "lost": lost, "standard_error": error, "permuted": permuted}
    return pd.DataFrame(columns, pd.Index([0.1, 0.2, 0.3], name="strength"))


@pytest.mark.parametrize(("lost", "selected"), [(0.05, 0.3), (0.05 + 1e-9, 0.2), (math.nan, 0.2)])
def test_the_largest_strength_within_one_standard_error_is_selected(lost: float, selected: float) -> None:
    table = comparison([0.01, 0.0, lost], 0.05, [False] * 3)
    assert select_strength(table, strongest=True) == selected
    assert select_strength(table.fillna({"score": -np.inf}), strongest=False) == 0.2


def test_strengths_that_permute_the_classes_are_skipped_unless_all_do() -> None:
    best_permuted = comparison([0.1, 0.0, -0.9], 0.2, [False, False, True])
    assert (
        select_strength(best_permuted, strongest=True)
        == select_strength(best_permuted, strongest=False)
        == 0.2
    )
    all_permuted = comparison([0.3, 0.0, math.nan], 0.2, [True] * 3)
    assert (
        select_strength(all_permuted, strongest=True) == select_strength(all_permuted, strongest=False) == 0.2
    )


def test_losses_and_their_standard_errors_are_those_of_a_loop() -> None:
    scores = {strength: np.array([-1.0, -2.0, -4.0]) - strength * np.arange(3) for strength in STRENGTHS}
    table = compare_strengths(lambda strength: (scores[strength], strength > 0.5))
    for strength in STRENGTHS:
        lost = [float(best - one) for best, one in zip(scores[0.0], scores[strength], strict=True)]
        mean = sum(lost) / 3
        error = math.sqrt(sum((one - mean) ** 2 for one in lost) / 2 / 3)
        assert table.loc[strength, "lost"] == pytest.approx(mean)
        assert table.loc[strength, "standard_error"] == pytest.approx(error)
        assert table.loc[strength, "permuted"] == (strength > 0.5)


def test_one_held_out_item_has_no_standard_error() -> None:
    table = compare_strengths(lambda strength: (np.array([-1.0 - strength]), False))
    assert (table["standard_error"] == 0).all() and select_strength(table, strongest=True) == 0.0
    both = compare_strengths(lambda strength: (np.array([-1.0 - strength, -2.0]), False))
    assert (both["standard_error"].iloc[1:] > 0).all()


def test_a_strength_whose_training_diverges_is_skipped() -> None:
    def scores(strength: float) -> tuple[np.ndarray, bool] | None:
        return None if strength > 0.05 else (np.full(4, -1.0) - strength * np.arange(4), False)

    table = compare_strengths(scores)
    assert table.loc[0.1:, "permuted"].all() and table.loc[0.1:, "score"].isna().all()
    assert not table.loc[:0.03, "permuted"].any()
    assert select_strength(table, strongest=False) == 0.0 and select_strength(table, strongest=True) <= 0.03
    with pytest.raises(FloatingPointError, match="training diverged at every strength"):
        compare_strengths(lambda strength: None)

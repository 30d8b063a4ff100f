"""Both sides of every threshold of the dependence check."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probcrowd.data.table import Cells, Packed
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.dependence import dependence as module
from probcrowd.inference.dependence.cliques import alike, share_unexplained
from probcrowd.inference.dependence.dependence import (
    Dependence,
    RowPairs,
    _pair_table,
    _rate,
    check_fit,
    dependence,
)
from probcrowd.inference.dependence.report import sentences

NO_PAIRS = pd.DataFrame({"annotator": [0], "other": [1], "near_duplicate": [False]})
# rho above 3 standard errors, effective labels below 0.8 of 10, excess agreement above 0.01
CORRELATED = Dependence(0.376, 0.125, 10.0, 7.99, 0.0101, 0.0, NO_PAIRS, "")


@pytest.mark.parametrize(
    ("change", "correlated"),
    [
        ({}, True),
        ({"residual": 0.375}, False),
        ({"residual": 0.2}, False),
        ({"effective_annotators": 8.0}, False),
        ({"effective_annotators": 8.1}, False),
        ({"agreement": 0.01}, False),
        ({"agreement": 0.006}, False),
    ],
)
def test_a_warning_needs_significance_lost_labels_and_excess_agreement(
    change: dict[str, Any], correlated: bool
) -> None:
    result = replace(CORRELATED, **change)
    assert result.correlated == correlated
    assert len(sentences(result, pd.RangeIndex(2))) == correlated


def pairs_of(groups: int, number: int) -> RowPairs:
    """Pairs of annotators with `number` row pairs each."""
    start, left = np.arange(groups) * number, np.zeros(groups * number, np.int64)
    names = np.stack([np.arange(groups), np.arange(groups) + groups], 1)
    return RowPairs(left, left, start, np.full(groups, number), np.arange(groups), names, "")


def near_duplicates(groups: int, number: int) -> int:
    """Count near duplicates among pairs that always agree, where the model expects half."""
    pairs = pairs_of(groups, number)
    agree, p = np.ones(groups * number), np.full(groups * number, 0.5)
    return int(_pair_table(pairs, agree, p, np.ones(groups, bool))["near_duplicate"].sum())


def test_near_duplicates_are_two_standard_errors_above_a_copying_rate_of_one_half() -> None:
    assert near_duplicates(1, 12) == 0  # exactly 2
    assert near_duplicates(1, 13) == 1


def test_near_duplicates_are_significant_at_one_per_cent_over_all_pairs() -> None:
    # z = 6.5 / sqrt(3.25), whose tail probability is 0.01 / 64.2
    assert near_duplicates(64, 13) == 64
    assert near_duplicates(65, 13) == 0


def test_at_most_five_thousand_pairs_are_listed() -> None:
    for groups, listed in ((4999, 4999), (5000, 5000), (5001, 5000)):
        pairs = pairs_of(groups, 1)
        table = _pair_table(pairs, np.zeros(groups), np.full(groups, 0.5), np.ones(groups, bool))
        assert len(table) == listed


@pytest.mark.parametrize(("slack", "known"), [(7e-10, False), (1.5e-9, True)])
def test_no_rate_where_annotators_must_agree(slack: float, known: bool) -> None:
    p = np.array([1 - slack, 1.0])
    assert np.isnan(_rate(np.ones(2), p, np.arange(2))[0]) != known


def test_members_of_a_clique_agree_in_four_fifths_beyond_chance() -> None:
    lower, chance = np.array([0.899, 0.9, 0.901, 0.801, 0.799]), np.array([0.5, 0.5, 0.5, 0.0, 0.0])
    assert alike(lower, chance).tolist() == [False, False, True, True, False]


def test_a_clique_leaves_agreement_unexplained_beyond_three_standard_errors() -> None:
    assert share_unexplained(np.ones(9), np.ones(9)) == 0.0  # exactly 3
    assert share_unexplained(np.ones(10), np.ones(10)) == 1.0


def two_annotators(items: int) -> tuple[Packed, Cells]:
    """Items labelled 0 by one annotator and 1 by the other."""
    cells = Cells(np.array([0, 1]), np.array([0, 1]), 2, 2, 2)
    return Packed(2 * np.arange(items + 1), np.tile(np.array([0, 1], np.int32), items)), cells


@pytest.mark.parametrize(("items", "compared"), [(9, 0), (10, 1), (11, 1)])
def test_annotators_are_compared_from_ten_common_items_on(items: int, compared: int) -> None:
    packed, cells = two_annotators(items)
    table = np.array([[0.7, 0.3], [0.3, 0.7]])
    result = dependence(packed, cells, table, np.full(2, 0.5), generator=np.random.default_rng(0))
    assert len(result.pairs) == compared


@pytest.mark.parametrize(("items", "known"), [(17, False), (19, True)])
def test_a_rate_needs_tables_on_labels_that_occur(items: int, known: bool) -> None:
    """Of N labels of one kind each, (N + 1) / (N + 2) of the shrunk tables is on labels that occur."""
    packed, cells = two_annotators(items)
    counts = np.array([[items, 0.0], [items, 0.0]])
    result = check_fit(packed, RowPosterior(cells, np.ones((2, 2)), counts), np.array([0.9, 0.1]))
    assert np.isnan(result.residual) != known and (result.note == "") == known


@pytest.mark.parametrize(("labels", "used"), [(1000, True), (1001, False)])
def test_items_with_more_than_half_a_million_row_pairs_are_left_out(labels: int, used: bool) -> None:
    cells = Cells(np.arange(labels), np.zeros(labels, np.int64), labels, 2, 2)
    packed = Packed(np.array([0, labels]), np.arange(labels, dtype=np.int32))
    counts = np.tile([0.9, 0.1], (labels, 1))
    result = check_fit(packed, RowPosterior(cells, np.ones((2, 2)), counts), np.full(2, 0.5))
    assert np.isnan(result.labels_per_item) != used


def test_items_are_drawn_until_the_row_pairs_are_as_many_as_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, cells = two_annotators(3)
    table, prior = np.array([[0.7, 0.3], [0.3, 0.7]]), np.full(2, 0.5)
    one, two = (
        dependence(packed, cells, table, prior, generator=np.random.default_rng(0), max_pairs=most)
        for most in (1, 2)
    )
    assert one.note.startswith("(from 1 of 3 items") and two.note.startswith("(from 2 of 3 items")
    assert not np.isnan(one.agreement)
    monkeypatch.setattr(module, "_MOST_PAIRS", 1)
    counts = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert check_fit(packed, RowPosterior(cells, np.ones((2, 2)), counts), prior).agreement == 0


def linked(groups: list[int]) -> Dependence:
    """Chains of near duplicates with so many members each."""
    first = np.cumsum([0, *groups])
    ends = [(j, j + 1) for low, high in itertools.pairwise(first) for j in range(low, high - 1)]
    pairs = pd.DataFrame(ends, columns=["annotator", "other"]).assign(near_duplicate=True)
    return replace(CORRELATED, residual=0.0, pairs=pairs)


def test_five_groups_of_ten_members_are_named() -> None:
    (five,) = sentences(linked([2] * 5), pd.RangeIndex(100))
    (six,) = sentences(linked([2] * 6), pd.RangeIndex(100))
    assert "more groups" not in five and five.count(";") == 5
    assert "; and 1 more groups" in six and six.count(";") == 6
    (ten,) = sentences(linked([10]), pd.RangeIndex(100))
    (eleven,) = sentences(linked([11]), pd.RangeIndex(100))
    assert "9;" in ten and "..." not in ten
    assert "9, ...;" in eleven

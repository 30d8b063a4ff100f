"""Both sides of every threshold of EM, its steps, and the methods with parameters of items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from probcrowd.data.rows import Rows
from probcrowd.data.table import Cells, Packed
from probcrowd.inference.aggregation.annotator_summary import RowPosterior, annotator_table
from probcrowd.inference.aggregation.e_step import Expectation, Scores, Statistics, e_step, scaled
from probcrowd.inference.aggregation.em import fit_table, group_patterns
from probcrowd.inference.aggregation.glad import fit_glad
from probcrowd.inference.aggregation.kos import _messages
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows, dirichlet_mode
from probcrowd.inference.aggregation.minimax import fit_minimax

UNIFORM = Scores(np.zeros((1, 2)), np.full(2, -math.log(2)))


@dataclass
class Passes:
    """A source whose E steps return given log likelihoods, and counts that depend on the pass number."""

    log_likelihood: Callable[[int], float]
    counts: Callable[[int], np.ndarray] = lambda number: np.ones((1, 2))
    num_rows: int = 100
    number: int = 0

    def start(self) -> Statistics:
        """Return the counts before the first pass."""
        return Statistics(self.counts(0), np.ones(2))

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """Count a pass."""
        self.number += 1
        statistics = Statistics(self.counts(self.number), np.ones(2))
        return Expectation(statistics, self.log_likelihood(self.number))


@dataclass
class Recorder:
    """A model that records the counts that it was given."""

    seen: list[np.ndarray] = field(default_factory=list)

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Record the counts."""
        self.seen.append(statistics.counts)
        return UNIFORM


def test_em_ends_when_a_step_gains_less_than_the_tolerance_per_annotation() -> None:
    values = [
        0.0,
        10.0,
        11.0,
        11.99,
        20.0,
    ]  # 100 annotations: EM goes on after a gain of 1.0, and ends after 0.99
    source = Passes(lambda number: values[number - 1])
    fit = fit_table(source, Recorder(), tolerance=0.01, accelerate=False)
    assert fit.converged and fit.passes == 4
    again = Passes(lambda number: values[number - 1])
    assert not fit_table(again, Recorder(), tolerance=0.01, accelerate=False, max_iter=3).converged


def geometric(number: int) -> np.ndarray:
    """Counts whose steps shrink by half."""
    return np.array([[1.0, 1.0]]) + 0.5**number * np.array([[1.0, -0.5]])


def test_extrapolation_is_tried_from_the_seventh_pass_on_and_after_longer_pauses_where_it_fails() -> None:
    model = Recorder()
    trials: list[int] = []

    def log_likelihood(number: int) -> float:
        extrapolated = not any(np.array_equal(model.seen[-1], geometric(n)) for n in range(number))
        trials.extend([number] if extrapolated else [])
        return -1e6 if extrapolated else float(number)

    source = Passes(log_likelihood, geometric)
    fit_table(source, model, tolerance=0.0, max_iter=45)
    assert trials == [8, 13, 22, 39]  # undone, then 4, 8 and 16 plain passes


@pytest.mark.parametrize(("items", "grouped"), [(3, False), (4, True), (5, True)])
def test_items_are_grouped_where_that_halves_them(items: int, grouped: bool) -> None:
    cells = Cells(np.zeros(2, np.int64), np.arange(2), 1, 2, 2)
    cell = np.arange(items, dtype=np.int32) % 2
    assert (group_patterns(Packed(np.arange(items + 1), cell), cells)[1] is not None) == grouped


@pytest.mark.parametrize(("annotators", "grouped"), [(60, True), (61, True), (62, False)])
def test_items_are_grouped_where_their_numbers_fit_in_62_bits(annotators: int, grouped: bool) -> None:
    cells = Cells(np.arange(annotators), np.zeros(annotators, np.int64), annotators, 1, 1)
    cell = np.tile(np.arange(annotators, dtype=np.int32), 4)
    place = group_patterns(Packed(annotators * np.arange(5), cell), cells)[1]
    assert (place is not None) == grouped


@pytest.mark.parametrize(("count", "empty"), [(7e-281, True), (1.5e-280, False)])
def test_a_row_with_nearly_no_counts_has_no_mode(count: float, empty: bool) -> None:
    logs, _ = dirichlet_mode(np.array([[count, 0.0]]), np.ones((1, 2)))
    assert (logs[0] == math.log(0.5)).all() == empty
    cells = Cells(np.zeros(2, np.int64), np.arange(2), 1, 2, 1)
    rows = DirichletRows(cells, np.ones((1, 2)), ClassPrior(None))
    table = rows.scores(Statistics(np.array([[count], [0.0]]), np.ones(1))).log_table
    assert (table == math.log(0.5)).all() == empty


@pytest.mark.parametrize(("concentration", "valid"), [(0.999, False), (1.0, True), (1.001, True)])
def test_modes_need_concentrations_of_one(concentration: float, valid: bool) -> None:
    if valid:
        ClassPrior(np.full(2, concentration))
    else:
        with pytest.raises(ValueError, match="at least 1"):
            ClassPrior(np.full(2, concentration))


@pytest.mark.parametrize(("low", "least"), [(-40.0, -40.0), (-68.0, -68.0), (-70.0, -69.0), (-100.0, -69.0)])
def test_probabilities_far_below_the_highest_are_raised(low: float, least: float) -> None:
    *_, table, prior = scaled(Scores(np.array([[0.0, low]]), np.array([0.0, low])))
    np.testing.assert_allclose(np.log(table[0]), [0.0, least])
    np.testing.assert_allclose(np.log(prior), [0.0, least])


@pytest.mark.parametrize(("excess", "second"), [(0.6e-9, False), (1.6e-9, True)])
def test_hard_labels_take_the_first_of_classes_that_tie_but_for_rounding(excess: float, second: bool) -> None:
    out = np.zeros((1, 2))
    scores = Scores(np.zeros((1, 2)), np.array([0.0, math.log1p(excess)]))
    e_step(Packed(np.array([0, 1]), np.zeros(1, np.int32)), scores, hard=True, responsibilities=out)
    assert out.tolist() == ([[0.0, 1.0]] if second else [[1.0, 0.0]])


@pytest.mark.parametrize(("variance", "certain"), [(7e-15, True), (1.5e-14, False)])
def test_an_accuracy_with_nearly_no_variance_has_no_interval(variance: float, certain: bool) -> None:
    total = 0.09 / variance - 1
    cells = Cells(np.zeros(2, np.int64), np.arange(2), 1, 2, 1)
    counts = np.array([[0.9 * total - 1], [0.1 * total - 1]])
    table = annotator_table(RowPosterior(cells, np.ones((1, 2)), counts), np.ones(1))
    assert bool((table["accuracy_lower"] == table["accuracy"]).all()) == certain


def random_rows(items: int, classes: int, seed: int = 0) -> Rows:
    """Return four labels of each item, 70 % right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=items)
    item, annotator = np.divmod(np.arange(4 * items), 4)
    guess = generator.integers(classes, size=4 * items)
    label = np.where(generator.random(4 * items) < 0.7, truth[item], guess)
    return Rows(item, annotator, label, np.ones(4 * items), np.full(items, -1), 4, classes)


def test_glad_ends_when_an_iteration_gains_less_than_the_tolerance_per_item() -> None:
    rows = random_rows(16, 3)  # a power of two: tolerances times items are exact
    objective = fit_glad(rows, tolerance=0.0, max_iter=8).objective
    gain = float(objective[4] - objective[3])
    at, above = (fit_glad(rows, tolerance=tolerance) for tolerance in (gain / 16, gain / 16 * (1 + 1e-9)))
    assert len(above.objective) == 5 and above.converged
    assert len(at.objective) > 5


def test_minimax_ends_when_no_probability_changes_by_the_tolerance() -> None:
    rows = random_rows(16, 3)
    second, third = (fit_minimax(rows, max_iter=number, tolerance=0.0).probabilities for number in (2, 3))
    change = float(np.abs(third - second).max())
    assert change > 0
    assert not fit_minimax(rows, max_iter=3, tolerance=change).converged
    assert fit_minimax(rows, max_iter=3, tolerance=change * (1 + 1e-9)).converged


def test_messages_have_settled_when_none_changes_by_a_millionth() -> None:
    rows = random_rows(40, 2, seed=0)
    vote, gold = 2.0 * rows.label - 1, np.asarray(rows.gold)
    start = np.random.default_rng(0).normal(1, 1, len(vote))
    part = np.zeros(len(vote), np.int64)
    changes, before, settled = [math.inf], start, False
    while not settled:
        message, _, settled = _messages(rows.item, rows.annotator, vote, gold, part, start, 4, len(changes))
        changes.append(float(np.abs(message - before).max()))
        assert settled == (changes[-1] < 1e-6)
        before = message
    # Half or twice as much would end in another round
    assert 5e-7 < changes[-1] < 1e-6 <= changes[-2] < 2e-6

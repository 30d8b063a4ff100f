"""Closed-form steps against densities, autograd, enumeration and worked examples.

EM by its guarantees: it never lowers the objective, stops at modes and bounds the evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import references
import torch
from annotation_loops import beta as log_beta_density
from scipy.special import digamma, gammaln
from torch.distributions import Beta, Dirichlet, kl_divergence

from probcrowd.data.table import Cells, Packed, occurring, pack
from probcrowd.inference.aggregation.e_step import Expectation, Scores, Statistics, count, e_step
from probcrowd.inference.aggregation.em import InMemory, fit_table
from probcrowd.inference.aggregation.hierarchical import PooledRows
from probcrowd.inference.aggregation.m_step import (
    AnnotatorModel,
    ClassPrior,
    DirichletRows,
    row_totals,
)
from probcrowd.inference.aggregation.mace import MaceModel, MacePosterior
from probcrowd.inference.aggregation.one_coin import OneCoinModel, coin_table, right_counts
from probcrowd.models.priors import SpamPrior


@dataclass(frozen=True)
class Rows:
    """Annotations in the long format, in any order."""

    item: np.ndarray
    annotator: np.ndarray
    label: np.ndarray
    gold: np.ndarray
    num_annotators: int
    num_classes: int
    num_labels: int
    weight: np.ndarray | None = None

    @property
    def key(self) -> np.ndarray:
        return self.annotator * self.num_labels + self.label

    @property
    def cells(self) -> Cells:
        return occurring(self.key, self.num_annotators, self.num_labels, self.num_classes)

    @property
    def packed(self) -> Packed:
        return pack(self.item, self.key, self.cells, len(self.gold), weight=self.weight, gold=self.gold)

    @property
    def source(self) -> InMemory:
        return InMemory(self.packed, self.cells)


def some_rows(
    seed: int = 0,
    *,
    items: int = 30,
    annotators: int = 5,
    classes: int = 3,
    abstentions: bool = False,
    gold: float = 0.0,
    accuracy: tuple[float, float] = (0.4, 0.9),
    rate: float = 0.7,
) -> Rows:
    """Annotators of several accuracies label most items, the last none; `abstentions`: a third of labels."""
    chance = np.random.default_rng([seed, items, annotators, classes])
    truth = chance.integers(0, classes, items)
    item, annotator = np.nonzero(chance.random((items, annotators)) < rate)
    right = chance.random(len(item)) < np.linspace(*accuracy, annotators)[annotator]
    label = np.where(right, truth[item], chance.integers(0, classes, len(item)))
    if abstentions:
        label = np.where(chance.random(len(item)) < 1 / 3, classes, label)
    order = chance.permutation(len(item))
    known = np.where(chance.random(items) < gold, truth, -1)
    return Rows(
        item[order], annotator[order], label[order], known, annotators + 1, classes, classes + abstentions
    )


def base(num_classes: int, num_labels: int, elsewhere: float = 1.5) -> np.ndarray:
    return (
        np.full((num_classes, num_labels), elsewhere)
        + 2 * np.eye(num_classes, num_labels)
        + np.arange(num_labels) / 7
    )


def history_of(cells: Cells, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1, 2, (len(cells), cells.num_classes))


def flat_rows(cells: Cells) -> DirichletRows:
    return DirichletRows(
        cells, np.ones((cells.num_classes, cells.num_labels)), ClassPrior(np.ones(cells.num_classes))
    )


def some_coins(cells: Cells, averaged: bool = False) -> OneCoinModel:
    many = np.arange(cells.num_annotators)
    prior = ClassPrior(np.arange(cells.num_classes) + 2.0, averaged)
    return OneCoinModel(cells, 2.0 + many, 1.5 + many / 2, prior, averaged)


def class_prior(cells: Cells, averaged: bool = False) -> ClassPrior:
    return ClassPrior(np.arange(cells.num_classes) + 1.5, averaged)


CHANNELS: dict[str, Callable[[Cells], AnnotatorModel]] = {
    "flat": flat_rows,
    "mode": lambda cells: DirichletRows(cells, base(cells.num_classes, cells.num_labels), class_prior(cells)),
    "mode with history": lambda cells: DirichletRows(
        cells, base(cells.num_classes, cells.num_labels), ClassPrior(None), history_of(cells)
    ),
    "averaged": lambda cells: DirichletRows(
        cells,
        base(cells.num_classes, cells.num_labels) / 3,
        class_prior(cells, True),
        history_of(cells),
        averaged=True,
    ),
    "coins": some_coins,
    "averaged coins": lambda cells: some_coins(cells, True),
    "pooled": lambda cells: PooledRows(
        cells, base(cells.num_classes, cells.num_labels), class_prior(cells, True)
    ),
    "spammers": lambda cells: MaceModel(cells, SpamPrior()),
}


def dense(values: np.ndarray, cells: Cells) -> np.ndarray:
    """Cells as (annotator, class, label); 0 where there is none."""
    result = np.zeros((cells.num_annotators, cells.num_labels, cells.num_classes))
    result[cells.annotator, cells.label] = values
    return result.transpose(0, 2, 1)


def some_counts(cells: Cells, seed: int = 3) -> Statistics:
    chance = np.random.default_rng(seed)
    return Statistics(
        chance.gamma(0.5, 4, (len(cells), cells.num_classes)), chance.gamma(2, 4, cells.num_classes)
    )


def concentrations(channel: DirichletRows) -> np.ndarray:
    return channel.base + (0 if channel.history is None else dense(channel.history, channel.cells))


def dense_mode(scores: Scores, channel: DirichletRows) -> np.ndarray:
    """Confusion matrices with the scores in their cells.

    The rest of a row is shared by labels without a cell, in proportion to the prior.
    """
    cells = channel.cells
    confusion, seen = (
        dense(np.exp(scores.log_table), cells),
        dense(np.ones((len(cells), cells.num_classes)), cells) > 0,
    )
    shares = np.where(seen, 0, np.broadcast_to(channel.base - 1, confusion.shape))
    sums = shares.sum(2, keepdims=True)
    alike = np.where(seen, 0, 1 / np.maximum((~seen).sum(2, keepdims=True), 1))
    left = 1 - confusion.sum(2, keepdims=True)
    return confusion + left * np.where(sums > 0, shares / np.where(sums > 0, sums, 1), alike)


def row_channels(rows: Rows, averaged: bool) -> list[DirichletRows]:
    cells = rows.cells
    more = base(rows.num_classes, rows.num_labels)
    return [
        DirichletRows(cells, more, ClassPrior(np.arange(rows.num_classes) + 1.5, averaged), history, averaged)
        for history in (None, history_of(cells))
    ]


SHAPES = [(1, False), (2, False), (4, False), (1, True), (3, True)]


# One step: DirichletRows


@pytest.mark.parametrize(("classes", "abstentions"), SHAPES)
def test_a_mode_is_stationary_on_the_simplex(classes: int, abstentions: bool) -> None:
    rows = some_rows(items=4, annotators=3, classes=classes, abstentions=abstentions)
    for channel in row_channels(rows, averaged=False):
        counts = some_counts(rows.cells)
        scores = channel.scores(counts)
        logits = torch.tensor(np.log(dense_mode(scores, channel)), requires_grad=True)
        class_logits = torch.tensor(scores.log_prior, requires_grad=True)
        dense_counts, a = (
            torch.tensor(dense(counts.counts, rows.cells)),
            torch.tensor(concentrations(channel)),
        )
        logs, log_prior = logits.log_softmax(2), class_logits.log_softmax(0)
        assert channel.class_prior.concentration is not None
        value = (dense_counts * logs).sum() + Dirichlet(a).log_prob(logs.exp()).sum()
        value = value + (torch.tensor(counts.class_count) * log_prior).sum()
        value = (
            value + Dirichlet(torch.tensor(channel.class_prior.concentration)).log_prob(log_prior.exp())
            if classes > 1
            else value
        )
        value.backward()
        assert logits.grad is not None and class_logits.grad is not None
        assert float(logits.grad.abs().max()) < 1e-9
        assert float(class_logits.grad.abs().max()) < 1e-9
        np.testing.assert_allclose(np.exp(scores.log_prior).sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("elsewhere", [1.0, 1.5])
@pytest.mark.parametrize(("classes", "abstentions"), SHAPES)
def test_the_penalty_of_a_mode_is_the_density_of_whole_matrices(
    classes: int, abstentions: bool, elsewhere: float
) -> None:
    """Unused labels, annotators without rows; concentrations of 1 put modes on the (finite) boundary."""
    rows = some_rows(items=4, annotators=3, classes=classes, abstentions=abstentions)
    cells = rows.cells
    assert len(cells) < cells.num_annotators * cells.num_labels
    counts = some_counts(cells)
    counts.counts[0] = 0
    for history in (None, history_of(cells)):
        prior = np.full(classes, elsewhere)
        prior[-1] += 1
        more = np.full((classes, rows.num_labels), elsewhere) + 2 * np.eye(classes, rows.num_labels)
        channel = DirichletRows(cells, more, ClassPrior(prior), history)
        scores = channel.scores(counts)
        confusion = torch.tensor(dense_mode(scores, channel))
        expected = (
            Dirichlet(torch.tensor(concentrations(channel)), validate_args=False).log_prob(confusion).sum()
        )
        expected += Dirichlet(torch.tensor(prior)).log_prob(torch.tensor(np.exp(scores.log_prior))).sum()
        assert scores.penalty == pytest.approx(float(expected), rel=1e-10, abs=1e-10)


def test_flat_priors_have_a_constant_penalty_and_rows_without_counts_are_uniform() -> None:
    rows = some_rows(items=6, annotators=3, classes=3, abstentions=True)
    cells, channel = rows.cells, flat_rows(rows.cells)
    constant = cells.num_annotators * 3 * gammaln(4) + gammaln(3)
    for seed in range(3):
        assert channel.scores(some_counts(cells, seed)).penalty == pytest.approx(constant, rel=1e-12)
    nothing = channel.scores(Statistics(np.zeros((len(cells), 3)), np.zeros(3)))
    np.testing.assert_allclose(nothing.log_table, -math.log(4), rtol=1e-12)
    np.testing.assert_allclose(nothing.log_prior, -math.log(3), rtol=1e-12)
    assert nothing.penalty == pytest.approx(constant, rel=1e-12)


@pytest.mark.parametrize(("classes", "abstentions"), SHAPES)
def test_averaged_scores_are_expected_logs_and_minus_the_divergence(classes: int, abstentions: bool) -> None:
    rows = some_rows(items=4, annotators=3, classes=classes, abstentions=abstentions)
    for channel in row_channels(rows, averaged=True):
        channel = replace(channel, base=channel.base / 5)  # an average needs no concentrations of 1
        counts = some_counts(rows.cells)
        scores = channel.scores(counts)
        a, dense_counts = (
            torch.tensor(concentrations(channel)),
            torch.tensor(dense(counts.counts, rows.cells)),
        )
        a = a.expand_as(dense_counts)
        assert channel.class_prior.concentration is not None
        prior = torch.tensor(channel.class_prior.concentration)
        pairs = [(a + dense_counts, a), (prior + torch.tensor(counts.class_count), prior)]
        logs = []
        for after, _ in pairs:
            after = after.clone().requires_grad_()
            normaliser = torch.lgamma(after).sum(-1) - torch.lgamma(after.sum(-1))
            logs.append(torch.autograd.grad(normaliser.sum(), after)[0].numpy())
        np.testing.assert_allclose(
            scores.log_table, logs[0].transpose(0, 2, 1)[rows.cells.annotator, rows.cells.label], rtol=1e-10
        )
        np.testing.assert_allclose(scores.log_prior, logs[1], rtol=1e-10, atol=1e-12)
        divergence = sum(
            float(kl_divergence(Dirichlet(after), Dirichlet(before)).sum()) for after, before in pairs
        )
        assert scores.penalty == pytest.approx(-divergence, rel=1e-9, abs=1e-10)


def test_history_equals_earlier_rows() -> None:
    rows = some_rows(items=8, annotators=3)
    cells, counts, earlier = rows.cells, some_counts(rows.cells), history_of(rows.cells)
    with_history = DirichletRows(cells, base(3, 3), ClassPrior(None), earlier)
    together = Statistics(counts.counts + earlier, counts.class_count)
    for averaged in (False, True):
        result = replace(with_history, averaged=averaged).scores(counts)
        plain = DirichletRows(cells, base(3, 3), ClassPrior(None), averaged=averaged)
        np.testing.assert_allclose(result.log_table, plain.scores(together).log_table, rtol=1e-10)
        fit = fit_table(rows.source, replace(with_history, averaged=averaged), max_iter=7, accelerate=False)
        here = rows.source.start()
        for _ in range(7):  # in every step
            here = rows.source.e_step(
                plain.scores(Statistics(here.counts + earlier, here.class_count))
            ).statistics
        np.testing.assert_allclose(fit.statistics.counts, here.counts, rtol=1e-9, atol=1e-12)


def test_concentrations_below_one_have_averages_but_no_mode() -> None:
    rows = some_rows(items=4, annotators=2)
    cells, low, high = rows.cells, np.array([2.0, 0.25, 2.0]), np.full((3, 3), 2.0)
    for make in (
        lambda averaged: DirichletRows(cells, np.tile(low, (3, 1)), ClassPrior(None), averaged=averaged),
        lambda averaged: DirichletRows(cells, high, ClassPrior(low, averaged), averaged=averaged),
        lambda averaged: OneCoinModel(cells, low, 2 * low + 1, ClassPrior(None), averaged),
        lambda averaged: OneCoinModel(cells, 2 * low + 1, low, ClassPrior(None), averaged),
    ):
        with pytest.raises(ValueError, match=r"at least 1, the lowest is 0\.25"):
            make(False)
        assert np.isfinite(make(True).scores(some_counts(cells)).penalty)


def test_known_class_priors_do_not_change() -> None:
    log_prior, penalty = ClassPrior(None).scores(np.array([5.0, 0, 1, 2]))
    np.testing.assert_allclose(log_prior, np.full(4, -math.log(4)))
    assert penalty == 0


# One step: OneCoinModel


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_coins_are_beta(classes: int) -> None:
    rows = some_rows(items=4, annotators=3, classes=classes)
    cells, counts = rows.cells, some_counts(rows.cells)
    dense_counts = dense(counts.counts, cells)
    hits, all_rows = np.einsum("jkk->j", dense_counts), dense_counts.sum((1, 2))
    np.testing.assert_allclose(right_counts(counts.counts, cells), hits, rtol=1e-12)
    np.testing.assert_allclose(row_totals(counts.counts, cells), dense_counts.sum(2), rtol=1e-12)

    mode = some_coins(cells)
    scores = mode.scores(counts)
    right, wrong = torch.tensor(mode.right), torch.tensor(mode.wrong)
    logit = torch.tensor(
        np.log(hits + mode.right - 1) - np.log(all_rows - hits + mode.wrong - 1), requires_grad=True
    )
    accuracy = logit.sigmoid()
    value = (torch.tensor(hits) * accuracy.log() + torch.tensor(all_rows - hits) * (1 - accuracy).log()).sum()
    (value + Beta(right, wrong).log_prob(accuracy).sum()).backward()
    assert logit.grad is not None and float(logit.grad.abs().max()) < 1e-9
    result = accuracy.detach().numpy()
    named = cells.label[:, None] == np.arange(classes)
    expected = np.where(
        named, result[cells.annotator][:, None], (1 - result[cells.annotator][:, None]) / max(classes - 1, 1)
    )
    np.testing.assert_allclose(np.exp(scores.log_table), expected, rtol=1e-10)
    density = sum(log_beta_density(x, a, b) for x, a, b in zip(result, mode.right, mode.wrong, strict=True))
    assert scores.penalty == pytest.approx(
        density + mode.class_prior.scores(counts.class_count)[1], rel=1e-10
    )

    averaged = some_coins(cells, True)
    scores = averaged.scores(counts)
    after = Beta(right + torch.tensor(hits), wrong + torch.tensor(all_rows - hits))
    divergence = float(kl_divergence(after, Beta(right, wrong)).sum())
    assert scores.penalty == pytest.approx(
        -divergence + averaged.class_prior.scores(counts.class_count)[1], rel=1e-9
    )
    a, b = averaged.right + hits, averaged.wrong + all_rows - hits
    logs = np.stack([digamma(a), digamma(b) - math.log(max(classes - 1, 1))], 1) - digamma(a + b)[:, None]
    np.testing.assert_allclose(
        scores.log_table, np.where(named, *logs[cells.annotator].T[:, :, None]), rtol=1e-10
    )
    np.testing.assert_allclose(coin_table(np.log([[0.7, 0.3]] * 4), cells)[named], math.log(0.7), rtol=1e-12)


# Worked examples: four items by three annotators

FOUR = np.array([[0, 0, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1]])


def four() -> Rows:
    item, annotator = np.indices(FOUR.shape).reshape(2, -1)
    return Rows(item, annotator, FOUR.ravel(), np.full(4, -1), 3, 2, 2)


def answers(rows: Rows, scores: Scores) -> np.ndarray:
    result = np.zeros((len(rows.gold), rows.num_classes))
    e_step(rows.packed, scores, responsibilities=result)
    return result


def test_dawid_skene_by_hand() -> None:
    rows, cells = four(), four().cells
    np.testing.assert_allclose(rows.packed.vote_shares(cells)[:, 0], [2 / 3, 0, 1, 1 / 3])
    scores = flat_rows(cells).scores(rows.source.start())
    expected = np.array([[[5, 1], [1, 5]], [[6, 0], [3, 3]], [[3, 3], [0, 6]]]) / 6
    np.testing.assert_allclose(dense(np.exp(scores.log_table), cells), expected, atol=1e-12)
    np.testing.assert_allclose(np.exp(scores.log_prior), 0.5)
    assert rows.source.e_step(scores).log_likelihood == pytest.approx(-5.909821, abs=5e-7)
    np.testing.assert_allclose(answers(rows, scores)[:, 0], [0.833333, 0, 1, 0.166667], atol=5e-7)


def test_one_coin_by_hand() -> None:
    rows, cells = four(), four().cells
    scores = OneCoinModel(cells, np.ones(3), np.ones(3), ClassPrior(None)).scores(rows.source.start())
    np.testing.assert_allclose(
        dense(np.exp(scores.log_table), cells)[:, 1, 1], [0.833333, 0.75, 0.75], atol=5e-7
    )
    np.testing.assert_allclose(
        answers(rows, scores)[:, 0], [0.833333, 0.021739, 0.978261, 0.166667], atol=5e-7
    )


def test_one_variational_step_by_hand() -> None:
    rows, cells = four(), four().cells
    channel = DirichletRows(cells, np.array([[4.0, 1], [1, 4]]), ClassPrior(np.ones(2), True), averaged=True)
    np.testing.assert_allclose(
        answers(rows, channel.scores(rows.source.start()))[:, 0],
        [0.855179, 0.005809, 0.994191, 0.144821],
        atol=5e-7,
    )


def test_smoothed_dawid_skene_converges_to_known_values() -> None:
    rows, cells = four(), four().cells
    channel = DirichletRows(cells, np.full((2, 2), 1.01), ClassPrior(np.ones(2)))
    for accelerate in (False, True):
        fit = fit_table(rows.source, channel, tolerance=1e-14, accelerate=accelerate)
        np.testing.assert_allclose(
            answers(rows, fit.scores)[:, 0], [0.990147, 0.000050, 0.999950, 0.009853], atol=2e-6
        )


# EM


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("name", CHANNELS)
def test_em_never_falls(name: str, accelerate: bool) -> None:
    for seed in range(6):
        rows = some_rows(
            seed,
            abstentions="coin" not in name and seed % 2 == 1,
            gold=0.2 * (seed % 3),
            accuracy=(0.1, 0.6),
            rate=0.5,
        )
        if seed > 3:
            rows = replace(rows, weight=np.random.default_rng(seed).uniform(0, 3, len(rows.item)))
        fit = fit_table(
            rows.source, CHANNELS[name](rows.cells), accelerate=accelerate, max_iter=120, tolerance=1e-10
        )
        assert len(fit.objective) > 5 and np.isfinite(fit.objective).all()
        assert (np.diff(fit.objective) >= -1e-10 * np.abs(fit.objective[:-1])).all()
        assert len(fit.objective) == fit.passes if not accelerate else len(fit.objective) <= fit.passes <= 120


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("name", CHANNELS)
def test_em_ends_where_a_pass_changes_nothing(name: str, accelerate: bool) -> None:
    rows = some_rows(items=60, gold=0.1)
    source, channel = rows.source, CHANNELS[name](rows.cells)
    fit = fit_table(source, channel, accelerate=accelerate, max_iter=20_000, tolerance=1e-14)
    assert fit.converged
    expectation = source.e_step(fit.scores)
    atol = 1e-3 if name in ("pooled", "flat") else 1e-5  # of counts: the objective is flat to second order
    np.testing.assert_allclose(expectation.statistics.counts, fit.statistics.counts, atol=atol)
    assert expectation.log_likelihood + fit.scores.penalty == pytest.approx(fit.objective[-1], abs=1e-9)


def marginal(
    rows: Rows,
    logits: torch.Tensor,
    class_logits: torch.Tensor,
    prior: Callable[[torch.Tensor, torch.Tensor], Any],
) -> torch.Tensor:
    """log p(rows, confusion, class prior), by a loop over items."""
    logs, log_prior = logits.log_softmax(2), class_logits.log_softmax(0)
    total = prior(logs.exp(), log_prior.exp())
    weight = np.ones(len(rows.item)) if rows.weight is None else rows.weight
    for i in range(len(rows.gold)):
        here = np.flatnonzero(rows.item == i)
        terms = log_prior + (
            torch.tensor(weight[here])[:, None] * logs[rows.annotator[here], :, rows.label[here]]
        ).sum(0)
        total = total + (terms[rows.gold[i]] if rows.gold[i] >= 0 else terms.logsumexp(0))
    return total


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("abstentions", [False, True])
def test_the_mode_is_stationary(abstentions: bool, accelerate: bool) -> None:
    rows = some_rows(items=25, annotators=4, gold=0.2, abstentions=abstentions)
    rows = replace(rows, weight=np.random.default_rng(0).choice([0.5, 1, 2], len(rows.item)))
    channel = DirichletRows(
        rows.cells, base(3, rows.num_labels), ClassPrior(np.array([1.5, 2, 3])), history_of(rows.cells)
    )
    fit = fit_table(rows.source, channel, tolerance=1e-15, max_iter=20_000, accelerate=accelerate)
    logits = torch.tensor(np.log(dense_mode(fit.scores, channel)), requires_grad=True)
    class_logits = torch.tensor(fit.scores.log_prior, requires_grad=True)
    a = Dirichlet(torch.tensor(concentrations(channel)))
    value = marginal(
        rows,
        logits,
        class_logits,
        lambda c, p: a.log_prob(c).sum() + Dirichlet(torch.tensor([1.5, 2, 3]).double()).log_prob(p),
    )
    assert float(value.detach()) == pytest.approx(fit.objective[-1], abs=1e-8)
    value.backward()
    assert logits.grad is not None and class_logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-5
    assert float(class_logits.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_mode_of_coins_is_stationary(accelerate: bool) -> None:
    rows = some_rows(items=25, annotators=4, gold=0.2)
    channel = some_coins(rows.cells)
    fit = fit_table(rows.source, channel, tolerance=1e-15, max_iter=20_000, accelerate=accelerate)
    accuracy = right_counts(fit.statistics.counts, rows.cells) + channel.right - 1
    accuracy /= row_totals(fit.statistics.counts, rows.cells).sum(1) + channel.right + channel.wrong - 2
    logit = torch.tensor(np.log(accuracy / (1 - accuracy)), requires_grad=True)
    class_logits = torch.tensor(fit.scores.log_prior, requires_grad=True)
    right = logit.sigmoid()
    matrices = torch.where(torch.eye(3).bool(), right[:, None, None], (1 - right[:, None, None]) / 2)
    prior = Beta(torch.tensor(channel.right), torch.tensor(channel.wrong)).log_prob(right).sum()
    value = marginal(
        rows,
        matrices.log(),
        class_logits,
        lambda _, p: prior + Dirichlet(torch.tensor(channel.class_prior.concentration)).log_prob(p),
    )
    assert float(value.detach()) == pytest.approx(fit.objective[-1], abs=1e-8)
    value.backward()
    assert logit.grad is not None and class_logits.grad is not None
    assert max(float(logit.grad.abs().max()), float(class_logits.grad.abs().max())) < 1e-5


@pytest.mark.parametrize("name", CHANNELS)
def test_extrapolation_ends_no_lower(name: str) -> None:
    """Few rows and poor annotators give several modes; good annotators one, which both runs reach."""
    passes = []
    for seed in range(6):
        good = seed % 2 == 0
        rows = some_rows(
            seed,
            items=60,
            annotators=6,
            accuracy=(0.7, 0.95) if good else (0.2, 0.6),
            rate=0.9 if good else 0.5,
        )
        channel = CHANNELS[name](rows.cells)
        plain, fast = (
            fit_table(rows.source, channel, accelerate=a, max_iter=20_000, tolerance=1e-9)
            for a in (False, True)
        )
        assert plain.converged and fast.converged
        assert fast.objective[-1] >= plain.objective[-1] - 1e-6
        if good and name != "flat":
            np.testing.assert_allclose(answers(rows, fast.scores), answers(rows, plain.scores), atol=1e-3)
        passes.append((plain.passes, fast.passes))
    slow = np.array([pair for pair in passes if pair[0] > 100])
    if len(slow):
        assert slow[:, 1].sum() < slow[:, 0].sum()


class Recorded:
    """A source that counts its passes and reports a worse objective for all extrapolated points."""

    def __init__(self, source: InMemory, plain: list[np.ndarray]) -> None:
        self.source, self.plain, self.passes_run = source, plain, 0

    @property
    def num_rows(self) -> int:
        return self.source.num_rows

    def start(self) -> Statistics:
        return self.source.start()

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        self.passes_run += 1
        expectation = self.source.e_step(scores, hard=hard)
        usual = any(np.allclose(scores.log_table, table, rtol=1e-9, atol=1e-12) for table in self.plain)
        return expectation if usual else replace(expectation, log_likelihood=-np.inf)


def test_worse_points_are_undone() -> None:
    rows = some_rows(1, items=40, accuracy=(0.2, 0.6))
    channel, tables, here = CHANNELS["mode"](rows.cells), [], rows.source.start()
    for _ in range(80):
        tables.append(channel.scores(here).log_table)
        here = rows.source.e_step(channel.scores(here)).statistics
    liar = Recorded(rows.source, tables)
    fit = fit_table(liar, channel, max_iter=60, tolerance=0.0)
    plain = fit_table(rows.source, channel, max_iter=len(fit.objective), tolerance=0.0, accelerate=False)
    assert liar.passes_run == fit.passes == 60
    assert 2 <= fit.passes - len(fit.objective) <= 6  # trials wait twice as long after each failure
    np.testing.assert_allclose(fit.objective, plain.objective, rtol=1e-12)
    np.testing.assert_allclose(fit.statistics.counts, plain.statistics.counts, rtol=1e-9)


@dataclass(frozen=True)
class Watched:
    """A model of annotators that records its counts."""

    channel: AnnotatorModel
    seen: list[Statistics]

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        self.seen.append(statistics)
        return self.channel.scores(statistics, previous)


def test_extrapolated_counts_have_the_sums_that_all_counts_have() -> None:
    rows = some_rows(1, items=40, accuracy=(0.2, 0.6))
    rows = replace(rows, weight=np.random.default_rng(0).uniform(0, 3, len(rows.item)))
    plain, fast = (Watched(CHANNELS["mode"](rows.cells), []) for _ in range(2))
    slow, quick = (fit_table(rows.source, c, tolerance=1e-11, accelerate=c is fast) for c in (plain, fast))
    assert quick.passes < slow.passes
    for statistics in fast.seen:
        np.testing.assert_allclose(statistics.counts.sum(1), plain.seen[0].counts.sum(1), rtol=1e-10)
        assert statistics.class_count.sum() == pytest.approx(40, rel=1e-10)


def test_the_mode_under_flat_priors_is_maximum_likelihood() -> None:
    chance = np.random.default_rng(2)
    truth = chance.integers(0, 3, 40)
    labels = np.where(chance.random((40, 4)) < 0.7, truth[:, None], chance.integers(0, 3, (40, 4)))
    labels[chance.random((40, 4)) < 0.2] = -1
    labels[:, 0] = np.where(labels[:, 0] < 0, 0, labels[:, 0])
    item, annotator = np.nonzero(labels >= 0)
    rows = Rows(item, annotator, labels[item, annotator], np.full(40, -1), 4, 3, 3)
    for steps in (1, 5, 60):
        fit = fit_table(
            rows.source, flat_rows(rows.cells), accelerate=False, max_iter=steps, tolerance=-np.inf
        )
        result = np.zeros((40, 3))
        # The reference's step m is the M step of pass m, and its answers are those of that pass
        here = rows.source.start()
        for _ in range(steps):
            expectation = e_step(rows.packed, flat_rows(rows.cells).scores(here), responsibilities=result)
            here = expectation.statistics
        np.testing.assert_allclose(result, references.dawid_skene(labels, 3, steps), atol=1e-9)
        np.testing.assert_allclose(fit.statistics.counts, here.counts, atol=1e-9)
        assert fit.passes == steps and not fit.converged


def log_evidence(rows: Rows, a: np.ndarray, class_a: np.ndarray) -> float:
    """log p(rows): confusion and class prior integrated out, the truth enumerated. a: (j, k, l)."""
    free = [range(rows.num_classes) if g < 0 else [g] for g in rows.gold]
    terms = []
    for truth in itertools.product(*free):
        label_counts = np.zeros((rows.num_annotators, rows.num_classes, rows.num_labels))
        np.add.at(label_counts, (rows.annotator, np.array(truth)[rows.item], rows.label), 1)
        counts = np.bincount(truth, minlength=rows.num_classes)
        value = 0.0
        for after, before in ((a + label_counts, a), (class_a + counts, class_a)):
            value += (
                gammaln(after).sum(-1)
                - gammaln(after.sum(-1))
                - gammaln(before).sum(-1)
                + gammaln(before.sum(-1))
            ).sum()
        terms.append(value)
    return float(np.logaddexp.reduce(terms))


@pytest.mark.parametrize("gold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("abstentions", [False, True])
def test_the_averaged_objective_bounds_the_evidence(abstentions: bool, gold: float) -> None:
    for seed in range(3):
        rows = some_rows(seed, items=7, annotators=3, classes=2, gold=gold, abstentions=abstentions)
        if gold == 1:
            rows = replace(rows, gold=np.arange(7) % 2)
        channel = DirichletRows(
            rows.cells,
            base(2, rows.num_labels) / 2,
            ClassPrior(np.array([0.5, 2]), True),
            history_of(rows.cells),
            averaged=True,
        )
        fit = fit_table(rows.source, channel, tolerance=1e-13)
        evidence = log_evidence(rows, concentrations(channel), np.array([0.5, 2]))
        assert (fit.objective <= evidence + 1e-9).all()
        if gold == 1:  # the truth is known, so nothing is approximated: the posterior is the conjugate one
            assert fit.objective[-1] == pytest.approx(evidence, abs=1e-9)
            counts = np.zeros((rows.num_annotators, 2, rows.num_labels))
            np.add.at(counts, (rows.annotator, rows.gold[rows.item], rows.label), 1)
            after = concentrations(channel) + counts
            logs = digamma(after) - digamma(after.sum(2, keepdims=True))
            np.testing.assert_allclose(
                fit.scores.log_table,
                logs.transpose(0, 2, 1)[rows.cells.annotator, rows.cells.label],
                rtol=1e-10,
            )
        else:
            assert fit.objective[-1] < evidence - 1e-3


# Invariances


def renamed(
    rows: Rows, item: np.ndarray, annotator: np.ndarray, label: np.ndarray, order: np.ndarray
) -> Rows:
    gold = np.full(len(rows.gold), -1)
    gold[item] = np.where(rows.gold >= 0, label[np.maximum(rows.gold, 0)], -1)
    weight = None if rows.weight is None else rows.weight[order]
    return replace(
        rows,
        item=item[rows.item[order]],
        annotator=annotator[rows.annotator[order]],
        label=label[rows.label[order]],
        gold=gold,
        weight=weight,
    )


def alike(name: str) -> Callable[[Cells], AnnotatorModel]:
    """The models of annotators, with priors that treat annotators and classes equally."""

    def make(cells: Cells) -> AnnotatorModel:
        rows = np.full((cells.num_classes, cells.num_labels), 1.2) + 2 * np.eye(
            cells.num_classes, cells.num_labels
        )
        prior, many = np.full(cells.num_classes, 1.5), np.ones(cells.num_annotators)
        return {
            "flat": flat_rows(cells),
            "mode": DirichletRows(cells, rows, ClassPrior(prior)),
            "averaged": DirichletRows(cells, rows, ClassPrior(prior, True), averaged=True),
            "coins": OneCoinModel(cells, 2 * many, 1.5 * many, ClassPrior(prior)),
            "averaged coins": OneCoinModel(cells, 2 * many, 0.5 * many, ClassPrior(prior, True), True),
            "pooled": PooledRows(cells, rows, ClassPrior(prior, True)),
            "spammers": MaceModel(cells, SpamPrior()),
        }[name]

    return make


ALIKE = [name for name in CHANNELS if name != "mode with history"]


@pytest.mark.parametrize("name", ALIKE)
def test_names_and_order_change_names_and_order(name: str) -> None:
    rows = some_rows(2, items=40, gold=0.1)
    rows = replace(rows, weight=np.random.default_rng(0).choice([0.5, 1, 2], len(rows.item)))
    chance = np.random.default_rng(1)
    item, annotator, label = (
        chance.permutation(40),
        chance.permutation(rows.num_annotators),
        np.array([2, 0, 1]),
    )
    other = renamed(rows, item, annotator, label, chance.permutation(len(rows.item)))
    first, second = (
        fit_table(r.source, alike(name)(r.cells), max_iter=25, accelerate=False) for r in (rows, other)
    )
    np.testing.assert_allclose(
        answers(other, second.scores)[item][:, label], answers(rows, first.scores), atol=1e-9
    )
    np.testing.assert_allclose(second.objective, first.objective, rtol=1e-11)
    first, second = (
        fit_table(r.source, alike(name)(r.cells), tolerance=1e-13, max_iter=20_000) for r in (rows, other)
    )
    np.testing.assert_allclose(
        answers(other, second.scores)[item][:, label], answers(rows, first.scores), atol=1e-4
    )


@pytest.mark.parametrize("name", ALIKE)
def test_an_annotator_without_rows_changes_nothing(name: str) -> None:
    rows = some_rows(2, items=40)
    more = replace(rows, num_annotators=rows.num_annotators + 1)
    first, second = (
        fit_table(r.source, alike(name)(r.cells), max_iter=25, accelerate=False) for r in (rows, more)
    )
    np.testing.assert_allclose(answers(more, second.scores), answers(rows, first.scores), atol=1e-10)
    steps = np.diff(first.objective)
    np.testing.assert_allclose(np.diff(second.objective)[: len(steps)], steps, atol=1e-8)


def test_one_annotator_alone_returns_the_votes() -> None:
    rows = some_rows(items=30, annotators=1, rate=1.0)
    rows = replace(rows, num_annotators=1)
    shares = rows.packed.vote_shares(rows.cells)
    flat = fit_table(rows.source, flat_rows(rows.cells))
    np.testing.assert_allclose(answers(rows, flat.scores), shares, atol=1e-12)
    for name in ("mode", "averaged", "coins", "averaged coins", "pooled", "spammers"):
        fit = fit_table(rows.source, alike(name)(rows.cells))
        np.testing.assert_array_equal(answers(rows, fit.scores).argmax(1), shares.argmax(1))


def test_a_second_copy_of_all_items_leaves_maximum_likelihood_unchanged() -> None:
    rows = some_rows(4, items=40, gold=0.1)
    twice = replace(
        rows,
        item=np.append(rows.item, rows.item + 40),
        annotator=np.tile(rows.annotator, 2),
        label=np.tile(rows.label, 2),
        gold=np.tile(rows.gold, 2),
    )
    channel = flat_rows(rows.cells)
    first, second = (
        fit_table(r.source, channel, max_iter=30, accelerate=False, tolerance=-np.inf) for r in (rows, twice)
    )
    np.testing.assert_allclose(
        answers(twice, second.scores), np.tile(answers(rows, first.scores), (2, 1)), atol=1e-9
    )
    constant = channel.scores(first.statistics).penalty
    np.testing.assert_allclose(second.objective - constant, 2 * (first.objective - constant), rtol=1e-10)
    informed = DirichletRows(rows.cells, base(3, 3), ClassPrior(None))  # a prior counts for less
    first, second = (fit_table(r.source, informed, max_iter=30, accelerate=False) for r in (rows, twice))
    assert np.abs(answers(twice, second.scores)[:40] - answers(rows, first.scores)).max() > 1e-3


@pytest.mark.parametrize("averaged", [False, True])
def test_one_coin_of_two_classes_is_dawid_skene_with_equal_diagonals(averaged: bool) -> None:
    """A mirror image of every item, with labels swapped, makes the two rows of each matrix equal."""
    rows = some_rows(4, items=40, classes=2)
    mirrored = replace(
        rows,
        item=np.append(rows.item, rows.item + 40),
        annotator=np.tile(rows.annotator, 2),
        label=np.append(rows.label, 1 - rows.label),
        gold=np.full(80, -1),
    )
    a, b = 3.0, 1.5
    many = np.ones(rows.num_annotators)
    coins = OneCoinModel(rows.cells, a * many, b * many, ClassPrior(None), averaged)
    matrices = DirichletRows(mirrored.cells, np.array([[a, b], [b, a]]), ClassPrior(None), averaged=averaged)
    one, two = (
        fit_table(r.source, c, max_iter=40, accelerate=False, tolerance=-np.inf)
        for r, c in ((rows, coins), (mirrored, matrices))
    )
    np.testing.assert_allclose(answers(mirrored, two.scores)[:40], answers(rows, one.scores), atol=1e-9)


# The loop around it


def test_hard_passes_end_when_counts_repeat() -> None:
    rows = some_rows(3, items=200, accuracy=(0.2, 0.6))
    channel = flat_rows(rows.cells)
    fit = fit_table(rows.source, channel, hard=True)
    assert fit.converged and 3 < fit.passes < 100
    again = rows.source.e_step(channel.scores(fit.statistics), hard=True)
    np.testing.assert_array_equal(again.statistics.counts, fit.statistics.counts)
    assert set(np.unique(fit.statistics.counts % 1)) == {
        0.0
    } and fit.statistics.class_count.sum() == pytest.approx(200)


def test_passes_are_counted_and_limited() -> None:
    rows = some_rows(3, items=50)
    channel = CHANNELS["mode"](rows.cells)
    for limit in (0, 1, 12, 13):
        fit = fit_table(rows.source, channel, max_iter=limit, tolerance=0.0)
        assert fit.passes == limit and len(fit.objective) <= limit and not fit.converged
    start = count(rows.packed, rows.packed.vote_shares(rows.cells), len(rows.cells))
    np.testing.assert_array_equal(fit_table(rows.source, channel, max_iter=0).statistics.counts, start.counts)
    elsewhere = Statistics(start.counts[:, [1, 2, 0]], start.class_count[[1, 2, 0]])
    expected = rows.source.e_step(channel.scores(elsewhere))
    np.testing.assert_array_equal(
        fit_table(rows.source, channel, elsewhere, max_iter=1).statistics.counts, expected.statistics.counts
    )
    assert rows.source.num_rows == len(rows.item)


def test_the_tolerance_is_a_gain_per_annotation() -> None:
    rows = some_rows(3, items=50)
    fit = fit_table(rows.source, CHANNELS["mode"](rows.cells), tolerance=1e-4, accelerate=False)
    gains = np.diff(fit.objective)
    assert fit.converged and gains[-1] < 1e-4 * len(rows.item) and (gains[:-1] >= 1e-4 * len(rows.item)).all()


def test_progress_is_shown_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows(3)
    fit_table(rows.source, CHANNELS["mode"](rows.cells))
    assert capsys.readouterr() == ("", "")
    fit_table(rows.source, CHANNELS["mode"](rows.cells), progress=True)
    assert "pass" in capsys.readouterr().err


# The population of annotators


def population_value(population: torch.Tensor, observed: np.ndarray, prior: np.ndarray) -> torch.Tensor:
    """log p(counts; population) + log p(pseudo-annotator; population); population: concentrations (k, l)."""
    counts = torch.tensor(observed)

    def log_beta(a: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))

    typical = torch.tensor(digamma(prior) - digamma(prior.sum(1, keepdims=True)))
    value = (log_beta(population + counts) - log_beta(population)).sum()
    return value - log_beta(population).sum() + ((population - 1) * typical).sum()


def pooled(counts: np.ndarray, prior: np.ndarray) -> tuple[PooledRows, Statistics]:
    """The model of annotators and its counts, from counts (j, k, l)."""
    annotators, classes, labels = counts.shape
    cells = occurring(np.arange(annotators * labels), annotators, labels, classes)
    return PooledRows(cells, prior, ClassPrior(None)), Statistics(
        counts.transpose(0, 2, 1).reshape(-1, classes), np.ones(classes)
    )


@pytest.mark.parametrize("size", [0.05, 0.5, 3.0, 100.0])
def test_improved_concentrations_are_never_worse(size: float) -> None:
    """Also where expected counts are below 1."""
    chance = np.random.default_rng(0)
    for _ in range(25):
        annotators, labels = int(chance.choice([1, 4, 60])), int(chance.integers(1, 5))
        observed = (
            chance.uniform(0, 1, (annotators, 2, labels))
            * size
            * chance.choice([0, 1, 1, 30], (1, 2, labels))
        )
        channel, counts = pooled(observed, chance.gamma(2, 2, (2, labels)) + 0.05)
        here = chance.gamma(1, 1, (2, labels)) * 10 ** chance.uniform(-2, 3) + 1e-3
        for _ in range(3):
            there = channel.improved(here, counts)
            before, after = (
                float(population_value(torch.tensor(c), observed, channel.base)) for c in (here, there)
            )
            assert after >= before - 1e-9 * abs(before)
            here = there


def test_the_best_concentrations_are_a_fixed_point() -> None:
    chance = np.random.default_rng(1)
    observed = chance.gamma(0.7, 6, (40, 3, 4))
    channel, counts = pooled(observed, base(3, 4))
    here = channel.base
    for _ in range(1000):
        here = channel.improved(here, counts)
    best = torch.tensor(here, requires_grad=True)
    population_value(best, observed, channel.base).backward()
    assert best.grad is not None and float((best.grad * best.detach()).abs().max()) < 1e-6
    np.testing.assert_allclose(channel.improved(here, counts), here, rtol=1e-8)


def test_without_annotators_the_population_is_the_prior() -> None:
    channel, counts = pooled(np.zeros((5, 3, 4)), base(3, 4) / 4)
    np.testing.assert_allclose(channel.improved(channel.base, counts), channel.base, rtol=1e-9)
    here = np.ones((3, 4))
    for _ in range(300):
        here = channel.improved(here, counts)
    np.testing.assert_allclose(here, channel.base, rtol=1e-6)


def test_populations_are_recovered_from_many_annotators() -> None:
    chance = np.random.default_rng(2)
    population = np.array([[6.0, 1.0, 0.5], [0.8, 3.0, 2.0]])
    observed = np.stack(
        [[chance.multinomial(60, chance.dirichlet(row)) for row in population] for _ in range(1500)]
    ).astype(float)
    channel, counts = pooled(observed, np.array([[1.0, 2, 3], [3, 2, 1]]))
    here = channel.base
    for _ in range(1500):
        here = channel.improved(here, counts)
    hessian = torch.autograd.functional.hessian(
        lambda c: population_value(c.reshape(2, 3), observed, channel.base), torch.tensor(here.ravel())
    )
    error = np.sqrt(np.diag(np.linalg.inv(-np.asarray(hessian)))).reshape(2, 3)
    assert (error < 0.06 * population).all()  # the pseudo-annotator is one of 1,501
    assert (np.abs(here - population) < 4 * error).all()


def test_pooled_scores_are_averaged_scores_of_improved_concentrations() -> None:
    chance = np.random.default_rng(3)
    channel, counts = pooled(chance.gamma(0.7, 6, (6, 3, 3)), base(3, 3))
    first = channel.scores(counts)
    second = channel.scores(counts, first)
    three = channel.base
    for scores in (first, second):
        for _ in range(3):
            three = channel.improved(three, counts)
        np.testing.assert_allclose(scores.state, three, rtol=1e-12)
        rows = DirichletRows(channel.cells, three, channel.class_prior, averaged=True).scores(counts)
        np.testing.assert_allclose(scores.log_table, rows.log_table, rtol=1e-12)
        logs = digamma(channel.base) - digamma(channel.base.sum(1, keepdims=True))
        pseudo = float((gammaln(three.sum(1)) - gammaln(three).sum(1) + ((three - 1) * logs).sum(1)).sum())
        assert scores.penalty == pytest.approx(rows.penalty + pseudo, rel=1e-10)


# MaceModel


def spam_channel(rows: Rows) -> MaceModel:
    return MaceModel(rows.cells, SpamPrior(0.7, 0.4, 2.0))


def test_sharp_habits_have_the_closed_form() -> None:
    cells, sharp, spam = occurring(np.arange(3), 1, 3, 3), 1e9, np.array([0.2, 0.3, 0.5])
    channel = MaceModel(cells, SpamPrior())
    scores = channel.table(MacePosterior(np.array([0.7]) * sharp, np.array([0.3]) * sharp, spam * sharp))
    expected = [[0.76, 0.09, 0.15], [0.06, 0.79, 0.15], [0.06, 0.09, 0.85]]
    np.testing.assert_allclose(dense(np.exp(scores.log_table), cells)[0], expected, atol=1e-7)
    np.testing.assert_allclose(np.exp(scores.log_prior), 1 / 3, rtol=1e-12)


@pytest.mark.parametrize("abstentions", [False, True])
def test_spam_is_summed_out(abstentions: bool) -> None:
    """Enumerate truth and spam by item; the counts that result are those of the next scores."""
    rows = some_rows(1, items=3, annotators=4, classes=2, abstentions=abstentions, gold=0.3)
    cells, channel = rows.cells, spam_channel(rows)
    scores = channel.scores(some_counts(cells))
    habits: MacePosterior = scores.state
    both = digamma(habits.knows + habits.spams)
    knows, spams = np.exp(digamma(habits.knows) - both), np.exp(digamma(habits.spams) - both)
    total = 2.0 * rows.num_labels + np.bincount(cells.annotator, habits.answers - 2.0, cells.num_annotators)
    answer = np.exp(digamma(habits.answers) - digamma(total)[cells.annotator])
    sums, spam_rows, log_likelihood = np.zeros((cells.num_annotators, 2)), np.zeros(len(cells)), 0.0
    for i in range(3):
        here = np.flatnonzero(rows.item == i)
        cell = cells.locate(rows.key[here])
        joints = {}
        for k in range(2):
            for spam in itertools.product([0, 1], repeat=len(here)):
                joint = 0.5 * (rows.gold[i] in (-1, k))
                for s, n, p in zip(spam, here, cell, strict=True):
                    joint *= (
                        spams[rows.annotator[n]] * answer[p]
                        if s
                        else knows[rows.annotator[n]] * (rows.label[n] == k)
                    )
                joints[spam, k] = joint
        whole = sum(joints.values())
        log_likelihood += math.log(whole)
        for (spam, _), joint in joints.items():
            for s, n, p in zip(spam, here, cell, strict=True):
                sums[rows.annotator[n], s] += joint / whole
                spam_rows[p] += s * joint / whole
    expectation = rows.source.e_step(scores)
    assert expectation.log_likelihood == pytest.approx(log_likelihood, rel=1e-10)
    after: MacePosterior = channel.scores(expectation.statistics, scores).state
    np.testing.assert_allclose(after.knows, 0.7 + sums[:, 0], rtol=1e-9)
    np.testing.assert_allclose(after.spams, 0.4 + sums[:, 1], rtol=1e-9)
    np.testing.assert_allclose(after.answers, 2.0 + spam_rows, rtol=1e-9)


def test_the_penalty_of_habits_is_minus_their_divergence() -> None:
    rows = some_rows(1, items=5, annotators=4, classes=3, abstentions=True)
    cells, channel = rows.cells, spam_channel(rows)
    scores = channel.scores(some_counts(cells))
    habits: MacePosterior = scores.state
    coins = kl_divergence(
        Beta(torch.tensor(habits.knows), torch.tensor(habits.spams)),
        Beta(torch.tensor(0.7).double(), torch.tensor(0.4).double()),
    )
    answers_of = np.full((cells.num_annotators, cells.num_labels), 2.0)
    answers_of[cells.annotator, cells.label] = habits.answers
    spam = kl_divergence(
        Dirichlet(torch.tensor(answers_of)), Dirichlet(torch.full(answers_of.shape, 2.0).double())
    )
    assert scores.penalty == pytest.approx(-float(coins.sum() + spam.sum()), rel=1e-8)


def test_the_bound_of_spammers_is_below_the_evidence() -> None:
    rows = some_rows(1, items=3, annotators=3, classes=2, rate=0.8)
    assert 4 <= len(rows.item) <= 9
    terms = []
    for truth in itertools.product(range(2), repeat=3):
        for spam in itertools.product([0, 1], repeat=len(rows.item)):
            spammed = np.array(spam, bool)
            if (np.array(truth)[rows.item] != rows.label)[~spammed].any():
                continue
            value = -3 * math.log(2)
            for j in range(rows.num_annotators):
                mine = rows.annotator == j
                knows, spams = (mine & ~spammed).sum(), (mine & spammed).sum()
                value += gammaln(0.7 + knows) + gammaln(0.4 + spams) - gammaln(1.1 + knows + spams)
                value -= gammaln(0.7) + gammaln(0.4) - gammaln(1.1)
                counts = np.bincount(rows.label[mine & spammed], minlength=2)
                value += (
                    gammaln(2.0 + counts).sum()
                    - gammaln(4.0 + counts.sum())
                    - 2 * gammaln(2.0)
                    + gammaln(4.0)
                )
            terms.append(value)
    fit = fit_table(rows.source, spam_channel(rows), tolerance=1e-13, accelerate=False)
    evidence = float(np.logaddexp.reduce(terms))
    assert evidence - 3 < fit.objective[-1] < evidence
    assert (np.diff(fit.objective) >= -1e-10).all()

"""The table of annotators against draws from the posteriors it summarises and against known confusion."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from probcrowd.data.table import occurring, pack
from probcrowd.inference.aggregation import annotator_summary as module
from probcrowd.inference.aggregation.annotator_summary import (
    SPAM_PRIOR,
    RowPosterior,
    annotator_table,
    confusion_table,
    held_out,
)
from probcrowd.inference.aggregation.e_step import Scores
from probcrowd.inference.aggregation.em import InMemory, fit_table
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.metrics.intervals import ANNOTATOR_LEVEL
from probcrowd.models.priors import DirichletPrior

DRAWS = 20_000


def posterior_of(counts: np.ndarray, base: np.ndarray, history: np.ndarray | None = None) -> RowPosterior:
    """Posterior from counts (j, k, l); pairs whose counts are all 0 have no cell."""
    annotators, classes, labels = counts.shape
    every = counts if history is None else counts + history
    annotator, label = np.nonzero(every.sum(1) > 0)
    cells = occurring(annotator * labels + label, annotators, labels, classes)

    def by_cell(values: np.ndarray) -> np.ndarray:
        return values.transpose(0, 2, 1)[cells.annotator, cells.label]

    return RowPosterior(cells, base, by_cell(counts), None if history is None else by_cell(history))


def columns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    return {str(name): values.to_numpy() for name, values in table.items()}


def accurate(classes: int, labels: int | None = None) -> np.ndarray:
    """The default prior; labels that name no class have concentration 1."""
    rows = np.ones((classes, labels or classes))
    rows[:, :classes] = DirichletPrior.named("accurate", classes).confusion
    return rows


def information(confusion: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mutual information of truth and label in bits, of matrices (..., k, l)."""
    joint = confusion * weight[:, None]
    apart = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    return (joint * np.log2(np.where(joint > 0, joint / np.where(apart > 0, apart, 1), 1))).sum((-1, -2))


def dirichlet(chance: np.random.Generator, a: np.ndarray) -> np.ndarray:
    gammas = chance.gamma(a)
    return gammas / gammas.sum(-1, keepdims=True)


def drawn_counts(
    chance: np.random.Generator, confusion: np.ndarray, rows: int, weight: np.ndarray
) -> np.ndarray:
    """Counts of matrices (j, k, l) on `rows` items of known class each."""
    of_class = chance.multinomial(rows, weight, len(confusion))
    return chance.multinomial(of_class, confusion).astype(float)


@pytest.mark.parametrize("rows", [0, 6, 30, 300])
@pytest.mark.parametrize(("classes", "labels"), [(2, 2), (3, 3), (3, 4), (6, 6)])
def test_means_are_those_of_draws(classes: int, labels: int, rows: int) -> None:
    chance = np.random.default_rng(classes + rows)
    weight, base = chance.dirichlet(np.full(classes, 5.0)), accurate(classes, labels)
    counts = drawn_counts(chance, dirichlet(chance, np.tile(base, (6, 1, 1))), rows, weight) * 0.9
    history = drawn_counts(chance, dirichlet(chance, np.tile(base, (6, 1, 1))), 3, weight)
    summary = columns(annotator_table(posterior_of(counts, base, history), weight))
    np.testing.assert_allclose(summary["num_labels"], counts.sum((1, 2)), rtol=1e-12)
    a = base + counts + history
    np.testing.assert_allclose(
        confusion_table(posterior_of(counts, base, history)), a / a.sum(2, keepdims=True), rtol=1e-12
    )
    # The mean and the variance of a Dirichlet's entries, written out
    mean = sum(weight[k] * a[:, k, k] / a[:, k].sum(1) for k in range(classes))
    np.testing.assert_allclose(summary["accuracy"], mean, rtol=1e-12)
    for j in range(6):
        draws = dirichlet(chance, np.broadcast_to(a[j], (DRAWS, classes, labels)))
        accuracy, bits = np.einsum("k,dkk->d", weight, draws[..., :classes]), information(draws, weight)
        assert abs(summary["accuracy"][j] - accuracy.mean()) < 4.5 * accuracy.std() / math.sqrt(DRAWS)
        share = ((accuracy > summary["accuracy_lower"][j]) & (accuracy < summary["accuracy_upper"][j])).mean()
        assert abs(share - ANNOTATOR_LEVEL) < 0.02  # the Beta matches the first two moments only
        error = 4.5 * bits.std() / math.sqrt(DRAWS)
        assert abs(summary["information_bits"][j] - bits.mean()) < max(0.02 * bits.mean(), 0.005) + error
        share = (
            (bits >= summary["information_bits_lower"][j]) & (bits <= summary["information_bits_upper"][j])
        ).mean()
        assert 0.84 < share < 0.96


def test_the_interval_of_accuracy_has_the_exact_mean_and_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    weight, base, counts = np.array([0.2, 0.5, 0.3]), accurate(3), chance.gamma(1, 4, (5, 3, 3))
    arguments = []
    monkeypatch.setattr(module.beta, "ppf", lambda q, a, b: arguments.append((a, b)) or np.full(len(a), q))
    summary = columns(annotator_table(posterior_of(counts, base), weight))
    assert (summary["accuracy_lower"] == (1 - ANNOTATOR_LEVEL) / 2).all() and np.allclose(
        summary["accuracy_upper"], (1 + ANNOTATOR_LEVEL) / 2
    )
    (a, b), rows = arguments[0], base + counts
    total, right = rows.sum(2), np.einsum("jkk->jk", rows)
    variance = (weight**2 * right * (total - right) / (total**2 * (total + 1))).sum(1)
    np.testing.assert_allclose(a / (a + b), (weight * right / total).sum(1), rtol=1e-10)
    np.testing.assert_allclose(a * b / ((a + b) ** 2 * (a + b + 1)), variance, rtol=1e-10)


@pytest.mark.parametrize("rows", [10, 40, 200])
@pytest.mark.parametrize("classes", [2, 4])
def test_intervals_cover_annotators_drawn_from_the_prior(classes: int, rows: int) -> None:
    chance, annotators = np.random.default_rng(10 * classes + rows), 4000
    weight, base = np.full(classes, 1 / classes), accurate(classes)
    confusion = dirichlet(chance, np.tile(base, (annotators, 1, 1)))
    summary = columns(
        annotator_table(posterior_of(drawn_counts(chance, confusion, rows, weight), base), weight)
    )
    error = math.sqrt(ANNOTATOR_LEVEL * (1 - ANNOTATOR_LEVEL) / annotators)
    for name, truth, bias in (
        (
            "accuracy",
            np.einsum("k,jkk->j", weight, confusion),
            0.01,
        ),  # a Beta approximates a mixture of Betas
        (
            "information_bits",
            information(confusion, weight),
            0.04,
        ),  # a Gamma approximates a distribution without a name
    ):
        covered = ((summary[f"{name}_lower"] <= truth) & (truth <= summary[f"{name}_upper"])).mean()
        assert abs(covered - ANNOTATOR_LEVEL) < 4 * error + bias, (name, covered)
        shifted = np.roll(truth, 1)  # negative control: the values of another annotator
        assert (
            (summary[f"{name}_lower"] <= shifted) & (shifted <= summary[f"{name}_upper"])
        ).mean() < covered - 0.03


def log_beta(a: list[float]) -> float:
    return sum(math.lgamma(x) for x in a) - math.lgamma(sum(a))


def spammer(prior: np.ndarray, counts: np.ndarray) -> float:
    """P(spamming) of one annotator, by a loop over classes."""
    truthful = sum(log_beta([*(prior[k] + counts[k])]) - log_beta([*prior[k]]) for k in range(len(prior)))
    shared = [sum(prior[k][label] for k in range(len(prior))) / len(prior) for label in range(prior.shape[1])]
    totals = [sum(counts[k][label] for k in range(len(prior))) for label in range(prior.shape[1])]
    spamming = log_beta([x + y for x, y in zip(shared, totals, strict=True)]) - log_beta(shared)
    odds = 0.1 / 0.9 * math.exp(spamming - truthful)
    return odds / (1 + odds)


@pytest.mark.parametrize(("classes", "labels"), [(2, 2), (3, 4)])
def test_the_spammer_probability_is_the_closed_form(classes: int, labels: int) -> None:
    chance = np.random.default_rng(1)
    observed, history = chance.gamma(0.5, 4, (8, classes, labels)), chance.gamma(1, 1, (8, classes, labels))
    base, weight = accurate(classes, labels), np.full(classes, 1 / classes)
    posterior = posterior_of(observed, base, history)
    held = observed * chance.uniform(0.5, 1, observed.shape)
    by_cell = held.transpose(0, 2, 1)[posterior.cells.annotator, posterior.cells.label]
    for counts, table in (
        (observed, annotator_table(posterior, weight)),
        (held, annotator_table(posterior, weight, by_cell)),
    ):
        expected = [spammer(base + history[j], counts[j]) for j in range(8)]
        np.testing.assert_allclose(table["spammer"], expected, rtol=1e-8)
        assert np.ptp(expected) > 0.1


def test_spammer_probabilities_are_calibrated() -> None:
    """Annotators drawn from the model, a tenth spammers: a share p of those at probability p are spammers."""
    chance, annotators, classes = np.random.default_rng(2), 6000, 3
    base, weight = accurate(classes), np.full(classes, 1 / classes)
    spam = chance.random(annotators) < SPAM_PRIOR
    confusion = dirichlet(chance, np.tile(base, (annotators, 1, 1)))
    confusion[spam] = dirichlet(chance, np.tile(base.mean(0), (spam.sum(), 1)))[:, None]
    for rows in (6, 40):
        p = annotator_table(posterior_of(drawn_counts(chance, confusion, rows, weight), base), weight)[
            "spammer"
        ].to_numpy()
        edges = np.quantile(p, np.linspace(0, 1, 7))
        for low, high in itertools.pairwise(edges):
            here = (p >= low) & (p <= high)
            error = math.sqrt(max((p[here] * (1 - p[here])).sum(), 1)) / here.sum()
            assert abs(spam[here].mean() - p[here].mean()) < 4 * error
            if high > 0.5:  # the negative control: shuffled spammers are not calibrated
                assert abs(chance.permutation(spam)[here].mean() - p[here].mean()) > 4 * error
    assert p[spam].mean() > 0.85 and p[~spam].mean() < 0.02


def alone_together(held: bool) -> np.ndarray:
    """P(spamming) after a fit to four annotators with accuracy 80 % and two who guess on separate items."""
    chance = np.random.default_rng(3)
    truth = chance.integers(0, 2, 300)
    labels = np.full((300, 6), -1)
    labels[:200, :4] = np.where(chance.random((200, 4)) < 0.8, truth[:200, None], 1 - truth[:200, None])
    labels[200:, 4:] = chance.integers(0, 2, (100, 2))
    item, annotator = np.nonzero(labels >= 0)
    key = annotator * 2 + labels[item, annotator]
    cells = occurring(key, 6, 2, 2)
    packed, prior = pack(item, key, cells, 300), accurate(2)
    fit = fit_table(
        InMemory(packed, cells), DirichletRows(cells, prior, ClassPrior(None, True), averaged=True)
    )
    posterior = RowPosterior(cells, prior, fit.statistics.counts)
    counts = held_out(packed, Scores(fit.scores.log_table, fit.scores.log_prior)).counts if held else None
    return columns(annotator_table(posterior, np.array([0.5, 0.5]), counts))["spammer"]


def test_agreement_with_the_own_label_is_no_evidence() -> None:
    held, own = alone_together(True), alone_together(False)
    assert (held[:4] < 0.01).all() and (own[:4] < 0.01).all()
    assert (
        own[4:] < SPAM_PRIOR
    ).all()  # the negative control: with their own labels, guessers look informative
    assert (held[4:] > 0.3).all()


def test_one_class_has_no_information() -> None:
    summary = columns(
        annotator_table(posterior_of(np.array([[[3.0]], [[0.0]]]), np.ones((1, 1))), np.ones(1))
    )
    for part in ("", "_lower", "_upper"):
        assert (summary[f"accuracy{part}"] == 1).all()
        assert (np.abs(summary[f"information_bits{part}"]) < 1e-12).all()
    np.testing.assert_allclose(summary["spammer"], SPAM_PRIOR)
    with_abstentions = columns(
        annotator_table(posterior_of(np.array([[[3.0, 2.0]]]), np.ones((1, 2))), np.ones(1))
    )
    np.testing.assert_allclose(with_abstentions["accuracy"], 4 / 7)
    assert abs(with_abstentions["information_bits"][0]) < 1e-12


def test_annotators_without_labels_have_the_prior() -> None:
    base, weight = accurate(3), np.array([0.2, 0.5, 0.3])
    counts = np.zeros((3, 3, 3))
    counts[0] = 5
    summary = columns(annotator_table(posterior_of(counts, base), weight))
    assert summary["num_labels"].tolist() == [45, 0, 0]
    assert summary["accuracy"][1] == pytest.approx(0.7) and summary["spammer"][1] == pytest.approx(SPAM_PRIOR)
    assert summary["accuracy_lower"][1] < 0.7 < summary["accuracy_upper"][1]
    assert all(values[1] == values[2] for values in summary.values())
    np.testing.assert_allclose(
        confusion_table(posterior_of(counts, base))[2], base / base.sum(1, keepdims=True)
    )


def test_certain_annotators_have_intervals_of_zero_width() -> None:
    """With 10^17 labels the variance vanishes, and the information is at most the entropy of the truth."""
    counts = 1e17 * np.stack([np.eye(3), np.full((3, 3), 1 / 3)])
    summary = columns(annotator_table(posterior_of(counts, np.ones((3, 3))), np.full(3, 1 / 3)))
    np.testing.assert_allclose(summary["accuracy"], [1, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(summary["information_bits"], [math.log2(3), 0], atol=1e-9)
    for name in ("accuracy", "information_bits"):
        assert (np.abs(summary[f"{name}_upper"] - summary[f"{name}_lower"]) < 1e-6).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(4)
    observed = chance.gamma(0.5, 4, (1000, 3, 4)) * (chance.random((1000, 1, 4)) < 0.6)
    held = observed * 0.8
    history = chance.gamma(0.5, 1, (1000, 3, 4)) * (chance.random((1000, 1, 1)) < 0.5)
    posterior, weight = posterior_of(observed, accurate(3, 4), history), np.array([0.2, 0.5, 0.3])
    held_by_cell = held.transpose(0, 2, 1)[posterior.cells.annotator, posterior.cells.label]
    once, matrices = annotator_table(posterior, weight, held_by_cell), confusion_table(posterior)
    for chunk in (1, 12 * 7, 12 * 999):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        assert len(list(posterior.chunks())) == math.ceil(1000 / max(1, chunk // 12))
        pd.testing.assert_frame_equal(annotator_table(posterior, weight, held_by_cell), once, rtol=1e-13)
        np.testing.assert_array_equal(confusion_table(posterior), matrices)
    order = chance.permutation(len(posterior.cells))  # cells that came later stand last
    cells = posterior.cells
    mixed = type(cells)(cells.annotator[order], cells.label[order], 1000, 4, 3)
    assert posterior.history is not None
    shuffled = RowPosterior(mixed, posterior.base, posterior.counts[order], posterior.history[order])
    pd.testing.assert_frame_equal(annotator_table(shuffled, weight, held_by_cell[order]), once, rtol=1e-12)


def test_no_annotators_no_rows() -> None:
    cells = occurring(np.zeros(0, np.int64), 0, 2, 2)
    empty = RowPosterior(cells, np.ones((2, 2)), np.zeros((0, 2)))
    assert len(annotator_table(empty, np.full(2, 0.5))) == 0
    assert confusion_table(empty).shape == (0, 2, 2)

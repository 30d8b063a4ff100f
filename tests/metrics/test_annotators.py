"""Scores of single annotators against loops, closed forms and the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta
from sklearn.metrics import cohen_kappa_score

from probcrowd.metrics.agreement import PairTables, pair_tables
from probcrowd.metrics.annotators import (
    MIN_ITEMS,
    alignment,
    annotator_scores,
    consistency,
    mean_accuracy,
    overall_scores,
    soft_cross_entropy,
)


def rows(
    items: int = 40, annotators: int = 4, labels: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """item, annotator, label, probabilities."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(labels, size=items)
    given = np.where(
        rng.random((items, annotators)) < 0.7, truth[:, None], rng.integers(labels, size=(items, annotators))
    )
    item, annotator = np.nonzero(rng.random(given.shape) < 0.7)
    p = (
        rng.dirichlet(np.ones(labels), len(item))
        + np.eye(labels)[given[item, annotator]] * rng.random(len(item))[:, None]
    )
    return item, annotator, given[item, annotator], p / p.sum(1, keepdims=True)


def tables(
    label: np.ndarray, item: np.ndarray, annotator: np.ndarray, annotators: int, labels: int
) -> PairTables:
    return pair_tables(item, annotator, label, num_annotators=annotators, num_labels=labels)


def panel(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    item, annotator = np.nonzero(matrix >= 0)
    return matrix[item, annotator], item, annotator


def test_every_annotators_accuracy_has_its_interval() -> None:
    _, annotator, label, p = rows()
    found = annotator_scores(annotator, label, p, pd.Index(["a", "b", "c", "d", "silent"]))
    for j, name in enumerate("abcd"):
        hit = [float(np.argmax(p[n]) == label[n]) for n in range(len(label)) if annotator[n] == j]
        lost = [-math.log(p[n, label[n]]) for n in range(len(label)) if annotator[n] == j]
        row = found.loc[name]
        assert row[["labels", "accuracy", "log_loss"]].tolist() == pytest.approx(
            [len(hit), np.mean(hit), np.mean(lost)]
        )
        ends = beta.ppf([0.025, 0.975], sum(hit) + 0.5, len(hit) - sum(hit) + 0.5)
        assert row[["lower", "upper"]].tolist() == pytest.approx(ends.tolist())
    assert (
        found.loc["silent", "labels"] == 0
        and found.loc["silent", ["accuracy", "lower", "upper", "log_loss"]].isna().all()
    )


def test_ties_count_their_share() -> None:
    found = annotator_scores(
        np.array([0, 0]), np.array([1, 0]), np.array([[0.4, 0.4, 0.2], [0.5, 0.3, 0.2]]), pd.Index(["a"])
    )
    assert found.loc["a", "accuracy"] == 0.75


def test_the_mean_is_over_annotators_and_its_error_over_items() -> None:
    item, annotator, label, p = rows(items=80)
    p = np.where(
        (item % 3 == 0)[:, None], np.roll(np.eye(3)[label], 1, 1), p
    )  # every third item is misjudged for all
    hit = p.argmax(1) == label
    mean, error = mean_accuracy(item, annotator, label, p)
    assert mean == pytest.approx(np.mean([hit[annotator == j].mean() for j in range(4)]))
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        chosen = rng.integers(80, size=80)
        again = np.concatenate([np.flatnonzero(item == i) for i in chosen])
        drawn.append(np.mean([hit[again][annotator[again] == j].mean() for j in range(4)]))
    assert error == pytest.approx(np.std(drawn), rel=0.15)
    same = mean_accuracy(np.zeros(len(item), int), annotator, label, p)
    assert same[0] == mean and math.isnan(same[1])  # of a single item nothing is known


def test_soft_cross_entropy_is_that_of_vote_shares() -> None:
    item, _, label, p = rows()
    expected = []
    for i in np.unique(item):
        votes = np.bincount(label[item == i], minlength=3) / (item == i).sum()
        expected.append(-sum(votes * np.log(p[item == i].mean(0))))
    assert soft_cross_entropy(item, label, p) == pytest.approx(np.mean(expected))


def test_perfect_predictions_are_consistent() -> None:
    item, annotator, label, _ = rows(items=100)
    true = tables(label, item, annotator, 4, 3)
    found = consistency(true, true, 4)
    assert (
        found["dic"] == found["dic_relative"] == found["dic_pairs"] == found["undefined_kappa"] == 0
        and found["pairs"] == 6
    )


def test_dic_is_the_frobenius_norm_by_loops() -> None:
    item, annotator, label, p = rows(items=100)
    predicted = p.argmax(1)
    m, other = np.eye(4), np.eye(4)
    for j in range(4):
        for k in range(4):
            if j != k:
                both = np.intersect1d(item[annotator == j], item[annotator == k])
                for matrix, given in ((m, label), (other, predicted)):
                    a, b = ([given[(annotator == who) & (item == i)][0] for i in both] for who in (j, k))
                    matrix[j, k] = cohen_kappa_score(a, b)
    found = consistency(tables(label, item, annotator, 4, 3), tables(predicted, item, annotator, 4, 3), 4)
    off = ~np.eye(4, dtype=bool)
    expected = [math.sqrt(((m - other) ** 2).sum()), math.sqrt(((m - other) ** 2).sum() / (m**2).sum())]
    expected.append(math.sqrt(((m - other)[off] ** 2).sum() / (m[off] ** 2).sum()))
    assert [found[name] for name in ("dic", "dic_relative", "dic_pairs")] == pytest.approx(expected)


@pytest.mark.parametrize(("kappa", "published"), [(0.2, 0.514), (0.4, 0.768), (0.6, 0.874)])
def test_predictions_without_agreement_have_less_than_1_by_the_diagonal_alone(
    kappa: float, published: float
) -> None:
    """Ten annotators with equal kappas, and predictions with kappa 0: two labels, designed pairs."""
    rng = np.random.default_rng(0)
    items, agree = 200_000, (1 + kappa) / 2
    truth = rng.integers(2, size=items)
    skill = (1 + math.sqrt(2 * agree - 1)) / 2
    given = np.where(rng.random((items, 10)) < skill, truth[:, None], 1 - truth[:, None])
    guessed = rng.integers(2, size=(items, 10))
    true, made = (
        pair_tables(*panel(one)[1:], panel(one)[0], num_annotators=10, num_labels=2)
        for one in (given, guessed)
    )
    found = consistency(true, made, 10)
    assert found["dic_relative"] == pytest.approx(published, abs=0.006) and found[
        "dic_pairs"
    ] == pytest.approx(1, abs=0.02)
    assert found["dic_relative"] == pytest.approx(math.sqrt(9 * kappa**2 / (1 + 9 * kappa**2)), abs=0.006)


def test_kappas_without_a_meaning_count_0_and_are_counted() -> None:
    given = np.random.default_rng(0).integers(2, size=(30, 3))
    true = pair_tables(*panel(given)[1:], panel(given)[0], num_annotators=3, num_labels=2)
    constant = pair_tables(*panel(given)[1:], np.zeros(90, int), num_annotators=3, num_labels=2)
    found = consistency(true, constant, 3)
    assert (
        found["undefined_kappa"] == 3
        and found["dic_pairs"] == pytest.approx(1)
        and math.isfinite(found["dic_relative"])
    )
    few = pair_tables(
        *panel(given[: MIN_ITEMS - 1])[1:], panel(given[: MIN_ITEMS - 1])[0], num_annotators=3, num_labels=2
    )
    assert consistency(few, few, 3)["pairs"] == 0 and math.isnan(consistency(few, few, 3)["dic_pairs"])


def test_alignment_is_1_where_the_model_has_the_annotators_as_they_are() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=(400, 2))
    given = truth[:, [0, 0, 1, 1]]
    true = pair_tables(*panel(given)[1:], panel(given)[0], num_annotators=4, num_labels=2)
    m = np.eye(4)
    for j in range(4):
        for k in range(4):
            m[j, k] = 1 if j == k else cohen_kappa_score(given[:, j], given[:, k])
    groups = np.array([[1.0, 0], [2, 0], [0, 3], [0, 1]])
    cosine = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert (
        alignment(groups, true) == pytest.approx(1 - np.linalg.norm(cosine - m) / np.linalg.norm(m))
        and alignment(groups, true) > 0.9
    )
    assert alignment(np.ones((4, 2)), true) < 0.2 and math.isfinite(alignment(np.zeros((4, 2)), true))


def test_all_scores_of_a_table_stand_together() -> None:
    item, annotator, label, p = rows(items=100)
    found = overall_scores(
        item, annotator, label, p, num_annotators=4, features=np.random.default_rng(0).normal(size=(4, 3))
    )
    assert found["labels"] == len(label) and found["accuracy"] == pytest.approx((p.argmax(1) == label).mean())
    assert {
        "mean_accuracy",
        "standard_error",
        "log_loss",
        "calibration_error",
        "soft_cross_entropy",
        "dic",
        "dic_relative",
        "bae",
    } <= set(found)
    assert "bae" not in overall_scores(item, annotator, label, p, num_annotators=4)

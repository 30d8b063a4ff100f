"""GLAD, minimax entropy and KOS: values by hand, loops, derivatives, a dense matrix, and invariances."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize

from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.inference.aggregation.glad import (
    ability_value,
    ease_value,
    fit_glad,
    make_panel,
    new_items_glad,
    right_and_log_wrong,
    update_ease,
)
from probcrowd.inference.aggregation.kos import fit_kos, new_items_kos
from probcrowd.inference.aggregation.minimax import (
    class_scores,
    expectation,
    expected_log_likelihood,
    fit_minimax,
    new_items_minimax,
)
from probcrowd.inference.aggregation.result import Result
from probcrowd.metrics.scores import scores

FITS: dict[str, Callable[..., Result]] = {"glad": fit_glad, "minimax": fit_minimax, "kos": fit_kos}
NEW_ITEMS: dict[str, Callable[..., np.ndarray]] = {
    "glad": new_items_glad,
    "minimax": new_items_minimax,
    "kos": new_items_kos,
}
CLASSES = {"glad": 3, "minimax": 3, "kos": 2}  # number of classes in these tests
RISING = ["glad", "minimax"]
every_method = pytest.mark.parametrize("name", FITS)


def make(
    item: object,
    annotator: object,
    label: object,
    *,
    weight: object = None,
    gold: object,
    annotators: int,
    classes: int,
) -> Rows:
    item, annotator, label = (np.asarray(codes, np.int64) for codes in (item, annotator, label))
    weight = np.ones(len(item)) if weight is None else np.asarray(weight, float)
    order = np.argsort(item, kind="stable")
    return Rows(
        item[order],
        annotator[order],
        label[order],
        weight[order],
        np.asarray(gold, np.int64),
        annotators,
        classes,
    )


def simulate(
    seed: int,
    classes: int = 3,
    *,
    items: int = 40,
    annotators: int = 8,
    per_item: int = 5,
    least: float = 0.55,
) -> tuple[Rows, np.ndarray]:
    """Weighted labels by annotators with accuracies of up to .95."""
    rng = np.random.default_rng(seed)
    truth, accuracy = rng.integers(classes, size=items), rng.uniform(least, 0.95, annotators)
    item = np.repeat(np.arange(items), per_item)
    annotator = np.concatenate([rng.choice(annotators, per_item, replace=False) for _ in range(items)])
    right = rng.random(item.size) < accuracy[annotator]
    label = np.where(right, truth[item], (truth[item] + rng.integers(1, classes, item.size)) % classes)
    gold, weight = np.full(items, -1), rng.uniform(0.5, 2, item.size)
    return make(
        item, annotator, label, weight=weight, gold=gold, annotators=annotators, classes=classes
    ), truth


def with_gold(rows: Rows, truth: np.ndarray, number: int) -> Rows:
    return replace(rows, gold=np.where(np.arange(rows.num_items) < number, truth, -1))


def glad_joint(rows: Rows, ability: np.ndarray, log_ease: np.ndarray) -> np.ndarray:
    """log p(z_i = k, labels of item i) by loops over rows, items and classes; -inf where gold excludes k."""
    joint = np.full((rows.num_items, rows.num_classes), -math.log(rows.num_classes))
    for i, j, label, weight in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True):
        odds = math.exp(ability[j] * math.exp(log_ease[i]))
        for k in range(rows.num_classes):
            joint[i, k] += weight * math.log(
                odds / (1 + odds) if k == label else 1 / (1 + odds) / (rows.num_classes - 1)
            )
    return gold_only(joint, rows.gold)


def minimax_joint(rows: Rows, annotator_score: np.ndarray, item_score: np.ndarray) -> np.ndarray:
    joint = np.full((rows.num_items, rows.num_classes), -math.log(rows.num_classes))
    for i, j, label, weight in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True):
        for k in range(rows.num_classes):
            odds = [math.exp(annotator_score[j, k, m] + item_score[i, k, m]) for m in range(rows.num_classes)]
            joint[i, k] += weight * math.log(odds[label] / sum(odds))
    return gold_only(joint, rows.gold)


def gold_only(joint: np.ndarray, gold: np.ndarray) -> np.ndarray:
    for i, k in enumerate(gold):
        for other in range(joint.shape[1]):
            if k >= 0 and other != k:
                joint[i, other] = -np.inf
    return joint


def bayes(joint: np.ndarray) -> np.ndarray:
    return np.array([[math.exp(x) for x in row] for row in joint]) / np.exp(joint).sum(1, keepdims=True)


def log_normal(x: np.ndarray) -> float:
    return sum(-0.5 * (value - 1) ** 2 - 0.5 * math.log(2 * math.pi) for value in x)


# GLAD


@pytest.mark.parametrize(
    ("ability", "log_ease", "expected"), [(1.0, 0.0, 0.731059), (1.0, 1.0, 0.938097), (-1.0, 0.0, 0.268941)]
)
def test_glad_probability_matches_hand_computation(ability: float, log_ease: float, expected: float) -> None:
    right, log_wrong = right_and_log_wrong(ability * math.exp(log_ease))
    assert abs(right - expected) < 5e-7
    assert math.isclose(log_wrong, math.log(1 - right), rel_tol=1e-12)
    assert right_and_log_wrong(-2000.0) == (0.0, 0.0) and right_and_log_wrong(2000.0) == (1.0, -2000.0)


@pytest.mark.parametrize("classes", [2, 4])
def test_glad_e_step_is_bayes_rule(classes: int) -> None:
    rows, truth = simulate(0, classes)
    rows, rng = with_gold(rows, truth, 5), np.random.default_rng(0)
    ability, log_ease = rng.normal(1, 1, rows.num_annotators), rng.normal(1, 1, rows.num_items)
    q, joint = np.empty((rows.num_items, classes)), glad_joint(rows, ability, log_ease)
    value = update_ease(make_panel(rows), ability, 0, log_ease.copy(), q)
    np.testing.assert_allclose(q, bayes(joint), atol=1e-12)
    expected = (
        np.log(np.exp(joint).sum(1)).sum()
        + log_normal(log_ease)
        + 0.5 * math.log(2 * math.pi) * log_ease.size
    )
    assert math.isclose(value, expected, rel_tol=1e-12)


def test_glad_derivatives_match_finite_differences() -> None:
    rows, truth = simulate(1)
    panel, rng = make_panel(with_gold(rows, truth, 5)), np.random.default_rng(1)
    ability, log_ease = rng.normal(1, 1, rows.num_annotators), rng.normal(0.5, 0.5, rows.num_items)
    q = rng.dirichlet(np.ones(3), rows.num_items)
    free, functions = (
        0,
        [
            (j, lambda x, j=j: ability_value(j, x, panel, np.exp(log_ease), q), ability[j])
            for j in range(ability.size)
        ],
    )
    functions += [
        (i, lambda x, i=i: ease_value(i, x, panel, ability, np.empty(3), np.empty(3)), log_ease[i])
        for i in range(log_ease.size)
    ]
    for _, function, at in functions:
        _, slope, curvature = function(at)
        above, below = function(at + 1e-5), function(at - 1e-5)
        assert abs((above[0] - below[0]) / 2e-5 - slope) < 1e-7 * (1 + abs(slope))
        second = (above[1] - below[1]) / 2e-5
        assert curvature < 0
        if second < -0.51:  # otherwise the Gauss-Newton curvature replaces it
            free += 1
            assert abs(second - curvature) < 1e-6 * (1 + abs(second))
    assert free > 30


def test_no_newton_step_of_glad_lowers_the_objective() -> None:
    """From distant starts, item by item: a sum over items could hide a decrease."""
    rows, _ = simulate(1, items=400)
    panel, rng = make_panel(replace(rows, weight=5 * rows.weight)), np.random.default_rng(1)
    ability, log_ease = rng.normal(0, 2, rows.num_annotators), rng.normal(0, 2, rows.num_items)

    def values(log_ease: np.ndarray) -> np.ndarray:
        return np.array(
            [ease_value(i, b, panel, ability, np.empty(3), np.empty(3))[0] for i, b in enumerate(log_ease)]
        )

    raised = log_ease.copy()
    total = update_ease(panel, ability, 1, raised, np.empty((rows.num_items, 3)))
    assert (values(raised) >= values(log_ease)).all() and (values(raised) > values(log_ease)).mean() > 0.99
    assert math.isclose(total, values(raised).sum(), rel_tol=1e-12)


def test_glad_ends_at_a_stationary_point() -> None:
    rows, truth = simulate(2)
    rows = with_gold(rows, truth, 3)
    answer = fit_glad(rows, max_iter=2000, tolerance=1e-12)
    assert answer.converged
    ability, log_ease = answer.parameters["ability"], answer.parameters["log_ease"]

    def log_posterior(ability: np.ndarray, log_ease: np.ndarray) -> float:
        return float(
            np.log(np.exp(glad_joint(rows, ability, log_ease)).sum(1)).sum()
            + log_normal(ability)
            + log_normal(log_ease)
        )

    assert math.isclose(answer.objective[-1], log_posterior(ability, log_ease), rel_tol=1e-10)
    for values in (ability, log_ease):
        for at in range(values.size):
            step = np.zeros(values.size)
            step[at] = 1e-4
            pair = [
                log_posterior(ability + sign * step, log_ease)
                if values is ability
                else log_posterior(ability, log_ease + sign * step)
                for sign in (1, -1)
            ]
            assert abs(pair[0] - pair[1]) / 2e-4 < 1e-4
    np.testing.assert_allclose(
        new_items_glad(rows, answer.parameters), answer.probabilities, atol=1e-5
    )  # ease is at its mode in both


# Minimax entropy


def test_minimax_gradients_match_autograd() -> None:
    rows, _ = simulate(3)
    panel, rng = make_panel(rows), np.random.default_rng(3)
    q = rng.dirichlet(np.full(3, 0.5), rows.num_items)
    q[0] = [0, 1, 0]
    tables = [rng.normal(0, 1.5, (number, 3, 3)) for number in (rows.num_annotators, rows.num_items)]
    value, *slopes = expected_log_likelihood(panel, q, *tables)
    of_annotators, of_items = (torch.tensor(table, requires_grad=True) for table in tables)
    logs = torch.log_softmax(of_annotators[panel.annotator] + of_items[panel.item], -1)[
        np.arange(panel.item.size), :, panel.label
    ]
    expected = (torch.tensor(panel.weight)[:, None] * torch.tensor(q)[panel.item] * logs).sum()
    expected.backward()
    assert math.isclose(value, expected.item(), rel_tol=1e-12)
    for slope, table in zip(slopes, (of_annotators, of_items), strict=True):
        assert table.grad is not None
        np.testing.assert_allclose(slope, table.grad, atol=1e-12)


def test_minimax_q_is_bayes_rule() -> None:
    rows, truth = simulate(4)
    rows, rng = with_gold(rows, truth, 5), np.random.default_rng(4)
    tables = rng.normal(0, 1.5, (rows.num_annotators, 3, 3)), rng.normal(0, 1.5, (rows.num_items, 3, 3))
    joint = minimax_joint(rows, *tables)
    q, value = expectation(make_panel(rows), tables)
    np.testing.assert_allclose(q, bayes(joint), atol=1e-12)
    assert math.isclose(value, np.log(np.exp(joint).sum(1)).sum(), rel_tol=1e-12)
    large = class_scores(make_panel(rows), tables[0] * 1e4, tables[1] * 1e4)
    assert np.isfinite(large).all() and large.min() < -1e4


@pytest.mark.parametrize("item_penalty", [1e9, math.inf])
def test_minimax_with_a_large_item_penalty_has_no_item_scores(item_penalty: float) -> None:
    """The same two steps from the votes, for annotators' ridge-softmax tables only, with another solver."""
    rows, _ = simulate(5)
    answer = fit_minimax(rows, annotator_penalty=1.5, item_penalty=item_penalty, max_iter=3, tolerance=0.0)
    weight = torch.tensor(rows.weight)
    q = np.zeros((rows.num_items, 3))
    np.add.at(q, (rows.item, rows.label), rows.weight)
    q /= q.sum(1, keepdims=True)

    def logs(score: torch.Tensor) -> torch.Tensor:
        return weight[:, None] * torch.log_softmax(score, -1)[rows.annotator, :, rows.label]

    def loss(unknown: np.ndarray, q: np.ndarray) -> tuple[float, np.ndarray]:
        score = torch.tensor(unknown.reshape(-1, 3, 3), requires_grad=True)
        value = 0.75 * (score**2).sum() - (torch.tensor(q)[rows.item] * logs(score)).sum()
        value.backward()
        assert score.grad is not None
        return value.item(), score.grad.numpy().ravel()

    score = np.zeros(rows.num_annotators * 9)
    for _ in range(3):
        score = minimize(
            loss,
            np.zeros(rows.num_annotators * 9),
            args=(q,),
            jac=True,
            method="BFGS",
            options={"gtol": 1e-6},
        ).x
        joint = np.zeros((rows.num_items, 3))
        np.add.at(joint, rows.item, logs(torch.tensor(score.reshape(-1, 3, 3))).numpy())
        q = bayes(joint - joint.max(1, keepdims=True))
    np.testing.assert_allclose(answer.parameters["annotator_score"], score.reshape(-1, 3, 3), atol=2e-3)
    np.testing.assert_allclose(answer.probabilities, q, atol=1e-3)
    assert np.abs(answer.parameters["item_score"]).max() < 1e-6


def test_minimax_objective_is_the_penalised_log_likelihood() -> None:
    rows, truth = simulate(6)
    rows = with_gold(rows, truth, 4)
    answer = fit_minimax(rows)
    of_annotators, of_items = answer.parameters["annotator_score"], answer.parameters["item_score"]
    expected = np.log(np.exp(minimax_joint(rows, of_annotators, of_items)).sum(1)).sum()
    expected -= (
        9 / 4 * ((of_annotators**2).sum() + 40 / 8 * (of_items**2).sum()) / 2
    )  # K^2 / 4, times items per annotator
    assert math.isclose(answer.objective[-1], expected, rel_tol=1e-10)
    free = fit_minimax(rows, annotator_penalty=2.25, item_penalty=2.25 * 5)
    np.testing.assert_array_equal(free.probabilities, answer.probabilities)


def test_minimax_starts_at_the_votes_and_stops_at_the_maximum() -> None:
    rows = make(
        [0, 0, 0, 1, 2],
        [0, 1, 2, 1, 2],
        [0, 1, 1, 1, 1],
        weight=[1, 2, 1, 1, 1],
        gold=[-1, 0, -1, -1],
        annotators=3,
        classes=2,
    )
    start = fit_minimax(rows, max_iter=0)
    np.testing.assert_allclose(start.probabilities, [[0.25, 0.75], [1, 0], [0, 1], [0.5, 0.5]])
    assert not start.converged and start.objective.size == 0
    answer = fit_minimax(rows, max_iter=3000, tolerance=0.0)
    assert answer.converged and len(answer.objective) < 3000
    assert (np.diff(answer.objective) > 0).all()


def test_minimax_rejects_penalties_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="penalties must be > 0, not 2.25 for annotators and 0.0 for items"):
        fit_minimax(simulate(0)[0], item_penalty=0.0)


# KOS


def dense_kos(rows: Rows, rounds: int, starts: int) -> tuple[np.ndarray, np.ndarray]:
    """p(class 1) and annotators' log odds for a connected table, with dense items x annotators matrices."""
    votes = np.zeros((rows.num_items, rows.num_annotators))
    np.add.at(votes, (rows.item, rows.annotator), rows.weight * (2 * rows.label - 1))
    there, gold = votes != 0, rows.gold[:, None]
    rng, mean, reliability = np.random.default_rng(7), np.zeros(votes.shape), np.zeros(votes.shape[1])
    for _ in range(starts):
        x, y, size = votes, np.zeros(votes.shape), 1.0
        y[there] = rng.normal(1, 1, there.sum())
        for _ in range(rounds):
            x = ((votes * y).sum(1, keepdims=True) - votes * y) * there
            x = np.where(gold < 0, x / np.sqrt((x[there & (gold < 0)] ** 2).mean()), 2 * gold - 1) * there
            y = ((votes * x).sum(0) - votes * x) * there
            size = np.sqrt((y[there] ** 2).mean())
            y /= size
        mean += y / starts
        reliability += (votes * x).sum(0) / size / starts
    score = (votes * mean).sum(1)
    scale = 2 * np.abs(score).sum() / (np.abs(votes) * mean**2).sum()
    return np.where(rows.gold < 0, 1 / (1 + np.exp(-scale * score)), rows.gold), scale * reliability


@pytest.mark.parametrize("number", [0, 6])
def test_kos_matches_dense_matrices(number: int) -> None:
    rows, truth = simulate(8, 2)
    rows = with_gold(rows, truth, number)
    answer = fit_kos(rows, seed=7, restarts=2, max_iter=3)
    assert not answer.converged and answer.objective.size == 0
    probabilities, log_odds = dense_kos(rows, 3, 2)
    np.testing.assert_allclose(answer.probabilities[:, 1], probabilities, atol=1e-10)
    np.testing.assert_allclose(answer.parameters["annotator_log_odds"], log_odds, atol=1e-10)


def test_kos_ignores_pairs_whose_labels_cancel() -> None:
    rows, _ = simulate(8, 2)
    absent = next(j for j in range(rows.num_annotators) if j not in rows.annotator[rows.item == 0])
    codes = np.r_[0, 0, rows.item], np.r_[absent, absent, rows.annotator], np.r_[0, 1, rows.label]
    both = make(
        *codes, weight=np.r_[3, 3, rows.weight], gold=rows.gold, annotators=rows.num_annotators, classes=2
    )
    np.testing.assert_array_equal(fit_kos(both).probabilities, fit_kos(rows).probabilities)


def test_kos_rejects_other_than_two_classes_and_no_start() -> None:
    with pytest.raises(ValueError, match="needs exactly two classes, the table has 3:"):
        fit_kos(simulate(0, 3)[0])
    with pytest.raises(ValueError, match="restarts=0"):
        fit_kos(simulate(0, 2)[0], restarts=0)


def test_kos_is_the_majority_vote_without_cycles() -> None:
    """Annotators 0, 1 and 2 share one item; 0 and 3 another; there is no cycle."""
    rows = make(
        [0, 0, 0, 1, 1, 2], [0, 1, 2, 0, 3, 1], [1, 1, 0, 0, 1, 0], gold=[-1] * 4, annotators=5, classes=2
    )
    answer = fit_kos(rows)
    assert answer.converged
    np.testing.assert_allclose(answer.parameters["score"], [1, 0, -1, 0])
    assert answer.probabilities[0, 1] > 0.5 and answer.probabilities[2, 1] < 0.5
    np.testing.assert_array_equal(answer.probabilities[[1, 3]], 0.5)
    assert answer.parameters["annotator_log_odds"][4] == 0


def test_kos_components_are_independent() -> None:
    (one, _), (other, _) = (
        simulate(9, 2, per_item=7, least=0.75),
        simulate(10, 2, annotators=6, per_item=4, least=0.75),
    )
    both = Rows(
        np.r_[one.item, other.item + one.num_items],
        np.r_[one.annotator, other.annotator + one.num_annotators],
        np.r_[one.label, other.label],
        np.r_[one.weight, other.weight],
        np.r_[one.gold, other.gold],
        one.num_annotators + other.num_annotators,
        2,
    )
    apart = np.concatenate([fit_kos(rows, max_iter=500).probabilities for rows in (one, other)])
    answer = fit_kos(both, max_iter=500)
    assert answer.converged
    np.testing.assert_allclose(answer.probabilities, apart, atol=1e-4)


def test_kos_gold_informs_other_items_of_the_same_annotators() -> None:
    """With gold on the one common item, the annotator who was right about it is trusted on the others."""
    rows = make([0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 0], gold=[1, -1], annotators=2, classes=2)
    assert fit_kos(rows).probabilities[1, 1] > 0.6
    assert fit_kos(replace(rows, gold=np.array([0, -1]))).probabilities[1, 1] < 0.4


def test_kos_survives_votes_of_any_size() -> None:
    rows, _ = simulate(8, 2)
    plain = fit_kos(rows, max_iter=300)
    huge = fit_kos(replace(rows, weight=rows.weight * 1e60), max_iter=300)
    np.testing.assert_allclose(
        huge.parameters["annotator_log_odds"], plain.parameters["annotator_log_odds"], rtol=1e-6
    )
    np.testing.assert_array_equal(huge.probabilities.argmax(1), plain.probabilities.argmax(1))


# All three


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_results_are_probabilities_and_better_than_chance(name: str, seed: int) -> None:
    rows, truth = simulate(seed, CLASSES[name], items=150, annotators=12)
    answer = FITS[name](rows)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=1e-12)
    assert scores(answer.probabilities, truth)["accuracy"] > 0.8


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("seed", range(8))
def test_the_objective_never_falls(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, truth = simulate(seed, 2 + seed % 3, items=15, annotators=5, per_item=3)
    noise = replace(
        rows,
        label=rng.integers(rows.num_classes, size=rows.label.size),
        weight=rng.uniform(0.1, 8, rows.label.size),
    )
    for table in (rows, noise, with_gold(noise, truth, 4)):
        answer = FITS[name](table, max_iter=60, tolerance=0.0)
        assert len(answer.objective) > 2
        assert (np.diff(answer.objective) >= 0).all()
        assert np.isfinite(answer.objective).all()
        few = FITS[name](table, max_iter=2, tolerance=0.0)
        assert not few.converged and len(few.objective) == 2


@every_method
def test_neither_row_order_nor_names_matter(name: str) -> None:
    classes, options = CLASSES[name], {"max_iter": 500} if name == "kos" else {}
    rows, truth = simulate(8, classes, items=60, per_item=6)
    rows = with_gold(rows, truth, 4)
    answer, rng = FITS[name](rows, **options), np.random.default_rng(0)
    shuffle = rng.permutation(rows.item.size)
    parts = {key: getattr(rows, key)[shuffle] for key in ("item", "annotator", "label", "weight")}
    np.testing.assert_array_equal(
        FITS[name](replace(rows, **parts), **options).probabilities, answer.probabilities
    )
    to_item, to_annotator, to_class = (
        rng.permutation(number) for number in (rows.num_items, rows.num_annotators, classes)
    )
    to_class = np.roll(np.arange(classes), 1)
    gold = np.full(rows.num_items, -1)
    gold[to_item[:4]] = to_class[truth[:4]]
    codes = to_item[rows.item], to_annotator[rows.annotator], to_class[rows.label]
    renamed = make(*codes, weight=rows.weight, gold=gold, annotators=rows.num_annotators, classes=classes)
    probabilities = FITS[name](renamed, **options).probabilities[to_item][:, to_class]
    np.testing.assert_allclose(probabilities, answer.probabilities, atol=1e-5)


@every_method
def test_a_weight_of_two_is_the_row_twice(name: str) -> None:
    rows, _ = simulate(12, CLASSES[name])
    double = np.arange(rows.item.size) % 3 == 0
    codes = [
        np.r_[getattr(rows, key), getattr(rows, key)[double]]
        for key in ("item", "annotator", "label", "weight")
    ]
    twice = make(
        *codes[:3], weight=codes[3], gold=rows.gold, annotators=rows.num_annotators, classes=rows.num_classes
    )
    weighted = FITS[name](replace(rows, weight=np.where(double, 2, 1) * rows.weight))
    np.testing.assert_allclose(FITS[name](twice).probabilities, weighted.probabilities, atol=1e-6)
    assert np.abs(FITS[name](rows).probabilities - weighted.probabilities).max() > 1e-3
    for table in (twice, rows):
        new = NEW_ITEMS[name](table, weighted.parameters)
        same = NEW_ITEMS[name](
            replace(rows, weight=np.where(double, 2, 1) * rows.weight), weighted.parameters
        )
        assert (np.abs(new - same).max() < 1e-6) == (table is twice)


@every_method
def test_gold_is_certain_and_informs_about_annotators(name: str) -> None:
    rows, truth = simulate(13, CLASSES[name])
    wrong = (truth + 1) % rows.num_classes  # unlikely without gold
    answer, known = FITS[name](rows), FITS[name](with_gold(rows, wrong, 15))
    np.testing.assert_array_equal(known.probabilities[:15], np.eye(rows.num_classes)[wrong[:15]])
    assert np.abs(known.probabilities[15:] - answer.probabilities[15:]).max() > 0.01
    stubborn = FITS[name](replace(with_gold(rows, wrong, 15), weight=3000 * rows.weight))  # no underflow
    np.testing.assert_array_equal(stubborn.probabilities[:15], np.eye(rows.num_classes)[wrong[:15]])
    assert np.isfinite(stubborn.objective).all()
    new = NEW_ITEMS[name](with_gold(rows, wrong, 15), answer.parameters)
    np.testing.assert_array_equal(new[:15], np.eye(rows.num_classes)[wrong[:15]])
    np.testing.assert_array_equal(new[15:], NEW_ITEMS[name](rows, answer.parameters)[15:])


@every_method
def test_annotators_and_items_without_rows_change_nothing(name: str) -> None:
    rows, _ = simulate(14, CLASSES[name])
    wider = replace(rows, gold=np.full(rows.num_items + 2, -1), num_annotators=rows.num_annotators + 3)
    answer, plain = FITS[name](wider, max_iter=50), FITS[name](rows, max_iter=50)
    np.testing.assert_allclose(answer.probabilities[:-2], plain.probabilities, atol=1e-6)
    np.testing.assert_allclose(answer.probabilities[-2:], 1 / rows.num_classes, atol=1e-15)
    idle = {
        "glad": ("ability", 1.0),
        "minimax": ("annotator_score", 0.0),
        "kos": ("annotator_log_odds", 0.0),
    }[name]
    np.testing.assert_array_equal(answer.parameters[idle[0]][-3:], idle[1])
    np.testing.assert_allclose(
        NEW_ITEMS[name](wider, answer.parameters)[-2:], 1 / rows.num_classes, atol=1e-15
    )


@every_method
@pytest.mark.parametrize(
    "table", ["one annotator", "one item", "one row", "all gold", "no rows", "no items", "unanimous"]
)
def test_small_tables_have_finite_results(name: str, table: str) -> None:
    classes = CLASSES[name]
    item, annotator, label, gold = {
        "one annotator": ([0, 1, 2], [0, 0, 0], [0, 1, 1], [-1] * 3),
        "one item": ([0, 0, 0], [0, 1, 2], [0, 1, 1], [-1]),
        "one row": ([0], [0], [1], [-1]),
        "all gold": ([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1], [0, 1]),
        "no rows": ([], [], [], [-1, 1]),
        "no items": ([], [], [], []),
        "unanimous": ([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [1] * 6, [-1] * 3),
    }[table]
    rows = make(item, annotator, label, gold=gold, annotators=max([*annotator, 1]) + 1, classes=classes)
    answer = FITS[name](rows)
    for values in (
        answer.probabilities,
        *answer.parameters.values(),
        answer.objective,
        NEW_ITEMS[name](rows, answer.parameters),
    ):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=1e-12)
    for i, k in enumerate(gold):
        assert k < 0 or answer.probabilities[i, k] == 1
    if table in ("one annotator", "one row", "unanimous"):
        np.testing.assert_array_equal(
            answer.probabilities.argmax(1), np.array(label)[np.searchsorted(item, np.arange(len(gold)))]
        )


@pytest.mark.parametrize("name", RISING)
def test_one_class_is_certain(name: str) -> None:
    rows = make([0, 0, 1], [0, 1, 1], [0, 0, 0], gold=[-1, 0, -1], annotators=2, classes=1)
    answer = FITS[name](rows)
    np.testing.assert_array_equal(answer.probabilities, 1)
    np.testing.assert_array_equal(NEW_ITEMS[name](rows, answer.parameters), 1)
    assert answer.converged


@every_method
def test_new_items_use_the_fitted_annotators(name: str) -> None:
    rows, truth = simulate(15, CLASSES[name], items=200, annotators=12)
    old = rows.item < 100
    first, second = (
        Rows(
            rows.item[part] - start,
            rows.annotator[part],
            rows.label[part],
            rows.weight[part],
            np.full(100, -1),
            rows.num_annotators,
            rows.num_classes,
        )
        for part, start in ((old, 0), (~old, 100))
    )
    new = NEW_ITEMS[name](second, FITS[name](first).parameters)
    np.testing.assert_allclose(new.sum(1), 1, atol=1e-12)
    votes = np.zeros((100, rows.num_classes))
    np.add.at(votes, (second.item, second.label), 1.0)
    assert scores(new, truth[100:])["accuracy"] >= max(0.8, scores(votes, truth[100:])["accuracy"])


PUBLISHED = {
    ("glad", "bluebirds"): 72.22,
    ("glad", "snow_rte"): 92.50,
    ("glad", "snow_temp"): 93.51,
    ("glad", "face"): 62.84,
    ("glad", "product"): 92.83,
    ("minimax", "bluebirds"): 91.67,
    ("minimax", "snow_rte"): 92.38,
    ("minimax", "snow_temp"): 94.37,
    ("minimax", "face"): 65.24,
    ("kos", "bluebirds"): 72.22,
    ("kos", "product"): 89.55,
    ("kos", "d_possent"): 93.30,
}


@pytest.mark.skipif(
    not os.environ.get("PROBCROWD_DATA"), reason="PROBCROWD_DATA is not set: no labels to read"
)
@pytest.mark.parametrize(("name", "folder"), PUBLISHED)
def test_accuracy_on_real_labels_matches_other_implementations(name: str, folder: str) -> None:
    """Within a tenth of a point (ties shared) of independent implementations with the same settings."""
    path = Path(os.environ["PROBCROWD_DATA"], folder)
    annotations = Annotations.from_frame(pd.read_parquet(path / "annotations.parquet"), duplicates="first")
    gold = pd.read_parquet(path / "gold.parquet")
    truth = Rows.from_annotations(annotations, pd.Series(gold["label"].to_numpy(), gold["task"])).gold
    answer = FITS[name](Rows.from_annotations(annotations))
    assert answer.converged
    assert abs(100 * scores(answer.probabilities, truth)["accuracy"] - PUBLISHED[name, folder]) < 0.1

"""Leave-one-out terms against enumeration and the specification's numbers; its densities against exact ones
of a conjugate model.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from annotation_loops import leave_one_annotation_terms
from arviz_stats.loo.loo import loo as arviz_loo

from probcrowd.data.rows import Rows
from probcrowd.inference.checks.leave_one_out import compare_models, loo, relative_efficiency, reliability


def scored(rows: Rows, class_prior: np.ndarray, confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a[i, k] and r[n, k] by loops."""
    scores = np.tile(np.log(class_prior), (rows.num_items, 1))
    row_scores = np.zeros((len(rows.item), rows.num_classes))
    for n, k in np.ndindex(row_scores.shape):
        row_scores[n, k] = math.log(confusion[rows.annotator[n], k, rows.label[n]])
        scores[rows.item[n], k] += rows.weight[n] * row_scores[n, k]
    return scores, row_scores


def probability(
    rows: Rows, class_prior: np.ndarray, confusion: np.ndarray, left_out: int | None = None
) -> float:
    """p(all rows but one), by enumeration of the true classes of all items."""
    total = 0.0
    for truth in itertools.product(range(rows.num_classes), repeat=rows.num_items):
        if all(gold in (-1, k) for gold, k in zip(rows.gold, truth, strict=True)):
            joint = math.prod(class_prior[k] for k in truth)
            for n in range(len(rows.item)):
                if n != left_out:
                    joint *= (
                        confusion[rows.annotator[n], truth[rows.item[n]], rows.label[n]] ** rows.weight[n]
                    )
            total += joint
    return total


def panel(weighted: bool = False) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Six items, one of them without rows, two with gold, one with a row that an annotator repeats."""
    generator = np.random.default_rng(0)
    item = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 5])
    weight = generator.uniform(0.3, 2.5, 10) if weighted else np.ones(10)
    gold = np.array([-1, 2, -1, 1, -1, -1])
    rows = Rows(
        item, np.array([0, 1, 1, 0, 2, 1, 0, 1, 2, 2]), generator.integers(3, size=10), weight, gold, 3, 3
    )
    return rows, generator.dirichlet(np.ones(3)), generator.dirichlet(np.ones(3), (3, 3))


def test_annotation_terms_are_those_of_the_specification() -> None:
    rows = Rows(np.zeros(3, int), np.arange(3), np.array([0, 1, 1]), np.ones(3), np.array([-1]), 3, 2)
    confusion = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
    scores, row_scores = scored(rows, np.array([0.6, 0.4]), confusion)
    assert np.logaddexp.reduce(scores[0]) == pytest.approx(-2.813411, abs=5e-7)
    terms = leave_one_annotation_terms(scores, row_scores, rows)
    np.testing.assert_allclose(terms, [-0.916291, -1.609438, -0.693147], rtol=0, atol=5e-7)
    assert terms.sum() == pytest.approx(-3.218876, abs=5e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_annotation_terms_equal_enumeration(weighted: bool) -> None:
    rows, class_prior, confusion = panel(weighted)
    terms = leave_one_annotation_terms(*scored(rows, class_prior, confusion), rows)
    everything = math.log(probability(rows, class_prior, confusion))
    for n in range(10):
        assert terms[n] == pytest.approx(
            everything - math.log(probability(rows, class_prior, confusion, n)), abs=1e-12
        )
    assert terms[3] == pytest.approx(
        rows.weight[3] * math.log(confusion[0, 2, rows.label[3]])
    )  # gold: other labels have no effect
    assert terms[6] == pytest.approx(rows.weight[6] * math.log(confusion[0, 1, rows.label[6]]))


def test_annotation_terms_of_many_draws_are_those_of_each() -> None:
    rows, _, _ = panel(True)
    generator = np.random.default_rng(1)
    draws = [
        scored(rows, generator.dirichlet(np.ones(3)), generator.dirichlet(np.ones(3), (3, 3)))
        for _ in range(6)
    ]
    scores, row_scores = (np.stack(each).reshape(2, 3, -1, 3) for each in zip(*draws, strict=True))
    before = scores.copy(), row_scores.copy()
    together = leave_one_annotation_terms(scores, row_scores, rows)
    assert together.shape == (2, 3, 10)
    for draw, each in enumerate(draws):
        np.testing.assert_allclose(
            together.reshape(6, 10)[draw], leave_one_annotation_terms(*each, rows), rtol=0, atol=1e-14
        )
    np.testing.assert_array_equal((scores, row_scores)[0], before[0])
    np.testing.assert_array_equal((scores, row_scores)[1], before[1])


def test_impossible_classes_are_allowed_and_impossible_labels_are_not() -> None:
    rows, class_prior, confusion = panel()
    scores, row_scores = scored(rows, class_prior, confusion)
    scores[2, 0] = -np.inf  # class 0 has probability 0 for this item, whatever the labels
    two = replace(rows, num_classes=2, label=np.maximum(rows.label - 1, 0))
    expected = leave_one_annotation_terms(
        scores[:, 1:], row_scores[:, 1:], replace(two, gold=rows.gold - (rows.gold > 0))
    )
    np.testing.assert_allclose(
        leave_one_annotation_terms(scores, row_scores, rows)[4:6], expected[4:6], rtol=0, atol=1e-14
    )
    row_scores[3] = [-np.inf, -np.inf, -1.5]  # a gold item asks for its gold class alone
    row_scores[6] = [-1.0, -np.inf, -1.0]
    terms = leave_one_annotation_terms(scores, row_scores, rows)
    assert terms[3] == -1.5 and terms[6] == -np.inf
    row_scores[4, 1] = -np.inf
    with pytest.raises(ValueError, match="1 row scores are -inf"):
        leave_one_annotation_terms(scores, row_scores, rows)


def all_gold(seed: int = 0, draws: int = 4000) -> tuple[Rows, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows with every truth known; concentrations; counts; exact posterior draws of class prior (c, s, k) and
    confusion (c, s, j, k, l).
    """
    generator = np.random.default_rng(seed)
    items, annotators, classes = 40, 3, 3
    gold = generator.integers(classes, size=items)
    item, annotator = np.repeat(np.arange(items), annotators), np.tile(np.arange(annotators), items)
    label = np.where(
        generator.random(len(item)) < 0.7, gold[item], generator.integers(classes, size=len(item))
    )
    rows = Rows(item, annotator, label, np.ones(len(item)), gold, annotators, classes)
    concentration = np.full((classes, classes), 2.0) + 2 * np.eye(
        classes
    )  # of at least 3 with the row: 1 / p then has a variance
    counts = np.zeros((annotators, classes, classes))
    np.add.at(counts, (annotator, gold[item], label), 1)
    gamma = generator.gamma(np.broadcast_to(concentration + counts, (4, draws // 4, *counts.shape)))
    class_prior = generator.dirichlet(1 + np.bincount(gold, minlength=classes), (4, draws // 4))
    return rows, concentration, counts, class_prior, gamma / gamma.sum(-1, keepdims=True)


def standard_errors(log_likelihood: np.ndarray) -> np.ndarray:
    """Of -log mean(1 / p), what leave-one-out estimates, from independent draws; by the delta method."""
    inverse = np.exp(-log_likelihood).reshape(-1, log_likelihood.shape[-1])
    return inverse.std(0) / inverse.mean(0) / math.sqrt(len(inverse))


def test_left_out_annotations_have_the_exact_predictive_density() -> None:
    rows, concentration, counts, class_prior, confusion = all_gold()
    row_scores = np.log(confusion[:, :, rows.annotator, :, rows.label]).transpose(1, 2, 0, 3)  # (c, s, n, k)
    scores = np.broadcast_to(np.log(class_prior)[:, :, None], (*row_scores.shape[:2], 40, 3))
    terms = leave_one_annotation_terms(scores, row_scores, rows)
    estimate = loo(terms, "annotation", np.arange(100, 220), reff=1.0)
    # Dirichlet-multinomial: the label's count without row n, over the class's
    truth = rows.gold[rows.item]
    exact = np.log(concentration[truth, rows.label] + counts[rows.annotator, truth, rows.label] - 1) - np.log(
        concentration.sum(1)[truth] + counts.sum(2)[rows.annotator, truth] - 1
    )
    assert estimate.elpd_i is not None and list(estimate.elpd_i["annotation"].to_numpy()) == list(
        range(100, 220)
    )
    bounds = 5 * standard_errors(terms)
    assert bounds.max() < 0.1
    assert (np.abs(estimate.elpd_i.to_numpy() - exact) < bounds).all()
    assert estimate.elpd == pytest.approx(exact.sum(), abs=np.sqrt(120) * bounds.max())
    # In-sample densities would not do: the bounds tell them apart
    assert (np.abs(np.log(np.exp(terms).mean((0, 1))) - exact) > bounds).mean() > 0.3


def test_left_out_items_have_the_exact_predictive_density() -> None:
    rows, concentration, counts, class_prior, confusion = all_gold(1)
    log_likelihood = np.log(class_prior[:, :, rows.gold])
    for n in range(len(rows.item)):
        log_likelihood[:, :, rows.item[n]] += np.log(
            confusion[:, :, rows.annotator[n], rows.gold[rows.item[n]], rows.label[n]]
        )
    estimate = loo(log_likelihood, "item")
    of_class = np.bincount(rows.gold)
    exact = np.log(of_class[rows.gold]) - math.log(3 + 40 - 1)
    for n in range(len(rows.item)):
        j, k, label = rows.annotator[n], rows.gold[rows.item[n]], rows.label[n]
        exact[rows.item[n]] += math.log(
            (concentration[k, label] + counts[j, k, label] - 1)
            / (concentration[k].sum() + counts[j, k].sum() - 1)
        )
    bounds = 5 * standard_errors(log_likelihood)
    assert estimate.elpd_i is not None and bounds.max() < 0.15
    assert (np.abs(estimate.elpd_i.to_numpy() - exact) < bounds).all()
    assert "All 40 units" in reliability(estimate) and "0.70" in reliability(estimate)


def autocorrelated(
    units: int, seed: int = 0, chains: int = 4, draws: int = 500, memory: float = 0.8
) -> np.ndarray:
    """Log densities that follow an autoregression, scaled to be easy to smooth."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(chains, draws, units))
    for draw in range(1, draws):
        values[:, draw] = memory * values[:, draw - 1] + math.sqrt(1 - memory**2) * values[:, draw]
    return 0.3 * values - 1


def test_relative_efficiency_is_that_of_the_densities() -> None:
    # The mean of an autoregression of coefficient f has (1 - f) / (1 + f) effective draws per draw
    assert relative_efficiency(autocorrelated(1000)) == pytest.approx(0.2 / 1.8, rel=0.1)
    assert relative_efficiency(autocorrelated(1000, memory=0.0)) == pytest.approx(1, rel=0.05)
    assert relative_efficiency(autocorrelated(30, chains=1, draws=4000)) == pytest.approx(0.2 / 1.8, rel=0.15)
    assert relative_efficiency(np.zeros((4, 100, 0))) == 1
    # exp of one with standard deviation v is less dependent: its autocorrelation at lag t is (exp(v^2 f^t) -
    # 1) / (exp(v^2) - 1)
    lags = np.expm1(1.2**2 * 0.8 ** np.arange(1, 100)) / np.expm1(1.2**2)
    assert relative_efficiency(4 * autocorrelated(1000, draws=2000)) == pytest.approx(
        1 / (1 + 2 * lags.sum()), rel=0.1
    )
    assert 1 / (1 + 2 * lags.sum()) > 1.3 * 0.2 / 1.8
    mixed = np.concatenate(
        [autocorrelated(500), autocorrelated(500, memory=0.0)], 2
    )  # the units that are looked at are spread over all
    assert relative_efficiency(mixed) == pytest.approx((0.2 / 1.8 + 1) / 2, rel=0.1)
    assert relative_efficiency(autocorrelated(20) - 800) == pytest.approx(
        relative_efficiency(autocorrelated(20))
    )  # densities of exp(-800)


def test_loo_is_arviz_own_and_names_its_units() -> None:
    values = autocorrelated(30)
    estimate = loo(values, "item", [f"item {u}" for u in range(30)], reff=0.5)
    tree = xr.DataTree.from_dict(
        {"log_likelihood": xr.Dataset({"x": xr.DataArray(values, dims=("chain", "draw", "item"))})}
    )
    own = arviz_loo(tree, pointwise=True, reff=0.5)
    assert estimate.elpd_i is not None and own.elpd_i is not None
    for name in ("elpd", "se", "p", "good_k", "n_data_points", "n_samples"):
        assert getattr(estimate, name) == getattr(own, name)
    np.testing.assert_array_equal(estimate.pareto_k, own.pareto_k)
    np.testing.assert_array_equal(estimate.elpd_i, own.elpd_i)
    assert list(estimate.elpd_i["item"].to_numpy()) == [f"item {u}" for u in range(30)]
    # The default differs from another efficiency, and a DataArray brings its names in any order of axes
    array = xr.DataArray(values, {"item": np.arange(30) + 5}, ("chain", "draw", "item")).transpose(
        "item", "draw", "chain"
    )
    again = loo(array)
    assert again.elpd_i is not None and list(again.elpd_i["item"].to_numpy()) == list(range(5, 35))
    np.testing.assert_array_equal(again.elpd_i, loo(values, reff=relative_efficiency(values)).elpd_i)
    assert not np.array_equal(again.elpd_i, own.elpd_i)


def test_units_that_never_vary_keep_their_density() -> None:
    values = autocorrelated(6)
    values[..., 2] = -0.7
    values[..., 4] = 1e-16 * np.random.default_rng(0).normal(
        size=(4, 500)
    )  # an item without rows: log 1, but for rounding
    estimate, others = loo(values, reff=1.0), loo(np.delete(values, [2, 4], 2), reff=1.0)
    assert estimate.elpd_i is not None and estimate.pareto_k is not None and others.elpd_i is not None
    assert estimate.elpd_i.to_numpy()[[2, 4]] == pytest.approx([-0.7, 0], abs=1e-12)
    assert estimate.pareto_k.to_numpy()[[2, 4]].tolist() == [0, 0]
    np.testing.assert_array_equal(np.delete(estimate.elpd_i.to_numpy(), [2, 4]), others.elpd_i)
    assert estimate.elpd == pytest.approx(others.elpd - 0.7)
    still = loo(np.full((4, 50, 3), -1.0))
    assert still.elpd == pytest.approx(-3) and still.p == pytest.approx(0, abs=1e-12)


def wild(units: int, bad: int, seed: int = 0) -> np.ndarray:
    """Log densities; in `bad` units 1 / density is Pareto with shape k = 0.85 and has no variance."""
    generator = np.random.default_rng(seed)
    values = autocorrelated(units, memory=0.0)
    values[..., :bad] = -0.85 * generator.exponential(size=(*values.shape[:2], bad))
    return values


def test_unreliable_units_are_reported_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = loo(wild(20, 3))
        lonely = loo(wild(1, 0))
    assert estimate.warning and estimate.pareto_k is not None
    assert "3 of 20 units (15.0%) have a Pareto k above 0.70" in reliability(estimate)
    assert (
        f"highest {float(estimate.pareto_k.max()):.2f}" in reliability(estimate)
        and 0.7 < float(estimate.pareto_k[:3].min()) < 1
    )
    assert "All 1 units" in reliability(lonely)


def test_models_are_compared_in_pairs_of_units() -> None:
    good = wild(50, 0)
    generator = np.random.default_rng(1)
    apart = generator.normal(0.2, 0.1, 50)
    odd = wild(50, 2, seed=1)
    table = compare_models({"worse": good - apart, "good": good, "odd": odd})
    assert (
        table.index.name == "model"
        and table["elpd"].is_monotonic_decreasing
        and table.index.get_loc("good") < table.index.get_loc("worse")
    )
    best = table.index[0]
    singles = {"worse": loo(good - apart), "good": loo(good), "odd": loo(odd)}
    for name, row in table.iterrows():
        single = singles[str(name)]
        assert single.elpd_i is not None and singles[best].elpd_i is not None
        difference = single.elpd_i.to_numpy() - singles[best].elpd_i.to_numpy()
        assert (row["elpd"], row["standard_error"], row["parameters"], row["units"]) == (
            single.elpd,
            single.se,
            single.p,
            50,
        )
        assert row["difference"] == pytest.approx(difference.sum(), abs=1e-9)
        assert row["difference_error"] == pytest.approx(math.sqrt(50) * np.std(difference, ddof=1), abs=1e-9)
        assert row["unreliable"] == (2 if name == "odd" else 0)
    pair = compare_models({"worse": good - apart, "good": good})
    assert (
        pair.loc["worse", "difference"] == pytest.approx(-apart.sum()) and pair.loc["good", "difference"] == 0
    )
    # Paired: the units' own spread, which the two models share, does not matter
    assert (
        pair.loc["worse", "difference_error"] == pytest.approx(math.sqrt(50) * apart.std(ddof=1))
        and pair.loc["good", "difference_error"] == 0
    )
    shuffled = compare_models({"worse": (good - apart)[..., ::-1], "good": good})
    assert shuffled.loc["worse", "difference_error"] > pair.loc["worse", "difference_error"]


def test_models_of_other_units_are_not_compared() -> None:
    values = wild(5, 0)
    named = xr.DataArray(values, {"item": list("abcde")}, ("chain", "draw", "item"))
    assert len(compare_models({"one": named, "two": named.transpose("draw", "item", "chain")})) == 2
    for first, second, message in (
        (
            values,
            values[..., :4],
            "'second' has 4 of unit (0, 1, 2, ...), 'first' has 5 of unit (0, 1, 2, ...)",
        ),
        (
            named,
            named[..., ::-1],
            "'second' has 5 of item (e, d, c, ...), 'first' has 5 of item (a, b, c, ...)",
        ),
        (
            named,
            named.rename(item="annotation"),
            "'second' has 5 of annotation (a, b, c, ...), 'first' has 5 of item (a, b, c, ...)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            compare_models({"first": first, "second": second})


def test_a_single_unit_has_no_error_of_the_difference() -> None:
    values = wild(1, 0)
    table = compare_models({"one": values, "two": values - 1})
    assert table.loc["two", "difference"] == pytest.approx(-1) and table["difference_error"].isna().all()
    assert isinstance(table, pd.DataFrame)

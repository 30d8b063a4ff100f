"""Predictive statistics against loops over rows; their p-values under the true model, and against data that
it does not make.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from probcrowd.data.rows import Rows
from probcrowd.inference.checks import predictive
from probcrowd.inference.checks.predictive import (
    PredictiveCheck,
    Statistic,
    annotator_bias,
    check,
    error_correlation,
    pairwise_agreement,
    predictive_checks,
    row_pairs,
    vote_entropy,
)


@dataclass(frozen=True)
class Crowd:
    """A Dawid-Skene model with known parameters, and who labels what."""

    item: np.ndarray
    annotator: np.ndarray
    class_prior: np.ndarray
    confusion: np.ndarray

    @property
    def num_items(self) -> int:
        return int(self.item[-1]) + 1

    def rows(self, label: np.ndarray) -> Rows:
        return Rows(
            self.item,
            self.annotator,
            label,
            np.ones(len(label)),
            np.full(self.num_items, -1),
            *self.confusion.shape[:2],
        )

    def truth(self, generator: np.random.Generator, replicates: int) -> np.ndarray:
        return generator.choice(len(self.class_prior), (replicates, self.num_items), p=self.class_prior)

    def labels(self, generator: np.random.Generator, truth: np.ndarray) -> np.ndarray:
        bounds = self.confusion.cumsum(-1)[self.annotator, truth[:, self.item]][..., :-1]  # (s, n, l)
        return (generator.random((*bounds.shape[:2], 1)) > bounds).sum(-1)

    def responsibilities(self, labels: np.ndarray) -> np.ndarray:
        joint = np.tile(self.class_prior, (len(labels), self.num_items, 1))
        for n, (i, j) in enumerate(zip(self.item, self.annotator, strict=True)):
            joint[:, i] *= self.confusion[j][:, labels[:, n]].T
        return joint / joint.sum(-1, keepdims=True)


def crowd(
    generator: np.random.Generator, items: int = 120, annotators: int = 5, classes: int = 3, per_item: int = 4
) -> Crowd:
    annotator = np.concatenate([generator.choice(annotators, per_item, replace=False) for _ in range(items)])
    confusion = 0.6 * np.eye(classes) + 0.4 * generator.dirichlet(np.ones(classes), (annotators, classes))
    return Crowd(
        np.repeat(np.arange(items), per_item),
        annotator,
        generator.dirichlet(np.full(classes, 5.0)),
        confusion,
    )


def uneven(seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Rows with an annotator twice on an item, items of one row and of none, an annotator of none; and five
    replicates of labels.
    """
    generator = np.random.default_rng(seed)
    item = np.sort(generator.integers(14, size=60))
    item = np.append(item, [14, 16])  # item 15 has no rows, 14 and 16 have one
    annotator = generator.choice([0, 1, 2, 4], size=62)
    labels = generator.integers(3, size=(5, 62))
    return Rows(item, annotator, labels[0], generator.uniform(0.5, 2, 62), np.full(17, -1), 5, 3), labels


def pairs_by_loops(rows: Rows) -> dict[tuple[int, int], list[tuple[int, int]]]:
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for n, m in itertools.permutations(range(len(rows.item)), 2):
        if rows.item[n] == rows.item[m] and rows.annotator[n] < rows.annotator[m]:
            pairs.setdefault((int(rows.annotator[n]), int(rows.annotator[m])), []).append((n, m))
    return pairs


def everything(rows: Rows, minimum: int = 5) -> predictive.RowPairs:
    return row_pairs(rows, np.random.default_rng(0), minimum=minimum)


@pytest.mark.parametrize("minimum", [1, 15])
def test_row_pairs_are_those_of_two_annotators_on_one_item(minimum: int) -> None:
    rows, _ = uneven()
    expected = pairs_by_loops(rows)
    pairs = everything(rows, minimum)
    bounds = [*pairs.start, len(pairs.left)]
    listed = {
        (int(rows.annotator[pairs.left[start]]), int(rows.annotator[pairs.right[start]])): set(
            zip(pairs.left[start:end].tolist(), pairs.right[start:end].tolist(), strict=True)
        )
        for start, end in itertools.pairwise(bounds)
    }
    assert listed == {names: set(rows_of) for names, rows_of in expected.items()}
    assert len(pairs.left) == sum(map(len, expected.values())) and pairs.note == ""
    shared = [names for names in sorted(expected) if len(expected[names]) >= minimum]
    assert list(map(tuple, pairs.annotators.tolist())) == shared
    assert (0 < len(shared) < len(expected)) == (minimum == 15)
    np.testing.assert_array_equal(
        pairs.sums(np.ones(len(pairs.left))), [len(expected[names]) for names in shared]
    )


def test_row_pairs_beyond_the_limit_are_of_whole_items_at_random() -> None:
    rows, _ = uneven()
    size = np.bincount(rows.item)
    several = set(np.flatnonzero(size > 1).tolist())
    chosen = []
    for seed in range(20):
        pairs = row_pairs(rows, np.random.default_rng(seed), minimum=1, max_pairs=30)
        items = set(rows.item[pairs.left].tolist())
        whole = [(n, m) for both in pairs_by_loops(rows).values() for n, m in both if rows.item[n] in items]
        assert sorted(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)) == sorted(whole)
        assert 0 < len(whole) <= 30 and f"of {len(several)} items, drawn at random" in pairs.note
        chosen.append(frozenset(items))
    assert len(set(chosen)) > 10  # not the same items each time
    again = row_pairs(rows, np.random.default_rng(19), minimum=1, max_pairs=30)
    assert frozenset(rows.item[again.left].tolist()) == chosen[-1]
    largest = int(size.max() * (size.max() - 1) // 2)
    for seed in range(20):  # an item too large for the limit does not end the list, wherever it stands
        without = row_pairs(rows, np.random.default_rng(seed), minimum=1, max_pairs=largest - 1)
        assert len(without.left) and int(size.argmax()) not in rows.item[without.left]


def test_at_most_so_many_pairs_of_annotators_those_with_most_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = uneven()
    monkeypatch.setattr(predictive, "MAX_ENTRIES", 3)
    counts = {names: len(rows_of) for names, rows_of in pairs_by_loops(rows).items()}
    least = sorted(counts.values())[-3]
    chosen = list(map(tuple, everything(rows, 1).annotators.tolist()))
    assert chosen == sorted(chosen) and len(chosen) == 3 and all(counts[names] >= least for names in chosen)


def test_pairwise_agreement_equals_the_loops() -> None:
    rows, labels = uneven()
    result = pairwise_agreement(labels, everything(rows, 15))
    expected = pairs_by_loops(rows)
    assert 3 < len(result.index) < len(expected)  # overall, the others count as well
    for s, given in enumerate(labels):
        for e, names in enumerate(result.index):
            assert result.values[s, e] == pytest.approx(
                np.mean([given[n] == given[m] for n, m in expected[names]]), abs=1e-14
            )
        every = [given[n] == given[m] for both in expected.values() for n, m in both]
        assert result.overall[s] == pytest.approx(np.mean(every), abs=1e-14)


def test_vote_entropy_equals_the_loops() -> None:
    rows, labels = uneven()
    result = vote_entropy(rows, labels)
    assert (
        len(result.index) == 10
        and result.index[0].left == 0
        and result.index[-1].right == pytest.approx(math.log(3))
    )
    for s, given in enumerate(labels):
        entropies = []
        for i in range(17):
            votes = [given[n] for n in range(62) if rows.item[n] == i]
            if len(votes) > 1:
                shares = [votes.count(label) / len(votes) for label in set(votes)]
                entropies.append(-sum(share * math.log(share) for share in shares))
        assert 1 < len(entropies) < 17
        assert result.overall[s] == pytest.approx(np.mean(entropies), abs=1e-14)
        for e, interval in enumerate(result.index):
            inside = [interval.left - 1e-9 <= entropy < interval.right - 1e-9 for entropy in entropies]
            inside = [
                now or (e == 9 and entropy >= interval.right - 1e-9)
                for now, entropy in zip(inside, entropies, strict=True)
            ]
            assert result.values[s, e] == pytest.approx(np.mean(inside), abs=1e-14)


def test_vote_entropy_on_the_edge_of_a_bin_does_not_depend_on_the_names_of_labels() -> None:
    # Two labels of four, equally often: log 2, the edge between the fifth bin and the sixth; and the maximum,
    # log 4
    rows = Rows(
        np.repeat([0, 1], [2, 4]),
        np.array([0, 1, 0, 1, 2, 3]),
        np.zeros(6, int),
        np.ones(6),
        np.full(2, -1),
        4,
        4,
    )
    labels = np.array([[*two, 0, 1, 2, 3] for two in itertools.permutations(range(4), 2)])
    expected = np.zeros((12, 10))
    expected[:, [5, 9]] = 0.5
    np.testing.assert_array_equal(vote_entropy(rows, labels).values, expected)
    # Three labels of nine: log 3 / log 9 is 1/2, and less than that as computed
    three = Rows(np.zeros(3, int), np.arange(3), np.arange(3), np.ones(3), np.full(1, -1), 3, 9)
    assert vote_entropy(three, three.label[None]).values[0].tolist() == np.eye(10)[5].tolist()


def test_annotator_bias_equals_the_loops() -> None:
    rows, labels = uneven()
    result = annotator_bias(rows, labels)
    assert list(result.index) == [
        (j, label) for j in (0, 1, 2, 4) for label in range(3)
    ] and result.index.names == ["annotator", "given_label"]
    for s, given in enumerate(labels):
        for e, (j, label) in enumerate(result.index):
            assert result.values[s, e] == pytest.approx(
                np.mean([given[n] == label for n in range(62) if rows.annotator[n] == j]), abs=1e-14
            )
        frequency = dict(zip(result.index, result.values[s], strict=True))
        spread = [
            sum((frequency[rows.annotator[n], label] - np.mean(given == label)) ** 2 for label in range(3))
            for n in range(62)
        ]
        assert result.overall[s] == pytest.approx(np.mean(spread), abs=1e-14)


def correlation_by_loops(rows: Rows, given: np.ndarray, q: np.ndarray, both: list[tuple[int, int]]) -> float:
    def residual(n: int, k: int) -> float:
        same = [m for m in range(len(given)) if rows.annotator[m] == rows.annotator[n]]
        mass = sum(q[rows.item[m], k] for m in same)
        return (
            (given[n] != k) - sum(q[rows.item[m], k] * (given[m] != k) for m in same) / mass if mass else 0.0
        )

    above = left = right = 0.0
    for n, m in both:
        for k in range(q.shape[1]):
            weight = q[rows.item[n], k]
            above += weight * residual(n, k) * residual(m, k)
            left += weight * residual(n, k) ** 2
            right += weight * residual(m, k) ** 2
    return above / math.sqrt(left * right) if left * right else 0.0


@pytest.mark.parametrize("known", [False, True])
def test_error_correlation_equals_the_loops(known: bool) -> None:
    rows, labels = uneven()
    generator = np.random.default_rng(1)
    codes = generator.integers(3, size=(5, 17))
    labels[3, rows.annotator == 1] = codes[3, rows.item[rows.annotator == 1]]  # never errs
    labels[4, rows.annotator == 2] = 0  # always says the same
    q = np.eye(3)[codes] if known else generator.dirichlet(np.full(3, 0.5), (5, 17))
    result = error_correlation(rows, labels, codes if known else q, everything(rows, 15))
    expected = pairs_by_loops(rows)
    never, same = (np.array([j in names for names in result.index]) for j in (1, 2))
    assert never.any() and same.any() and result.values[2].all()
    assert not result.values[4, same].any()
    for s, given in enumerate(labels):
        for e, names in enumerate(result.index):
            if s < 4 or not same[e]:  # there the loops divide one rounding error by another
                assert result.values[s, e] == pytest.approx(
                    correlation_by_loops(rows, given, q[s], expected[names]), abs=1e-12
                )
        every = [pair for both in expected.values() for pair in both]
        assert result.overall[s] == pytest.approx(correlation_by_loops(rows, given, q[s], every), abs=1e-12)
    if known:
        assert not result.values[3, never].any()
        np.testing.assert_allclose(
            error_correlation(rows, labels, q, everything(rows, 15)).values, result.values, rtol=0, atol=1e-12
        )


def statistic(values: list[list[float]]) -> Statistic:
    array = np.array(values)
    return Statistic(array, pd.RangeIndex(array.shape[1]), array.sum(1), "(a note)")


def test_check_counts_tails_by_hand() -> None:
    # Nine replicates of five entries: a middle value, one above all, a tie with all that never varies, the
    # highest, one below all
    replicated = [[float(s), float(s), 1.0, float(s), float(s)] for s in range(9)]
    result = check(statistic([[4.0, 20.0, 1.0, 8.0, -1.0]]), statistic(replicated))
    assert result.table["p"].tolist() == pytest.approx([1.0, 2 / 10, 1.0, 4 / 10, 2 / 10])
    assert result.table["observed"].tolist() == [4, 20, 1, 8, -1] and result.table["mean"].tolist() == [
        4,
        4,
        1,
        4,
        4,
    ]
    varies = np.array([1, 1, 0, 1, 1])
    np.testing.assert_allclose(result.table["lower"], np.quantile(range(9), 0.025) * varies + 1 - varies)
    np.testing.assert_allclose(result.table["upper"], np.quantile(range(9), 0.975) * varies + 1 - varies)
    assert result.outside == 3 / 5 and result.note == "(a note)"
    assert result.overall["observed"] == 32 and result.overall["p"] == pytest.approx(4 / 10)
    assert "p = 0.1," in str(result) and "60.0% of 5 entries" in str(result) and "(a note)" in str(result)


def test_check_discrepancy_treats_all_data_sets_alike() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(30, 4)) * [1, 10, 100, 0]
    scaled = [(values[:, e] - values[:, e].mean()) ** 2 / values[:, e].var() for e in range(3)]
    discrepancy = np.sum(scaled, axis=0)
    p_values = []
    for observed in range(30):
        others = np.delete(values, observed, 0)
        p_values.append(check(statistic([values[observed].tolist()]), statistic(others.tolist())).p_value)
        assert p_values[-1] == pytest.approx(np.mean(discrepancy >= discrepancy[observed]))
    assert sorted(p_values) == pytest.approx([rank / 30 for rank in range(1, 31)])  # exactly uniform


def test_an_entry_that_only_the_observed_value_moves_counts() -> None:
    result = check(statistic([[0.5, 0.0]]), statistic([[0.0, 0.0]] * 19))
    assert result.p_value == 1 / 20 and result.outside == 1 / 2
    still = check(statistic([[0.0, 0.0]]), statistic([[0.0, 0.0]] * 19))
    assert still.p_value == 1 and still.outside == 0


def test_items_of_one_row_each_leave_nothing_to_compare() -> None:
    rows = Rows(
        np.arange(4), np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]), np.ones(4), np.full(4, -1), 2, 2
    )
    labels = np.random.default_rng(0).integers(2, size=(9, 4))
    results = predictive_checks(
        rows, labels, np.full((4, 2), 0.5), labels, generator=np.random.default_rng(0)
    )
    for name in ("pairwise_agreement", "vote_entropy", "error_correlation"):
        assert (
            results[name].table.empty
            and math.isnan(results[name].p_value)
            and math.isnan(results[name].overall["p"])
        )
        assert "no entries" in str(results[name])
    assert len(results["annotator_bias"].table) == 4 and results["annotator_bias"].p_value > 0


def test_pairs_of_many_annotators_in_small_integers() -> None:
    """The code of a pair of annotators does not fit into 32 bits, though the annotators do."""
    item, annotator = (
        np.repeat(np.arange(5), 2).astype(np.int32),
        np.tile([69_999, 60_000], 5).astype(np.int32),
    )
    pairs = everything(Rows(item, annotator, np.zeros(10, int), np.ones(10), np.full(5, -1), 70_000, 2))
    assert pairs.annotators.tolist() == [[60_000, 69_999]] and pairs.left.tolist() == [1, 3, 5, 7, 9]


def test_annotators_who_share_few_items_still_have_an_overall_agreement() -> None:
    rows = Rows(np.repeat([0, 1], 2), np.arange(4), np.array([0, 0, 1, 0]), np.ones(4), np.full(2, -1), 4, 2)
    result = pairwise_agreement(rows.label[None], everything(rows))
    assert result.values.shape == (1, 0) and result.overall.tolist() == [0.5]


def checks(
    model: Crowd, generator: np.random.Generator, labels: np.ndarray, scored: str = "posterior"
) -> dict[str, PredictiveCheck]:
    """The checks of observed labels against 99 replicates of the model for new items."""
    truth = model.truth(generator, 99)
    replicated = model.labels(generator, truth)
    scores = model.responsibilities(replicated) if scored == "posterior" else truth
    return predictive_checks(
        model.rows(labels), replicated, model.responsibilities(labels[None])[0], scores, generator=generator
    )


def test_p_values_are_uniform_under_the_true_model() -> None:
    generator = np.random.default_rng(1)
    values = []
    for _ in range(100):
        model = crowd(generator)
        results = checks(model, generator, model.labels(generator, model.truth(generator, 1))[0])
        values.append({name: each.p_value for name, each in results.items()})
        values[-1] |= {f"{name}, overall": float(each.overall["p"]) for name, each in results.items()}
    table = pd.DataFrame(values)
    assert len(table.columns) == 8
    for name, column in table.items():
        assert kstest(column, "uniform").pvalue > 0.005, name  # eight tests: a false alarm for 4 of 100 seeds


def test_which_truth_scores_the_errors_of_replicates() -> None:
    """Their true classes make the check milder. The responsibilities of other labels reject the true model,
    so they are not offered.
    """
    generator = np.random.default_rng(2)
    by_truth, by_other = [], []
    for _ in range(40):
        model = crowd(generator)
        truth = model.truth(generator, 100)
        labels = model.labels(generator, truth)
        rows, pairs, q = (
            model.rows(labels[0]),
            everything(model.rows(labels[0])),
            model.responsibilities(labels[:1]),
        )
        observed = error_correlation(rows, labels[:1], q, pairs)
        by_truth.append(check(observed, error_correlation(rows, labels[1:], truth[1:], pairs)).p_value)
        by_other.append(
            check(
                observed, error_correlation(rows, labels[1:], np.broadcast_to(q, (99, *q.shape[1:])), pairs)
            ).p_value
        )
    assert np.mean(np.array(by_truth) < 0.1) < 0.1 and np.median(by_truth) > 0.6
    assert np.mean(np.array(by_other) < 0.05) > 0.9
    without = predictive_checks(rows, labels[1:], q[0], generator=generator)
    assert list(without) == ["pairwise_agreement", "vote_entropy", "annotator_bias"]


@pytest.mark.parametrize("scored", ["posterior", "truth"])
@pytest.mark.parametrize("copied", [0.0, 0.7])
def test_copied_labels_are_detected(copied: float, scored: str) -> None:
    generator = np.random.default_rng(3)
    model = crowd(generator, items=300)
    labels = model.labels(generator, model.truth(generator, 1))[0]
    for i in range(300):
        of = {int(model.annotator[n]): n for n in np.flatnonzero(model.item == i)}
        if 1 in of and 2 in of and generator.random() < copied:
            labels[of[2]] = labels[of[1]]
    results = checks(model, generator, labels, scored)
    for name in ("pairwise_agreement", "error_correlation"):
        table = results[name].table
        if copied:
            assert (
                results[name].p_value == 1 / 100
                and table["p"].idxmin() == (1, 2)
                and table.loc[(1, 2), "observed"] > table.loc[(1, 2), "upper"]
            )
        else:
            assert results[name].p_value > 0.05 and table.loc[(1, 2), "p"] > 0.05


@pytest.mark.parametrize("spread", [0.0, 0.35])
def test_items_that_differ_in_difficulty_are_detected(spread: float) -> None:
    generator = np.random.default_rng(4)
    model = crowd(generator, items=300)
    mean = np.full((3, 3), 0.15) + 0.55 * np.eye(3)
    model = replace(model, confusion=np.tile(mean, (5, 1, 1)))
    truth = model.truth(generator, 1)
    odd = model.item % 2 == 1
    easy, hard = (
        replace(model, confusion=model.confusion + shift * (1.5 * np.eye(3) - 0.5))
        for shift in (0.75 * spread, -0.75 * spread)
    )
    labels = np.where(
        odd, easy.labels(generator, truth)[0], hard.labels(generator, truth)[0]
    )  # half of the items each: the mean is the model's
    results = checks(model, generator, labels)
    assert (results["vote_entropy"].p_value == 1 / 100) == (spread > 0)
    assert (results["vote_entropy"].outside > 0.1) == (spread > 0)
    assert (results["error_correlation"].overall["p"] == 2 / 100) == (
        spread > 0
    )  # and all annotators err on the same items


@pytest.mark.parametrize("biased", [False, True])
def test_an_annotator_with_another_bias_is_detected(biased: bool) -> None:
    generator = np.random.default_rng(5)
    pooled = crowd(generator, items=300)
    pooled = replace(pooled, confusion=np.tile(pooled.confusion[:1], (5, 1, 1)))
    own = pooled.confusion.copy()
    if biased:
        own[3] = 0.7 * own[3] + 0.3 * np.array([0, 0, 1])  # says the last label too often, whatever the truth
    labels = replace(pooled, confusion=own).labels(generator, pooled.truth(generator, 1))[0]
    result = checks(pooled, generator, labels)["annotator_bias"]
    assert (result.p_value == 1 / 100) == biased
    assert (result.overall["p"] == 2 / 100) == biased
    assert (result.table.loc[(3, 2), "observed"] > result.table.loc[(3, 2), "upper"]) == biased


def test_the_options_for_pairs_are_applied() -> None:
    rows, labels = uneven()
    q = np.full((17, 3), 1 / 3)
    usual, few, some = (
        predictive_checks(rows, labels, q, generator=np.random.default_rng(0), **options)[
            "pairwise_agreement"
        ]
        for options in ({}, {"minimum": 15}, {"max_pairs": 30})
    )
    assert 0 < len(few.table) < len(usual.table) and usual.note == "" and "at random" in some.note


def test_weights_are_ignored() -> None:
    rows, labels = uneven()
    plain = replace(rows, weight=np.ones(62))
    one, other = (
        predictive_checks(
            each, labels, np.full((17, 3), 1 / 3), labels[:, :17], generator=np.random.default_rng(0)
        )
        for each in (rows, plain)
    )
    for name in one:
        pd.testing.assert_frame_equal(one[name].table, other[name].table)


@pytest.mark.parametrize("kind", [np.int16, np.int64])
def test_labels_may_be_small_integers(kind: type) -> None:
    """Annotators times classes would not fit into the labels' type."""
    item = np.repeat(np.arange(3), 20_000)
    annotator = np.tile(np.arange(20_000), 3)
    labels = np.random.default_rng(0).integers(3, size=(1, 60_000)).astype(kind)
    rows = Rows(item, annotator, labels[0], np.ones(60_000), np.full(3, -1), 20_000, 3)
    compute: Callable[..., Statistic] = annotator_bias
    assert compute(rows, labels).values.reshape(-1, 3).sum(1) == pytest.approx(1.0)
    assert vote_entropy(rows, labels).overall[0] == pytest.approx(math.log(3), abs=1e-3)

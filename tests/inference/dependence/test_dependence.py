"""Copying rates against loops over row pairs.

Independent annotators and honest experts raise no alarm; copies are detected even in the majority.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probcrowd.data.rows import Rows
from probcrowd.data.table import Cells, Packed
from probcrowd.inference.dependence.cliques import commonest
from probcrowd.inference.dependence.dependence import Dependence, dependence
from probcrowd.inference.dependence.report import near_duplicates, sentences

COLUMNS = ["annotator", "other", "items", "agreement", "expected", "copying", "z", "near_duplicate"]


def ratings(labels: np.ndarray, num_classes: int) -> Rows:
    """Rows from a matrix of items x annotators."""
    items, annotators = labels.shape
    item, annotator = np.repeat(np.arange(items), annotators), np.tile(np.arange(annotators), items)
    return Rows(
        item, annotator, labels.ravel(), np.ones(labels.size), np.full(items, -1), annotators, num_classes
    )


def coins(accuracy: Any, num_classes: int) -> np.ndarray:
    """Tables (j, l, k) of annotators whose wrong labels are equally likely."""
    accuracy = np.asarray(accuracy, float)[:, None, None]
    return (1 - accuracy) / max(num_classes - 1, 1) + (
        accuracy - (1 - accuracy) / max(num_classes - 1, 1)
    ) * np.eye(num_classes)


def drawn(generator: np.random.Generator, tables: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Labels of every item by every annotator (i, j)."""
    below = tables.cumsum(1)[:, :-1, truth]  # (j, l, i)
    return (generator.random((len(tables), 1, len(truth))) > below).sum(1).T


def em(rows: Rows, steps: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Dawid and Skene's tables (j, l, k) and class prior, from the vote shares."""
    q = np.full((rows.num_items, rows.num_classes), 1e-3)
    np.add.at(q, (rows.item, rows.label), 1.0)
    for _ in range(steps):
        q /= q.sum(1, keepdims=True)
        counts, class_prior = (
            np.full((rows.num_annotators, rows.num_classes, rows.num_classes), 0.01),
            q.mean(0),
        )
        np.add.at(counts, (rows.annotator, rows.label), q[rows.item])
        tables = counts / counts.sum(1, keepdims=True)
        logs = np.tile(np.log(class_prior), (rows.num_items, 1))
        np.add.at(logs, rows.item, np.log(tables[rows.annotator, rows.label]))
        q = np.exp(logs - logs.max(1, keepdims=True))
    return tables, class_prior


def checked(rows: Rows, tables: np.ndarray, class_prior: np.ndarray, **knobs: Any) -> Dependence:
    """Run the check on the cells that occur, in random order."""
    num_labels = tables.shape[1]
    code = rows.annotator * num_labels + rows.label
    occurring = np.random.default_rng(1).permutation(np.unique(code))
    cell = np.argsort(occurring)[np.searchsorted(np.sort(occurring), code)]
    annotator, label = np.divmod(occurring, num_labels)
    generator = np.random.default_rng(2)
    cells = Cells(annotator, label, rows.num_annotators, num_labels, rows.num_classes)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows.item, minlength=rows.num_items))])
    packed = Packed(starts, cell.astype(np.int32), rows.weight, rows.gold.astype(np.int32))
    return dependence(packed, cells, tables[annotator, label], class_prior, generator=generator, **knobs)


def fitted(rows: Rows, **knobs: Any) -> Dependence:
    return checked(rows, *em(rows), **knobs)


def uneven(seed: int, gold: bool = False) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Weighted rows with a repeated pair, a label that is no class, short items; tables; class prior."""
    generator = np.random.default_rng(seed)
    item = np.sort(
        np.append(generator.integers(12, size=50), [13, 15, 15])
    )  # items 12 and 14 have no rows, 13 has one
    annotator, label = (
        generator.integers(5, size=53),
        generator.integers(4, size=53),
    )  # annotator 5 has no rows, label 3 is no class
    label[annotator == 1] = generator.integers(2, size=(annotator == 1).sum())
    known = (
        np.where(generator.random(16) < 0.4, generator.integers(3, size=16), -1) if gold else np.full(16, -1)
    )
    rows = Rows(item, annotator, label, generator.uniform(0.3, 2, 53), known, 6, 3)
    tables = generator.dirichlet(np.ones(4), (6, 3)).transpose(0, 2, 1)
    tables[0, 2, :2] = 0  # impossible for two classes, yet it occurs
    return rows, tables, generator.dirichlet(np.ones(3))


def by_loops(
    rows: Rows, tables: np.ndarray, class_prior: np.ndarray
) -> list[tuple[int, int, int, float, float]]:
    """(item, annotator, other, agree, p) of every row pair."""
    result, used = [], {(int(j), int(label)) for j, label in zip(rows.annotator, rows.label, strict=True)}
    shares = (
        np.array(
            [[[(j, label) in used for label in range(tables.shape[1])]] for j in range(len(tables))]
        ).transpose(0, 2, 1)
        * tables
    )
    shares = shares / np.where(shares.sum(1, keepdims=True) > 0, shares.sum(1, keepdims=True), 1)
    for n, m in itertools.combinations(range(len(rows.item)), 2):
        i, (j, other) = rows.item[n], sorted(rows.annotator[[n, m]])
        if rows.item[m] != i or j == other:
            continue
        q = class_prior.copy()
        for rest in range(len(rows.item)):
            if rows.item[rest] == i and rest not in (n, m):
                q *= np.maximum(tables[rows.annotator[rest], rows.label[rest]], 1e-30) ** rows.weight[rest]
        q = q / q.sum() if rows.gold[i] < 0 else np.eye(rows.num_classes)[rows.gold[i]]
        p = sum(q[k] * (shares[j, :, k] * shares[other, :, k]).sum() for k in range(rows.num_classes))
        result.append((int(i), int(j), int(other), float(rows.label[n] == rows.label[m]), float(p)))
    return result


@pytest.mark.parametrize(("seed", "gold"), [(0, False), (1, True), (2, False), (3, True)])
def test_rates_match_loops_over_row_pairs(seed: int, gold: bool) -> None:
    rows, tables, class_prior = uneven(seed, gold)
    result = checked(rows, tables, class_prior, minimum=2)
    table = pd.DataFrame(
        by_loops(rows, tables, class_prior), columns=["item", "annotator", "other", "agree", "p"]
    )
    over, slack = table["agree"] - table["p"], 1 - table["p"]
    rate = over.sum() / slack.sum()
    assert result.residual == pytest.approx(rate, abs=1e-10)
    squares, items = ((over - rate * slack).groupby(table["item"]).sum() ** 2).sum(), table["item"].nunique()
    variance = max(squares * items / (items - 1), (table["p"] * slack).sum())
    assert result.residual_error == pytest.approx(math.sqrt(variance) / slack.sum(), rel=1e-10)
    assert [result.agreement, result.expected] == pytest.approx([table["agree"].mean(), table["p"].mean()])
    size = np.bincount(rows.item)
    labels = size[size > 1].mean()
    assert result.labels_per_item == pytest.approx(labels)
    assert result.effective_annotators == pytest.approx(labels / (1 + (labels - 1) * max(rate, 0)))
    groups = {names: group for names, group in table.groupby(["annotator", "other"]) if len(group) >= 2}
    assert list(result.pairs.columns) == COLUMNS and len(result.pairs) == len(groups)
    assert result.pairs["z"].is_monotonic_decreasing  # none is a near duplicate
    for pair in result.pairs.itertuples():
        group = groups[pair.annotator, pair.other]
        over = group["agree"] - group["p"]
        z = over.sum() / math.sqrt(max((group["p"] * (1 - group["p"])).sum(), (over**2).sum()))
        assert pair.items == len(group) and not pair.near_duplicate
        values = [pair.agreement, pair.expected, pair.copying, pair.z]
        assert values == pytest.approx(
            [group["agree"].mean(), group["p"].mean(), over.sum() / (1 - group["p"]).sum(), z], abs=1e-10
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("items", "annotators", "classes", "per_item"), [(150, 8, 2, 8), (300, 12, 4, 12), (800, 40, 3, 5)]
)
def test_independent_annotators_raise_no_alarm(
    seed: int, items: int, annotators: int, classes: int, per_item: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = ratings(
        drawn(
            generator,
            coins(generator.uniform(0.55, 0.95, annotators), classes),
            generator.integers(classes, size=items),
        ),
        classes,
    )
    some = np.sort(
        np.concatenate(
            [i * annotators + generator.choice(annotators, per_item, replace=False) for i in range(items)]
        )
    )
    rows = Rows(
        rows.item[some],
        rows.annotator[some],
        rows.label[some],
        rows.weight[some],
        rows.gold,
        annotators,
        classes,
    )
    result = fitted(rows)
    assert abs(result.residual) < 0.03 and result.residual < 2 * result.residual_error
    assert not result.pairs["near_duplicate"].any()
    assert sentences(result, pd.RangeIndex(annotators)) == []


def test_a_known_copying_rate_is_recovered_within_its_standard_error() -> None:
    deviations, tables = [], coins([0.7, 0.7], 3)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        labels = drawn(generator, tables, generator.integers(3, size=300))
        labels[:, 1] = np.where(generator.random(300) < 0.3, labels[:, 0], labels[:, 1])
        result = checked(ratings(labels, 3), tables, np.full(3, 1 / 3))
        deviations.append((result.residual - 0.3) / result.residual_error)
    assert abs(np.mean(deviations)) < 4 / math.sqrt(40) and 0.7 < np.std(deviations) < 1.35


def test_only_the_pair_that_copies_has_a_rate_under_the_true_tables() -> None:
    generator, tables = np.random.default_rng(0), coins([0.7, 0.7, 0.8, 0.75, 0.8], 2)
    labels = drawn(generator, tables, generator.integers(2, size=4000))
    labels[:, 1] = np.where(generator.random(4000) < 0.3, labels[:, 0], labels[:, 1])
    pairs = checked(ratings(labels, 2), tables, np.full(2, 0.5)).pairs.set_index(["annotator", "other"])
    assert pairs.index[0] == (0, 1) and pairs["z"].iloc[0] > 10
    # The model overrates the copied labels, so it expects slightly too much agreement among the others
    assert pairs.loc[(0, 1), "copying"] == pytest.approx(0.3, abs=0.08)
    assert pairs["copying"].iloc[1:].abs().max() < 0.1 and not pairs["near_duplicate"].any()


def copied(
    generator: np.random.Generator,
    copies: int,
    accuracy: float,
    others: list[float],
    items: int,
    slips: float = 0.0,
) -> Rows:
    labels = drawn(generator, coins([accuracy] * copies + others, 2), generator.integers(2, size=items))
    labels[:, :copies] = np.where(
        generator.random((items, copies)) < slips, labels[:, :copies], labels[:, :1]
    )
    return ratings(labels, 2)


@pytest.mark.parametrize("slips", [0.0, 0.04])
@pytest.mark.parametrize("seed", range(3))
def test_copies_in_the_majority_are_reported_though_the_fit_trusts_them(seed: int, slips: float) -> None:
    rows = copied(np.random.default_rng(seed), 6, 0.62, [0.85] * 3, 200, slips)
    tables, class_prior = em(rows)
    assert tables[:6, [0, 1], [0, 1]].min() > 0.9  # the fit takes copies for accurate
    result = checked(rows, tables, class_prior)
    assert near_duplicates(result) == [[0, 1, 2, 3, 4, 5]]
    assert result.pairs["expected"].iloc[:15].to_numpy() == pytest.approx(
        0.5 + 0.24**2 / 2, abs=0.12
    )  # chance, plus a share c^2 of the rest
    assert result.effective_annotators < 3
    beyond, copies = sentences(result, pd.Index([f"bot {j}" for j in range(6)] + ["zoe", "bea", "cem"]))
    assert "copying rate" in beyond and "9.0 labels per item carry" in beyond
    assert (
        "bot 0, bot 1, bot 2, bot 3, bot 4, bot 5;" in copies
        and "zoe" not in copies
        and "keep one of each group" in copies
    )


def test_the_label_of_a_clique_is_its_commonest_the_first_of_equals() -> None:
    result = commonest(np.array([0, 0, 0, 2, 2, 3, 3, 3]), np.array([1, 1, 0, 1, 0, 2, 0, 2]), 4)
    assert result.tolist() == [1, -1, 0, 2]


def test_the_best_of_many_pairs_must_exceed_chance() -> None:
    labels = np.random.default_rng(0).integers(2, size=(13, 90))
    pairs = checked(ratings(labels, 2), np.full((90, 2, 2), 0.5), np.full(2, 0.5)).pairs
    assert len(pairs) == 4005 and pairs["agreement"].max() == 1 and not pairs["near_duplicate"].any()


def test_two_copies_among_many_are_detected_by_their_rate() -> None:
    result = fitted(copied(np.random.default_rng(0), 2, 0.75, np.linspace(0.6, 0.9, 8).tolist(), 300))
    assert near_duplicates(result) == [[0, 1]]
    assert result.pairs["copying"].iloc[0] == pytest.approx(1)
    assert len(sentences(result, pd.RangeIndex(10))) == 1  # the labels of the others lose no worth


def test_many_groups_are_counted_and_large_ones_truncated() -> None:
    ends = [(j, j + 1) for j in range(11)] + [(20 + 2 * g, 21 + 2 * g) for g in range(6)]
    pairs = pd.DataFrame(
        [(*pair, 20, 1.0, 0.5, 1.0, 9.0, True) for pair in ends] + [(12, 13, 20, 0.5, 0.5, 0.0, 0.0, False)],
        columns=COLUMNS,
    )
    (sentence,) = sentences(Dependence(0.01, 0.01, 9.0, 8.0, 0.7, 0.7, pairs, ""), pd.RangeIndex(40))
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...; 20, 21; 22, 23; 24, 25; 26, 27; and 2 more groups" in sentence


def test_items_that_are_hard_for_all_lower_the_effective_number() -> None:
    generator = np.random.default_rng(0)
    truth, hard = generator.integers(2, size=600), generator.random(600) < 0.35
    easy = drawn(generator, coins([0.92] * 10, 2), truth)
    trap = drawn(
        generator, coins([0.85] * 10, 2), generator.integers(2, size=600)
    )  # they agree on a random class
    rows = ratings(np.where(hard[:, None], trap, easy), 2)
    seen = replace(rows, gold=truth)  # the model cannot distinguish these items, gold can
    tables = np.stack(
        [
            [np.bincount(rows.label[rows.annotator == j][truth == k], minlength=2) for k in range(2)]
            for j in range(10)
        ]
    )
    tables = (tables / tables.sum(2, keepdims=True)).transpose(0, 2, 1)
    result = checked(seen, tables, np.full(2, 0.5))
    assert (
        result.effective_annotators < 5 and "10.0 labels per item" in sentences(result, pd.RangeIndex(10))[0]
    )
    assert not result.pairs["near_duplicate"].any()
    crowd = drawn(
        generator, coins([1.0] * 2 + [0.7] * 8, 2), truth
    )  # two experts, right where the others share errors
    trapped = generator.random((600, 10)) < np.where(np.arange(10) < 2, 0, 0.5)
    result = fitted(ratings(np.where(trapped, drawn(generator, coins([0.7], 2), truth), crowd), 2))
    assert (
        result.residual > 3 * result.residual_error
        and result.effective_annotators < 0.6 * result.labels_per_item
    )


@pytest.mark.parametrize(
    "accuracy",
    [[0.99] * 9, [0.99] * 9 + [0.6] * 3, [1.0, 1.0, 0.6, 0.65, 0.7, 0.75, 0.6], [1.0, 1.0] + [0.5] * 6],
)
@pytest.mark.parametrize("seed", range(3))
def test_experts_are_not_reported_as_copies(seed: int, accuracy: list[float]) -> None:
    generator = np.random.default_rng(seed)
    result = fitted(ratings(drawn(generator, coins(accuracy, 2), generator.integers(2, size=250)), 2))
    assert not result.pairs["near_duplicate"].any()
    assert sentences(result, pd.RangeIndex(len(accuracy))) == []


@pytest.mark.parametrize("smoothing", [0.001, 0.5])
def test_experts_who_never_disagree_are_not_reported(smoothing: float) -> None:
    labels = np.repeat(np.random.default_rng(0).integers(2, size=(300, 1)), 6, axis=1)
    wrong = smoothing / (150 + 2 * smoothing)
    result = checked(
        ratings(labels, 2),
        np.broadcast_to(np.array([[1 - wrong, wrong], [wrong, 1 - wrong]]), (6, 2, 2)),
        np.full(2, 0.5),
    )
    assert result.agreement == 1 and result.residual == pytest.approx(1)
    assert sentences(result, pd.RangeIndex(6)) == []


def test_tables_without_pairs_give_nan_and_no_warning() -> None:
    one = np.zeros(1, np.int64)
    for item, annotator in (
        (np.arange(4), np.zeros(4, int)),
        (one, one),
        (np.zeros(3, int), np.zeros(3, int)),
        (one[:0], one[:0]),
    ):
        rows = Rows(item, annotator, 0 * item, np.ones(len(item)), np.full(4, -1), 2, 2)
        result = checked(rows, coins([0.8, 0.7], 2), np.full(2, 0.5))
        assert math.isnan(result.residual) and math.isnan(result.effective_annotators)
        assert list(result.pairs.columns) == COLUMNS and result.pairs.empty
        assert sentences(result, pd.RangeIndex(2)) == []


def test_one_class_leaves_no_room_for_more_agreement() -> None:
    result = checked(ratings(np.zeros((30, 3), int), 1), np.ones((3, 1, 1)), np.ones(1))
    assert math.isnan(result.residual) and result.labels_per_item == 3
    assert result.pairs["copying"].isna().all() and (result.pairs["z"] == 0).all()
    assert sentences(result, pd.RangeIndex(3)) == []


def test_one_item_has_a_rate_but_no_standard_error() -> None:
    result = checked(ratings(np.array([[0, 0, 1]]), 2), coins([0.8, 0.7, 0.6], 2), np.full(2, 0.5), minimum=1)
    assert math.isfinite(result.residual) and math.isnan(result.residual_error) and len(result.pairs) == 3
    assert sentences(result, pd.RangeIndex(3)) == []


def test_names_and_order_change_nothing() -> None:
    rows = copied(np.random.default_rng(0), 6, 0.62, [0.85] * 3, 150, 0.04)
    tables, class_prior = em(rows)
    before, generator = checked(rows, tables, class_prior), np.random.default_rng(1)
    items, names = generator.permutation(150), generator.permutation(9)
    order = np.lexsort(
        (generator.random(len(rows.item)), items[rows.item])
    )  # by the new item, within it at random
    renamed = Rows(
        items[rows.item][order], names[rows.annotator][order], rows.label[order], rows.weight, rows.gold, 9, 2
    )
    after = checked(renamed, tables[np.argsort(names)], class_prior)
    assert after.residual == pytest.approx(before.residual) and after.residual_error == pytest.approx(
        before.residual_error
    )
    expected = before.pairs.assign(
        annotator=names[before.pairs["annotator"]], other=names[before.pairs["other"]]
    )
    expected[["annotator", "other"]] = np.sort(expected[["annotator", "other"]].to_numpy(), axis=1)
    by = ["annotator", "other"]
    pd.testing.assert_frame_equal(
        after.pairs.sort_values(by, ignore_index=True),
        expected.sort_values(by, ignore_index=True),
        check_dtype=False,
        rtol=1e-8,
    )


def test_a_sample_of_items_is_noted_and_gives_about_the_same_rate() -> None:
    rows = copied(np.random.default_rng(0), 6, 0.62, [0.85] * 3, 400)
    whole, part = fitted(rows), fitted(rows, max_pairs=5000)
    assert whole.note == "" and part.note == "(from 138 of 400 items, drawn at random)"
    assert part.note in sentences(part, pd.RangeIndex(9))[0]
    assert abs(part.residual - whole.residual) < 3 * part.residual_error and near_duplicates(
        part
    ) == near_duplicates(whole)

"""The compiled pass and its variants equal plain loops and sums.

Tables are long, weighted, contradictory or split over threads.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp

from probcrowd.data import table as packing
from probcrowd.data.table import Cells, Packed, occurring, pack
from probcrowd.inference.aggregation import em as grouping
from probcrowd.inference.aggregation.annotator_summary import held_out
from probcrowd.inference.aggregation.e_step import (
    FLOOR,
    Scores,
    Statistics,
    count,
    e_step,
    sums_by_owner,
)
from probcrowd.inference.aggregation.em import InMemory, group_patterns

CLASSES = [1, 2, 3, 4, 5, 6, 17]
OPTIONS = ["plain", "weight", "gold", "times", "weight gold times"]


def some_items(
    num_classes: int,
    options: str,
    seed: int = 0,
    *,
    items: int = 30,
    annotators: int = 6,
    labels: int | None = None,
) -> tuple[Packed, Cells]:
    """0 to 20 rows per item in random order, 6 annotators with repeats; the first and last item have none."""
    chance, labels = np.random.default_rng(seed), labels or num_classes
    item = np.repeat(np.arange(1, items - 1), chance.integers(0, 21, items - 2))
    item = chance.permutation(item)
    key = chance.integers(0, annotators, len(item)) * labels + chance.integers(0, labels, len(item))
    weight = chance.uniform(0, 3, len(item)) if "weight" in options else None
    gold = (
        np.where(chance.random(items) < 0.3, chance.integers(0, num_classes, items), -1)
        if "gold" in options
        else None
    )
    cells = occurring(key, annotators, labels, num_classes)
    packed = pack(item, key, cells, items, weight=weight, gold=gold)
    return replace(packed, times=chance.uniform(0.5, 4, items)) if "times" in options else packed, cells


def some_scores(cells: Cells, seed: int = 0, spread: float = 2.0) -> Scores:
    chance = np.random.default_rng([seed, 1])
    return Scores(
        chance.normal(-1, spread, (len(cells), cells.num_classes)), chance.normal(-3, 1, cells.num_classes)
    )


def weights(packed: Packed) -> np.ndarray:
    return np.ones(len(packed.cell)) if packed.weight is None else packed.weight


def times(packed: Packed) -> np.ndarray:
    return np.ones(packed.num_items) if packed.times is None else packed.times


def item_logs(packed: Packed, scores: Scores, i: int, without: int = -1) -> np.ndarray:
    """log s_ik by a loop over rows; -inf for classes other than gold."""
    logs = scores.log_prior.copy()
    for n in range(packed.starts[i], packed.starts[i + 1]):
        if n != without:
            logs = logs + weights(packed)[n] * scores.log_table[packed.cell[n]]
    if packed.gold is not None and packed.gold[i] >= 0:
        logs[np.arange(len(logs)) != packed.gold[i]] = -np.inf
    return logs


def loop(
    packed: Packed, scores: Scores, *, hard: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Responsibilities, counts, class_count and log likelihood of a pass."""
    responsibilities, counts = (
        np.zeros((packed.num_items, len(scores.log_prior))),
        np.zeros(scores.log_table.shape),
    )
    class_count, total = np.zeros(len(scores.log_prior)), 0.0
    for i in range(packed.num_items):
        logs = item_logs(packed, scores, i)
        total += times(packed)[i] * logsumexp(logs)
        responsibilities[i] = np.exp(logs - logsumexp(logs))
        if hard and packed.size[i]:
            responsibilities[i] = np.arange(len(logs)) == responsibilities[i].argmax()
        class_count += times(packed)[i] * responsibilities[i]
        for n in range(packed.starts[i], packed.starts[i + 1]):
            counts[packed.cell[n]] += times(packed)[i] * weights(packed)[n] * responsibilities[i]
    return responsibilities, counts, class_count, total


def check_pass(
    packed: Packed,
    scores: Scores,
    expected: tuple[np.ndarray, np.ndarray, np.ndarray, float],
    *,
    hard: bool = False,
) -> None:
    result = np.full((packed.num_items, len(scores.log_prior)), np.nan)
    expectation = e_step(packed, scores, hard=hard, responsibilities=result)
    np.testing.assert_allclose(result, expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(expectation.statistics.counts, expected[1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(expectation.statistics.class_count, expected[2], rtol=1e-10, atol=1e-10)
    assert expectation.log_likelihood == pytest.approx(expected[3], rel=1e-12, abs=1e-10)
    again = e_step(packed, scores, hard=hard)  # without writing responsibilities
    np.testing.assert_array_equal(again.statistics.counts, expectation.statistics.counts)
    assert again.log_likelihood == expectation.log_likelihood


@pytest.mark.parametrize("options", ["plain", "weight", "gold", "weight gold"])
@pytest.mark.parametrize("num_classes", CLASSES[:-1])
def test_a_pass_is_enumeration_over_labellings(num_classes: int, options: str) -> None:
    items = 4
    packed, cells = some_items(num_classes, options, items=items + 2)
    packed = packed.take(np.arange(1, 1 + items))
    scores = some_scores(cells)
    table, prior = np.exp(scores.log_table), np.exp(scores.log_prior)
    evidence, responsibilities = 0.0, np.zeros((items, num_classes))
    for labelling in itertools.product(range(num_classes), repeat=items):
        joint = 1.0
        for i, k in enumerate(labelling):
            joint *= prior[k] * (packed.gold is None or packed.gold[i] < 0 or packed.gold[i] == k)
            for n in range(packed.starts[i], packed.starts[i + 1]):
                joint *= table[packed.cell[n], k] ** weights(packed)[n]
        evidence += joint
        responsibilities[range(items), labelling] += joint
    responsibilities /= evidence
    item = np.repeat(np.arange(items), packed.size)
    counts = np.zeros(table.shape)
    np.add.at(counts, packed.cell, weights(packed)[:, None] * responsibilities[item])
    check_pass(packed, scores, (responsibilities, counts, responsibilities.sum(0), math.log(evidence)))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_a_pass_is_the_loop(num_classes: int, options: str, hard: bool) -> None:
    packed, cells = some_items(num_classes, options)
    scores = some_scores(cells)
    check_pass(packed, scores, loop(packed, scores, hard=hard), hard=hard)


def test_hard_passes_take_the_first_of_equals_and_leave_items_without_labels_to_the_prior() -> None:
    cells = Cells(np.array([0]), np.array([0]), 1, 3, 3)
    packed, result = Packed(np.array([0, 0, 1]), np.zeros(1, np.int32)), np.zeros((2, 3))
    e_step(
        packed,
        Scores(np.log([[0.2, 0.4, 0.4]]), np.log(np.full(3, 1 / 3))),
        hard=True,
        responsibilities=result,
    )
    np.testing.assert_allclose(result, [[1 / 3, 1 / 3, 1 / 3], [0, 1, 0]], rtol=1e-15)
    assert len(cells) == 1


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_counts_of_given_responsibilities_are_sums(num_classes: int, options: str) -> None:
    packed, cells = some_items(num_classes, options)
    given = np.random.default_rng(5).dirichlet(np.ones(num_classes), packed.num_items)
    result = count(packed, given, len(cells))
    expected, class_count = np.zeros((len(cells), num_classes)), np.zeros(num_classes)
    for i in range(packed.num_items):
        class_count += times(packed)[i] * given[i]
        for n in range(packed.starts[i], packed.starts[i + 1]):
            expected[packed.cell[n]] += times(packed)[i] * weights(packed)[n] * given[i]
    np.testing.assert_allclose(result.counts, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.class_count, class_count, rtol=1e-10)


@pytest.mark.parametrize("more_labels", [0, 1])
@pytest.mark.parametrize("options", ["plain", "weight", "gold", "weight gold times"])
@pytest.mark.parametrize("num_classes", CLASSES)
def test_votes_are_weighted_shares_of_labels_that_name_a_class(
    num_classes: int, options: str, more_labels: int
) -> None:
    packed, cells = some_items(num_classes, options, labels=num_classes + more_labels)
    result = packed.vote_shares(cells)
    for i in range(packed.num_items):
        shares = np.zeros(num_classes)
        for n in range(packed.starts[i], packed.starts[i + 1]):
            if cells.label[packed.cell[n]] < num_classes:
                shares[cells.label[packed.cell[n]]] += weights(packed)[n]
        shares = shares / shares.sum() if shares.sum() > 0 else np.full(num_classes, 1 / num_classes)
        if packed.gold is not None and packed.gold[i] >= 0:
            shares = np.eye(num_classes)[packed.gold[i]]
        np.testing.assert_allclose(result[i], shares, rtol=1e-12)


def test_an_item_with_only_abstentions_has_no_votes() -> None:
    cells = Cells(np.array([0, 1, 1]), np.array([2, 2, 1]), 2, 3, 2)
    packed = Packed(np.array([0, 2, 4]), np.array([0, 1, 0, 2], np.int32))
    np.testing.assert_array_equal(packed.vote_shares(cells), [[0.5, 0.5], [0, 1]])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("num_classes", CLASSES)
def test_held_out_counts_leave_the_own_label_out(num_classes: int, options: str) -> None:
    packed, cells = some_items(num_classes, options)
    scores = some_scores(cells)
    expected = np.zeros((len(cells), num_classes))
    for i in range(packed.num_items):
        for n in range(packed.starts[i], packed.starts[i + 1]):
            logs = item_logs(packed, scores, i, without=n)
            expected[packed.cell[n]] += times(packed)[i] * weights(packed)[n] * np.exp(logs - logsumexp(logs))
    np.testing.assert_allclose(held_out(packed, scores).counts, expected, rtol=1e-9, atol=1e-10)


# Long items and contradictions

LENGTHS = [0, 1, 2, 7, 8, 9, 16, 17, 100, 2000]


def floored(scores: Scores) -> Scores:
    """Replace impossible entries as the pass does: by exp(FLOOR) times the highest probability of the row."""
    top = scores.log_table.max(1, keepdims=True)
    top[np.isneginf(top)] = 0
    return Scores(
        np.maximum(scores.log_table, top + FLOOR),
        np.maximum(scores.log_prior, scores.log_prior.max() + FLOOR),
    )


def adversarial(kind: str, num_classes: int) -> tuple[Packed, Scores]:
    chance = np.random.default_rng(3)
    if kind == "tiny":  # anything from 1 to 1e-300
        logs = np.log(10) * chance.uniform(-300, 0, (60, num_classes))
    elif kind == "contradictions":  # each row rules out all classes but one
        logs = np.where(np.arange(60)[:, None] % num_classes == np.arange(num_classes), 0.0, -np.inf)
    elif kind == "small everywhere":
        logs = chance.normal(-690, 1, (60, num_classes))
    elif kind == "nothing":  # rows that are impossible under all classes
        logs = np.where(chance.random((60, 1)) < 0.3, -np.inf, chance.normal(-3, 3, (60, num_classes)))
    else:  # "mild"
        logs = chance.normal(-1, 1, (60, num_classes))
    log_prior = np.log(10) * chance.uniform(-300, 0, num_classes)
    cell = chance.integers(0, 60, sum(LENGTHS)).astype(np.int32)
    return Packed(np.concatenate([[0], np.cumsum(LENGTHS)]), cell), Scores(logs, log_prior)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("kind", ["tiny", "contradictions", "small everywhere", "nothing", "mild"])
@pytest.mark.parametrize("num_classes", [1, 2, 3, 17])
def test_long_items_and_contradictions_match_logs(
    num_classes: int, kind: str, gold: bool, weighted: bool
) -> None:
    packed, scores = adversarial(kind, num_classes)
    if gold:
        packed = replace(packed, gold=(np.arange(packed.num_items) % (num_classes + 1) - 1).astype(np.int32))
    if weighted:
        packed = replace(packed, weight=np.random.default_rng(1).uniform(0, 2, len(packed.cell)))
    expected = loop(packed, floored(scores))
    result = np.zeros((packed.num_items, num_classes))
    expectation = e_step(packed, scores, responsibilities=result)
    np.testing.assert_allclose(result, expected[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(expectation.statistics.counts, expected[1], rtol=1e-8, atol=1e-8)
    assert np.isfinite(held_out(packed, scores).counts).all()
    assert expectation.log_likelihood == pytest.approx(expected[3], rel=1e-11, abs=1e-9)


def test_many_unlikely_items_add_up() -> None:
    """Probabilities are multiplied before the logarithm; the product is below 1e-308 many times over."""
    scores = Scores(np.log([[1.0, 1e-5], [1e-5, 1.0]]), np.log([0.5, 0.5]))
    packed = Packed(np.arange(0, 4 * 5001, 4), np.tile([0, 1], 10_000).astype(np.int32))
    assert e_step(packed, scores).log_likelihood == pytest.approx(5000 * math.log(1e-10), rel=1e-12)


@pytest.mark.parametrize("behind", [5, 12, 13, 40, 1000])
def test_a_class_recovers_from_far_behind(behind: int) -> None:
    """`behind` rows against class 0, then one more row for it, each as strong as a row can be."""
    scores = Scores(np.array([[FLOOR, 0.0], [0.0, FLOOR]]), np.log([0.5, 0.5]))
    cell = np.repeat([0, 1], [behind, behind + 1]).astype(np.int32)
    packed, result = (
        Packed(np.array([0, len(cell), 2 * len(cell)]), np.concatenate([cell, cell[::-1]])),
        np.zeros((2, 2)),
    )
    expectation = e_step(packed, scores, responsibilities=result)
    np.testing.assert_allclose(result, [[1, 0]] * 2, atol=1e-12)
    assert expectation.log_likelihood == pytest.approx(2 * (behind * FLOOR + math.log(0.5)), rel=1e-13)


def test_the_floor_is_relative_to_the_row_and_above_it_nothing_changes() -> None:
    logs = np.array([[-500.0, -568.9], [-500.0, -900.0]])
    packed, result = Packed(np.array([0, 1, 2]), np.array([0, 1], np.int32)), np.zeros((2, 2))
    expectation = e_step(packed, Scores(logs, np.log([0.5, 0.5])), responsibilities=result)
    np.testing.assert_allclose(np.log(result[:, 1] / result[:, 0]), [-68.9, FLOOR], rtol=1e-13)
    assert expectation.log_likelihood == pytest.approx(-1000 + 2 * math.log(0.5), rel=1e-14)


# Threads, sums, weights


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("options", OPTIONS)
def test_threads_give_the_result_of_one_thread(
    monkeypatch: pytest.MonkeyPatch, options: str, workers: int
) -> None:
    packed, cells = some_items(3, options, items=60)
    scores, given = some_scores(cells), np.random.default_rng(5).dirichlet(np.ones(3), 60)
    alone, many = np.zeros((60, 3)), np.zeros((60, 3))
    single = (
        e_step(packed, scores, responsibilities=alone),
        count(packed, given, len(cells)),
        held_out(packed, scores),
    )
    parts: list[tuple[int, int]] = []

    class Pool:
        def map(self, part, low, high):
            parts.extend(zip(low, high, strict=True))
            return [part(a, b) for a, b in zip(low, high, strict=True)]

    for pool in (packing._pool(os.getpid()), Pool()):  # the threads themselves, then what they are given
        monkeypatch.setattr(packing, "_ROWS_PER_RANGE", len(packed.cell) // workers)
        monkeypatch.setattr(packing, "_ROWS_PER_CELL", 0)
        monkeypatch.setattr(packing, "_pool", lambda process, pool=pool: pool)
        spread = (
            e_step(packed, scores, responsibilities=many),
            count(packed, given, len(cells)),
            held_out(packed, scores),
        )
        np.testing.assert_array_equal(many, alone)
        assert spread[0].log_likelihood == pytest.approx(single[0].log_likelihood, rel=1e-12)
        pairs = [(spread[0].statistics, single[0].statistics), *zip(spread[1:], single[1:], strict=True)]
        for some, all_at_once in pairs:
            np.testing.assert_allclose(some.counts, all_at_once.counts, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(some.class_count, all_at_once.class_count, rtol=1e-12, atol=1e-13)
    assert len(parts) == 3 * workers and parts[0][0] == 0 and parts[workers - 1][1] == 60
    assert all(before[1] == after[0] for before, after in itertools.pairwise(parts[:workers]))


@pytest.mark.parametrize("options", OPTIONS)
def test_counts_of_votes_are_those_of_the_vote_shares(options: str) -> None:
    packed, cells = some_items(3, options)
    expected, result = count(packed, packed.vote_shares(cells), len(cells)), InMemory(packed, cells).start()
    np.testing.assert_allclose(result.counts, expected.counts, rtol=1e-12)
    np.testing.assert_allclose(result.class_count, expected.class_count, rtol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_fork_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ROWS_PER_RANGE", 10)
    monkeypatch.setattr(packing, "_ROWS_PER_CELL", 0)
    packed, cells = some_items(3, "plain", items=60)
    e_step(packed, some_scores(cells))  # the parent's threads are there
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a wait without end ends the child
        e_step(packed, some_scores(cells))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_passes_over_parts_add_up(options: str) -> None:
    packed, cells = some_items(3, options)
    scores, here = some_scores(cells), np.random.default_rng(2).random(packed.num_items) < 0.4
    whole = e_step(packed, scores)
    parts = e_step(packed.take(np.flatnonzero(here)), scores) + e_step(
        packed.take(np.flatnonzero(~here)), scores
    )
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(parts.statistics.counts, whole.statistics.counts, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(parts.statistics.class_count, whole.statistics.class_count, rtol=1e-12)
    longer = whole.statistics.extended(len(cells) + 2)
    assert longer.counts.shape == (len(cells) + 2, 3) and not longer.counts[-2:].any()
    np.testing.assert_array_equal((longer + longer).counts[:-2], 2 * whole.statistics.counts)
    assert isinstance(longer, Statistics) and longer.class_count is whole.statistics.class_count


def test_a_weight_of_two_is_a_row_twice_and_two_times_are_two_items() -> None:
    packed, cells = some_items(3, "gold")
    scores = some_scores(cells)
    item, key = np.repeat(np.arange(packed.num_items), packed.size), cells.key[packed.cell]
    twice = np.random.default_rng(4).random(len(item)) < 0.5
    doubled = pack(
        np.append(item, item[twice]), np.append(key, key[twice]), cells, packed.num_items, gold=packed.gold
    )
    check_pass(
        pack(item, key, cells, packed.num_items, weight=1.0 + twice, gold=packed.gold),
        scores,
        loop(doubled, scores),
    )
    number = np.random.default_rng(4).integers(0, 4, packed.num_items)
    copies, counted = (
        e_step(packed.take(np.repeat(np.arange(packed.num_items), number)), scores),
        replace(packed, times=number.astype(float)),
    )
    assert e_step(counted, scores).log_likelihood == pytest.approx(copies.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(
        e_step(counted, scores).statistics.counts, copies.statistics.counts, rtol=1e-12, atol=1e-13
    )


def test_weights_of_one_are_no_weights_and_of_zero_no_rows() -> None:
    packed, cells = some_items(3, "plain")
    item, key = np.repeat(np.arange(packed.num_items), packed.size), cells.key[packed.cell]
    assert pack(item, key, cells, packed.num_items, weight=np.ones(len(item))).weight is None
    here = np.random.default_rng(4).random(len(item)) < 0.5
    scores, retained = some_scores(cells), pack(item[here], key[here], cells, packed.num_items)
    check_pass(
        pack(item, key, cells, packed.num_items, weight=here.astype(float)), scores, loop(retained, scores)
    )


def test_sums_by_owner() -> None:
    values, owner = np.arange(10.0).reshape(5, 2), np.array([2, 0, 2, 3, 2])
    np.testing.assert_array_equal(
        sums_by_owner(values, owner, 5), [[2, 3], [0, 0], [0 + 4 + 8, 1 + 5 + 9], [6, 7], [0, 0]]
    )


# Patterns


def few_patterns(
    annotators: int, num_labels: int, items: int, *, gold: bool, seed: int = 0
) -> tuple[Packed, Cells]:
    """At most one label per annotator and item, some missing; the last label may not be a class."""
    chance = np.random.default_rng(seed)
    counts = chance.integers(-1, num_labels, (items, annotators))
    counts[0] = -1
    item, annotator = np.nonzero(counts >= 0)
    order = chance.permutation(len(item))
    item, annotator = item[order], annotator[order]
    key = annotator * num_labels + counts[item, annotator]
    cells = occurring(key, annotators, num_labels, 2)
    known = np.where(chance.random(items) < 0.3, chance.integers(0, 2, items), -1) if gold else None
    return pack(item, key, cells, items, gold=known), cells


@pytest.mark.parametrize("most_flags", [2**22, 1])  # by counting, and by sorting
@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize(("annotators", "num_labels"), [(1, 2), (4, 2), (3, 3)])
def test_grouped_items_are_the_items(
    monkeypatch: pytest.MonkeyPatch, annotators: int, num_labels: int, gold: bool, most_flags: int
) -> None:
    monkeypatch.setattr(grouping, "_MOST_TABULATED", most_flags)
    packed, cells = few_patterns(annotators, num_labels, 900, gold=gold)
    patterns, place = group_patterns(packed, cells)
    assert place is not None and patterns.times is not None
    assert patterns.num_items <= (3 if gold else 1) * (num_labels + 1) ** annotators
    assert patterns.times.sum() == 900
    scores = some_scores(cells)
    one_by_one, at_once = np.zeros((900, 2)), np.zeros((patterns.num_items, 2))
    whole, fewer = (
        e_step(packed, scores, responsibilities=one_by_one),
        e_step(patterns, scores, responsibilities=at_once),
    )
    np.testing.assert_allclose(at_once[place], one_by_one, rtol=1e-12)
    assert fewer.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    np.testing.assert_allclose(fewer.statistics.counts, whole.statistics.counts, rtol=1e-11)
    np.testing.assert_allclose(fewer.statistics.class_count, whole.statistics.class_count, rtol=1e-11)
    np.testing.assert_allclose(held_out(patterns, scores).counts, held_out(packed, scores).counts, rtol=1e-11)


def test_items_are_left_alone_where_patterns_gain_nothing_or_do_not_exist() -> None:
    packed, cells = few_patterns(4, 2, 900, gold=False)
    item, key = np.repeat(np.arange(900), packed.size), cells.key[packed.cell]
    for alone in (
        pack(np.append(item, item[0]), np.append(key, key[0]), cells, 900),  # a pair twice
        pack(
            np.append(item, item[0]), np.append(key, key[0] ^ 1), cells, 900
        ),  # an annotator who says two things of an item
        replace(packed, weight=np.full(len(item), 0.5)),
        replace(packed, times=np.full(900, 2.0)),
        packed.take(np.arange(100)),  # as many patterns as items, nearly
        packed.take(np.zeros(0, np.int64)),
    ):
        same, place = group_patterns(alone, cells)
        assert same is alone and place is None
    crowd, their_cells = few_patterns(1500, 3, 20, gold=True)
    assert group_patterns(crowd, their_cells)[1] is None


def test_items_without_any_rows_are_one_pattern() -> None:
    cells = occurring(np.zeros(0, np.int64), 3, 2, 2)
    packed = pack(np.zeros(0, np.int64), np.zeros(0, np.int64), cells, 7)
    patterns, place = group_patterns(packed, cells)
    assert place is not None and patterns.num_items == 1
    scores = Scores(np.zeros((0, 2)), np.log([0.25, 0.5]))
    assert e_step(patterns, scores).log_likelihood == pytest.approx(7 * math.log(0.75))


# Packing


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32])
@pytest.mark.parametrize("most_flags", [2**26, 1])
def test_packing_keeps_every_row_in_any_order(
    monkeypatch: pytest.MonkeyPatch, most_flags: int, dtype: type
) -> None:
    monkeypatch.setattr(packing, "_MOST_FLAGS", most_flags)
    chance = np.random.default_rng(0)
    item, annotator, label = chance.integers(0, 9, 60), chance.integers(0, 5, 60), chance.integers(0, 3, 60)
    key, weight = annotator * 1000 + label, chance.random(60)
    cells = occurring(key, 5, 1000, 3)
    pairs = sorted(set(zip(annotator.tolist(), label.tolist(), strict=True)))
    assert list(zip(cells.annotator.tolist(), cells.label.tolist(), strict=True)) == pairs
    np.testing.assert_array_equal(cells.key, np.unique(key))
    gold = np.where(np.arange(10) < 3, np.arange(10), -1)
    packed = pack(item.astype(dtype), key, cells, 10, weight=weight, gold=gold)
    assert packed.gold is not None and packed.weight is not None and packed.num_items == 10
    np.testing.assert_array_equal(packed.gold, gold)
    assert pack(item, key, cells, 10, gold=np.full(10, -1)).gold is None
    for i in range(10):
        rows = slice(packed.starts[i], packed.starts[i + 1])
        assert sorted(zip(cells.key[packed.cell[rows]], packed.weight[rows], strict=True)) == sorted(
            zip(key[item == i], weight[item == i], strict=True)
        )
    order = np.argsort(item, kind="stable")
    in_order = pack(item[order], key[order], cells, 10, weight=weight[order])
    np.testing.assert_array_equal(in_order.cell, packed.cell)
    np.testing.assert_array_equal(in_order.weight, packed.weight)


def test_take_follows_the_items() -> None:
    packed, cells = some_items(3, "weight gold times")
    items = np.array([7, 3, 3, 0, 29, 12])
    taken = packed.take(items)
    assert (
        taken.num_items == 6
        and taken.weight is not None
        and taken.gold is not None
        and taken.times is not None
    )
    for new, old in enumerate(items):
        rows, those = (
            slice(taken.starts[new], taken.starts[new + 1]),
            slice(packed.starts[old], packed.starts[old + 1]),
        )
        np.testing.assert_array_equal(taken.cell[rows], packed.cell[those])
        np.testing.assert_array_equal(taken.weight[rows], weights(packed)[those])
    np.testing.assert_array_equal(taken.gold, packed.gold[items] if packed.gold is not None else None)
    np.testing.assert_array_equal(taken.times, times(packed)[items])
    nothing = packed.take(np.zeros(0, np.int64))
    assert nothing.num_items == 0 and len(nothing.cell) == 0
    empty = e_step(nothing, some_scores(cells))
    assert empty.log_likelihood == 0 and not empty.statistics.counts.any()


def test_joined_cells_keep_their_places_and_locate_finds_them() -> None:
    cells = occurring(np.array([7, 1, 4, 7]), 3, 3, 3)
    np.testing.assert_array_equal(cells.key, [1, 4, 7])
    more = cells.joined(np.array([11, 4, 0, 11, 9]), 4)
    np.testing.assert_array_equal(more.key, [1, 4, 7, 0, 9, 11])
    assert more.num_annotators == 4 and len(more) == 6
    np.testing.assert_array_equal(more.annotator, [0, 1, 2, 0, 3, 3])
    np.testing.assert_array_equal(more.locate(np.array([9, 1, 5, 0, 7])), [4, 0, -1, 3, 2])
    packed = pack(np.array([1, 0, 1]), np.array([0, 11, 1]), more, 2)  # cells in no order
    np.testing.assert_array_equal(packed.cell, [5, 3, 0])

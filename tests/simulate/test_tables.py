"""Simulated tables: frequencies, assignment, planted structure with negative controls, errors, memory."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from probcrowd.data.annotations import Annotations
from probcrowd.simulate import (
    Abstain,
    ClassBias,
    Clique,
    Copies,
    HardClass,
    HardItems,
    MisleadingItems,
    OrdinalAnnotators,
    SimulatedAnnotations,
    simulate_annotations,
    simulate_features,
    uniform_errors,
)

EFFECTS: dict[str, list[Any]] = {
    "none": [],
    "hard items": [HardItems(0.3)],
    "graded difficulty": [HardItems(0.9, (0.2, 0.8), ["a1", "a2"])],
    "misleading items": [MisleadingItems(0.25, 0.7)],
    "hard class": [HardClass("c2", "c0", 0.6)],
    "bias": [ClassBias("c1", 0.4, ["a0"])],
    "clique": [Clique(["a0", "a1", "a2"], 0.7, accuracy=0.5)],
    "abstention": [Abstain(0.2, annotators=["a0", "a3"])],
    "copies": [Copies("a0", ["a1", "a2"], 0.6)],
    "all": [
        Copies("a0", ["a1"]),
        Abstain(0.1),
        Clique(["a2", "a3"]),
        ClassBias("c1", 0.2),
        HardClass("c2", "c0", 0.4),
        MisleadingItems(0.1),
        HardItems(0.2, 0.5),
    ],
}
MATRICES = np.random.default_rng(1).dirichlet(np.ones(3), (4, 3))


def frequencies(simulated: SimulatedAnnotations) -> tuple[np.ndarray, np.ndarray]:
    """Counts of labels by annotator and true class (j, k, l), and the truth of each row."""
    table, prior = simulated.annotations, simulated.class_prior
    truth = prior.index.get_indexer(simulated.truth)[table.item]
    counts = np.zeros((table.num_annotators, len(prior), table.num_classes))
    np.add.at(counts, (table.annotator, truth, table.label), 1)
    return counts, truth


def check_frequencies(simulated: SimulatedAnnotations) -> None:
    """Every frequency is within 5 standard errors of the declared probability."""
    counts, _ = frequencies(simulated)
    declared = simulated.confusion.to_numpy().reshape(counts.shape)
    total = counts.sum(2, keepdims=True)
    assert total.min() > 100 and np.allclose(declared.sum(2), 1)
    error = np.sqrt(declared * (1 - declared) / total)
    assert (np.abs(counts / total - declared) <= 5 * error + 1e-12).all()


def agreement(simulated: SimulatedAnnotations, first: str, second: str) -> float:
    """The share of items that both label on which two annotators agree."""
    wide = simulated.annotations.to_wide()
    both = wide[[first, second]].dropna()
    return float((both[first] == both[second]).mean())


# Labels


@pytest.mark.parametrize("annotators", ["accuracies", "matrices"])
@pytest.mark.parametrize("effects", EFFECTS)
def test_labels_have_the_declared_frequencies(effects: str, annotators: str) -> None:
    """One label per item: labels of different items are independent, so the binomial standard error holds."""
    crowd = MATRICES if annotators == "matrices" else np.array([0.9, 0.8, 0.6, 1 / 3])
    check_frequencies(
        simulate_annotations(
            6000,
            crowd,
            classes=3,
            class_prior=[0.5, 0.3, 0.2],
            labels_per_item=1,
            effects=EFFECTS[effects],
            seed=2,
        )
    )


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_an_ordinal_scale_has_the_declared_frequencies(noise: float) -> None:
    cuts = np.array([[-1.0, 0.5], [0.2, 0.4], [-0.5, 1.5]])
    annotators = OrdinalAnnotators(3, bias=[0.0, 0.5, -1.0], noise=noise, cuts=cuts)
    simulated = simulate_annotations(
        9000, annotators, classes=3, class_prior=[0.2, 0.5, 0.3], labels_per_item=1, seed=0
    )
    counts, _ = frequencies(simulated)
    declared = simulated.confusion.to_numpy().reshape(counts.shape)
    total = counts.sum(2, keepdims=True)
    error = np.sqrt(declared * (1 - declared) / total)
    assert (np.abs(counts / total - declared) <= 5 * error + 2e-3).all()  # 1e-3 from the midpoint rule


def test_scores_decide_ordinal_truth_and_noiseless_labels() -> None:
    """An annotator without bias and noise is always right; with a bias upwards never below the truth."""
    annotators = OrdinalAnnotators(2, bias=[0.0, 0.4], noise=0.0)
    simulated = simulate_annotations(500, annotators, classes=range(5), seed=0)
    wide, truth = simulated.annotations.to_wide(), simulated.truth
    assert (wide["a0"] == truth).all() and (wide["a1"] >= truth).all() and (wide["a1"] > truth).any()
    assert simulated.score is not None
    assert (truth[simulated.score.sort_values().index].diff().dropna() >= 0).all()
    assert abs(simulated.score.mean()) < 5 / math.sqrt(500)


def test_accuracies_are_those_given_and_numbers_draw_them() -> None:
    given = {"ann": 0.9, "bob": np.eye(2), "cem": 0.5}
    simulated = simulate_annotations(10, given, seed=0)
    assert simulated.accuracy.to_dict() == pytest.approx({"ann": 0.9, "bob": 1.0, "cem": 0.5})
    pd.testing.assert_index_equal(
        simulated.confusion.index, pd.MultiIndex.from_product([list(given), ["c0", "c1"]]), check_names=False
    )
    drawn = simulate_annotations(10, 400, seed=0).accuracy
    assert drawn.between(0.6, 0.95).all() and drawn.nunique() == 400
    assert abs(drawn.mean() - 0.775) < 5 * 0.35 / math.sqrt(12 * 400)


def test_columns_beside_the_accuracy_are_covariates() -> None:
    groups = pd.DataFrame({"accuracy": [0.9, 0.6], "group": ["expert", "novice"]}, index=["ann", "bob"])
    simulated = simulate_annotations(20, groups, seed=0)
    assert simulated.accuracy.to_dict() == pytest.approx({"ann": 0.9, "bob": 0.6})
    covariates = simulated.annotations.annotator_covariates
    assert covariates is not None and covariates["group"].to_dict() == {"ann": "expert", "bob": "novice"}
    plain = simulate_annotations(20, groups[["accuracy"]], seed=0).annotations
    assert plain.annotator_covariates is None and np.array_equal(plain.label, simulated.annotations.label)


def test_errors_of_an_accuracy_are_spread_evenly() -> None:
    np.testing.assert_allclose(uniform_errors(np.array([0.7]), 4)[0, 1], [0.1, 0.7, 0.1, 0.1])
    assert uniform_errors(np.array(0.3), 1).tolist() == [[1.0]]


@pytest.mark.parametrize("prior", [None, [0.7, 0.2, 0.1]])
def test_classes_have_the_declared_prior(prior: list[float] | None) -> None:
    simulated = simulate_annotations(4000, 1, classes=["x", "y", "z"], class_prior=prior, seed=0)
    shares = simulated.truth.value_counts(normalize=True)[["x", "y", "z"]].to_numpy()
    declared = np.full(3, 1 / 3) if prior is None else np.array(prior)
    np.testing.assert_allclose(simulated.class_prior, declared)
    assert (np.abs(shares - declared) < 5 * np.sqrt(declared * (1 - declared) / 4000)).all()


def test_a_given_truth_is_the_truth() -> None:
    truth = pd.Series(["no", "yes", "yes"], index=["q1", "q7", "q3"])
    simulated = simulate_annotations(truth, [1.0, 0.0], seed=0)
    assert simulated.truth.to_dict() == truth.to_dict()
    wide = simulated.annotations.to_wide()
    assert wide["a0"].to_dict() == truth.to_dict() and (wide["a1"] != truth).all()
    assert simulated.class_prior.to_dict() == pytest.approx({"no": 1 / 3, "yes": 2 / 3})


def test_features_decide_the_truth() -> None:
    features, truth = simulate_features(600, 5, classes=3, seed=0)
    assert features.shape == (600, 5) and features.index.equals(truth.index) and truth.nunique() == 3
    design = np.column_stack([np.ones(600), features])
    scores = design @ np.linalg.lstsq(design, pd.get_dummies(truth).to_numpy(float), rcond=None)[0]
    assert (np.array(["c0", "c1", "c2"])[scores.argmax(1)] == truth).mean() > 0.85
    _, noisy = simulate_features(600, 5, classes=3, noise=100.0, seed=0)
    assert abs((noisy == truth).mean() - 1 / 3) < 5 * math.sqrt(2 / 9 / 600) + 0.03


# Who labels what


def test_without_options_every_annotator_labels_every_item() -> None:
    table = simulate_annotations(30, 4, seed=0).annotations
    assert (table.counts_per_item() == 4).all() and (table.counts_per_annotator() == 30).all()


@pytest.mark.parametrize(("annotators", "size"), [(6, 6), (6, 2), (200, 3), (200, 150)])
def test_items_have_so_many_labels_by_different_annotators(annotators: int, size: int) -> None:
    simulated = simulate_annotations(400, annotators, labels_per_item=size, seed=0)
    table = simulated.annotations
    assert (table.counts_per_item() == size).all() and not simulated.frame.duplicated(
        ["item", "annotator"]
    ).any()
    share = size / annotators
    error = math.sqrt(400 * share * (1 - share))
    assert (np.abs(table.counts_per_annotator() - 400 * share) <= 5 * error).all()


def test_annotators_are_chosen_one_after_the_other_by_their_weights() -> None:
    """Both ways of drawing have the distribution of successive sampling without replacement."""
    from probcrowd.simulate.assignment import _choose_distinct

    weight, rows = np.array([5.0, 3.0, 1.0, 1.0]), 20_000
    expected = np.zeros((4, 4))
    for first in range(4):
        for second in set(range(4)) - {first}:
            expected[first, second] = weight[first] / 10 * weight[second] / (10 - weight[first])
    # 100 annotators: four of these weights, the others all but never chosen
    many = np.append(weight, np.full(96, 1e-12))
    for weights in (weight, many):
        chosen = _choose_distinct(np.random.default_rng(0), rows, weights, 2)
        shares = np.zeros((4, 4))
        np.add.at(shares, tuple(chosen.T), 1 / rows)
        assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / rows)).all()


def test_annotators_have_so_many_items() -> None:
    table = simulate_annotations(300, 20, labels_per_annotator=12, seed=0).annotations
    assert (table.counts_per_annotator() == 12).all()
    assert table.num_items == 300 and table.counts_per_item().min() == 0  # 240 labels: some items have none


@pytest.mark.parametrize("option", ["labels_per_item", "labels_per_annotator"])
def test_activity_has_a_long_tail(option: str) -> None:
    plain, busy = (
        simulate_annotations(2000, 100, **{option: 5}, activity=activity, seed=0).annotations
        for activity in (0.0, 1.5)
    )
    top, even = (np.sort(table.counts_per_annotator())[-10:].sum() / len(table) for table in (busy, plain))
    assert top > 0.35 and even < 0.15


def test_pairs_are_observed_with_a_probability() -> None:
    table = simulate_annotations(1000, 10, observed=0.3, seed=0).annotations
    assert abs(len(table) - 3000) < 5 * math.sqrt(10_000 * 0.3 * 0.7)
    spread = table.counts_per_item().var()
    assert abs(spread - 2.1) < 5 * 2.1 * math.sqrt(2 / 999)  # binomial: pairs are independent
    assert table.counts_per_annotator().nunique() > 4


def test_a_share_of_items_is_labelled_more_than_once() -> None:
    counts = simulate_annotations(
        200, 10, labels_per_item=3, repeated=0.2, seed=0
    ).annotations.counts_per_item()
    assert counts.value_counts().to_dict() == {1: 160, 3: 40}


def test_batches_are_disjoint() -> None:
    def components(batches: int) -> int:
        simulated = simulate_annotations(100, 12, labels_per_item=3, batches=batches, seed=0)
        table = simulated.annotations
        links = coo_matrix((np.ones(len(table)), (table.item, 100 + table.annotator)), shape=(112, 112))
        annotators, items = table.annotator_covariates, table.item_covariates
        assert (items is None) == (batches == 1) == (annotators is None)
        if items is not None and annotators is not None:
            assert (items["batch"].array[table.item] == annotators["batch"].array[table.annotator]).all()
        return int(connected_components(links, directed=False)[0])

    assert components(3) == 3 and components(1) == 1


# Planted structure, and what is there without it


def test_exact_copies_give_the_same_labels_and_others_do_not() -> None:
    effects = [HardItems(0.3), Copies("a0", ["a1", "a2"]), Abstain(0.2)]
    simulated = simulate_annotations(300, [0.7] * 4, observed=0.6, effects=effects, seed=0)
    assert simulated.copies == (("a0", "a1", "a2"),)
    # Also where the source has no label: copies agree on what it would have given
    assert agreement(simulated, "a0", "a1") == agreement(simulated, "a1", "a2") == 1
    assert agreement(simulated, "a0", "a3") < 0.8
    np.testing.assert_allclose(simulated.confusion.loc["a1"], simulated.confusion.loc["a0"])


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_near_copies_agree_as_often_as_their_rate_says(rate: float) -> None:
    simulated = simulate_annotations(4000, [0.7, 0.7], effects=[Copies("a0", ["a1"], rate)], seed=1)
    expected = rate + (1 - rate) * (0.49 + 0.09)
    error = math.sqrt(max(expected * (1 - expected), 1e-9) / 4000)
    assert abs(agreement(simulated, "a0", "a1") - expected) <= 5 * error


def test_copies_change_no_other_annotators_labels() -> None:
    plain, planted = (
        simulate_annotations(200, 5, effects=effects, seed=0).annotations.to_wide()
        for effects in ([], [Copies("a0", ["a1"])])
    )
    pd.testing.assert_frame_equal(plain.drop(columns="a1"), planted.drop(columns="a1"))
    assert (plain["a1"] != planted["a1"]).any() and (planted["a1"] == planted["a0"]).all()


def test_a_clique_errs_together() -> None:
    """Members agree more often than their accuracies explain; with other annotators they do not."""
    members = ["a0", "a1", "a2"]
    effects = [Clique(members, 0.8)]
    simulated = simulate_annotations(4000, [0.7] * 5, effects=effects, seed=0)
    independent = 0.49 + 0.09
    inside = 0.64 + 0.36 * independent
    for pair, expected in {("a0", "a1"): inside, ("a1", "a2"): inside, ("a0", "a3"): independent}.items():
        error = math.sqrt(expected * (1 - expected) / 4000)
        assert abs(agreement(simulated, *pair) - expected) < 5 * error
    assert simulated.cliques == (("a0", "a1", "a2"),)
    np.testing.assert_allclose(simulated.accuracy, 0.7)


def test_hard_items_are_hard_and_the_others_are_not() -> None:
    effects = [HardItems(0.25, annotators=["a0", "a1", "a2", "a3"])]
    simulated = simulate_annotations(2000, [0.9] * 5, effects=effects, seed=0)
    assert simulated.difficulty is not None and (simulated.difficulty == 1).sum() == 500
    wide = simulated.annotations.to_wide()
    right = wide.eq(simulated.truth, axis=0)
    hard = simulated.difficulty > 0
    for rows, columns, expected in (
        (hard, ["a0", "a1", "a2", "a3"], 0.5),
        (hard, ["a4"], 0.9),
        (~hard, list(wide), 0.9),
    ):
        found = right.loc[rows, columns].to_numpy()
        assert abs(found.mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / found.size)


def test_hard_and_misleading_items_can_be_named() -> None:
    """Where they belong to one class, its confusion row alone changes."""
    truth = pd.Series([0] * 2000 + [1] * 2000)
    effects = [HardItems(range(1000)), MisleadingItems([3000, 3001], 1.0)]
    simulated = simulate_annotations(truth, [0.9] * 3, effects=effects, seed=0)
    assert simulated.difficulty is not None and simulated.misleading is not None
    assert list(simulated.difficulty[simulated.difficulty > 0].index) == list(range(1000))
    assert simulated.misleading.to_dict() == {3000: 0, 3001: 0}
    assert simulated.confusion.loc[("a0", 0), 0] == pytest.approx(0.7)
    assert simulated.confusion.loc[("a0", 1), 1] == pytest.approx(0.9 * (1 - 2 / 2000))
    check_frequencies(simulated)


def test_misleading_items_mislead_all_in_the_same_way() -> None:
    simulated = simulate_annotations(1000, [0.9] * 5, classes=4, effects=[MisleadingItems(0.2, 1.0)], seed=0)
    wrong = simulated.misleading
    assert wrong is not None and len(wrong) == 200 and (wrong != simulated.truth[wrong.index]).all()
    wide = simulated.annotations.to_wide()
    assert wide.loc[wrong.index].eq(wrong, axis=0).all(axis=None) and wrong.nunique() == 4
    rest = wide.drop(wrong.index).eq(simulated.truth.drop(wrong.index), axis=0).to_numpy()
    assert abs(rest.mean() - 0.9) < 5 * math.sqrt(0.09 / rest.size)


def test_everyone_errs_on_a_hard_class_and_on_no_other() -> None:
    effects = [HardClass("c1", "c0", 1.0)]
    simulated = simulate_annotations(600, [1.0] * 3, classes=3, effects=effects, seed=0)
    table = simulated.frame
    truth = simulated.truth[table["item"]].to_numpy()
    assert (table["label"].to_numpy() == np.where(truth == "c1", "c0", truth)).all()


def test_a_biased_annotator_gives_one_label_too_often() -> None:
    simulated = simulate_annotations(
        3000, [0.8] * 2, effects=[ClassBias("c1", 0.5, annotators=["a0"])], seed=0
    )
    share = (simulated.annotations.to_wide() == "c1").mean()
    assert abs(share["a0"] - 0.75) < 5 * math.sqrt(0.1875 / 3000)
    assert abs(share["a1"] - 0.5) < 5 * math.sqrt(0.25 / 3000)


def test_abstentions_are_labels_that_are_no_class() -> None:
    simulated = simulate_annotations(2000, 2, effects=[Abstain(0.3, "?", ["a1"])], seed=0)
    assert simulated.abstention == "?" and list(simulated.annotations.classes) == ["c0", "c1", "?"]
    share = (simulated.annotations.to_wide() == "?").mean()
    assert share["a0"] == 0 and abs(share["a1"] - 0.3) < 5 * math.sqrt(0.21 / 2000)
    assert set(simulated.truth) == {"c0", "c1"} and list(simulated.confusion.columns) == ["c0", "c1", "?"]


def test_without_effects_nothing_is_planted() -> None:
    simulated = simulate_annotations(20, 3, seed=0)
    planted = (simulated.difficulty, simulated.misleading, simulated.score, simulated.abstention)
    assert planted == (None,) * 4 and simulated.copies == simulated.cliques == ()
    assert simulated.gold.empty and simulated.annotations.weight is None


def test_gold_is_the_truth_of_a_share_of_items() -> None:
    simulated = simulate_annotations(50, 3, gold=0.3, seed=0)
    assert len(simulated.gold) == 15 and not simulated.gold.index.has_duplicates
    assert (simulated.gold == simulated.truth[simulated.gold.index]).all()
    assert not simulated.gold.index.equals(simulated.truth.index[:15])


def test_weights_and_counts_are_in_their_range() -> None:
    weight = simulate_annotations(300, 3, weights=(0.5, 2.0), seed=0).annotations.weight
    assert weight is not None and 0.5 <= weight.min() < 0.6 and 1.9 < weight.max() <= 2
    assert abs(weight.mean() - 1.25) < 5 * 1.5 / math.sqrt(12 * 900)
    counts = simulate_annotations(300, 3, counts=(1, 3), seed=0).annotations.weight
    assert counts is not None and set(counts) == {1.0, 2.0, 3.0}


# Reproducibility, form, size


@pytest.mark.parametrize("effects", EFFECTS)
def test_the_seed_decides_and_global_generators_do_not(effects: str) -> None:
    def draw(seed: int | np.random.Generator) -> SimulatedAnnotations:
        return simulate_annotations(
            60, 5, classes=3, observed=0.7, effects=EFFECTS[effects], gold=0.2, weights=(1.0, 2.0), seed=seed
        )

    first, state = draw(4), np.random.get_state()[1].copy()
    np.random.seed(0)
    again, other = draw(np.random.default_rng(4)), draw(5)
    assert first.annotations.equals(again.annotations) and not first.annotations.equals(other.annotations)
    pd.testing.assert_series_equal(first.truth, again.truth)
    pd.testing.assert_series_equal(first.gold, again.gold)
    pd.testing.assert_frame_equal(first.confusion, again.confusion)
    assert len(state) == 624


def test_the_frame_gives_the_same_table_back() -> None:
    simulated = simulate_annotations(40, 6, classes=3, labels_per_item=2, weights=(1.0, 2.0), seed=0)
    table = simulated.annotations
    again = Annotations.from_frame(
        simulated.frame,
        weight="weight",
        items=table.items,
        annotators=table.annotators,
        classes=table.classes,
    )
    assert again.equals(table) and list(simulated.frame)[:3] == ["item", "annotator", "label"]


def test_a_million_labels_take_little_memory() -> None:
    """Items x annotators would be 1.6 GB; 1,000,000 rows with four columns of eight bytes are 32 MB."""
    tracemalloc.start()
    effects = [HardItems(0.2), Copies("a0", ["a1"]), Clique(["a2", "a3"])]
    simulated = simulate_annotations(200_000, 1000, labels_per_item=5, activity=1.0, effects=effects, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(simulated.annotations) == 1_000_000 and peak < 400e6


def test_simulators_load_neither_torch_nor_jax() -> None:
    code = "import sys, probcrowd.simulate; assert not {'torch', 'jax', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 0}, "at least one item, not 0"),
        ({"items": pd.Series([], dtype=object), "classes": 2}, "for at least one item"),
        ({"items": pd.Series(["x"]), "classes": ["y"]}, r"must be among \['y'\]"),
        ({"items": pd.Series([0, 1]), "class_prior": [0.5, 0.5]}, "class_prior has no use"),
        ({"annotators": 0}, "at least one annotator"),
        ({"annotators": {"ann": 1.2, "bob": 0.5}}, "annotators 'ann': accuracies must be between 0 and 1"),
        ({"annotators": [0.5, [[0.5, 0.6], [0, 1]]]}, "annotators 'a1'.*rows of matrices >= 0 with sum 1"),
        ({"annotators": pd.DataFrame({"skill": [1.0]})}, r"needs a column 'accuracy', it has \['skill'\]"),
        ({"annotators": np.full((2, 3, 3), 1 / 3)}, r"must have shape \(2, 2\)"),
        ({"annotators": 20_000, "classes": 100}, "200000000 cells, more than 50000000"),
        ({"annotators": OrdinalAnnotators(0)}, "at least one annotator"),
        ({"annotators": OrdinalAnnotators(2, bias=[0.0])}, "bias must be one finite number or 2"),
        ({"annotators": OrdinalAnnotators(2, noise=-1.0)}, "must be >= 0"),
        ({"annotators": OrdinalAnnotators(2, cuts=np.zeros((2, 2)))}, r"shape \(2, 1\)"),
        ({"classes": 0}, "classes must be a positive number or distinct ids"),
        ({"classes": ["x", "x"]}, "distinct ids"),
        ({"class_prior": [0.5, 0.6]}, "2 probabilities with sum 1"),
        ({"labels_per_item": 9}, "labels_per_item=9 needs as many annotators, there are 8"),
        ({"labels_per_item": 0}, "labels_per_item must be at least 1, not 0"),
        ({"labels_per_annotator": 99}, "labels_per_annotator=99 needs as many items"),
        ({"labels_per_item": 2, "observed": 0.5}, "labels_per_item and observed exclude each other"),
        ({"observed": 1.5}, "observed must be between 0 and 1, not 1.5"),
        ({"activity": 1.0}, "activity needs labels_per_item or labels_per_annotator"),
        ({"activity": -1.0, "labels_per_item": 2}, "activity must be finite and >= 0"),
        ({"repeated": 0.5}, "repeated needs labels_per_item"),
        ({"batches": 9}, "batches must be between 1 and the number of annotators, 8, not 9"),
        ({"gold": 2.0}, "gold is the share of items"),
        ({"weights": (0.0, 1.0)}, "range of numbers > 0"),
        ({"weights": (1.0, 2.0), "counts": (1, 2)}, "weights and counts exclude each other"),
        ({"effects": [HardItems(1.5)]}, "share of hard or misleading items must be between 0 and 1, not 1.5"),
        ({"effects": [HardItems(0.5, 2.0)]}, "HardItems: guessing must be between 0 and 1"),
        ({"effects": [HardItems(["i99"])]}, r"items \['i99'\]: each must be one of"),
        ({"effects": [MisleadingItems(0.5)], "classes": 1}, "at least two classes"),
        ({"effects": [ClassBias("c9")]}, r"classes \['c9'\]: each must be one of \['c0', 'c1'\]"),
        ({"effects": [Clique(["a0"])]}, "Clique needs at least two annotators"),
        ({"effects": [Clique(["a0", "a0"])]}, "once"),
        ({"effects": [Abstain(label="c1")]}, "'c1' is one of the classes"),
        ({"effects": [Abstain(), Abstain(label="?")]}, "two labels, 'abstain' and '\\?'"),
        ({"effects": [Copies("a0", ["a0"])]}, "'a0' is its own copy"),
        ({"effects": [Copies("a0", ["a1"]), Copies("a1", ["a2"])]}, "'a1' is both a copy and a source"),
        ({"effects": [Copies("zoe", ["a1"])]}, r"annotators \['zoe'\]: each must be one of"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_annotations(**({"items": 20} | arguments), seed=0)


def test_a_text_is_no_list_of_annotators() -> None:
    with pytest.raises(TypeError, match="annotators must be a list of ids, not the text 'a1'"):
        simulate_annotations(5, 3, effects=[Copies("a0", "a1")], seed=0)


def test_features_need_items_features_and_classes() -> None:
    with pytest.raises(ValueError, match="at least one item, one feature and one class"):
        simulate_features(0, seed=0)

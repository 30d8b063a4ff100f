"""Aggregators as users meet them.

Conventions of scikit-learn, ids, invariances, gold, history, abstentions, confidence, unusual tables, and
values computed by hand.
"""

from __future__ import annotations

import math
import os
import time
import tracemalloc
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.estimators.aggregation.table_aggregator import TableAggregator
from probcrowd.estimators.base import Aggregator, DependenceWarning
from probcrowd.estimators.catalogue import AGGREGATORS, find_aggregator
from probcrowd.metrics.scores import log_losses, scores
from probcrowd.models.priors import CoinPrior, DirichletPrior
from probcrowd.simulate import simulate_annotations

NAMES = list(AGGREGATORS)
TABLES = [name for name, kind in AGGREGATORS.items() if issubclass(kind, TableAggregator)]
HISTORY, EVENTS = (
    [name for name, kind in AGGREGATORS.items() if ability in kind.supports]
    for ability in ("history", "events")
)
SILENT = ["majority-vote", "kos"]  # without an objective
every = pytest.mark.parametrize("name", NAMES)
# A weight of 2 equals a repeated row for these; "averaged" leaves rows out one at a time
COUNTING = [(name, {}) for name in ("majority-vote", "hierarchical-dawid-skene", "mace", "glad", "kos")]
COUNTING = (
    COUNTING[:1]
    + COUNTING[2:]
    + [(n, {"confidence": c}) for n in HISTORY for c in ("plug-in", "variational")]
)
OTHERS: dict[str, dict[str, Any]] = {  # every parameter, at a value other than its default
    "majority-vote": {"ties": "first", "random_state": 3},
    "dawid-skene": {
        "prior": "stan",
        "confidence": "plug-in",
        "tolerance": 1e-4,
        "accelerate": False,
        "abstentions": "event",
        "progress": True,
    },
    "fast-dawid-skene": {
        "prior": "flat",
        "confidence": "variational",
        "abstentions": "event",
        "progress": True,
    },
    "hierarchical-dawid-skene": {
        "prior": "rater",
        "tolerance": 1e-4,
        "abstentions": "event",
        "progress": True,
    },
    "one-coin": {
        "prior": "flat",
        "class_prior": "learned",
        "confidence": "plug-in",
        "tolerance": 1e-4,
        "accelerate": False,
        "progress": True,
    },
    "zencrowd": {"start": 0.7, "confidence": "plug-in", "tolerance": 1e-4, "progress": True},
    "mace": {
        "competence": (1.0, 2.0),
        "habits": 5.0,
        "restarts": 2,
        "random_state": 1,
        "tolerance": 1e-4,
        "progress": True,
    },
    "glad": {"tolerance": 1e-4},
    "minimax-entropy": {"annotator_penalty": 1.0, "item_penalty": 2.0},
    "kos": {"restarts": 3, "random_state": 1},
}
FITTED = [
    "probabilities_",
    "labels_",
    "items_",
    "annotators_",
    "confusion_",
    "class_prior_",
    "dependent_pairs_",
]


def make(name: str, **options: Any) -> Any:
    quick = {"mace": {"restarts": 2, "max_iter": 200}, "hierarchical-dawid-skene": {"tolerance": 1e-6}}
    return find_aggregator(name)(**({"dependence": "ignore"} | quick.get(name, {}) | options))


def simulate(
    seed: int = 0,
    classes: int = 2,
    *,
    items: int = 60,
    annotators: int = 6,
    per_item: int = 4,
    least: float = 0.7,
    most: float = 0.95,
) -> tuple[pd.DataFrame, pd.Series]:
    accuracy = np.random.default_rng(seed).uniform(least, most, annotators)
    simulated = simulate_annotations(items, accuracy, classes=classes, labels_per_item=per_item, seed=seed)
    return simulated.frame, simulated.truth


def codes(
    item: Any, annotator: Any, label: Any, sizes: tuple[int, int, int], weight: np.ndarray | None = None
) -> Annotations:
    columns = [np.asarray(values, np.int64) for values in (item, annotator, label)]
    return Annotations(*columns, *(pd.RangeIndex(size) for size in sizes), weight)


def require_sound(fitted: Aggregator) -> None:
    """Check properties that every fit has."""
    p = fitted.probabilities_
    assert np.isfinite(p.to_numpy()).all() and (p.to_numpy() >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-12)
    assert (
        p.index.name == "item" and p.columns.equals(fitted.classes_) and fitted.labels_.index.equals(p.index)
    )
    assert (
        fitted.labels_.to_numpy() == p.columns.to_numpy()[p.to_numpy().argmax(1)]
    ).mean() > 0.99  # except ties within rounding
    items = fitted.items_
    np.testing.assert_array_equal(items["probability"], p.max(axis=1))
    assert list(items.columns) == ["label", "probability", "num_labels", "tied", "known", "flag"]
    assert set(items["flag"]) <= {"", "no labels", "unknown annotators only"}
    confusion = fitted.confusion_
    assert confusion.index.names == ["annotator", "true_class"] and confusion.columns.name == "label"
    assert (confusion.to_numpy() >= 0).all()
    np.testing.assert_allclose(confusion.sum(axis=1), 1, atol=1e-9)
    annotators = fitted.annotators_
    assert (
        annotators.index.equals(confusion.index.get_level_values(0).unique())
        and np.isfinite(annotators.to_numpy()).all()
    )
    for name in ("accuracy", "information_bits"):
        assert (annotators[f"{name}_lower"] <= annotators[f"{name}_upper"] + 1e-12).all()
    assert annotators["spammer"].between(0, 1).all() and annotators["accuracy"].between(0, 1).all()
    assert math.isclose(fitted.class_prior_.sum(), 1, abs_tol=1e-9) and fitted.class_prior_.index.equals(
        fitted.classes_
    )
    assert fitted.n_iter_ == len(fitted.log_posterior_) and isinstance(fitted.converged_, bool)
    assert np.isfinite(fitted.log_posterior_).all()


# 1. Conventions


@every
def test_parameters_follow_scikit_learn(name: str) -> None:
    options = {"dependence": "discount", "abstention": "?"} | OTHERS[name]
    default = find_aggregator(name)()
    options |= {"max_iter": 7} if hasattr(default, "max_iter") else {}
    assert set(options) == set(default.get_params())
    changed = find_aggregator(name)(**options)
    for parameter, value in default.get_params().items():
        assert changed.get_params()[parameter] != value
        assert f"{parameter}={options[parameter]!r}" in repr(changed).replace("\n", " ").replace("  ", "")
    assert clone(changed).get_params() == changed.get_params() == default.set_params(**options).get_params()
    assert not [
        attribute for attribute in vars(changed) if attribute.endswith("_") or attribute.startswith("_")
    ]
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        default.set_params(colour="red")


@every
def test_a_clone_is_unfitted_and_fits_identically(name: str) -> None:
    table, _ = simulate()
    options = {key: value for key, value in OTHERS[name].items() if key not in ("abstentions", "progress")}
    fitted = make(name, **options).fit(table)
    again = clone(fitted)
    with pytest.raises(NotFittedError):
        again.predict()
    np.testing.assert_array_equal(again.fit(table).predict_proba(), fitted.predict_proba())


@every
def test_results_before_a_fit_raise_not_fitted_error(name: str) -> None:
    aggregator, (table, gold) = make(name), simulate()
    for ask in (aggregator.predict, aggregator.predict_proba, aggregator.describe):
        for argument in (None, table):
            with pytest.raises(NotFittedError, match=type(aggregator).__name__):
                ask(argument)
    with pytest.raises(NotFittedError):
        aggregator.score(None, gold)
    own = [
        attribute
        for attribute in dir(type(aggregator))
        if attribute.endswith("_") and not attribute.startswith("_")
    ]
    for attribute in {*FITTED, *own} - {"refit_gap_", "counts_"}:
        assert not hasattr(aggregator, attribute) or attribute == "confidence"


@every
def test_refitting_discards_the_previous_fit(name: str) -> None:
    old, gold = simulate(0, items=30, annotators=9)
    new, _ = simulate(1)
    reused, fresh = make(name), make(name).fit(new)
    assert reused.fit(old, gold.head(5)) is reused
    for attribute in FITTED[:-1]:
        getattr(reused, attribute)
    assert reused.fit(new) is reused
    for attribute in FITTED[:-1]:
        pd.testing.assert_frame_equal(
            pd.DataFrame(getattr(reused, attribute)), pd.DataFrame(getattr(fresh, attribute))
        )
    assert set(vars(reused)) == set(vars(fresh))
    pd.testing.assert_series_equal(make(name).fit_predict(new), fresh.predict())
    pd.testing.assert_frame_equal(
        make(name).fit_predict_proba(new, gold.head(3)), make(name).fit(new, gold.head(3)).predict_proba()
    )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [(name, {"dependence": "maybe"}, "choose one of warn, discount, ignore") for name in NAMES]
    + [(name, {"abstentions": "maybe"}, "choose one of ignore, event") for name in EVENTS]
    + [(name, {"max_iter": 0}, "max_iter=0: choose a whole number of at least 1") for name in NAMES[1:]]
    + [(name, {"confidence": "high"}, "choose one of averaged, variational, plug-in") for name in HISTORY]
    + [
        (name, {"prior": "firm"}, "'accurate', 'rater', 'stan', 'flat', or give a DirichletPrior")
        for name in EVENTS
    ]
    + [(name, {"prior": 3}, "or give a DirichletPrior") for name in EVENTS]
    + [
        (name, {"tolerance": -1.0}, "tolerance=-1.0")
        for name in ("dawid-skene", "hierarchical-dawid-skene", "one-coin", "mace", "glad")
    ]
    + [
        ("majority-vote", {"ties": "last"}, "choose one of expected, random, first"),
        ("majority-vote", {"dependence": "discount"}, "cannot discount"),
        (
            "dawid-skene",
            {"prior": DirichletPrior(np.ones(3), np.ones((3, 3)))},
            r"\(3, 3\), the table 2 classes",
        ),
        (
            "dawid-skene",
            {"prior": DirichletPrior(np.ones(2), np.full((2, 2), 0.5))},
            "at least 1, the lowest is 0.5",
        ),
        ("one-coin", {"prior": "firm"}, "'accurate', 'rater', 'stan', 'flat', or give a CoinPrior"),
        ("one-coin", {"class_prior": "known"}, "choose one of uniform, learned"),
        (
            "one-coin",
            {"class_prior": "learned", "prior": CoinPrior(np.ones(3), 2.0, 1.0)},
            "for 3 classes, the table has 2",
        ),
        ("zencrowd", {"start": 1.0}, "start=1.0: choose a number between 0 and 1"),
        ("mace", {"competence": (0.0, 0.5)}, "two numbers > 0"),
        ("mace", {"habits": -1.0}, "habits=-1.0"),
        ("mace", {"restarts": 0}, "restarts=0"),
        ("kos", {"restarts": 0}, "restarts=0"),
        ("minimax-entropy", {"item_penalty": -1.0}, "penalties must be > 0"),
    ],
)  # fmt: skip
def test_bad_parameters_raise_at_fit_and_name_the_choices(
    name: str, options: dict[str, Any], words: str
) -> None:
    aggregator = make(name).set_params(**options)
    with pytest.raises(ValueError, match=words):
        aggregator.fit(simulate()[0])
    assert not hasattr(aggregator, "classes_")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EVENTS])
def test_models_without_events_reject_them(name: str) -> None:
    aggregator = make(name)
    aggregator.abstentions = "event"
    with pytest.raises(
        ValueError, match="as events; DawidSkene, FastDawidSkene and HierarchicalDawidSkene can"
    ):
        aggregator.fit(simulate()[0])


def test_names_match_any_spelling() -> None:
    assert find_aggregator("Dawid_Skene") is DawidSkene
    with pytest.raises(ValueError, match="'median': choose one of majority-vote, dawid-skene"):
        find_aggregator("median")


# 2. Results under the user's ids

IDS: dict[str, Any] = {
    "int": lambda names: names.str[1:].astype(int),
    "str": lambda names: names,
    "categorical": lambda names: names.astype("category"),
    "arrow text": lambda names: names.astype("string[pyarrow]"),
    "arrow int": lambda names: names.str[1:].astype("int64[pyarrow]"),
    "nullable int": lambda names: names.str[1:].astype("Int64"),
    "dates": lambda names: pd.Timestamp("2020-01-01") + pd.to_timedelta(names.str[1:].astype(int), unit="D"),
    "bool": lambda names: names.str[1:].astype(int).astype(bool),
    "arrow bool": lambda names: names.str[1:].astype(int).astype("bool[pyarrow]"),
}


RARE = ["nullable int", "arrow int", "dates", "arrow bool"]  # tested with one aggregator of each family


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in NAMES
        for kind in IDS
        if kind not in RARE or name in ("majority-vote", "dawid-skene", "glad")
    ],
)
def test_results_have_the_users_ids_of_any_type(name: str, kind: str) -> None:
    table, truth = simulate(items=15)
    plain = make(name).fit(table, truth.head(2))
    change = IDS[kind]
    named = table.apply(
        lambda column: column if "bool" in kind and column.name != "label" else change(column)
    )
    gold = pd.Series(
        change(truth.head(2)).array,
        index=pd.Index(truth.index[:2] if "bool" in kind else change(truth.index[:2].to_series())),
    )
    fitted = make(name).fit(named, gold)
    require_sound(fitted)
    np.testing.assert_array_equal(fitted.predict_proba(), plain.predict_proba())
    assert list(fitted.classes_) == sorted(set(named["label"]))
    assert (
        list(fitted.predict_proba().index) == list(named["item"].unique())
        and fitted.predict().index.name == "item"
    )
    assert set(fitted.labels_) <= set(named["label"])
    assert (
        list(fitted.annotators_.index) == list(named["annotator"].unique())
        and fitted.annotators_.index.name == "annotator"
    )
    assert set(fitted.confusion_.columns) == set(named["label"])
    assert fitted.items_["known"].sum() == 2 and fitted.score(None, gold) == 1
    np.testing.assert_array_equal(fitted.predict_proba(named), fitted.predict_proba())


@pytest.mark.parametrize(
    ("name", "classes"), [(name, k) for name in NAMES for k in (2, 3) if name != "kos" or k == 2]
)
def test_every_fit_is_sound(name: str, classes: int) -> None:
    table, truth = simulate(2, classes, items=120)
    fitted = make(name).fit(table)
    require_sound(fitted)
    assert (
        fitted.items_["num_labels"].eq(4).all()
        and not fitted.items_["known"].any()
        and fitted.items_["flag"].eq("").all()
    )
    np.testing.assert_allclose(
        fitted.annotators_["num_labels"],
        table["annotator"].value_counts()[fitted.annotators_.index],
        atol=1e-9,
    )
    assert fitted.score(None, truth) > 0.85
    accuracy = (
        pd.Series(table["label"].to_numpy() == truth[table["item"]].to_numpy())
        .groupby(table["annotator"].to_numpy())
        .mean()
    )
    assert np.corrcoef(fitted.annotators_["accuracy"], accuracy[fitted.annotators_.index])[0, 1] > 0.7


def test_ties_are_reported() -> None:
    table = pd.DataFrame(
        {"item": [1, 1, 2, 3, 3], "annotator": [1, 2, 1, 1, 2], "label": ["b", "a", "b", "b", "a"]}
    )
    gold = pd.Series({1: "b", 2: "b", 3: "b"})
    voted = make("majority-vote").fit(table)
    assert voted.items_["tied"].tolist() == [True, False, True] and voted.labels_.tolist() == ["a", "b", "a"]
    assert math.isclose(voted.score(None, gold), 2 / 3) and math.isclose(
        make("majority-vote", ties="first").fit(table).score(None, gold), 1 / 3
    )
    drawn = [
        make("majority-vote", ties="random", random_state=seed).fit(table).labels_.tolist()
        for seed in range(60)
    ]
    assert {tuple(labels) for labels in drawn} == set(product("ab", "b", "ab"))
    twice = [
        make("majority-vote", ties="random", random_state=7).fit_predict(table).tolist() for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_score_needs_gold_of_these_items() -> None:
    table, truth = simulate()
    fitted = make("dawid-skene").fit(table)
    with pytest.raises(ValueError, match="no class of any of the items: its ids are 'x'"):
        fitted.score(None, pd.Series({"x": "c0"}))
    assert fitted.score(None, truth.head(1).replace({"c0": "c9", "c1": "c9"})) == 0


# 3. Invariances


@every
def test_row_order_only_changes_the_order_of_results(name: str) -> None:
    table, truth = simulate(3, items=80)
    straight, shuffled = (
        make(name).fit(table, truth.head(4)),
        make(name).fit(table.sample(frac=1, random_state=1), truth.head(4)),
    )
    atol = (
        0.02 if name == "kos" else 2e-4
    )  # starts depend on positions; the others stop at slightly different points
    np.testing.assert_allclose(
        shuffled.predict_proba().loc[straight.predict_proba().index], straight.predict_proba(), atol=atol
    )
    np.testing.assert_allclose(
        shuffled.confusion_.loc[straight.confusion_.index], straight.confusion_, atol=atol
    )


@every
def test_renaming_only_permutes_results(name: str) -> None:
    table, truth = simulate(4, 2 if name == "kos" else 3, items=80)
    classes = sorted(set(table["label"]))
    renamed = dict(zip(classes, ["z", "m", "b"], strict=False))  # in another order
    other = pd.DataFrame(
        {
            "item": "x" + table["item"],
            "annotator": "y" + table["annotator"],
            "label": table["label"].map(renamed),
        }
    )
    gold = truth.head(4)
    before, after = (
        make(name).fit(table, gold),
        make(name).fit(other, gold.map(renamed).rename(index=lambda i: f"x{i}")),
    )
    columns = [renamed[c] for c in before.classes_]
    atol = 0.02 if name == "kos" else 2e-4
    np.testing.assert_allclose(after.predict_proba()[columns], before.predict_proba(), atol=atol)
    np.testing.assert_allclose(after.class_prior_[columns], before.class_prior_, atol=atol)
    clear = ~before.items_["tied"].to_numpy()
    assert (after.labels_.to_numpy() == before.labels_.map(renamed).to_numpy())[clear].all()


@pytest.mark.parametrize(("name", "options"), COUNTING)
def test_a_weight_of_two_is_a_row_twice(name: str, options: dict[str, Any]) -> None:
    table, _ = simulate(5)
    twice = table.iloc[::3]
    doubled = Annotations.from_frame(pd.concat([table, twice]), duplicates="count")
    heavy = Annotations.from_frame(table.assign(w=np.where(table.index % 3 == 0, 2.0, 1.0)), weight="w")
    atol = {"kos": 0.02, "mace": 2e-3, "zencrowd": 1e-3}.get(
        name, 1e-4
    )  # starts depend on positions; stopping points differ
    pair = [make(name, **options).fit(annotations).predict_proba() for annotations in (doubled, heavy)]
    np.testing.assert_allclose(pair[0], pair[1], atol=atol)
    once = make(name, **options).fit(table).predict_proba()
    assert np.abs(once - pair[0]).to_numpy().max() > 10 * atol


@every
def test_an_annotator_without_rows_changes_nothing(name: str) -> None:
    table, _ = simulate(6)
    ids = [*table["annotator"].unique(), "idle"]
    alone, more = make(name).fit(table), make(name).fit(Annotations.from_frame(table, annotators=ids))
    atol = 2e-3 if name == "mace" else 1e-9  # starts are drawn for all annotators
    np.testing.assert_allclose(more.predict_proba(), alone.predict_proba(), atol=atol)
    assert list(more.annotators_.index) == ids and more.annotators_.loc["idle", "num_labels"] == 0
    require_sound(more)


@every
def test_an_item_without_rows_has_the_class_prior_and_a_flag(name: str) -> None:
    table, _ = simulate(8)
    table = table.loc[(table["label"] == "c0") | (table.index % 2 == 0)]  # unequal classes
    items = [*table["item"].unique(), "blank"]
    options = {"confidence": "plug-in"} if name in HISTORY else {}
    fitted = make(name, **options).fit(Annotations.from_frame(table, items=items))
    blank = fitted.items_.loc["blank"]
    assert (
        blank["flag"] == "no labels"
        and blank["num_labels"] == 0
        and (fitted.items_["flag"] == "").sum() == len(items) - 1
    )
    expected = np.full(2, 0.5) if name == "majority-vote" else fitted.class_prior_  # no votes
    tolerance = (
        0.02 if name == "hierarchical-dawid-skene" else 1e-9
    )  # the class prior leaves out the item's own share
    np.testing.assert_allclose(fitted.predict_proba().loc["blank"], expected, atol=tolerance)
    if name in EVENTS:
        assert abs(fitted.class_prior_.iloc[0] - 0.5) > 0.05
    if name in HISTORY:
        without = make(name, **options).fit(table).predict_proba()
        np.testing.assert_allclose(fitted.predict_proba().iloc[:-1], without, atol=0.02)


@every
def test_predicting_the_fitted_table_returns_the_fitted_results(name: str) -> None:
    table, truth = simulate(8)
    annotations = Annotations.from_frame(table.assign(w=1 + table.index % 3), weight="w")
    for options in [{}] + (
        [{"confidence": c} for c in ("variational", "plug-in")] if name in HISTORY else []
    ):
        fitted = make(name, **options).fit(annotations, truth.head(5))
        np.testing.assert_array_equal(fitted.predict_proba(annotations), fitted.predict_proba())
        pd.testing.assert_series_equal(fitted.predict(annotations), fitted.predict())
        some = Annotations.from_frame(
            annotations.to_frame().iloc[::-1].query("item in ['i3', 'i40']"), weight="weight"
        )
        np.testing.assert_array_equal(fitted.predict_proba(some), fitted.predict_proba().loc[["i40", "i3"]])


@pytest.mark.parametrize("name", HISTORY)
def test_new_items_follow_bayes_rule(name: str) -> None:
    table, _ = simulate(9)
    new, _ = simulate(10, items=12)
    new["item"] = "new " + new["item"]
    fitted = make(name, confidence="plug-in").fit(table)
    for item, result in fitted.predict_proba(new).iterrows():
        product = fitted.class_prior_.to_numpy().copy()
        for _, row in new.loc[new["item"] == item].iterrows():
            product *= fitted.confusion_.loc[row["annotator"]][row["label"]].to_numpy()
        np.testing.assert_allclose(result, product / product.sum(), atol=1e-9)


@every
def test_new_items_are_predicted_as_in_a_fit_of_all_items(name: str) -> None:
    table, truth = simulate(11, items=300, per_item=5)
    old, new = table.iloc[:1000], table.iloc[1000:]
    fitted, known = make(name).fit(old), truth[new["item"].unique()]
    result = fitted.predict_proba(new)
    assert np.abs(result - make(name).fit(table).predict_proba().loc[result.index]).to_numpy().mean() < 0.03
    assert fitted.score(new, known) > 0.9 and list(result.index) == list(known.index)
    assert fitted.describe(new)["num_labels"].eq(5).all()


@every
def test_unknown_annotators_are_warned_about_and_flagged(name: str) -> None:
    table, _ = simulate(12)
    fitted = make(name).fit(table)
    new = pd.DataFrame(
        {"item": ["n1", "n1", "n2"], "annotator": ["a1", "zoe", "zoe"], "label": ["c1", "c1", "c1"]}
    )
    meaning = {
        "majority-vote": "vote like all others",
        "glad": "are left out",
        "minimax-entropy": "are left out",
        "kos": "are left out",
    }
    with pytest.warns(
        UserWarning,
        match="1 annotators are not known from the fit and "
        f"{meaning.get(name, 'are taken as the prior has them')}: 'zoe'",
    ):
        result = fitted.describe(new)
    assert result["flag"].tolist() == ["", "unknown annotators only"] and result["num_labels"].tolist() == [
        2,
        1,
    ]
    with pytest.warns(UserWarning, match="'zoe'"):
        probability = fitted.predict_proba(new).loc["n2", "c1"]
    if "left out" in meaning.get(name, "") or name == "zencrowd":  # a flat prior trusts no annotator
        assert abs(probability - 0.5) < 1e-12
    else:
        assert probability > 0.5


@every
def test_labels_that_are_not_in_the_fit_are_rejected(name: str) -> None:
    fitted = make(name).fit(simulate(13)[0])
    new = pd.DataFrame({"item": ["n1", "n2"], "annotator": ["a1", "a1"], "label": ["c1", "c7"]})
    with pytest.raises(
        ValueError,
        match=r"labels of items that the fit does not know: its classes are \['c0', 'c1'\]"
        r".*'n2'; values: 'c7'",
    ):
        fitted.predict(new)
    wider = Annotations.from_frame(new.head(1), classes=["c7", "c1", "c0"])  # declared, not used
    assert list(fitted.predict_proba(wider).columns) == ["c0", "c1"]


# 4. The objective never falls


@pytest.mark.parametrize(
    ("name", "confidence"),
    [(name, c) for name in NAMES for c in ("averaged", "variational") if name in HISTORY or c == "averaged"],
)
def test_the_objective_never_falls(name: str, confidence: str) -> None:
    options = {"confidence": confidence} if name in HISTORY else {}
    for seed in range(2):
        table, truth = simulate(seed, 2 if name == "kos" else 3, least=0.3)
        objective = make(name, **options).fit(table, truth.head(3)).log_posterior_
        if name in SILENT:
            assert objective.size == 0
            continue
        assert objective.size > 1 and objective[-1] > objective[0] or name == "fast-dawid-skene"
        if name != "fast-dawid-skene":
            assert (np.diff(objective) >= -1e-9 * np.abs(objective[:-1])).all()


# 5. Gold


@every
def test_gold_is_certain_and_improves_the_other_items(name: str) -> None:
    """Two good annotators against three who give the opposite label: votes mislead, gold corrects them."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=60)
    flip = rng.random((60, 5)) < [0.1, 0.1, 0.9, 0.9, 0.9]
    table = Annotations.from_wide(truth[:, None] ^ flip, classes=[0, 1])
    known = pd.Series(truth[:30])
    without, fitted = make(name).fit(table), make(name).fit(table, known)
    assert (fitted.predict_proba().to_numpy()[np.arange(30), truth[:30]] == 1).all() and fitted.items_[
        "known"
    ].tolist() == [True] * 30 + [False] * 30
    rest = pd.Series(truth[30:], index=range(30, 60))
    if name == "majority-vote":
        assert fitted.score(None, rest) == without.score(None, rest) < 0.5
    else:
        assert fitted.score(None, rest) > 0.9 and without.score(None, rest) < 0.5


@every
def test_gold_is_validated(name: str) -> None:
    table, truth = simulate(14)
    plain = make(name).fit(table).predict_proba()
    foreign = pd.Series({"elsewhere": "c0", "i3": None})
    np.testing.assert_array_equal(make(name).fit(table, foreign).predict_proba(), plain)
    everything = make(name).fit(table, truth)
    require_sound(everything)
    assert (everything.labels_ == truth[everything.labels_.index]).all() and (
        everything.items_["probability"] == 1
    ).all()
    with pytest.raises(ValueError, match="more than one gold label"):
        make(name).fit(table, pd.Series(["c0", "c1"], index=["i3", "i3"]))
    with pytest.raises(ValueError, match="none of the classes.*'i3'; values: 'c9'"):
        make(name).fit(table, pd.Series({"i3": "c9"}))
    with pytest.raises(TypeError):
        make(name).fit(table, {"i3": "c0"})


# 6. History


@pytest.mark.parametrize("name", HISTORY)
def test_a_long_history_determines_the_annotator(name: str) -> None:
    table, _ = simulate(15, least=0.9, most=0.95)
    liar = pd.DataFrame(
        {
            "annotator": "a0",
            "true_class": ["c0", "c0", "c1", "c1"],
            "label": ["c0", "c1", "c1", "c0"],
            "count": [3e4, 7e4] * 2,
        }
    )
    number = table["annotator"].eq("a0").sum()
    fitted = make(name).fit(table, history=liar)
    rows = fitted.confusion_.loc["a0"].to_numpy()
    assert (
        np.abs(rows - [[0.3, 0.7], [0.7, 0.3]]).max() < 2 * number / 2e5
        and make(name).fit(table).confusion_.loc["a0"].to_numpy()[0, 0] > 0.7
    )
    assert (
        abs(fitted.annotators_.loc["a0", "accuracy"] - 0.3) < 0.001
        and fitted.annotators_.loc["a0", "num_labels"] <= number + 1e-9
    )
    unheard = make(name).fit(table, history=liar.assign(annotator="earlier"))
    assert (
        unheard.annotators_.loc["earlier", "num_labels"] == 0
        and abs(unheard.annotators_.loc["earlier", "accuracy"] - 0.3) < 0.001
    )
    new = pd.DataFrame({"item": ["n"], "annotator": ["earlier"], "label": ["c0"]})  # known: no warning
    assert unheard.predict(new)["n"] == "c1"


@pytest.mark.parametrize("name", HISTORY)
def test_counts_of_one_fit_are_the_history_of_the_next(name: str) -> None:
    first, truth = simulate(16, items=200)
    second, other = simulate(17, items=200)
    second["item"] = "later " + second["item"]
    other = other.rename(index=lambda i: f"later {i}")
    both = pd.concat([first, second])
    options = {"class_prior": "uniform"} if name == "one-coin" else {}
    for gold, tolerance in (((truth, other), 1e-9), ((None, None), 0.06)):
        earlier = make(name, **options).fit(first, gold[0])
        chained = make(name, **options).fit(second, gold[1], history=earlier.counts_)
        together = make(name, **options).fit(both, None if gold[0] is None else pd.concat(gold))
        np.testing.assert_allclose(
            chained.confusion_.loc[together.confusion_.index], together.confusion_, atol=tolerance
        )
        if gold[0] is None:
            late = together.predict_proba().loc[chained.predict_proba().index]
            alone = make(name, **options).fit(second).predict_proba()
            apart = [np.abs(p - late).to_numpy().mean() for p in (chained.predict_proba(), alone)]
            assert apart[0] < 0.5 * apart[1]
        else:
            key = ["annotator", "true_class", "label"]
            pd.testing.assert_series_equal(
                chained.counts_.set_index(key)["count"].sort_index(),
                together.counts_.set_index(key)["count"].sort_index(),
                rtol=1e-9,
            )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": -1.0}, "finite and >= 0 .*rows: 0, 1.*-1.0"),
        ({"count": "many"}, "finite and >= 0 .*'many'"),
        ({"count": np.nan}, "finite and >= 0"),
        ({"true_class": "c9"}, r"classes of the history that are none of \['c0', 'c1'\].*rows: 0.*'c9'"),
        ({"label": "c9"}, r"labels of the history that are none of.*rows: 0.*'c9'"),
        ({"annotator": None}, "missing annotator ids in the history .*rows: 0"),
        ({"annotator": 5}, "of several kinds: text 'a., number 5|of several kinds"),
    ],
)
def test_errors_in_a_history_name_the_rows(change: dict[str, Any], words: str) -> None:
    table, _ = simulate(18)
    history = make("dawid-skene").fit(table).counts_
    with pytest.raises(ValueError, match=words):
        make("dawid-skene").fit(table, history=history.assign(**change))


def test_a_history_needs_its_columns_and_a_model_that_supports_it() -> None:
    table, _ = simulate(18)
    history = make("dawid-skene").fit(table).counts_
    with pytest.raises(ValueError, match="needs the columns .*; count, label is missing"):
        make("dawid-skene").fit(table, history=history.drop(columns=["count", "label"]))
    with pytest.raises(TypeError):
        make("dawid-skene").fit(table, history=history.to_dict())
    for name in NAMES:
        if name not in HISTORY:
            with pytest.raises(
                ValueError, match="takes no history; DawidSkene, FastDawidSkene, OneCoin and ZenCrowd do"
            ):
                make(name).fit(table, history=history)
    nothing = make("dawid-skene").fit(table, history=history.head(0)).predict_proba()
    np.testing.assert_array_equal(nothing, make("dawid-skene").fit(table).predict_proba())


# 7. Abstentions


@every
def test_ignored_abstentions_equal_absent_rows(name: str) -> None:
    table, truth = simulate(19)
    silent = table.assign(label=np.where(table.index % 7 == 0, "?", table["label"]))
    silent.loc[silent["item"] == "i5", "label"] = "?"
    annotations = silent.loc[silent["label"] != "?"]
    retained = Annotations.from_frame(
        annotations, items=table["item"].unique(), annotators=table["annotator"].unique()
    )
    fitted, expected = (
        make(name, abstention="?").fit(silent, truth.head(3)),
        make(name).fit(retained, truth.head(3)),
    )
    np.testing.assert_array_equal(fitted.predict_proba(), expected.predict_proba())
    assert list(fitted.classes_) == ["c0", "c1"] and list(fitted.confusion_.columns) == ["c0", "c1"]
    assert fitted.items_.loc["i5", "flag"] == "no labels" and fitted.items_.loc["i5", "num_labels"] == 0
    np.testing.assert_array_equal(fitted.predict_proba(silent), fitted.predict_proba())
    new = annotations.assign(item="n" + annotations["item"])
    np.testing.assert_array_equal(fitted.predict_proba(new), expected.predict_proba(new))
    nothing = fitted.describe(new.head(2).assign(label="?"))  # a batch of abstentions alone
    assert nothing["flag"].eq("no labels").all() and nothing["num_labels"].eq(0).all()
    with pytest.raises(ValueError, match="every label is an abstention"):
        make(name, abstention="?").fit(table.assign(label="?"))
    with pytest.raises(
        ValueError,
        match=r"no row has the abstention label '\?'; labels are \['c0', 'c1'\]",
    ):
        make(name, abstention="?").fit(table)


@pytest.mark.parametrize("name", EVENTS)
def test_abstentions_as_events_are_informative(name: str) -> None:
    """All annotators abstain on 70 % of items of class 0 and on 10 % of class 1."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=600)
    silent = rng.random((600, 4)) < np.where(truth == 0, 0.7, 0.1)[:, None]
    label = np.where(
        silent, "?", np.where(rng.random((600, 4)) < 0.9, truth[:, None], 1 - truth[:, None]).astype(str)
    )
    table = Annotations.from_wide(label, classes=["0", "1", "?"])
    fitted = make(name, abstention="?", abstentions="event").fit(table)
    require_sound(fitted)
    assert list(fitted.confusion_.columns) == ["0", "1", "?"]
    np.testing.assert_allclose(
        fitted.confusion_.groupby("true_class")["?"].mean(), [0.7, 0.1], atol=0.06
    )  # sqrt(.7 .3 / 1200) = .013, and EM
    confusion = np.array([[0.27, 0.03, 0.7], [0.09, 0.81, 0.1]])
    column = {"0": 0, "1": 1, "?": 2}
    log = np.log(confusion[:, [[column[l] for l in row] for row in label]]).sum(2).T
    bayes = np.exp(log - log.max(1, keepdims=True))
    bayes /= bayes.sum(1, keepdims=True)
    assert np.abs(fitted.predict_proba().to_numpy() - bayes).mean() < 0.03
    deaf = make(name, abstention="?").fit(table).predict_proba().to_numpy()
    losses = [log_losses(p, truth) for p in (fitted.predict_proba().to_numpy(), deaf)]
    gain = losses[1] - losses[0]
    assert gain.mean() > 3 * gain.std() / math.sqrt(600)
    quiet = fitted.items_.loc[(label == "?").all(1)]
    assert (
        len(quiet) > 20
        and (quiet["label"] == "0").all()
        and quiet["flag"].eq("").all()
        and quiet["num_labels"].eq(4).all()
    )
    new = pd.DataFrame({"item": ["x", "y", "y"], "annotator": [0, 0, 1], "label": ["?", "1", "1"]})
    assert (
        fitted.predict(new).tolist()
        == ["0", "1"]
        == [*fitted.predict(new.head(1)), *fitted.predict(new.tail(2))]
    )


# 8. Confidence


def averaged_by_hand(
    annotations: Annotations,
    gold: np.ndarray,
    r: np.ndarray,
    prior: np.ndarray,
    class_prior: np.ndarray | None,
    *,
    coin: bool,
    rho: float = 0.0,
) -> np.ndarray:
    """Probabilities at posterior means without the item's counts. prior: (j, k, l), or (j, 2) of a coin."""
    num_items, num_classes = r.shape
    weight = np.ones(len(annotations)) if annotations.weight is None else annotations.weight
    counts = np.zeros((annotations.num_annotators, num_classes, num_classes))
    for i, j, l, w in zip(annotations.item, annotations.annotator, annotations.label, weight, strict=True):
        counts[j, :, l] += w * r[i]
    result = np.zeros(r.shape)
    for i in range(num_items):
        if gold[i] >= 0:
            result[i, gold[i]] = 1
            continue
        rows = np.flatnonzero(annotations.item == i)
        worth = 1 / (1 + (len(rows) - 1) * rho)
        log = np.zeros(num_classes)
        for k in range(num_classes):
            if class_prior is not None:
                log[k] = math.log(
                    (r[:, k].sum() - r[i, k] + class_prior[k]) / (num_items - 1 + class_prior.sum())
                )
            for n in rows:
                j, l, w = annotations.annotator[n], annotations.label[n], weight[n]
                if coin:
                    right, total = counts[j].trace() - w * r[i, l], counts[j].sum() - w
                    wrong = (total - right + prior[j, 1]) / (num_classes - 1)
                    mean = (right + prior[j, 0] if k == l else wrong) / (total + prior[j].sum())
                else:
                    own = w * r[i, k]
                    mean = (counts[j, k, l] - own + prior[j, k, l]) / (
                        counts[j, k].sum() - own + prior[j, k].sum()
                    )
                log[k] += worth * w * math.log(mean)
        result[i] = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    return result


@pytest.mark.parametrize("name", HISTORY)
@pytest.mark.parametrize("extra", ["nothing", "weights", "gold", "history"])
def test_averaged_probabilities_match_the_formula(name: str, extra: str) -> None:
    table, truth = simulate(20, 3, items=40, annotators=8)
    earlier = make(name).fit(simulate(21, 3, annotators=8)[0]).counts_ if extra == "history" else None
    weight = {"weight": "w"} if extra == "weights" else {}
    annotations = Annotations.from_frame(table.assign(w=0.5 + table.index % 3), **weight)
    known = truth.head(6) if extra == "gold" else None
    options: dict[str, Any] = {"class_prior": "learned"} if name == "one-coin" else {}
    averaged, plugged = (
        make(name, confidence=c, **options).fit(annotations, known, history=earlier)
        for c in ("averaged", "plug-in")
    )
    r = plugged.predict_proba().to_numpy()
    if name == "fast-dawid-skene":
        r = np.eye(3)[r.argmax(1)]
    gold = (
        np.full(40, -1)
        if known is None
        else annotations.classes.get_indexer(known.reindex(annotations.items))
    )
    past = np.zeros((8, 3, 3))
    if earlier is not None:
        place = averaged.annotators_.index.get_indexer(earlier["annotator"])
        np.add.at(
            past,
            (place, *(annotations.classes.get_indexer(earlier[c]) for c in ("true_class", "label"))),
            earlier["count"].to_numpy(),
        )
    diagonal, elsewhere = (1.0, 1.0) if name == "zencrowd" else (2 * 0.7 / 0.3, 1.0)
    if coin := name in ("one-coin", "zencrowd"):
        hits = past.trace(axis1=1, axis2=2)
        wrong = elsewhere * (1 if name == "zencrowd" else 2)
        prior = np.stack([diagonal + hits, wrong + past.sum((1, 2)) - hits], 1)
    else:
        prior = past + elsewhere + (diagonal - elsewhere) * np.eye(3)
    expected = averaged_by_hand(
        annotations, gold, r, prior, None if name == "zencrowd" else np.ones(3), coin=coin
    )
    np.testing.assert_allclose(averaged.predict_proba(), expected, atol=1e-7)
    assert np.abs(expected - r).max() > 0.01


@pytest.mark.parametrize("name", ["dawid-skene", "one-coin"])
def test_averaged_probabilities_are_better_calibrated_than_those_of_the_mode(name: str) -> None:
    """Ten labels per annotator: by more than three standard errors of paired differences over tables."""
    gains = []
    for seed in range(16):
        table, truth = simulate(100 + seed, 3, items=120, annotators=48, least=0.4)
        result = [
            scores(
                make(name, confidence=c).fit_predict_proba(table).to_numpy(),
                truth.str[1:].astype(int).to_numpy(),
            )
            for c in ("plug-in", "averaged")
        ]
        gains.append(
            [result[0][measure] - result[1][measure] for measure in ("log_loss", "calibration_error")]
        )
    mean, error = np.mean(gains, 0), np.std(gains, 0, ddof=1) / math.sqrt(len(gains))
    assert (mean > 3 * error).all() and (error > 0).all()


@pytest.mark.parametrize("name", HISTORY)
def test_variational_probabilities_differ_and_their_bound_rises(name: str) -> None:
    table, truth = simulate(22, 3, annotators=20, least=0.5)
    result = {
        c: make(name, confidence=c).fit(table, truth.head(3)) for c in ("averaged", "variational", "plug-in")
    }
    p = {c: fitted.predict_proba().to_numpy() for c, fitted in result.items()}
    for one, other in (("averaged", "variational"), ("variational", "plug-in")):
        assert np.abs(p[one] - p[other]).max() > 0.01
    bound = result["variational"]._fitted.model.last.objective
    if name != "fast-dawid-skene":
        assert (
            len(bound) > 1 and bound[-1] > bound[0] and (np.diff(bound) >= -1e-9 * np.abs(bound[:-1])).all()
        )
    assert p["variational"].max(1).mean() < p["plug-in"].max(1).mean()


def with_copies(seed: int, copies: int) -> tuple[pd.DataFrame, pd.Series]:
    """Annotators who label 80 % of items; `copies` of them copy one whose accuracy is 70 %."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(2, size=150)
    right = rng.random((150, 5 + copies)) < [0.85, 0.85, 0.85, 0.85, *[0.7] * (1 + copies)]
    right[:, 5:] = right[:, [4]]
    wide = np.where(right, truth[:, None], 1 - truth[:, None])
    there = rng.random(wide.shape) < 0.8
    item, annotator = np.nonzero(there)
    names = np.array([f"own{j}" for j in range(4)] + [f"copy{j}" for j in range(1 + copies)])
    return pd.DataFrame({"item": item, "annotator": names[annotator], "label": wide[there]}), pd.Series(truth)


@every
def test_copies_are_reported_and_independent_annotators_are_not(name: str) -> None:
    copied, _ = with_copies(0, 2)
    with pytest.warns(DependenceWarning) as caught:
        make(name, dependence="warn").fit(copied)
    words = " ".join(str(warning.message) for warning in caught)
    assert all(f"copy{j}" in words for j in range(3)) and "own" not in words
    pairs = make(name, dependence="ignore").fit(copied)
    assert pairs.dependence_ is None
    with pytest.raises(ValueError, match="dependence was not checked"):
        _ = pairs.dependent_pairs_
    for seed in range(2):
        fitted = make(name, dependence="warn").fit(
            with_copies(seed, 0)[0]
        )  # a warning would be an error here
        assert not fitted.dependent_pairs_["near_duplicate"].any() and len(fitted.dependent_pairs_) == 10
        assert set(fitted.dependent_pairs_["annotator"]) <= set(fitted.annotators_.index)


@pytest.mark.parametrize("name", ["dawid-skene", "one-coin"])
def test_discounted_labels_have_their_effective_weight(name: str) -> None:
    table, truth = with_copies(1, 3)
    plugged = make(name, confidence="plug-in").fit(table)
    discounted, trusting = (
        make(name, dependence=dependence).fit(table) for dependence in ("discount", "ignore")
    )
    rho = discounted.dependence_.residual
    assert rho > 0.1
    annotations = Annotations.from_frame(table)
    concentrations = np.tile([0.7 / 0.3, 1.0], (8, 1))
    prior = concentrations if name == "one-coin" else np.array([[c, c[::-1]] for c in concentrations])
    class_prior = None if name == "one-coin" else np.ones(2)
    r, gold = plugged.predict_proba().to_numpy(), np.full(150, -1)
    for fitted, rate in ((discounted, rho), (trusting, 0.0)):
        expected = averaged_by_hand(
            annotations, gold, r, prior, class_prior, coin=name == "one-coin", rho=rate
        )
        np.testing.assert_allclose(fitted.predict_proba(), expected, atol=1e-7)
    losses = [
        log_losses(fitted.predict_proba().loc[range(150)].to_numpy(), truth.to_numpy()).mean()
        for fitted in (discounted, trusting)
    ]
    assert losses[0] < losses[1]
    new = table.assign(item=table["item"] + 1000)
    assert discounted.predict_proba(new).max(axis=1).mean() < trusting.predict_proba(new).max(axis=1).mean()


@every
def test_every_model_that_supports_discounting_discounts(name: str) -> None:
    table, _ = with_copies(1, 3)
    if name not in TABLES:
        with pytest.raises(ValueError, match="cannot discount dependent labels"):
            make(name, dependence="discount").fit(table)
        return
    discounted, trusting = (
        make(name, dependence=dependence).fit(table) for dependence in ("discount", "ignore")
    )
    assert discounted.predict_proba().max(axis=1).mean() < trusting.predict_proba().max(axis=1).mean() - 1e-4
    np.testing.assert_array_equal(discounted.predict_proba(table), discounted.predict_proba())


def test_no_copying_rate_where_annotators_have_few_labels_for_many_classes() -> None:
    table, _ = simulate(23, 30, items=200, annotators=40, per_item=3, least=0.6)
    fitted = make("dawid-skene", dependence="warn").fit(table)  # a warning would be an error here
    assert math.isnan(fitted.dependence_.residual) and "too few labels" in fitted.dependence_.note
    discounted = make("dawid-skene", dependence="discount").fit(table)
    np.testing.assert_array_equal(discounted.predict_proba(), fitted.predict_proba())
    assert not math.isnan(make("dawid-skene", dependence="warn").fit(simulate(23, 3)[0]).dependence_.residual)


# 9. Degenerate tables


@every
@pytest.mark.parametrize(
    "kind", ["plain", "gold", "one label of an annotator", "one label of each item", "copies"]
)
def test_tiny_tables(name: str, kind: str) -> None:
    """No warnings; a single class is certain, one that all labels name at least as likely as the other."""
    for annotators, classes, items in product((1, 2), (1, 2), (1, 2)):
        rows = [
            (i, j, (i + (j if kind != "copies" else 0)) % classes)
            for i in range(items)
            for j in range(annotators)
        ]
        if kind == "one label of an annotator":
            rows = [row for row in rows if row[1] == 0 or row[0] == 0]
        if kind == "one label of each item":
            rows = [row for row in rows if row[1] == row[0] % annotators]
        annotations = codes(*zip(*rows, strict=True), (items, annotators, classes))
        gold = pd.Series([i % classes for i in range(items)]) if kind == "gold" else None
        aggregator = make(name, dependence="warn")
        if name == "kos" and classes == 1:
            with pytest.raises(ValueError, match="KOS needs exactly two classes, the table has 1:"):
                aggregator.fit(annotations, gold)
            continue
        fitted = aggregator.fit(annotations, gold)
        require_sound(fitted)
        p = fitted.predict_proba().to_numpy()
        np.testing.assert_array_equal(fitted.predict_proba(annotations), p)
        if classes == 1 or kind == "gold":
            np.testing.assert_array_equal(p, np.eye(classes)[[i % classes for i in range(items)]])
        elif annotators == 1 or kind in ("copies", "one label of each item"):
            for i, _, label in rows:
                assert p[i, label] >= 0.5 - 1e-9


@every
def test_tables_without_labels(name: str) -> None:
    with pytest.raises(ValueError, match="holds no annotation: 0 rows"):
        make(name).fit(simulate()[0].head(0))
    with pytest.raises(
        TypeError,
        match="data frame with item, annotator and label, or an Annotations, not ndarray: a matrix goes to",
    ):
        make(name).fit(np.zeros((3, 2)))
    if name in (
        "one-coin",
        "zencrowd",
    ):  # counts without rows are integers, which the type checks reject
        return
    fitted = make(name, dependence="warn").fit(codes([], [], [], (3, 2, 2)))
    require_sound(fitted)
    assert fitted.items_["flag"].eq("no labels").all()


@pytest.mark.parametrize(
    "name", ["dawid-skene", "fast-dawid-skene", "hierarchical-dawid-skene", "minimax-entropy"]
)
def test_an_adversarial_majority_wins_until_there_is_gold(name: str) -> None:
    """Three of five say the next class: without gold, renamed classes fit as well, so the votes decide."""
    rng = np.random.default_rng(1)
    truth = rng.integers(3, size=90)
    wide = np.where(rng.random((90, 5)) < 0.95, truth[:, None], rng.integers(3, size=(90, 5)))
    wide[:, 2:] = (wide[:, 2:] + 1) % 3
    table, known = Annotations.from_wide(wide, classes=[0, 1, 2]), pd.Series(truth)
    assert make(name).fit(table).score(None, known) < 0.1
    repaired = make(name).fit(table, known.head(20))
    assert repaired.score(None, known.tail(70)) > 0.95
    confusion = repaired.confusion_.groupby("annotator").apply(
        lambda matrix: float(np.diagonal(matrix).mean())
    )
    assert (confusion.iloc[:2] > 0.75).all() and (confusion.iloc[2:] < 0.25).all()


@pytest.mark.parametrize("name", ["majority-vote", "dawid-skene", "fast-dawid-skene", "one-coin", "glad"])
def test_a_thousand_classes(name: str) -> None:
    rng = np.random.default_rng(0)
    truth, item = rng.integers(1000, size=400), np.repeat(np.arange(400), 3)
    annotator = np.concatenate([rng.choice(250, 3, replace=False) for _ in truth])
    label = np.where(rng.random(1200) < 0.8, truth[item], rng.integers(1000, size=1200))
    annotations, gold = codes(item, annotator, label, (400, 250, 1000)), pd.Series(truth)
    make(name).fit(codes([0], [0], [0], (1, 1, 1000)))  # compiled
    tracemalloc.start()
    began = time.perf_counter()
    fitted = make(name, dependence="warn").fit(annotations)
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 1.5e9  # 250 confusion matrices of all classes would be 2e9 bytes
    assert fitted.score(None, gold) > 0.8
    with pytest.raises(ValueError, match="250,000,000 numbers; `counts_` has those that are not zero"):
        _ = fitted.confusion_


@pytest.mark.parametrize("name", [name for name in NAMES if name != "minimax-entropy"])
def test_a_hundred_thousand_annotators_of_one_label(name: str) -> None:
    rng = np.random.default_rng(0)
    number = (
        10**4 if name in ("hierarchical-dawid-skene", "mace", "kos") else 10**5
    )  # slow methods: fewer annotators and iterations
    truth, item = rng.integers(2, size=number // 5), rng.integers(number // 5, size=number)
    label = np.where(rng.random(number) < 0.8, truth[item], 1 - truth[item])
    options = {"max_iter": 10} if name in ("hierarchical-dawid-skene", "mace") else {}
    fitted = make(name, dependence="warn", **options).fit(
        codes(item, np.arange(number), label, (number // 5, number, 2))
    )
    voted = make("majority-vote").fit(codes(item, np.arange(number), label, (number // 5, number, 2)))
    clear = ~voted.items_["tied"].to_numpy()
    if (
        name == "zencrowd"
    ):  # without its own label a flat prior has no information about an annotator: all ties
        assert fitted.items_["tied"].all()
    else:
        assert (fitted.labels_.to_numpy() == voted.labels_.to_numpy())[clear].mean() > 0.99
    assert len(fitted.annotators_) == number and np.isfinite(fitted.annotators_.to_numpy()).all()
    assert (
        fitted.items_["flag"].eq("no labels").sum() == (np.bincount(item, minlength=number // 5) == 0).sum()
    )


@every
def test_an_item_with_ten_thousand_labels(name: str) -> None:
    rng = np.random.default_rng(0)
    item = np.concatenate([np.zeros(10_000), np.repeat(np.arange(1, 31), 5)])
    annotator = np.concatenate(
        [np.arange(10_000), *(rng.choice(10_000, 5, replace=False) for _ in range(30))]
    )
    label = np.where(rng.random(item.size) < 0.7, item.astype(int) % 2, 1 - item.astype(int) % 2)
    options = {"max_iter": 5} if hasattr(find_aggregator(name)(), "max_iter") else {}
    fitted = make(name, dependence="warn", **options).fit(codes(item, annotator, label, (31, 10_000, 2)))
    p = fitted.predict_proba()
    assert (
        np.isfinite(p.to_numpy()).all()
        and p.iloc[0, 0] > (0.5 if name == "kos" else 0.65)
        and fitted.items_["num_labels"].iloc[0] == 10_000
    )


# 10. Hand-computed values and real labels

PANEL = pd.DataFrame(
    [
        (i, j, label)
        for i, row in enumerate([(0, 0, 1), (1, 1, 1), (0, 0, 0), (1, 0, 1)])
        for j, label in enumerate(row)
    ],
    columns=["item", "annotator", "label"],
)


def test_steps_on_a_panel_of_four_items_match_hand_computation() -> None:
    np.testing.assert_allclose(
        make("majority-vote").fit(PANEL).predict_proba()[0], [2 / 3, 0, 1, 1 / 3], atol=1e-15
    )
    step = make("dawid-skene", prior="flat", confidence="plug-in", max_iter=1).fit(PANEL)
    assert abs(step.log_posterior_[0] - -5.909821) < 5e-7 and step.n_iter_ == 1 and not step.converged_
    # The scores after that pass: the M step from its q
    q = np.array([0.8333333, 0, 1, 0.1666667])
    labels = PANEL["label"].to_numpy().reshape(4, 3)
    expected = np.array([[q @ (labels[:, j] == l) / q.sum() for l in (0, 1)] for j in range(3)])
    np.testing.assert_allclose(step.confusion_.xs(0, level="true_class"), expected, atol=1e-6)
    np.testing.assert_allclose(step.class_prior_, [0.5, 0.5], atol=1e-9)
    coin = make("one-coin", prior="flat", confidence="plug-in", max_iter=1).fit(PANEL)
    q = np.array([0.833333, 0.021739, 0.978261, 0.166667])
    right = [np.mean([q[i] if labels[i, j] == 0 else 1 - q[i] for i in range(4)]) for j in range(3)]
    np.testing.assert_allclose(coin.accuracy_, right, atol=1e-6)
    alone = make("dawid-skene", prior="flat", confidence="plug-in").fit(PANEL.loc[PANEL["annotator"] == 0])
    np.testing.assert_allclose(alone.predict_proba()[0], [1, 0, 1, 0], atol=1e-12)  # one annotator: the votes


@pytest.mark.skipif(
    not os.environ.get("PROBCROWD_DATA"), reason="PROBCROWD_DATA is not set: no labels of birds"
)
@pytest.mark.parametrize(
    ("name", "options", "right"),
    [
        ("majority-vote", {}, 82),
        ("dawid-skene", {"prior": "flat", "confidence": "plug-in"}, 97),
        ("dawid-skene", {"prior": "stan", "confidence": "plug-in"}, 96),
        ("dawid-skene", {}, 97),
        ("minimax-entropy", {}, 99),
        ("one-coin", {"prior": "flat", "confidence": "plug-in"}, 78),
        ("one-coin", {"prior": "flat", "confidence": "plug-in", "class_prior": "learned"}, 63),
        ("zencrowd", {"confidence": "plug-in"}, 78),
        ("glad", {}, 78),
        ("kos", {}, 78),
    ],
)
def test_bluebirds_accuracy_matches_published_numbers(name: str, options: dict[str, Any], right: int) -> None:
    folder = Path(os.environ["PROBCROWD_DATA"]) / "bluebirds"
    gold = pd.read_parquet(folder / "gold.parquet").set_index("task")["label"]
    fitted = make(name, **options).fit(pd.read_parquet(folder / "annotations.parquet"))
    assert round(108 * fitted.score(None, gold)) == right
    if options == {"prior": "flat", "confidence": "plug-in"} and name == "dawid-skene":
        assert abs(fitted.log_posterior_[-1] - -1888.117) < 5e-4
        np.testing.assert_allclose(fitted.class_prior_, [0.5641, 0.4359], atol=5e-5)
    if "class_prior" in options:
        np.testing.assert_allclose(fitted.class_prior_, [0.972, 0.028], atol=1e-3)

"""`LIA`: features by id, predictions against loops over the parameters, gold, weights, unusual tables,
objectives and parameters."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probcrowd import MajorityVote
from probcrowd.data.annotations import Annotations
from probcrowd.estimators.lia import fitted as lia_asked
from probcrowd.estimators.lia import lia as lia_module
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.options import resolve_prior, resolve_schedule
from probcrowd.inference.lia import em
from probcrowd.inference.lia.em import Schedule
from probcrowd.inference.lia.objectives import OBJECTIVES, ObjectiveName
from probcrowd.models.lia.prior import LIAPrior

QUICK: dict[str, Any] = {"dependence": "ignore", "rounds": 3, "steps": 10, "last_steps": 100}
TINY: dict[str, Any] = {"dependence": "ignore", "rounds": 2, "steps": 3, "last_steps": 5}
DEEP = LIAPrior(hidden=(3, 2), latent=2, item_embedding=3)
FRAMES = [
    "probabilities_",
    "items_",
    "annotators_",
    "confusion_",
    "competence_",
    "annotator_map_",
    "truth_probabilities_",
]


def simulate(
    seed: int = 0,
    *,
    items: int = 90,
    annotators: int = 8,
    per_item: int = 3,
    width: int = 6,
    classes: int = 3,
    new: int = 500,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Shuffled labels by annotators of unequal skill, features that determine the class, and the true
    classes.

    The last items have no labels.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + new, width))
    truth = (x @ rng.normal(size=(width, classes))).argmax(1)
    skill = np.linspace(0.35, 0.95, annotators)
    item = np.repeat(np.arange(items), per_item)
    annotator = np.concatenate([rng.choice(annotators, per_item, replace=False) for _ in range(items)])
    wrong = (truth[item] + rng.integers(1, max(classes, 2), len(item))) % classes
    label = np.where(rng.random(len(item)) < skill[annotator], truth[item], wrong)
    table = pd.DataFrame({"item": item, "annotator": annotator, "label": label}).sample(
        frac=1, random_state=seed
    )
    return table, pd.DataFrame(x), pd.Series(truth)


def small(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    return simulate(seed, items=15, annotators=4, width=2, new=5)


def right(result: pd.DataFrame, truth: pd.Series) -> float:
    return float((result.idxmax(axis=1) == truth[result.index]).mean())


# Loops over the parameters of a fit


def layers(parameters: dict[str, np.ndarray], network: str, inner: list[float]) -> list[float]:
    layer = 0
    while f"{network}_weight_{layer}" in parameters:
        weight, bias = parameters[f"{network}_weight_{layer}"], parameters[f"{network}_bias_{layer}"]
        sums = [
            bias[unit] + sum(x * weight[at, unit] for at, x in enumerate(inner)) for unit in range(len(bias))
        ]
        inner = [1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)) for x in sums]
        layer += 1
    return inner


def h_loop(fitted: LIA, x: list[float]) -> np.ndarray:
    """h(x) of one item."""
    p = fitted.parameters_
    inner = layers(p, "truth", x)
    odds = [
        math.exp(p["truth_bias"][k] + sum(v * p["truth_weight"][at, k] for at, v in enumerate(inner)))
        for k in range(len(fitted.classes_))
    ]
    return np.array(odds) / sum(odds)


def q_loop(fitted: LIA, x: list[float], competence: np.ndarray) -> np.ndarray:
    """Q of one item and one annotator, by true class and label."""
    p, classes = fitted.parameters_, len(fitted.classes_)
    inner, q = layers(p, "difficulty", x), np.zeros((classes, classes))
    for k in range(classes):
        for label in range(classes):
            for r in range(competence.shape[2]):
                q[k, label] += math.exp(
                    competence[k, label, r]
                    + sum(v * p["difficulty_weight"][at, k, label, r] for at, v in enumerate(inner))
                )
        q[k] /= q[k].sum()
    return q


def skill_loop(fitted: LIA, seat: int | None, features: list[float] | None = None) -> np.ndarray:
    """The competence of an annotator of the fit, of one with features, or of a typical one."""
    p = fitted.parameters_
    mean = p["competence_mean"]
    if features is not None:
        return mean + sum(v * p["competence_weight"][at] for at, v in enumerate(features))
    if seat is None:
        return mean
    if "competence_offset" in p:
        return mean + p["competence_offset"][seat]
    return skill_loop(fitted, None, list(p["annotator_embedding"][seat]))


def bayes_loop(fitted: LIA, x: list[float], table: list[tuple[np.ndarray, int, float]]) -> np.ndarray:
    """p(class | labels by annotators with these competences, weighted)."""
    chance = h_loop(fitted, x)
    for competence, label, weight in table:
        chance = chance * q_loop(fitted, x, competence)[:, label] ** weight
    return chance / chance.sum()


def seen_loop(rows: np.ndarray, fitted_rows: np.ndarray) -> list[list[float]]:
    """Standardised rows, if there are no more columns than fitted rows."""
    count, width = fitted_rows.shape
    mean = [sum(fitted_rows[i, c] for i in range(count)) / count for c in range(width)]
    size = math.sqrt(
        sum((fitted_rows[i, c] - mean[c]) ** 2 for i in range(count) for c in range(width)) / (count * width)
    )
    return [[float((row[c] - mean[c]) / size) for c in range(width)] for row in rows]


# 1. Features determine the class, by id


def test_features_and_labels_together_beat_a_vote_and_tell_of_new_items() -> None:
    table, features, truth = simulate()
    fitted = LIA(**QUICK).fit(table, features=features)
    assert (
        fitted.converged_
        and fitted.score(None, truth) > MajorityVote(dependence="ignore").fit(table).score(None, truth) + 0.05
    )
    new = features.iloc[90:]
    assert right(fitted.predict_items(new), truth) > 0.75 and right(fitted.truth_probabilities_, truth) > 0.75
    np.testing.assert_allclose(
        fitted.predict_items(features.loc[fitted.items_.index]), fitted.truth_probabilities_, atol=1e-9
    )
    assert list(fitted.predict_items(new.iloc[::-1]).index) == list(new.index[::-1])
    pd.testing.assert_frame_equal(fitted.predict_items(new.iloc[::-1]).iloc[::-1], fitted.predict_items(new))
    result = []
    for seed in range(3):  # the control: features of other items
        order = np.append(np.random.default_rng(seed).permutation(90), np.arange(90, len(features)))
        lost = LIA(**QUICK).fit(table, features=features.take(order).set_axis(features.index, axis=0))
        result.append(right(lost.predict_items(new), truth))
        assert lost.score(None, truth) < fitted.score(None, truth) - 0.05
    assert abs(np.mean(result) - 1 / 3) < 0.1


def test_features_are_matched_by_id_whatever_ids_are() -> None:
    table, features, _ = small()
    plain = LIA(**TINY).fit(table, features=features.to_numpy())  # items 0, 1, ...
    shuffled = features.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(
        LIA(**TINY).fit(table, features=shuffled).probabilities_, plain.probabilities_
    )  # with items to spare
    for change in (
        str,
        lambda i: f"i{i}",
        lambda i: pd.Timestamp("2020-01-01") + pd.Timedelta(days=i),
        float,
        lambda i: ("a", i),
    ):
        named = LIA(**TINY).fit(
            table.assign(item=table["item"].map(change)), features=shuffled.rename(index=change)
        )
        np.testing.assert_array_equal(named.probabilities_, plain.probabilities_)
        assert list(named.probabilities_.index) == [change(i) for i in plain.probabilities_.index]
    two = table.loc[table["item"] < 2]
    yes_no = LIA(**TINY).fit(
        two.assign(item=two["item"] == 1), features=pd.DataFrame(features.to_numpy()[[1, 0]], [True, False])
    )
    np.testing.assert_array_equal(
        yes_no.probabilities_, LIA(**TINY).fit(two, features=features).probabilities_
    )
    assert not np.allclose(
        plain.probabilities_,
        LIA(**TINY).fit(table, features=features.to_numpy()[::-1].copy()).probabilities_,
        atol=1e-3,
    )


# 2. Without features; features of annotators


def test_without_features_items_have_embeddings_and_new_ones_cannot_be_predicted() -> None:
    table, features, truth = simulate(1, per_item=5)
    fitted = LIA(**QUICK).fit(table)
    assert fitted.parameters_["item_embedding"].shape == (90, 16)
    assert fitted.score(None, truth) > MajorityVote(dependence="ignore").fit(table).score(None, truth)
    for ask in (fitted.predict_items, lambda inputs: fitted.probability_right(features=inputs)):
        with pytest.raises(
            ValueError, match="the fit had no features: pass them to `fit` to predict from them"
        ):
            ask(features)
    with pytest.raises(ValueError, match="the fit had no features"):
        fitted.predict_proba(
            table.assign(item="new").head(1), features=features.head(1).rename(index={0: "new"})
        )
    with pytest.raises(ValueError, match="the fit had no annotator_features: pass them"):
        fitted.predict_proba(table.assign(annotator=99).head(1), annotator_features=features.head(3))


def team() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Labels, features of items and of annotators: the first column is the annotator's skill.

    The last two annotators have no labels.
    """
    rng = np.random.default_rng(1)
    x, skill = (
        rng.normal(size=(60, 2)),
        pd.DataFrame(rng.normal(size=(14, 2)), [f"a{j}" for j in range(14)], ["skill", "noise"]),
    )
    skill.loc[["a12", "a13"]] = [[2.5, 0.0], [-2.5, 0.0]]
    truth, chance = (x[:, 0] > 0).astype(int), 1 / (1 + np.exp(-2 * skill["skill"].to_numpy()))
    pairs = [(i, j) for i in range(60) for j in rng.choice(12, 5, replace=False)]
    rows = [(i, f"a{j}", truth[i] if rng.random() < chance[j] else 1 - truth[i]) for i, j in pairs]
    gold = pd.DataFrame(x, columns=["first", "second"])
    return pd.DataFrame(rows, columns=["item", "annotator", "label"]), gold, skill


def test_labels_of_new_annotators_count_by_their_features() -> None:
    table, features, people = team()
    fitted = LIA(**QUICK).fit(
        table, pd.Series((features["first"] > 0).astype(int)), features=features, annotator_features=people
    )
    accuracy = np.corrcoef(fitted.annotator_map_["accuracy"], people["skill"][fitted.annotators_.index])[0, 1]
    assert accuracy > 0.8
    new = pd.DataFrame({"item": "new", "annotator": ["a12", "a13"], "label": [1, 0]})
    heard = fitted.predict_proba(new, annotator_features=people)
    assert heard.loc["new", 1] > 0.9
    swapped = people.rename(index={"a12": "a13", "a13": "a12"})
    assert fitted.predict_proba(new, annotator_features=swapped.loc[["a13", "a12"]]).loc["new", 1] < 0.1
    with pytest.warns(
        UserWarning,
        match="2 annotators are not known from the fit and are taken as typical annotators: 'a12', 'a13'",
    ):
        deaf = fitted.predict_proba(new)
    with pytest.warns(UserWarning, match="are taken as typical annotators: 'a12', 'a13'"):
        pd.testing.assert_frame_equal(
            fitted.predict_proba(new, features=features.head(1).rename(index={0: "new"})).round(0),
            deaf.round(0),
        )
    everyone = seen_loop(people.to_numpy(), people.loc[fitted.annotators_.index].to_numpy())
    where = {
        name: skill_loop(fitted, None, inputs) for name, inputs in zip(people.index, everyone, strict=True)
    }
    labelled = [(where["a12"], 1, 1.0), (where["a13"], 0, 1.0)]
    np.testing.assert_allclose(heard.loc["new"], bayes_loop(fitted, [0.0, 0.0], labelled), atol=1e-12)
    typical = skill_loop(fitted, None)
    np.testing.assert_allclose(
        deaf.loc["new"], bayes_loop(fitted, [0.0, 0.0], [(typical, 1, 1.0), (typical, 0, 1.0)]), atol=1e-12
    )
    half = pd.DataFrame({"item": "new", "annotator": ["a3", "a13"], "label": [1, 0]})
    result = fitted.predict_proba(half, annotator_features=people.loc[["a13"]])  # the other one is known
    np.testing.assert_allclose(
        result.loc["new"],
        bayes_loop(fitted, [0.0, 0.0], [(where["a3"], 1, 1.0), (where["a13"], 0, 1.0)]),
        atol=1e-12,
    )
    with pytest.raises(ValueError, match=r"annotator_features: no features of 'a13' \(1 in all\)"):
        fitted.predict_proba(new, annotator_features=people.drop("a13"))
    with pytest.raises(ValueError, match=r"annotator_features: no features of 'a3' \(1 in all\)"):
        LIA(**TINY).fit(table, annotator_features=people.drop("a3"))
    with pytest.raises(ValueError, match="annotator_features: 1 columns, the fit had 2"):
        fitted.predict_proba(new, annotator_features=people[["skill"]])


# 3. Extreme annotators


@pytest.mark.parametrize("with_features", [True, False])
def test_an_oracle_ranks_first_and_a_liar_last(with_features: bool) -> None:
    table, features, truth = simulate(2)
    extra = pd.DataFrame({"item": range(90), "label": truth[:90]})
    everyone = [
        table.assign(annotator="a" + table["annotator"].astype(str)),
        extra.assign(annotator="oracle"),
    ]
    everyone.append(
        extra.assign(annotator="liar", label=(truth[:90] + np.random.default_rng(0).integers(1, 3, 90)) % 3)
    )
    fitted = LIA(**QUICK).fit(pd.concat(everyone), features=features if with_features else None)
    diagonal = fitted.competence_.stack().reset_index()
    diagonal = diagonal.loc[diagonal["true_class"] == diagonal["label"]].groupby("annotator")[0].mean()
    for accuracy in (
        diagonal,
        fitted.annotators_["accuracy"],
        fitted.annotator_map_["accuracy"],
        fitted.probability_right().mean(),
    ):
        assert (
            (accuracy.idxmax(), accuracy.idxmin()) == ("oracle", "liar")
            and accuracy["oracle"] > 0.9
            and accuracy["liar"] < 0.15
        )
    np.testing.assert_allclose(fitted.annotator_map_["num_labels"].loc[["oracle", "liar"]], 90)
    means = fitted.annotator_map_[["first", "second"]].mean()
    np.testing.assert_allclose(means, 0, atol=1e-9)
    spread = (
        fitted.annotator_map_.loc["oracle", ["first", "second"]]
        - fitted.annotator_map_.loc["liar", ["first", "second"]]
    )
    assert np.hypot(*spread) > 2  # they are far apart on the map


def test_the_map_keeps_distances() -> None:
    """With two classes, two numbers distinguish annotators: scores of a row sum to 0."""
    table, features, _ = simulate(3, items=30, classes=2)
    fitted = LIA(**TINY).fit(table, features=features)
    scores = np.log(fitted.competence_.to_numpy()).reshape(-1, 2, 2)
    scores = (scores - scores.mean(2, keepdims=True)).reshape(len(scores), -1)
    points = fitted.annotator_map_[["first", "second"]].to_numpy()
    for j in range(len(points)):
        for other in range(len(points)):
            assert math.isclose(
                math.dist(points[j], points[other]), math.dist(scores[j], scores[other]), abs_tol=1e-9
            )
    assert points[:, 0].var() >= points[:, 1].var() > 0


# 4. Assignment and difficulty


@pytest.fixture(scope="module", params=["features", "embeddings"])
def deep(request: pytest.FixtureRequest) -> tuple[LIA, pd.DataFrame, list[list[float]]]:
    """A fit with hidden layers and R = 2 after one step from extreme initial values, its features, and the
    inputs of its networks.
    """
    table, features, _ = small()
    options: dict[str, Any] = {"dependence": "ignore", "rounds": 1, "steps": 1, "last_steps": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(em, "INITIAL_SCALE", 1.5)
        if request.param == "features":
            fitted = LIA(prior=DEEP, **options).fit(table, features=features)
            rows = features.loc[fitted.items_.index].to_numpy()
            inputs = seen_loop(rows, rows)
        else:
            fitted = LIA(prior=replace(DEEP, annotator_embedding=2), **options).fit(table)
            inputs = [list(row) for row in fitted.parameters_["item_embedding"]]
    assert (
        min(
            fitted.truth_probabilities_.std().min(),
            fitted.difficulty_.std(),
            fitted.probability_right().std(axis=1).max(),
        )
        > 0.02
    )
    return fitted, features, inputs


def test_predictions_equal_loops_over_the_parameters(
    deep: tuple[LIA, pd.DataFrame, list[list[float]]],
) -> None:
    fitted, _, features = deep
    p, centre = fitted.probabilities_.to_numpy(), [0.0] * len(features[0])
    if fitted.inputs_.item_features is not None:
        np.testing.assert_allclose(fitted.inputs_.item_features, features, atol=1e-12)
    chances, difficulty, new = fitted.truth_probabilities_, fitted.difficulty_, fitted.probability_right()
    for i, x in enumerate(features):
        np.testing.assert_allclose(chances.iloc[i], h_loop(fitted, x), atol=1e-12)
        typical = q_loop(fitted, x, skill_loop(fitted, None))
        assert math.isclose(
            difficulty.iloc[i], 1 - sum(p[i, k] * typical[k, k] for k in range(3)), abs_tol=1e-12
        )
        for j in range(4):
            q = q_loop(fitted, x, skill_loop(fitted, j))
            assert math.isclose(new.iloc[i, j], sum(p[i, k] * q[k, k] for k in range(3)), abs_tol=1e-12)
    for j, annotator in enumerate(fitted.annotators_.index):
        q = q_loop(fitted, centre, skill_loop(fitted, j))
        np.testing.assert_allclose(fitted.competence_.loc[annotator], q, atol=1e-12)
        accuracy = sum(fitted.class_prior_.iloc[k] * q[k, k] for k in range(3))
        assert math.isclose(fitted.annotator_map_["accuracy"].iloc[j], accuracy, abs_tol=1e-12)
    np.testing.assert_allclose(
        fitted.class_prior_,
        [sum(h_loop(fitted, x)[k] for x in features) / len(features) for k in range(3)],
        atol=1e-12,
    )
    assert difficulty.index.equals(fitted.probabilities_.index) and difficulty.index.name == "item"
    assert (
        fitted.competence_.index.names == ["annotator", "true_class"]
        and fitted.competence_.columns.name == "label"
    )


def test_probabilities_are_bayes_rule_over_the_fitted_labels(
    deep: tuple[LIA, pd.DataFrame, list[list[float]]],
) -> None:
    fitted, _, features = deep
    table = small()[0]
    items, annotators = list(fitted.items_.index), list(fitted.annotators_.index)
    for i, x in enumerate(features):
        rows = table.loc[table["item"] == items[i]]
        labelled = [
            (skill_loop(fitted, annotators.index(j)), int(label), 1.0)
            for j, label in zip(rows["annotator"], rows["label"], strict=True)
        ]
        np.testing.assert_allclose(fitted.probabilities_.iloc[i], bayes_loop(fitted, x, labelled), atol=1e-12)


def test_probability_right_for_some_items_and_for_new_ones(
    deep: tuple[LIA, pd.DataFrame, list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, features, _ = deep
    whole = fitted.probability_right()
    assert whole.index.name == "item" and whole.columns.name == "annotator" and whole.shape == (15, 4)
    some = fitted.probability_right(items=[7, 2, 7], annotators=[3, 0])
    pd.testing.assert_frame_equal(some, whole.loc[[7, 2, 7], [3, 0]])
    pd.testing.assert_frame_equal(
        fitted.probability_right(items=4, annotators=np.int64(1)), whole.loc[[4], [1]]
    )
    assert fitted.probability_right(items=[]).shape == (0, 4) and fitted.probability_right(
        annotators=[]
    ).shape == (15, 0)
    for options, words in (
        ({"items": [2, "x"]}, "items that are not in the fit: 'x'"),
        ({"items": [True, False]}, "items that are not in the fit: True, False"),
        ({"annotators": 9}, "annotators that are not in the fit: 9; it has"),
        ({"items": [2], "features": features}, "items of the fit or features of others, not both"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.probability_right(**options)
    monkeypatch.setattr(lia_asked, "MAX_CELLS", 1)
    pd.testing.assert_frame_equal(fitted.probability_right(), whole)
    monkeypatch.setattr(lia_asked, "MAX_CELLS", 36 * 4 * 2)  # four items at a time; three are left
    pd.testing.assert_frame_equal(fitted.probability_right(), whole)
    monkeypatch.setattr(lia_module, "MAX_PAIRS", 60)
    pd.testing.assert_frame_equal(fitted.probability_right(), whole)
    monkeypatch.setattr(lia_module, "MAX_PAIRS", 59)
    with pytest.raises(
        ValueError, match="15 items x 4 annotators are too many for one table: choose some of either"
    ):
        fitted.probability_right()
    if fitted._network.standards[0] is None:
        return
    new = features.iloc[15:].rename(index=lambda i: f"n{i}")
    fresh = fitted.probability_right(features=new, annotators=[2])
    inputs = seen_loop(new.to_numpy(), features.loc[fitted.items_.index].to_numpy())
    seat = list(fitted.annotators_.index).index(2)
    for x, result in zip(inputs, fresh[2], strict=True):
        assert math.isclose(
            result,
            float(h_loop(fitted, x) @ np.diag(q_loop(fitted, x, skill_loop(fitted, seat)))),
            abs_tol=1e-12,
        )
    assert list(fresh.index) == list(new.index)


def test_harder_items_are_rated_harder() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(150, 3))
    hard, truth = x[:, 0] > 0, (x[:, 1] > 0).astype(int)
    item, annotator = (
        np.repeat(np.arange(150), 5),
        np.concatenate([rng.choice(8, 5, replace=False) for _ in range(150)]),
    )
    right_ = rng.random(750) < np.where(hard[item], 0.6, 0.95)
    table = pd.DataFrame(
        {"item": item, "annotator": annotator, "label": np.where(right_, truth[item], 1 - truth[item])}
    )
    fitted = LIA(prior=LIAPrior(difficulty=1.0), **QUICK).fit(table, features=x)
    difficulty = fitted.difficulty_.sort_index()
    assert difficulty[hard].mean() > difficulty[~hard].mean() + 0.1 and difficulty.between(0, 1).all()
    assert np.corrcoef(difficulty, x[:, 0])[0, 1] > 0.7
    new = fitted.probability_right().sort_index()
    assert new[~hard].mean(axis=None) > new[hard].mean(axis=None) + 0.1


# 5. Other tables


def test_the_fitted_table_has_the_fitted_answers(deep: tuple[LIA, pd.DataFrame, list[list[float]]]) -> None:
    fitted, _, _ = deep
    table = small()[0]
    pd.testing.assert_frame_equal(fitted.predict_proba(table), fitted.probabilities_)
    pd.testing.assert_frame_equal(fitted.predict_proba(), fitted.probabilities_)
    pd.testing.assert_series_equal(fitted.predict(table), fitted.labels_)
    np.testing.assert_allclose(fitted._predict(fitted._read(table)), fitted.probabilities_, atol=1e-12)
    turned = fitted.predict_proba(table.iloc[::-1])
    pd.testing.assert_frame_equal(turned.loc[fitted.items_.index], fitted.probabilities_)


def test_items_with_other_labels_are_judged_by_bayes_rule(
    deep: tuple[LIA, pd.DataFrame, list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, features, inputs = deep
    known = list(fitted.items_.index)
    rows = [
        (known[3], 0, 1, 2.0),
        ("n15", 2, 0, 1.0),
        (known[9], 1, 2, 0.5),
        ("n15", 3, 0, 1.5),
        ("n16", "zoe", 2, 1.0),
        (known[3], 3, 1, 1.0),
    ]
    frame = pd.DataFrame(rows, columns=["item", "annotator", "label", "w"]).astype(
        {"item": object, "annotator": object}
    )
    items = pd.Index([*frame["item"].unique(), "blank"], dtype=object)
    people = pd.Index(frame["annotator"].unique(), dtype=object)
    codes = [
        items.get_indexer(frame["item"]),
        people.get_indexer(frame["annotator"]),
        frame["label"].to_numpy(),
    ]
    monkeypatch.setattr(
        "probcrowd.data.annotations.declare", lambda ids, plural: pd.Index(ids)
    )  # ids of several kinds, for once
    new = Annotations(*codes, items, people, pd.RangeIndex(3), frame["w"].to_numpy())
    centre = [0.0] * len(inputs[0])
    where: dict[Any, list[float]] = dict(zip(known, inputs, strict=True)) | {
        "n15": centre,
        "n16": centre,
        "blank": centre,
    }

    def expected(item: Any) -> np.ndarray:
        table = []
        for _, j, label, weight in frame.loc[frame["item"] == item].itertuples(index=False):
            seat = None if j == "zoe" else list(fitted.annotators_.index).index(j)
            table.append((skill_loop(fitted, seat), int(label), float(weight)))
        return bayes_loop(fitted, where[item], table)

    for at_once in (em.CHUNK_SIZE, 2):  # the latter: an item or two at a time
        monkeypatch.setattr(em, "CHUNK_SIZE", at_once)
        with pytest.warns(
            UserWarning,
            match="1 annotators are not known from the fit and are taken as typical annotators: 'zoe'",
        ):
            result = fitted.predict_proba(new)
        for item in items:
            np.testing.assert_allclose(result.loc[item], expected(item), atol=1e-12)
    with pytest.warns(UserWarning, match="zoe"):
        assert fitted.describe(new)["flag"].tolist() == ["", "", "", "unknown annotators only", "no labels"]
    if fitted._network.standards[0] is None:
        return
    given = features.rename(index={15: "n15", 16: "n16", 17: "blank", known[3]: 99}).drop(
        index=known[9]
    )  # the fit's own are not asked for
    given = given.sample(frac=1, random_state=0)
    order = ["n15", "n16", "blank"]
    where |= dict(
        zip(order, seen_loop(given.loc[order].to_numpy(), features.loc[known].to_numpy()), strict=True)
    )
    with pytest.warns(UserWarning, match="'zoe'"):
        result = fitted.predict_proba(new, features=given)
    for item in items:
        np.testing.assert_allclose(result.loc[item], expected(item), atol=1e-12)
    with (
        pytest.raises(ValueError, match=r"features: no features of 'blank' \(1 in all\)"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        fitted.predict_proba(new, features=given.drop(index="blank"))


def test_features_of_new_items_do_not_change_what_the_fit_knows() -> None:
    """Gold counts without being passed again, and answers read off h(x) stay so."""
    table, features, truth = small()
    gold = pd.Series({3: (truth[3] + 1) % 3})
    part = pd.concat(
        [table.loc[table["item"].isin([3, 4])], pd.DataFrame({"item": [17], "annotator": [0], "label": [1]})]
    )
    objectives: tuple[ObjectiveName, ...] = ("joint", "as_coded")
    for objective in objectives:
        options = TINY | {"objective": objective, "batch": "all"}
        fitted = LIA(**options).fit(table, gold, features=features)
        result = fitted.predict_proba(part, features=features)
        pd.testing.assert_frame_equal(result.loc[[3, 4]], fitted.probabilities_.loc[[3, 4]])
        assert result.loc[3, gold[3]] == 1
        alone = fitted.predict_items(features.loc[[17]])
        assert np.allclose(result.loc[[17]], alone, atol=1e-12) == (objective == "as_coded")


def test_columns_keep_their_meaning() -> None:
    table, features, _ = small()
    named = features.set_axis(["height", "width"], axis=1)
    fitted = LIA(**TINY).fit(table, features=named)
    expected = fitted.predict_items(named)
    pd.testing.assert_frame_equal(fitted.predict_items(named[["width", "height"]]), expected)
    pd.testing.assert_frame_equal(fitted.predict_items(named.to_numpy()), expected)
    numbered = LIA(**TINY).fit(table, features=features)
    for given in (named, features[[1, 0]]):
        pd.testing.assert_frame_equal(numbered.predict_items(given), expected)
    pd.testing.assert_frame_equal(
        fitted.probability_right(features=named[["width", "height"]]),
        fitted.probability_right(features=named),
    )
    with pytest.raises(
        ValueError, match="features: the columns are 'height', 'depth', those of the fit 'height', 'width'"
    ):
        fitted.predict_items(named.rename(columns={"width": "depth"}))
    with pytest.raises(ValueError, match="features: 1 columns, the fit had 2"):
        fitted.predict_items(named[["width"]])
    with pytest.raises(
        ValueError, match=r"features: missing or infinite values.*\(1 of 20 rows: 4; values: 4\)"
    ):
        fitted.predict_items(named.assign(width=named["width"].where(named.index != 4)))
    with pytest.raises(ValueError, match="the item ids 0 occur more than once"):
        fitted.predict_items(named.rename(index={1: 0}))


# 6. Gold, weights, abstentions, unusual tables, invariances


def test_gold_is_certain_and_teaches() -> None:
    table, features, truth = simulate(4)
    table["label"] = (table["label"] + 1) % 3  # everybody is off by one
    assert LIA(**QUICK).fit(table, features=features).score(None, truth) < 0.3
    gold = truth.iloc[:45].rename("gold")
    fitted = LIA(**QUICK).fit(table, pd.concat([gold, pd.Series({1000: 2})]), features=features)
    np.testing.assert_array_equal(fitted.probabilities_.sort_index().iloc[:45], np.eye(3)[gold])
    assert fitted.items_["known"].sort_index().tolist() == [True] * 45 + [False] * 45
    assert (
        fitted.score(None, truth.iloc[45:90]) > 0.7
        and right(fitted.predict_items(features.iloc[90:]), truth) > 0.7
    )
    with pytest.raises(ValueError, match=r"gold labels that are none of the classes \[0, 1, 2\]"):
        LIA(**TINY).fit(table, pd.Series({0: 7}), features=features)


def test_a_weight_of_two_is_a_row_twice() -> None:
    table, features, _ = small()
    doubled = Annotations.from_frame(pd.concat([table, table.iloc[::3]]), duplicates="count")
    heavy = Annotations.from_frame(
        table.assign(w=np.where(np.arange(len(table)) % 3 == 0, 2.0, 1.0)), weight="w"
    )
    twice, weighted, once = (
        LIA(**TINY).fit(labelled, features=features) for labelled in (doubled, heavy, table)
    )
    np.testing.assert_allclose(twice.log_posterior_, weighted.log_posterior_, rtol=1e-6)
    for name in ("probabilities_", "competence_", "confusion_"):
        np.testing.assert_allclose(getattr(twice, name), getattr(weighted, name), atol=1e-5)
        assert np.abs(getattr(once, name) - getattr(weighted, name)).to_numpy().max() > 1e-3


def test_abstentions_are_no_labels() -> None:
    table, features, _ = small()
    silent = pd.DataFrame({"item": [0, 1, 2], "annotator": 9, "label": "?"})
    labelled = pd.concat([table.assign(label=table["label"].map(lambda k: f"c{k}")), silent])
    fitted = LIA(abstention="?", **TINY).fit(labelled, features=features)
    everyone = [*table["annotator"].unique(), 9]
    plain = LIA(**TINY).fit(
        Annotations.from_frame(labelled.loc[labelled["label"] != "?"], annotators=everyone), features=features
    )
    np.testing.assert_array_equal(fitted.probabilities_.sort_index(), plain.probabilities_.sort_index())
    assert list(fitted.classes_) == ["c0", "c1", "c2"] and fitted.annotators_.loc[9, "num_labels"] == 0
    np.testing.assert_array_equal(
        fitted.probability_right().sort_index(), plain.probability_right().sort_index()
    )
    with pytest.raises(ValueError, match="no row has the abstention label '!'"):
        LIA(abstention="!", **TINY).fit(labelled, features=features)


def test_items_without_labels_are_judged_by_their_features() -> None:
    table, features, truth = simulate(6)
    declared = Annotations.from_frame(table, items=range(200))
    fitted = LIA(**QUICK).fit(declared, features=features)
    assert (fitted.items_["flag"] == "no labels").tolist() == [False] * 90 + [True] * 110
    np.testing.assert_allclose(
        fitted.probabilities_.iloc[90:], fitted.predict_items(features.iloc[90:200]), atol=1e-9
    )
    assert right(fitted.probabilities_.iloc[90:], truth) > 0.7
    alone = LIA(**QUICK).fit(declared)
    np.testing.assert_allclose(
        alone.probabilities_.iloc[90:], alone.class_prior_.to_numpy()[None].repeat(110, 0), atol=0.05
    )


@pytest.mark.parametrize("with_features", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([("x", "a", 1), ("x", "b", 1), ("x", "c", 0)], id="one item"),
        pytest.param([("x", "a", 1), ("y", "a", 0), ("z", "a", 1)], id="one annotator"),
        pytest.param([("x", "a", 1), ("y", "b", 1)], id="one class"),
        pytest.param([("x", "a", 1)], id="one label"),
        pytest.param(
            [("x", "a", 1), ("y", "a", 0), ("x", "b", 1), ("y", "b", 0), ("z", "b", 0)], id="never confused"
        ),
    ],
)
def test_unusual_tables(rows: list[tuple[str, str, int]], with_features: bool) -> None:
    table = pd.DataFrame(rows, columns=["item", "annotator", "label"])
    features = pd.DataFrame({"first": [0.0, 1.0, 0.5], "second": [2.0, 2.0, 2.0]}, ["x", "y", "z"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the column that alone varies
        fitted = LIA(dependence="ignore", rounds=3, steps=20).fit(
            table, features=features if with_features else None
        )
    for name in FRAMES:
        result = getattr(fitted, name)
        assert np.isfinite(result.select_dtypes("number").to_numpy()).all(), name
    np.testing.assert_allclose(fitted.probabilities_.sum(axis=1), 1, atol=1e-12)
    expected = {item: pd.Series([k for i, _, k in rows if i == item]).mode()[0] for item, _, _ in rows}
    assert fitted.labels_.to_dict() == expected and fitted.converged_
    assert fitted.difficulty_.between(0, 1).all() and fitted.probability_right().to_numpy().max() <= 1


def test_missing_values_are_refused_by_name() -> None:
    table, features, _ = small()
    with pytest.raises(ValueError, match="missing labels; set missing='skip'"):
        LIA(**TINY).fit(table.assign(label=table["label"].where(table.index != 3)))
    features.loc[7, 0], features.loc[9, 1], features.loc[19, 1] = (
        np.nan,
        np.inf,
        np.nan,
    )  # the last has no labels
    with pytest.raises(
        ValueError,
        match=r"features: missing or infinite values: fill them or leave these rows out \(2 of 15 rows",
    ):
        LIA(**TINY).fit(table, features=features)
    with pytest.raises(ValueError, match=r"features: no features of 15 \(1 in all\)"):
        LIA(**TINY).fit(
            pd.concat([table, pd.DataFrame({"item": [15], "annotator": [0], "label": [0]})]),
            features=np.zeros((15, 2)),
        )


def test_neither_order_nor_names_nor_the_seed_change_the_answer() -> None:
    """Initial values are drawn by position, but linear networks reach the same mode from all of them."""
    table, features, _ = simulate(7, items=60, annotators=6, width=4, new=0)
    options: dict[str, Any] = {"dependence": "ignore", "rounds": 4}
    fitted = LIA(**options).fit(table, features=features)
    p = fitted.probabilities_
    assert fitted.converged_
    shuffled = LIA(**options).fit(
        table.sample(frac=1, random_state=9), features=features.sample(frac=1, random_state=9)
    )
    np.testing.assert_allclose(shuffled.probabilities_.loc[p.index], p, atol=1e-4)
    np.testing.assert_allclose(
        shuffled.competence_.loc[fitted.competence_.index], fitted.competence_, atol=1e-3
    )
    names = {0: "m", 1: "z", 2: "a"}
    renamed = pd.DataFrame(
        {
            "item": "i" + table["item"].astype(str),
            "annotator": -table["annotator"],
            "label": table["label"].map(names),
        }
    )
    other = LIA(**options).fit(renamed, features=features.rename(index=lambda i: f"i{i}"))
    np.testing.assert_allclose(other.probabilities_[[names[k] for k in p.columns]], p, atol=1e-4)
    assert list(other.probabilities_.index) == [f"i{i}" for i in p.index] and list(other.classes_) == [
        "a",
        "m",
        "z",
    ]
    assert other.labels_.tolist() == fitted.labels_.map(names).tolist()
    reseeded = LIA(random_state=5, **options).fit(table, features=features)
    np.testing.assert_allclose(reseeded.probabilities_, p, atol=1e-4)
    assert not np.array_equal(reseeded.probabilities_, p)


@pytest.mark.parametrize("batch", ["all", 12])
def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves(batch: Any) -> None:
    table, features, _ = small()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    fits = [
        LIA(random_state=seed, **(TINY | {"batch": batch, "prior": DEEP})).fit(table, features=features)
        for seed in (4, 4, 5)
    ]
    assert torch.equal(state[0], torch.get_rng_state()) and (state[1] == np.random.get_state()[1]).all()
    assert torch.get_num_threads() == 1 and torch.get_default_dtype() == torch.float32
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(fits[0], name), getattr(fits[1], name), check_exact=True)
    assert not np.array_equal(fits[0].probabilities_, fits[2].probabilities_)


def test_a_fit_does_not_change_its_arguments() -> None:
    table, features, truth = small()
    people = pd.DataFrame({"x": [1.0, 2, 4, 7], "y": [0.0, 2, 1, 5]})
    given = table.copy(), features.copy(), truth.copy(), people.copy()
    fitted = LIA(**TINY).fit(table, truth.head(2), features=features, annotator_features=people)
    fitted.predict_proba(table.head(3).assign(item=17), features=features, annotator_features=people)
    held = fitted.probabilities_
    held.iloc[0, 0] = 9.0  # what others are made of is no view of it
    fitted.parameters_["truth_bias"][:] = 9.0
    assert np.abs(fitted.parameters_["truth_bias"]).max() < 9
    messages = fitted.truth_probabilities_
    messages.iloc[0, 0] = 9.0
    assert fitted.truth_probabilities_.iloc[0, 0] < 1 and fitted.probability_right().to_numpy().max() < 1
    for left, copies in zip((table, features, truth, people), given, strict=True):
        assert left.equals(copies)


# 7. Objectives and parameters


@pytest.mark.parametrize("batch", ["all", None, 10])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_runs(objective: ObjectiveName, batch: Any) -> None:
    table, features, truth = small()
    fitted = LIA(objective=objective, **(TINY | {"batch": batch})).fit(
        table, truth.head(2), features=features
    )
    p = fitted.probabilities_
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(p.sort_index().head(2), np.eye(3)[truth.head(2)], atol=1e-12)
    from_network = np.allclose(
        p.sort_index().iloc[2:], fitted.truth_probabilities_.sort_index().iloc[2:], atol=1e-12
    )
    assert from_network == (objective == "as_coded")
    last = (
        1 if batch == "all" or (batch is None and objective in ("joint", "composite")) else 2
    )  # batches: as many steps as an M step has
    assert fitted.n_iter_ == len(fitted.log_posterior_) == 2 + last
    kinds = {name: value.shape for name, value in fitted.parameters_.items()}
    if objective in ("joint", "composite"):
        assert (
            kinds["competence_offset"] == (4, 3, 3, 1)
            and kinds["truth_weight"] == (2, 3)
            and "truth_weight_0" not in kinds
        )
    else:
        assert (
            kinds["annotator_embedding"] == (4, 16)
            and kinds["truth_weight_3"] == (16, 16)
            and "truth_weight_4" not in kinds
        )
        assert kinds["difficulty_weight"] == ((16 if objective == "as_written" else 2), 3, 3, 1)
        assert ("difficulty_weight_0" in kinds) == (objective == "as_written")


def test_defaults_are_the_papers_where_the_objective_is() -> None:
    paper = LIAPrior(hidden=(16, 16, 16, 16), annotator_embedding=16, item_embedding=16)
    whole, batches = Schedule(10, 25, 500, None, 1e-3, 1e-6), Schedule(10, 1000, 1000, 1024, 1e-3, 1e-6)
    resolved = {
        name: (resolve_prior(LIA(objective=name)), resolve_schedule(LIA(objective=name)))
        for name in OBJECTIVES
    }
    assert resolved["joint"] == resolved["composite"] == (LIAPrior(), whole)
    assert resolved["as_written"] == (paper, batches)
    assert resolved["as_coded"] == (replace(paper, difficulty_hidden=()), batches)
    given = LIA(
        objective="as_coded",
        prior=LIAPrior(),
        rounds=3,
        steps=4,
        last_steps=0,
        batch="all",
        learning_rate=0.1,
        tolerance=1.0,
    )
    assert (resolve_prior(given), resolve_schedule(given)) == (LIAPrior(), Schedule(3, 4, 0, None, 0.1, 1.0))
    assert resolve_schedule(LIA(batch=64)) == replace(whole, batch=64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"objective": "exact"},
            "objective='exact': choose one of joint, composite, as_written, as_coded",
        ),
        ({"rounds": 0}, "rounds=0: choose a whole number of at least 1"),
        ({"rounds": 2.5}, "rounds=2.5: choose a whole number"),
        ({"steps": 0}, "steps=0: choose a whole number of at least 1 or None"),
        ({"last_steps": -1}, "last_steps=-1: choose a whole number of at least 0 or None"),
        ({"batch": 0}, "batch=0: choose a whole number of at least 1 or None or 'all'"),
        ({"batch": "some"}, "batch='some'"),
        ({"batch": 10.5}, "batch=10.5"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: choose a number > 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"tolerance": -1.0}, "tolerance=-1.0: choose a number >= 0"),
        ({"random_state": None}, "random_state=None: choose a whole number"),
        ({"prior": "accurate"}, "prior='accurate': give a LIAPrior, 'held-out' or None"),
        ({"dependence": "discount"}, "LIA cannot discount dependent labels"),
        ({"dependence": "maybe"}, "choose one of warn, discount, ignore"),
    ],
)
def test_bad_parameters_raise_at_fit_and_name_the_choices(options: dict[str, Any], words: str) -> None:
    fitting = LIA().set_params(**options)  # past the types of the signature
    with pytest.raises(ValueError, match=words):
        fitting.fit(small()[0])
    assert not hasattr(fitting, "classes_")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": (0,)},
        {"latent": 0},
        {"item_embedding": 0},
        {"annotator_embedding": -1},
        {"difficulty_hidden": (4, 0)},
    ],
)
def test_networks_have_at_least_one_unit(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="sizes of networks must be at least 1"):
        LIAPrior(**sizes)


def test_history_and_a_resumed_fit_without_a_folder_are_refused() -> None:
    table, _, _ = small()
    with pytest.raises(ValueError, match="LIA takes no history; DawidSkene"):
        LIA(**TINY).fit(table, history=pd.DataFrame())
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        LIA(**TINY).fit(table, resume=True)


def test_parameters_follow_scikit_learn() -> None:
    table, features, _ = small()
    options: dict[str, Any] = {
        "objective": "composite", "prior": DEEP, "rounds": 2, "steps": 3, "last_steps": 4, "batch": 9,
        "learning_rate": 0.02, "tolerance": 1e-3, "random_state": 7, "progress": True,
        "dependence": "ignore", "abstention": 2,
    }  # fmt: skip
    default, changed = LIA(), LIA(**options)
    assert set(options) == set(default.get_params())
    assert all(default.get_params()[name] != value for name, value in options.items())
    assert (
        clone(changed).get_params()
        == changed.get_params()
        == LIA().set_params(**options).get_params()
        == options
    )
    assert "objective='composite'" in repr(changed) and "rounds=2" in repr(changed)
    fitted = LIA(**TINY).fit(table, features=features)
    again = clone(fitted)
    for ask in (
        again.predict,
        lambda: again.predict_items(features),
        lambda: again.probability_right(),
        lambda: again.difficulty_,
    ):
        with pytest.raises(NotFittedError, match="LIA"):
            ask()
    for name in [*FRAMES, "difficulty_", "labels_", "class_prior_"]:
        assert not hasattr(again, name)
    np.testing.assert_array_equal(again.fit_predict_proba(table, features=features), fitted.probabilities_)
    assert (
        fitted.fit(table) is fitted and "item_embedding" in fitted.parameters_
    )  # nothing of the first fit is left
    with pytest.raises(ValueError, match="the fit had no features"):
        fitted.predict_items(features)
    with pytest.raises(
        FloatingPointError, match="the objective is nan after round 1: lower the learning rate"
    ):
        LIA(**(TINY | {"batch": 9, "learning_rate": 1e30})).fit(table, features=features)


# 8. Constant and wide features


def test_constant_features_have_no_effect() -> None:
    fitted = LIA(**TINY).fit(small()[0], features=np.ones((15, 2)))
    assert fitted.truth_probabilities_.drop_duplicates().shape[0] == 1


def test_of_wide_features_only_what_they_span_matters() -> None:
    """With more columns than items, rotating the columns changes no answer; z has one column less than there
    are items."""
    table, features, _ = simulate(8, items=20, annotators=5, width=30, new=30)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))
    fits = [
        LIA(dependence="ignore", rounds=4).fit(table, features=x)
        for x in (features.to_numpy(), features.to_numpy() @ turn)
    ]
    assert [fitted.parameters_["truth_weight"].shape for fitted in fits] == [(19, 3), (19, 3)]
    np.testing.assert_allclose(fits[0].probabilities_, fits[1].probabilities_, atol=1e-4)
    result = [fitted.predict_items(x) for fitted, x in zip(fits, (features, features @ turn), strict=True)]
    np.testing.assert_allclose(result[0], result[1], atol=1e-4)
    np.testing.assert_allclose(result[0].loc[fits[0].items_.index], fits[0].truth_probabilities_, atol=1e-9)
    assert result[0].iloc[20:].std().min() > 0.05

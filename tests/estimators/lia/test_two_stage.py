"""`TwoStage`: predictions from features alone, a cloned first stage, and loops over the parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probcrowd import GLAD, DawidSkene, MajorityVote
from probcrowd.data.annotations import Annotations
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.two_stage import TwoStage
from probcrowd.models.lia.prior import LIAPrior


def simulate(
    seed: int = 0, *, items: int = 100, per_item: int = 1, annotators: int = 6, width: int = 4, new: int = 300
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Few labels per item, features that determine the class, and the true classes; the last have no
    labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + new, width))
    truth = (x @ rng.normal(size=(width, 3))).argmax(1)
    item = np.repeat(np.arange(items), per_item)
    annotator = np.concatenate([rng.choice(annotators, per_item, replace=False) for _ in range(items)])
    label = np.where(
        rng.random(len(item)) < 0.7, truth[item], (truth[item] + rng.integers(1, 3, len(item))) % 3
    )
    table = pd.DataFrame({"item": item, "annotator": annotator, "label": label}).sample(
        frac=1, random_state=seed
    )
    return table, pd.DataFrame(x), pd.Series(truth)


def first_stages() -> dict[str, Aggregator | None]:
    return {"none": None, "Dawid-Skene": DawidSkene(dependence="ignore"), "GLAD": GLAD(dependence="ignore")}


@pytest.mark.parametrize("name", ["none", "Dawid-Skene", "GLAD"])
def test_features_help_where_labels_are_few(name: str) -> None:
    table, features, truth = simulate(per_item=2 if name == "Dawid-Skene" else 1)
    first = first_stages()[name]
    fitted = TwoStage(aggregator=first, steps=100).fit(table, features=features)
    assert fitted.score(None, truth) > fitted.aggregator_.score(None, truth) + 0.05
    new = features.iloc[100:]
    assert (fitted.predict_items(new).idxmax(axis=1) == truth[new.index]).mean() > 0.75
    pd.testing.assert_frame_equal(fitted.probabilities_, fitted.truth_probabilities_)
    np.testing.assert_allclose(
        fitted.predict_items(features).loc[fitted.items_.index], fitted.probabilities_, atol=1e-9
    )
    alone = (MajorityVote() if first is None else clone(first)).set_params(dependence="ignore").fit(table)
    pd.testing.assert_frame_equal(fitted.aggregator_.probabilities_, alone.probabilities_)
    assert fitted.aggregator is first and type(fitted.aggregator_) is type(alone)
    if first is not None:
        assert fitted.aggregator_ is not first and not hasattr(first, "classes_")


def test_the_network_raises_the_expected_log_likelihood_of_the_first_stage() -> None:
    """With a linear network, the gradient of sum q log h(x) plus the log prior vanishes."""
    table, features, truth = simulate(1, items=30, per_item=3, width=2, new=0)
    prior = LIAPrior(truth=2.0, class_logit=0.5)
    fitted = TwoStage(prior=prior).fit(table, truth.head(5), features=features)
    x = features.loc[fitted.items_.index].to_numpy()
    z = (x - x.mean(0)) / math.sqrt(((x - x.mean(0)) ** 2).mean())
    q = fitted.aggregator_.probabilities_.loc[fitted.items_.index].to_numpy()
    weight, bias = (fitted.parameters_[name] for name in ("truth_weight", "truth_bias"))

    def value(weight: np.ndarray, bias: np.ndarray) -> float:
        total = 0.0
        for i in range(30):
            scores = [bias[k] + sum(z[i, c] * weight[c, k] for c in range(2)) for k in range(3)]
            norm = math.log(sum(math.exp(score) for score in scores))
            total += sum(q[i, k] * (scores[k] - norm) for k in range(3))
        total -= sum(w**2 for w in weight.ravel()) / (2 * (2.0 / math.sqrt(2)) ** 2) + sum(
            b**2 for b in bias
        ) / (2 * 0.5**2)
        return total

    others = 0.0  # the prior of what is not learned: at its centre
    for name in ("difficulty_weight", "competence_offset"):
        others = max(others, np.abs(fitted.parameters_[name]).max())
    assert others < 1e-4
    assert fitted.log_posterior_.shape == (1,) and math.isclose(
        fitted.log_posterior_[0], value(weight, bias), abs_tol=1e-4
    )
    for at in range(9):
        step = np.zeros(9)
        step[at] = 1e-4
        above, below = (
            value(weight + sign * step[:6].reshape(2, 3), bias + sign * step[6:]) for sign in (1, -1)
        )
        assert abs(above - below) / 2e-4 < 2e-3
    scores = np.exp(z @ weight + bias)
    np.testing.assert_allclose(fitted.probabilities_, scores / scores.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(fitted.class_prior_, fitted.probabilities_.mean(), atol=1e-12)


def test_without_features_items_are_learned_by_heart_or_not_at_all() -> None:
    table, features, truth = simulate(2, items=60, per_item=5, new=0)
    fitted = TwoStage(prior=LIAPrior(truth=3.0), steps=200).fit(table)
    assert (fitted.labels_ == fitted.aggregator_.labels_).mean() > 0.8 and fitted.score(None, truth) > 0.75
    assert fitted.parameters_["item_embedding"].shape == (60, 16)
    with pytest.raises(ValueError, match="the fit had no features: pass them to `fit`"):
        fitted.predict_items(features)
    assert TwoStage().fit(table).probabilities_.std().max() < 0.02  # the prior is too narrow for so few items


def test_gold_teaches_and_is_answered_like_all_else() -> None:
    table, features, truth = simulate(3, new=0)
    gold = (truth.head(50) + 1) % 3  # of another opinion than the crowd
    fitted = TwoStage(steps=100).fit(table, gold, features=features)
    np.testing.assert_array_equal(fitted.aggregator_.probabilities_.sort_index().head(50), np.eye(3)[gold])
    assert fitted.items_["known"].sort_index().tolist() == [True] * 50 + [False] * 50
    pd.testing.assert_frame_equal(fitted.probabilities_, fitted.truth_probabilities_)
    blind = TwoStage(steps=100).fit(table, features=features)
    chances = [np.mean([each.probabilities_.loc[i, k] for i, k in gold.items()]) for each in (fitted, blind)]
    assert chances[0] > chances[1] + 0.2


def test_history_goes_to_the_first_stage() -> None:
    table, features, _ = simulate(4, items=30, new=0)
    earlier = DawidSkene(dependence="ignore").fit(simulate(5, items=60, per_item=5)[0]).counts_
    two = TwoStage(aggregator=DawidSkene(dependence="ignore"), steps=5).fit(
        table, history=earlier, features=features
    )
    alone = DawidSkene(dependence="ignore").fit(table, history=earlier)
    pd.testing.assert_frame_equal(two.aggregator_.probabilities_, alone.probabilities_)
    with pytest.raises(ValueError, match="MajorityVote takes no history"):
        TwoStage().fit(table, history=earlier, features=features)


def test_other_tables_are_answered_from_features_alone() -> None:
    table, features, _ = simulate(6, items=20, per_item=2, new=2)
    fitted = TwoStage(steps=20).fit(table, features=features)
    pd.testing.assert_frame_equal(fitted.predict_proba(table), fitted.probabilities_)
    new = pd.DataFrame({"item": [3, 3, 3, 77], "annotator": [0, 1, 2, 0], "label": [0, 0, 0, 0]})
    result = fitted.predict_proba(new)
    pd.testing.assert_frame_equal(result.loc[[3]], fitted.probabilities_.loc[[3]])  # whatever is said of it
    centre = np.exp(fitted.parameters_["truth_bias"])
    np.testing.assert_allclose(result.loc[77], centre / centre.sum(), atol=1e-12)
    assert fitted.describe(new)["num_labels"].tolist() == [3, 1]
    with pytest.warns(
        UserWarning,
        match="1 annotators are not known from the fit and are ignored: "
        "predictions depend on features alone: 9",
    ):
        assert fitted.predict(new.assign(annotator=9).tail(1)).index.tolist() == [77]


def test_items_without_labels_are_answered_too() -> None:
    table, features, truth = simulate(7)
    declared = Annotations.from_frame(table, items=range(400))
    fitted = TwoStage(steps=100).fit(declared, features=features)
    assert (fitted.items_["flag"] == "no labels").sum() == 300
    assert (fitted.labels_.iloc[100:] == truth.iloc[100:]).mean() > 0.6


def test_both_stages_need_the_same_abstention() -> None:
    table, features, _ = simulate(8, items=20, per_item=2, new=0)
    shy = table.assign(label=table["label"].map({0: "a", 1: "b", 2: "?"}))
    first = MajorityVote(dependence="ignore", abstention="?")
    fitted = TwoStage(aggregator=first, abstention="?", steps=5).fit(shy, features=features)
    assert (
        list(fitted.classes_)
        == ["a", "b"]
        == list(TwoStage(abstention="?", steps=5).fit(shy, features=features).classes_)
    )
    for stages in (
        TwoStage(aggregator=first),
        TwoStage(aggregator=DawidSkene(dependence="ignore"), abstention="?"),
    ):
        with pytest.raises(
            ValueError,
            match=r"the first stage has the classes .*, the table .*: give both stages the same abstention",
        ):
            stages.fit(shy, features=features)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps=0: choose a whole number of at least 1"),
        ({"steps": 2.5}, "steps=2.5: choose"),
        ({"random_state": None}, "random_state=None: choose a whole number"),
        ({"aggregator": DawidSkene}, r"aggregator=<class .*: give one such as DawidSkene\(\), or None"),
        ({"prior": "accurate"}, "prior='accurate': give a LIAPrior, or None"),
        ({"dependence": "discount"}, "TwoStage cannot discount dependent labels"),
    ],
)
def test_bad_parameters_raise_before_the_first_stage(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MajorityVote, "fit", None)
    with pytest.raises(ValueError, match=words):
        TwoStage().set_params(**options).fit(simulate()[0])


def test_parameters_follow_scikit_learn() -> None:
    table, features, _ = simulate(9, items=20, new=0)
    options: dict[str, Any] = {
        "prior": LIAPrior(hidden=(3,)),
        "steps": 7,
        "random_state": 4,
        "dependence": "warn",
        "abstention": 2,
    }
    changed = TwoStage(aggregator=DawidSkene(max_iter=9, dependence="ignore"), **options)
    assert clone(changed).get_params(deep=False).keys() == {"aggregator", *options}
    assert {name: clone(changed).get_params()[name] for name in options} == options and clone(
        changed
    ).get_params()["aggregator__max_iter"] == 9
    assert changed.set_params(aggregator__max_iter=5).aggregator.max_iter == 5  # pyright: ignore[reportAttributeAccessIssue]
    fits = [
        TwoStage(prior=LIAPrior(hidden=(3,)), steps=10, random_state=seed).fit(table, features=features)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(fits[0].probabilities_, fits[1].probabilities_)
    assert not np.array_equal(fits[0].probabilities_, fits[2].probabilities_)
    with pytest.raises(NotFittedError):
        clone(fits[0]).predict_items(features)
    assert not hasattr(clone(fits[0]), "aggregator_")
    assert fits[0].confusion_.shape == (6 * 3, 3) and fits[0].annotators_[
        "num_labels"
    ].sum() == pytest.approx(20)
    with pytest.raises(ValueError, match=r"features: no features of 19 \(1 in all\)"):
        TwoStage(steps=5).fit(table, features=features.head(19))

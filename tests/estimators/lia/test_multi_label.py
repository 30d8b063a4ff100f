"""`MultiLabelLIA`: results by (item, question), what questions share, loops over the parameters, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.multi_label import MultiLabelLIA, load_multi_label_lia
from probcrowd.inference.lia import em
from probcrowd.models.lia.prior import LIAPrior

QUESTIONS = ["cause", "symptom", "treat"]
QUICK: dict[str, Any] = {"rounds": 3, "steps": 10, "last_steps": 100}
TINY: dict[str, Any] = {"rounds": 2, "steps": 3, "last_steps": 5}


def simulate(
    seed: int = 0, *, items: int = 80, per_item: int = 3, annotators: int = 8, new: int = 200
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Shuffled labels of two classes, features that determine the answers, and the true answers.

    Answers are by (item, question), also for items without labels.
    """
    rng = np.random.default_rng(seed)
    names = [f"i{i}" for i in range(items + new)]
    x = pd.DataFrame(rng.normal(size=(items + new, 4)), names)
    truth = pd.DataFrame((x.to_numpy() @ (2 * rng.normal(size=(4, 3))) > 0).astype(int), names, QUESTIONS)
    skill = np.linspace(0.55, 0.95, annotators)
    rows = []
    for i in range(items):
        for j in rng.choice(annotators, per_item, replace=False):
            for question in QUESTIONS:
                answer = truth.loc[names[i], question]
                rows.append((names[i], f"w{j}", question, answer if rng.random() < skill[j] else 1 - answer))
    table = pd.DataFrame(rows, columns=["task", "worker", "question", "label"]).sample(
        frac=1, random_state=seed
    )
    gold = truth.stack()
    gold.index = gold.index.set_names([None, None])
    return table, x, gold


def small(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """A small table that lacks one question of one item."""
    table, features, gold = simulate(seed, items=8, annotators=4, new=2)
    return table.loc[~((table["task"] == "i3") & (table["question"] == "treat"))], features, gold


def test_questions_are_answered_together_about_as_well_as_alone() -> None:
    table, features, gold = simulate()
    fitted = MultiLabelLIA(**QUICK).fit(table, features=features)
    score = fitted.score(gold)
    assert list(score.index) == QUESTIONS and (score.index.name, score.name) == ("question", "accuracy")
    apart = {}
    for question, part in table.groupby("question"):
        alone = LIA(dependence="ignore", **QUICK).fit(part.drop(columns="question"), features=features)
        apart[question] = alone.score(None, gold.xs(question, level=1))
    assert score.min() > 0.8 and score.mean() > np.mean(list(apart.values())) - 0.02
    new = fitted.predict_items(features.tail(200))
    assert new.index.names == ["item", "question"] and new.shape == (600, 2) and new.columns.name == "class"
    right = (new.idxmax(axis=1) == gold[new.index]).groupby(level="question").mean()
    assert right.min() > 0.75
    lost = MultiLabelLIA(**QUICK).fit(
        table, features=features.set_axis(np.random.default_rng(0).permutation(features.index), axis=0)
    )
    assert abs((lost.predict_items(features.tail(200)).idxmax(axis=1) == gold[new.index]).mean() - 0.5) < 0.15


def test_sharing_helps_a_question_with_few_labels() -> None:
    """Competences are learned from all questions; alone, two contradicting labels are a tie."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60)
    rows = [
        (i, j, "old", truth[i] if rng.random() < skill else 1 - truth[i])
        for i in range(60)
        for j, skill in enumerate((0.95, 0.9, 0.85, 0.3))
    ]
    table = pd.DataFrame(
        [*rows, (0, 0, "new", 1), (0, 3, "new", 0)], columns=["item", "annotator", "question", "label"]
    )
    fitted = MultiLabelLIA(**QUICK).fit(table)
    assert fitted.probabilities_.loc[(0, "new"), 1] > 0.75
    alone = LIA(dependence="ignore", **QUICK).fit(table.query("question == 'new'").drop(columns="question"))
    assert abs(alone.probabilities_.loc[0, 1] - 0.5) < 0.05


def test_answers_are_under_item_and_question() -> None:
    table, features, gold = small()
    fitted = MultiLabelLIA(**TINY).fit(
        table.set_axis(np.zeros(len(table)), axis=0), features=features
    )  # an index without meaning
    pairs = list(dict.fromkeys(zip(table["task"], table["question"], strict=True)))
    for result in (
        fitted.probabilities_,
        fitted.labels_,
        fitted.difficulty_,
        fitted.predict(),
        fitted.predict_proba(),
    ):
        assert list(result.index) == pairs and result.index.names == ["item", "question"]
    pd.testing.assert_series_equal(fitted.labels_, fitted.probabilities_.idxmax(axis=1), check_names=False)
    pd.testing.assert_series_equal(fitted.predict(), fitted.labels_)
    assert (
        len(pairs) == 23
        and list(fitted.questions_) == QUESTIONS
        and list(fitted.annotators_.index) == list(table["worker"].unique())
    )
    assert fitted.annotators_["num_labels"].sum() == pytest.approx(len(table))
    np.testing.assert_allclose(fitted.probabilities_.sum(axis=1), 1, atol=1e-12)
    for question, score in fitted.score(gold).items():
        part = fitted.labels_.xs(question, level="question")
        assert score == pytest.approx((part == gold.xs(question, level=1)[part.index]).mean())
    shuffled = MultiLabelLIA(**TINY).fit(table, features=features.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(shuffled.probabilities_, fitted.probabilities_)


def test_every_answer_equals_a_loop_over_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    table, features, _ = small()
    monkeypatch.setattr(em, "INITIAL_SCALE", 1.5)  # one step from a wild start
    fitted = MultiLabelLIA(prior=LIAPrior(question_embedding=3), rounds=1, steps=1, last_steps=0).fit(
        table, features=features
    )
    assert (fitted.competence("cause") - fitted.competence("treat")).abs().to_numpy().max() > 0.1
    p = fitted.lia_.parameters_
    x = features.loc[fitted.pairs_.get_level_values("item")].to_numpy()
    size = math.sqrt(((x - x.mean(0)) ** 2).mean())

    def h(z: np.ndarray, question: str) -> np.ndarray:
        u, odds = p["question_embedding"][QUESTIONS.index(question)], []
        for k in range(2):
            score = p["truth_bias"][k] + sum(u[e] * p["truth_question_bias"][e, k] for e in range(3))
            for c in range(4):
                score += z[c] * (
                    p["truth_weight"][c, k] + sum(u[e] * p["truth_question"][e, c, k] for e in range(3))
                )
            odds.append(math.exp(score))
        return np.array(odds) / sum(odds)

    def q(z: np.ndarray, question: str | None, seat: int | None) -> np.ndarray:
        scores = p["competence_mean"][..., 0] + (0 if seat is None else p["competence_offset"][seat, ..., 0])
        scores = scores + sum(z[c] * p["difficulty_weight"][c, ..., 0] for c in range(4))
        if question is not None:
            u = p["question_embedding"][QUESTIONS.index(question)]
            scores = scores + sum(u[e] * p["question_competence"][e, ..., 0] for e in range(3))
        return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)

    people = list(fitted.annotators_.index)
    for (item, question), result in fitted.probabilities_.iterrows():
        z = (features.loc[item].to_numpy() - x.mean(0)) / size
        chance = h(z, question)
        np.testing.assert_allclose(
            fitted.predict_items(features.loc[[item]]).loc[(item, question)], chance, atol=1e-12
        )
        for _, row in table.loc[(table["task"] == item) & (table["question"] == question)].iterrows():
            chance = chance * q(z, question, people.index(row["worker"]))[:, row["label"]]
        np.testing.assert_allclose(result, chance / chance.sum(), atol=1e-12)
        expected = 1 - sum(result[k] * q(z, question, None)[k, k] for k in range(2))
        assert math.isclose(fitted.difficulty_[(item, question)], expected, abs_tol=1e-12)
    for question in QUESTIONS:
        for seat, name in enumerate(people):
            np.testing.assert_allclose(
                fitted.competence(question).loc[name], q(np.zeros(4), question, seat), atol=1e-12
            )
            np.testing.assert_allclose(
                fitted.lia_.competence_.loc[name], q(np.zeros(4), None, seat), atol=1e-12
            )  # of an average question
    assert fitted.competence("treat").index.names == ["annotator", "true_class"]
    with pytest.raises(ValueError, match="unknown question 'why': the fit has 'cause', 'symptom', 'treat'"):
        fitted.competence("why")


IDS: dict[str, Callable[[int], Any]] = {
    "text": lambda i: f"n°{i} \"'[,]\\ \n",
    "whole numbers": lambda i: i * 10**15,
    "decimals": lambda i: i + 0.1,
    "numbers as text": str,
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_come_back_as_they_are_also_from_a_folder(tmp_path: Path, kind: str) -> None:
    table, features, gold = small()
    plain = MultiLabelLIA(**TINY).fit(table, gold.head(3), features=features)
    item = {name: IDS[kind](at) for at, name in enumerate(features.index)}
    question = {name: IDS[kind](at) for at, name in enumerate(QUESTIONS)}  # in the same order
    named = table.assign(task=table["task"].map(item), question=table["question"].map(question))
    known = pd.Series(
        gold.head(3).to_numpy(),
        pd.MultiIndex.from_tuples([(item[i], question[q]) for i, q in gold.index[:3]]),
    )
    fitted = MultiLabelLIA(**TINY).fit(named, known, features=features.rename(index=item), folder=tmp_path)
    loaded = load_multi_label_lia(str(tmp_path))
    assert list(fitted.questions_) == list(question.values())
    for each in (fitted, loaded):
        np.testing.assert_array_equal(each.probabilities_, plain.probabilities_)
        assert list(each.probabilities_.index) == [
            (item[i], question[q]) for i, q in plain.probabilities_.index
        ]
        np.testing.assert_array_equal(each.probabilities_.loc[known.index], np.eye(2)[known])
        assert each.score(known).tolist() == [1.0, 1.0, 1.0]
    for name in ("probabilities_", "labels_", "difficulty_", "annotators_"):
        left, right = (pd.DataFrame(getattr(each, name)) for each in (loaded, fitted))
        pd.testing.assert_frame_equal(left, right, check_exact=True)
    pd.testing.assert_index_equal(loaded.questions_, fitted.questions_)
    new = features.rename(index=item)
    pd.testing.assert_frame_equal(loaded.predict_items(new), fitted.predict_items(new), check_exact=True)
    for name in fitted.questions_:
        pd.testing.assert_frame_equal(loaded.competence(name), fitted.competence(name), check_exact=True)
    assert loaded.get_params() == fitted.get_params()


def test_boolean_items_and_questions_keep_their_features() -> None:
    table, features, _ = small()
    part = table.loc[table["task"].isin(["i0", "i1"]) & (table["question"] != "treat")]
    plain = MultiLabelLIA(**TINY).fit(part, features=features)
    yes = part.assign(task=part["task"] == "i1", question=part["question"] == "symptom")
    fitted = MultiLabelLIA(**TINY).fit(
        yes, features=features.loc[["i1", "i0"]].set_axis([True, False], axis=0)
    )
    np.testing.assert_array_equal(fitted.probabilities_, plain.probabilities_)
    assert list(fitted.questions_) == [False, True]


def test_a_fit_in_a_folder_is_resumed_and_others_are_refused(tmp_path: Path) -> None:
    table, features, _ = small()
    fitted = MultiLabelLIA(**TINY).fit(table, features=features, folder=tmp_path / "new")
    again = MultiLabelLIA(**TINY).fit(table, features=features, folder=tmp_path / "new", resume=True)
    pd.testing.assert_frame_equal(again.probabilities_, fitted.probabilities_)
    swapped = table.assign(
        question=table["question"].map({"cause": "treat", "treat": "cause", "symptom": "symptom"})
    )
    with pytest.raises(ValueError, match="holds a run with other settings"):
        MultiLabelLIA(**TINY).fit(swapped, features=features, folder=tmp_path / "new", resume=True)
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        MultiLabelLIA(**TINY).fit(table, resume=True)
    one = table.loc[table["question"] == "cause"].drop(columns="question")
    LIA(dependence="ignore", **TINY).fit(one, folder=tmp_path / "one")
    with pytest.raises(
        ValueError, match="one holds a fit of LIA, not of MultiLabelLIA: load it with load_lia"
    ):
        load_multi_label_lia(tmp_path / "one")


def test_gold_is_by_item_and_question() -> None:
    table, features, truth = small()
    gold = 1 - truth.loc[["i0", "i1"]]
    fitted = MultiLabelLIA(**TINY).fit(table, gold, features=features)
    np.testing.assert_array_equal(fitted.probabilities_.loc[gold.index], np.eye(2)[gold])
    assert fitted.probabilities_.drop(gold.index).to_numpy().max() < 1
    turned = gold.swaplevel().rename_axis(["question", "item"])
    pd.testing.assert_frame_equal(
        MultiLabelLIA(**TINY).fit(table, turned, features=features).probabilities_, fitted.probabilities_
    )
    assert fitted.score(turned).tolist() == [1.0] * 3
    unknown = pd.Series([np.nan], pd.MultiIndex.from_tuples([("i5", "treat")]))
    some = pd.concat([truth.loc[["i2"]].head(1), unknown])
    assert list(fitted.score(some).index) == ["cause"]
    for wrong, words in (
        (truth.swaplevel(), "gold has no class of any \\(item, question\\) of the fit, such as \\('i"),
        (truth.loc[["i9"]], "gold has no class of any"),
        (truth.astype(float) * np.nan, "gold has no class of any"),
        (truth.droplevel(1), r"gold labels need an index of \(item, question\), not 'i0'"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.score(wrong)
    with pytest.raises(ValueError, match="gold labels need an index of"):
        MultiLabelLIA(**TINY).fit(table, truth.droplevel(1), features=features)


def test_errors_name_the_fault() -> None:
    table, features, _ = small()
    for wrong, words in (
        (
            table.drop(columns="question"),
            (
                "annotations need a column 'question' beside item, annotator and label; "
                "they have 'task', 'worker', 'label'"
            ),
        ),
        (
            table.assign(question=table["question"].where(table["task"] != "i1")),
            r"missing question ids \(9 of 69 rows",
        ),
        (table.assign(task=table["task"].where(table["task"] != "i1")), r"missing item ids \(9 of 69 rows"),
        (table.assign(label=table["label"].where(table["task"] != "i1")), "missing labels"),
        (pd.concat([table, table.head(1)]), r"repeated \(item, annotator\) pairs"),
    ):
        with pytest.raises(ValueError, match=words):
            MultiLabelLIA(**TINY).fit(wrong, features=features)
    dated = table.assign(question=pd.Timestamp("2020-01-01"))
    with pytest.raises(
        TypeError, match="ids of items and questions must be text, numbers or booleans, not Timestamp"
    ):
        MultiLabelLIA(**TINY).fit(dated, features=features)
    with pytest.raises(ValueError, match=r"features: no features of 'i7' \(1 in all\)"):
        MultiLabelLIA(**TINY).fit(table, features=features.drop(index="i7"))
    with pytest.raises(ValueError, match=r"features: missing or infinite values.*\(1 of 8 rows.*'i7'\)"):
        MultiLabelLIA(**TINY).fit(
            table, features=features.assign(**{"3": features[3].where(features.index != "i7")})
        )
    with pytest.raises(ValueError, match="rounds=0: choose a whole number"):
        MultiLabelLIA(rounds=0).fit(table)
    alone = MultiLabelLIA(**TINY).fit(table)
    with pytest.raises(ValueError, match="the fit had no features"):
        alone.predict_items(features)
    assert alone.lia_.parameters_["item_embedding"].shape == (23, 16)


def test_other_types_than_data_frames_are_refused_without_type_checks() -> None:
    table = Annotations.from_frame(small()[0].query("question == 'cause'").drop(columns="question"))
    fit = getattr(MultiLabelLIA.fit, "__wrapped__", MultiLabelLIA.fit)  # without the checks of the tests
    with pytest.raises(
        TypeError,
        match="annotations must be a data frame with item, annotator, question and label, not Annotations",
    ):
        fit(MultiLabelLIA(**TINY), table)


def test_parameters_follow_scikit_learn() -> None:
    options: dict[str, Any] = {
        "objective": "composite", "prior": LIAPrior(hidden=(3,)), "rounds": 2, "steps": 3, "last_steps": 4,
        "batch": 12, "learning_rate": 0.02, "random_state": 3, "progress": True,
    }  # fmt: skip
    changed = MultiLabelLIA(**options)
    assert (
        clone(changed).get_params()
        == changed.get_params()
        == MultiLabelLIA().set_params(**options).get_params()
        == options
    )
    assert all(MultiLabelLIA().get_params()[name] != value for name, value in options.items())
    table, features, gold = small()
    fitted = changed.fit(table, features=features)
    assert (
        fitted is changed
        and fitted.lia_.get_params()["batch"] == 12
        and np.isfinite(fitted.probabilities_.to_numpy()).all()
    )
    fresh = clone(fitted)
    asks = (
        fresh.predict,
        fresh.predict_proba,
        lambda: fresh.score(gold),
        lambda: fresh.predict_items(features),
        lambda: fresh.competence("a"),
    )
    for ask in (*asks, lambda: fresh.annotators_, lambda: fresh.difficulty_):
        with pytest.raises(NotFittedError, match="MultiLabelLIA"):
            ask()

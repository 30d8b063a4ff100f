"""How well `SimLabel` says that annotators are foretold, and which faults it names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta
from sim_label_crowd import LOW, every_architecture, ready, require_same, simulate
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

# How well single annotators are foretold


@every_architecture
def test_an_evaluation_is_what_loops_over_the_labels_find(architecture: str) -> None:
    said, seen, truth = simulate()
    fitted = ready(architecture).fit(seen, said)
    new = pd.DataFrame(
        [(pic, who, truth[pic] if who != "y" else "bee") for pic in seen.index[-10:] for who in "yvw"],
        columns=["item", "annotator", "label"],
    ).sample(frac=1, random_state=0)
    own, found = fitted.annotator_proba(seen), fitted.evaluate(seen, new, truth)
    accuracies, losses, hits = {}, [], []
    for who in "uvwxy":
        rows = [own.loc[(row.item, who)] for row in new.itertuples() if row.annotator == who]
        labels = [row.label for row in new.itertuples() if row.annotator == who]
        right = [float(p.idxmax() == label) for p, label in zip(rows, labels, strict=True)]
        lost = [-math.log(p[label]) for p, label in zip(rows, labels, strict=True)]
        row = found.annotators.loc[who]
        assert row["labels"] == len(rows)
        if rows:
            accuracies[who] = np.mean(right)
            assert row["accuracy"] == pytest.approx(accuracies[who]) and row["log_loss"] == pytest.approx(
                np.mean(lost), abs=1e-6
            )
            between = beta.ppf([0.025, 0.975], sum(right) + 0.5, len(right) - sum(right) + 0.5)
            np.testing.assert_allclose(row[["lower", "upper"]].astype(float), between)
        losses, hits = losses + lost, hits + right
    assert found.annotators.loc[["u", "x"], ["accuracy", "lower", "upper", "log_loss"]].isna().all(axis=None)
    known = {
        "labels": 30,
        "accuracy": np.mean(hits),
        "log_loss": np.mean(losses),
        "mean_accuracy": np.mean(list(accuracies.values())),
        "consensus_accuracy": fitted.score(seen, truth),
        "consensus_log_loss": np.mean(
            [-math.log(p[truth[pic]]) for pic, p in fitted.predict_proba(seen).iterrows()]
        ),
    }
    for name, value in known.items():
        assert found.overall[name] == pytest.approx(value, abs=1e-6), name
    assert "consensus_accuracy" not in fitted.evaluate(seen, new).overall and "mean_accuracy" in str(found)


@every_architecture
def test_annotators_who_see_it_otherwise_are_told_apart(architecture: str) -> None:
    """Two groups with opposite names for two of three classes: half of what they say of these is lost to any
    one consensus."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(260, 4))
    truth = (3 * x @ rng.normal(size=(4, 3))).argmax(1)
    voice = np.where(np.arange(6) < 3, truth[:, None], np.array([1, 0, 2])[truth][:, None])
    told = np.where(rng.random(voice.shape) < 0.95, voice, rng.integers(3, size=voice.shape))
    given = np.where(rng.permuted(np.tile(np.arange(6), (260, 1)), axis=1) < 3, told, -1)
    options = {"epochs": 40, "batch": 32, "learning_rate": 0.02}
    fitted = ready(architecture, **options).fit(x[:180], given[:180], missing_label=-1)
    own = fitted.evaluate(x[180:], told[180:]).overall["mean_accuracy"]
    consensus = (told[180:] == fitted.predict(x[180:]).to_numpy()[:, None]).mean()
    most = max((told[180:] == guess[:, None]).mean() for guess in (truth[180:], voice[180:, -1]))
    assert own > max(consensus, most) + 0.15 and own > 0.75
    alike = fitted.similarity_matrix_.to_numpy()
    assert alike[:3, :3].min() > alike[:3, 3:].max() and alike[3:, 3:].min() > alike[:3, 3:].max()


# Faults


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "magic"}, "architecture='magic': choose one of qumatl, madl, padl, pooled"),
        ({"missing": None}, "missing=None: choose one of similarity, uniform, consensus, skip"),
        ({"variant": "new"}, "variant='new': choose one of recommended, paper, released"),
        (
            {"similarity": "cosine"},
            "similarity='cosine': choose one of None, kappa, bennett, krippendorff, pearson",
        ),
        ({"imputed": "all"}, "imputed='all': choose one of similarity, loss"),
        ({"selection": "gold"}, "selection='gold': choose one of held-out, last"),
        ({"kl_weight": -1}, "kl_weight=-1: choose a number >= 0"),
        ({"kl_weight": math.inf}, "kl_weight=inf: choose a number >= 0"),
        ({"warm_up": -1}, "warm_up=-1: choose"),
        ({"warm_up": 1.5}, "warm_up=1.5: choose"),  # taken for 1
        ({"threshold": 0.0}, "threshold=0.0: choose a number > 0"),
        ({"threshold": 1.1}, "threshold=1.1: a confidence is at most 1"),
        ({"threshold": math.nan}, "threshold=nan: choose a number > 0"),
        (
            {"threshold": 0.5, "missing": "skip"},
            "a threshold imputes soft labels, and there are none with missing='skip' or kl_weight=0",
        ),
        ({"imputed": "loss"}, "imputed='loss' needs a threshold"),
        ({"epochs": 0}, "epochs=0: choose a whole number of at least 1"),
        ({"batch": 2.5}, "batch=2.5: choose a whole number of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: choose a number > 0"),
        ({"weight_decay": "much"}, "weight_decay='much': choose a number >= 0"),
        ({"patience": 0}, "patience=0: choose a whole number of at least 1"),
        ({"patience": 3, "selection": "last"}, "patience waits for a better score"),
        ({"random_state": -1}, "random_state=-1: choose a whole number of at least 0"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0: choose a number between 0 and 1"),
        ({"options": {"magic": 1}}, "options={'magic': 1} do not fit the architecture 'madl'"),
        (
            {"architecture": "padl", "options": {"heads": 2}},
            "options={'heads': 2} do not fit the architecture 'padl'",
        ),
        ({"architecture": "qumatl", "options": {"width": 6}}, "width=6 must be a multiple of heads=4"),
        ({"architecture": "pooled", "options": {"scale": 0.0}}, "scale=0.0: choose a number above 0"),
        (
            {"encoder": nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))},
            "the encoder returns one number per item; it must return an embedding",
        ),
    ],
)
def test_bad_parameters_raise_at_fit_and_name_the_choices(options: dict[str, Any], words: str) -> None:
    said, seen, _ = simulate()
    with pytest.raises(ValueError, match=words):
        ready().set_params(**({"options": {}} | options)).fit(seen, said)


def test_an_encoder_that_gives_no_tensor_is_named() -> None:
    # It is an AttributeError now: 'tuple' object has no attribute 'shape'.
    said, seen, _ = simulate()
    with pytest.raises((TypeError, ValueError), match="the encoder returns a tuple"):
        ready(encoder=nn.LSTM(4, 4)).fit(seen, said)


def test_faults_of_tables_and_questions_are_named() -> None:
    said, seen, truth = simulate()
    made = ready(threshold=LOW)
    with pytest.raises(ValueError, match=r"X lacks annotated items: 'pic\d', 'pic\d' \(2 in all\)"):
        made.fit(seen.iloc[2:], said)
    with pytest.raises(ValueError, match="all labels are the same, 'bee'"):
        made.fit(seen, said.assign(label="bee"))
    with pytest.raises(ValueError, match="too few to hold any out: set selection='last'"):
        made.fit(seen, said[said["item"].isin(["pic0", "pic1"])])
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        made.fit(seen, said, resume=True)
    with pytest.raises(ValueError, match="missing_label marks empty cells of a matrix"):
        made.fit(seen, said, missing_label=-1)
    with pytest.raises(ValueError, match="columns item and annotator"):
        made.fit(seen, said, withdrawn=said[["item"]])
    with pytest.raises(ValueError, match="pairs of annotators that are not in the fit(.|\n)*'q'"):
        made.fit(seen, said, withdrawn=said.assign(annotator="q"))
    for question in (made.predict, made.annotator_proba, made.predict_annotators, made.completed):
        with pytest.raises(NotFittedError):
            question(seen)
    for name in ("similarity_", "imputed_", "annotators_", "withdrawn_", "similarity_matrix_"):
        with pytest.raises(NotFittedError):
            getattr(made, name)
    fitted = made.fit(seen, said)
    for question in (fitted.annotator_proba, fitted.predict_annotators):
        with pytest.raises(ValueError, match="annotators that are not in the fit: 'q'"):
            question(seen, ["u", "q"])
    for wrong, words in (
        (said.replace("u", "q"), "annotators that are not in the fit: 'q': leave their labels out"),
        (said.replace("ant", "asp"), "labels of items that the fit does not know(.|\n)*'asp'"),
        (said.replace("pic3", "pic99"), "X lacks annotated items: 'pic99'"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.evaluate(seen, wrong)
    with pytest.raises(ValueError, match="true classes that no annotator used(.|\n)*'asp'"):
        fitted.evaluate(seen, said, truth.replace("ant", "asp"))
    with pytest.raises(ValueError, match="the columns are 'a', 'b', 'c', 'e'"):
        fitted.predict_annotators(seen.rename(columns={"d": "e"}))


def test_one_annotator_alone() -> None:
    # Without any pair `np.bincount` gives whole numbers, which `PairTables._sums` says it does not return.
    said, seen, _ = simulate()
    alone = ready(threshold=LOW).fit(seen, said[said["annotator"] == "u"])
    assert (
        not len(alone.imputed_)
        and not len(alone.similarity_)
        and alone.similarity_matrix_.to_numpy().tolist() == [[1.0]]
    )
    assert list(alone.predict_annotators(seen).columns) == ["u"] and np.isfinite(alone.annotators_).all(
        axis=None
    )


def test_no_annotator_at_all() -> None:
    # `predict_annotators` cannot reshape an array of size 0 into shape (0).
    said, seen, _ = simulate()
    fitted = ready().fit(seen, said)
    assert fitted.annotator_proba(seen, []).shape == (0, 3) and fitted.predict_annotators(seen, []).shape == (
        70,
        0,
    )


def test_parameters_are_as_scikit_learn_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    made = ready(threshold=0.5, encoder=None)
    assert clone(made).get_params() == made.get_params() and made.set_params(epochs=2).epochs == 2
    said, seen, _ = simulate()
    made.fit(seen, said)
    assert capsys.readouterr().err == ""
    shown = clone(made).set_params(progress=True).fit(seen, said)
    assert "train" in (bar := capsys.readouterr().err) and "/2 [" in bar
    require_same(shown, made, seen)

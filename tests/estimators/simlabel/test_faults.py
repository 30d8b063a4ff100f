"""`SimLabel.evaluate`, and the errors that `SimLabel` raises."""

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

# Evaluation


@every_architecture
def test_an_evaluation_is_what_loops_over_the_labels_find(architecture: str) -> None:
    table, X, truth = simulate()
    fitted = ready(architecture).fit(X, table)
    new = pd.DataFrame(
        [(pic, who, truth[pic] if who != "y" else "bee") for pic in X.index[-10:] for who in "yvw"],
        columns=["item", "annotator", "label"],
    ).sample(frac=1, random_state=0)
    own, result = fitted.annotator_proba(X), fitted.evaluate(X, new, truth)
    accuracies, losses, hits = {}, [], []
    for who in "uvwxy":
        rows = [own.loc[(row.item, who)] for row in new.itertuples() if row.annotator == who]
        labels = [row.label for row in new.itertuples() if row.annotator == who]
        right = [float(p.idxmax() == label) for p, label in zip(rows, labels, strict=True)]
        lost = [-math.log(p[label]) for p, label in zip(rows, labels, strict=True)]
        row = result.annotators.loc[who]
        assert row["labels"] == len(rows)
        if rows:
            accuracies[who] = np.mean(right)
            assert row["accuracy"] == pytest.approx(accuracies[who]) and row["log_loss"] == pytest.approx(
                np.mean(lost), abs=1e-6
            )
            between = beta.ppf([0.025, 0.975], sum(right) + 0.5, len(right) - sum(right) + 0.5)
            np.testing.assert_allclose(row[["lower", "upper"]].astype(float), between)
        losses, hits = losses + lost, hits + right
    assert result.annotators.loc[["u", "x"], ["accuracy", "lower", "upper", "log_loss"]].isna().all(axis=None)
    known = {
        "labels": 30,
        "accuracy": np.mean(hits),
        "log_loss": np.mean(losses),
        "mean_accuracy": np.mean(list(accuracies.values())),
        "consensus_accuracy": fitted.score(X, truth),
        "consensus_log_loss": np.mean(
            [-math.log(p[truth[pic]]) for pic, p in fitted.predict_proba(X).iterrows()]
        ),
    }
    for name, value in known.items():
        assert result.overall[name] == pytest.approx(value, abs=1e-6), name
    assert "consensus_accuracy" not in fitted.evaluate(X, new).overall and "mean_accuracy" in str(result)


@every_architecture
def test_annotators_with_other_meanings_of_labels_are_predicted_apart(architecture: str) -> None:
    """Two groups swap two of three labels: any one consensus misses half of their labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(260, 4))
    truth = (3 * x @ rng.normal(size=(4, 3))).argmax(1)
    voice = np.where(np.arange(6) < 3, truth[:, None], np.array([1, 0, 2])[truth][:, None])
    messages = np.where(rng.random(voice.shape) < 0.95, voice, rng.integers(3, size=voice.shape))
    given = np.where(rng.permuted(np.tile(np.arange(6), (260, 1)), axis=1) < 3, messages, -1)
    options = {"epochs": 40, "batch": 32, "learning_rate": 0.02}
    fitted = ready(architecture, **options).fit(x[:180], given[:180], missing_label=-1)
    own = fitted.evaluate(x[180:], messages[180:]).overall["mean_accuracy"]
    consensus = (messages[180:] == fitted.predict(x[180:]).to_numpy()[:, None]).mean()
    most = max((messages[180:] == guess[:, None]).mean() for guess in (truth[180:], voice[180:, -1]))
    assert own > max(consensus, most) + 0.15 and own > 0.75
    alike = fitted.similarity_matrix_.to_numpy()
    assert alike[:3, :3].min() > alike[:3, 3:].max() and alike[3:, 3:].min() > alike[:3, 3:].max()


# Errors


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
    table, X, _ = simulate()
    with pytest.raises(ValueError, match=words):
        ready().set_params(**({"options": {}} | options)).fit(X, table)


def test_a_threshold_of_one_is_allowed() -> None:
    table, X, _ = simulate()
    assert not len(ready(threshold=1.0).fit(X, table).imputed_)


def test_an_encoder_that_returns_no_tensor_is_refused() -> None:
    # A tuple has no shape
    table, X, _ = simulate()
    with pytest.raises((TypeError, ValueError), match="the encoder returns a tuple"):
        ready(encoder=nn.LSTM(4, 4)).fit(X, table)


def test_errors_name_the_faults_of_tables_and_arguments() -> None:
    table, X, truth = simulate()
    model = ready(threshold=LOW)
    with pytest.raises(ValueError, match=r"X lacks annotated items: 'pic\d', 'pic\d' \(2 in all\)"):
        model.fit(X.iloc[2:], table)
    with pytest.raises(ValueError, match="all labels are the same, 'bee'"):
        model.fit(X, table.assign(label="bee"))
    with pytest.raises(ValueError, match="too few to hold any out: set selection='last'"):
        model.fit(X, table[table["item"].isin(["pic0", "pic1"])])
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        model.fit(X, table, resume=True)
    with pytest.raises(ValueError, match="missing_label marks empty cells of a matrix"):
        model.fit(X, table, missing_label=-1)
    with pytest.raises(ValueError, match="columns item and annotator"):
        model.fit(X, table, withdrawn=table[["item"]])
    with pytest.raises(ValueError, match="pairs of annotators that are not in the fit(.|\n)*'q'"):
        model.fit(X, table, withdrawn=table.assign(annotator="q"))
    for question in (model.predict, model.annotator_proba, model.predict_annotators, model.completed):
        with pytest.raises(NotFittedError):
            question(X)
    for name in ("similarity_", "imputed_", "annotators_", "withdrawn_", "similarity_matrix_"):
        with pytest.raises(NotFittedError):
            getattr(model, name)
    fitted = model.fit(X, table)
    for question in (fitted.annotator_proba, fitted.predict_annotators):
        with pytest.raises(ValueError, match="annotators that are not in the fit: 'q'"):
            question(X, ["u", "q"])
    for wrong, words in (
        (table.replace("u", "q"), "annotators that are not in the fit: 'q': leave their labels out"),
        (table.replace("ant", "asp"), "labels of items that the fit does not know(.|\n)*'asp'"),
        (table.replace("pic3", "pic99"), "X lacks annotated items: 'pic99'"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.evaluate(X, wrong)
    with pytest.raises(ValueError, match="true classes that no annotator used(.|\n)*'asp'"):
        fitted.evaluate(X, table, truth.replace("ant", "asp"))
    with pytest.raises(ValueError, match="the columns are 'a', 'b', 'c', 'e'"):
        fitted.predict_annotators(X.rename(columns={"d": "e"}))


def test_one_annotator_alone() -> None:
    # Without any pair, `np.bincount` returns integers
    table, X, _ = simulate()
    alone = ready(threshold=LOW).fit(X, table[table["annotator"] == "u"])
    assert (
        not len(alone.imputed_)
        and not len(alone.similarity_)
        and alone.similarity_matrix_.to_numpy().tolist() == [[1.0]]
    )
    assert list(alone.predict_annotators(X).columns) == ["u"] and np.isfinite(alone.annotators_).all(
        axis=None
    )


def test_no_annotator_at_all() -> None:
    # An array of size 0 cannot be reshaped to (0, -1)
    table, X, _ = simulate()
    fitted = ready().fit(X, table)
    assert fitted.annotator_proba(X, []).shape == (0, 3) and fitted.predict_annotators(X, []).shape == (
        70,
        0,
    )


def test_parameters_follow_scikit_learn(capsys: pytest.CaptureFixture[str]) -> None:
    model = ready(threshold=0.5, encoder=None)
    assert clone(model).get_params() == model.get_params() and model.set_params(epochs=2).epochs == 2
    table, X, _ = simulate()
    model.fit(X, table)
    assert capsys.readouterr().err == ""
    shown = clone(model).set_params(progress=True).fit(X, table)
    assert "train" in (bar := capsys.readouterr().err) and "/2 [" in bar
    require_same(shown, model, X)

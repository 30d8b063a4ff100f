"""The label model of snorkel as an aggregator: agreement with snorkel, and what snorkel leaves to callers."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from snorkel.labeling.model import LabelModel

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.aggregation import snorkel as label_models
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.aggregation.snorkel import MISSING, SnorkelLabelModel
from probcrowd.simulate import simulate_annotations


def make(**options: Any) -> SnorkelLabelModel:
    return SnorkelLabelModel(**({"dependence": "ignore"} | options))


def simulate(
    seed: int = 0,
    classes: int = 2,
    *,
    items: int = 80,
    accuracy: tuple[float, ...] = (0.9, 0.6, 0.8, 0.7, 0.9, 0.6),
    answered: float = 0.7,
) -> tuple[pd.DataFrame, pd.Series]:
    """Labels of items by annotators, each observed with that probability, and the truth."""
    simulated = simulate_annotations(items, accuracy, classes=classes, observed=answered, seed=seed)
    return simulated.frame, simulated.truth


def matrix(table: pd.DataFrame, annotators: list[str]) -> tuple[np.ndarray, list[str]]:
    """snorkel's label matrix, filled in a loop, and the items of its rows."""
    items = list(dict.fromkeys(table["item"]))
    labels = np.full((len(items), len(annotators)), -1)
    for item, annotator, label in table[["item", "annotator", "label"]].itertuples(index=False):
        labels[items.index(item), annotators.index(annotator)] = int(label[1:])
    return labels, items


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # ours, and snorkel's
    ({}, {"seed": 0}),
    ({"epochs": 33}, {"n_epochs": 33, "seed": 0}),
    ({"learning_rate": 0.002}, {"lr": 0.002, "seed": 0}),
    ({"l2": 0.3}, {"l2": 0.3, "seed": 0}),
    ({"random_state": 5, "epochs": 20}, {"n_epochs": 20, "seed": 5}),
    ({"class_balance": {"c2": 0.2, "c0": 0.5, "c1": 0.3}}, {"class_balance": [0.5, 0.3, 0.2], "seed": 0}),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTIONS)
def test_results_match_snorkel(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    table, _ = simulate(1, 3)
    fitted = make(**ours).fit(table)
    observed, items = matrix(table, list(fitted.annotators_.index))
    model = LabelModel(cardinality=3, verbose=False)
    model.fit(observed, progress_bar=False, **theirs)
    np.testing.assert_allclose(fitted.probabilities_.loc[items], model.predict_proba(observed), atol=1e-6)
    learned = model.get_conditional_probs()[:, 1:].transpose(0, 2, 1)  # annotator, true class, label
    np.testing.assert_allclose(fitted.propensity_.to_numpy().reshape(learned.shape), learned, atol=1e-7)
    assert fitted.propensity_.index.equals(fitted.confusion_.index) and fitted.propensity_.columns.equals(
        fitted.confusion_.columns
    )
    new, _ = simulate(2, 3, items=12)
    new["item"] = "new " + new["item"]
    other, items = matrix(new, list(fitted.annotators_.index))
    np.testing.assert_allclose(fitted.predict_proba(new).loc[items], model.predict_proba(other), atol=1e-6)
    default = make().fit(table).probabilities_
    assert ours == {} or np.abs(fitted.probabilities_ - default).to_numpy().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_unequal_annotators_are_weighted_better_than_by_votes(seed: int) -> None:
    table, truth = simulate(seed, items=600, accuracy=(0.95, 0.9, 0.9, 0.55, 0.55, 0.55, 0.55, 0.55, 0.55))
    fitted = make(epochs=500).fit(table)
    assert fitted.score(None, truth) > MajorityVote(dependence="ignore").fit(table).score(None, truth) + 0.05
    propensity = fitted.propensity_
    right = pd.Series(
        {
            name: propensity.loc[(name, "c0"), "c0"] + propensity.loc[(name, "c1"), "c1"]
            for name in fitted.annotators_.index
        }
    )
    assert right.sort_index().iloc[:3].min() > right.sort_index().iloc[3:].max()


def test_missing_labels_carry_no_information() -> None:
    """An annotator without labels, an item without labels and an abstention change nothing."""
    table, _ = simulate(3)
    fitted = make(class_balance={"c0": 0.4, "c1": 0.6}).fit(table)
    items, annotators = [*table["item"].unique(), "blank"], ["idle", *table["annotator"].unique()]
    wider = clone(fitted).fit(Annotations.from_frame(table, items=items, annotators=annotators))
    np.testing.assert_allclose(wider.probabilities_.drop("blank"), fitted.probabilities_, atol=1e-6)
    np.testing.assert_allclose(wider.probabilities_.loc["blank"], [0.4, 0.6], atol=1e-12)
    assert wider.items_.loc["blank", "flag"] == "no labels"
    np.testing.assert_allclose(wider.propensity_.drop("idle", level=0), fitted.propensity_, atol=1e-6)
    pd.testing.assert_series_equal(fitted.class_prior_, wider.class_prior_)
    assert fitted.class_prior_.to_dict() == {"c0": 0.4, "c1": 0.6}
    rest = pd.DataFrame({"item": table["item"].unique()[:30], "annotator": "shy", "label": "?"})
    silent = clone(fitted).set_params(abstention="?").fit(pd.concat([table, rest]))
    np.testing.assert_allclose(silent.probabilities_, fitted.probabilities_, atol=1e-6)


def test_neither_row_order_nor_names_matter() -> None:
    table, truth = simulate(4, 3)
    gold = truth.head(3)
    fitted = make().fit(table, gold)
    shuffled = make().fit(table.sample(frac=1, random_state=1), gold)
    np.testing.assert_allclose(
        shuffled.probabilities_.loc[fitted.probabilities_.index], fitted.probabilities_, atol=1e-5
    )
    renamed = {"c0": "z", "c1": "m", "c2": "b"}  # in another order
    other = pd.DataFrame(
        {
            "item": "x" + table["item"],
            "annotator": "y" + table["annotator"],
            "label": table["label"].map(renamed),
        }
    )
    after = make().fit(other, gold.map(renamed).rename(index=lambda i: f"x{i}"))
    np.testing.assert_allclose(
        after.probabilities_[[renamed[c] for c in fitted.classes_]], fitted.probabilities_, atol=1e-5
    )


def test_known_items_are_certain_and_do_not_affect_the_fit() -> None:
    table, truth = simulate(5)
    gold = truth.head(10).map({"c0": "c1", "c1": "c0"})  # unlikely without gold
    plain, known = make().fit(table), make().fit(table, gold)
    assert known.items_["known"].sum() == 10
    np.testing.assert_array_equal(known.probabilities_.loc[gold.index, "c1"], gold == "c1")
    pd.testing.assert_frame_equal(
        known.probabilities_.drop(gold.index), plain.probabilities_.drop(gold.index)
    )


def test_new_items_use_known_annotators_only() -> None:
    fitted = make().fit(simulate(6)[0])
    new = pd.DataFrame(
        {"item": ["n1", "n1", "n2"], "annotator": ["a0", "zoe", "zoe"], "label": ["c1", "c0", "c1"]}
    )
    with pytest.warns(UserWarning, match="1 annotators are not known from the fit and are left out: 'zoe'"):
        probabilities = fitted.predict_proba(new)
    np.testing.assert_allclose(
        probabilities.loc["n1"], fitted.predict_proba(new.head(1)).loc["n1"], atol=1e-12
    )
    assert probabilities.loc["n1", "c1"] > 0.6
    np.testing.assert_allclose(probabilities.loc["n2"], 0.5, atol=1e-12)


def test_many_labels_of_one_item_do_not_underflow() -> None:
    """Annotators who rarely label have small propensities, and a new item has labels by all of them."""
    table, _ = simulate(7, items=60, accuracy=(0.8,) * 250, answered=0.05)
    new = pd.DataFrame({"item": "n", "annotator": table["annotator"].unique(), "label": "c1"})
    new.loc[:60, "label"] = "c0"
    fitted = make(epochs=3, learning_rate=1e-4).fit(table)
    names = list(fitted.annotators_.index)
    model = LabelModel(verbose=False)
    model.fit(matrix(table, names)[0], progress_bar=False, seed=0, n_epochs=3, lr=1e-4)
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert np.isnan(model.predict_proba(matrix(new, names)[0])).all()
    assert fitted.predict_proba(new).loc["n", "c1"] > 0.99


# Reproducibility and global state


def states() -> list[Any]:
    """The states a call could change, except Python's, which the type checks of tests use (see below)."""
    kind, key, *rest = np.random.get_state()  # pyright: ignore[reportAssignmentType]
    root = logging.getLogger()
    drawn = kind, key.tobytes(), rest, torch.get_rng_state().tolist(), torch.initial_seed()
    modes = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return [*drawn, *modes, torch.get_num_threads(), root.level, list(root.handlers)]


def forget_snorkel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next fit import snorkel again; the import draws a random number."""
    for name in [name for name in sys.modules if name.split(".")[0] == "snorkel"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("diverges", [False, True])
def test_global_states_are_left_alone(diverges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = simulate(8)
    np.random.seed(2)
    torch.manual_seed(3)
    np.random.random(), torch.rand(5)
    before = states()
    forget_snorkel(monkeypatch)
    if diverges:
        with pytest.raises(ValueError, match="diverged"):
            make(learning_rate=1e6).fit(table)
    else:
        make().fit(table)
    assert states() == before


def test_generators_of_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeding torch seeds devices too, even those that start later; a stand-in is a started device."""
    seeds, put_back = [], []
    seed = torch.manual_seed
    seed(11)
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [len(seeds)])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    make(random_state=5).fit(simulate(8)[0])
    assert seeds == [5, 11] and put_back == [[0]]


@pytest.mark.parametrize("surroundings", ["float64", "no_grad", "inference_mode", "meta device"])
def test_global_settings_change_nothing(surroundings: str) -> None:
    table, _ = simulate(9)
    expected = make().fit(table).probabilities_
    contexts: dict[str, Callable[[], Any]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
    }
    contexts["meta device"] = lambda: torch.device("meta")
    before = torch.get_default_dtype()
    try:
        if surroundings == "float64":
            torch.set_default_dtype(torch.float64)
            pd.testing.assert_frame_equal(make().fit(table).probabilities_, expected)
            assert torch.get_default_dtype() == torch.float64
        else:
            with contexts[surroundings]():
                pd.testing.assert_frame_equal(make().fit(table).probabilities_, expected)
    finally:
        torch.set_default_dtype(before)


def test_one_seed_gives_one_result() -> None:
    table, _ = simulate(10)
    first = make(random_state=1, epochs=10).fit(table)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    pd.testing.assert_frame_equal(
        make(random_state=1, epochs=10).fit(table).probabilities_, first.probabilities_
    )
    pd.testing.assert_frame_equal(clone(first).fit(table).probabilities_, first.probabilities_)
    pd.testing.assert_frame_equal(
        first.fit(simulate(11)[0]).fit(table).probabilities_, clone(first).fit(table).probabilities_
    )
    assert (
        np.abs(make(random_state=2, epochs=10).fit(table).probabilities_ - first.probabilities_)
        .to_numpy()
        .max()
        > 1e-3
    )


def test_fit_attributes_without_an_objective() -> None:
    fitted = make()
    with pytest.raises(NotFittedError):
        _ = fitted.propensity_
    fitted.fit(simulate(12)[0])
    assert fitted.log_posterior_.size == 0 and fitted.n_iter_ == 0 and fitted.converged_ is False
    assert fitted.class_prior_.to_dict() == {"c0": 0.5, "c1": 0.5}
    assert set(fitted.get_params()) == {
        "epochs",
        "learning_rate",
        "l2",
        "class_balance",
        "random_state",
        "dependence",
        "abstention",
    }


# Invalid input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs=0: choose a whole number of at least 1"),
        ({"epochs": 2.5}, ValueError, "epochs=2.5: choose a whole number"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate=0.0: choose a number > 0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate=nan: choose a number"),
        ({"l2": -1.0}, ValueError, "l2=-1.0: choose a number >= 0"),
        ({"random_state": -1}, ValueError, "random_state=-1: choose a whole number from 0 to"),
        ({"random_state": None}, ValueError, "random_state=None"),
        ({"class_balance": [0.5, 0.5]}, TypeError, "a dict or a Series by class, not list"),
        (
            {"class_balance": {"c0": 1.0}},
            ValueError,
            r"every class of \['c0', 'c1'\] a number > 0; they must sum to 1",
        ),
        ({"class_balance": {"c0": 0.5, "c1": 0.5, "c9": 0.1}}, ValueError, "'c9': .*must sum to 1"),
        ({"class_balance": {"c0": 0.6, "c1": 0.6}}, ValueError, "must sum to 1"),
        ({"class_balance": {"c0": 0.0, "c1": 1.0}}, ValueError, "a number > 0"),
        ({"dependence": "discount"}, ValueError, "SnorkelLabelModel cannot discount"),
    ],
)
def test_invalid_parameters_are_rejected(options: dict[str, Any], error: type[Exception], words: str) -> None:
    fitted = make().set_params(**options)
    with pytest.raises(error, match=words):
        fitted.fit(simulate()[0])
    assert not hasattr(fitted, "classes_")


def test_the_class_prior_of_another_aggregator_is_a_class_balance() -> None:
    table, _ = simulate(13)
    voted = MajorityVote(dependence="ignore").fit(table)
    pd.testing.assert_series_equal(
        make(class_balance=voted.class_prior_).fit(table).class_prior_, voted.class_prior_
    )


def test_annotations_that_do_not_fit_a_label_matrix_are_rejected() -> None:
    table, _ = simulate(14)
    fitted = make().fit(table)
    heavy = Annotations.from_frame(table.assign(w=np.where(table.index == 7, 2.0, 1.0)), weight="w")
    both = Annotations.from_frame(pd.concat([table, table.iloc[[9]].assign(label="c0")]), duplicates="count")
    words = f"1 of {len(table)} rows: '{table['item'][7]}'; values: 2.0"
    repeated = (
        rf"several labels of one item by one annotator.* \(2 of {len(table) + 1} rows: "
        rf"'{table['item'][9]}', .*values: '{table['annotator'][9]}'\)"
    )
    for ask in (make().fit, fitted.predict_proba):
        with pytest.raises(ValueError, match=f"weights other than 1.*{words}"):
            ask(heavy)
        with pytest.raises(ValueError, match=repeated):
            ask(both)
    unit = Annotations.from_frame(table.assign(w=1.0), weight="w")
    pd.testing.assert_frame_equal(make().fit(unit).probabilities_, fitted.probabilities_)


def test_two_annotators_are_too_few() -> None:
    table, _ = simulate(15)
    few = table.loc[table["annotator"].isin(["a0", "a1"])]
    with pytest.raises(ValueError, match="labels by at least 3, and there are 2"):
        make().fit(Annotations.from_frame(few, annotators=["a0", "a1", "a2", "a3"]))


@pytest.mark.parametrize(
    ("items", "annotators", "most", "words"),
    [
        (30, 6, 179, "of labelled items x annotators, which has 180 cells, more than 179"),
        (4, 6, 143, "over pairs of .annotator, class., which has 144 cells, more than 143"),
    ],
)
def test_too_large_matrices_are_rejected(
    items: int, annotators: int, most: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label_models.MOST_CELLS == 2 * 10**8
    table, _ = simulate(16, items=items, accuracy=(0.8,) * annotators, answered=1.0)
    monkeypatch.setattr(label_models, "MOST_CELLS", most)
    with pytest.raises(ValueError, match=f"dense matrix {words}: choose another aggregator"):
        make().fit(table)
    monkeypatch.setattr(label_models, "MOST_CELLS", most + 1)
    make().fit(table)


def test_a_too_large_real_table_is_rejected_before_memory_is_allocated() -> None:
    wide = Annotations.from_frame(
        pd.DataFrame({"item": range(20_000), "annotator": range(20_000), "label": [0, 1] * 10_000})
    )
    with pytest.raises(ValueError, match="400,000,000 cells, more than 200,000,000"):
        make().fit(wide)


def test_divergence_is_reported_at_any_epoch() -> None:
    table, _ = simulate(17)
    causes = set()
    for epochs in range(1, 15):
        try:
            fitted = make(epochs=epochs, learning_rate=100.0).fit(table)
        except ValueError as error:
            assert "diverged with learning_rate=100.0 and 6 annotators: choose a lower one" in str(error)
            causes.add(type(error.__cause__))
        else:
            assert np.isfinite(fitted.probabilities_.to_numpy()).all()
    assert causes == {
        Exception,
        FloatingPointError,
    }  # by snorkel at the next epoch, by the wrapper after the last


def test_without_snorkel_the_error_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snorkel.labeling.model", None)
    with pytest.raises(
        ImportError,
        match=r'SnorkelLabelModel needs the package snorkel .*pip install "\.\[label-models\]"',
    ):
        make().fit(simulate()[0])


def test_snorkel_is_imported_lazily_and_leaves_global_state_unchanged() -> None:
    code = (
        "import random, sys; import numpy as np, pandas as pd; "
        "from probcrowd.estimators.aggregation.snorkel import SnorkelLabelModel; "
        "assert not {'snorkel', 'torch'} & set(sys.modules); "
        "columns = {'item': [0, 0, 0, 1, 1, 1], 'annotator': [0, 1, 2] * 2, 'label': [0, 0, 1, 1, 1, 1]}; "
        "table = pd.DataFrame(columns); random.seed(1); random.random(); "
        "state = random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]; "
        "SnorkelLabelModel(dependence='ignore').fit(table); assert 'snorkel' in sys.modules; "
        "assert state == (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2])"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_missing_label_models_have_a_reason_that_still_holds() -> None:
    assert set(MISSING) == {"Snorkel", "MeTaL"}
    assert "no attribute 'node'" in MISSING["MeTaL"] and not hasattr(networkx.Graph(), "node")
    with pytest.raises(ImportError):
        from fractions import gcd  # noqa: F401

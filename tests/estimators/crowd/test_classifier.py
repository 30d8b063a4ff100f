"""`CrowdClassifier`: forms of items and labels, results under the user's ids, selection, folders, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.utils.data import Dataset

from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd import classifier as crowd_classifier
from probcrowd.estimators.crowd.classifier import CrowdClassifier, load_crowd_classifier
from probcrowd.estimators.crowd.methods import METHODS
from probcrowd.estimators.crowd.strength import STRENGTHS, select_strength
from probcrowd.inference.crowd import training as crowd_training
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.storage import fit as fit_storage

QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "learning_rate": 0.01}


def simulate(
    items: int = 60, seed: int = 0, weight_per_item: int = 3
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Three classes that features determine, six annotators with accuracies of 60 to 95 %.

    The last twenty items have no labels.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + 20, 4))
    truth = (x @ rng.normal(size=(4, 3))).argmax(1)
    item = np.repeat(np.arange(items), weight_per_item)
    annotator = np.concatenate([rng.choice(6, weight_per_item, replace=False) for _ in range(items)])
    right = rng.random(len(item)) < np.linspace(0.6, 0.95, 6)[annotator]
    label = np.where(right, truth[item], rng.integers(0, 3, len(item)))
    names, ids = np.array(["ant", "bee", "cat"]), np.array([f"pic{n}" for n in range(items + 20)])
    table = pd.DataFrame(
        {"item": ids[item], "annotator": np.array([*"uvwxyz"])[annotator], "label": names[label]}
    )
    return (
        table.sample(frac=1, random_state=seed),
        pd.DataFrame(x, ids, [*"abcd"]),
        pd.Series(names[truth], ids),
    )


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


class Pictures(Dataset):
    """A dataset of (input, text) pairs that counts how often it is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.read = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        self.read += 1
        return torch.from_numpy(self.values[place]), "a name"


# Learning


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_learns_the_classes_and_the_annotators_accuracies(method: str) -> None:
    table, X, truth = simulate(400)
    fitted = CrowdClassifier(
        network=linear, method=method, epochs=25, batch=32, learning_rate=0.02, selection="last"
    ).fit(X, table)
    new = X.iloc[-20:]
    votes = table.groupby("item")["label"].agg(lambda labels: labels.mode()[0])
    assert fitted.score(new, truth) > 0.8
    assert fitted.score(X, truth) > (votes == truth[votes.index]).mean() - 0.05
    accuracy = fitted.annotators_["accuracy"].sort_index()
    assert list(accuracy.index) == [*"uvwxyz"] and accuracy["z"] > accuracy["u"]
    if method in ("ccem", "geocrowdnet-f", "geocrowdnet-w", "trace-reg", "raykar"):
        assert np.corrcoef(accuracy, np.linspace(0.6, 0.95, 6) + np.linspace(0.4, 0.05, 6) / 3)[0, 1] > 0.8


def test_answers_are_probabilities_under_the_users_ids() -> None:
    table, X, truth = simulate()
    fitted = CrowdClassifier(**QUICK).fit(X, table)
    result = fitted.predict_proba(X)
    assert (
        list(result.columns) == ["ant", "bee", "cat"]
        and result.index.equals(X.index)
        and result.index.name == "item"
    )
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-6)
    pd.testing.assert_series_equal(
        fitted.predict(X), result.idxmax(axis=1).rename("label"), check_names=False
    )
    assert fitted.score(X, truth) == pytest.approx((fitted.predict(X) == truth).mean())
    assert fitted.score(X, truth.to_numpy()) == fitted.score(X, truth.sample(frac=1, random_state=0))
    confusion = fitted.confusion_
    assert confusion.index.names == ["annotator", "true_class"] and len(confusion) == 18
    np.testing.assert_allclose(confusion.sum(axis=1), 1, atol=1e-6)
    some = fitted.annotator_proba(X.iloc[:3], ["z", "u"])
    assert list(some.index) == [(pic, who) for pic in X.index[:3] for who in ("z", "u")]
    for (pic, who), row in some.iterrows():
        np.testing.assert_allclose(row, result.loc[pic] @ confusion.loc[who], atol=1e-6)
    assert len(fitted.annotator_proba(X)) == 80 * 6


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_answers_about_annotators_are_the_same_however_many_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, X, _ = simulate()
    fitted = CrowdClassifier(method="conal", **QUICK).fit(X, table)
    whole = fitted.annotator_proba(X)
    monkeypatch.setattr("probcrowd.estimators.network.estimator.MAX_CELLS", rows)
    pd.testing.assert_frame_equal(fitted.annotator_proba(X), whole, atol=1e-6)


# Forms of items and labels


def test_tables_arrays_tensors_datasets_and_matrices_are_the_same() -> None:
    table, X, _ = simulate()
    place = {pic: n for n, pic in enumerate(X.index)}
    numbered = table.assign(item=table["item"].map(place))
    wide = table.pivot(index="item", columns="annotator", values="label").reindex(X.index)
    matrix = wide.to_numpy(object)
    marked = np.where(wide.isna(), "?", matrix)
    values = X.to_numpy().copy()
    options = {**QUICK, "network": linear}
    expected = CrowdClassifier(**options).fit(X, table).predict_proba(X).to_numpy()
    forms: list[tuple[Any, Any, dict[str, Any]]] = [
        (values, numbered, {}),
        (torch.from_numpy(values), numbered, {}),
        (values.astype(np.float32).reshape(80, 2, 2), numbered, {}),
        (Pictures(values), numbered, {}),
        (values, matrix, {}),
        (X, marked, {"missing_label": "?"}),
        (X, Annotations.from_frame(table), {}),
        (X.rename_axis("task"), table.rename(columns={"item": "task", "annotator": "worker"}), {}),
    ]
    for items, labels, more in forms:
        fitted = CrowdClassifier(**options).fit(items, labels, **more)
        np.testing.assert_allclose(fitted.predict_proba(items).to_numpy(), expected, atol=2e-5)


def test_a_dataset_is_read_as_it_is_needed() -> None:
    table, X, _ = simulate()
    pictures = Pictures(X.to_numpy().copy())
    numbered = table.assign(item=table["item"].map({pic: n for n, pic in enumerate(X.index)}))
    CrowdClassifier(network=linear, epochs=2, selection="last").fit(pictures, numbered)
    assert (
        pictures.read <= 3 * 60 + 8
    )  # two epochs of the items with labels, a last pass, and looks at the shape


def test_columns_keep_their_meaning() -> None:
    table, X, _ = simulate()
    fitted = CrowdClassifier(**QUICK).fit(X, table)
    pd.testing.assert_frame_equal(fitted.predict_proba(X[[*"dcba"]]), fitted.predict_proba(X))
    with pytest.raises(ValueError, match="the columns are 'a', 'b', 'c', 'e'"):
        fitted.predict_proba(X.rename(columns={"d": "e"}))
    with pytest.raises(ValueError, match=r"inputs of shape \(3,\), those of the fit had \(4,\)"):
        fitted.predict_proba(X.to_numpy()[:, :3])


def test_the_given_network_is_left_alone_and_trained_on_from_its_weights() -> None:
    table, X, _ = simulate()
    network = linear((4,), 3)
    before = [value.clone() for value in network.parameters()]
    fitted = CrowdClassifier(network=network, epochs=1, learning_rate=1e-9, selection="last").fit(X, table)
    for now, then, learned in zip(network.parameters(), before, fitted.network_.parameters(), strict=True):
        assert torch.equal(now, then)
        torch.testing.assert_close(learned, then, atol=1e-6, rtol=0)


# Seeds, selection, strength


def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves() -> None:
    table, X, _ = simulate()
    state = torch.get_rng_state()
    first = CrowdClassifier(**QUICK, random_state=3).fit(X, table).predict_proba(X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    pd.testing.assert_frame_equal(
        CrowdClassifier(**QUICK, random_state=3).fit(X, table).predict_proba(X), first, check_exact=True
    )
    assert not CrowdClassifier(**QUICK, random_state=4).fit(X, table).predict_proba(X).equals(first)


@pytest.mark.parametrize("selection", ["held-out", "gold"])
def test_the_epoch_with_the_best_score_is_the_result(selection: Any) -> None:
    table, X, truth = simulate()
    known = (X.iloc[-20:], truth) if selection == "gold" else None
    options = {**QUICK, "epochs": 12, "learning_rate": 0.1, "selection": selection}
    fitted = CrowdClassifier(**options).fit(X, table, validation=known)
    best = fitted.history_["score"].idxmax()
    assert fitted.epoch_ == best
    short = CrowdClassifier(**(options | {"epochs": int(best)})).fit(X, table, validation=known)
    pd.testing.assert_frame_equal(short.predict_proba(X), fitted.predict_proba(X), check_exact=True)
    if selection == "gold":
        assert fitted.score(X.iloc[-20:], truth) == pytest.approx(fitted.history_["score"].max())


def test_held_out_items_have_no_part_in_training() -> None:
    """Changing the labels of a held-out item changes the score, but no training loss."""
    table, X, _ = simulate()
    options = {**QUICK, "method": "ccem"}
    before = CrowdClassifier(**options).fit(X, table).history_
    turned = []
    for pic in X.index[:60]:
        other = table.assign(label=np.where(table["item"] == pic, "ant", table["label"]))
        after = CrowdClassifier(**options).fit(X, other).history_
        turned.append(
            (bool((after["loss"] == before["loss"]).all()), bool((after["score"] == before["score"]).all()))
        )
    held = [score for loss, score in turned if loss]
    assert 6 <= len(held) and not all(held)
    assert sum(not loss for loss, _ in turned) >= 40


def test_patience_stops() -> None:
    table, X, _ = simulate()
    fitted = CrowdClassifier(epochs=200, learning_rate=0.1, patience=5).fit(X, table)
    assert len(fitted.history_) == fitted.epoch_ + 5 < 200


def test_a_strength_is_selected_by_the_items_that_select_the_epoch() -> None:
    labelled, X, truth = simulate()
    fitted = CrowdClassifier(**QUICK, strength="selected").fit(X, labelled)
    table = fitted.strengths_
    assert table.index.tolist() == list(STRENGTHS) and list(table.columns) == [
        "score",
        "lost",
        "standard_error",
        "permuted",
    ]
    strength = select_strength(table, strongest=True)
    left = [s for s in STRENGTHS if not table.loc[s, "permuted"]]
    assert (
        strength
        == fitted.strength_
        == max(s for s in left if table.loc[s, "lost"] <= table.loc[s, "standard_error"])
    )
    given = CrowdClassifier(**QUICK, strength=strength).fit(X, labelled)
    pd.testing.assert_frame_equal(given.predict_proba(X), fitted.predict_proba(X), check_exact=True)
    assert given.history_["score"].max() == pytest.approx(table.loc[strength, "score"])
    known = (X.iloc[-20:], truth)
    gold = CrowdClassifier(**QUICK, strength="selected", selection="gold").fit(X, labelled, validation=known)
    assert gold.history_["score"].max() == pytest.approx(gold.strengths_["score"].max())
    assert select_strength(table, strongest=False) == table["score"].where(~table["permuted"]).idxmax()


# Batches


def test_batches_hold_every_label_once_with_its_item() -> None:
    rng = np.random.default_rng(0)
    item = np.sort(rng.integers(1, 11, 40))  # items 0 and 11 have no labels
    rows = Rows(
        item, rng.integers(5, size=40), rng.integers(3, size=40), rng.random(40), np.full(12, -1), 5, 3
    )
    labels = AnnotationTensors.of(rows)
    result, sizes = [], []
    for part in labels.batches(5, torch.Generator().manual_seed(0)):
        assert part.weight_per_item == labels.weight_per_item
        sizes.append(len(part.items))
        result += zip(
            part.items[part.item].tolist(),
            part.annotator.tolist(),
            part.label.tolist(),
            part.weight.tolist(),
            strict=True,
        )
    assert sizes == [6, 6]
    expected = zip(
        item.tolist(), rows.annotator.tolist(), rows.label.tolist(), labels.weight.tolist(), strict=True
    )
    assert sorted(result) == sorted(expected)
    orders = [
        torch.cat([part.items for part in labels.batches(5, torch.Generator().manual_seed(seed))]).tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_batch_means_average_to_the_mean_over_labels() -> None:
    rows = Rows(
        np.array([0, 0, 0, 1, 3]),
        np.zeros(5, int),
        np.zeros(5, int),
        np.array([1.0, 2, 1, 1, 1]),
        np.full(4, -1),
        1,
        2,
    )
    labels, value = AnnotationTensors.of(rows), torch.tensor([1.0, 2, 3, 4])  # by item
    assert labels.weighted_mean(value[labels.item]).item() == pytest.approx((4 * 1 + 2 + 4) / 6)
    parts = [
        part.weighted_mean(value[part.items[part.item]])
        for part in labels.batches(1, torch.Generator().manual_seed(0))
    ]
    assert len(parts) == 2 and torch.stack(parts).mean().item() == pytest.approx(
        10 / 6
    )  # no batch of a single item


# Folders


def require_same(left: CrowdClassifier, right: CrowdClassifier, X: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left.predict_proba(X), right.predict_proba(X), check_exact=True)
    pd.testing.assert_frame_equal(left.confusion_, right.confusion_, check_exact=True)
    pd.testing.assert_frame_equal(left.annotator_proba(X), right.annotator_proba(X), check_exact=True)
    pd.testing.assert_frame_equal(left.history_, right.history_, check_exact=True)
    assert (left.epoch_, left.degenerate_) == (right.epoch_, right.degenerate_)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_stop_after_any_epoch_ends_at_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, X, _ = simulate()
    options = {**QUICK, "method": method}
    whole = CrowdClassifier(**options).fit(X, table)
    for stop in (1, 2, 3):
        folder = tmp_path / str(stop)
        save = fit_storage.save_latest

        def stopping(path: Path, tensors: Any, state: Any, stop: int = stop, save: Any = save) -> None:
            save(path, tensors, state)
            if state["step"] == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(fit_storage, "save_latest", stopping)
            with pytest.raises(KeyboardInterrupt):
                CrowdClassifier(**options).fit(X, table, folder=folder)
        require_same(CrowdClassifier(**options).fit(X, table, folder=folder, resume=True), whole, X)
        require_same(load_crowd_classifier(folder), whole, X)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow  # SimLabel and LIA kill and resume through the same storage in the fast run
def test_a_killed_process_resumes(tmp_path: Path) -> None:
    table, X, _ = simulate()
    table.to_csv(tmp_path / "labels.csv", index=False)
    X.to_csv(tmp_path / "inputs.csv")
    code = (
        "import sys, pandas as pd, torch; torch.set_num_threads(1)\n"
        "from probcrowd.estimators.crowd.classifier import CrowdClassifier\n"
        f"table = pd.read_csv('{tmp_path}/labels.csv')\n"
        f"X = pd.read_csv('{tmp_path}/inputs.csv', index_col=0)\n"
        f"CrowdClassifier(epochs=400, batch=16).fit(X, table, "
        f"folder='{tmp_path}/fit', resume='again' in sys.argv)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "fit" / "checkpoint.previous.safetensors").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "fit" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="has not finished"):
        load_crowd_classifier(tmp_path / "fit")
    subprocess.run([sys.executable, "-c", code, "again"], check=True)
    X = pd.read_csv(tmp_path / "inputs.csv", index_col=0)
    whole = CrowdClassifier(epochs=400, batch=16).fit(X, pd.read_csv(tmp_path / "labels.csv"))
    require_same(load_crowd_classifier(tmp_path / "fit"), whole, X)


def test_a_selected_strength_and_a_network_of_ones_own_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, X, _ = simulate()
    options = {**QUICK, "network": linear, "strength": "selected"}
    whole = CrowdClassifier(**options).fit(X, table)

    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crowd_classifier, "save_network", stop)
        with pytest.raises(KeyboardInterrupt):
            CrowdClassifier(**options).fit(X, table, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CrowdClassifier, "_compare_strengths", stop)
        require_same(CrowdClassifier(**options).fit(X, table, folder=tmp_path, resume=True), whole, X)
    read = load_crowd_classifier(tmp_path, linear)
    require_same(read, whole, X)
    pd.testing.assert_frame_equal(read.strengths_, whole.strengths_, check_exact=True)
    with pytest.raises(ValueError, match="has a network of its own: pass it to load the fit"):
        load_crowd_classifier(tmp_path)
    with pytest.raises(ValueError, match="another network"):
        load_crowd_classifier(tmp_path, nn.Linear(3, 3))


def test_folders_of_other_data_or_settings_are_refused(tmp_path: Path) -> None:
    table, X, _ = simulate()
    CrowdClassifier(**QUICK).fit(X, table, folder=tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        CrowdClassifier(**QUICK).fit(X, table, folder=tmp_path)
    for other, labels, items in (
        (CrowdClassifier(**(QUICK | {"epochs": 5})), table, X),
        (CrowdClassifier(**QUICK), table.iloc[1:], X),
        (CrowdClassifier(**QUICK), table, X + 1),
        (CrowdClassifier(network=linear, **QUICK), table, X),
    ):
        with pytest.raises(ValueError, match="other settings"):
            other.fit(items, labels, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds no fit"):
        load_crowd_classifier(tmp_path / "nowhere")


# Errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, "unknown method 'magic': choose one of ccem"),
        ({"strength": -1.0}, "strength=-1.0: choose a number >= 0"),
        ({"method": "ccem", "strength": 0.1}, "the method 'ccem' has no term to weight"),
        ({"method": "ccem", "strength": "selected"}, "the method 'ccem' has no term to weight"),
        (
            {"strength": "selected", "selection": "last"},
            "needs a score to select by: set selection='held-out' or 'gold'",
        ),
        ({"initial_accuracy": 1.0}, "initial_accuracy=1.0: choose a number between 0 and 1 or 'published'"),
        ({"epochs": 0}, "epochs=0: choose a whole number of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: choose a number > 0"),
        ({"selection": "gold"}, "selection='gold' and validation"),
        ({"selection": "last", "patience": 3}, "patience waits for a better score"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0"),
        ({"options": {"magic": 1}}, "options={'magic': 1} do not fit the method 'geocrowdnet-f'"),
        ({"method": "ccem", "options": {"running": True}}, "running=True is for geocrowdnet-f"),
        ({"method": "crowd-layer", "options": {"kind": "XY"}}, "kind='XY'"),
        ({"network": nn.Linear(4, 2)}, r"the network returns \(2, 2\) .* a logit for each of 3 classes"),
    ],
)
def test_bad_parameters_raise_at_fit_and_name_the_choices(options: dict[str, Any], words: str) -> None:
    table, X, _ = simulate()
    with pytest.raises(ValueError, match=words):
        CrowdClassifier(**options).fit(X, table)


def test_errors_name_the_faults_of_tables() -> None:
    table, X, truth = simulate()
    quick = CrowdClassifier(**QUICK)
    with pytest.raises(ValueError, match=r"X lacks annotated items: 'pic\d', 'pic\d' \(2 in all\)"):
        quick.fit(X.iloc[2:], table)
    with pytest.raises(ValueError, match="X: missing or infinite values"):
        quick.fit(X.where(X.index.to_series() != "pic3", np.nan), table)
    with pytest.raises(ValueError, match=r"values that are missing, infinite or too large(.|\n)*3"):
        quick.fit(X.where(X.index.to_series() != "pic3", np.nan).to_numpy(), np.zeros((80, 2), int))
    with pytest.raises(ValueError, match="a matrix of 3 rows for 80 items"):
        quick.fit(X, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="missing_label marks empty cells of a matrix"):
        quick.fit(X, table, missing_label=-1)
    with pytest.raises(TypeError, match="X must be a data frame"):
        quick.fit("features.csv", table)
    with pytest.raises(ValueError, match="too few to hold any out: set selection='last'"):
        quick.fit(X, table.loc[table["item"].isin(["pic0", "pic1"])])
    with pytest.raises(ValueError, match="needs the folder"):
        quick.fit(X, table, resume=True)
    with pytest.raises(NotFittedError):
        quick.predict(X)
    fitted = quick.fit(X, table)
    with pytest.raises(ValueError, match="annotators that are not in the fit: 'q'"):
        fitted.annotator_proba(X, ["u", "q"])
    with pytest.raises(ValueError, match="true classes that no annotator used"):
        fitted.score(X, truth.replace("ant", "asp"))
    with pytest.raises(ValueError, match="give one per item"):
        fitted.score(X, ["ant"] * 3)


@pytest.mark.parametrize(
    ("batch", "options", "warned"), [(12, {}, False), (11, {}, True), (11, {"running": True}, False)]
)
def test_batches_of_fewer_than_four_items_per_class_cause_a_warning(
    batch: int, options: dict[str, Any], warned: bool
) -> None:
    table, X, _ = simulate()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CrowdClassifier(epochs=1, batch=batch, options=options).fit(X, table)
    assert any("batch to at least 12" in str(warning.message) for warning in caught) is warned


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 5), (6, 8), (7, 8)])
def test_training_stops_when_patience_runs_out(
    patience: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight epochs the second is the best."""
    table, X, _ = simulate()
    values = iter([0.0, 1.0, *([0.5] * 6)])
    monkeypatch.setattr(crowd_classifier, "held_out_scores", lambda *modules, part: np.array([next(values)]))
    fitted = CrowdClassifier(**(QUICK | {"epochs": 8}), patience=patience).fit(X, table)
    assert (fitted.epoch_, len(fitted.history_)) == (2, epochs)


def test_small_batches_and_singular_volumes_cause_warnings() -> None:
    table, X, _ = simulate()
    with pytest.warns(UserWarning, match="set batch to at least 12, or options"):
        CrowdClassifier(epochs=1, batch=8).fit(X, table)
    same = pd.DataFrame(np.zeros((80, 4)), X.index)
    with pytest.warns(UserWarning, match="in 4 steps the volume was almost singular, and a ridge was added"):
        fitted = CrowdClassifier(network=linear, **(QUICK | {"batch": 60})).fit(same, table)
    assert fitted.degenerate_ == 4 and fitted.history_["degenerate"].tolist() == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_raises_with_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    table, X, _ = simulate()
    monkeypatch.setattr(
        crowd_training,
        "apply_network",
        lambda network, channel, inputs: NetworkOutput(network(inputs) * torch.nan),
    )
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        CrowdClassifier(**QUICK).fit(X, table)


def test_parameters_follow_scikit_learn() -> None:
    model = CrowdClassifier(method="ccem", epochs=3)
    assert clone(model).get_params() == model.get_params() and model.set_params(epochs=5).epochs == 5

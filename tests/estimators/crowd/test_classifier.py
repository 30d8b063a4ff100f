"""`CrowdClassifier` as users meet it: forms of items and labels, answers under their ids, selection,
strength, folders and kills, faults by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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
    """Three classes that features decide, six annotators right for 60 to 95 in 100; the last twenty items
    have no labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + 20, 4))
    truth = (x @ rng.normal(size=(4, 3))).argmax(1)
    item = np.repeat(np.arange(items), weight_per_item)
    annotator = np.concatenate([rng.choice(6, weight_per_item, replace=False) for _ in range(items)])
    right = rng.random(len(item)) < np.linspace(0.6, 0.95, 6)[annotator]
    label = np.where(right, truth[item], rng.integers(0, 3, len(item)))
    names, ids = np.array(["ant", "bee", "cat"]), np.array([f"pic{n}" for n in range(items + 20)])
    said = pd.DataFrame(
        {"item": ids[item], "annotator": np.array([*"uvwxyz"])[annotator], "label": names[label]}
    )
    return (
        said.sample(frac=1, random_state=seed),
        pd.DataFrame(x, ids, [*"abcd"]),
        pd.Series(names[truth], ids),
    )


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


class Pictures(Dataset):
    """A dataset of (input, something) pairs."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.read = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        self.read += 1
        return torch.from_numpy(self.values[place]), "a name"


# What it learns


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_learns_what_annotators_know_and_who_knows_it(method: str) -> None:
    said, seen, truth = simulate(400)
    fitted = CrowdClassifier(
        network=linear, method=method, epochs=25, batch=32, learning_rate=0.02, selection="last"
    ).fit(seen, said)
    new = seen.iloc[-20:]
    votes = said.groupby("item")["label"].agg(lambda labels: labels.mode()[0])
    assert fitted.score(new, truth) > 0.8
    assert fitted.score(seen, truth) > (votes == truth[votes.index]).mean() - 0.05
    accuracy = fitted.annotators_["accuracy"].sort_index()
    assert list(accuracy.index) == [*"uvwxyz"] and accuracy["z"] > accuracy["u"]
    if method in ("ccem", "geocrowdnet-f", "geocrowdnet-w", "trace-reg", "raykar"):
        assert np.corrcoef(accuracy, np.linspace(0.6, 0.95, 6) + np.linspace(0.4, 0.05, 6) / 3)[0, 1] > 0.8


def test_answers_are_probabilities_under_the_users_ids() -> None:
    said, seen, truth = simulate()
    fitted = CrowdClassifier(**QUICK).fit(seen, said)
    found = fitted.predict_proba(seen)
    assert (
        list(found.columns) == ["ant", "bee", "cat"]
        and found.index.equals(seen.index)
        and found.index.name == "item"
    )
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    pd.testing.assert_series_equal(
        fitted.predict(seen), found.idxmax(axis=1).rename("label"), check_names=False
    )
    assert fitted.score(seen, truth) == pytest.approx((fitted.predict(seen) == truth).mean())
    assert fitted.score(seen, truth.to_numpy()) == fitted.score(seen, truth.sample(frac=1, random_state=0))
    confusion = fitted.confusion_
    assert confusion.index.names == ["annotator", "true_class"] and len(confusion) == 18
    np.testing.assert_allclose(confusion.sum(axis=1), 1, atol=1e-6)
    some = fitted.annotator_proba(seen.iloc[:3], ["z", "u"])
    assert list(some.index) == [(pic, who) for pic in seen.index[:3] for who in ("z", "u")]
    for (pic, who), row in some.iterrows():
        np.testing.assert_allclose(row, found.loc[pic] @ confusion.loc[who], atol=1e-6)
    assert len(fitted.annotator_proba(seen)) == 80 * 6


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_answers_about_annotators_are_the_same_however_many_at_once(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, seen, _ = simulate()
    fitted = CrowdClassifier(method="conal", **QUICK).fit(seen, said)
    whole = fitted.annotator_proba(seen)
    monkeypatch.setattr("probcrowd.estimators.network.estimator.MAX_CELLS", rows)
    pd.testing.assert_frame_equal(fitted.annotator_proba(seen), whole, atol=1e-6)


# Forms of items and labels


def test_tables_arrays_tensors_datasets_and_matrices_are_the_same() -> None:
    said, seen, _ = simulate()
    place = {pic: n for n, pic in enumerate(seen.index)}
    numbered = said.assign(item=said["item"].map(place))
    wide = said.pivot(index="item", columns="annotator", values="label").reindex(seen.index)
    matrix = wide.to_numpy(object)
    marked = np.where(wide.isna(), "?", matrix)
    values = seen.to_numpy().copy()
    options = {**QUICK, "network": linear}
    expected = CrowdClassifier(**options).fit(seen, said).predict_proba(seen).to_numpy()
    forms: list[tuple[Any, Any, dict[str, Any]]] = [
        (values, numbered, {}),
        (torch.from_numpy(values), numbered, {}),
        (values.astype(np.float32).reshape(80, 2, 2), numbered, {}),
        (Pictures(values), numbered, {}),
        (values, matrix, {}),
        (seen, marked, {"missing_label": "?"}),
        (seen, Annotations.from_frame(said), {}),
        (seen.rename_axis("task"), said.rename(columns={"item": "task", "annotator": "worker"}), {}),
    ]
    for items, labels, more in forms:
        fitted = CrowdClassifier(**options).fit(items, labels, **more)
        np.testing.assert_allclose(fitted.predict_proba(items).to_numpy(), expected, atol=2e-5)


def test_a_dataset_is_read_as_it_is_needed() -> None:
    said, seen, _ = simulate()
    pictures = Pictures(seen.to_numpy().copy())
    numbered = said.assign(item=said["item"].map({pic: n for n, pic in enumerate(seen.index)}))
    CrowdClassifier(network=linear, epochs=2, selection="last").fit(pictures, numbered)
    assert (
        pictures.read <= 3 * 60 + 8
    )  # two epochs of the items with labels, a last pass, and looks at the shape


def test_columns_keep_their_meaning() -> None:
    said, seen, _ = simulate()
    fitted = CrowdClassifier(**QUICK).fit(seen, said)
    pd.testing.assert_frame_equal(fitted.predict_proba(seen[[*"dcba"]]), fitted.predict_proba(seen))
    with pytest.raises(ValueError, match="the columns are 'a', 'b', 'c', 'e'"):
        fitted.predict_proba(seen.rename(columns={"d": "e"}))
    with pytest.raises(ValueError, match=r"inputs of shape \(3,\), those of the fit had \(4,\)"):
        fitted.predict_proba(seen.to_numpy()[:, :3])


def test_the_given_network_is_left_alone_and_trained_on_from_its_weights() -> None:
    said, seen, _ = simulate()
    network = linear((4,), 3)
    before = [value.clone() for value in network.parameters()]
    fitted = CrowdClassifier(network=network, epochs=1, learning_rate=1e-9, selection="last").fit(seen, said)
    for now, then, learned in zip(network.parameters(), before, fitted.network_.parameters(), strict=True):
        assert torch.equal(now, then)
        torch.testing.assert_close(learned, then, atol=1e-6, rtol=0)


# Seeds, selection, strength


def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves() -> None:
    said, seen, _ = simulate()
    state = torch.get_rng_state()
    first = CrowdClassifier(**QUICK, random_state=3).fit(seen, said).predict_proba(seen)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    pd.testing.assert_frame_equal(
        CrowdClassifier(**QUICK, random_state=3).fit(seen, said).predict_proba(seen), first, check_exact=True
    )
    assert not CrowdClassifier(**QUICK, random_state=4).fit(seen, said).predict_proba(seen).equals(first)


@pytest.mark.parametrize("selection", ["held-out", "gold"])
def test_the_epoch_with_the_best_score_is_the_result(selection: Any) -> None:
    said, seen, truth = simulate()
    known = (seen.iloc[-20:], truth) if selection == "gold" else None
    options = {**QUICK, "epochs": 12, "learning_rate": 0.1, "selection": selection}
    fitted = CrowdClassifier(**options).fit(seen, said, validation=known)
    best = fitted.history_["score"].idxmax()
    assert fitted.epoch_ == best
    short = CrowdClassifier(**(options | {"epochs": int(best)})).fit(seen, said, validation=known)
    pd.testing.assert_frame_equal(short.predict_proba(seen), fitted.predict_proba(seen), check_exact=True)
    if selection == "gold":
        assert fitted.score(seen.iloc[-20:], truth) == pytest.approx(fitted.history_["score"].max())


def test_held_out_items_have_no_part_in_training() -> None:
    """With the labels of a held-out item turned over, the training loss is the same in every epoch, and the
    score is not."""
    said, seen, _ = simulate()
    options = {**QUICK, "method": "ccem"}
    before = CrowdClassifier(**options).fit(seen, said).history_
    turned = []
    for pic in seen.index[:60]:
        other = said.assign(label=np.where(said["item"] == pic, "ant", said["label"]))
        after = CrowdClassifier(**options).fit(seen, other).history_
        turned.append(
            (bool((after["loss"] == before["loss"]).all()), bool((after["score"] == before["score"]).all()))
        )
    held = [score for loss, score in turned if loss]
    assert 6 <= len(held) and not all(held)
    assert sum(not loss for loss, _ in turned) >= 40


def test_patience_stops() -> None:
    said, seen, _ = simulate()
    fitted = CrowdClassifier(epochs=200, learning_rate=0.1, patience=5).fit(seen, said)
    assert len(fitted.history_) == fitted.epoch_ + 5 < 200


def test_a_strength_is_selected_by_the_items_that_select_the_epoch() -> None:
    said, seen, truth = simulate()
    fitted = CrowdClassifier(**QUICK, strength="selected").fit(seen, said)
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
    given = CrowdClassifier(**QUICK, strength=strength).fit(seen, said)
    pd.testing.assert_frame_equal(given.predict_proba(seen), fitted.predict_proba(seen), check_exact=True)
    assert given.history_["score"].max() == pytest.approx(table.loc[strength, "score"])
    known = (seen.iloc[-20:], truth)
    gold = CrowdClassifier(**QUICK, strength="selected", selection="gold").fit(seen, said, validation=known)
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
    found, sizes = [], []
    for part in labels.batches(5, torch.Generator().manual_seed(0)):
        assert part.weight_per_item == labels.weight_per_item
        sizes.append(len(part.items))
        found += zip(
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
    assert sorted(found) == sorted(expected)
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


def require_same(left: CrowdClassifier, right: CrowdClassifier, seen: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left.predict_proba(seen), right.predict_proba(seen), check_exact=True)
    pd.testing.assert_frame_equal(left.confusion_, right.confusion_, check_exact=True)
    pd.testing.assert_frame_equal(left.annotator_proba(seen), right.annotator_proba(seen), check_exact=True)
    pd.testing.assert_frame_equal(left.history_, right.history_, check_exact=True)
    assert (left.epoch_, left.degenerate_) == (right.epoch_, right.degenerate_)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_stop_after_any_epoch_ends_at_the_same_bits(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, seen, _ = simulate()
    options = {**QUICK, "method": method}
    whole = CrowdClassifier(**options).fit(seen, said)
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
                CrowdClassifier(**options).fit(seen, said, folder=folder)
        require_same(CrowdClassifier(**options).fit(seen, said, folder=folder, resume=True), whole, seen)
        require_same(load_crowd_classifier(folder), whole, seen)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    said.to_csv(tmp_path / "said.csv", index=False)
    seen.to_csv(tmp_path / "seen.csv")
    code = (
        "import sys, pandas as pd, torch; torch.set_num_threads(1)\n"
        "from probcrowd.estimators.crowd.classifier import CrowdClassifier\n"
        f"said, seen = pd.read_csv('{tmp_path}/said.csv'), pd.read_csv('{tmp_path}/seen.csv', index_col=0)\n"
        f"CrowdClassifier(epochs=400, batch=16).fit(seen, said, folder='{tmp_path}/fit', resume='again' in sys.argv)\n"
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
    seen = pd.read_csv(tmp_path / "seen.csv", index_col=0)
    whole = CrowdClassifier(epochs=400, batch=16).fit(seen, pd.read_csv(tmp_path / "said.csv"))
    require_same(load_crowd_classifier(tmp_path / "fit"), whole, seen)


def test_a_selected_strength_and_a_network_of_ones_own_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, seen, _ = simulate()
    options = {**QUICK, "network": linear, "strength": "selected"}
    whole = CrowdClassifier(**options).fit(seen, said)

    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crowd_classifier, "save_network", stop)
        with pytest.raises(KeyboardInterrupt):
            CrowdClassifier(**options).fit(seen, said, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(CrowdClassifier, "_compare_strengths", stop)
        require_same(CrowdClassifier(**options).fit(seen, said, folder=tmp_path, resume=True), whole, seen)
    read = load_crowd_classifier(tmp_path, linear)
    require_same(read, whole, seen)
    pd.testing.assert_frame_equal(read.strengths_, whole.strengths_, check_exact=True)
    with pytest.raises(ValueError, match="has a network of its own: pass it to load the fit"):
        load_crowd_classifier(tmp_path)
    with pytest.raises(ValueError, match="another network"):
        load_crowd_classifier(tmp_path, nn.Linear(3, 3))


def test_folders_of_other_data_or_settings_are_refused(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    CrowdClassifier(**QUICK).fit(seen, said, folder=tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        CrowdClassifier(**QUICK).fit(seen, said, folder=tmp_path)
    for other, labels, items in (
        (CrowdClassifier(**(QUICK | {"epochs": 5})), said, seen),
        (CrowdClassifier(**QUICK), said.iloc[1:], seen),
        (CrowdClassifier(**QUICK), said, seen + 1),
        (CrowdClassifier(network=linear, **QUICK), said, seen),
    ):
        with pytest.raises(ValueError, match="other settings"):
            other.fit(items, labels, folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds no fit"):
        load_crowd_classifier(tmp_path / "nowhere")


# Faults


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
    said, seen, _ = simulate()
    with pytest.raises(ValueError, match=words):
        CrowdClassifier(**options).fit(seen, said)


def test_faults_of_tables_are_named() -> None:
    said, seen, truth = simulate()
    quick = CrowdClassifier(**QUICK)
    with pytest.raises(ValueError, match=r"X lacks annotated items: 'pic\d', 'pic\d' \(2 in all\)"):
        quick.fit(seen.iloc[2:], said)
    with pytest.raises(ValueError, match="X: missing or infinite values"):
        quick.fit(seen.where(seen.index.to_series() != "pic3", np.nan), said)
    with pytest.raises(ValueError, match=r"values that are missing, infinite or too large(.|\n)*3"):
        quick.fit(seen.where(seen.index.to_series() != "pic3", np.nan).to_numpy(), np.zeros((80, 2), int))
    with pytest.raises(ValueError, match="a matrix of 3 rows for 80 items"):
        quick.fit(seen, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="missing_label marks empty cells of a matrix"):
        quick.fit(seen, said, missing_label=-1)
    with pytest.raises(TypeError, match="X must be a data frame"):
        quick.fit("features.csv", said)
    with pytest.raises(ValueError, match="too few to hold any out: set selection='last'"):
        quick.fit(seen, said.loc[said["item"].isin(["pic0", "pic1"])])
    with pytest.raises(ValueError, match="needs the folder"):
        quick.fit(seen, said, resume=True)
    with pytest.raises(NotFittedError):
        quick.predict(seen)
    fitted = quick.fit(seen, said)
    with pytest.raises(ValueError, match="annotators that are not in the fit: 'q'"):
        fitted.annotator_proba(seen, ["u", "q"])
    with pytest.raises(ValueError, match="true classes that no annotator used"):
        fitted.score(seen, truth.replace("ant", "asp"))
    with pytest.raises(ValueError, match="give one per item"):
        fitted.score(seen, ["ant"] * 3)


def test_small_batches_and_singular_volumes_are_told() -> None:
    said, seen, _ = simulate()
    with pytest.warns(UserWarning, match="set batch to at least 12, or options"):
        CrowdClassifier(epochs=1, batch=8).fit(seen, said)
    same = pd.DataFrame(np.zeros((80, 4)), seen.index)
    with pytest.warns(UserWarning, match="in 4 steps the volume was almost singular, and a ridge was added"):
        fitted = CrowdClassifier(network=linear, **(QUICK | {"batch": 60})).fit(same, said)
    assert fitted.degenerate_ == 4 and fitted.history_["degenerate"].tolist() == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_stops_and_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    said, seen, _ = simulate()
    monkeypatch.setattr(
        crowd_training,
        "apply_network",
        lambda network, channel, inputs: NetworkOutput(network(inputs) * torch.nan),
    )
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        CrowdClassifier(**QUICK).fit(seen, said)


def test_parameters_are_as_scikit_learn_has_them() -> None:
    made = CrowdClassifier(method="ccem", epochs=3)
    assert clone(made).get_params() == made.get_params() and made.set_params(epochs=5).epochs == 5

"""`SimLabel` as users meet it: forms of inputs, what is missing and what stands in for it, folders and kills, answers by annotator, faults by name."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.utils.data import Dataset

from probcrowd.annotations import Annotations
from probcrowd.estimators import crowd_folder, sim_label
from probcrowd.estimators.crowd_classifier import CrowdClassifier, load_crowd_classifier
from probcrowd.estimators.crowd_items import read_items
from probcrowd.estimators.crowd_split import split_of
from probcrowd.estimators.sim_label import SimLabel, load_sim_label
from probcrowd.estimators.sim_label_asked import ARCHITECTURES
from probcrowd.estimators.table import read_table
from probcrowd.models.channels import soft_labels

CLASSES = np.array(["ant", "bee", "cat"])
LOW = 0.02  # a threshold that many soft labels reach after a few epochs
every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def simulate(items: int = 60, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Three classes that features decide, five annotators right for 60 to 95 in 100, three labels an item; the last ten items have none.

    Rows begin with one of each annotator, from "u" to "y", and are in no order then.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + 10, 4))
    truth = (x @ rng.normal(size=(4, 3))).argmax(1)
    item = np.repeat(np.arange(items), 3)
    annotator = np.concatenate([rng.choice(5, 3, replace=False) for _ in range(items)])
    right = rng.random(len(item)) < np.linspace(0.6, 0.95, 5)[annotator]
    ids = np.array([f"pic{n}" for n in range(items + 10)])
    columns = {"item": ids[item], "annotator": np.array([*"uvwxy"])[annotator]}
    said = pd.DataFrame(columns | {"label": CLASSES[np.where(right, truth[item], rng.integers(0, 3, len(item)))]})
    return shuffled(said.sort_values("annotator"), seed), pd.DataFrame(x, ids, [*"abcd"]), pd.Series(CLASSES[truth], ids)


def shuffled(said: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The rows in another order, in which annotators come first in the order that they had."""
    first = said.drop_duplicates("annotator")
    return pd.concat([first, said.drop(first.index).sample(frac=1, random_state=seed)], ignore_index=True)


def embed(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.ReLU())


def ready(architecture: str = "madl", encoder: Any = embed, **more: Any) -> SimLabel:
    options = {"width": 16} if architecture == "qumatl" else {}
    return SimLabel(encoder, architecture, **{"epochs": 3, "batch": 16, "learning_rate": 0.02, "options": options} | more)


def held_out(said: pd.DataFrame, seen: pd.DataFrame, seed: int = 0) -> list[str]:
    split = split_of(read_table(said), read_items(seen), 0.1, seed, "cpu")
    return list(seen.index[split.held_place.numpy()])


def require_same(left: SimLabel, right: SimLabel, seen: Any) -> None:
    """To the bit."""
    pd.testing.assert_frame_equal(left.history_, right.history_, check_exact=True)
    pd.testing.assert_frame_equal(left.predict_proba(seen), right.predict_proba(seen), check_exact=True)
    pd.testing.assert_frame_equal(left.annotator_proba(seen), right.annotator_proba(seen), check_exact=True)
    for name in ("imputed_", "withdrawn_", "similarity_", "similarity_matrix_", "refreshed_similarity_matrix_", "annotators_"):
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name), check_exact=True, obj=name)
    assert left.epoch_ == right.epoch_ and left.classes_.equals(right.classes_)


class Pictures(Dataset):
    """A dataset of (input, something) pairs."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        return torch.from_numpy(self.values[place]), "a name"


# Forms of items, labels and encoders


def test_tables_arrays_tensors_datasets_and_matrices_are_the_same() -> None:
    said, seen, _ = simulate()
    numbered = said.assign(item=said["item"].str[3:].astype(int))
    wide = said.pivot(index="item", columns="annotator", values="label").reindex(seen.index)
    codes = np.where(wide.isna(), -1, np.searchsorted(CLASSES, wide.fillna("ant")))
    x = seen.to_numpy().copy()
    expected = ready(threshold=LOW).fit(seen, said)
    torch.manual_seed(0)
    module = embed((4,))
    forms: list[tuple[Any, Any, dict[str, Any], Any]] = [
        (x, numbered, {}, embed),
        (torch.from_numpy(x), numbered, {}, embed),
        (x.reshape(70, 2, 2), numbered, {}, embed),
        (Pictures(x), numbered, {}, embed),
        (seen, wide, {}, embed),
        (seen, wide.sample(frac=1, random_state=0), {}, embed),
        (x, wide.to_numpy(object), {}, embed),
        (seen, wide.fillna("?").to_numpy(object), {"missing_label": "?"}, embed),
        (seen, codes, {"missing_label": -1}, embed),
        (seen, torch.from_numpy(codes), {"missing_label": -1}, embed),
        (seen, Annotations.from_frame(said), {}, embed),
        (seen.rename_axis("task"), said.rename(columns={"item": "task", "annotator": "worker"}), {}, embed),
        (seen, said, {}, module),
    ]
    for inputs, labels, more, encoder in forms:
        fitted = ready(encoder=encoder, threshold=LOW).fit(inputs, labels, **more)
        np.testing.assert_array_equal(fitted.predict_proba(inputs), expected.predict_proba(seen))
        np.testing.assert_array_equal(fitted.annotator_proba(inputs), expected.annotator_proba(seen))
        np.testing.assert_array_equal(fitted.similarity_["similarity"], expected.similarity_["similarity"])
        np.testing.assert_array_equal(fitted.imputed_["confidence"], expected.imputed_["confidence"])
        scored = fitted.evaluate(inputs, labels, **more).annotators
        np.testing.assert_allclose(scored, expected.evaluate(seen, said).annotators, atol=1e-9)


@every_architecture
def test_answers_are_probabilities_under_the_users_ids(architecture: str) -> None:
    said, seen, truth = simulate()
    fitted = ready(architecture, threshold=LOW).fit(seen, said)
    common, own = fitted.predict_proba(seen), fitted.annotator_proba(seen)
    assert common.index.equals(seen.index) and list(common.columns) == list(own.columns) == list(CLASSES)
    assert list(own.index) == [(pic, who) for pic in seen.index for who in "uvwxy"] and own.index.names == ["item", "annotator"]
    for table in (common, own):
        assert (table >= 0).all(axis=None)
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-6)
    if architecture == "qumatl":  # nothing is in common but the mean
        mean = own.groupby("item", sort=False).mean()
        np.testing.assert_allclose(common, mean, atol=1e-6)
    likely = fitted.predict_annotators(seen)
    assert likely.index.equals(seen.index) and list(likely.columns) == [*"uvwxy"]
    for pic, who in own.index:
        assert likely.loc[pic, who] == own.loc[(pic, who)].idxmax()
    some = seen.iloc[[5, 2]]
    np.testing.assert_allclose(fitted.annotator_proba(some, ["y", "u"]), own.loc[[(p, a) for p in some.index for a in "yu"]], atol=1e-6)
    assert fitted.predict_annotators(some, ["y", "u"]).equals(likely.loc[some.index, ["y", "u"]])
    assert fitted.score(seen, truth) == pytest.approx((fitted.predict(seen) == truth).mean())
    assert list(fitted.annotators_.index) == [*"uvwxy"] and set(fitted.imputed_["label"]) <= set(CLASSES)
    assert len(fitted.imputed_) == fitted.annotators_["imputed"].sum() > 0
    trained = said[~said["item"].isin(held_out(said, seen))]
    assert fitted.annotators_["labels"].to_dict() == trained["annotator"].value_counts().to_dict()


@every_architecture
def test_a_feature_map_is_seen_as_it_is_or_as_the_mean_of_its_places(architecture: str) -> None:
    said, seen, _ = simulate()
    rng = np.random.default_rng(1)
    maps = seen.to_numpy()[:, :, None, None] + rng.normal(size=(70, 4, 2, 3))
    numbered = said.assign(item=said["item"].str[3:].astype(int))
    whole = ready(architecture, nn.Identity()).fit(maps, numbered)
    means = maps.mean((2, 3))
    if architecture == "qumatl":
        turned = whole.predict_proba(maps[:, :, ::-1].copy())
        assert not np.allclose(turned, whole.predict_proba(maps), atol=1e-4)
    else:
        pooled = ready(architecture, nn.Identity()).fit(means, numbered)
        np.testing.assert_allclose(whole.annotator_proba(maps), pooled.annotator_proba(means), atol=1e-5)
    conv = nn.Sequential(nn.Conv2d(4, 6, 2), nn.ReLU())  # (b, 6, 1, 2)
    fitted = ready(architecture, conv, threshold=LOW).fit(maps, numbered)
    np.testing.assert_allclose(fitted.annotator_proba(maps).sum(axis=1), 1, atol=1e-6)
    assert not list(whole.network_.parameters())


@pytest.mark.parametrize("encoder", [nn.Sequential(), nn.Identity()])
def test_features_are_taken_as_they_are(encoder: nn.Module, tmp_path: Path) -> None:
    # nn.Sequential() is false, as it is empty, and `encoder or small_encoder` then puts the default network in its place.
    said, seen, _ = simulate()
    fitted = ready(encoder=encoder).fit(seen, said, folder=tmp_path)
    assert repr(fitted.network_) == repr(encoder)
    require_same(load_sim_label(tmp_path, encoder), fitted, seen)


def test_the_given_encoder_is_left_alone_and_trained_on_from_its_weights() -> None:
    said, seen, _ = simulate()
    encoder = embed((4,))
    before = [value.clone() for value in encoder.parameters()]
    slow = ready(encoder=encoder, epochs=1, learning_rate=1e-9, selection="last").fit(seen, said)
    quick = ready(encoder=encoder, selection="last").fit(seen, said)
    for now, then, kept, moved in zip(encoder.parameters(), before, slow.network_.parameters(), quick.network_.parameters(), strict=True):
        assert torch.equal(now, then) and not torch.equal(moved, then)
        torch.testing.assert_close(kept, then, atol=1e-6, rtol=0)


# Orders and names


@every_architecture
def test_orders_of_rows_and_names_mean_nothing(architecture: str) -> None:
    said, seen, _ = simulate()
    before = ready(architecture, threshold=LOW).fit(seen, said)
    require_same(ready(architecture, threshold=LOW).fit(seen, shuffled(said, 7)), before, seen)
    declared = Annotations.from_frame(said.sort_values("label", ascending=False), annotators=[*"uvwxy"])
    require_same(ready(architecture, threshold=LOW).fit(seen, declared), before, seen)
    people, animals = dict(zip("uvwxy", "abdpq", strict=True)), dict(zip(CLASSES, ["dog", "elk", "fox"], strict=True))
    items = {pic: 1000 - n for n, pic in enumerate(seen.index)}
    other = pd.DataFrame({"item": said["item"].map(items), "annotator": said["annotator"].map(people), "label": said["label"].map(animals)})
    after = ready(architecture, threshold=LOW).fit(seen.rename(index=items), other)
    expected = before.annotator_proba(seen).rename(index=items, level="item").rename(index=people, level="annotator")
    pd.testing.assert_frame_equal(
        after.annotator_proba(seen.rename(index=items)), expected.rename(columns=animals), check_exact=True, check_names=False
    )
    names = {"item": items, "annotator": people, "label": animals}
    pd.testing.assert_frame_equal(
        after.imputed_, before.imputed_.assign(**{key: before.imputed_[key].map(of) for key, of in names.items()}), check_exact=True
    )


def test_annotators_in_another_order_only_permute_where_all_start_alike() -> None:
    said, seen, _ = simulate()
    options = {"missing": "skip", "selection": "last"}
    found = [ready("pooled", **options).fit(seen, table).annotator_proba(seen, [*"uvwxy"]) for table in (said, said[::-1])]
    np.testing.assert_allclose(*found, atol=1e-5)


# What is missing


@every_architecture
def test_without_missing_labels_or_their_weight_they_are_skipped(architecture: str) -> None:
    said, seen, truth = simulate()
    whole = [(pic, who, truth[pic] if (n + k) % 4 else "ant") for n, pic in enumerate(seen.index) for k, who in enumerate("uvwx")]
    complete = pd.DataFrame(whole, columns=["item", "annotator", "label"])
    skipped = ready(architecture, missing="skip").fit(seen, complete)
    for missing in ("similarity", "uniform", "consensus"):
        require_same(ready(architecture, missing=missing).fit(seen, complete), skipped, seen)
    skipped = ready(architecture, missing="skip").fit(seen, said)
    require_same(ready(architecture, kl_weight=0.0).fit(seen, said), skipped, seen)
    require_same(ready(architecture, warm_up=3).fit(seen, said), skipped, seen)
    losses = [ready(architecture, missing=missing).fit(seen, said).history_["loss"] for missing in ("similarity", "uniform", "consensus")]
    for one, other in combinations([skipped.history_["loss"], *losses], 2):
        assert (one != other).any()
    late = ready(architecture, warm_up=2).fit(seen, said).history_["loss"]
    assert late[:2].equals(skipped.history_["loss"][:2]) and late[3] != skipped.history_["loss"][3]


# What is imputed


def soft_by_loops(fitted: SimLabel, said: pd.DataFrame, seen: pd.DataFrame, weight: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """The soft label of every missing pair of the items trained on. weight: of one annotator for another, or nothing for the mean of all."""
    own, trained = fitted.annotator_proba(seen), said[~said["item"].isin(held_out(said, seen))]
    made = {}
    for pic, rows in trained.groupby("item"):
        for who in set("uvwxy") - set(rows["annotator"]):
            peers = rows["annotator"] if len(weight) else [*"uvwxy"]
            total = {peer: weight.loc[who, peer] if len(weight) else 1.0 for peer in peers}
            if sum(total.values()) > 0:
                made[pic, who] = sum(w * own.loc[(pic, peer)].to_numpy() for peer, w in total.items()) / sum(total.values())
    return made


@pytest.mark.parametrize("missing", ["similarity", "uniform", "consensus"])
@pytest.mark.parametrize("architecture", ["madl", "qumatl"])
def test_imputed_labels_are_the_sure_ones_of_missing_pairs_trained_on(architecture: str, missing: Any) -> None:
    said, seen, _ = simulate()
    plain = ready(architecture, missing=missing, epochs=1).fit(seen, said)
    weight = plain.similarity_matrix_.clip(lower=0) if missing == "similarity" else pd.DataFrame(1.0, [*"uvwxy"], [*"uvwxy"])
    soft = soft_by_loops(plain, said, seen, weight.iloc[:0] if missing == "consensus" else weight)
    sure = {pair: p.max() * (1 + (p * np.log(p)).sum() / np.log(3)) for pair, p in soft.items()}
    threshold = float(np.median(list(sure.values())))
    found = ready(architecture, missing=missing, epochs=1, threshold=threshold).fit(seen, said).imputed_
    pairs = list(zip(found["item"], found["annotator"], strict=True))
    clear = {pair for pair, value in sure.items() if abs(value - threshold) > 1e-5}
    assert set(pairs) & clear == {pair for pair in clear if sure[pair] > threshold} and len(set(pairs)) == len(pairs) > 20
    assert (found["confidence"] >= threshold - 1e-7).all() and not set(found["item"]) & set(held_out(said, seen))
    np.testing.assert_allclose(found["confidence"], [sure[pair] for pair in pairs], atol=1e-5)
    assert list(found["label"]) == [CLASSES[soft[pair].argmax()] for pair in pairs]


@every_architecture
@pytest.mark.parametrize("imputed", ["similarity", "loss"])
def test_held_out_labels_have_no_part_in_training(architecture: str, imputed: Any) -> None:
    said, seen, _ = simulate()
    held = held_out(said, seen, seed=5)
    turned = said["label"].map(dict(zip(CLASSES, np.roll(CLASSES, 1), strict=True)))
    tables = [said.assign(label=turned.where(said["item"].isin(some), said["label"])) for some in ([], held, ["pic0"])]
    assert len(held) == 6 and "pic0" not in held
    before, after, control = (
        ready(architecture, threshold=LOW, imputed=imputed, random_state=5).fit(seen, table).history_ for table in tables
    )
    pd.testing.assert_frame_equal(after.drop(columns="score"), before.drop(columns="score"), check_exact=True)
    assert before["imputed"].iloc[-1] > 0 and (after["score"] != before["score"]).all() and (control["loss"] != before["loss"]).all()


def require_counts(fitted: SimLabel, said: pd.DataFrame, seen: pd.DataFrame) -> None:
    """`similarity_` counts the labels trained on alone, the refreshed one those imputed as well, by loops."""
    trained = said[~said["item"].isin(held_out(said, seen))]
    frames = {fitted.similarity_.itertuples(): (fitted.similarity_matrix_, [trained])}
    refreshed = fitted._made.similarity(fitted._imputed).frame(fitted._annotators)
    frames[refreshed.itertuples()] = fitted.refreshed_similarity_matrix_, [trained, fitted.imputed_]
    for rows, (matrix, tables) in frames.items():
        require_frame(rows, matrix, {(row.item, row.annotator): row.label for table in tables for row in table.itertuples()}, seen)


def require_frame(rows: Any, matrix: pd.DataFrame, label: dict[Any, Any], seen: pd.DataFrame) -> None:
    for row in rows:
        both = [
            (label[pic, row.annotator], label[pic, row.other])
            for pic in seen.index
            if {(pic, row.annotator), (pic, row.other)} <= set(label)
        ]
        assert row.items == pytest.approx(len(both)) and row.agreement == pytest.approx(np.mean([one == other for one, other in both]))
        assert matrix.loc[row.other, row.annotator] == row.similarity


def test_imputed_labels_can_be_withdrawn_and_stay_so() -> None:
    said, seen, _ = simulate()
    fitted, observed = ready(threshold=LOW).fit(seen, said), ready().fit(seen, said)
    all_of_them = fitted.imputed_
    require_counts(fitted, said, seen)
    table = fitted.completed(said)
    assert len(table) == len(said) + len(all_of_them) and not table.duplicated(["item", "annotator"]).any()
    pd.testing.assert_frame_equal(table.loc[table["observed"], [*said]].reset_index(drop=True), said, check_dtype=False)
    made = table[~table["observed"]].drop(columns="observed").reset_index(drop=True)
    pd.testing.assert_frame_equal(made, all_of_them, check_dtype=False)
    assert table.loc[table["observed"], "confidence"].isna().all() and table["observed"].dtype == bool
    for wrong in (said.iloc[:1], pd.DataFrame({"item": ["pic69"], "annotator": ["u"]})):
        with pytest.raises(ValueError, match="were not imputed"):
            fitted.withdraw(wrong)
    with pytest.raises(ValueError, match=r"pairs of items that the fit has not(.|\n)*\?"):
        fitted.withdraw(pd.DataFrame({"item": ["?"], "annotator": ["u"]}))
    pd.testing.assert_frame_equal(fitted.imputed_, all_of_them)
    answers = fitted.annotator_proba(seen)
    assert fitted.withdraw(all_of_them.iloc[::2].sample(frac=1, random_state=0)) is fitted
    pd.testing.assert_frame_equal(fitted.imputed_, all_of_them.iloc[1::2].reset_index(drop=True))
    require_counts(fitted, said, seen)
    some = fitted.withdrawn_
    assert set(zip(some["item"], some["annotator"], strict=True)) == set(
        zip(all_of_them["item"][::2], all_of_them["annotator"][::2], strict=True)
    )
    assert len(fitted.withdraw().imputed_) == 0 and len(fitted.withdrawn_) == len(all_of_them)
    pd.testing.assert_frame_equal(fitted.similarity_, observed.similarity_, check_exact=True)
    pd.testing.assert_frame_equal(fitted.refreshed_similarity_matrix_, fitted.similarity_matrix_, check_exact=True)
    pd.testing.assert_frame_equal(fitted.annotator_proba(seen), answers, check_exact=True)
    assert not fitted.annotators_["imputed"].any() and fitted.completed(said)["observed"].all()


@pytest.mark.parametrize("imputed", ["similarity", "loss"])
def test_pairs_that_are_withdrawn_are_never_imputed_again(imputed: Any) -> None:
    said, seen, _ = simulate()
    fitted = ready(threshold=LOW, imputed=imputed).fit(seen, said)
    fitted.withdraw(fitted.imputed_.iloc[::2])
    again = ready(threshold=LOW, imputed=imputed).fit(seen, said, withdrawn=fitted.withdrawn_)
    pd.testing.assert_frame_equal(again.withdrawn_, fitted.withdrawn_)
    assert len(again.imputed_) and not len(again.imputed_.merge(fitted.withdrawn_, on=["item", "annotator"]))
    assert again.history_["imputed"].max() < fitted.history_["imputed"].max() and again.history_["loss"][3] != fitted.history_["loss"][3]


def test_a_completed_matrix_has_one_kind_of_ids() -> None:
    said, seen, _ = simulate()
    wide = said.pivot(index="item", columns="annotator", values="label").reindex(seen.index)
    for matrix in (wide, wide.to_numpy(object)):
        table = ready(threshold=LOW).fit(seen, matrix).completed(matrix)
        assert set(table["item"]) <= set(seen.index)
    codes = pd.DataFrame(np.where(wide.isna(), -1, np.searchsorted(CLASSES, wide.fillna("ant"))), seen.index, wide.columns)
    fitted = ready(threshold=LOW).fit(seen, codes, missing_label=-1)
    assert len(fitted.completed(codes, missing_label=-1)) == len(said) + len(fitted.imputed_)


# Seeds and many annotators


@every_architecture
def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves(architecture: str) -> None:
    said, seen, _ = simulate()
    state = torch.get_rng_state()
    first = ready(architecture, threshold=LOW, random_state=3).fit(seen, said)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    require_same(ready(architecture, threshold=LOW, random_state=3).fit(seen, said), first, seen)
    other = ready(architecture, threshold=LOW, random_state=4).fit(seen, said)
    assert not np.allclose(other.annotator_proba(seen), first.annotator_proba(seen), atol=1e-3)


@every_architecture
def test_of_many_annotators_some_are_asked(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said, seen, _ = simulate()
    options = {"batch": 2, "options": {"width": 16, "dropout": 0.0} if architecture == "qumatl" else {}}
    kinds = ("skip", "similarity")
    whole = [ready(architecture, missing=missing, **options).fit(seen, said).history_["loss"] for missing in kinds]
    monkeypatch.setattr(soft_labels, "MOST", 2)  # two items have labels of three annotators at least, and the other two are asked as well
    for missing, expected in zip(kinds, whole, strict=True):
        found = ready(architecture, missing=missing, **options).fit(seen, said).history_["loss"]
        if architecture != "padl":  # it draws noise for those who are asked
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    monkeypatch.setattr(soft_labels, "MOST", 1)
    for imputed in ("similarity", "loss"):
        fitted = ready(architecture, threshold=LOW, imputed=imputed, **options).fit(seen, said)
        assert np.isfinite(fitted.history_).all(axis=None) and len(fitted.imputed_)
        np.testing.assert_allclose(fitted.annotator_proba(seen).sum(axis=1), 1, atol=1e-6)


# Folders


class Stopped(BaseException):
    """What a kill would be."""


def stop_in(patch: pytest.MonkeyPatch, after: int) -> None:
    """The fit stops after so many epochs, or, for 0, when all of them are done and the result is to be written."""
    save = crowd_folder.save_latest

    def stopping(path: Path, tensors: Any, state: Any) -> None:
        save(path, tensors, state)
        if state["epoch"] == after:
            raise Stopped

    def stop(*arguments: object) -> None:
        raise Stopped

    patch.setattr(crowd_folder, "save_latest", stopping)
    if not after:
        patch.setattr(sim_label, "save_result", stop)


@pytest.mark.parametrize("more", [{}, {"threshold": LOW}, {"threshold": LOW, "imputed": "loss"}])
@every_architecture
def test_a_stop_after_any_epoch_ends_at_the_same_bits(
    architecture: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, seen, _ = simulate()
    options = {"encoder": None, "epochs": 4, **more}  # with dropout
    whole = ready(architecture, **options).fit(seen, said)
    assert len(whole.imputed_) or not more
    for after in (1, 3, 0):
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch:
            stop_in(patch, after)
            with pytest.raises(Stopped):
                ready(architecture, **options).fit(seen, said, folder=folder)
        with pytest.raises(ValueError, match="has not finished"):
            load_sim_label(folder)
        require_same(ready(architecture, **options).fit(seen, said, folder=folder, resume=True), whole, seen)
        require_same(load_sim_label(folder), whole, seen)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
    require_same(ready(architecture, **options).fit(seen, said, folder=folder, resume=True), whole, seen)


def test_a_stop_at_the_end_of_a_warm_up_imputes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # `channel.active` is as after `begin` in a fit that was not stopped, and as after `__init__` in one that has no epoch left.
    said, seen, _ = simulate()
    options: dict[str, Any] = {"threshold": LOW, "warm_up": 3}
    whole = ready(**options).fit(seen, said)
    with monkeypatch.context() as patch:
        stop_in(patch, 0)
        with pytest.raises(Stopped):
            ready(**options).fit(seen, said, folder=tmp_path)
    require_same(ready(**options).fit(seen, said, folder=tmp_path, resume=True), whole, seen)


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    said.to_csv(tmp_path / "said.csv", index=False)
    seen.to_csv(tmp_path / "seen.csv")
    code = (
        "import sys, pandas as pd, torch; torch.set_num_threads(1)\n"
        "from probcrowd.estimators.sim_label import SimLabel\n"
        f"said, seen = pd.read_csv('{tmp_path}/said.csv'), pd.read_csv('{tmp_path}/seen.csv', index_col=0)\n"
        f"SimLabel(epochs=100, threshold={LOW}).fit(seen, said, folder='{tmp_path}/fit', resume='again' in sys.argv)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "fit" / "checkpoint.previous.safetensors").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="has not finished"):
        load_sim_label(tmp_path / "fit")
    subprocess.run([sys.executable, "-c", code, "again"], check=True)
    seen = pd.read_csv(tmp_path / "seen.csv", index_col=0)
    whole = SimLabel(epochs=100, threshold=LOW).fit(seen, pd.read_csv(tmp_path / "said.csv"))
    require_same(load_sim_label(tmp_path / "fit"), whole, seen)


def test_a_folder_gives_back_all_that_was_learned(tmp_path: Path) -> None:
    said, seen, truth = simulate()
    numbers = said.assign(label=said["label"].map({"ant": 0, "bee": 1, "cat": 5}))
    gone = pd.DataFrame({"item": ["pic1", "pic2"], "annotator": ["u", "v"]})
    fitted = ready("qumatl", similarity="pearson", threshold=LOW).fit(seen, numbers, withdrawn=gone, folder=tmp_path)
    again = load_sim_label(tmp_path, embed)
    require_same(again, fitted, seen)
    assert len(again.withdrawn_) == 2 and again.get_params() == fitted.get_params()
    gold = truth.map({"ant": 0, "bee": 1, "cat": 5})
    pd.testing.assert_series_equal(again.evaluate(seen, numbers, gold).overall, fitted.evaluate(seen, numbers, gold).overall)
    for one in (again, fitted):
        one.withdraw(one.imputed_.iloc[:5])
    require_same(again, fitted, seen)
    with pytest.raises(ValueError, match="columns item and annotator"):
        again.withdraw(gone[["item"]])


def test_folders_of_other_data_settings_or_encoders_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    gone = pd.DataFrame({"item": ["pic1"], "annotator": ["u"]})
    folder, modules = tmp_path / "fit", [nn.Sequential(nn.Linear(4, 8), bend) for bend in (nn.ReLU(), nn.Tanh())]
    ready(encoder=modules[0]).fit(seen, said, folder=folder)
    with pytest.raises(ValueError, match="already holds a run"):
        ready(encoder=modules[0]).fit(seen, said, folder=folder)
    others = (
        {"epochs": 5},
        {"threshold": 0.5},
        {"kl_weight": 0.5},
        {"options": {"width": 8}},
        {"encoder": modules[1]},
        {"random_state": 1},
    )
    for other in others:
        with pytest.raises(ValueError, match=r"other settings(.|\n)*->"):
            ready(**{"encoder": modules[0], **other}).fit(seen, said, folder=folder, resume=True)
    for items, labels, pairs in ((seen, said[1:], None), (seen + 1, said, None), (seen, said, gone)):
        with pytest.raises(ValueError, match=r"other settings(.|\n)*data"):
            ready(encoder=modules[0]).fit(items, labels, withdrawn=pairs, folder=folder, resume=True)
    for wrong, words in ((modules[1], "another network"), (nn.Linear(4, 8), "another network"), (None, "network of its own: give it")):
        with pytest.raises(ValueError, match=words):
            load_sim_label(folder, wrong)
    with pytest.raises(ValueError, match="holds no fit"):
        load_sim_label(tmp_path / "nowhere")
    CrowdClassifier(epochs=1).fit(seen, said, folder=tmp_path / "classifier")
    with pytest.raises(ValueError, match="holds no fit of SimLabel"):
        load_sim_label(tmp_path / "classifier")
    for name in ("model.safetensors", "config.json", "items.parquet"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="damaged"):
            load_sim_label(folder, modules[0])
        (folder / name).write_bytes(whole)
    load_sim_label(folder, modules[0])


def test_a_fit_of_another_estimator_is_told_from_a_classifier(tmp_path: Path) -> None:
    # It is a TypeError of `CrowdClassifier.__init__`, as the folder of a `SimLabel` has all ids that a classifier has.
    said, seen, _ = simulate()
    ready(encoder=None, epochs=1).fit(seen, said, folder=tmp_path)
    with pytest.raises(ValueError, match="holds a fit of something else than CrowdClassifier"):
        load_crowd_classifier(tmp_path)


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
            assert row["accuracy"] == pytest.approx(accuracies[who]) and row["log_loss"] == pytest.approx(np.mean(lost), abs=1e-6)
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
        "consensus_log_loss": np.mean([-math.log(p[truth[pic]]) for pic, p in fitted.predict_proba(seen).iterrows()]),
    }
    for name, value in known.items():
        assert found.overall[name] == pytest.approx(value, abs=1e-6), name
    assert "consensus_accuracy" not in fitted.evaluate(seen, new).overall and "mean_accuracy" in str(found)


@every_architecture
def test_annotators_who_see_it_otherwise_are_told_apart(architecture: str) -> None:
    """Two groups with opposite names for two of three classes: half of what they say of these is lost to any one consensus."""
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
        ({"similarity": "cosine"}, "similarity='cosine': choose one of kappa, bennett, krippendorff, pearson"),
        ({"imputed": "all"}, "imputed='all': choose one of similarity, loss"),
        ({"selection": "gold"}, "selection='gold': choose one of held-out, last"),
        ({"kl_weight": -1}, "kl_weight=-1: choose a number >= 0"),
        ({"kl_weight": math.inf}, "kl_weight=inf: choose a number >= 0"),
        ({"warm_up": -1}, "warm_up=-1: choose"),
        ({"warm_up": 1.5}, "warm_up=1.5: choose"),  # taken for 1
        ({"threshold": 0.0}, "threshold=0.0: choose a number > 0"),
        ({"threshold": 1.1}, "threshold=1.1: a confidence is at most 1"),
        ({"threshold": math.nan}, "threshold=nan: choose a number > 0"),
        ({"threshold": 0.5, "missing": "skip"}, "a threshold imputes soft labels, and missing='skip' or kl_weight=0 makes none"),
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
        ({"architecture": "padl", "options": {"heads": 2}}, "options={'heads': 2} do not fit the architecture 'padl'"),
        ({"architecture": "qumatl", "options": {"width": 6}}, "width=6 must be a multiple of heads=4"),
        ({"architecture": "pooled", "options": {"spread": 0.0}}, "spread=0.0: choose a number above 0"),
        ({"encoder": nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))}, "the encoder gives one number per item; it must give an embedding"),
    ],
)
def test_bad_parameters_raise_at_fit_and_name_the_choices(options: dict[str, Any], words: str) -> None:
    said, seen, _ = simulate()
    with pytest.raises(ValueError, match=words):
        ready().set_params(**({"options": {}} | options)).fit(seen, said)


def test_an_encoder_that_gives_no_tensor_is_named() -> None:
    # It is an AttributeError now: 'tuple' object has no attribute 'shape'.
    said, seen, _ = simulate()
    with pytest.raises((TypeError, ValueError), match="the encoder gives"):
        ready(encoder=nn.LSTM(4, 4)).fit(seen, said)


def test_faults_of_tables_and_questions_are_named() -> None:
    said, seen, truth = simulate()
    made = ready(threshold=LOW)
    with pytest.raises(ValueError, match=r"X has no items 'pic\d', 'pic\d' \(2 in all\) that annotations are about"):
        made.fit(seen.iloc[2:], said)
    with pytest.raises(ValueError, match="all labels are alike, 'bee'"):
        made.fit(seen, said.assign(label="bee"))
    with pytest.raises(ValueError, match="too few to hold any out: say selection='last'"):
        made.fit(seen, said[said["item"].isin(["pic0", "pic1"])])
    with pytest.raises(ValueError, match="resume=True needs the folder"):
        made.fit(seen, said, resume=True)
    with pytest.raises(ValueError, match="missing_label marks cells of a matrix"):
        made.fit(seen, said, missing_label=-1)
    with pytest.raises(ValueError, match="columns item and annotator"):
        made.fit(seen, said, withdrawn=said[["item"]])
    with pytest.raises(ValueError, match="pairs of annotators that the fit has not(.|\n)*'q'"):
        made.fit(seen, said, withdrawn=said.assign(annotator="q"))
    for question in (made.predict, made.annotator_proba, made.predict_annotators, made.completed):
        with pytest.raises(NotFittedError):
            question(seen)
    for name in ("similarity_", "imputed_", "annotators_", "withdrawn_", "similarity_matrix_"):
        with pytest.raises(NotFittedError):
            getattr(made, name)
    fitted = made.fit(seen, said)
    for question in (fitted.annotator_proba, fitted.predict_annotators):
        with pytest.raises(ValueError, match="annotators that the fit does not know: 'q'"):
            question(seen, ["u", "q"])
    for wrong, words in (
        (said.replace("u", "q"), "annotators that the fit does not know: 'q'; leave their labels out"),
        (said.replace("ant", "asp"), "labels of items that the fit does not know(.|\n)*'asp'"),
        (said.replace("pic3", "pic99"), "X has no items 'pic99'"),
    ):
        with pytest.raises(ValueError, match=words):
            fitted.evaluate(seen, wrong)
    with pytest.raises(ValueError, match="true classes that nobody gave(.|\n)*'asp'"):
        fitted.evaluate(seen, said, truth.replace("ant", "asp"))
    with pytest.raises(ValueError, match="the columns are 'a', 'b', 'c', 'e'"):
        fitted.predict_annotators(seen.rename(columns={"d": "e"}))


def test_one_annotator_alone() -> None:
    # Without any pair `np.bincount` gives whole numbers, which `PairTables._sums` says it does not return.
    said, seen, _ = simulate()
    alone = ready(threshold=LOW).fit(seen, said[said["annotator"] == "u"])
    assert not len(alone.imputed_) and not len(alone.similarity_) and alone.similarity_matrix_.to_numpy().tolist() == [[1.0]]
    assert list(alone.predict_annotators(seen).columns) == ["u"] and np.isfinite(alone.annotators_).all(axis=None)


def test_no_annotator_at_all() -> None:
    # `predict_annotators` cannot reshape an array of size 0 into shape (0).
    said, seen, _ = simulate()
    fitted = ready().fit(seen, said)
    assert fitted.annotator_proba(seen, []).shape == (0, 3) and fitted.predict_annotators(seen, []).shape == (70, 0)


def test_parameters_are_as_scikit_learn_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    made = ready(threshold=0.5, encoder=None)
    assert clone(made).get_params() == made.get_params() and made.set_params(epochs=2).epochs == 2
    said, seen, _ = simulate()
    made.fit(seen, said)
    assert capsys.readouterr().err == ""
    shown = clone(made).set_params(progress=True).fit(seen, said)
    assert "train" in (bar := capsys.readouterr().err) and "/2 [" in bar
    require_same(shown, made, seen)

"""`SimLabel` as users meet it: forms of inputs, orders and names, what is missing and what stands in for it,
seeds."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sim_label_crowd import (
    CLASSES,
    LOW,
    embed,
    every_architecture,
    held_out,
    ready,
    require_same,
    shuffled,
    simulate,
)
from torch import Tensor, nn
from torch.utils.data import Dataset

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.simlabel.sim_label import SimLabel, load_sim_label
from probcrowd.models.simlabel import soft_labels


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
    assert list(own.index) == [(pic, who) for pic in seen.index for who in "uvwxy"] and own.index.names == [
        "item",
        "annotator",
    ]
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
    np.testing.assert_allclose(
        fitted.annotator_proba(some, ["y", "u"]),
        own.loc[[(p, a) for p in some.index for a in "yu"]],
        atol=1e-6,
    )
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
    for now, then, kept, moved in zip(
        encoder.parameters(), before, slow.network_.parameters(), quick.network_.parameters(), strict=True
    ):
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
    people, animals = (
        dict(zip("uvwxy", "abdpq", strict=True)),
        dict(zip(CLASSES, ["dog", "elk", "fox"], strict=True)),
    )
    items = {pic: 1000 - n for n, pic in enumerate(seen.index)}
    other = pd.DataFrame(
        {
            "item": said["item"].map(items),
            "annotator": said["annotator"].map(people),
            "label": said["label"].map(animals),
        }
    )
    after = ready(architecture, threshold=LOW).fit(seen.rename(index=items), other)
    expected = (
        before.annotator_proba(seen).rename(index=items, level="item").rename(index=people, level="annotator")
    )
    pd.testing.assert_frame_equal(
        after.annotator_proba(seen.rename(index=items)),
        expected.rename(columns=animals),
        check_exact=True,
        check_names=False,
    )
    names = {"item": items, "annotator": people, "label": animals}
    pd.testing.assert_frame_equal(
        after.imputed_,
        before.imputed_.assign(**{key: before.imputed_[key].map(of) for key, of in names.items()}),
        check_exact=True,
    )


def test_annotators_in_another_order_only_permute_where_all_start_alike() -> None:
    said, seen, _ = simulate()
    options = {"missing": "skip", "selection": "last"}
    found = [
        ready("pooled", **options).fit(seen, table).annotator_proba(seen, [*"uvwxy"])
        for table in (said, said[::-1])
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


# What is missing


@every_architecture
def test_without_missing_labels_or_their_weight_they_are_skipped(architecture: str) -> None:
    said, seen, truth = simulate()
    whole = [
        (pic, who, truth[pic] if (n + k) % 4 else "ant")
        for n, pic in enumerate(seen.index)
        for k, who in enumerate("uvwx")
    ]
    complete = pd.DataFrame(whole, columns=["item", "annotator", "label"])
    skipped = ready(architecture, missing="skip").fit(seen, complete)
    for missing in ("similarity", "uniform", "consensus"):
        require_same(ready(architecture, missing=missing).fit(seen, complete), skipped, seen)
    skipped = ready(architecture, missing="skip").fit(seen, said)
    require_same(ready(architecture, kl_weight=0.0).fit(seen, said), skipped, seen)
    require_same(ready(architecture, warm_up=3).fit(seen, said), skipped, seen)
    losses = [
        ready(architecture, missing=missing).fit(seen, said).history_["loss"]
        for missing in ("similarity", "uniform", "consensus")
    ]
    for one, other in combinations([skipped.history_["loss"], *losses], 2):
        assert (one != other).any()
    late = ready(architecture, warm_up=2).fit(seen, said).history_["loss"]
    assert late[:2].equals(skipped.history_["loss"][:2]) and late[3] != skipped.history_["loss"][3]


# What is imputed


def soft_by_loops(
    fitted: SimLabel, said: pd.DataFrame, seen: pd.DataFrame, weight: pd.DataFrame
) -> dict[tuple[str, str], np.ndarray]:
    """The soft label of every missing pair of the items trained on. weight: of one annotator for another, or
    nothing for the mean of all."""
    own, trained = fitted.annotator_proba(seen), said[~said["item"].isin(held_out(said, seen))]
    made = {}
    for pic, rows in trained.groupby("item"):
        for who in set("uvwxy") - set(rows["annotator"]):
            peers = rows["annotator"] if len(weight) else [*"uvwxy"]
            total = {peer: weight.loc[who, peer] if len(weight) else 1.0 for peer in peers}
            if sum(total.values()) > 0:
                made[pic, who] = sum(w * own.loc[(pic, peer)].to_numpy() for peer, w in total.items()) / sum(
                    total.values()
                )
    return made


@pytest.mark.parametrize("missing", ["similarity", "uniform", "consensus"])
@pytest.mark.parametrize("architecture", ["madl", "qumatl"])
def test_imputed_labels_are_the_sure_ones_of_missing_pairs_trained_on(
    architecture: str, missing: Any
) -> None:
    said, seen, _ = simulate()
    plain = ready(architecture, missing=missing, epochs=1).fit(seen, said)
    weight = (
        plain.similarity_matrix_.clip(lower=0)
        if missing == "similarity"
        else pd.DataFrame(1.0, [*"uvwxy"], [*"uvwxy"])
    )
    soft = soft_by_loops(plain, said, seen, weight.iloc[:0] if missing == "consensus" else weight)
    sure = {pair: p.max() * (1 + (p * np.log(p)).sum() / np.log(3)) for pair, p in soft.items()}
    threshold = float(np.median(list(sure.values())))
    found = ready(architecture, missing=missing, epochs=1, threshold=threshold).fit(seen, said).imputed_
    pairs = list(zip(found["item"], found["annotator"], strict=True))
    clear = {pair for pair, value in sure.items() if abs(value - threshold) > 1e-5}
    assert (
        set(pairs) & clear == {pair for pair in clear if sure[pair] > threshold}
        and len(set(pairs)) == len(pairs) > 20
    )
    assert (found["confidence"] >= threshold - 1e-7).all() and not set(found["item"]) & set(
        held_out(said, seen)
    )
    np.testing.assert_allclose(found["confidence"], [sure[pair] for pair in pairs], atol=1e-5)
    assert list(found["label"]) == [CLASSES[soft[pair].argmax()] for pair in pairs]


@every_architecture
@pytest.mark.parametrize("imputed", ["similarity", "loss"])
def test_held_out_labels_have_no_part_in_training(architecture: str, imputed: Any) -> None:
    said, seen, _ = simulate()
    held = held_out(said, seen, seed=5)
    turned = said["label"].map(dict(zip(CLASSES, np.roll(CLASSES, 1), strict=True)))
    tables = [
        said.assign(label=turned.where(said["item"].isin(some), said["label"]))
        for some in ([], held, ["pic0"])
    ]
    assert len(held) == 6 and "pic0" not in held
    before, after, control = (
        ready(architecture, threshold=LOW, imputed=imputed, random_state=5).fit(seen, table).history_
        for table in tables
    )
    pd.testing.assert_frame_equal(after.drop(columns="score"), before.drop(columns="score"), check_exact=True)
    assert (
        before["imputed"].iloc[-1] > 0
        and (after["score"] != before["score"]).all()
        and (control["loss"] != before["loss"]).all()
    )


def require_counts(fitted: SimLabel, said: pd.DataFrame, seen: pd.DataFrame) -> None:
    """`similarity_` counts the labels trained on alone, the refreshed one those imputed as well, by loops."""
    trained = said[~said["item"].isin(held_out(said, seen))]
    frames = {fitted.similarity_.itertuples(): (fitted.similarity_matrix_, [trained])}
    refreshed = fitted._fitted.channel.similarity(fitted._fitted.imputed).frame(
        fitted._fitted.ids["annotators"]
    )
    frames[refreshed.itertuples()] = fitted.refreshed_similarity_matrix_, [trained, fitted.imputed_]
    for rows, (matrix, tables) in frames.items():
        require_frame(
            rows,
            matrix,
            {(row.item, row.annotator): row.label for table in tables for row in table.itertuples()},
            seen,
        )


def require_frame(rows: Any, matrix: pd.DataFrame, label: dict[Any, Any], seen: pd.DataFrame) -> None:
    for row in rows:
        both = [
            (label[pic, row.annotator], label[pic, row.other])
            for pic in seen.index
            if {(pic, row.annotator), (pic, row.other)} <= set(label)
        ]
        assert row.items == pytest.approx(len(both)) and row.agreement == pytest.approx(
            np.mean([one == other for one, other in both])
        )
        assert matrix.loc[row.other, row.annotator] == row.similarity


def test_imputed_labels_can_be_withdrawn_and_stay_so() -> None:
    said, seen, _ = simulate()
    fitted, observed = ready(threshold=LOW).fit(seen, said), ready().fit(seen, said)
    all_of_them = fitted.imputed_
    require_counts(fitted, said, seen)
    table = fitted.completed(said)
    assert len(table) == len(said) + len(all_of_them) and not table.duplicated(["item", "annotator"]).any()
    pd.testing.assert_frame_equal(
        table.loc[table["observed"], [*said]].reset_index(drop=True), said, check_dtype=False
    )
    made = table[~table["observed"]].drop(columns="observed").reset_index(drop=True)
    pd.testing.assert_frame_equal(made, all_of_them, check_dtype=False)
    assert table.loc[table["observed"], "confidence"].isna().all() and table["observed"].dtype == bool
    for wrong in (said.iloc[:1], pd.DataFrame({"item": ["pic69"], "annotator": ["u"]})):
        with pytest.raises(ValueError, match="were not imputed"):
            fitted.withdraw(wrong)
    with pytest.raises(ValueError, match=r"pairs of items that are not in the fit(.|\n)*\?"):
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
    pd.testing.assert_frame_equal(
        fitted.refreshed_similarity_matrix_, fitted.similarity_matrix_, check_exact=True
    )
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
    assert (
        again.history_["imputed"].max() < fitted.history_["imputed"].max()
        and again.history_["loss"][3] != fitted.history_["loss"][3]
    )


def test_a_completed_matrix_has_one_kind_of_ids() -> None:
    said, seen, _ = simulate()
    wide = said.pivot(index="item", columns="annotator", values="label").reindex(seen.index)
    for matrix in (wide, wide.to_numpy(object)):
        table = ready(threshold=LOW).fit(seen, matrix).completed(matrix)
        assert set(table["item"]) <= set(seen.index)
    codes = pd.DataFrame(
        np.where(wide.isna(), -1, np.searchsorted(CLASSES, wide.fillna("ant"))), seen.index, wide.columns
    )
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
    whole = [
        ready(architecture, missing=missing, **options).fit(seen, said).history_["loss"] for missing in kinds
    ]
    monkeypatch.setattr(
        soft_labels, "MAX_EXTRA_ANNOTATORS", 2
    )  # two items have labels of three annotators at least, and the other two are asked as well
    for missing, expected in zip(kinds, whole, strict=True):
        found = ready(architecture, missing=missing, **options).fit(seen, said).history_["loss"]
        if architecture != "padl":  # it draws noise for those who are asked
            np.testing.assert_allclose(found, expected, rtol=1e-4)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 1)
    for imputed in ("similarity", "loss"):
        fitted = ready(architecture, threshold=LOW, imputed=imputed, **options).fit(seen, said)
        assert np.isfinite(fitted.history_).all(axis=None) and len(fitted.imputed_)
        np.testing.assert_allclose(fitted.annotator_proba(seen).sum(axis=1), 1, atol=1e-6)

"""`SimLabel`: forms of inputs, order of rows and names, missing and imputed labels, seeds."""

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
    """A dataset of (input, text) pairs."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, place: int) -> tuple[Tensor, str]:
        return torch.from_numpy(self.values[place]), "a name"


# Forms of items, labels and encoders


def test_tables_arrays_tensors_datasets_and_matrices_are_the_same() -> None:
    table, X, _ = simulate()
    numbered = table.assign(item=table["item"].str[3:].astype(int))
    wide = table.pivot(index="item", columns="annotator", values="label").reindex(X.index)
    codes = np.where(wide.isna(), -1, np.searchsorted(CLASSES, wide.fillna("ant")))
    x = X.to_numpy().copy()
    expected = ready(threshold=LOW).fit(X, table)
    torch.manual_seed(0)
    module = embed((4,))
    forms: list[tuple[Any, Any, dict[str, Any], Any]] = [
        (x, numbered, {}, embed),
        (torch.from_numpy(x), numbered, {}, embed),
        (x.reshape(70, 2, 2), numbered, {}, embed),
        (Pictures(x), numbered, {}, embed),
        (X, wide, {}, embed),
        (X, wide.sample(frac=1, random_state=0), {}, embed),
        (x, wide.to_numpy(object), {}, embed),
        (X, wide.fillna("?").to_numpy(object), {"missing_label": "?"}, embed),
        (X, codes, {"missing_label": -1}, embed),
        (X, torch.from_numpy(codes), {"missing_label": -1}, embed),
        (X, Annotations.from_frame(table), {}, embed),
        (X.rename_axis("task"), table.rename(columns={"item": "task", "annotator": "worker"}), {}, embed),
        (X, table, {}, module),
    ]
    for inputs, labels, more, encoder in forms:
        fitted = ready(encoder=encoder, threshold=LOW).fit(inputs, labels, **more)
        np.testing.assert_array_equal(fitted.predict_proba(inputs), expected.predict_proba(X))
        np.testing.assert_array_equal(fitted.annotator_proba(inputs), expected.annotator_proba(X))
        np.testing.assert_array_equal(fitted.similarity_["similarity"], expected.similarity_["similarity"])
        np.testing.assert_array_equal(fitted.imputed_["confidence"], expected.imputed_["confidence"])
        scored = fitted.evaluate(inputs, labels, **more).annotators
        np.testing.assert_allclose(scored, expected.evaluate(X, table).annotators, atol=1e-9)


@every_architecture
def test_answers_are_probabilities_under_the_users_ids(architecture: str) -> None:
    labelled, X, truth = simulate()
    fitted = ready(architecture, threshold=LOW).fit(X, labelled)
    common, own = fitted.predict_proba(X), fitted.annotator_proba(X)
    assert common.index.equals(X.index) and list(common.columns) == list(own.columns) == list(CLASSES)
    assert list(own.index) == [(pic, who) for pic in X.index for who in "uvwxy"] and own.index.names == [
        "item",
        "annotator",
    ]
    for table in (common, own):
        assert (table >= 0).all(axis=None)
        np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-6)
    if architecture == "qumatl":  # nothing is in common but the mean
        mean = own.groupby("item", sort=False).mean()
        np.testing.assert_allclose(common, mean, atol=1e-6)
    likely = fitted.predict_annotators(X)
    assert likely.index.equals(X.index) and list(likely.columns) == [*"uvwxy"]
    for pic, who in own.index:
        assert likely.loc[pic, who] == own.loc[(pic, who)].idxmax()
    some = X.iloc[[5, 2]]
    np.testing.assert_allclose(
        fitted.annotator_proba(some, ["y", "u"]),
        own.loc[[(p, a) for p in some.index for a in "yu"]],
        atol=1e-6,
    )
    assert fitted.predict_annotators(some, ["y", "u"]).equals(likely.loc[some.index, ["y", "u"]])
    assert fitted.score(X, truth) == pytest.approx((fitted.predict(X) == truth).mean())
    assert list(fitted.annotators_.index) == [*"uvwxy"] and set(fitted.imputed_["label"]) <= set(CLASSES)
    assert len(fitted.imputed_) == fitted.annotators_["imputed"].sum() > 0
    trained = labelled[~labelled["item"].isin(held_out(labelled, X))]
    assert fitted.annotators_["labels"].to_dict() == trained["annotator"].value_counts().to_dict()


@every_architecture
def test_feature_maps_are_used_whole_or_averaged_over_places(architecture: str) -> None:
    table, X, _ = simulate()
    rng = np.random.default_rng(1)
    maps = X.to_numpy()[:, :, None, None] + rng.normal(size=(70, 4, 2, 3))
    numbered = table.assign(item=table["item"].str[3:].astype(int))
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
    # nn.Sequential() is falsy: `encoder or small_encoder` would replace it by the default network
    table, X, _ = simulate()
    fitted = ready(encoder=encoder).fit(X, table, folder=tmp_path)
    assert repr(fitted.network_) == repr(encoder)
    require_same(load_sim_label(tmp_path, encoder), fitted, X)


def test_the_given_encoder_is_left_alone_and_trained_on_from_its_weights() -> None:
    table, X, _ = simulate()
    encoder = embed((4,))
    before = [value.clone() for value in encoder.parameters()]
    slow = ready(encoder=encoder, epochs=1, learning_rate=1e-9, selection="last").fit(X, table)
    quick = ready(encoder=encoder, selection="last").fit(X, table)
    for now, then, copies, moved in zip(
        encoder.parameters(), before, slow.network_.parameters(), quick.network_.parameters(), strict=True
    ):
        assert torch.equal(now, then) and not torch.equal(moved, then)
        torch.testing.assert_close(copies, then, atol=1e-6, rtol=0)


# Orders and names


@every_architecture
def test_orders_of_rows_and_names_mean_nothing(architecture: str) -> None:
    table, X, _ = simulate()
    before = ready(architecture, threshold=LOW).fit(X, table)
    require_same(ready(architecture, threshold=LOW).fit(X, shuffled(table, 7)), before, X)
    declared = Annotations.from_frame(table.sort_values("label", ascending=False), annotators=[*"uvwxy"])
    require_same(ready(architecture, threshold=LOW).fit(X, declared), before, X)
    people, animals = (
        dict(zip("uvwxy", "abdpq", strict=True)),
        dict(zip(CLASSES, ["dog", "elk", "fox"], strict=True)),
    )
    items = {pic: 1000 - n for n, pic in enumerate(X.index)}
    other = pd.DataFrame(
        {
            "item": table["item"].map(items),
            "annotator": table["annotator"].map(people),
            "label": table["label"].map(animals),
        }
    )
    after = ready(architecture, threshold=LOW).fit(X.rename(index=items), other)
    expected = (
        before.annotator_proba(X).rename(index=items, level="item").rename(index=people, level="annotator")
    )
    pd.testing.assert_frame_equal(
        after.annotator_proba(X.rename(index=items)),
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
    labelled, X, _ = simulate()
    options = {"missing": "skip", "selection": "last"}
    result = [
        ready("pooled", **options).fit(X, table).annotator_proba(X, [*"uvwxy"])
        for table in (labelled, labelled[::-1])
    ]
    np.testing.assert_allclose(*result, atol=1e-5)


# Missing labels


@every_architecture
def test_without_missing_labels_or_their_weight_they_are_skipped(architecture: str) -> None:
    table, X, truth = simulate()
    whole = [
        (pic, who, truth[pic] if (n + k) % 4 else "ant")
        for n, pic in enumerate(X.index)
        for k, who in enumerate("uvwx")
    ]
    complete = pd.DataFrame(whole, columns=["item", "annotator", "label"])
    skipped = ready(architecture, missing="skip").fit(X, complete)
    for missing in ("similarity", "uniform", "consensus"):
        require_same(ready(architecture, missing=missing).fit(X, complete), skipped, X)
    skipped = ready(architecture, missing="skip").fit(X, table)
    require_same(ready(architecture, kl_weight=0.0).fit(X, table), skipped, X)
    require_same(ready(architecture, warm_up=3).fit(X, table), skipped, X)
    losses = [
        ready(architecture, missing=missing).fit(X, table).history_["loss"]
        for missing in ("similarity", "uniform", "consensus")
    ]
    for one, other in combinations([skipped.history_["loss"], *losses], 2):
        assert (one != other).any()
    late = ready(architecture, warm_up=2).fit(X, table).history_["loss"]
    assert late[:2].equals(skipped.history_["loss"][:2]) and late[3] != skipped.history_["loss"][3]


# Imputed labels


def soft_by_loops(
    fitted: SimLabel, table: pd.DataFrame, X: pd.DataFrame, weight: pd.DataFrame
) -> dict[tuple[str, str], np.ndarray]:
    """The soft label of every missing pair trained on.

    weight: of one annotator for another; empty: the mean of all.
    """
    own, trained = fitted.annotator_proba(X), table[~table["item"].isin(held_out(table, X))]
    model = {}
    for pic, rows in trained.groupby("item"):
        for who in set("uvwxy") - set(rows["annotator"]):
            peers = rows["annotator"] if len(weight) else [*"uvwxy"]
            total = {peer: weight.loc[who, peer] if len(weight) else 1.0 for peer in peers}
            if sum(total.values()) > 0:
                model[pic, who] = sum(w * own.loc[(pic, peer)].to_numpy() for peer, w in total.items()) / sum(
                    total.values()
                )
    return model


@pytest.mark.parametrize("missing", ["similarity", "uniform", "consensus"])
@pytest.mark.parametrize("architecture", ["madl", "qumatl"])
def test_imputed_labels_are_the_sure_ones_of_missing_pairs_trained_on(
    architecture: str, missing: Any
) -> None:
    table, X, _ = simulate()
    plain = ready(architecture, missing=missing, epochs=1).fit(X, table)
    weight = (
        plain.similarity_matrix_.clip(lower=0)
        if missing == "similarity"
        else pd.DataFrame(1.0, [*"uvwxy"], [*"uvwxy"])
    )
    soft = soft_by_loops(plain, table, X, weight.iloc[:0] if missing == "consensus" else weight)
    sure = {pair: p.max() * (1 + (p * np.log(p)).sum() / np.log(3)) for pair, p in soft.items()}
    threshold = float(np.median(list(sure.values())))
    result = ready(architecture, missing=missing, epochs=1, threshold=threshold).fit(X, table).imputed_
    pairs = list(zip(result["item"], result["annotator"], strict=True))
    clear = {pair for pair, value in sure.items() if abs(value - threshold) > 1e-5}
    assert (
        set(pairs) & clear == {pair for pair in clear if sure[pair] > threshold}
        and len(set(pairs)) == len(pairs) > 20
    )
    assert (result["confidence"] >= threshold - 1e-7).all() and not set(result["item"]) & set(
        held_out(table, X)
    )
    np.testing.assert_allclose(result["confidence"], [sure[pair] for pair in pairs], atol=1e-5)
    assert list(result["label"]) == [CLASSES[soft[pair].argmax()] for pair in pairs]


@every_architecture
@pytest.mark.parametrize("imputed", ["similarity", "loss"])
def test_held_out_labels_have_no_part_in_training(architecture: str, imputed: Any) -> None:
    labelled, X, _ = simulate()
    held = held_out(labelled, X, seed=5)
    turned = labelled["label"].map(dict(zip(CLASSES, np.roll(CLASSES, 1), strict=True)))
    tables = [
        labelled.assign(label=turned.where(labelled["item"].isin(some), labelled["label"]))
        for some in ([], held, ["pic0"])
    ]
    assert len(held) == 6 and "pic0" not in held
    before, after, control = (
        ready(architecture, threshold=LOW, imputed=imputed, random_state=5).fit(X, table).history_
        for table in tables
    )
    pd.testing.assert_frame_equal(after.drop(columns="score"), before.drop(columns="score"), check_exact=True)
    assert (
        before["imputed"].iloc[-1] > 0
        and (after["score"] != before["score"]).all()
        and (control["loss"] != before["loss"]).all()
    )


def require_counts(fitted: SimLabel, labelled: pd.DataFrame, X: pd.DataFrame) -> None:
    """Compare `similarity_` (labels trained on) and the refreshed one (imputed ones too) with loops."""
    trained = labelled[~labelled["item"].isin(held_out(labelled, X))]
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
            X,
        )


def require_frame(rows: Any, matrix: pd.DataFrame, label: dict[Any, Any], X: pd.DataFrame) -> None:
    for row in rows:
        both = [
            (label[pic, row.annotator], label[pic, row.other])
            for pic in X.index
            if {(pic, row.annotator), (pic, row.other)} <= set(label)
        ]
        assert row.items == pytest.approx(len(both)) and row.agreement == pytest.approx(
            np.mean([one == other for one, other in both])
        )
        assert matrix.loc[row.other, row.annotator] == row.similarity


def test_imputed_labels_can_be_withdrawn_and_stay_so() -> None:
    labelled, X, _ = simulate()
    fitted, observed = ready(threshold=LOW).fit(X, labelled), ready().fit(X, labelled)
    all_of_them = fitted.imputed_
    require_counts(fitted, labelled, X)
    table = fitted.completed(labelled)
    assert (
        len(table) == len(labelled) + len(all_of_them) and not table.duplicated(["item", "annotator"]).any()
    )
    pd.testing.assert_frame_equal(
        table.loc[table["observed"], [*labelled]].reset_index(drop=True), labelled, check_dtype=False
    )
    model = table[~table["observed"]].drop(columns="observed").reset_index(drop=True)
    pd.testing.assert_frame_equal(model, all_of_them, check_dtype=False)
    assert table.loc[table["observed"], "confidence"].isna().all() and table["observed"].dtype == bool
    for wrong in (labelled.iloc[:1], pd.DataFrame({"item": ["pic69"], "annotator": ["u"]})):
        with pytest.raises(ValueError, match="were not imputed"):
            fitted.withdraw(wrong)
    with pytest.raises(ValueError, match=r"pairs of items that are not in the fit(.|\n)*\?"):
        fitted.withdraw(pd.DataFrame({"item": ["?"], "annotator": ["u"]}))
    pd.testing.assert_frame_equal(fitted.imputed_, all_of_them)
    answers = fitted.annotator_proba(X)
    assert fitted.withdraw(all_of_them.iloc[::2].sample(frac=1, random_state=0)) is fitted
    pd.testing.assert_frame_equal(fitted.imputed_, all_of_them.iloc[1::2].reset_index(drop=True))
    require_counts(fitted, labelled, X)
    some = fitted.withdrawn_
    assert set(zip(some["item"], some["annotator"], strict=True)) == set(
        zip(all_of_them["item"][::2], all_of_them["annotator"][::2], strict=True)
    )
    assert len(fitted.withdraw().imputed_) == 0 and len(fitted.withdrawn_) == len(all_of_them)
    pd.testing.assert_frame_equal(fitted.similarity_, observed.similarity_, check_exact=True)
    pd.testing.assert_frame_equal(
        fitted.refreshed_similarity_matrix_, fitted.similarity_matrix_, check_exact=True
    )
    pd.testing.assert_frame_equal(fitted.annotator_proba(X), answers, check_exact=True)
    assert not fitted.annotators_["imputed"].any() and fitted.completed(labelled)["observed"].all()


@pytest.mark.parametrize("imputed", ["similarity", "loss"])
def test_pairs_that_are_withdrawn_are_never_imputed_again(imputed: Any) -> None:
    table, X, _ = simulate()
    fitted = ready(threshold=LOW, imputed=imputed).fit(X, table)
    fitted.withdraw(fitted.imputed_.iloc[::2])
    again = ready(threshold=LOW, imputed=imputed).fit(X, table, withdrawn=fitted.withdrawn_)
    pd.testing.assert_frame_equal(again.withdrawn_, fitted.withdrawn_)
    assert len(again.imputed_) and not len(again.imputed_.merge(fitted.withdrawn_, on=["item", "annotator"]))
    assert (
        again.history_["imputed"].max() < fitted.history_["imputed"].max()
        and again.history_["loss"][3] != fitted.history_["loss"][3]
    )


def test_a_completed_matrix_has_one_kind_of_ids() -> None:
    labelled, X, _ = simulate()
    wide = labelled.pivot(index="item", columns="annotator", values="label").reindex(X.index)
    for matrix in (wide, wide.to_numpy(object)):
        table = ready(threshold=LOW).fit(X, matrix).completed(matrix)
        assert set(table["item"]) <= set(X.index)
    codes = pd.DataFrame(
        np.where(wide.isna(), -1, np.searchsorted(CLASSES, wide.fillna("ant"))), X.index, wide.columns
    )
    fitted = ready(threshold=LOW).fit(X, codes, missing_label=-1)
    assert len(fitted.completed(codes, missing_label=-1)) == len(labelled) + len(fitted.imputed_)


# Seeds and many annotators


@every_architecture
def test_the_same_seed_gives_the_same_bits_and_nothing_global_moves(architecture: str) -> None:
    table, X, _ = simulate()
    state = torch.get_rng_state()
    first = ready(architecture, threshold=LOW, random_state=3).fit(X, table)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    require_same(ready(architecture, threshold=LOW, random_state=3).fit(X, table), first, X)
    other = ready(architecture, threshold=LOW, random_state=4).fit(X, table)
    assert not np.allclose(other.annotator_proba(X), first.annotator_proba(X), atol=1e-3)


@every_architecture
def test_of_many_annotators_some_are_drawn_in_every_batch(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, X, _ = simulate()
    options = {"batch": 2, "options": {"width": 16, "dropout": 0.0} if architecture == "qumatl" else {}}
    kinds = ("skip", "similarity")
    whole = [
        ready(architecture, missing=missing, **options).fit(X, table).history_["loss"] for missing in kinds
    ]
    monkeypatch.setattr(
        soft_labels, "MAX_EXTRA_ANNOTATORS", 2
    )  # two items have labels of three annotators at least, and the other two are asked as well
    for missing, expected in zip(kinds, whole, strict=True):
        result = ready(architecture, missing=missing, **options).fit(X, table).history_["loss"]
        if architecture != "padl":  # it draws noise for those who are asked
            np.testing.assert_allclose(result, expected, rtol=1e-4)
    monkeypatch.setattr(soft_labels, "MAX_EXTRA_ANNOTATORS", 1)
    for imputed in ("similarity", "loss"):
        fitted = ready(architecture, threshold=LOW, imputed=imputed, **options).fit(X, table)
        assert np.isfinite(fitted.history_).all(axis=None) and len(fitted.imputed_)
        np.testing.assert_allclose(fitted.annotator_proba(X).sum(axis=1), 1, atol=1e-6)

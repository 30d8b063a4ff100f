"""Labels added without refitting: what changes, what does not, what is refused, the error, and the cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.aggregation import incremental
from probcrowd.estimators.catalogue import AGGREGATORS, find_aggregator
from probcrowd.simulate import simulate_annotations

NAMES = ["dawid-skene", "one-coin", "zencrowd"]
every = pytest.mark.parametrize("name", NAMES)


def make(name: str, **options: Any) -> Any:
    return find_aggregator(name)(**({"dependence": "ignore"} | options))


def simulate(
    seed: int, *, items: int = 200, annotators: int = 12, per_item: int = 4, classes: int = 2
) -> tuple[pd.DataFrame, pd.Series]:
    accuracy = np.random.default_rng(seed).uniform(0.65, 0.95, annotators)
    simulated = simulate_annotations(items, accuracy, classes=classes, labels_per_item=per_item, seed=seed)
    return simulated.frame, simulated.truth


def split(seed: int, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Return a table, more labels (of its items, of new items, by a new annotator), and the truth."""
    table, truth = simulate(seed, **options)
    number = table["item"].str[1:].astype(int)
    new_annotator = table["annotator"] == "a11"
    later = (number >= len(truth) - 10) | ((number < 20) & (table.index % 4 >= 2)) | new_annotator
    retained = later & ~(
        new_annotator & (number >= 40) & (number < len(truth) - 10)
    )  # a few labels of the new annotator only
    return table.loc[~later], table.loc[retained], truth


def counts_of(rows: pd.DataFrame, shares: pd.DataFrame, weight: Any = 1.0) -> pd.Series:
    """Expected counts of items with these probabilities, by annotator, class and label."""
    long = shares.loc[rows["item"]].mul(np.broadcast_to(weight, len(rows)), axis=0)
    long = long.set_axis(pd.MultiIndex.from_arrays([rows["annotator"], rows["label"]]), axis=0).stack()
    counts = long.groupby(level=[0, 2, 1]).sum().rename_axis(["annotator", "true_class", "label"])
    return counts.loc[counts > 1e-6].sort_index()


def require_sums(fitted: Any, rows: pd.DataFrame, weight: Any = 1.0) -> None:
    result = fitted.counts_.set_index(["annotator", "true_class", "label"])["count"].sort_index()
    pd.testing.assert_series_equal(
        result, counts_of(rows, fitted.probabilities_, weight), check_names=False, rtol=0, atol=1e-8
    )


@every
def test_the_first_call_is_a_fit(name: str) -> None:
    table, truth = simulate(0)
    first, fitted = make(name), make(name).fit(table, truth.head(3))
    assert first.partial_fit(table, truth.head(3)) is first
    for attribute in ("probabilities_", "items_", "annotators_", "confusion_", "counts_"):
        pd.testing.assert_frame_equal(getattr(first, attribute), getattr(fitted, attribute))
    assert first.refit_gap_.eq(0).all() and list(first.refit_gap_.index) == [
        "labels_added",
        "share_added",
        "mean_shift",
        "largest_shift",
    ]


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in NAMES])
def test_other_aggregators_have_no_partial_fit(name: str) -> None:
    assert not hasattr(find_aggregator(name)(), "partial_fit")


@every
@pytest.mark.parametrize("confidence", ["averaged", "variational", "plug-in"])
@pytest.mark.parametrize("batches", [1, 4])
def test_touched_items_are_close_to_a_full_fit_and_the_others_stay(
    name: str, confidence: str, batches: int
) -> None:
    """In one batch or several; closer to a fit of the whole table than to a fit of the old one."""
    table, more, truth = split(1)
    fitted = make(name, confidence=confidence).fit(table)
    before = fitted.predict_proba()
    for part in np.array_split(np.random.default_rng(0).permutation(len(more)), batches):
        assert fitted.partial_fit(more.iloc[part]) is fitted
    full = make(name, confidence=confidence).fit(pd.concat([table, more])).predict_proba()
    after = fitted.predict_proba()
    touched, old = list(more["item"].unique()), set(table["item"])
    both = [item for item in touched if item in old]
    assert set(after.index) == set(truth.index) and len(both) > 20 and len(touched) - len(both) == 10
    off = np.abs(after - full.loc[after.index]).max(axis=1)
    stale = np.abs(before.loc[both] - full.loc[both]).max(axis=1)
    assert off[touched].mean() < 0.25 * stale.mean() and off[touched].max() < 0.3
    untouched = [item for item in before.index if item not in touched]
    pd.testing.assert_frame_equal(after.loc[untouched], before.loc[untouched])
    assert fitted.score(None, truth[touched]) >= 0.8
    sizes = pd.concat([table, more])["item"].value_counts()
    assert (fitted.items_["num_labels"] == sizes[fitted.items_.index]).all() and fitted.items_["flag"].eq(
        ""
    ).all()
    assert set(fitted.annotators_.index) == {f"a{j}" for j in range(12)} and fitted.labels_.index.equals(
        after.index
    )
    np.testing.assert_allclose(fitted.confusion_.sum(axis=1), 1, atol=1e-9)


@every
def test_counts_are_the_sums_of_all_items_shares(name: str) -> None:
    """At the mode, where label probabilities equal the responsibilities in the counts."""
    table, more, truth = split(2, classes=3)
    fitted = make(name, confidence="plug-in").fit(table, truth.iloc[[0, 100]])
    require_sums(fitted, table)
    for low in range(0, len(more), 17):
        fitted.partial_fit(more.iloc[low : low + 17], truth.iloc[low : low + 2])
        require_sums(fitted, pd.concat([table, more.iloc[: low + 17]]))


@every
def test_weights_are_added(name: str) -> None:
    table, more, _ = split(3)
    weight = 0.5 + np.arange(len(table) + len(more)) % 3
    whole = pd.concat([table, more]).assign(w=weight)
    old, new = (
        Annotations.from_frame(part, weight="w")
        for part in (whole.iloc[: len(table)], whole.iloc[len(table) :])
    )
    fitted = make(name, confidence="plug-in").fit(old).partial_fit(new)
    require_sums(fitted, whole, weight)
    light = make(name, confidence="plug-in").fit(table).partial_fit(new)  # only the additions have weights
    require_sums(light, whole, np.where(np.arange(len(whole)) < len(table), 1.0, weight))
    full = make(name, confidence="plug-in").fit(Annotations.from_frame(whole, weight="w")).predict_proba()
    touched = list(more["item"].unique())
    both = [item for item in touched if item in set(table["item"])]
    stale = np.abs(
        make(name, confidence="plug-in").fit(old).predict_proba() - full.loc[table["item"].unique()]
    ).loc[both]
    assert (
        np.abs(fitted.predict_proba() - full).loc[touched].to_numpy().mean() < 0.3 * stale.to_numpy().mean()
    )


@every
def test_gold_may_come_later(name: str) -> None:
    table, more, truth = split(4)
    batch, rest = more.iloc[:6], more.iloc[6:]
    fitted = make(name).fit(table)
    unsure = fitted.items_["probability"].idxmin()
    other = {"c0": "c1", "c1": "c0"}[fitted.labels_[unsure]]
    fresh = rest["item"].iloc[-1]
    gold = pd.concat(
        [truth[batch["item"].unique()], pd.Series({unsure: other, "nowhere": "c0", fresh: "c1"})]
    )
    gold = gold.loc[~gold.index.duplicated(keep="last")]
    fitted.partial_fit(batch, gold)
    result = fitted.items_
    known = [
        item for item in gold.index if item in result.index
    ]  # items with added labels, or of the fit; others are ignored
    assert unsure in known and "nowhere" not in known and fresh not in known
    assert (result.loc[known, "probability"] == 1).all() and (result.loc[known, "label"] == gold[known]).all()
    assert result["known"].sum() == len(known) and result.loc[known, "known"].all()
    fitted.partial_fit(
        pd.DataFrame({"item": ["solo"], "annotator": ["a1"], "label": ["c1"]}), pd.Series({"solo": "c0"})
    )  # a class that no annotator gave
    assert fitted.items_.loc["solo", "label"] == "c0" and fitted.items_.loc["solo", "probability"] == 1
    fitted.partial_fit(rest)
    assert (fitted.items_.loc[known, "label"] == gold[known]).all()
    certain = make(name, confidence="plug-in").fit(table).partial_fit(batch, gold)
    require_sums(certain, pd.concat([table, batch]))


@every
def test_added_gold_corrects_the_annotators(name: str) -> None:
    """Two good annotators against three adversarial ones: with gold, new items are predicted correctly."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=80)
    flip = rng.random((80, 5)) < [0.1, 0.1, 0.9, 0.9, 0.9]
    table = Annotations.from_wide(truth[:, None] ^ flip, classes=[0, 1]).to_frame()
    gold = pd.Series(truth)
    old, batch, new = (
        table.loc[table["item"].between(low, high)] for low, high in ((0, 19), (20, 59), (60, 79))
    )
    fitted = make(name).fit(old)
    assert fitted.score(new, gold) < 0.5
    assert fitted.partial_fit(batch, gold.loc[20:59]).score(new, gold) > 0.85


BAD = {
    "a repeated pair": (
        {"item": ["new", "i60"], "annotator": ["a1", "?"], "label": ["c0", "c0"]},
        {},
        r"already have a label.*\('i60', 'a",
    ),
    "an unknown class": (
        {"item": ["new"], "annotator": ["a1"], "label": ["c9"]},
        {},
        "labels of items that the fit does not know.*'new'.*'c9'",
    ),
    "unknown gold": (
        {"item": ["new"], "annotator": ["a1"], "label": ["c0"]},
        {"new": "c9"},
        "none of the classes.*'new'.*'c9'",
    ),
    "another gold": (
        {"item": ["new"], "annotator": ["a1"], "label": ["c0"]},
        {"i61": "?"},
        "whose known class differs from the one given earlier.*'i61'",
    ),
    "items of another kind": (
        {"item": [5], "annotator": ["a1"], "label": ["c0"]},
        {},
        "`items` of several kinds: text.*number 5",
    ),
    "annotators of another kind": (
        {"item": ["new"], "annotator": [7], "label": ["c0"]},
        {},
        "`annotators` of several kinds: text.*number 7",
    ),
}


@every
@pytest.mark.parametrize("kind", BAD)
def test_rejected_additions_change_nothing(name: str, kind: str) -> None:
    columns, gold, words = BAD[kind]
    table, more, truth = split(5)
    fitted = make(name).fit(table, truth.loc[["i61"]]).partial_fit(more.iloc[:5])
    bad = pd.DataFrame(columns).replace(
        {"annotator": {"?": table.loc[table["item"] == "i60", "annotator"].iloc[0]}}
    )
    known = pd.Series(gold, dtype=object).replace("?", "c1" if truth["i61"] == "c0" else "c0")
    attributes = ("probabilities_", "items_", "counts_", "confusion_", "annotators_")
    before = [getattr(fitted, attribute).copy() for attribute in attributes] + [fitted.refit_gap_]
    with pytest.raises(ValueError, match=words):
        fitted.partial_fit(bad, known if gold else None)
    fitted._fitted.frames.clear()
    for frame, attribute in zip(before, (*attributes, "refit_gap_"), strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(getattr(fitted, attribute)), pd.DataFrame(frame))
    again = make(name).fit(table, truth.loc[["i61"]]).partial_fit(more.iloc[:5]).partial_fit(more.iloc[5:])
    np.testing.assert_array_equal(fitted.partial_fit(more.iloc[5:]).predict_proba(), again.predict_proba())


@every
def test_a_pair_cannot_be_labelled_twice(name: str) -> None:
    table, more, _ = split(6)
    fitted = make(name).fit(table).partial_fit(more)
    for part in (table.head(1), more.head(1), more.tail(1)):
        with pytest.raises(ValueError, match="already have a label"):
            fitted.partial_fit(part)


@every
def test_the_gap_grows_and_a_full_fit_closes_it(name: str) -> None:
    table, more, _ = split(7)
    fitted = make(name).fit(table)
    assert fitted.refit_gap_.eq(0).all()
    gaps = []
    for low in range(0, len(more), 20):
        gaps.append(fitted.partial_fit(more.iloc[low : low + 20]).refit_gap_)
    gaps = pd.DataFrame(gaps)
    assert gaps["labels_added"].tolist() == [*range(20, len(more), 20), len(more)][: len(gaps)]
    np.testing.assert_allclose(
        gaps["share_added"], gaps["labels_added"] / (len(table) + gaps["labels_added"])
    )
    assert (gaps["largest_shift"] >= gaps["mean_shift"]).all() and (gaps["mean_shift"] > 0).all()
    assert gaps["mean_shift"].iloc[-1] > 2 * gaps["mean_shift"].iloc[0]
    fitted.fit(pd.concat([table, more]))
    assert fitted.refit_gap_.eq(0).all() and len(fitted.predict_proba()) == 200


@every
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_shift_is_about_that_of_the_untouched_items(name: str, seed: int) -> None:
    """With the current tables; opposite shifts of one item make the sum over labels up to 3 times larger."""
    table, more, _ = split(10 + seed)
    fitted = make(name).fit(table)
    as_new = table.loc[~table["item"].isin(more["item"])].assign(item=lambda rows: "as new " + rows["item"])

    def log_odds() -> np.ndarray:
        p = np.clip(fitted.predict_proba(as_new).to_numpy(), 1e-12, 1)
        return np.log(p[:, 0] / p[:, 1])

    before = log_odds()
    gap = fitted.partial_fit(more).refit_gap_
    shift = np.abs(log_odds() - before)
    assert shift.mean() / 3 < gap["mean_shift"] < 3 * shift.mean()
    assert gap["largest_shift"] >= shift.max() / 1.001


@every
def test_cost_depends_on_the_touched_items_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = simulate(20, items=1000)
    more = pd.DataFrame(
        {
            "item": ["i3", "i3", "i700", "new"],
            "annotator": ["b1", "b2", "b1", "a1"],
            "label": ["c0", "c0", "c1", "c1"],
        }
    )
    fitted = make(name).fit(table)
    sizes: list[int] = []
    for function in ("e_step", "count"):
        plain = getattr(incremental, function)

        def recorded(packed: Any, *arguments: Any, _plain: Any = plain, **options: Any) -> Any:
            sizes.append(len(packed.cell))
            return _plain(packed, *arguments, **options)

        monkeypatch.setattr(incremental, function, recorded)
    fitted.partial_fit(more)
    assert (
        max(sizes) == len(table.loc[table["item"].isin(["i3", "i700"])]) + len(more) == 12 and min(sizes) == 8
    )
    assert len(sizes) <= 52


@every
def test_new_annotators_are_estimated_from_added_labels(name: str) -> None:
    """A spammer and an expert added later: nearly as in a full fit, in the table of annotators too."""
    table, truth = simulate(21, items=120)
    rng = np.random.default_rng(0)
    some = truth.head(60)
    guess = pd.DataFrame({"item": some.index, "annotator": "spammer", "label": rng.choice(["c0", "c1"], 60)})
    right = pd.DataFrame({"item": some.index, "annotator": "expert", "label": some.to_numpy()})
    more = pd.concat([guess, right])
    late, full = make(name).fit(table).partial_fit(more), make(name).fit(pd.concat([table, more]))
    result, expected = late.annotators_, full.annotators_
    expected = expected.loc[result.index]
    np.testing.assert_allclose(result["num_labels"], expected["num_labels"], atol=1e-9)
    np.testing.assert_allclose(result["spammer"], expected["spammer"], atol=0.05)
    np.testing.assert_allclose(result["accuracy"], expected["accuracy"], atol=0.1)
    assert result.loc["spammer", "spammer"] > 0.2 and result.loc["expert", "spammer"] < 1e-3
    new = pd.DataFrame({"item": ["n"], "annotator": ["expert"], "label": ["c1"]})
    assert late.predict_proba(new).loc["n", "c1"] > 0.85  # and is known: no warning


def test_abstentions_may_come_later() -> None:
    rng = np.random.default_rng(1)
    table, more, _ = split(22)
    mute = [
        part.assign(label=np.where(rng.random(len(part)) < 0.2, "?", part["label"])) for part in (table, more)
    ]
    event = (
        make("dawid-skene", abstention="?", abstentions="event", confidence="plug-in")
        .fit(mute[0])
        .partial_fit(mute[1])
    )
    require_sums(event, pd.concat(mute))
    assert (event.items_["num_labels"] == pd.concat(mute)["item"].value_counts()[event.items_.index]).all()
    for name in NAMES:
        deaf = make(name, abstention="?", confidence="plug-in").fit(mute[0])
        heard = [part.loc[part["label"] != "?"] for part in mute]
        require_sums(deaf.partial_fit(mute[1]), pd.concat(heard))
        silence = pd.DataFrame({"item": ["mute"], "annotator": ["a1"], "label": ["?"]})
        assert deaf.partial_fit(silence).items_.loc["mute", "flag"] == "no labels"


@every
def test_history_still_counts_after_additions(name: str) -> None:
    table, more, _ = split(23)
    past = (
        make(name)
        .fit(simulate(24)[0].assign(annotator=lambda rows: rows["annotator"].replace("a11", "other")))
        .counts_
    )
    late = make(name, confidence="plug-in").fit(table, history=past).partial_fit(more)
    full = make(name, confidence="plug-in").fit(pd.concat([table, more]), history=past)
    np.testing.assert_allclose(late.confusion_.loc[full.confusion_.index], full.confusion_, atol=0.03)
    key = ["annotator", "true_class", "label"]
    grown = late.counts_.set_index(key)["count"].sum() - past["count"].sum()
    assert abs(grown - len(table) - len(more)) < 1e-3  # counts below 1e-6 are not listed

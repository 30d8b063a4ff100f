"""Prior scales chosen by held-out labels: scores by loops, no leakage, useful features, saved searches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from probcrowd.data.rows import Rows
from probcrowd.estimators.lia import lia as lia_module
from probcrowd.estimators.lia.lia import LIA, load_lia
from probcrowd.estimators.lia.multi_label import MultiLabelLIA
from probcrowd.inference.lia import held_out_prior as spreads
from probcrowd.inference.lia.em import Schedule, fit_lia
from probcrowd.inference.lia.held_out_prior import (
    FACTORS,
    best_prior,
    folds,
    held_out_scores,
    search_prior_scales,
)
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.prior import Inputs, LIAPrior

JOINT, SHORT = OBJECTIVES["joint"], Schedule(rounds=2, steps=5, last_steps=0)
TINY: dict[str, Any] = {"prior": "held-out", "dependence": "ignore", "rounds": 2, "steps": 3, "last_steps": 5}


def crowd(informative: bool, *, items: int = 150, width: int = 10, seed: int = 0) -> tuple[Rows, np.ndarray]:
    """Four labels per item, three of four right; features that decide the truth, or are unrelated to it."""
    rng = np.random.default_rng(seed)
    seen = rng.normal(size=(items, width))
    truth = (seen[:, :2].sum(1) > 0 if informative else rng.random(items) < 0.5).astype(np.int64)
    item = np.repeat(np.arange(items), 4)
    annotator = np.concatenate([rng.choice(8, 4, replace=False) for _ in range(items)])
    label = np.where(rng.random(len(item)) < 0.75, truth[item], 1 - truth[item])
    return Rows(item, annotator, label, np.ones(len(item)), np.full(items, -1), 8, 2), seen


def table(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, seen = crowd(True, items=12, width=2, seed=seed)
    return pd.DataFrame({"item": rows.item, "annotator": rows.annotator, "label": rows.label}), pd.DataFrame(
        seen
    )


def test_scores_equal_loops_over_the_parameters_of_fits_without_those_labels() -> None:
    rows, seen = crowd(True, items=10, width=2)
    held = folds(rows, 3)
    scores = held_out_scores(rows, Inputs(seen), LIAPrior(), JOINT, SHORT, held, seed=1)
    for out in held:
        training = [place for place in range(len(rows.item)) if not out[place]]
        rest = replace(
            rows, **{name: getattr(rows, name)[training] for name in ("item", "annotator", "label", "weight")}
        )
        value = {
            name: array.numpy()
            for name, array in fit_lia(
                rest, Inputs(seen), LIAPrior(), JOINT, SHORT, seed=1
            ).parameters.items()
        }
        for place in np.flatnonzero(out):
            n = rows.item[place]
            odds = np.exp(seen[n] @ value["truth_weight"] + value["truth_bias"])
            q = odds / odds.sum()

            def label_row(who: int, n: int = n, value: dict[str, np.ndarray] = value) -> np.ndarray:
                difficulty = np.tensordot(seen[n], value["difficulty_weight"], 1)
                score = np.exp(difficulty + value["competence_mean"] + value["competence_offset"][who])
                return np.exp(np.log(score).sum(-1)) / np.exp(np.log(score).sum(-1)).sum(-1, keepdims=True)

            for other in training:
                if rows.item[other] == n:
                    q = q * label_row(rows.annotator[other])[:, rows.label[other]]
            expected = math.log((q / q.sum()) @ label_row(rows.annotator[place])[:, rows.label[place]])
            assert scores[place] == pytest.approx(expected, abs=1e-9)


def test_held_out_labels_do_not_affect_the_fit() -> None:
    """With one label turned over, its probability is what was left of it: the fit is the same."""
    rows, seen = crowd(True, items=12, width=2)
    held = folds(rows, 0)
    before = np.exp(held_out_scores(rows, Inputs(seen), LIAPrior(), JOINT, SHORT, held))
    place = int(np.flatnonzero(held[0])[0])
    label = rows.label.copy()
    label[place] = 1 - label[place]
    after = np.exp(held_out_scores(replace(rows, label=label), Inputs(seen), LIAPrior(), JOINT, SHORT, held))
    assert before[place] + after[place] == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_array_equal(np.delete(after[held[0]], 0), np.delete(before[held[0]], 0))
    assert not np.array_equal(after[held[1]], before[held[1]])  # the others have


def test_every_label_is_held_out_once_until_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, seen = crowd(True, items=12)
    np.testing.assert_array_equal(np.sum(folds(rows, 0), axis=0), 1)
    assert not np.array_equal(folds(rows, 0), folds(rows, 1))
    monkeypatch.setattr(spreads, "ENOUGH", 15)
    assert [int(out.sum()) for out in folds(rows, 0)] in ([10, 10], [10, 9])
    scores = held_out_scores(rows, Inputs(seen), LIAPrior(), JOINT, SHORT, folds(rows, 0))
    np.testing.assert_array_equal(np.isnan(scores), ~np.any(folds(rows, 0), axis=0))


def test_only_informative_features_get_wide_priors() -> None:
    schedule = Schedule(rounds=5, steps=15, last_steps=50)
    truth = {}
    for informative in (True, False):
        rows, seen = crowd(informative)
        tried = search_prior_scales(rows, Inputs(seen), LIAPrior(), JOINT, schedule)
        truth[informative] = best_prior(LIAPrior(), tried).truth
    assert truth[True] >= 1.0 and truth[False] < 0.5


def test_the_table_has_every_setting_and_why_it_was_accepted() -> None:
    rows, seen = crowd(False, items=40)
    tried = search_prior_scales(rows, Inputs(seen), LIAPrior(difficulty=0.5), JOINT, SHORT)
    assert list(tried.columns) == [*FACTORS, "score", "gain", "standard_error", "best"]
    assert tried.loc[0, ["truth", "difficulty", "competence"]].tolist() == [1.0, 0.5, 1.0] and bool(
        tried.loc[0, "best"]
    )
    later = tried.iloc[1:]
    np.testing.assert_array_equal(
        later["best"].to_numpy(bool), (later["gain"] > later["standard_error"]).to_numpy(bool)
    )
    best = 0
    for place in range(1, len(tried)):
        assert tried["gain"][place] == pytest.approx(tried["score"][place] - tried["score"][best], abs=1e-12)
        moved = [name for name in FACTORS if tried[name][place] != tried[name][best]]
        assert len(moved) == 1 and abs(
            math.log(tried[moved[0]][place] / tried[moved[0]][best])
        ) == pytest.approx(math.log(FACTORS[moved[0]]))
        best = place if tried["best"][place] else best
    settled = best_prior(LIAPrior(difficulty=0.5, latent=2), tried)
    assert settled.latent == 2 and settled.truth == tried["truth"][best]


def test_an_estimator_uses_and_reports_the_chosen_prior() -> None:
    annotations, seen = table()
    fitted = LIA(**TINY, random_state=2).fit(annotations, features=seen)
    again = LIA(**TINY, random_state=2).fit(annotations, features=seen)
    pd.testing.assert_frame_equal(fitted.spreads_, again.spreads_, check_exact=True)
    assert fitted.prior_ == best_prior(LIAPrior(), fitted.spreads_)
    given = LIA(**(TINY | {"prior": fitted.prior_}), random_state=2).fit(annotations, features=seen)
    pd.testing.assert_frame_equal(given.probabilities_, fitted.probabilities_, check_exact=True)
    with pytest.raises(AttributeError, match="held-out"):
        _ = given.spreads_


def test_a_folder_saves_the_chosen_prior_and_reuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, seen = table()
    whole = LIA(**TINY).fit(annotations, features=seen)

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lia_module, "fit_lia", stop)
        with pytest.raises(KeyboardInterrupt):
            LIA(**TINY).fit(annotations, features=seen, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(lia_module, "search_prior_scales", stop)
        resumed = LIA(**TINY).fit(annotations, features=seen, folder=tmp_path, resume=True)
    read = load_lia(tmp_path)
    for other in (resumed, read):
        pd.testing.assert_frame_equal(other.spreads_, whole.spreads_, check_exact=True)
        pd.testing.assert_frame_equal(other.probabilities_, whole.probabilities_, check_exact=True)
        assert other.prior_ == whole.prior_ and other.prior == "held-out"


def test_several_questions_have_prior_scales_too() -> None:
    annotations, seen = table()
    questions = pd.concat([annotations.assign(question=name) for name in ("cause", "treat")])
    options = {name: value for name, value in TINY.items() if name != "dependence"}
    fitted = MultiLabelLIA(**options).fit(questions, features=seen)
    assert len(fitted.lia_.spreads_) >= 7


@pytest.mark.parametrize("objective", ["as_written", "as_coded"])
def test_objectives_without_a_prior_have_none_to_choose(objective: Any) -> None:
    annotations, seen = table()
    with pytest.raises(ValueError, match="no prior to choose"):
        LIA(prior="held-out", objective=objective).fit(annotations, features=seen)


def test_too_few_labels_are_an_error() -> None:
    annotations, seen = table()
    with pytest.raises(ValueError, match="9 labels are too few"):
        LIA(**TINY).fit(annotations.head(9), features=seen)
    rows, _ = crowd(True, items=12, width=2)
    names = ("item", "annotator", "label", "weight")
    ten = replace(rows, **{name: getattr(rows, name)[:10] for name in names})
    assert [int(fold.sum()) for fold in folds(ten, 0)] == [2] * 5


def test_a_fit_leaves_the_callers_threads_alone() -> None:
    rows, seen = crowd(True, items=12)
    before = torch.get_num_threads()
    held_out_scores(rows, Inputs(seen), LIAPrior(), JOINT, SHORT, folds(rows, 0)[:1])
    assert torch.get_num_threads() == before

"""Choose LIA's prior scales by the likelihood of held-out labels; gold is not used.

Labels are held out a fifth at a time, until `ENOUGH` of them, or all, have been. A label's score is log sum_k
q_ik Q[i,j,k,l], with q from the other labels of its item. One scale after another moves as long as the scores
improve by more than their standard error; if labels cannot tell, nothing moves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from tqdm import tqdm

from probcrowd.data.rows import Rows
from probcrowd.inference.lia.em import Schedule, fit_lia
from probcrowd.inference.lia.objectives import Objective
from probcrowd.models.lia.lia import LIABatch, label_log_likelihood
from probcrowd.models.lia.prior import Inputs, LIAPrior

FOLDS = 5
ENOUGH = 3000  # held-out labels after which no more folds are needed
FACTORS = {"truth": math.sqrt(10), "difficulty": math.sqrt(10), "competence": 2.0}  # by which a scale moves
MAX_MOVES = 2  # moves of a scale in one direction


def search_prior_scales(
    rows: Rows,
    inputs: Inputs,
    prior: LIAPrior,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Search prior scales on held-out labels; one row per setting in the order tried.

    Columns: the scales; score: the mean in nats per label; gain: over the previous best, with its
    standard_error; best: whether it was accepted.

    Raises:
        ValueError: too few labels to hold any out.
    """
    settings: list[dict[str, Any]] = []
    held_out = folds(rows, seed)
    with tqdm(desc="prior scales", unit="setting", disable=not progress, leave=False) as bar:

        def score(candidate: LIAPrior) -> Float64[np.ndarray, " n"]:
            bar.update()
            return held_out_scores(rows, inputs, candidate, objective, schedule, held_out, seed=seed)

        best, best_scores = prior, score(prior)
        settings.append(_row(best, best_scores, math.nan, math.nan, True))
        for name, factor in FACTORS.items():
            for direction in (1 / factor, factor):
                moved = False
                for _ in range(MAX_MOVES):
                    candidate = replace(best, **{name: getattr(best, name) * direction})
                    scores = score(candidate)
                    gain, error = _gain(scores - best_scores)
                    settings.append(_row(candidate, scores, gain, error, gain > error))
                    if not gain > error:
                        break
                    best, best_scores, moved = candidate, scores, True
                if moved:
                    break
    return pd.DataFrame(settings)


def best_prior(prior: LIAPrior, settings: pd.DataFrame) -> LIAPrior:
    """The prior with the last accepted scales of a search."""
    best = settings.loc[settings["best"].to_numpy(bool), list(FACTORS)].iloc[-1]
    return replace(prior, **{str(name): float(value) for name, value in best.items()})


def folds(rows: Rows, seed: int) -> list[Bool[np.ndarray, " n"]]:
    """The rows that each fit holds out."""
    count = len(rows.item)
    if count < 2 * FOLDS:
        raise ValueError(
            f"{count} labels are too few to choose prior scales, {2 * FOLDS} are needed: pass a prior"
        )
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    return [fold == number for number in range(min(FOLDS, math.ceil(ENOUGH * FOLDS / count)))]


def held_out_scores(
    rows: Rows,
    inputs: Inputs,
    prior: LIAPrior,
    objective: Objective,
    schedule: Schedule,
    held_out: list[Bool[np.ndarray, " n"]],
    *,
    seed: int = 0,
) -> Float64[np.ndarray, " n"]:
    """Log scores of the held-out labels in nats; NaN for labels in no fold."""
    scores = np.full(len(rows.item), np.nan)
    for fold in held_out:
        fitted = fit_lia(_select(rows, ~fold), inputs, prior, objective, schedule, seed=seed)
        held = _select(rows, fold)
        with torch.no_grad():
            batch = LIABatch.of(held, inputs, torch.float64)
            likelihood = label_log_likelihood(fitted.parameters, batch).exp().numpy()
        scores[fold] = np.log((fitted.posterior[held.item] * likelihood).sum(1))
    return scores


def _select(rows: Rows, which: Bool[np.ndarray, " n"]) -> Rows:
    names = ("item", "annotator", "label", "weight")
    return replace(rows, **{name: getattr(rows, name)[which] for name in names})


def _gain(difference: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    known = difference[~np.isnan(difference)]
    return float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known)))


def _row(
    prior: LIAPrior, scores: Float64[np.ndarray, " n"], gain: float, error: float, best: bool
) -> dict[str, Any]:
    scales = {name: getattr(prior, name) for name in FACTORS}
    return scales | {
        "score": float(np.nanmean(scores)),
        "gain": gain,
        "standard_error": error,
        "best": best,
    }

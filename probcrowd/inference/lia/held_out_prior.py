"""LIA's prior spreads, chosen by labels that a fit has not seen: no gold is read.

Labels are held out a fifth at a time, until `ENOUGH` of them, or all, have been. The score of one is log sum_k q_ik Q[i,j,k,l], where q has
heard the other labels of its item. One spread after another moves away from where it was, as long as the scores improve by more
than their standard error: where labels cannot tell, nothing moves.
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
ENOUGH = 3000  # labels held out, after which no more folds are needed
FACTORS = {
    "truth": math.sqrt(10),
    "difficulty": math.sqrt(10),
    "competence": 2.0,
}  # factors by which a spread moves
MOVES = 2  # of a spread, at most, in one direction


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
    """What held-out labels say of spreads: a row for every setting that was tried, in order.

    spreads; score: mean, in nats per label; gain: mean over the best before it, with its standard_error; best: it became the best.

    Raises:
        ValueError: there are too few labels to hold any out.
    """
    tried: list[dict[str, Any]] = []
    held = folds(rows, seed)
    with tqdm(desc="spreads", unit="setting", disable=not progress, leave=False) as bar:

        def score(candidate: LIAPrior) -> Float64[np.ndarray, " n"]:
            bar.update()
            return held_out_scores(rows, inputs, candidate, objective, schedule, held, seed=seed)

        best, scores = prior, score(prior)
        tried.append(_told(best, scores, math.nan, math.nan, True))
        for name, factor in FACTORS.items():
            for direction in (1 / factor, factor):
                moved = False
                for _ in range(MOVES):
                    candidate = replace(best, **{name: getattr(best, name) * direction})
                    found = score(candidate)
                    gain, error = _gain(found - scores)
                    tried.append(_told(candidate, found, gain, error, gain > error))
                    if not gain > error:
                        break
                    best, scores, moved = candidate, found, True
                if moved:
                    break
    return pd.DataFrame(tried)


def best_prior(prior: LIAPrior, tried: pd.DataFrame) -> LIAPrior:
    """The prior with the last spreads that became the best."""
    best = tried.loc[tried["best"].to_numpy(bool), list(FACTORS)].iloc[-1]
    return replace(prior, **{str(name): float(value) for name, value in best.items()})


def folds(rows: Rows, seed: int) -> list[Bool[np.ndarray, " n"]]:
    """Which rows each fit is not to see."""
    count = len(rows.item)
    if count < 2 * FOLDS:
        raise ValueError(f"{count} labels are too few to choose spreads by: give a prior")
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    return [fold == number for number in range(min(FOLDS, math.ceil(ENOUGH * FOLDS / count)))]


def held_out_scores(
    rows: Rows,
    inputs: Inputs,
    prior: LIAPrior,
    objective: Objective,
    schedule: Schedule,
    held: list[Bool[np.ndarray, " n"]],
    *,
    seed: int = 0,
) -> Float64[np.ndarray, " n"]:
    """Log scores of the held-out labels in nats, NaN for those of no fold."""
    scores = np.full(len(rows.item), np.nan)
    for out in held:
        fitted = fit_lia(_rows(rows, ~out), inputs, prior, objective, schedule, seed=seed)
        rest = _rows(rows, out)
        with torch.no_grad():
            likely = (
                label_log_likelihood(fitted.parameters, LIABatch.of(rest, inputs, torch.float64))
                .exp()
                .numpy()
            )
        scores[out] = np.log((fitted.posterior[rest.item] * likely).sum(1))
    return scores


def _rows(rows: Rows, which: Bool[np.ndarray, " n"]) -> Rows:
    return replace(
        rows,
        item=rows.item[which],
        annotator=rows.annotator[which],
        label=rows.label[which],
        weight=rows.weight[which],
    )


def _gain(difference: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    known = difference[~np.isnan(difference)]
    return float(known.mean()), float(known.std(ddof=1) / math.sqrt(len(known)))


def _told(
    prior: LIAPrior, scores: Float64[np.ndarray, " n"], gain: float, error: float, better: bool
) -> dict[str, Any]:
    spreads = {name: getattr(prior, name) for name in FACTORS}
    return spreads | {
        "score": float(np.nanmean(scores)),
        "gain": gain,
        "standard_error": error,
        "best": better,
    }

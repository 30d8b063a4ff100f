"""Scores of label probabilities against gold labels that the fit did not see, with one rule for ties."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

BINS = 10
# Classes this close to the best tie, since the same numbers may have been summed in another order; relative
# for
# probabilities, absolute for their logs
TIE = 1e-9


def scores(probabilities: Float[np.ndarray, "i k"], gold: Int[np.ndarray, " i"]) -> dict[str, float]:
    """Accuracy (1/m in a tie of m), log loss in nats, Brier score (summed over classes), calibration error.

    Items without gold (code < 0) do not count. Calibration error: |mean confidence - accuracy| over ten
    equally filled bins of the highest probability, weighted by their items.
    """
    known = gold >= 0
    p, truth = probabilities[known], gold[known]
    if not len(truth):
        names = "accuracy", "log_loss", "brier", "calibration_error"
        return {"items": 0.0, **dict.fromkeys(names, np.nan)}
    bins = reliability(p, truth)
    gaps = np.abs(bins["confidence"] - bins["accuracy"])
    return {
        "items": float(len(truth)),
        "accuracy": float(hits(p, truth).mean()),
        "log_loss": float(log_losses(p, truth).mean()),
        "brier": float(((p - np.eye(p.shape[1])[truth]) ** 2).sum(1).mean()),
        "calibration_error": float(np.average(gaps, weights=bins["items"])),
    }


def reliability(probabilities: Float[np.ndarray, "i k"], truth: Int[np.ndarray, " i"]) -> pd.DataFrame:
    """Number of items, mean confidence and accuracy in equally filled bins of the highest probability."""
    top, hit = probabilities.max(1), hits(probabilities, truth)
    order = np.argsort(top, kind="stable")
    parts = [part for part in np.array_split(order, min(BINS, len(order))) if len(part)]
    return pd.DataFrame(
        [{"items": len(part), "confidence": top[part].mean(), "accuracy": hit[part].mean()} for part in parts]
    )


def log_losses(
    probabilities: Float[np.ndarray, "i k"], truth: Int[np.ndarray, " i"]
) -> Float[np.ndarray, " i"]:
    """-log probability of the truth, in nats; at most 690.8, that of a probability of 1e-300."""
    return np.abs(np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-300)))


def hits(probabilities: Float[np.ndarray, "i k"], truth: Int[np.ndarray, " i"]) -> Float[np.ndarray, " i"]:
    """Whether the most probable class is the true one; 1/m in a tie of m."""
    best = most_probable(probabilities)
    return best[np.arange(len(truth)), truth] / best.sum(1)


def most_probable(probabilities: Float[np.ndarray, "*b k"]) -> Bool[np.ndarray, "*b k"]:
    """Which classes have the highest probability, several where they tie."""
    return probabilities >= probabilities.max(-1, keepdims=True) * (1 - TIE)


def predicted(probabilities: Float[np.ndarray, "*b k"]) -> Int[np.ndarray, "*b"]:
    """Code of the most probable class, the first in a tie."""
    return most_probable(probabilities).argmax(-1)

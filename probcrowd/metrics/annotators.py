r"""How well single annotators are foretold: whether each one's labels are, and whether the predictions differ among annotators as the labels do.

    DIC            |M - M'|_F                 M, M': Cohen's kappa of pairs of annotators by their labels, and by the labels predicted
    DIC, relative  |M - M'|_F / |M|_F         for the same pairs of item and annotator; lower is better
    BAE            1 - |S - M|_F / |M|_F      S: cosine of what stands for the annotators in a model; higher is better

DIC: "difference of inter-annotator consistency", arXiv:2503.15237, equation 4, and arXiv:2508.10393, equation 3; BAE: "behavior alignment explainability" of the latter. Both take
the diagonal in, whose ones add to |M|_F alone: a model that predicts annotators at random then has less than 1. `dic_pairs` is ours: the relative
form over pairs with `LEAST` items in common and without the diagonal. A kappa that is 0 / 0, for want of items in common or of a second label, counts
0; `undefined_kappa` says how many of the pairs with items in common that concerns among the predictions.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probcrowd.metrics.agreement import PairTables, as_matrix, coefficients, pair_shares, pair_tables
from probcrowd.metrics.intervals import share_interval
from probcrowd.metrics.scores import hits, log_losses, predicted, scores

LEAST = 20  # items in common without which a kappa says little


def annotator_scores(
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
    annotators: pd.Index,
) -> pd.DataFrame:
    """By annotator: labels, accuracy (ties share) with a central 95 % interval (Jeffreys), log loss in nats; NaN without labels."""
    hit, count = hits(probabilities, label), np.bincount(annotator, minlength=len(annotators))
    right = np.bincount(annotator, hit, minlength=len(annotators))
    known = np.where(count, count, np.nan)
    lower, upper = share_interval(right, known)
    lost = np.bincount(annotator, log_losses(probabilities, label), minlength=len(annotators))
    columns = {
        "labels": count,
        "accuracy": right / known,
        "lower": lower,
        "upper": upper,
        "log_loss": lost / known,
    }
    return pd.DataFrame(columns, annotators.rename("annotator"))


def mean_accuracy(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
) -> tuple[float, float]:
    """The mean over annotators of their accuracies, and its standard error over items, whose labels depend on each other."""
    hit, count = hits(probabilities, label), np.bincount(annotator)
    share = 1 / (count[annotator] * (count > 0).sum())
    accuracy = np.bincount(annotator, hit) / np.maximum(count, 1)
    off = np.bincount(item, (hit - accuracy[annotator]) * share)
    items = len(np.unique(item))
    error = math.sqrt((off**2).sum() * items / (items - 1)) if items > 1 else math.nan
    return float((hit * share).sum()), error


def soft_cross_entropy(
    item: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n l"]
) -> float:
    """Of the labels that an item got, as shares, against the mean of what was predicted for those who gave them; mean over items, in nats."""
    items, place = np.unique(item, return_inverse=True)
    classes, count = probabilities.shape[1], np.bincount(place)
    votes = (
        np.bincount(place * classes + label, minlength=len(items) * classes).reshape(-1, classes)
        / count[:, None]
    )
    mean = np.stack([np.bincount(place, column) for column in probabilities.T], 1) / count[:, None]
    return float(-(votes * np.log(np.maximum(mean, 1e-300))).sum(1).mean())


def consistency(tables: PairTables, predicted: PairTables, num_annotators: int) -> dict[str, float]:
    """dic, dic_relative, dic_pairs, pairs (how many the last is over) and undefined_kappa, see above."""
    both = [coefficients(one, "kappa")[0] for one in (tables, predicted)]
    m, other = (
        np.nan_to_num(as_matrix(one, kappa, num_annotators))
        for one, kappa in zip((tables, predicted), both, strict=True)
    )
    size = np.linalg.norm(m - other)
    enough = tables.items >= LEAST
    true, made = (np.nan_to_num(kappa)[enough] for kappa in both)
    below = np.linalg.norm(true)
    return {
        "dic": float(size),
        "dic_relative": float(size / np.linalg.norm(m)),
        "dic_pairs": float(np.linalg.norm(true - made) / below) if below > 0 else math.nan,
        "pairs": float(enough.sum()),
        "undefined_kappa": float(np.isnan(both[1]).sum()),
    }


def alignment(features: Float[np.ndarray, "j d"], tables: PairTables) -> float:
    """BAE, of what stands for each annotator."""
    m = np.nan_to_num(as_matrix(tables, coefficients(tables, "kappa")[0], len(features)))
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1.0)
    return float(1 - np.linalg.norm(unit @ unit.T - m) / np.linalg.norm(m))


def overall_scores(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
    *,
    num_annotators: int,
    features: Float[np.ndarray, "j d"] | None = None,
) -> dict[str, float]:
    """All of them together: labels, accuracy (over labels), mean_accuracy (over annotators) with its standard_error, log_loss, brier, calibration_error,
    soft_cross_entropy, and those of `consistency` and `alignment`."""
    pooled = scores(probabilities, label)
    pooled["labels"] = pooled.pop("items")
    mean, error = mean_accuracy(item, annotator, label, probabilities)
    sizes = {"num_annotators": num_annotators, "num_labels": probabilities.shape[1]}
    share = pair_shares(item, annotator, np.ones(len(item)), num_annotators)
    tables, made = (
        pair_tables(item, annotator, said, share, **sizes) for said in (label, predicted(probabilities))
    )
    found = {
        "mean_accuracy": mean,
        "standard_error": error,
        **pooled,
        "soft_cross_entropy": soft_cross_entropy(item, label, probabilities),
    }
    found |= consistency(tables, made, num_annotators)
    return found if features is None else found | {"bae": alignment(features, tables)}

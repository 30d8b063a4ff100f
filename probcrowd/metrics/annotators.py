r"""Scores of the predicted labels of single annotators: accuracy, and differences among annotators.

    DIC            |M - M'|_F                 M, M': Cohen's kappa of pairs of annotators, from their
    DIC, relative  |M - M'|_F / |M|_F         labels and from predictions of the same; lower is better
    BAE            1 - |S - M|_F / |M|_F      S: cosine of a model's annotator features; higher is better

DIC: "difference of inter-annotator consistency", arXiv:2503.15237, equation 4, and arXiv:2508.10393, equation
3. BAE: "behavior alignment explainability" of the latter. Both include the diagonal, whose ones add to |M|_F
alone: a model that predicts annotators at random then scores below 1. `dic_pairs` is ours: the relative form
over pairs with at least `MIN_ITEMS` items in common and without the diagonal. A kappa that is 0 / 0, for lack
of common items or of a second label, counts as 0; `undefined_kappa` is the number of pairs with items in
common for which that happens in the predictions.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probcrowd.metrics.agreement import PairTables, as_matrix, coefficients, pair_shares, pair_tables
from probcrowd.metrics.intervals import share_interval
from probcrowd.metrics.scores import hits, log_losses, predicted, scores

MIN_ITEMS = 20  # items in common that a kappa needs to be informative


def annotator_scores(
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
    annotators: pd.Index,
) -> pd.DataFrame:
    """Number of labels, accuracy (1/m in a tie of m) with interval, log loss in nats; NaN without labels."""
    hit, count = hits(probabilities, label), np.bincount(annotator, minlength=len(annotators))
    right = np.bincount(annotator, hit, minlength=len(annotators))
    known = np.where(count, count, np.nan)
    lower, upper = share_interval(right, known)
    loss = np.bincount(annotator, log_losses(probabilities, label), minlength=len(annotators)) / known
    columns = {"labels": count, "accuracy": right / known, "lower": lower, "upper": upper, "log_loss": loss}
    return pd.DataFrame(columns, annotators.rename("annotator"))


def mean_accuracy(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
) -> tuple[float, float]:
    """Mean accuracy over annotators, and its standard error over items: labels of one item are dependent."""
    hit, count = hits(probabilities, label), np.bincount(annotator)
    share = 1 / (count[annotator] * (count > 0).sum())
    accuracy = np.bincount(annotator, hit) / np.maximum(count, 1)
    residual = np.bincount(item, (hit - accuracy[annotator]) * share)
    items = len(np.unique(item))
    error = math.sqrt((residual**2).sum() * items / (items - 1)) if items > 1 else math.nan
    return float((hit * share).sum()), error


def soft_cross_entropy(
    item: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n l"]
) -> float:
    """Cross entropy of label shares and the mean prediction for the annotators; mean over items, in nats."""
    items, place = np.unique(item, return_inverse=True)
    classes, count = probabilities.shape[1], np.bincount(place)
    votes = (
        np.bincount(place * classes + label, minlength=len(items) * classes).reshape(-1, classes)
        / count[:, None]
    )
    mean = np.stack([np.bincount(place, column) for column in probabilities.T], 1) / count[:, None]
    return float(-(votes * np.log(np.maximum(mean, 1e-300))).sum(1).mean())


def consistency(tables: PairTables, predicted: PairTables, num_annotators: int) -> dict[str, float]:
    """dic, dic_relative, dic_pairs, pairs (how many dic_pairs is over) and undefined_kappa; see above."""
    both = [coefficients(each, "kappa")[0] for each in (tables, predicted)]
    observed, other = (
        np.nan_to_num(as_matrix(each, kappa, num_annotators))
        for each, kappa in zip((tables, predicted), both, strict=True)
    )
    distance = np.linalg.norm(observed - other)
    enough = tables.items >= MIN_ITEMS
    true, estimated = (np.nan_to_num(kappa)[enough] for kappa in both)
    norm = np.linalg.norm(true)
    return {
        "dic": float(distance),
        "dic_relative": float(distance / np.linalg.norm(observed)),
        "dic_pairs": float(np.linalg.norm(true - estimated) / norm) if norm > 0 else math.nan,
        "pairs": float(enough.sum()),
        "undefined_kappa": float(np.isnan(both[1]).sum()),
    }


def alignment(features: Float[np.ndarray, "j d"], tables: PairTables) -> float:
    """BAE of the features of each annotator."""
    kappa = np.nan_to_num(as_matrix(tables, coefficients(tables, "kappa")[0], len(features)))
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(length > 0, length, 1.0)
    return float(1 - np.linalg.norm(unit @ unit.T - kappa) / np.linalg.norm(kappa))


def overall_scores(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n l"],
    *,
    num_annotators: int,
    features: Float[np.ndarray, "j d"] | None = None,
) -> dict[str, float]:
    """All scores together.

    labels (their number), accuracy (over labels), mean_accuracy (over annotators) with its standard_error,
    log_loss, brier, calibration_error, soft_cross_entropy, and those of `consistency` and `alignment`.
    """
    pooled = scores(probabilities, label)
    pooled["labels"] = pooled.pop("items")
    mean, error = mean_accuracy(item, annotator, label, probabilities)
    sizes = {"num_annotators": num_annotators, "num_labels": probabilities.shape[1]}
    share = pair_shares(item, annotator, np.ones(len(item)), num_annotators)
    tables, other = (
        pair_tables(item, annotator, each, share, **sizes) for each in (label, predicted(probabilities))
    )
    result = {"mean_accuracy": mean, "standard_error": error, **pooled}
    result["soft_cross_entropy"] = soft_cross_entropy(item, label, probabilities)
    result |= consistency(tables, other, num_annotators)
    return result if features is None else result | {"bae": alignment(features, tables)}

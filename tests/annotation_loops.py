"""The models of annotation by loops: log p(sites, rows), with the true class of each item summed out one
class after the other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import logsumexp

MODELS = (
    "multinomial",
    "dawid_skene",
    "one_coin",
    "mace",
    "hierarchical_dawid_skene",
    "item_difficulty",
    "logistic_random_effects",
    "prototype_crowd",
)


def dirichlet(x: np.ndarray, a: np.ndarray) -> float:
    return math.lgamma(a.sum()) + sum(
        (ai - 1) * math.log(xi) - math.lgamma(ai) for xi, ai in zip(x, a, strict=True)
    )


def normal(x: float, mean: float, scale: float) -> float:
    return -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def half_normal(x: float, scale: float) -> float:
    return math.log(2) + normal(x, 0.0, scale)


def beta(x: float, a: float, b: float) -> float:
    return (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + (a - 1) * math.log(x)
        + (b - 1) * math.log(1 - x)
    )


def softmax(logits: np.ndarray, reference: bool) -> np.ndarray:
    full = [*logits, 0.0] if reference else list(logits)
    total = sum(math.exp(v) for v in full)
    return np.array([math.exp(v) / total for v in full])


def chance(
    model: str,
    sites: dict[str, np.ndarray],
    prior: Any,
    item: int,
    annotator: int,
    k: int,
    label: int,
    classes: int,
) -> float:
    """P(label | truth k) by that annotator of that item."""
    if model == "multinomial":
        return float(sites["confusion"][k, label])
    if model in ("dawid_skene", "prototype_crowd"):
        return float(sites["confusion"][annotator, k, label])
    if model == "one_coin":
        right = float(sites["accuracy"][annotator])
        return right if k == label else (1 - right) / (classes - 1)
    if model == "mace":
        competence = float(sites["competence"][annotator])
        return competence * (k == label) + (1 - competence) * float(sites["spam"][annotator, label])
    logits = sites["mean"][k].copy()
    if model != "item_difficulty":
        logits = logits + sites["spread"][k] * sites["annotator_offset"][annotator, k]
    if model == "item_difficulty":
        logits = logits + sites["item_spread"][k] * sites["item_offset"][item]
    if model == "logistic_random_effects":
        logits = logits - sites["item_spread"][k] * sites["item_offset"][item]
    return float(softmax(logits, prior.reference)[label])


def log_prior(model: str, sites: dict[str, np.ndarray], prior: Any, classes: int) -> float:
    total = 0.0
    if model == "prototype_crowd":
        total += dirichlet(sites["class_prior"], np.full(classes, prior.class_count + 1))
        rows = np.full((classes, classes), prior.label_count + 1)
        if prior.accuracy is not None:
            np.fill_diagonal(
                rows, (classes - 1) * (prior.label_count + 1) * prior.accuracy / (1 - prior.accuracy)
            )
        total += sum(dirichlet(row, rows[k]) for matrix in sites["confusion"] for k, row in enumerate(matrix))
        return total + sum(normal(x, 0.0, prior.precision**-0.5) for x in sites["prototype"].ravel())
    if model == "mace":
        total += sum(beta(x, prior.honest, prior.spamming) for x in sites["competence"])
        return total + sum(dirichlet(row, np.full(classes, prior.answers)) for row in sites["spam"])
    total += dirichlet(sites["class_prior"], prior.class_prior)
    if model == "multinomial":
        return total + sum(dirichlet(row, prior.confusion[k]) for k, row in enumerate(sites["confusion"]))
    if model == "dawid_skene":
        return total + sum(
            dirichlet(row, prior.confusion[k])
            for matrix in sites["confusion"]
            for k, row in enumerate(matrix)
        )
    if model == "one_coin":
        return total + sum(beta(x, prior.right, prior.wrong) for x in sites["accuracy"])
    total += sum(
        normal(x, centre, prior.mean_scale)
        for x, centre in zip(sites["mean"].ravel(), prior.centre.ravel(), strict=True)
    )
    if "spread" in sites:
        total += sum(half_normal(x, prior.spread_scale) for x in sites["spread"].ravel())
        total += sum(normal(x, 0.0, 1.0) for x in sites["annotator_offset"].ravel())
    if "item_spread" in sites:
        total += sum(half_normal(x, prior.item_scale) for x in sites["item_spread"].ravel())
        total += sum(normal(x, 0.0, 1.0) for x in sites["item_offset"].ravel())
    return total


def item_terms(
    model: str, sites: dict[str, np.ndarray], prior: Any, rows: Any, embeddings: np.ndarray | None
) -> list[float]:
    """log p(rows of item i | sites), with its gold class if it has one."""
    terms = []
    for i in range(rows.num_items):
        total = 0.0
        for k in range(rows.num_classes):
            if rows.gold[i] >= 0 and rows.gold[i] != k:
                continue
            value = 1 / rows.num_classes if model == "mace" else float(sites["class_prior"][k])
            for n in range(len(rows.item)):
                if rows.item[n] == i:
                    each = chance(
                        model, sites, prior, i, rows.annotator[n], k, rows.label[n], rows.num_classes
                    )
                    value *= each ** rows.weight[n]
            if embeddings is not None:
                value *= math.exp(
                    sum(normal(u, m, 1.0) for u, m in zip(embeddings[i], sites["prototype"][k], strict=True))
                )
            total += value
        terms.append(math.log(total))
    return terms


def log_density(
    model: str, sites: dict[str, np.ndarray], prior: Any, rows: Any, embeddings: np.ndarray | None
) -> float:
    return log_prior(model, sites, prior, rows.num_classes) + sum(
        item_terms(model, sites, prior, rows, embeddings)
    )


def leave_one_annotation_terms(scores: np.ndarray, row_scores: np.ndarray, rows: Any) -> np.ndarray:
    """log p(label n | the item's other rows, parameters), of weight w[n]; from a[i, k] and r[n, k], not
    weighted.

    Raises:
        ValueError: labels that are impossible under some class: a[i, k] is -inf then, whatever the other rows
            say.
    """
    gold = np.asarray(rows.gold)[rows.item]
    weighted = row_scores * np.asarray(rows.weight)[:, None]
    terms = np.take_along_axis(
        weighted, np.broadcast_to(np.maximum(gold, 0)[:, None], (*weighted.shape[:-1], 1)), -1
    )[..., 0]
    free = np.flatnonzero(gold < 0)
    with_all, own = scores[..., np.asarray(rows.item)[free], :], weighted[..., free, :]
    if np.isneginf(own).any():
        raise ValueError(
            f"{np.isneginf(own).sum()} row scores are -inf: "
            "what a class loses by a label of probability 0 cannot be given back"
        )
    terms[..., free] = logsumexp(with_all, axis=-1) - logsumexp(with_all - own, axis=-1)
    return terms

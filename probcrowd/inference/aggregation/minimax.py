r"""Minimax conditional entropy: labels are a softmax of scores of the annotator and scores of the item, class
by class (Zhou et al., 2012, 2014, 2015).

    p(label = l | z_i = k, annotator j) = softmax_l(annotator_score[j, k, l] + item_score[i, k, l])
    z_i ~ Uniform(K)

w_n is the weight of a row, the number of times it counts; q_i are any probabilities of the classes. An
iteration increases the bound

    sum_ik q_ik (sum_n w_n log p(l_n | k) - log K - log q_ik)
    - annotator_penalty |annotator_score|^2 / 2 - item_penalty |item_score|^2 / 2

in two steps. Scores given q: a concave problem (the dual of maximum entropy with softened constraints),
solved by L-BFGS from the previous scores. Its variables are sqrt(penalty) score, which gives both penalties
the same curvature. q given scores: q_ik proportional to prod_n p(l_n | k)^w_n. The bound is then
sum_i log mean_k prod_n p(l_n | k)^w_n minus the penalties, which is the objective.

There are i k l + j k l scores, K^2 times the number of items and annotators, and L-BFGS stores about 25
arrays of that size. Time per step grows with n k l.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize

from probcrowd.compute.compiled import compiled, inlined
from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.aggregation.glad import Panel, make_panel
from probcrowd.inference.aggregation.result import Result

Scores = tuple[Float64[np.ndarray, "j k l"], Float64[np.ndarray, "i k l"]]  # annotators, items
Shapes = list[tuple[int, int, int]]
STEPS = 25  # of L-BFGS, per iteration


def fit_minimax(
    rows: Rows,
    *,
    annotator_penalty: float | None = None,
    item_penalty: float | None = None,
    max_iter: int = 50,
    tolerance: float = 5e-3,
) -> Result:
    """Fit minimax conditional entropy, alternating the two steps from the vote shares to a fixed point.

    annotator_penalty: K^2 / 4 by default. item_penalty: by default K^2 / 4 times the number of items with
    rows over the number of annotators with rows, which is labels per annotator over labels per item. An
    infinite penalty fixes scores at 0. Converged when no probability changes by more than `tolerance`.
    objective: the bound above. parameters: annotator_score (j k l), item_score (i k l). Scores of items and
    annotators without rows are 0, and such an item has uniform probabilities.

    Raises:
        ValueError: a penalty that is not positive.
    """
    panel = make_panel(rows)
    if annotator_penalty is None:
        annotator_penalty = rows.num_classes**2 / 4
    if item_penalty is None:
        item_penalty = (
            rows.num_classes**2
            / 4
            * max(len(np.unique(panel.item)), 1)
            / max(len(np.unique(panel.annotator)), 1)
        )
    if not (annotator_penalty > 0 and item_penalty > 0):
        raise ValueError(
            f"penalties must be > 0, not {annotator_penalty} for annotators and {item_penalty} for items"
        )
    shapes = [
        (number, rows.num_classes, rows.num_classes) for number in (rows.num_annotators, rows.num_items)
    ]
    unit = math.sqrt(annotator_penalty), math.sqrt(item_penalty)
    unknown = np.zeros(sum(math.prod(shape) for shape in shapes))
    scores = _unpack(unknown, shapes, unit)
    sorted_rows = replace(
        rows, item=panel.item, annotator=panel.annotator, label=panel.label, weight=panel.weight
    )
    q = _with_gold(vote_shares(sorted_rows.vote_totals, 1 / rows.num_classes), panel)
    history: list[float] = []
    converged = False
    while not converged and len(history) < max_iter:
        before = unknown, scores, q
        unknown = update_scores(panel, q, unknown, shapes, unit)
        scores = _unpack(unknown, shapes, unit)
        q, value = expectation(panel, scores)
        value -= float(unknown @ unknown / 2)
        converged = bool(np.abs(q - before[-1]).max(initial=0.0) < tolerance)
        if history and value <= history[-1]:  # at the maximum, up to rounding
            converged = True
            _, scores, q = before
            break
        history.append(value)
    return Result(q, np.array(history), converged, {"annotator_score": scores[0], "item_score": scores[1]})


def new_items_minimax(rows: Rows, parameters: dict[str, np.ndarray]) -> Float64[np.ndarray, "i k"]:
    """Label probabilities of items outside the fit, with the fitted annotator scores and item scores of 0,
    the prior mean.

    Items of the fit have scores at their optimum. New items do not: an item's scores and its q are fitted to
    each other, which makes q overconfident, and new scores would not improve those of the annotators.
    """
    scores = parameters["annotator_score"], np.zeros((rows.num_items, rows.num_classes, rows.num_classes))
    return expectation(make_panel(rows), scores)[0]


def update_scores(
    panel: Panel,
    q: Float64[np.ndarray, "i k"],
    unknown: Float64[np.ndarray, " u"],
    shapes: Shapes,
    unit: tuple[float, float],
) -> Float64[np.ndarray, " u"]:
    """Maximise the bound over the scaled scores for a given q, starting from `unknown`."""

    def loss(unknown: Float64[np.ndarray, " u"]) -> tuple[float, Float64[np.ndarray, " u"]]:
        value, of_annotators, of_items = expected_log_likelihood(panel, q, *_unpack(unknown, shapes, unit))
        gradient = np.concatenate([of_annotators.ravel() / unit[0], of_items.ravel() / unit[1]])
        return float(unknown @ unknown / 2) - value, unknown - gradient

    return minimize(loss, unknown, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x


def _unpack(unknown: Float64[np.ndarray, " u"], shapes: Shapes, unit: tuple[float, float]) -> Scores:
    """Split the scaled scores, sqrt(penalty) score, into scores of annotators and of items."""
    of_annotators, of_items = np.split(unknown, [math.prod(shapes[0])])
    return of_annotators.reshape(shapes[0]) / unit[0], of_items.reshape(shapes[1]) / unit[1]


def expectation(panel: Panel, scores: Scores) -> tuple[Float64[np.ndarray, "i k"], float]:
    """Return q given scores, and sum_i log mean_k prod_n p(l_n | k)^w_n; for an item with gold the term is
    log(prod_n p(l_n | gold)^w_n / K).
    """
    log_joint = class_scores(panel, *scores) - math.log(scores[0].shape[1])
    known = panel.gold >= 0
    log_joint[known] = np.where(
        _with_gold(np.zeros(log_joint.shape), panel)[known] > 0, log_joint[known], -np.inf
    )
    top = log_joint.max(1, keepdims=True)
    joint = np.exp(log_joint - top)
    total = joint.sum(1, keepdims=True)
    return joint / total, float((top + np.log(total)).sum())


def _with_gold(q: Float64[np.ndarray, "i k"], panel: Panel) -> Float64[np.ndarray, "i k"]:
    """Return q, with all mass on the gold class where it is known."""
    return np.where(panel.gold[:, None] < 0, q, panel.gold[:, None] == np.arange(q.shape[1]))


@inlined
def softmax(
    annotator_score: Float64[np.ndarray, " l"],
    item_score: Float64[np.ndarray, " l"],
    p: Float64[np.ndarray, " l"],
) -> float:
    """Write softmax(annotator_score + item_score) to p and return the log of its normaliser."""
    top, total = annotator_score[0] + item_score[0], 0.0
    for label in range(1, p.size):
        top = max(top, annotator_score[label] + item_score[label])
    for label in range(p.size):
        p[label] = math.exp(annotator_score[label] + item_score[label] - top)
        total += p[label]
    share = 1 / total
    for label in range(p.size):
        p[label] *= share
    return top + math.log(total)


@compiled
def class_scores(
    panel: Panel, annotator_score: Float64[np.ndarray, "j k l"], item_score: Float64[np.ndarray, "i k l"]
) -> Float64[np.ndarray, "i k"]:
    """Return sum_n w_n log p(l_n | k) over the rows of each item."""
    log_likelihood, p = np.zeros(item_score.shape[:2]), np.empty(item_score.shape[2])
    for n in range(panel.item.size):
        i, j, label = panel.item[n], panel.annotator[n], panel.label[n]
        for k in range(p.size):
            normaliser = softmax(annotator_score[j, k], item_score[i, k], p)
            log_likelihood[i, k] += panel.weight[n] * (
                annotator_score[j, k, label] + item_score[i, k, label] - normaliser
            )
    return log_likelihood


@compiled
def expected_log_likelihood(
    panel: Panel,
    q: Float64[np.ndarray, "i k"],
    annotator_score: Float64[np.ndarray, "j k l"],
    item_score: Float64[np.ndarray, "i k l"],
) -> tuple[float, Float64[np.ndarray, "j k l"], Float64[np.ndarray, "i k l"]]:
    """Return sum_n w_n sum_k q_ik log p(l_n | k), and its gradients in the scores of annotators and items."""
    of_annotators, of_items, p, value = (
        np.zeros(annotator_score.shape),
        np.zeros(item_score.shape),
        np.empty(q.shape[1]),
        0.0,
    )
    for n in range(panel.item.size):
        i, j, given = panel.item[n], panel.annotator[n], panel.label[n]
        for k in range(p.size):
            counts = panel.weight[n] * q[i, k]
            if counts > 0:
                normaliser = softmax(annotator_score[j, k], item_score[i, k], p)
                value += counts * (annotator_score[j, k, given] + item_score[i, k, given] - normaliser)
                p[given] -= 1
                for label in range(p.size):
                    of_annotators[j, k, label] -= counts * p[label]
                    of_items[i, k, label] -= counts * p[label]
    return value, of_annotators, of_items

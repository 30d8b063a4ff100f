r"""GLAD: annotators have abilities, items have an ease, and their product gives the probability of a right
label (Whitehill et al., 2009).

    z_i ~ Uniform(K)   ability_j ~ Normal(1, 1)   log_ease_i ~ Normal(1, 1)   t_ij = ability_j exp(log_ease_i)
    p(label = z) = sigmoid(t_ij),     p(label = l) = (1 - sigmoid(t_ij)) / (K - 1) for every other class l

Since log sigmoid(t) - log(1 - sigmoid(t)) = t, and w_n, the weight of a row, is the number of times it
counts,

    s_ik = log p(labels of item i | truth k)
         = sum_n w_n (t_n [l_n = k] - softplus(t_n)) - log(K - 1) sum_n w_n [l_n != k]

An iteration increases the log posterior, with the truth summed out, in two blocks. Abilities given
q = softmax(s): Newton's method on the expected complete log posterior, a sum of one concave function per
annotator (the M step of EM). Ease given abilities: Newton's method on log mean_k exp(s_ik) itself, one
function per item. It is not concave, so a step that lowers it is halved; q follows. Time per iteration and
memory grow with n + i k.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from probcrowd.compute.compiled import compiled
from probcrowd.data.rows import Rows
from probcrowd.inference.aggregation.result import Result
from probcrowd.inference.posterior.gibbs_kernels import HALF_LOG_TWO_PI

PRIOR_MEAN = 1.0
NEWTON_STEPS, HALVINGS, LONGEST_STEP, SHORTEST_STEP = 3, 30, 2.0, 1e-9
MOST_STEPS = 100  # for the ease of items outside the fit, which has no further iterations


class Panel(NamedTuple):
    """Rows sorted by item, indexed by item and by annotator, for compiled loops.

    Item i has the rows first_of_item[i] to first_of_item[i + 1]; annotator j has the rows
    order[first_of_annotator[j] : first_of_annotator[j + 1]].
    """

    item: Int64[np.ndarray, " n"]
    annotator: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]
    gold: Int64[np.ndarray, " i"]
    first_of_item: Int64[np.ndarray, " i+1"]
    order: Int64[np.ndarray, " n"]
    first_of_annotator: Int64[np.ndarray, " j+1"]


def fit_glad(rows: Rows, *, max_iter: int = 100, tolerance: float = 1e-6) -> Result:
    """Fit GLAD: label probabilities at a mode of abilities and ease, starting from the prior means.

    Converged when an iteration gains less than `tolerance` per item. objective: the log posterior, with
    constants. parameters: ability (j), log_ease (i). Annotators and items without rows stay at the prior
    mean, and such an item has uniform probabilities. With one class there is nothing to infer: all
    probabilities are 1 and there is no objective.
    """
    panel = make_panel(rows)
    ability, log_ease = np.full(rows.num_annotators, PRIOR_MEAN), np.full(rows.num_items, PRIOR_MEAN)
    probabilities = np.ones((rows.num_items, rows.num_classes))
    history: list[float] = []
    converged = rows.num_classes == 1
    if not converged:
        update_ease(panel, ability, 0, log_ease, probabilities)  # no steps: the E step only
    while not converged and len(history) < max_iter:
        before = ability, log_ease, probabilities
        ability, log_ease, probabilities = (values.copy() for values in before)
        update_abilities(panel, log_ease, probabilities, ability)
        value = update_ease(panel, ability, NEWTON_STEPS, log_ease, probabilities)
        value -= ((ability - PRIOR_MEAN) ** 2).sum() / 2 + HALF_LOG_TWO_PI * (ability.size + log_ease.size)
        gain = value - history[-1] if history else math.inf
        converged = bool(gain < tolerance * rows.num_items)
        if gain < 0:  # rounding: both blocks increase the objective
            ability, log_ease, probabilities = before
            break
        history.append(float(value))
    return Result(probabilities, np.array(history), converged, {"ability": ability, "log_ease": log_ease})


def new_items_glad(rows: Rows, parameters: dict[str, np.ndarray]) -> Float64[np.ndarray, "i k"]:
    """Label probabilities of items outside the fit, with the fitted abilities and ease at its mode given
    them, as for items of the fit.

    The search starts at the prior mean. An item without rows stays there and has uniform probabilities.
    """
    probabilities = np.ones((rows.num_items, rows.num_classes))
    if rows.num_classes > 1:
        update_ease(
            make_panel(rows),
            parameters["ability"],
            MOST_STEPS,
            np.full(rows.num_items, PRIOR_MEAN),
            probabilities,
        )
    return probabilities


def make_panel(rows: Rows) -> Panel:
    """Sort the rows by item, annotator, label and weight, so that results do not depend on their order, not
    even in the last digit.
    """
    sort = np.lexsort((rows.weight, rows.label, rows.annotator, rows.item))
    item, annotator, label = (
        np.asarray(codes)[sort].astype(np.int64) for codes in (rows.item, rows.annotator, rows.label)
    )
    weight, gold = np.asarray(rows.weight)[sort].astype(np.float64), np.asarray(rows.gold).astype(np.int64)
    order = np.argsort(annotator, kind="stable")
    first_of_item = np.searchsorted(item, np.arange(rows.num_items + 1))
    first_of_annotator = np.searchsorted(annotator[order], np.arange(rows.num_annotators + 1))
    return Panel(item, annotator, label, weight, gold, first_of_item, order, first_of_annotator)


@compiled
def right_and_log_wrong(t: float) -> tuple[float, float]:
    """Return sigmoid(t) and log(1 - sigmoid(t)), without overflow."""
    small = math.exp(-abs(t))
    return (1 if t >= 0 else small) / (1 + small), -max(t, 0.0) - math.log1p(small)


@compiled
def ability_value(
    j: int,
    ability: float,
    panel: Panel,
    ease: Float64[np.ndarray, " i"],
    probabilities: Float64[np.ndarray, "i k"],
) -> tuple[float, float, float]:
    """Return the expected log posterior of one ability, without constants, and its first two derivatives."""
    distance = ability - PRIOR_MEAN
    value, slope, curvature = -0.5 * distance * distance, -distance, -1.0
    for n in panel.order[panel.first_of_annotator[j] : panel.first_of_annotator[j + 1]]:
        w, e, agreed = (
            float(panel.weight[n]),
            float(ease[panel.item[n]]),
            float(probabilities[panel.item[n], panel.label[n]]),
        )
        right, log_wrong = right_and_log_wrong(ability * e)
        value += w * (agreed * ability * e + log_wrong)
        slope += w * (agreed - right) * e
        curvature -= w * right * (1 - right) * e * e
    return value, slope, curvature


@compiled
def update_abilities(
    panel: Panel,
    log_ease: Float64[np.ndarray, " i"],
    probabilities: Float64[np.ndarray, "i k"],
    ability: Float64[np.ndarray, " j"],
) -> None:
    """Update every ability in place by Newton steps that never lower its expected log posterior."""
    ease = np.exp(log_ease)
    for j in range(ability.size):
        value, slope, curvature = ability_value(j, ability[j], panel, ease, probabilities)
        for _ in range(NEWTON_STEPS):
            step = -slope / curvature
            for _ in range(HALVINGS):
                proposed, new_slope, new_curvature = ability_value(
                    j, ability[j] + step, panel, ease, probabilities
                )
                if proposed >= value:
                    ability[j] += step
                    value, slope, curvature = proposed, new_slope, new_curvature
                    break
                step /= 2
            if abs(step) < SHORTEST_STEP:
                break


@compiled
def ease_value(
    i: int,
    log_ease: float,
    panel: Panel,
    ability: Float64[np.ndarray, " j"],
    q: Float64[np.ndarray, " k"],
    rate: Float64[np.ndarray, " k"],
) -> tuple[float, float, float]:
    """Return the log posterior of one item's log ease, without the Normal's constant, its slope and a
    negative curvature; write softmax(s) to q.

    Where the second derivative is not below -1/2, the Gauss-Newton curvature replaces it.
    """
    ease, log_others = math.exp(log_ease), math.log(q.size - 1)
    q[:], rate[:] = 0.0, 0.0
    # Terms shared by all classes: the value if every label were wrong, and its derivatives
    wrong, wrong_slope, wrong_curvature = 0.0, 0.0, 0.0
    for n in range(panel.first_of_item[i], panel.first_of_item[i + 1]):
        t, label, w = float(ability[panel.annotator[n]]) * ease, panel.label[n], float(panel.weight[n])
        right, log_wrong = right_and_log_wrong(t)
        wrong += w * (log_wrong - log_others)
        wrong_slope -= w * right * t
        wrong_curvature -= w * right * (1 - right) * t * t
        q[label] += w * (t + log_others)
        rate[label] += w * t
    gold = panel.gold[i]
    top = float(q.max() if gold < 0 else q[gold])
    for k in range(q.size):
        q[k] = math.exp(q[k] - top) if gold < 0 or k == gold else 0.0
    total = float(q.sum())
    mean, square = 0.0, 0.0
    for k in range(q.size):
        q[k] /= total
        mean += q[k] * rate[k]
        square += q[k] * rate[k] * rate[k]
    distance = log_ease - PRIOR_MEAN
    value = wrong + top + math.log(total) - math.log(q.size) - 0.5 * distance * distance
    second = wrong_curvature + wrong_slope + mean + square - mean * mean - 1
    return value, wrong_slope + mean - distance, second if second < -0.5 else wrong_curvature - 1


@compiled
def update_ease(
    panel: Panel,
    ability: Float64[np.ndarray, " j"],
    steps: int,
    log_ease: Float64[np.ndarray, " i"],
    q: Float64[np.ndarray, "i k"],
) -> float:
    """Update every item's ease in place by Newton steps, then its label probabilities; return the sum of the
    items' log posteriors.
    """
    rate, total = np.empty(q.shape[1]), 0.0
    for i in range(log_ease.size):
        value, slope, curvature = ease_value(i, log_ease[i], panel, ability, q[i], rate)
        for _ in range(steps):
            step = min(max(-slope / curvature, -LONGEST_STEP), LONGEST_STEP)
            for _ in range(HALVINGS):
                proposed, new_slope, new_curvature = ease_value(
                    i, log_ease[i] + step, panel, ability, q[i], rate
                )
                if proposed >= value:
                    log_ease[i] += step
                    value, slope, curvature = proposed, new_slope, new_curvature
                    break
                step /= 2
            if abs(step) < SHORTEST_STEP:
                break
        total += ease_value(i, log_ease[i], panel, ability, q[i], rate)[0]
    return total

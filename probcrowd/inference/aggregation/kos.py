r"""KOS: message passing between items and annotators, for two classes (Karger, Oh and Shah, 2011).

    A_ij = sum of w_n over the labels of class 1 that annotator j gave item i, minus those of class 0
    x_{i -> j} = sum_{j' != j} A_ij' y_{j' -> i}    evidence for class 1 in the labels of the others
    y_{j -> i} = sum_{i' != i} A_i'j x_{i' -> j}        reliability of annotator j on the other items
    start: y ~ Normal(1, 1)                         decision: class 1 if score_i = sum_j A_ij y_{j -> i} > 0

This is the power method over the pairs (i, j), so messages are rescaled to root mean square 1 every round,
separately in each connected component of items and annotators. The gold label of an item fixes x_{i -> j} at
-1 or 1. Where messages vanish, as in a component without cycles or gold, all annotators count alike (y = 1,
the mean of the start), which is a majority vote.

KOS gives decisions, not probabilities. The scale of the messages y is arbitrary. c = sum_i |score_i| / sum_ij
|A_ij| y_{j -> i}^2 makes c y the best linear prediction of whether a label agrees with the decision (1) or
not (-1), and so of 2 p - 1 for an annotator who is right with probability p. The log odds of p are
2 artanh(2 p - 1), which is 2 c y to first order, and those of independent labels add up:

    p(class 1) = sigmoid(2 c score_i)

This is monotone in the score, so the more probable class is the decision. Time per round grows with n, memory
with n times the number of starts.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from probcrowd.compute.compiled import compiled
from probcrowd.data.rows import Rows
from probcrowd.inference.aggregation.result import Result

SETTLED = 1e-6  # largest change of a message; their root mean square is 1


def fit_kos(rows: Rows, *, seed: int = 0, restarts: int = 10, max_iter: int = 100) -> Result:
    """Fit KOS from several random starts and average their messages.

    Converged when the messages of every start settle within `max_iter` rounds. There is no objective.
    parameters: score (i), the mean of score_i; annotator_log_odds (j), 2 c times the message of annotator j
    to an item outside the fit, 0 for an annotator without rows. Items without rows, and ties, have
    probability one half for each class. An item with gold is certain.

    Raises:
        ValueError: more or fewer than two classes, or no start.
    """
    if restarts < 1:
        raise ValueError(f"KOS needs at least one start, not restarts={restarts}")
    item, annotator, vote = _votes(rows)
    gold = np.asarray(rows.gold)
    edges = coo_array(
        (np.ones(item.size), (item, rows.num_items + annotator)),
        shape=[rows.num_items + rows.num_annotators] * 2,
    )
    # The connected component of each item, then of each annotator
    part = connected_components(edges, directed=False)[1].astype(np.int64)
    generator = np.random.default_rng(seed)
    runs = [
        _messages(
            item,
            annotator,
            vote,
            gold,
            part[item],
            generator.normal(1, 1, item.size),
            rows.num_annotators,
            max_iter,
        )
        for _ in range(restarts)
    ]
    message, reliability = (
        np.mean([run[0] for run in runs], axis=0),
        np.mean([run[1] for run in runs], axis=0),
    )
    score = _sums(item, vote * message, rows.num_items)
    squares = _sums(part[item], np.abs(vote) * message**2, part.size)
    per_part = _sums(part[: rows.num_items], np.abs(score), part.size)
    scale = 2 * np.divide(per_part, squares, out=np.zeros(part.size), where=squares > 0)  # 2 c
    log_odds = scale[part[rows.num_items :]] * reliability
    probabilities = _probabilities(scale[part[: rows.num_items]] * score, gold)
    return Result(
        probabilities,
        np.empty(0),
        all(run[2] for run in runs),
        {"score": score, "annotator_log_odds": log_odds},
    )


def new_items_kos(rows: Rows, parameters: dict[str, np.ndarray]) -> Float64[np.ndarray, "i k"]:
    """Label probabilities of items outside the fit, from the sum of their annotators' messages, which come
    from the items of the fit.
    """
    item, annotator, vote = _votes(rows)
    return _probabilities(
        _sums(item, vote * parameters["annotator_log_odds"][annotator], rows.num_items), np.asarray(rows.gold)
    )


def _votes(rows: Rows) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return the pairs (i, j), sorted by i, then j, and A_ij; pairs whose labels cancel are left out."""
    if rows.num_classes != 2:
        raise ValueError(
            f"KOS needs exactly two classes, the table has {rows.num_classes}: choose another aggregator"
        )
    codes = np.asarray(rows.item).astype(np.int64) * rows.num_annotators + np.asarray(rows.annotator)
    pairs, position = np.unique(codes, return_inverse=True)
    vote = _sums(position, np.asarray(rows.weight) * (2.0 * np.asarray(rows.label) - 1), pairs.size)
    pairs, vote = pairs[vote != 0], vote[vote != 0]
    return pairs // rows.num_annotators, pairs % rows.num_annotators, vote


def _sums(
    codes: Int64[np.ndarray, " n"], values: Float64[np.ndarray, " n"], number: int
) -> Float64[np.ndarray, " number"]:
    return np.bincount(codes, values, number).astype(np.float64)  # integers without values


def _messages(
    item: Int64[np.ndarray, " n"],
    annotator: Int64[np.ndarray, " n"],
    vote: Float64[np.ndarray, " n"],
    gold: Int64[np.ndarray, " i"],
    part: Int64[np.ndarray, " n"],
    message: Float64[np.ndarray, " n"],
    num_annotators: int,
    max_iter: int,
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " j"], bool]:
    """Return the messages y of every pair, the reliability of each annotator over all items, and whether the
    messages have settled.
    """
    by_item, by_annotator = np.arange(item.size), np.argsort(annotator, kind="stable")
    known, fixed = gold[item] >= 0, 2.0 * gold[item] - 1
    alive, own, settled = np.ones(part.max(initial=-1) + 1, dtype=bool), np.zeros(item.size), False
    for _ in range(max_iter):
        x = sums_of_others(item, by_item, vote * message)
        x = np.where(known, fixed, x / _size(x, part, ~known)[part])
        y = sums_of_others(annotator, by_annotator, vote * x)
        # An exact comparison: where messages vanish, the sums are over zeros
        alive &= np.bincount(part, y != 0, alive.size) > 0
        size = _size(y, part, np.ones(part.size, dtype=bool))[part]
        before, message = message, np.where(alive[part], y / size, 1.0)
        own = np.where(alive[part], vote * x / size, 0.0)
        settled = bool(np.abs(message - before).max(initial=0.0) < SETTLED)
        if settled:
            break
    reliability = np.zeros(num_annotators)
    reliability[annotator] = message + own  # the same for all pairs of an annotator
    return message, reliability, settled


def _size(
    message: Float64[np.ndarray, " n"], part: Int64[np.ndarray, " n"], counted: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, " p"]:
    """Return the root mean square of the counted messages of each component; 1 where all are 0."""
    number = np.maximum(np.bincount(part, counted), 1)
    size = np.sqrt(np.bincount(part, counted * message**2) / number)
    return np.where(size > 0, size, 1.0)


def _probabilities(
    log_odds: Float64[np.ndarray, " i"], gold: Int64[np.ndarray, " i"]
) -> Float64[np.ndarray, "i 2"]:
    """Return probabilities of class 0 and class 1; certain where gold is known."""
    free = np.stack([expit(-log_odds), expit(log_odds)], axis=1)
    return np.where(gold[:, None] < 0, free, gold[:, None] == np.arange(2))


@compiled
def sums_of_others(
    group: Int64[np.ndarray, " n"], order: Int64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Sum the other values in each value's group; `order` lists group after group.

    Sums run from both ends instead of subtracting from a total, so that an empty sum is exactly 0 and
    rounding errors do not grow from round to round.
    """
    sums, running = np.zeros(values.size), 0.0
    for at in range(values.size):
        n = order[at]
        if at > 0 and group[n] != group[order[at - 1]]:
            running = 0.0
        sums[n] += running
        running += values[n]
    running = 0.0
    for at in range(values.size - 1, -1, -1):
        n = order[at]
        if at + 1 < values.size and group[n] != group[order[at + 1]]:
            running = 0.0
        sums[n] += running
        running += values[n]
    return sums

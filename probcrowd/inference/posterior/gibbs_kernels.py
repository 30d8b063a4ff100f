r"""One sweep of blocked Gibbs, compiled. `gibbs` documents the models and calls `advance`.

The state between sweeps holds what the parameters are conjugate to, never the true classes themselves: from
    truth z (i),

    class_count[k] = #{i: z_i = k}
    counts[jl, k] = sum over rows n of cell jl of weight[n] [z_(item of n) = k]
    centre[k] = sum of x_i with z_i = k

A cell jl is a confusion matrix (of an annotator; 0 where all share one) and a label. The log table has the
layout of `counts`, so that the K numbers of an annotation are adjacent. A sweep draws

    parameters | z   see `gibbs_parameters`
    z | parameters   s_ik = log class_prior[k] - |x_i - prototype_k|^2 / 2 + sum of weight log table[cell, k],
                     z_i ~ softmax(s_i)

so the probabilities that z_i is drawn from, and their normaliser, belong to the parameters of the same sweep.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64
from numpy.random import Generator

from probcrowd.compute.compiled import compiled, inlined
from probcrowd.inference.posterior.gibbs_parameters import draw_parameters
from probcrowd.inference.posterior.gibbs_state import Retained, State, Table
from probcrowd.models.gibbs_blocks import GibbsBlocks

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@compiled
def reset(state: State) -> None:
    """Set the counts to 0."""
    for k in range(state.class_count.size):
        state.class_count[k] = 0
        for label in range(state.agreement.shape[1]):
            state.agreement[k, label] = 0
        for d in range(state.centre.shape[1]):
            state.centre[k, d] = 0
    for cell in range(state.counts.shape[0]):
        for k in range(state.counts.shape[1]):
            state.counts[cell, k] = 0


@inlined
def count(i: int, truth: int, table: Table, state: State) -> None:
    """Add item i, with that true class, to the counts."""
    state.class_count[truth] += 1
    for n in range(table.first[i], table.first[i + 1]):
        state.counts[table.cell[n], truth] += table.weight[n]
    for d in range(table.embedding.shape[1]):
        state.centre[truth, d] += table.embedding[i, d]


@compiled
def count_all(truth: Int64[np.ndarray, " i"], table: Table, state: State) -> None:
    """Count the initial true classes."""
    for i in range(truth.size):
        count(i, truth[i], table, state)


@inlined
def score_item(i: int, table: Table, state: State) -> None:
    """Set score[k] = log p(truth k, rows and features of item i | parameters)."""
    score, log_table = state.score, state.log_table
    num_classes, dimension = state.prototype.shape
    for k in range(num_classes):
        distance = 0.0
        for d in range(dimension):
            distance += (table.embedding[i, d] - state.prototype[k, d]) ** 2
        score[k] = state.log_class[k] - 0.5 * distance - dimension * HALF_LOG_TWO_PI
    for n in range(table.first[i], table.first[i + 1]):
        cell, weight = table.cell[n], table.weight[n]
        for k in range(num_classes):
            score[k] += weight * log_table[cell, k]


@compiled
def draw_truth(
    table: Table,
    state: State,
    total_probability: Float64[np.ndarray, "i k"],
    add: bool,
    agree: bool,
    rng: Generator,
) -> float:
    """Draw true classes, replace the counts by theirs, and return log p(data | parameters).

    add: add p_i = p(truth of i | data, parameters) to `total_probability`. agree: set agreement = sum over i
        of p_i share_i'.
    """
    score, num_classes = state.score, state.score.size
    reset(state)
    log_likelihood = 0.0
    for i in range(table.gold.size):
        score_item(i, table, state)
        truth, total = table.gold[i], 1.0
        if truth >= 0:
            log_likelihood += score[truth]
            for k in range(num_classes):
                score[k] = k == truth
        else:
            top = score[0]
            for k in range(1, num_classes):
                top = max(top, score[k])
            total = 0.0
            for k in range(num_classes):
                score[k] = math.exp(score[k] - top)
                total += score[k]
            log_likelihood += top + math.log(total)
            left = rng.random() * total - score[0]
            truth = 0
            while left >= 0 and truth < num_classes - 1:
                truth += 1
                left -= score[truth]
        count(i, truth, table, state)
        if add:
            for k in range(num_classes):
                total_probability[i, k] += score[k] / total
        if agree:
            for k in range(num_classes):
                for label in range(num_classes):
                    state.agreement[k, label] += score[k] / total * table.share[i, label]
    return float(log_likelihood)


@compiled
def store(draw: int, state: State, retained: Retained) -> None:
    """Store the parameters of a draw."""
    tables, num_classes, num_labels = retained.log_rows.shape[1:]
    for k in range(num_classes):
        retained.log_class[draw, k] = state.log_class[k]
        for label in range(num_labels):
            retained.agreement[draw, k, label] = state.agreement[k, label]
            for j in range(tables):
                retained.log_rows[draw, j, k, label] = state.log_table[j * num_labels + label, k]
        for d in range(state.prototype.shape[1]):
            retained.prototype[draw, k, d] = state.prototype[k, d]
    for j in range(state.log_coin.shape[0]):
        retained.log_coin[draw, j, 0], retained.log_coin[draw, j, 1] = (
            state.log_coin[j, 0],
            state.log_coin[j, 1],
        )
    for j in range(state.log_spam.shape[0]):
        for label in range(num_labels):
            retained.log_spam[draw, j, label] = state.log_spam[j, label]


@compiled
def advance(
    first: int,
    last: int,
    warmup: int,
    thin: int,
    table: Table,
    blocks: GibbsBlocks,
    state: State,
    retained: Retained,
    rng: Generator,
) -> None:
    """Sweeps first .. last - 1 of a chain, of which every thin-th after the warm-up is retained."""
    for sweep in range(first, last):
        draw, rest = divmod(sweep - warmup + 1, thin)
        stores = sweep >= warmup and rest == 0
        draw_parameters(blocks, state, rng)
        log_likelihood = draw_truth(table, state, retained.total_probability, sweep >= warmup, stores, rng)
        if stores:
            store(draw - 1, state, retained)
            retained.log_likelihood[draw - 1] = log_likelihood

r"""One sweep of blocked Gibbs, compiled. `probcrowd.inference.posterior.gibbs` says what the models are and calls `advance`.

The state between sweeps is what the parameters are conjugate to, never the labels themselves: from truth z (i),

    class_count[k] = #{i: z_i = k}     said[jl, k] = sum over rows n of cell jl of weight[n] [z_(item of n) = k]     centre[k] = sum of x_i with z_i = k

A cell jl is a pair of a confusion table (an annotator; or 0, shared by all) and a label. The log table has the layout of `said`, so that the K
numbers of an annotation lie side by side. A sweep is

    parameters | z   class_prior ~ Dirichlet(a + class_count),  rows ~ Dirichlet(c[j, k, :] + said[j:, k]),  prototype ~ Normal(centre / p, I / p),
                     p = tau + class_count[k];  coins and spammers in their functions below
    z | parameters   s_ik = log class_prior[k] - |x_i - prototype_k|^2 / 2 + sum of weight log table[cell, k],  z_i ~ softmax(s_i)

so the probabilities that z_i was drawn from, and their normaliser, belong to the parameters of the same sweep. Concentrations below 1 give
gammas too small for a number: they are drawn as logarithms, log Gamma(a) = log Gamma(a + 1) + (log U) / a, which are finite.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64
from numpy.random import Generator

from probcrowd.compute.compiled import compiled, inlined
from probcrowd.inference.posterior.gibbs_state import (
    COIN,
    CONFUSION,
    SPAM,
    Concentrations,
    Kept,
    State,
    Table,
)

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@inlined
def log_gamma_draw(shape: float, rng: Generator) -> float:
    """log of a Gamma(shape, 1) variable."""
    if shape > 1:
        return math.log(rng.standard_gamma(shape))
    return math.log(rng.standard_gamma(shape + 1)) - rng.standard_exponential() / shape


@inlined
def normalise(logs: Float64[np.ndarray, " k"]) -> None:
    """logs - logsumexp(logs), in place: with log gammas, the log of a Dirichlet variable."""
    top = logs[0]
    for k in range(1, logs.size):
        top = max(top, logs[k])
    total = 0.0
    for k in range(logs.size):
        total += math.exp(logs[k] - top)
    for k in range(logs.size):
        logs[k] -= top + math.log(total)


@compiled
def draw_confusion(prior: Concentrations, state: State, rng: Generator) -> None:
    """Confusion rows given the counts."""
    tables, num_classes, num_labels = prior.rows.shape
    for j in range(tables):
        cells = slice(j * num_labels, (j + 1) * num_labels)
        for k in range(num_classes):
            for label in range(num_labels):
                cell = j * num_labels + label
                state.log_table[cell, k] = log_gamma_draw(prior.rows[j, k, label] + state.said[cell, k], rng)
            normalise(state.log_table[cells, k])


@compiled
def draw_coins(prior: Concentrations, state: State, rng: Generator) -> None:
    """accuracy[j] ~ Beta(right + how often right, wrong + how often wrong)."""
    num_classes = state.log_class.size
    spread = math.log(max(num_classes - 1, 1))
    for j in range(state.log_coin.shape[0]):
        coin = state.log_coin[j]
        right, wrong = prior.coin
        for label in range(num_classes):
            for k in range(num_classes):
                if k == label:
                    right += state.said[j * num_classes + label, k]
                else:
                    wrong += state.said[j * num_classes + label, k]
        coin[0], coin[1] = log_gamma_draw(right, rng), log_gamma_draw(wrong, rng)
        normalise(coin)
        for label in range(num_classes):
            for k in range(num_classes):
                state.log_table[j * num_classes + label, k] = coin[0] if k == label else coin[1] - spread


@compiled
def draw_spammers(prior: Concentrations, state: State, rng: Generator) -> None:
    """Competence and spamming habits, with the number of honest rows drawn in between; exact for weights of any size.

    Rows of annotator j and label l that miss the truth are spam. The others, of weight c in all, have density m_l^c with the mixture
    m_l = t + (1 - t) spam_l. With h of r = round(c) honest, h ~ Binomial(r, t / m_l), t and spam are conjugate but for the factor
    m_l^(c - r), which is 1 for whole weights; otherwise the new pair is accepted with probability min(1, prod_l (m'_l / m_l)^(c - r)).
    """
    num_classes = state.log_class.size
    proposal, pair = state.score, state.pair
    for j in range(state.log_coin.shape[0]):
        coin, spam = state.log_coin[j], state.log_spam[j]
        table = state.log_table[j * num_classes : (j + 1) * num_classes]
        said = state.said[j * num_classes : (j + 1) * num_classes]
        honest, spamming = prior.coin
        for label in range(num_classes):
            spams = round(said[label, label])
            if spams > 0:
                known = rng.binomial(spams, math.exp(coin[0] - log_mixture(coin, spam[label])))
                honest, spams = honest + known, spams - known
            weight = float(spams)
            for k in range(num_classes):
                weight += said[label, k] if k != label else 0.0
            spamming += weight
            proposal[label] = log_gamma_draw(prior.answers + weight, rng)
        pair[0], pair[1] = log_gamma_draw(honest, rng), log_gamma_draw(spamming, rng)
        normalise(pair)
        normalise(proposal)
        log_ratio = 0.0
        for label in range(num_classes):
            rest = said[label, label] - round(said[label, label])
            if rest != 0:
                log_ratio += rest * (log_mixture(pair, proposal[label]) - log_mixture(coin, spam[label]))
        if log_ratio >= 0 or -rng.standard_exponential() < log_ratio:
            coin[0], coin[1] = pair[0], pair[1]
            for label in range(num_classes):
                spam[label] = proposal[label]
        for label in range(num_classes):
            for k in range(num_classes):
                table[label, k] = log_mixture(coin, spam[label]) if k == label else coin[1] + spam[label]


@compiled
def log_mixture(log_coin: Float64[np.ndarray, " 2"], log_spam: float) -> float:
    """log(t + (1 - t) spam)."""
    honest, guess = log_coin[0], log_coin[1] + log_spam
    return max(honest, guess) + math.log1p(math.exp(-abs(honest - guess)))


@compiled
def draw_parameters(prior: Concentrations, state: State, rng: Generator) -> None:
    """Every parameter given the counts."""
    num_classes, dimension = state.prototype.shape
    if prior.kind != SPAM:
        for k in range(num_classes):
            state.log_class[k] = log_gamma_draw(prior.class_prior[k] + state.class_count[k], rng)
        normalise(state.log_class)
    if prior.kind == CONFUSION:
        draw_confusion(prior, state, rng)
    elif prior.kind == COIN:
        draw_coins(prior, state, rng)
    else:
        draw_spammers(prior, state, rng)
    for k in range(num_classes):
        precision = prior.precision + state.class_count[k]
        for d in range(dimension):
            state.prototype[k, d] = state.centre[k, d] / precision + rng.standard_normal() / math.sqrt(
                precision
            )


@compiled
def forget(state: State) -> None:
    """Set the counts to 0."""
    for k in range(state.class_count.size):
        state.class_count[k] = 0
        for label in range(state.agreement.shape[1]):
            state.agreement[k, label] = 0
        for d in range(state.centre.shape[1]):
            state.centre[k, d] = 0
    for cell in range(state.said.shape[0]):
        for k in range(state.said.shape[1]):
            state.said[cell, k] = 0


@inlined
def count(i: int, truth: int, table: Table, state: State) -> None:
    """Add item i, of that class, to the counts."""
    state.class_count[truth] += 1
    for n in range(table.first[i], table.first[i + 1]):
        state.said[table.cell[n], truth] += table.weight[n]
    for d in range(table.embedding.shape[1]):
        state.centre[truth, d] += table.embedding[i, d]


@compiled
def begin(truth: Int64[np.ndarray, " i"], table: Table, state: State) -> None:
    """Count a first labelling."""
    for i in range(truth.size):
        count(i, truth[i], table, state)


@inlined
def score_item(i: int, table: Table, state: State) -> None:
    """score[k] = log p(truth k, rows and embedding of item i | parameters)."""
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
    """log p(data | parameters). Replaces the counts by those of a new labelling.

    Where asked to, it adds p_i = p(truth of i | data, parameters) to a total, and makes agreement = sum over i of p_i share_i'.
    """
    score, num_classes = state.score, state.score.size
    forget(state)
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
def keep(draw: int, state: State, kept: Kept) -> None:
    """Write the parameters down."""
    tables, num_classes, num_labels = kept.log_rows.shape[1:]
    for k in range(num_classes):
        kept.log_class[draw, k] = state.log_class[k]
        for label in range(num_labels):
            kept.agreement[draw, k, label] = state.agreement[k, label]
            for j in range(tables):
                kept.log_rows[draw, j, k, label] = state.log_table[j * num_labels + label, k]
        for d in range(state.prototype.shape[1]):
            kept.prototype[draw, k, d] = state.prototype[k, d]
    for j in range(state.log_coin.shape[0]):
        kept.log_coin[draw, j, 0], kept.log_coin[draw, j, 1] = state.log_coin[j, 0], state.log_coin[j, 1]
    for j in range(state.log_spam.shape[0]):
        for label in range(num_labels):
            kept.log_spam[draw, j, label] = state.log_spam[j, label]


@compiled
def advance(
    first: int,
    last: int,
    warmup: int,
    thin: int,
    table: Table,
    prior: Concentrations,
    state: State,
    kept: Kept,
    rng: Generator,
) -> None:
    """Sweeps first .. last - 1 of a chain, of which every thin-th after the warm-up is kept."""
    for sweep in range(first, last):
        draw, rest = divmod(sweep - warmup + 1, thin)
        keeps = sweep >= warmup and rest == 0
        draw_parameters(prior, state, rng)
        log_likelihood = draw_truth(table, state, kept.total_probability, sweep >= warmup, keeps, rng)
        if keeps:
            keep(draw - 1, state, kept)
            kept.log_likelihood[draw - 1] = log_likelihood

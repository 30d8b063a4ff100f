r"""Parameters given the counts of true classes, compiled: the first half of a sweep of `gibbs_kernels`.

    class_prior ~ Dirichlet(a + class_count),  confusion rows ~ Dirichlet(c[j, k, :] + counts[j:, k]),
    prototype ~ Normal(centre / p, I / p), p = tau + class_count[k];  coins and spammers in their functions
    below

Concentrations below 1 give gammas that underflow: they are drawn as logarithms, log Gamma(a) = log Gamma(a +
    1) + (log U) / a.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from numpy.random import Generator

from probcrowd.compute.compiled import compiled, inlined
from probcrowd.inference.posterior.gibbs_state import State
from probcrowd.models.gibbs_blocks import COIN, CONFUSION, SPAM, GibbsBlocks


@inlined
def log_gamma_draw(shape: float, rng: Generator) -> float:
    """Draw the log of a Gamma(shape, 1) variable."""
    if shape > 1:
        return math.log(rng.standard_gamma(shape))
    return math.log(rng.standard_gamma(shape + 1)) - rng.standard_exponential() / shape


@inlined
def normalise(logs: Float64[np.ndarray, " k"]) -> None:
    """Subtract logsumexp(logs) in place: log gammas become the log of a Dirichlet variable."""
    top = logs[0]
    for k in range(1, logs.size):
        top = max(top, logs[k])
    total = 0.0
    for k in range(logs.size):
        total += math.exp(logs[k] - top)
    for k in range(logs.size):
        logs[k] -= top + math.log(total)


@compiled
def draw_confusion(prior: GibbsBlocks, state: State, rng: Generator) -> None:
    """Draw confusion rows given the counts."""
    tables, num_classes, num_labels = prior.rows.shape
    for j in range(tables):
        cells = slice(j * num_labels, (j + 1) * num_labels)
        for k in range(num_classes):
            for label in range(num_labels):
                cell = j * num_labels + label
                state.log_table[cell, k] = log_gamma_draw(
                    prior.rows[j, k, label] + state.counts[cell, k], rng
                )
            normalise(state.log_table[cells, k])


@compiled
def draw_coins(prior: GibbsBlocks, state: State, rng: Generator) -> None:
    """Draw accuracy[j] ~ Beta(right + weight of right labels, wrong + weight of wrong labels)."""
    num_classes = state.log_class.size
    spread = math.log(max(num_classes - 1, 1))
    for j in range(state.log_coin.shape[0]):
        coin = state.log_coin[j]
        right, wrong = prior.coin
        for label in range(num_classes):
            for k in range(num_classes):
                if k == label:
                    right += state.counts[j * num_classes + label, k]
                else:
                    wrong += state.counts[j * num_classes + label, k]
        coin[0], coin[1] = log_gamma_draw(right, rng), log_gamma_draw(wrong, rng)
        normalise(coin)
        for label in range(num_classes):
            for k in range(num_classes):
                state.log_table[j * num_classes + label, k] = coin[0] if k == label else coin[1] - spread


@compiled
def draw_spammers(prior: GibbsBlocks, state: State, rng: Generator) -> None:
    """Draw competence and spamming habits, after the number of honest rows; exact for weights of any size.

    Rows of annotator j and label l that miss the truth are spam. The others, of weight c in all, have density
    m_l^c with the mixture m_l = t + (1 - t) spam_l. With h of r = round(c) honest, h ~ Binomial(r, t / m_l),
    t and spam are conjugate but for the factor m_l^(c - r), which is 1 for whole weights; otherwise the new
    pair is accepted with probability min(1, prod_l (m'_l / m_l)^(c - r)).
    """
    num_classes = state.log_class.size
    proposal, pair = state.score, state.pair
    for j in range(state.log_coin.shape[0]):
        coin, spam = state.log_coin[j], state.log_spam[j]
        table = state.log_table[j * num_classes : (j + 1) * num_classes]
        counts = state.counts[j * num_classes : (j + 1) * num_classes]
        honest, spamming = prior.coin
        for label in range(num_classes):
            spams = round(counts[label, label])
            if spams > 0:
                known = rng.binomial(spams, math.exp(coin[0] - log_mixture(coin, spam[label])))
                honest, spams = honest + known, spams - known
            weight = float(spams)
            for k in range(num_classes):
                weight += counts[label, k] if k != label else 0.0
            spamming += weight
            proposal[label] = log_gamma_draw(prior.answers + weight, rng)
        pair[0], pair[1] = log_gamma_draw(honest, rng), log_gamma_draw(spamming, rng)
        normalise(pair)
        normalise(proposal)
        log_ratio = 0.0
        for label in range(num_classes):
            rest = counts[label, label] - round(counts[label, label])
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
    """Return log(t + (1 - t) spam)."""
    honest, guess = log_coin[0], log_coin[1] + log_spam
    return max(honest, guess) + math.log1p(math.exp(-abs(honest - guess)))


@compiled
def draw_parameters(prior: GibbsBlocks, state: State, rng: Generator) -> None:
    """Draw every parameter given the counts."""
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

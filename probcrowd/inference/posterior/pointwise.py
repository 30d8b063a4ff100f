"""Terms by item and by annotation of posterior draws: log likelihoods, leave-one-out terms, replicated
labels.

    log p(rows of item i)                            the true class summed out
    log p(label n | the item's other rows)           the same, minus itself without row n

Effects of items (`Model.item_effect`, standard normal) are integrated out too, at 128 quasi-random points e
that all items share (512 with more than 4 logits; the error is then about 0.01 to 0.1 per item for standard
deviations of 1 to 2): p(rows of i) = mean over e of p(rows of i | e). Conditional on the drawn effects, the
terms would measure how well an item's own effect fits the item, which is not what leaving the item out means.

Draws are thinned evenly until draws x (items + annotations) numbers fit into `memory` bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int
from scipy.stats import norm, qmc
from tqdm import tqdm

from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.density import Target
from probcrowd.models.aggregation.observed_numpyro import AnnotatedItems
from probcrowd.models.model import Sites


@dataclass(frozen=True)
class Pointwise:
    """Log likelihoods by item and by annotation, log prior densities and replicated data of the draws at
    positions `draw` of each chain.

    `replicated` are labels of the same rows for new items, with new item effects: their true classes,
    `replicated_truth`, are gold classes or drawn from the class prior (given the features).
    `replicated_votes` are their `most_votes`. truth: classes of the observed items, drawn from p(truth |
    rows).
    responsibilities: p(truth = k | rows of i), averaged over these draws of each chain.
    """

    draw: Int[np.ndarray, " s"]
    log_likelihood: Float[np.ndarray, "c s i"]
    leave_one_out: Float[np.ndarray, "c s n"]
    log_prior: dict[str, Float[np.ndarray, "c s"]]
    replicated: Int[np.ndarray, "c s n"]
    replicated_votes: Int[np.ndarray, "c s i"]
    replicated_truth: Int[np.ndarray, "c s i"]
    truth: Int[np.ndarray, "c s i"]
    responsibilities: Float[np.ndarray, "c i k"]


def pointwise(
    target: Target,
    samples: Sites,
    permutation: Int[np.ndarray, "c s k"],
    data: tuple[Any, ...],
    seed: int,
    *,
    memory: int = 2**27,
    progress: bool = False,
) -> Pointwise:
    """Return the terms of draws (c, s, ...); `permutation` puts the classes of each draw in the order of the
    labels.
    """
    rows = data[-1]
    chains, draws = next(iter(samples.values())).shape[:2]
    draw = thinned(chains, draws, 2 * (rows.num_items + len(rows.item)) * 8, memory)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), (chains, len(draw)))
    parts: list[Any] = []
    for chain in tqdm(range(chains), desc="pointwise terms", unit="chain", disable=not progress):
        sites = {name: jnp.asarray(samples[name][chain, draw], rows.weight.dtype) for name in target.latent}
        parts.append(
            jax.tree.map(
                np.asarray,
                _one_chain(target)(keys[chain], sites, jnp.asarray(permutation[chain, draw]), data),
            )
        )
    return Pointwise(draw, *jax.tree.map(lambda *values: np.stack(values), *parts))


def thinned(chains: int, draws: int, size: int, memory: int) -> Int[np.ndarray, " s"]:
    """Return evenly spaced positions of draws, so that `size` bytes for each draw of each chain fit into
    `memory`; at least 10.
    """
    number = min(draws, max(10, memory // (chains * size)))
    return np.unique(np.linspace(0, draws - 1, number).round().astype(int))


def prior_predictive(
    target: Target, data: tuple[Any, ...], seed: int, draws: int
) -> tuple[Sites, Int[np.ndarray, "s n"]]:
    """Draw sites from the prior, and labels of the same rows from them."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return jax.tree.map(np.asarray, _from_prior(target)(keys, data))


@lru_cache(maxsize=16)
def _from_prior(target: Target) -> Callable[..., Any]:
    def one(key: Array, data: tuple[Any, ...]) -> tuple[Sites, Array]:
        for_sites, for_labels = jax.random.split(key)
        sites = target.prior_draw(for_sites, data)
        items, _ = target.items(sites, data)
        return sites, _replicate(items, for_labels)[0].astype(jnp.int16)

    return jax.jit(lambda keys, data: jax.lax.map(lambda key: one(key, data), keys))


@lru_cache(maxsize=16)
def _one_chain(target: Target) -> Callable[..., Any]:
    effect = target.model.item_effect

    def chain(keys: Array, draws: Sites, permutation: Int[Array, "s k"], data: tuple[Any, ...]) -> Any:
        rows = data[-1]

        def draw(total: Array, each: tuple[Array, Sites, Array]) -> Any:
            key, sites, order = each
            items, priors = target.items(sites, data)
            scores, row_scores = _joint_scores(target, sites, data)
            item = jax.nn.logsumexp(scores, 1)
            without = jax.nn.logsumexp(scores[rows.item] - rows.weight[:, None] * row_scores, 1)
            for_effects, for_labels, for_truth = jax.random.split(key, 3)
            new_items = items
            if effect is not None:
                values = jax.random.normal(for_effects, sites[effect].shape, sites[effect].dtype)
                new_items, _ = target.items(sites | {effect: values}, data)
            labels, new = _replicate(new_items, for_labels)
            truth = jax.random.categorical(for_truth, items.log_truth())
            # The permutation renames true classes; labels keep their names
            codes = (labels, most_votes(rows, labels), jnp.argsort(order)[new], jnp.argsort(order)[truth])
            return total + jnp.exp(items.log_truth())[:, order], (
                item,
                item[rows.item] - without,
                priors,
                *(code.astype(jnp.int16) for code in codes),
            )

        start = jnp.zeros((rows.num_items, rows.num_classes), rows.weight.dtype)
        total, terms = jax.lax.scan(draw, start, (keys, draws, permutation))
        return (*terms, total / len(keys))

    return jax.jit(chain)


def _joint_scores(
    target: Target, sites: Sites, data: tuple[Any, ...]
) -> tuple[Float[Array, "i m"], Float[Array, "n m"]]:
    """Return log p(truth k, rows of i), -inf for impossible classes, and log p(row n | truth k); with item
    effects, a column per point and class.
    """
    effect = target.model.item_effect
    if effect is None:
        items, _ = target.items(sites, data)
        return items.possible_scores(), items.row_scores()
    offset = sites[effect]
    number = 128 if offset.shape[1] <= 4 else 512  # Sobol points come in powers of 2
    sobol = qmc.Sobol(offset.shape[1], scramble=True, rng=np.random.default_rng(0)).random(number)
    points = jnp.asarray(norm.ppf(sobol), offset.dtype)

    def at(point: Array) -> tuple[Array, Array]:
        items, _ = target.items(sites | {effect: jnp.broadcast_to(point, offset.shape)}, data)
        return items.possible_scores() - math.log(number), items.row_scores()

    scores, row_scores = jax.vmap(at, out_axes=1)(points)  # (i, m, k), (n, m, k)
    return scores.reshape(len(scores), -1), row_scores.reshape(len(row_scores), -1)


def most_votes(rows: Rows, labels: Int[Array, " n"]) -> Int[Array, " i"]:
    """Return how many labels of each item are its most frequent label; weights play no part."""
    votes = jax.nn.one_hot(labels, rows.num_classes, dtype=jnp.int32)
    return jax.ops.segment_sum(votes, rows.item, rows.num_items).max(1)


def _replicate(items: AnnotatedItems, key: Array) -> tuple[Int[Array, " n"], Int[Array, " i"]]:
    for_truth, for_labels = jax.random.split(key)
    truth = jnp.where(items.rows.gold >= 0, items.rows.gold, items.draw_truth(for_truth))
    return items.draw_labels(for_labels, truth), truth

"""What posterior draws say item by item and annotation by annotation: likelihoods, leave-one-out terms, replicated labels.

    log p(rows of item i)                            the true class summed out
    log p(label n | the item's other rows)           the same, minus itself without row n

A model with effects of items (`item_offset`, standard normal) has them integrated out as well, at 128 quasi-random points e that all items
share (512 with more than 4 logits; the error is then about 0.01 to 0.1 per item for standard deviations of 1 to 2): p(rows of i) = mean over e of p(rows of i | e). Given the effects drawn, the terms would tell how well an item's own effect fits it,
which is not what leaving the item out asks.

Nothing here is larger than it is told to be: draws are thinned evenly until draws x (items + annotations) numbers fit into `memory` bytes.
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

from probcrowd.inference.posterior.density import Sites, Target
from probcrowd.models.aggregation.observed_numpyro import AnnotatedItems


@dataclass(frozen=True)
class Pointwise:
    """Of the draws `kept` (positions in a chain): log likelihoods by item and by annotation, log prior densities, replicated data.

    `replicated` are labels of the same rows for new items: their true classes, `replicated_truth`, come from the class prior (and the
    features), except where gold says them; effects of items are drawn anew. truth: classes of the items at hand, drawn from p(truth | rows).
    responsibilities: p(truth = k | rows of i), averaged over these draws of each chain.
    """

    kept: Int[np.ndarray, " s"]
    log_likelihood: Float[np.ndarray, "c s i"]
    leave_one_out: Float[np.ndarray, "c s n"]
    log_prior: dict[str, Float[np.ndarray, "c s"]]
    replicated: Int[np.ndarray, "c s n"]
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
    """The pointwise terms of draws (c, s, ...), whose classes `permutation` puts in the order of the labels."""
    rows = data[-1]
    chains, draws = next(iter(samples.values())).shape[:2]
    kept = thinned(chains, draws, 2 * (rows.num_items + len(rows.item)) * 8, memory)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), (chains, len(kept)))
    parts: list[Any] = []
    for chain in tqdm(range(chains), desc="pointwise terms", unit="chain", disable=not progress):
        sites = {name: jnp.asarray(samples[name][chain, kept], rows.weight.dtype) for name in target.latent}
        parts.append(
            jax.tree.map(
                np.asarray,
                _one_chain(target)(keys[chain], sites, jnp.asarray(permutation[chain, kept]), data),
            )
        )
    return Pointwise(kept, *jax.tree.map(lambda *values: np.stack(values), *parts))


def thinned(chains: int, draws: int, size: int, memory: int) -> Int[np.ndarray, " s"]:
    """Positions of the draws to keep, evenly spread, so that `size` bytes for each draw of each chain fit into `memory`; at least 10."""
    number = min(draws, max(10, memory // (chains * size)))
    return np.unique(np.linspace(0, draws - 1, number).round().astype(int))


def prior_predictive(
    target: Target, data: tuple[Any, ...], seed: int, draws: int
) -> tuple[Sites, Int[np.ndarray, "s n"]]:
    """Sites drawn from the prior, and the labels that they would give to the rows at hand."""

    keys = jax.random.split(jax.random.key(seed), draws)
    return jax.tree.map(np.asarray, _from_prior(target)(keys, data))


@lru_cache(maxsize=16)
def _from_prior(target: Target) -> Callable[..., Any]:
    def one(key: Array, data: tuple[Any, ...]) -> tuple[Sites, Array]:
        for_sites, for_labels = jax.random.split(key)
        sites = target.prior_draw(for_sites, data)
        items, _ = target.items({name: sites[name] for name in target.latent}, data)
        return sites, _replicate(items, for_labels)[0].astype(jnp.int16)

    return jax.jit(lambda keys, data: jax.lax.map(lambda key: one(key, data), keys))


@lru_cache(maxsize=16)
def _one_chain(target: Target) -> Callable[..., Any]:
    def chain(keys: Array, draws: Sites, permutation: Int[Array, "s k"], data: tuple[Any, ...]) -> Any:
        rows = data[-1]

        def draw(total: Array, each: tuple[Array, Sites, Array]) -> Any:
            key, sites, order = each
            items, priors = target.items(sites, data)
            scores, row_scores = _joint_scores(target, sites, data)
            item = jax.nn.logsumexp(scores, 1)
            without = jax.nn.logsumexp(scores[rows.item] - rows.weight[:, None] * row_scores, 1)
            for_effects, for_labels, for_truth = jax.random.split(key, 3)
            fresh = sites
            if "item_offset" in target.latent:
                offset = sites["item_offset"]
                fresh = sites | {"item_offset": jax.random.normal(for_effects, offset.shape, offset.dtype)}
            labels, new = _replicate(target.items(fresh, data)[0], for_labels)
            truth = jax.random.categorical(for_truth, items.log_truth())
            # Labels keep their names; true classes take those of the draw's classes
            codes = labels, jnp.argsort(order)[new], jnp.argsort(order)[truth]
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
    """log p(truth k, rows of i) and log p(row n | truth k), impossible classes -inf; with effects of items, a column for each point and class."""
    if "item_offset" not in target.latent:
        items, _ = target.items(sites, data)
        return items.possible_scores(), items.row_scores()
    offset = sites["item_offset"]
    number = 128 if offset.shape[1] <= 4 else 512  # powers of 2, as Sobol's sequence wants
    sobol = qmc.Sobol(offset.shape[1], scramble=True, rng=np.random.default_rng(0)).random(number)
    points = jnp.asarray(norm.ppf(sobol), offset.dtype)

    def at(point: Array) -> tuple[Array, Array]:
        items, _ = target.items(sites | {"item_offset": jnp.broadcast_to(point, offset.shape)}, data)
        return items.possible_scores() - math.log(number), items.row_scores()

    scores, row_scores = jax.vmap(at, out_axes=1)(points)  # (i, m, k), (n, m, k)
    return scores.reshape(len(scores), -1), row_scores.reshape(len(row_scores), -1)


def _replicate(items: AnnotatedItems, key: Array) -> tuple[Int[Array, " n"], Int[Array, " i"]]:
    for_truth, for_labels = jax.random.split(key)
    truth = jnp.where(items.rows.gold >= 0, items.rows.gold, items.draw_truth(for_truth))
    return items.draw_labels(for_labels, truth), truth

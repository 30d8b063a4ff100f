r"""Simulation-based calibration (Talts et al. 2018): is the inference right, and do its intervals cover?

    sites* ~ prior,  labels ~ p(labels | sites*) on a given design,  draws ~ sampler(labels)
    rank = number of the L draws below sites*      uniform on 0 .. L if the sampler is right

The design fixes which annotators label which items. Functionals: every entry of every site, and the log
likelihood of the labels, which depends on data and parameters together. NUTS runs all simulations side by
side in one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array
from jaxtyping import Float, Int
from numpyro.infer.hmc import hmc
from scipy.stats import chisquare
from tqdm import tqdm

from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.density import Target, make_data, make_target
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.initial import voted_sites
from probcrowd.metrics.intervals import LEVELS
from probcrowd.models.catalogue import find_model
from probcrowd.models.model import Model, Sites

Sampler = Callable[[Rows, np.random.Generator], Sites]


@dataclass(frozen=True)
class Calibration:
    """ranks[m, f] of functional f (of `names`) in simulation m among `draws` posterior draws."""

    ranks: Int[np.ndarray, "m f"]
    names: list[str]
    draws: int

    def table(self) -> pd.DataFrame:
        """Return per functional the p-value of uniform ranks (chi-squared, bins of at least 10 simulations,
        at most 20 bins), and the coverage of central intervals by nominal level."""
        simulations = len(self.ranks)
        bins = max(2, min(20, simulations // 10))
        places = np.minimum(self.ranks * bins // (self.draws + 1), bins - 1)
        # Bins need not contain equally many of the integer ranks
        sizes = np.bincount(np.arange(self.draws + 1) * bins // (self.draws + 1), minlength=bins)
        expected = simulations * sizes / (self.draws + 1)
        rows = []
        for column in range(self.ranks.shape[1]):
            counts = np.bincount(places[:, column], minlength=bins)
            row = {"p": float(chisquare(counts, expected).pvalue)}
            for level in LEVELS:
                cut = self._cut(level)
                inside = (self.ranks[:, column] >= cut) & (self.ranks[:, column] <= self.draws - cut)
                row[f"covered_{level:g}"] = float(inside.mean())
            rows.append(row)
        return pd.DataFrame(rows, index=pd.Index(self.names, name="functional"))

    def nominal(self) -> pd.Series:
        """Return the exact coverage of each interval of `table` under uniform ranks."""
        return pd.Series(
            {f"covered_{level:g}": 1 - 2 * self._cut(level) / (self.draws + 1) for level in LEVELS}
        )

    def _cut(self, level: float) -> int:
        """Return how many ranks a central interval excludes at either end, rounded down so that it is no
        narrower than its level.
        """
        return int((1 - level) / 2 * (self.draws + 1) + 1e-9)

    @property
    def p_value(self) -> float:
        """The smallest p-value of the table, times the number of functionals (Bonferroni), at most 1."""
        return min(1.0, self.table()["p"].to_numpy().min() * len(self.names))


def calibrate(
    model: str | Model,
    prior: Any,
    design: Rows,
    *,
    seed: int,
    sampler: Literal["gibbs", "nuts"] | Sampler,
    simulations: int = 200,
    warmup: int = 200,
    draws: int = 99,
    thin: int = 10,
    dimension: int | None = None,
    known: bool = False,
    fitted_prior: Any = None,
    progress: bool = False,
) -> Calibration:
    """Return the ranks of simulated sites among posterior draws.

    Args:
        prior: the model's record, or the name of one.
        design: items, annotators, weights and covariates; its labels and gold are ignored.
        sampler: by name, or a function of rows (with simulated labels) and a generator that returns draws
            (draws, ...) by site.
        dimension: of the simulated features, for models with features.
        known: give the simulated true classes to the sampler as gold, so that the posterior has a closed
            form.
        fitted_prior: another prior for the sampler than the one simulated from: a negative control, which
            must fail.
    """
    model = find_model(model)
    prior = model.prior(design.num_classes, prior)
    fitted_prior = prior if fitted_prior is None else model.prior(design.num_classes, fitted_prior)
    with jax.enable_x64(True):
        rows = replace(design, gold=np.full(design.num_items, -1))
        data = make_data(model, rows, None if dimension is None else np.zeros((rows.num_items, dimension)))
        target, fitted = (make_target(model, each, data) for each in (prior, fitted_prior))
        keys = jax.random.split(jax.random.key(seed), simulations)
        sites, observed = jax.tree.map(np.asarray, _simulate(target, known)(keys, data))
        if sampler == "nuts":
            posterior = _nuts(fitted, observed, data, seed, warmup, draws, thin)
        else:
            posterior = _one_by_one(fitted, rows, observed, seed, sampler, warmup, draws, thin, progress)
        likelihood = _likelihood(fitted)
        at_truth = np.asarray(jax.vmap(likelihood, (0, 0, None))(sites, observed, data))[:, None]
        at_draws = np.asarray(
            jax.vmap(lambda draw, labels: jax.lax.map(lambda one: likelihood(one, labels, data), draw))(
                posterior, observed
            )
        )
    columns, names = [_ranks(at_truth, at_draws[..., None])], ["log_likelihood"]
    for name in target.latent:
        truth, drawn = sites[name].reshape(simulations, -1), posterior[name].reshape(simulations, draws, -1)
        columns.append(_ranks(truth, drawn))
        names += [f"{name}[{number}]" for number in range(truth.shape[1])]
    return Calibration(np.concatenate(columns, 1), names, draws)


def _ranks(truth: Float[np.ndarray, "m f"], drawn: Float[np.ndarray, "m s f"]) -> Int[np.ndarray, "m f"]:
    return (drawn < truth[:, None]).sum(1)


@lru_cache(maxsize=16)
def _simulate(target: Target, known: bool) -> Callable[..., Any]:
    """Compile a function that draws sites from the prior and observations from them: (features, if any;
    labels; gold).
    """
    draw_features = target.model.draw_features

    def one(key: Array, data: tuple[Any, ...]) -> tuple[Sites, tuple[Array, ...]]:
        for_sites, for_truth, for_features, for_labels = jax.random.split(key, 4)
        sites = target.prior_draw(for_sites, data)
        sites = {name: sites[name] for name in target.latent}
        items, _ = target.items(sites, data)
        features: tuple[Array, ...] = ()
        if draw_features is None:
            truth = items.draw_truth(for_truth)
        else:  # the items' own features must not inform their true classes
            log_class = jnp.log(sites["class_prior"])
            truth = jax.random.categorical(for_truth, log_class, shape=(data[-1].num_items,))
            features = (draw_features(for_features, sites, truth, data[0].shape),)
        return sites, (*features, items.draw_labels(for_labels, truth), truth if known else data[-1].gold)

    return jax.jit(jax.vmap(one, (0, None)))


@lru_cache(maxsize=16)
def _likelihood(target: Target) -> Callable[..., Any]:
    def likelihood(sites: Sites, observed: tuple[Array, ...], data: tuple[Any, ...]) -> Array:
        items, _ = target.items(sites, _with_observed(data, observed))
        return jnp.sum(items.log_prob(items.rows.gold))

    return jax.jit(likelihood)


def _with_observed(data: tuple[Any, ...], observed: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the design's labels, gold and features by simulated ones."""
    return (*observed[:-2], replace(data[-1], label=observed[-2], gold=observed[-1]))


def _one_by_one(
    target: Target,
    rows: Rows,
    observed: tuple[np.ndarray, ...],
    seed: int,
    sampler: str | Sampler,
    warmup: int,
    draws: int,
    thin: int,
    progress: bool,
) -> Sites:
    results: list[Sites] = []
    *features, labels, gold = observed
    for number in tqdm(range(len(labels)), desc="simulations", disable=not progress):
        simulated = replace(rows, label=labels[number], gold=gold[number])
        embeddings = features[0][number] if features else None
        if callable(sampler):
            results.append(sampler(simulated, np.random.default_rng((seed, number))))
        else:
            options = {
                "chains": 1,
                "warmup": warmup,
                "draws": draws,
                "thin": thin,
                "progress": False,
                "embeddings": embeddings,
            }
            result = gibbs(target.model, simulated, target.prior, seed=seed * 1_000_003 + number, **options)
            results.append({name: values[0] for name, values in result.samples.items()})
    return {name: np.stack([each[name] for each in results]) for name in target.latent}


def _nuts(
    target: Target,
    observed: tuple[np.ndarray, ...],
    data: tuple[Any, ...],
    seed: int,
    warmup: int,
    draws: int,
    thin: int,
) -> Sites:
    """Return draws (m, s, ...) of each site, from the initial values at the votes, in one program for all
    simulations.
    """
    prepare, sample = hmc(potential_fn_gen=target.potential_of, algo="NUTS")
    host: Rows = jax.tree.map(np.asarray, data[-1])
    *features, labels, gold = observed
    starts = [
        voted_sites(
            target, replace(host, label=labels[m], gold=gold[m]), features[0][m] if features else None
        )
        for m in range(len(labels))
    ]
    stacked = {name: jnp.stack([jnp.asarray(start[name]) for start in starts]) for name in target.latent}

    def run(start: Sites, observed: tuple[Array, ...], key: Array) -> Sites:
        own = _with_observed(data, observed)
        state = prepare(target.unconstrained(start, own), warmup, model_args=own, rng_key=key)
        state = jax.lax.fori_loop(0, warmup, lambda _, state: sample(state, model_args=own), state)

        def draw(state: Any, _: None) -> tuple[Any, Sites]:
            state = jax.lax.fori_loop(0, thin, lambda _, state: sample(state, model_args=own), state)
            return state, target.sites(state.z, own)

        return jax.lax.scan(draw, state, None, length=draws)[1]

    keys = jax.random.split(jax.random.key(seed + 1), len(labels))
    results = jax.jit(jax.vmap(run))(stacked, observed, keys)
    return {name: np.asarray(results[name]) for name in target.latent}

"""Initial values for MCMC chains: the votes, the mode reached from them, or overdispersed.

    mode = argmax_z  -potential(z)              of the density that NUTS sees: MAP-EM, concentrations + 1
    plug-in = argmax of log p(sites, labels)    without the Jacobian: what EM reports

Both are reached from the vote shares by L-BFGS on the marginal density. Its gradient is the expected gradient
under p(truth | rows), so its fixed points are those of EM, for every model, with no derivation per model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array
from jax.flatten_util import ravel_pytree
from jaxtyping import Float
from scipy.optimize import minimize

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.posterior.density import Target, compiled
from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.model import Sites

SAME_DENSITY, SAME_AGREEMENT = 1e-3, 0.01  # modes closer than both are one mode
_PRIOR_DRAWS = 31  # for the prior median of sites that votes do not determine


@dataclass(frozen=True)
class Mode:
    """A local maximum: its sites and coordinates, the log density maximised (with or without the Jacobian),
    the largest gradient entry.
    """

    sites: Sites
    unconstrained: Sites
    log_density: float
    gradient: float


def find_mode(
    target: Target, data: tuple[Any, ...], start: Sites, *, jacobian: bool = True, steps: int = 2000
) -> Mode:
    """Climb from the unconstrained coordinates `start` to a local maximum.

    jacobian: maximise the density of the coordinates (what NUTS sees) instead of that of the sites (what EM
    maximises). The latter has no interior maximum where a concentration is 1 or less and no label supports
    it; the climb then ends close to the border.

    Raises:
        FloatingPointError: the density is not finite at the start.
    """
    flat, unflatten = ravel_pytree(jax.tree.map(jnp.asarray, start))
    gradient_of = _gradient(target, jacobian)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = gradient_of(unflatten(jnp.asarray(z, flat.dtype)), data)
        return float(value), np.asarray(ravel_pytree(gradient)[0], dtype=np.float64)

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 30}
    result = minimize(
        objective, np.asarray(flat, dtype=np.float64), jac=True, method="L-BFGS-B", options=options
    )
    if not np.isfinite(result.fun):
        raise FloatingPointError(
            f"the log posterior of the model {target.model.name} is not finite at its starting point"
        )
    unconstrained = unflatten(jnp.asarray(result.x, flat.dtype))
    sites = compiled(target.sites)(unconstrained, data)
    return Mode(
        {name: np.asarray(value) for name, value in sites.items()},
        {name: np.asarray(value) for name, value in unconstrained.items()},
        -float(result.fun),
        float(np.abs(result.jac).max()),
    )


def vote_start(target: Target, data: tuple[Any, ...]) -> Sites:
    """Return unconstrained coordinates of the model's initial values."""
    rows = data[-1]
    features = None if len(data) == 1 else np.asarray(data[0])
    sites = voted_sites(target, jax.tree.map(np.asarray, rows), features)
    return compiled(target.unconstrained)(
        {name: jnp.asarray(value, rows.weight.dtype) for name, value in sites.items()}, data
    )


def dispersed_start(target: Target, data: tuple[Any, ...], key: Array, *, radius: float = 2.0) -> Sites:
    """Draw unconstrained coordinates uniformly from a cube around 0, whatever the votes."""
    like, unflatten = ravel_pytree(vote_start(target, data))
    return unflatten(jax.random.uniform(key, like.shape, like.dtype, -radius, radius))


def find_modes(target: Target, data: tuple[Any, ...], seed: int, *, starts: int = 8) -> pd.DataFrame:
    """Return the distinct modes reached from the votes (first row) and from `starts` overdispersed points.

    Columns: log_density; lead, log density above the mode of the votes; starts, how many starts reached the
    mode; agreement, the expected share of votes for the items' classes, which drops where classes are
    permuted. Modes that differ by less than `SAME_DENSITY` in log density and `SAME_AGREEMENT` in agreement
    are one.
    """
    from_votes = find_mode(target, data, vote_start(target, data))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2), starts)
    modes = [from_votes, *(find_mode(target, data, dispersed_start(target, data, key)) for key in keys)]
    shares = vote_shares(jax.tree.map(np.asarray, data[-1]).vote_totals)
    table: list[dict[str, float]] = []
    for mode in modes:
        truth = np.asarray(compiled(target.truth)(mode.sites, data))
        agreement = float((truth * shares).sum() / max((shares.sum(1) > 0).sum(), 1))
        for row in table:
            if same_mode(row["log_density"] - mode.log_density, row["agreement"] - agreement):
                row["starts"] += 1
                break
        else:
            lead = mode.log_density - from_votes.log_density
            table.append({"log_density": mode.log_density, "lead": lead, "starts": 1, "agreement": agreement})
    return pd.DataFrame(table)


def same_mode(density_gap: float, agreement_gap: float) -> bool:
    """Whether two maxima are one mode; equal densities with another agreement are permutations of the
    classes.
    """
    return abs(density_gap) < SAME_DENSITY and abs(agreement_gap) < SAME_AGREEMENT


@lru_cache(maxsize=32)
def _gradient(target: Target, jacobian: bool) -> Any:
    def negative(unconstrained: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        if jacobian:
            return target.potential(unconstrained, data)
        sites = target.sites(unconstrained, data)
        return -target.log_density({name: sites[name] for name in target.latent}, data)

    return jax.jit(jax.value_and_grad(negative))


def voted_sites(target: Target, rows: Rows, features: np.ndarray | None) -> Sites:
    """Return the model's initial values given vote shares, gold classes and uniform shares for items without
    labels.
    """
    classes, share = rows.num_classes, vote_shares(rows.vote_totals)  # (i, k)
    known = rows.gold >= 0
    share[known] = np.eye(classes)[rows.gold[known]]
    share[share.sum(1) == 0] = 1 / classes
    votes = ExpectedCounts.of(rows, share, features)
    if target.model.initial is not None:
        values = target.model.initial(votes, target.prior)
        return {name: values[name] for name in target.latent}
    return _standard_initial(target, votes)


def _standard_initial(target: Target, votes: ExpectedCounts) -> Sites:
    """Initial values of a model that has none of its own: sites with a standard name start at the votes,
    others at the prior's median.
    """
    data = (votes.rows,) if votes.features is None else (votes.features, votes.rows)
    data = jax.tree.map(jnp.asarray, data)

    def coordinates(key: Array) -> Sites:
        sites = target.prior_draw(key, data)
        return target.unconstrained({name: sites[name] for name in target.latent}, data)

    draws = jax.vmap(coordinates)(jax.random.split(jax.random.key(0), _PRIOR_DRAWS))
    median = target.sites({name: jnp.median(value, 0) for name, value in draws.items()}, data)
    shared = "annotator" not in target.model.dims.get("confusion", ())
    voted = {
        "class_prior": votes.smoothed_class_prior,
        "confusion": votes.smoothed_pooled_confusion if shared else votes.smoothed_confusion,
        "accuracy": votes.smoothed_accuracy,
    }
    return {
        name: voted[name] if name in voted and voted[name].shape == median[name].shape else median[name]
        for name in target.latent
    }

"""Where chains begin: at the votes, at the mode that the votes lead to, or scattered on purpose.

    mode = argmax_z  -potential(z)                       what NUTS sees: closed-form EM with every Dirichlet concentration + 1
    plug-in = argmax of log p(sites, labels)             without the Jacobian: what EM reports

Both are found from the vote shares by L-BFGS on the marginal density. Its gradient is the expected gradient under p(truth | rows), so its
fixed points are EM's, for every model and without a derivation of its own.
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
from probcrowd.inference.posterior.density import Sites, Target, compiled


@dataclass(frozen=True)
class Mode:
    """A local maximum: its sites and coordinates, the log density climbed there (with or without the Jacobian), and how flat it is."""

    sites: Sites
    unconstrained: Sites
    log_density: float
    gradient: float


def find_mode(
    target: Target, data: tuple[Any, ...], start: Sites, *, jacobian: bool = True, steps: int = 2000
) -> Mode:
    """The local maximum that the unconstrained coordinates `start` lead to.

    jacobian: climb the density of the coordinates (what NUTS sees) or that of the sites (what EM climbs). The latter has no interior
    maximum where a concentration is 1 or less and no label backs it up; the climb then ends close to the border.
    """
    flat, unflatten = ravel_pytree(jax.tree.map(jnp.asarray, start))
    slope = _slope(target, jacobian)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = slope(unflatten(jnp.asarray(z, flat.dtype)), data)
        return float(value), np.asarray(ravel_pytree(gradient)[0], dtype=np.float64)

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-14, "gtol": 1e-7, "maxcor": 30}
    found = minimize(
        objective, np.asarray(flat, dtype=np.float64), jac=True, method="L-BFGS-B", options=options
    )
    if not np.isfinite(found.fun):
        raise FloatingPointError(
            f"the log posterior of the model {target.model.name} is not finite at its starting point"
        )
    reached = unflatten(jnp.asarray(found.x, flat.dtype))
    sites = {name: np.asarray(value) for name, value in compiled(target.sites)(reached, data).items()}
    return Mode(
        sites,
        {name: np.asarray(value) for name, value in reached.items()},
        -float(found.fun),
        float(np.abs(found.jac).max()),
    )


def vote_start(target: Target, data: tuple[Any, ...]) -> Sites:
    """Unconstrained coordinates at which every annotator is what the soft majority vote makes of them."""
    rows = data[-1]
    host = jax.tree.map(np.asarray, rows)
    sites = voted_sites(target, host, None if len(data) == 1 else np.asarray(data[0]))
    return compiled(target.unconstrained)(
        {name: jnp.asarray(value, rows.weight.dtype) for name, value in sites.items()}, data
    )


def dispersed_start(target: Target, data: tuple[Any, ...], key: Array, *, radius: float = 2.0) -> Sites:
    """Unconstrained coordinates drawn uniformly from a cube, the same wherever the votes are."""
    like, unflatten = ravel_pytree(vote_start(target, data))
    return unflatten(jax.random.uniform(key, like.shape, like.dtype, -radius, radius))


def find_modes(
    target: Target, data: tuple[Any, ...], seed: int, *, starts: int = 8, tolerance: float = 1e-3
) -> pd.DataFrame:
    """The distinct modes that the votes (first row) and `starts` scattered points lead to, each with its log density and how many led there.

    Columns: log_density; lead, above that of the votes' mode; found, the number of starts; agreement, the votes' share of its classes'
    names, which is below that of the first row where classes are named otherwise. Modes closer in log density than `tolerance` are one:
    they must also agree with the votes alike, so that renamings of one mode show.
    """
    from_votes = find_mode(target, data, vote_start(target, data))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2), starts)
    found = [from_votes, *(find_mode(target, data, dispersed_start(target, data, key)) for key in keys)]
    shares = vote_shares(jax.tree.map(np.asarray, data[-1]).vote_totals)
    rows: list[dict[str, float]] = []
    for mode in found:
        truth = np.asarray(compiled(target.truth)(mode.sites, data))
        agreement = float((truth * shares).sum() / max((shares.sum(1) > 0).sum(), 1))
        near = [
            row
            for row in rows
            if abs(row["log_density"] - mode.log_density) < tolerance
            and abs(row["agreement"] - agreement) < 0.01
        ]
        if near:
            near[0]["found"] += 1
        else:
            rows.append(
                {
                    "log_density": mode.log_density,
                    "lead": mode.log_density - from_votes.log_density,
                    "found": 1,
                    "agreement": agreement,
                }
            )
    return pd.DataFrame(rows)


@lru_cache(maxsize=32)
def _slope(target: Target, jacobian: bool) -> Any:
    def negative(unconstrained: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        if jacobian:
            return target.potential(unconstrained, data)
        sites = target.sites(unconstrained, data)
        return -target.log_density({name: sites[name] for name in target.latent}, data)

    return jax.jit(jax.value_and_grad(negative))


def voted_sites(target: Target, rows: Rows, embeddings: np.ndarray | None) -> Sites:
    classes, share = rows.num_classes, vote_shares(rows.vote_totals)  # (i, k)
    known = rows.gold >= 0
    share[known] = np.eye(classes)[rows.gold[known]]
    share[share.sum(1) == 0] = 1 / classes
    counts = np.zeros((rows.num_annotators, classes, classes))
    for k in range(classes):
        np.add.at(counts[:, k], (rows.annotator, rows.label), rows.weight * share[rows.item, k])
    smooth = np.full((classes, classes), 0.3 / max(classes - 1, 1)) + np.eye(classes) * (
        0.7 - 0.3 / max(classes - 1, 1)
    )
    confusion = counts + smooth
    confusion /= confusion.sum(-1, keepdims=True)
    pooled = counts.sum(0) + smooth
    pooled /= pooled.sum(-1, keepdims=True)
    accuracy = np.clip(
        (counts.diagonal(axis1=1, axis2=2).sum(-1) + 0.7) / (counts.sum((1, 2)) + 1), 0.02, 0.98
    )
    said = counts.sum(1) + 1
    class_prior = (share.sum(0) + 1) / (share.sum() + classes)
    logits = np.log(pooled)
    width = classes
    if getattr(target.prior, "reference", False):
        logits, width = logits[:, :-1] - logits[:, -1:], classes - 1
    voted = {
        "class_prior": class_prior,
        "confusion": pooled if target.model.name == "multinomial" else confusion,
        "accuracy": accuracy,
        "competence": accuracy,
        "spam": said / said.sum(-1, keepdims=True),
        "mean": logits,
        "spread": np.full((classes, width), 0.5),
        "item_spread": np.full((classes, width), 0.5),
        "annotator_offset": np.zeros((rows.num_annotators, classes, width)),
        "item_offset": np.zeros((rows.num_items, width)),
    }
    if embeddings is not None:
        voted["prototype"] = share.T @ embeddings / (share.sum(0) + float(target.prior.precision))[:, None]
    return {name: voted[name] for name in target.latent}

"""The density that a sampler sees: a declared model with its prior, on unconstrained coordinates z, compiled once per kind of problem.

    potential(z) = - log p(sites(z), labels) - log |d sites / d z|          the true classes are summed out

Precision is float64 unless a caller says otherwise; JAX's global setting is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from numpyro import handlers
from numpyro.infer.util import constrain_fn, log_density, potential_energy, unconstrain_fn

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.observed_numpyro import AnnotatedItems
from probcrowd.models.catalogue import Model, find_model

Sites = dict[str, Any]  # by name; arrays, with leading axes where there are several draws


@dataclass(frozen=True, eq=False)
class Target:
    """A model and its prior. Every function takes the data last: (rows,) or (embeddings, rows). `latent` names the sampled sites."""

    model: Model
    prior: Any
    latent: tuple[str, ...]
    declare: Callable[..., None]

    def potential(self, unconstrained: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        """What NUTS sees, up to nothing: every constant is in it."""
        return jnp.asarray(potential_energy(self.declare, data, {}, unconstrained))

    def potential_of(self, *data: Any) -> Callable[[Sites], Array]:
        """The potential of given data, as NumPyro's samplers want it."""
        return lambda unconstrained: self.potential(unconstrained, data)

    def sites(self, unconstrained: Sites, data: tuple[Any, ...]) -> Sites:
        """The sites at unconstrained coordinates, derived ones included."""
        return constrain_fn(self.declare, data, {}, unconstrained, return_deterministic=True)

    def unconstrained(self, sites: Sites, data: tuple[Any, ...]) -> Sites:
        """The coordinates of given sites; the inverse of `sites`."""
        return unconstrain_fn(self.declare, data, {}, sites)

    def log_density(self, sites: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        """log p(sites, labels) as declared, without a Jacobian."""
        return jnp.asarray(log_density(self.declare, data, {}, sites)[0])

    def items(self, sites: Sites, data: tuple[Any, ...]) -> tuple[AnnotatedItems, Sites]:
        """What the sites say of the items, and the log prior density of each sampled site."""
        trace = handlers.trace(handlers.substitute(handlers.seed(self.declare, 0), sites)).get_trace(*data)
        priors = {
            name: jnp.sum(site["fn"].log_prob(site["value"]))
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        return trace["label"]["fn"], priors

    def truth(self, sites: Sites, data: tuple[Any, ...]) -> Float[Array, "i k"]:
        """p(truth k | rows of item i, sites)."""
        return jnp.exp(self.items({name: sites[name] for name in self.latent}, data)[0].log_truth())

    def prior_draw(self, key: Array, data: tuple[Any, ...]) -> Sites:
        """Sites drawn from the prior, derived ones included."""
        trace = handlers.trace(handlers.seed(self.declare, key)).get_trace(*data)
        return {name: site["value"] for name, site in trace.items() if name in self.model.dims}


@lru_cache(maxsize=64)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a target, compiled once."""
    return jax.jit(function)


def make_target(model: str, prior: Any, data: tuple[Any, ...]) -> Target:
    """The density of a model under a prior. Equal requests give the same object, so what was compiled for it is used again."""
    rows = data[-1]
    dimension = data[0].shape[1] if len(data) > 1 else None
    double = rows.weight.dtype == jnp.float64
    return _make_target(
        _Request((model, rows.num_annotators, rows.num_classes, dimension, double, *_content(prior)), prior)
    )


def make_data(
    model: str, rows: Rows, embeddings: np.ndarray | None, *, double: bool = True
) -> tuple[Any, ...]:
    """The data as a model takes them.

    Raises:
        ValueError: embeddings are missing, not wanted, of another number of items, or not finite.
    """
    features = find_model(model).features
    if features != (embeddings is not None):
        raise ValueError(f"the model {model} {'needs' if features else 'takes no'} features of the items")
    dtype = np.float64 if double else np.float32
    data: tuple[Any, ...] = (rows,)
    if embeddings is not None:
        if embeddings.ndim != 2 or len(embeddings) != rows.num_items:
            raise ValueError(
                f"features of shape {embeddings.shape} for {rows.num_items} items: give one row per item"
            )
        if not np.isfinite(embeddings).all():
            raise ValueError(
                f"{int((~np.isfinite(embeddings)).any(1).sum())} items have features that are not finite"
            )
        data = (embeddings, rows)
    integers = np.int64 if double else np.int32
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype if np.issubdtype(leaf.dtype, np.floating) else integers), data
    )


@dataclass(frozen=True, eq=False)
class _Request:
    """A key of the cache that carries the prior it stands for."""

    key: tuple[Any, ...]
    prior: Any

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self.key == other.key


@lru_cache(maxsize=32)
def _make_target(request: _Request) -> Target:
    name, annotators, classes, dimension, double = request.key[:5]
    model, prior = find_model(name), request.prior
    body = model.numpyro

    def declare(*data: Any) -> None:
        body(*data, prior)

    # The names of the sites do not depend on the data: one item with one row stands for them
    zero = np.zeros(1, dtype=np.int64)
    stub = Rows(zero, zero, zero, np.ones(1), zero - 1, annotators, classes)
    arguments = make_data(name, stub, None if dimension is None else np.zeros((1, dimension)), double=double)
    latent: list[str] = []

    def names() -> None:
        trace = handlers.trace(handlers.seed(declare, 0)).get_trace(*arguments)
        latent.extend(
            name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]
        )

    jax.eval_shape(names)  # traces without computing
    return Target(model, prior, tuple(latent), declare)


def _content(prior: Any) -> tuple[Any, ...]:
    parts: list[Any] = [type(prior).__name__]
    for name, value in asdict(prior).items():
        array = None if value is None else np.asarray(value, dtype=float)
        parts.append((name, None if array is None else (array.shape, array.tobytes())))
    return tuple(parts)

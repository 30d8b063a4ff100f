"""The density that samplers see: a declared model with its prior, on unconstrained coordinates z, compiled
once per kind of problem.

    potential(z) = - log p(sites(z), labels) - log |d sites / d z|          the true classes are summed out

Computations run in float64 unless the data are float32; JAX's global setting does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass, replace
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
from probcrowd.models.catalogue import find_model
from probcrowd.models.model import Model, Sites


@dataclass(frozen=True, eq=False)
class Target:
    """A model with its prior. Functions take the data last: (rows,) or (features, rows). `latent` names the
    sampled sites.
    """

    model: Model
    prior: Any
    latent: tuple[str, ...]
    declare: Callable[..., None]

    def potential(self, unconstrained: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        """Return the potential energy that NUTS sees, with every constant."""
        return jnp.asarray(potential_energy(self.declare, data, {}, unconstrained))

    def potential_of(self, *data: Any) -> Callable[[Sites], Array]:
        """Return the potential of given data, in the form that NumPyro's samplers take."""
        return lambda unconstrained: self.potential(unconstrained, data)

    def sites(self, unconstrained: Sites, data: tuple[Any, ...]) -> Sites:
        """Return the sites at unconstrained coordinates, derived ones included."""
        return constrain_fn(self.declare, data, {}, unconstrained, return_deterministic=True)

    def unconstrained(self, sites: Sites, data: tuple[Any, ...]) -> Sites:
        """Return the coordinates of given sites; the inverse of `sites`."""
        return unconstrain_fn(self.declare, data, {}, sites)

    def log_density(self, sites: Sites, data: tuple[Any, ...]) -> Float[Array, ""]:
        """Return log p(sites, labels) as declared, without a Jacobian."""
        return jnp.asarray(log_density(self.declare, data, {}, sites)[0])

    def items(self, sites: Sites, data: tuple[Any, ...]) -> tuple[AnnotatedItems, Sites]:
        """Return the distribution of the items' labels given the latent sites, and the log prior density of
        each.
        """
        latent = {name: sites[name] for name in self.latent}
        trace = handlers.trace(handlers.substitute(handlers.seed(self.declare, 0), latent)).get_trace(*data)
        priors = {name: jnp.sum(trace[name]["fn"].log_prob(trace[name]["value"])) for name in self.latent}
        return trace["label"]["fn"], priors

    def truth(self, sites: Sites, data: tuple[Any, ...]) -> Float[Array, "i k"]:
        """Return p(truth k | rows of item i, sites)."""
        return jnp.exp(self.items(sites, data)[0].log_truth())

    def prior_draw(self, key: Array, data: tuple[Any, ...]) -> Sites:
        """Draw sites from the prior, derived ones included."""
        trace = handlers.trace(handlers.seed(self.declare, key)).get_trace(*data)
        return {name: site["value"] for name, site in trace.items() if name in self.model.dims}


@lru_cache(maxsize=64)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a method of a target once."""
    return jax.jit(function)


def make_target(model: str | Model, prior: Any, data: tuple[Any, ...]) -> Target:
    """Return the density of a model under a prior. Equal requests return the same object, so compiled code is
    reused.
    """
    # Sites do not depend on how many items and rows there are: one of each stands for all
    rows, model = data[-1], find_model(model)
    columns = {name: getattr(rows, name)[:1] for name in ("item", "annotator", "label", "weight", "gold")}
    covariates = jax.tree.map(lambda leaf: leaf[:1], rows.item_covariates)
    one = (*(leaf[:1] for leaf in data[:-1]), replace(rows, **columns, item_covariates=covariates))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), one)
    return _make_target(_Request((model, str(shapes), *_content(prior)), prior, shapes))


def make_data(
    model: str | Model, rows: Rows, features: np.ndarray | None, *, double: bool = True
) -> tuple[Any, ...]:
    """Return the data as a model takes them: (rows,) or (features, rows), as JAX arrays.

    Raises:
        ValueError: covariates or features are missing, or features are superfluous, of another number of
            items, or not finite.
    """
    model = find_model(model)
    for name in model.annotator_covariates:
        rows.annotator_covariates[name]
    for name in model.item_covariates:
        rows.item_covariates[name]
    if model.features != (features is not None):
        raise ValueError(
            f"the model {model.name} {'needs' if model.features else 'takes no'} features of the items"
        )
    dtype = np.float64 if double else np.float32
    data: tuple[Any, ...] = (rows,)
    if features is not None:
        if features.ndim != 2 or len(features) != rows.num_items:
            raise ValueError(
                f"features of shape {features.shape} for {rows.num_items} items: give one row per item"
            )
        if not np.isfinite(features).all():
            raise ValueError(
                f"{int((~np.isfinite(features)).any(1).sum())} items have features that are not finite"
            )
        data = (features, rows)
    integers = np.int64 if double else np.int32
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype if np.issubdtype(leaf.dtype, np.floating) else integers), data
    )


@dataclass(frozen=True, eq=False)
class _Request:
    """A key of the cache, with the prior and the shapes of the data."""

    key: tuple[Any, ...]
    prior: Any
    shapes: tuple[Any, ...]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Request) and self.key == other.key


@lru_cache(maxsize=32)
def _make_target(request: _Request) -> Target:
    model, prior = request.key[0], request.prior

    def declare(*data: Any) -> None:
        model.numpyro(*data, prior)

    latent: list[str] = []

    def trace_sites(*data: Any) -> None:
        trace = handlers.trace(handlers.seed(declare, 0)).get_trace(*data)
        latent.extend(
            name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]
        )
        if "label" not in trace or not isinstance(trace["label"].get("fn"), AnnotatedItems):
            raise ValueError(
                f"the model {model.name} observes no labels: end its declaration with observe(...)"
            )
        unnamed = [name for name in trace if name in latent and name not in model.dims]
        if unnamed:
            raise ValueError(
                f"the model {model.name} has no dims for {', '.join(unnamed)}: add them to `dims`"
            )
        absent = [name for name in model.dims if name not in trace]
        if absent:
            raise ValueError(
                f"the model {model.name} declares no site {', '.join(absent)}: remove it from `dims`"
            )

    jax.eval_shape(trace_sites, *request.shapes)  # traces without computing
    return Target(model, prior, tuple(latent), declare)


def _content(prior: Any) -> tuple[Any, ...]:
    """The values of a prior record, hashable; records without fields, such as None, stand for themselves."""
    if not is_dataclass(prior):
        return (prior,)
    parts: list[Any] = [type(prior).__name__]
    for name, value in asdict(prior).items():  # pyright: ignore[reportArgumentType]
        array = None if value is None else np.asarray(value, dtype=float)
        parts.append((name, None if array is None else (array.shape, array.tobytes())))
    return tuple(parts)

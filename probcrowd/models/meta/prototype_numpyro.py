"""The prototype crowd of one task in NumPyro; `probcrowd.models.meta.prototype` states the mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float, Int

from probcrowd.data.rows import Rows
from probcrowd.models import gibbs_blocks, m_steps
from probcrowd.models.aggregation.confusion_numpyro import CLASS_PRIOR, CONFUSION
from probcrowd.models.aggregation.observed_numpyro import observe, sample
from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.model import Model, Sites
from probcrowd.models.priors import Counts, DirichletPrior


def prototype_crowd(
    embeddings: Float[Array, "i d"] | Float[np.ndarray, "i d"], rows: Rows, prior: Counts
) -> None:
    """Declare the model of one task."""
    dimension = embeddings.shape[1]
    concentrations = DirichletPrior.of_counts(prior, rows.num_classes)
    class_prior = sample("class_prior", dist.Dirichlet(jnp.asarray(concentrations.class_prior)))
    with numpyro.plate("true_class", rows.num_classes, dim=-1):
        prototype = sample(
            "prototype", dist.Normal(jnp.zeros(dimension), float(prior.precision) ** -0.5).to_event(1)
        )
        with numpyro.plate("annotator", rows.num_annotators, dim=-2):
            confusion = sample("confusion", dist.Dirichlet(jnp.asarray(concentrations.confusion)))
    distance = (embeddings**2).sum(1)[:, None] - 2 * embeddings @ prototype.T + (prototype**2).sum(1)
    log_class = jnp.log(class_prior) - 0.5 * distance - 0.5 * dimension * math.log(2 * math.pi)
    observe(rows, log_class, jnp.log(confusion), rows.annotator)


def _prior(**values: float) -> Callable[[int], Any]:
    def make(num_classes: int) -> Any:
        from probcrowd.models.meta.prototype import Prior  # loads torch

        accuracy = {"accuracy": max(values["accuracy"], 1 / num_classes)} if "accuracy" in values else {}
        return Prior(**(values | accuracy))

    return make


def _initial(votes: ExpectedCounts, prior: Counts) -> Sites:
    return {"class_prior": votes.smoothed_class_prior, "confusion": votes.smoothed_confusion} | {
        "prototype": m_steps.prototypes(votes, prior)
    }


def _exchangeable(prior: Counts, num_classes: int) -> bool:
    return DirichletPrior.of_counts(prior, num_classes).exchangeable


def _draw_features(
    key: Array, sites: Sites, truth: Int[Array, " i"], shape: tuple[int, int]
) -> Float[Array, "i d"]:
    """Features of items with those true classes."""
    return sites["prototype"][truth] + jax.random.normal(key, shape, sites["prototype"].dtype)


MODELS = (
    Model(
        prototype_crowd,
        dims=CLASS_PRIOR | {"prototype": ("true_class", "dimension")} | CONFUSION,
        priors={
            "accurate": _prior(accuracy=0.7),
            "paper": _prior(),  # the published pseudo-counts
            "flat": _prior(class_count=0.0, label_count=0.0),
        },
        initial=_initial,
        gibbs=gibbs_blocks.prototype_blocks,
        m_step=m_steps.prototype_step,
        exchangeable=_exchangeable,
        draw_features=_draw_features,
    ),
)

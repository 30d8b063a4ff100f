"""The prototype crowd of one task in NumPyro; `probcrowd.models.meta.prototype` states the mathematics."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.observed_numpyro import observe, sample
from probcrowd.models.meta.prototype import Prior
from probcrowd.models.priors import DirichletPrior


def prototype_crowd(
    embeddings: Float[Array, "i d"] | Float[np.ndarray, "i d"], rows: Rows, prior: Prior
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

"""The models of `probcrowd.models.aggregation.confusion`, declared in NumPyro with the same sites; see there for the mathematics."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.observed_numpyro import deterministic, observe, sample
from probcrowd.models.priors import CoinPrior, DirichletPrior, SpamPrior


def multinomial(rows: Rows, prior: DirichletPrior) -> None:
    """Declare one confusion matrix (k, l) that all annotators share."""
    class_prior = sample_class_prior(prior.class_prior)
    with numpyro.plate("true_class", rows.num_classes, dim=-1):
        confusion = sample("confusion", dist.Dirichlet(jnp.asarray(prior.confusion)))
    observe(rows, jnp.log(class_prior), jnp.log(confusion)[None], jnp.zeros_like(rows.annotator))


def dawid_skene(rows: Rows, prior: DirichletPrior) -> None:
    """Declare a confusion matrix per annotator (j, k, l)."""
    class_prior = sample_class_prior(prior.class_prior)
    with (
        numpyro.plate("annotator", rows.num_annotators, dim=-2),
        numpyro.plate("true_class", rows.num_classes, dim=-1),
    ):
        confusion = sample("confusion", dist.Dirichlet(jnp.asarray(prior.confusion)))
    observe(rows, jnp.log(class_prior), jnp.log(confusion), rows.annotator)


def one_coin(rows: Rows, prior: CoinPrior) -> None:
    """Declare one accuracy per annotator (j); `confusion` follows from it."""
    class_prior = sample_class_prior(prior.class_prior)
    with numpyro.plate("annotator", rows.num_annotators, dim=-1):
        accuracy = sample("accuracy", dist.Beta(prior.right, prior.wrong))
    wrong = (1 - accuracy)[:, None, None] / max(rows.num_classes - 1, 1)
    confusion = deterministic(
        "confusion", jnp.where(jnp.eye(rows.num_classes, dtype=bool), accuracy[:, None, None], wrong)
    )
    observe(rows, jnp.log(class_prior), jnp.log(confusion), rows.annotator)


def mace(rows: Rows, prior: SpamPrior) -> None:
    """Declare a competence (j) and spamming habits (j, l) per annotator; classes are equally likely."""
    with numpyro.plate("annotator", rows.num_annotators, dim=-1):
        competence = sample("competence", dist.Beta(prior.honest, prior.spamming))
        spam = sample("spam", dist.Dirichlet(jnp.full(rows.num_classes, prior.answers)))
    mixed = (
        competence[:, None, None] * jnp.eye(rows.num_classes)
        + (1 - competence)[:, None, None] * spam[:, None, :]
    )
    confusion = deterministic("confusion", mixed)
    observe(
        rows, jnp.log(jnp.full(rows.num_classes, 1 / rows.num_classes)), jnp.log(confusion), rows.annotator
    )


def sample_class_prior(concentrations: Float[np.ndarray, " k"]) -> Float[Array, " k"]:
    """Declare `class_prior` (k)."""
    return sample("class_prior", dist.Dirichlet(jnp.asarray(concentrations)))

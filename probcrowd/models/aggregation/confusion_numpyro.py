"""The models of `probcrowd.models.aggregation.confusion`, declared in NumPyro with the same sites; see there
for the mathematics.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from probcrowd.data.rows import Rows
from probcrowd.models import gibbs_blocks, m_steps
from probcrowd.models.aggregation.observed_numpyro import deterministic, observe, sample
from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.model import Model, Sites
from probcrowd.models.priors import CoinPrior, DirichletPrior, SpamPrior, by_name


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


def _initial_confusion(votes: ExpectedCounts, prior: DirichletPrior) -> Sites:
    """Start at the votes' class frequencies and confusion matrices."""
    return {"class_prior": votes.smoothed_class_prior, "confusion": votes.smoothed_confusion}


def _initial_pooled(votes: ExpectedCounts, prior: DirichletPrior) -> Sites:
    return {"class_prior": votes.smoothed_class_prior, "confusion": votes.smoothed_pooled_confusion}


def _initial_coin(votes: ExpectedCounts, prior: CoinPrior) -> Sites:
    return {"class_prior": votes.smoothed_class_prior, "accuracy": votes.smoothed_accuracy}


def _initial_spam(votes: ExpectedCounts, prior: SpamPrior) -> Sites:
    labels = votes.counts.sum(1) + 1  # (j, l)
    return {"competence": votes.smoothed_accuracy, "spam": labels / labels.sum(-1, keepdims=True)}


def _exchangeable(prior: DirichletPrior, num_classes: int) -> bool:
    return prior.exchangeable


CLASS_PRIOR = {"class_prior": ("true_class",)}
CONFUSION = {"confusion": ("annotator", "true_class", "given_label")}
# Coins and MACE identify the classes under any prior, so their classes are never exchangeable
MODELS = (
    Model(
        multinomial,
        dims=CLASS_PRIOR | {"confusion": ("true_class", "given_label")},
        priors=by_name(DirichletPrior),
        initial=_initial_pooled,
        gibbs=gibbs_blocks.shared_confusion_blocks,
        m_step=m_steps.shared_confusion_step,
        exchangeable=_exchangeable,
    ),
    Model(
        dawid_skene,
        dims=CLASS_PRIOR | CONFUSION,
        priors=by_name(DirichletPrior),
        initial=_initial_confusion,
        gibbs=gibbs_blocks.confusion_blocks,
        m_step=m_steps.confusion_step,
        exchangeable=_exchangeable,
    ),
    Model(
        one_coin,
        dims=CLASS_PRIOR | {"accuracy": ("annotator",)} | CONFUSION,
        priors=by_name(CoinPrior),
        initial=_initial_coin,
        gibbs=gibbs_blocks.coin_blocks,
        m_step=m_steps.coin_step,
    ),
    Model(
        mace,
        dims={"competence": ("annotator",), "spam": ("annotator", "given_label")} | CONFUSION,
        priors=by_name(SpamPrior),
        initial=_initial_spam,
        gibbs=gibbs_blocks.spam_blocks,
        m_step=m_steps.spam_step,
    ),
)

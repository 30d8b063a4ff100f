"""The models of `probcrowd.models.aggregation.logistic`, declared in NumPyro with the same sites; see there
for the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jaxtyping import Float

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.confusion_numpyro import CLASS_PRIOR, CONFUSION, sample_class_prior
from probcrowd.models.aggregation.observed_numpyro import deterministic, observe, sample
from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.model import Model, Sites
from probcrowd.models.priors import LogitPrior, by_name


def hierarchical_dawid_skene(rows: Rows, prior: LogitPrior) -> None:
    """Declare a confusion matrix per annotator, drawn from a population of annotators."""
    class_prior = sample_class_prior(prior.class_prior)
    mean, spread = _population(prior, "spread", prior.spread_scale)
    log_confusion = _log_rows(mean + spread * _annotator_offset(rows, mean), prior)
    deterministic("confusion", jnp.exp(log_confusion))
    observe(rows, jnp.log(class_prior), log_confusion, rows.annotator)


def item_difficulty(rows: Rows, prior: LogitPrior) -> None:
    """Declare one confusion matrix for all annotators, shifted by an effect of each item."""
    class_prior = sample_class_prior(prior.class_prior)
    mean, item_spread = _population(prior, "item_spread", prior.item_scale)
    log_rows = _log_rows(mean + item_spread * _item_offset(rows, mean)[:, None], prior)  # (i, k, l)
    observe(rows, jnp.log(class_prior), log_rows, rows.item)


def logistic_random_effects(rows: Rows, prior: LogitPrior) -> None:
    """Declare annotators drawn from a population, shifted by an effect of each item; `confusion` is theirs
    on an item without effect.
    """
    class_prior = sample_class_prior(prior.class_prior)
    mean, spread = _population(prior, "spread", prior.spread_scale)
    item_spread = _scales(mean, "item_spread", prior.item_scale)
    logits = mean + spread * _annotator_offset(rows, mean)
    deterministic("confusion", jnp.exp(_log_rows(logits, prior)))
    shifted = logits[rows.annotator] - item_spread * _item_offset(rows, mean)[rows.item, None]
    log_rows = _log_rows(shifted, prior)  # (n, k, l)
    observe(rows, jnp.log(class_prior), log_rows, jnp.arange(rows.label.shape[0]))


def _population(
    prior: LogitPrior, name: str, scale: float
) -> tuple[Float[Array, "k m"], Float[Array, "k m"]]:
    mean = sample("mean", dist.Normal(jnp.asarray(prior.centre), prior.mean_scale).to_event(2))
    return mean, _scales(mean, name, scale)


def _scales(mean: Float[Array, "k m"], name: str, scale: float) -> Float[Array, "k m"]:
    return sample(name, dist.HalfNormal(jnp.full_like(mean, scale)).to_event(2))


def _annotator_offset(rows: Rows, mean: Float[Array, "k m"]) -> Float[Array, "j k m"]:
    return sample(
        "annotator_offset", dist.Normal(jnp.zeros((rows.num_annotators, *mean.shape)), 1.0).to_event(3)
    )


def _item_offset(rows: Rows, mean: Float[Array, "k m"]) -> Float[Array, "i m"]:
    return sample("item_offset", dist.Normal(jnp.zeros((rows.num_items, mean.shape[1])), 1.0).to_event(2))


def _log_rows(logits: Float[Array, "*t m"], prior: LogitPrior) -> Float[Array, "*t l"]:
    if prior.reference:
        logits = jnp.concatenate([logits, jnp.zeros_like(logits[..., :1])], -1)
    return jax.nn.log_softmax(logits, -1)


def _initial(votes: ExpectedCounts, prior: LogitPrior) -> Sites:
    logits, rows = np.log(votes.smoothed_pooled_confusion), votes.rows
    if prior.reference:
        logits = logits[:, :-1] - logits[:, -1:]
    spread = np.full(logits.shape, 0.5)
    return {
        "class_prior": votes.smoothed_class_prior,
        "mean": logits,
        "spread": spread,
        "item_spread": spread,
        "annotator_offset": np.zeros((rows.num_annotators, *logits.shape)),
        "item_offset": np.zeros((rows.num_items, logits.shape[1])),
    }


def _exchangeable(prior: LogitPrior, num_classes: int) -> bool:
    return prior.exchangeable


_LOGITS = ("true_class", "logit")
_ANNOTATORS = {"spread": _LOGITS, "annotator_offset": ("annotator", *_LOGITS)}
_ITEMS = {"item_spread": _LOGITS, "item_offset": ("item", "logit")}


def _model(declaration: Callable[..., None], dims: dict[str, tuple[str, ...]]) -> Model:
    return Model(
        declaration,
        dims=CLASS_PRIOR | {"mean": _LOGITS} | dims,
        priors=by_name(LogitPrior),
        initial=_initial,
        exchangeable=_exchangeable,
        item_effect="item_offset" if "item_offset" in dims else None,
        standardised=("annotator_offset", "item_offset"),
    )


MODELS = (
    _model(hierarchical_dawid_skene, _ANNOTATORS | CONFUSION),
    _model(item_difficulty, _ITEMS),
    _model(logistic_random_effects, _ANNOTATORS | _ITEMS | CONFUSION),
)

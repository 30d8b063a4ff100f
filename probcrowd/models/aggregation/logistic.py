r"""Models whose confusion rows are softmaxes of normal logits, in Pyro; `logistic_numpyro` declares the same
in NumPyro (Paun et al. 2018).

    mean[k, :] ~ Normal(centre[k, :], mean_scale)           class_prior ~ Dirichlet

    hierarchical_dawid_skene    label ~ softmax(mean[k] + spread[k] * annotator_offset[j, k])
    item_difficulty             label ~ softmax(mean[k] + item_spread[k] * item_offset[i])
    logistic_random_effects     label ~ softmax(mean[k] + spread[k] * annotator_offset[j, k]
                                                - item_spread[k] * item_offset[i])

    spread[k, :], item_spread[k, :] ~ HalfNormal

    annotator_offset[j, k, :], item_offset[i, :] ~ Normal(0, 1): non-centred, written out

An item has one standardised offset that all its classes share, so the sum over its true class is over proper
densities. The last axis has K logits; K - 1 if the prior has a reference, whose logit is 0.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.confusion import sample_class_prior, tensor
from probcrowd.models.aggregation.observed import codes, observe
from probcrowd.models.priors import LogitPrior


def hierarchical_dawid_skene(rows: Rows, prior: LogitPrior) -> None:
    """Declare a confusion matrix per annotator, drawn from a population of annotators."""
    class_prior = sample_class_prior(prior.class_prior)
    mean, spread = _population(prior, "spread", prior.spread_scale)
    log_confusion = _log_rows(mean + spread * _annotator_offset(rows, mean), prior)
    pyro.deterministic("confusion", log_confusion.exp(), event_dim=3)
    observe(rows, class_prior.log(), log_confusion, codes(rows.annotator))


def item_difficulty(rows: Rows, prior: LogitPrior) -> None:
    """Declare one confusion matrix for all annotators, shifted by an effect of each item."""
    class_prior = sample_class_prior(prior.class_prior)
    mean, item_spread = _population(prior, "item_spread", prior.item_scale)
    log_rows = _log_rows(mean + item_spread * _item_offset(rows, mean)[:, None], prior)  # (i, k, l)
    observe(rows, class_prior.log(), log_rows, codes(rows.item))


def logistic_random_effects(rows: Rows, prior: LogitPrior) -> None:
    """Declare annotators drawn from a population, shifted by an effect of each item; `confusion` is theirs
    on an item without effect.
    """
    class_prior = sample_class_prior(prior.class_prior)
    mean, spread = _population(prior, "spread", prior.spread_scale)
    item_spread = _scales(mean, "item_spread", prior.item_scale)
    logits = mean + spread * _annotator_offset(rows, mean)
    pyro.deterministic("confusion", _log_rows(logits, prior).exp(), event_dim=3)
    shifted = logits[codes(rows.annotator)] - item_spread * _item_offset(rows, mean)[codes(rows.item), None]
    observe(rows, class_prior.log(), _log_rows(shifted, prior), torch.arange(len(shifted)))  # (n, k, l)


def _population(
    prior: LogitPrior, name: str, scale: float
) -> tuple[Float[Tensor, "k m"], Float[Tensor, "k m"]]:
    mean = pyro.sample("mean", dist.Normal(tensor(prior.centre), tensor(prior.mean_scale)).to_event(2))
    return mean, _scales(mean, name, scale)


def _scales(mean: Float[Tensor, "k m"], name: str, scale: float) -> Float[Tensor, "k m"]:
    return pyro.sample(name, dist.HalfNormal(tensor(scale).expand(mean.shape)).to_event(2))


def _annotator_offset(rows: Rows, mean: Float[Tensor, "k m"]) -> Float[Tensor, "j k m"]:
    return pyro.sample(
        "annotator_offset", dist.Normal(mean.new_zeros(rows.num_annotators, *mean.shape), 1.0).to_event(3)
    )


def _item_offset(rows: Rows, mean: Float[Tensor, "k m"]) -> Float[Tensor, "i m"]:
    return pyro.sample(
        "item_offset", dist.Normal(mean.new_zeros(rows.num_items, mean.shape[1]), 1.0).to_event(2)
    )


def _log_rows(logits: Float[Tensor, "*t m"], prior: LogitPrior) -> Float[Tensor, "*t l"]:
    if prior.reference:
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)
    return torch.log_softmax(logits, -1)

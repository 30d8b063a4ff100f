r"""Variational Bayes for the prototype crowd, in closed form and differentiable: averages over parameters where EM takes the most probable ones.

    q(prototype[k])       = Normal(m_k, v_k I)       v_k = 1 / (tau + s_k)     m_k = v_k sum_i r[i, k] u[i]      s_k = sum_i r[i, k]
    q(class_prior)        = Dirichlet(a)             a_k = s_k + b + 1
    q(confusion[j, k, :]) = Dirichlet(A[j, k, :])    A = expected counts + c + 1; with a population, a mixture of such over its types
    r[i, :] = softmax_k( u[i].m_k - |m_k|^2/2 - d v_k / 2 + E ln class_prior[k] + sum_{j,l} V[i, jl] E ln confusion[j, k, l] )
    p(truth = k | u)      ~ a_k Normal(u | m_k, (1 + v_k) I)

`spread=False` keeps prototypes at their most probable values, v = 0, and averages over class prior and annotators alone: in many dimensions of which
few tell classes apart, d v_k counts uncertainty that no query meets, and classes with few items lose all of theirs.

Given responsibilities r all of q is their maximiser, so the bound is a function of r alone (`evidence_bound`); its expectation part is convex and
r is the softmax of its gradient, hence no step lowers the bound. Kumagai et al. 2025 name variational Bayes as future work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import LOG_ZERO, Prior, confusion_counts


@dataclass(frozen=True)
class Believed:
    """What is believed of annotators: E ln of their confusion matrices, and their means; LOG_ZERO and 0 outside a task's classes.

    evidence: ln of the probability of their expected counts under the prior, summed over annotators, up to what no counts change.
    """

    expected_log: Float[Tensor, "b j k l"]
    mean: Float[Tensor, "b j k l"]
    evidence: Float[Tensor, " b"]


def responsibilities(
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    steps: int = 2,
    spread: bool = True,
    tie_noise: float = 0.0,
) -> Float[Tensor, "b i k"]:
    """Those that the last update of q takes, as in `em.iterate`: from the soft majority vote, after `steps` - 1 steps."""
    found = em.start(support, tie_noise)
    for _ in range(steps - 1):
        found = step(found, support, prior, population, spread=spread)
    return found


def parameters(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    spread: bool = True,
) -> em.Parameters:
    """Posterior means, with the variance that predictions add to the unit one (`spread`)."""
    prototypes, variance, log_class_prior = class_parameters(responsibilities, support, prior)
    confusion = believed(responsibilities, support, prior, population).mean
    log_confusion = confusion.clamp(min=torch.finfo(confusion.dtype).tiny).log()
    return em.Parameters(
        prototypes,
        log_class_prior,
        torch.where(confusion > 0, log_confusion, LOG_ZERO),
        variance if spread else None,
    )


def class_parameters(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Means of prototypes, their variances, and logarithms of the mean class prior: all that classifying query items needs."""
    prototypes, spread = _prototypes(responsibilities, support, prior)
    counts = _class_concentration(responsibilities, support, prior)
    return (
        prototypes,
        spread,
        _within((counts / counts.sum(-1, keepdim=True)).clamp(min=1e-30).log(), support.classes),
    )


def step(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    spread: bool = True,
) -> Float[Tensor, "b i k"]:
    """Responsibilities after one update of q and one of r."""
    means, variance = _prototypes(responsibilities, support, prior)
    counts = _class_concentration(responsibilities, support, prior)
    of_class = torch.digamma(counts.clamp(min=1e-30)) - torch.digamma(counts.sum(-1, keepdim=True))
    occupancy = 0.5 * support.embeddings.shape[-1] * variance if spread else 0.0
    expected = believed(responsibilities, support, prior, population).expected_log
    # EM's own E step, where expectations of logarithms stand for the logarithms
    return em.e_step(em.Parameters(means, _within(of_class - occupancy, support.classes), expected), support)


def believed(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
) -> Believed:
    """q of the confusion matrices."""
    votes, num_classes = support.votes, responsibilities.shape[-1]
    counts = (
        votes.counts(responsibilities).unflatten(1, (votes.num_annotators, votes.num_labels)).transpose(2, 3)
    )  # (b, j, k, l)
    present = (
        None
        if support.classes is None
        else (support.classes[:, :, None] & support.classes[:, None, :])[:, None, None]
    )
    if population is None:
        one = confusion_counts(prior, num_classes, support.classes, responsibilities) + 1
        before = (
            one.expand(1, num_classes, num_classes)[:, None] if one.dim() < 3 else one[:, None]
        )  # (b, t, k, l)
        log_share = responsibilities.new_zeros(1)
    else:
        before = population.concentrations(num_classes, support.classes, responsibilities)
        log_share = torch.log_softmax(population.log_share.to(responsibilities), 0)
    after = counts[:, :, None] + before[:, None]  # (b, j, t, k, l)
    weight = log_share + _log_beta(after, present) - _log_beta(before[:, None], present)
    share = torch.softmax(weight, -1)[..., None, None]  # which type each annotator is of
    totals = _real(after, present).sum(-1, keepdim=True)
    totals = totals if present is None else torch.where(totals > 0, totals, 1.0)
    expected = (share * (torch.digamma(after) - torch.digamma(totals))).sum(2)
    mean = (share * _real(after, present) / totals).sum(2)
    if present is not None:
        expected = expected.masked_fill(~present[:, 0], LOG_ZERO)
    return Believed(expected, mean, torch.logsumexp(weight, -1).sum(-1))


def evidence_bound(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    spread: bool = True,
) -> Float[Tensor, " b"]:
    """The variational lower bound on ln p(embeddings, annotations) of each task, with every constant, at the best q for these responsibilities.

    With `spread=False` on ln p(embeddings, annotations, prototypes) at the best prototypes.
    """
    sizes, dimension = responsibilities.sum(1), support.embeddings.shape[-1]
    precision = torch.as_tensor(prior.precision, dtype=sizes.dtype, device=sizes.device)
    sums = torch.bmm(responsibilities.transpose(1, 2), support.embeddings).square().sum(-1)
    volume = precision / (precision + sizes) if spread else precision / (2 * math.pi)
    normals = 0.5 * dimension * volume.log() + 0.5 * sums / (precision + sizes)
    squares = (
        0.5
        * (support.embeddings.square().sum(-1) + dimension * math.log(2 * math.pi))
        * responsibilities.sum(-1)
    )
    real = support.classes
    counts = _class_concentration(responsibilities, support, prior)
    before = _class_concentration(torch.zeros_like(responsibilities), support, prior)
    rows = None if real is None else real[:, None]
    classes = _log_beta(counts[:, None], rows) - _log_beta(before[:, None], rows)
    entropy = torch.xlogy(responsibilities, responsibilities).sum((1, 2))
    kept = normals if real is None else normals * real
    return (
        kept.sum(-1)
        - squares.sum(-1)
        + classes
        + believed(responsibilities, support, prior, population).evidence
        - entropy
    )


def _prototypes(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"]]:
    """Means and variances."""
    variance = 1 / (responsibilities.sum(1) + prior.precision)
    return torch.bmm(responsibilities.transpose(1, 2), support.embeddings) * variance[..., None], variance


def _class_concentration(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b k"]:
    counts = responsibilities.sum(1) + prior.class_count + 1
    return counts if support.classes is None else counts * support.classes


def _within(logs: Float[Tensor, "b k"], classes: Bool[Tensor, "b k"] | None) -> Float[Tensor, "b k"]:
    return logs if classes is None else logs.masked_fill(~classes, LOG_ZERO)


def _real(values: Tensor, present: Tensor | None) -> Tensor:
    return values if present is None else values * present


def _log_beta(
    concentration: Float[Tensor, "*b k l"], present: Bool[Tensor, "*#b k l"] | None
) -> Float[Tensor, "*b"]:
    """ln of the Dirichlet's normaliser of every row, summed over rows, over what is present."""
    if present is None:
        return (torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))).sum(-1)
    totals = (concentration * present).sum(-1)
    totals = torch.where(present.any(-1), totals, 1.0)
    return ((torch.lgamma(torch.where(present, concentration, 1.0))).sum(-1) - torch.lgamma(totals)).sum(-1)

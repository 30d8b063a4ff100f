r"""Variational Bayes for the prototype crowd, in closed form and differentiable.

It averages over the parameters that EM maximises:

    s_k = sum_i r[i, k]
    q(prototype[k])       = Normal(m_k, v_k I)       v_k = 1 / (tau + s_k)     m_k = v_k sum_i r[i, k] u[i]
    q(class_prior)        = Dirichlet(a)             a_k = s_k + b + 1
    q(confusion[j, k, :]) = Dirichlet(A[j, k, :])    A = expected counts + c + 1; mixture over types
    r[i, :] = softmax_k( u[i].m_k - |m_k|^2/2 - d v_k / 2 + E ln class_prior[k] + sum_{j,l} V[i, jl] E ln
    confusion[j, k, l] )
    p(truth = k | u)      ~ a_k Normal(u | m_k, (1 + v_k) I)

`average_prototypes=False` fixes prototypes at their most probable values, v = 0, and averages over class
prior and annotators
alone: where few of many dimensions distinguish classes, d v_k counts uncertainty that affects no query, and
classes with few items lose all of them.

Given responsibilities r, q is the maximiser of the bound, so the bound is a function of r alone
(`evidence_bound`). Its expectation part is convex and r is the softmax of its gradient, hence no step lowers
the bound. Kumagai et al. 2025 name variational Bayes as future work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import (
    LOG_ZERO,
    Prior,
    class_pairs,
    confusion_pseudo_counts,
    fill_absent,
)


@dataclass(frozen=True)
class AnnotatorPosterior:
    """q of the confusion matrices: E ln confusion and E confusion, LOG_ZERO and 0 outside a task's classes.

    evidence: ln probability of the expected counts under the prior, summed over annotators, up to a constant.
    """

    expected_log: Float[Tensor, "b j k l"]
    mean: Float[Tensor, "b j k l"]
    evidence: Float[Tensor, " b"]


def iterate(
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    steps: int = 2,
    average_prototypes: bool = True,
    tie_noise: float = 0.0,
) -> Float[Tensor, "b i k"]:
    """Return the responsibilities that enter the last update of q: after `steps` - 1 steps from the votes."""
    responsibilities = em.initial_responsibilities(support, tie_noise)
    for _ in range(steps - 1):
        responsibilities = step(
            responsibilities, support, prior, population, average_prototypes=average_prototypes
        )
    return responsibilities


def step(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    average_prototypes: bool = True,
) -> Float[Tensor, "b i k"]:
    """Return the responsibilities after one update of q and one of r."""
    means, variance = _prototypes(responsibilities, support, prior)
    counts = _class_concentration(responsibilities, support, prior)
    log_class_prior = torch.digamma(counts.clamp(min=1e-30)) - torch.digamma(counts.sum(-1, keepdim=True))
    occupancy = 0.5 * support.embeddings.shape[-1] * variance if average_prototypes else 0.0
    # EM's own E step, with expectations of logarithms in place of the logarithms
    expected = em.Parameters(
        means,
        fill_absent(log_class_prior - occupancy, support.classes, LOG_ZERO),
        log_confusion=annotator_posterior(responsibilities, support, prior, population).expected_log,
    )
    return em.e_step(expected, support)


def parameters(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    average_prototypes: bool = True,
) -> em.Parameters:
    """Return posterior means, with the variance of the prototypes unless `average_prototypes` is false."""
    classes = class_parameters(responsibilities, support, prior, average_prototypes=average_prototypes)
    confusion = annotator_posterior(responsibilities, support, prior, population).mean
    log_confusion = confusion.clamp(min=torch.finfo(confusion.dtype).tiny).log()
    return em.Parameters(
        classes.prototypes,
        classes.log_class_prior,
        classes.variance,
        log_confusion=torch.where(confusion > 0, log_confusion, LOG_ZERO),
    )


def class_parameters(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    *,
    average_prototypes: bool = True,
) -> em.ClassParameters:
    """Return the posterior means that classify query items, as `em.class_parameters` returns the modes."""
    means, variance = _prototypes(responsibilities, support, prior)
    counts = _class_concentration(responsibilities, support, prior)
    log_class_prior = (counts / counts.sum(-1, keepdim=True)).clamp(min=1e-30).log()
    return em.ClassParameters(
        means,
        fill_absent(log_class_prior, support.classes, LOG_ZERO),
        variance if average_prototypes else None,
    )


def annotator_posterior(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
) -> AnnotatorPosterior:
    """Return q of the confusion matrices; with a population, a mixture over its types of annotators."""
    counts = em.expected_counts(responsibilities, support.votes).transpose(2, 3)  # (b, j, k, l)
    pairs = class_pairs(support.classes)
    present = None if pairs is None else pairs[:, None, None]  # (b, 1, 1, k, l)
    if population is None:
        rows = confusion_pseudo_counts(prior, counts.shape[-1], support.classes, counts)
        before, log_share = rows[:, None] + 1, counts.new_zeros(1)  # (b, t, k, l), one type
    else:
        before = population.concentrations(counts.shape[-1], support.classes, counts)
        log_share = torch.log_softmax(population.log_share.to(counts), 0)
    after = counts[:, :, None] + before[:, None]  # (b, j, t, k, l)
    weight = log_share + em.log_beta(after, present).sum(-1) - em.log_beta(before[:, None], present).sum(-1)
    share = torch.softmax(weight, -1)[..., None, None]  # P(annotator j is of type t)
    masked = fill_absent(after, present, 0.0)
    totals = masked.sum(-1, keepdim=True)
    totals = totals if present is None else torch.where(totals > 0, totals, 1.0)
    expected_log = (share * (torch.digamma(after) - torch.digamma(totals))).sum(2)
    return AnnotatorPosterior(
        fill_absent(expected_log, None if present is None else present[:, 0], LOG_ZERO),
        (share * masked / totals).sum(2),
        torch.logsumexp(weight, -1).sum(-1),
    )


def evidence_bound(
    responsibilities: Float[Tensor, "b i k"],
    support: Support,
    prior: Prior,
    population: Population | None = None,
    *,
    average_prototypes: bool = True,
) -> Float[Tensor, " b"]:
    """Return the lower bound on ln p(embeddings, annotations) at the best q, with every constant.

    With `average_prototypes=False`, on ln p(embeddings, annotations, prototypes) at the best prototypes.
    """
    sizes, dimension = responsibilities.sum(1), support.embeddings.shape[-1]
    precision = torch.as_tensor(prior.precision, dtype=sizes.dtype, device=sizes.device)
    sums = torch.bmm(responsibilities.transpose(1, 2), support.embeddings).square().sum(-1)
    volume = precision / (precision + sizes) if average_prototypes else precision / (2 * math.pi)
    normals = 0.5 * dimension * volume.log() + 0.5 * sums / (precision + sizes)
    squares = support.embeddings.square().sum(-1) + dimension * math.log(2 * math.pi)
    after = _class_concentration(responsibilities, support, prior)
    before = _class_concentration(torch.zeros_like(responsibilities), support, prior)
    return (
        fill_absent(normals, support.classes, 0.0).sum(-1)
        - (0.5 * squares * responsibilities.sum(-1)).sum(-1)
        + (em.log_beta(after, support.classes) - em.log_beta(before, support.classes))
        + annotator_posterior(responsibilities, support, prior, population).evidence
        - torch.xlogy(responsibilities, responsibilities).sum((1, 2))
    )


def _prototypes(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"]]:
    """Return means and variances of q(prototype)."""
    variance = 1 / (responsibilities.sum(1) + prior.precision)
    return torch.bmm(responsibilities.transpose(1, 2), support.embeddings) * variance[..., None], variance


def _class_concentration(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b k"]:
    """Return the concentration of q(class_prior)."""
    return fill_absent(responsibilities.sum(1) + prior.class_count + 1, support.classes, 0.0)

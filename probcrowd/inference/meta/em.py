r"""EM for the prototype crowd in closed form, batched over tasks and differentiable.

Kumagai et al. 2025, equations 5-7:

    start   r[i, k]            = share of item i's annotations that say k            soft majority vote
    M step  prototype[k]       = sum_i r[i, k] u[i] / (tau + sum_i r[i, k])
            class_prior[k]     = (sum_i r[i, k] + b) / (K b + N)
            confusion[j, k, l] = C[j, k, l] / sum_l C[j, k, l]
            C[j, k, l]         = c[k, l] + sum of r[i, k] over items i that j labelled l
    E step  r[i, :]  = softmax_k( u[i].prototype[k] - |prototype[k]|^2 / 2 + ln class_prior[k]
                                  + sum_{j,l} V[i, jl] ln confusion[j, k, l] )

r are the responsibilities (b i k), u the embeddings (b i d), V the votes (`probcrowd.data.vote_tensors`);
tau, b and c are the prior's precision, class_count and label_count. Sizes may differ between the tasks of a
batch: `items` and `classes` mark what is not padding, and an annotator without annotations changes nothing.
`fit.py` iterates these steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.data.table import vote_shares
from probcrowd.data.vote_tensors import Support, Votes
from probcrowd.models.meta.prototype import (
    LOG_ZERO,
    Prior,
    class_pairs,
    confusion_pseudo_counts,
    fill_absent,
    predictive_scores,
)


@dataclass(frozen=True)
class ClassParameters:
    """The fitted parameters that classify query items.

    `variance` is each prototype's posterior variance, in units of the embeddings' variance; None: prototypes
    are point estimates.
    """

    prototypes: Float[Tensor, "b k d"]
    log_class_prior: Float[Tensor, "b k"]
    variance: Float[Tensor, "b k"] | None = None

    @property
    def class_prior(self) -> Float[Tensor, "b k"]:
        """p(truth = k)."""
        return self.log_class_prior.exp()


@dataclass(frozen=True)
class Parameters(ClassParameters):
    """All fitted parameters of each task; log_confusion is LOG_ZERO outside the task's classes."""

    log_confusion: Float[Tensor, "b j k l"] = field(kw_only=True)

    @property
    def confusion(self) -> Float[Tensor, "b j k l"]:
        """P(label l | annotator j, truth k); rows sum to 1."""
        return self.log_confusion.exp()

    def double(self) -> Parameters:
        """Convert to double precision."""
        return Parameters(
            self.prototypes.double(),
            self.log_class_prior.double(),
            None if self.variance is None else self.variance.double(),
            log_confusion=self.log_confusion.double(),
        )


def initial_responsibilities(support: Support, tie_noise: float = 0.0) -> Float[Tensor, "b i k"]:
    """Return the soft majority vote, where EM starts: each label's share of the item's annotations.

    Padding items have 0. tie_noise: raise votes by up to this much, equally in every task, so that no two
    classes start with equal responsibilities; EM never separates classes that do.
    """
    totals = support.votes.totals().detach()
    if tie_noise:
        noise = tie_noise * torch.rand(totals.shape[1:], generator=torch.Generator().manual_seed(0)).to(
            totals
        )
        noise = noise * (totals.sum(-1, keepdim=True) > 0)
        totals = totals + (noise if support.classes is None else noise * support.classes[:, None])
    return vote_shares(totals)


def em_step(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b i k"]:
    """Return the responsibilities after one M step and one E step."""
    return e_step(m_step(responsibilities, support, prior), support)


def m_step(responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior) -> Parameters:
    """Return the parameters that maximise the expected complete log posterior, equation (7)."""
    classes = class_parameters(responsibilities, support, prior)
    counts = confusion_counts(responsibilities, support, prior)  # (b, j, l, k)
    pairs = class_pairs(support.classes)
    pairs = None if pairs is None else pairs[:, None]  # symmetric, so it fits counts as well
    present = None if support.classes is None else support.classes[:, None, None, :]
    shares = fill_absent(counts, pairs, 1.0) / fill_absent(counts.sum(2, keepdim=True), present, 1.0)
    log_confusion = fill_absent(shares.log(), pairs, LOG_ZERO).transpose(2, 3)
    return Parameters(classes.prototypes, classes.log_class_prior, log_confusion=log_confusion)


def class_parameters(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> ClassParameters:
    """Return the M step's prototypes and class prior, without the cost of the confusion matrices."""
    class_sizes = responsibilities.sum(1)  # (b, k)
    sums = torch.bmm(responsibilities.transpose(1, 2), support.embeddings)
    # The number of items replaces the sum of responsibilities, as in (7): they are equal on the simplex
    num_items = responsibilities.shape[1] if support.items is None else support.items.sum(-1)[:, None]
    num_classes = class_sizes.shape[-1] if support.classes is None else support.classes.sum(-1)[:, None]
    log_prior = ((class_sizes + prior.class_count) / (num_classes * prior.class_count + num_items)).log()
    return ClassParameters(
        sums / (class_sizes + prior.precision)[..., None], fill_absent(log_prior, support.classes, LOG_ZERO)
    )


def confusion_counts(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b j l k"]:
    """Return the expected number of labels l of annotator j on items of class k, plus pseudo-counts."""
    pseudo_counts = confusion_pseudo_counts(
        prior, responsibilities.shape[-1], support.classes, responsibilities
    )
    return expected_counts(responsibilities, support.votes) + pseudo_counts[:, None]  # symmetric in k and l


def expected_counts(weights: Float[Tensor, "b i k"], votes: Votes) -> Float[Tensor, "b j l k"]:
    """Return V' @ weights, by annotator and label."""
    return votes.counts(weights).unflatten(1, (votes.num_annotators, votes.num_labels))


def e_step(parameters: Parameters, support: Support) -> Float[Tensor, "b i k"]:
    """Return p(truth | embedding, annotations) of support items, equation (6); 0 for padding items."""
    # Over a short last axis torch's softmax is ten times slower than over the middle one
    responsibilities = torch.softmax(log_joint(parameters, support).transpose(1, 2), 1).transpose(1, 2)
    return responsibilities if support.items is None else responsibilities * support.items[..., None]


def log_joint(parameters: Parameters, support: Support) -> Float[Tensor, "b i k"]:
    """Return ln p(embedding, annotations, truth = k), without the constant -|u|^2/2 - (d/2) ln 2 pi."""
    table = parameters.log_confusion.transpose(2, 3).flatten(1, 2)  # (b, j l, k)
    return predictive_scores(
        support.embeddings, parameters.prototypes, parameters.log_class_prior
    ) + support.votes.evidence(table)


def log_posterior(parameters: Parameters, support: Support, prior: Prior) -> Float[Tensor, " b"]:
    """Return ln p(embeddings, annotations, parameters) with every constant; EM never lowers it."""
    items = torch.logsumexp(log_joint(parameters, support), -1) - _gaussian_constant(support)
    items = items if support.items is None else items * support.items
    return items.sum(-1) + log_prior(parameters, support, prior)


def evidence_bound(
    responsibilities: Float[Tensor, "b i k"], parameters: Parameters, support: Support, prior: Prior
) -> Float[Tensor, " b"]:
    """Return the lower bound on `log_posterior`, equation (5); both are equal after an E step."""
    expected = responsibilities * (log_joint(parameters, support) - _gaussian_constant(support)[..., None])
    entropy = torch.xlogy(responsibilities, responsibilities)
    return (expected - entropy).sum((1, 2)) + log_prior(parameters, support, prior)


def log_prior(parameters: Parameters, support: Support, prior: Prior) -> Float[Tensor, " b"]:
    """Return ln p(parameters) of each task, over its classes and all annotators, labelled items or not."""
    prototypes = parameters.prototypes
    tasks, num_classes, dimension = prototypes.shape
    real = prototypes.new_ones(tasks, num_classes, dtype=torch.bool)
    real = real if support.classes is None else support.classes
    precision = torch.as_tensor(prior.precision, dtype=prototypes.dtype, device=prototypes.device)
    normals = 0.5 * dimension * (precision / (2 * math.pi)).log()
    normals = normals - 0.5 * precision * prototypes.square().sum(-1)
    class_counts = (precision.new_zeros(()) + prior.class_count).expand(tasks, num_classes)
    label_counts = confusion_pseudo_counts(prior, num_classes, support.classes, prototypes)
    rows = _log_dirichlet(
        parameters.log_confusion, label_counts[:, None], real[:, None, None, :]
    )  # (b, j, k)
    return (
        (normals * real).sum(-1)
        + _log_dirichlet(parameters.log_class_prior, class_counts, real)
        + (rows * real[:, None]).sum((1, 2))
    )


def log_beta(
    concentration: Float[Tensor, "*#b k"], present: Bool[Tensor, "*#b k"] | None
) -> Float[Tensor, "*b"]:
    """Return ln B(concentration), the log normaliser of a Dirichlet over present entries; 0 without any."""
    terms = torch.lgamma(fill_absent(concentration, present, 1.0)).sum(-1)
    totals = fill_absent(concentration, present, 0.0).sum(-1)
    return terms - torch.lgamma(fill_absent(totals, None if present is None else present.any(-1), 1.0))


def _log_dirichlet(
    logs: Float[Tensor, "*b k"], counts: Float[Tensor, "*#b k"], present: Bool[Tensor, "*#b k"]
) -> Float[Tensor, "*b"]:
    """Return ln Dirichlet(counts + 1) at exp(logs)."""
    return (counts * torch.where(present, logs, 0.0)).sum(-1) - log_beta(counts + 1, present)


def _gaussian_constant(support: Support) -> Float[Tensor, "b i"]:
    """Return |u|^2/2 + (d/2) ln 2 pi, which `log_joint` leaves out."""
    dimension = support.embeddings.shape[-1]
    return 0.5 * support.embeddings.square().sum(-1) + 0.5 * dimension * math.log(2 * math.pi)

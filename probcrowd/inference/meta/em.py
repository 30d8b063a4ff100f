r"""Closed-form EM for the prototype crowd, batched over tasks and differentiable (Kumagai et al. 2025, equations 5-8).

    start   r[i, k]  = share of item i's annotations that say k                                      soft majority vote
    M step  prototype[k]       = sum_i r[i, k] u[i] / (tau + sum_i r[i, k])
            class_prior[k]     = (sum_i r[i, k] + b) / (K b + N)
            confusion[j, k, l] = (sum over items i that j called l of r[i, k] + c[k, l]) / (the same, summed over l)
    E step  r[i, :]  = softmax_k( u[i].prototype[k] - |prototype[k]|^2 / 2 + log class_prior[k] + sum_{j,l} V[i, jl] log confusion[j, k, l] )

r are the responsibilities, u the embeddings (b i d), V the votes (`probcrowd.data.vote_tensors`). J steps are J M steps with J - 1 E steps between
them, so one step never uses the confusion matrices. Sizes may differ between the tasks of a batch: `items` and `classes` mark the real
ones, an annotator without votes changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import jacobian as curvature
from probcrowd.inference.meta.fixed_point import FixedPoint, implicit_step, one_step, run_to_fixed_point
from probcrowd.models.meta.prototype import LOG_ZERO, Prior, confusion_counts, label_counts, predictive_scores

Gradient = Literal["unrolled", "implicit", "implicit-neumann", "one-step"]


@dataclass(frozen=True)
class Parameters:
    """What EM fits in each task. `confusion[b, j, k, l]` = P(annotator j says l | truth k), 0 for classes that are not in the task.

    `spread` is the variance of each prototype where it is known, in units of the embeddings' variance: `inference.variational`.
    """

    prototypes: Float[Tensor, "b k d"]
    log_class_prior: Float[Tensor, "b k"]
    log_confusion: Float[Tensor, "b j k l"]
    spread: Float[Tensor, "b k"] | None = None

    @property
    def class_prior(self) -> Float[Tensor, "b k"]:
        """p(truth = k)."""
        return self.log_class_prior.exp()

    @property
    def confusion(self) -> Float[Tensor, "b j k l"]:
        """P(label l | annotator j, truth k); rows sum to 1."""
        return self.log_confusion.exp()

    def double(self) -> Parameters:
        """The same in double precision."""
        spread = None if self.spread is None else self.spread.double()
        return Parameters(
            self.prototypes.double(), self.log_class_prior.double(), self.log_confusion.double(), spread
        )


def fit(
    support: Support,
    prior: Prior,
    *,
    steps: int = 2,
    gradient: Gradient = "unrolled",
    tolerance: float = 1e-8,
) -> Parameters:
    """MAP parameters after `steps` EM steps from the soft majority vote, differentiable in the embeddings and in the prior's tensors.

    gradient: "unrolled" differentiates through every step (the paper). "one-step" differentiates the last E and M step only, at constant
    memory. "implicit" and "implicit-neumann" iterate until no responsibility moves more than `tolerance` (or rounding allows), at most
    `steps` steps, and differentiate the fixed point, by a dense solve of (items x classes) unknowns per task or matrix-free by a Neumann series.
    A task without a fixed point that this is valid for falls back with a warning: see `fixed_point.implicit_step`.
    """
    return m_step(
        iterate(support, prior, steps=steps, gradient=gradient, tolerance=tolerance), support, prior
    )


def iterate(
    support: Support,
    prior: Prior,
    *,
    steps: int = 2,
    gradient: Gradient = "unrolled",
    tolerance: float = 1e-8,
    tie_noise: float = 0.0,
) -> Float[Tensor, "b i k"]:
    """The responsibilities that the last M step of `fit` takes, with their gradient: those after `steps` - 1 EM steps, or one step after the
    fixed point where the gradient is implicit."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step = partial(em_step, support=support, prior=prior)
    if gradient in ("implicit", "implicit-neumann"):
        reached = converge(support, prior, steps=steps, tolerance=tolerance, tie_noise=tie_noise)
        return implicit_step(
            step, reached, curvature.at(reached.value, support, prior), dense=gradient == "implicit"
        )
    responsibilities = start(support, tie_noise)
    if gradient == "unrolled":
        for _ in range(steps - 1):
            responsibilities = step(responsibilities)
    elif steps > 1:
        with torch.no_grad():
            for _ in range(steps - 2):
                responsibilities = step(responsibilities)
        responsibilities = one_step(step, responsibilities)
    return responsibilities


def converge(
    support: Support, prior: Prior, *, steps: int = 1000, tolerance: float = 1e-8, tie_noise: float = 0.0
) -> FixedPoint:
    """Responsibilities at the fixed point of EM, with each task's steps and last change; no gradient.

    A tolerance below what rounding allows, 16 units in the last place of 1, is raised to that.
    """
    tolerance = max(tolerance, 16 * torch.finfo(support.embeddings.dtype).eps)
    with torch.no_grad():
        return run_to_fixed_point(
            partial(em_step, support=support, prior=prior),
            start(support, tie_noise),
            steps=steps,
            tolerance=tolerance,
        )


def start(support: Support, tie_noise: float = 0.0) -> Float[Tensor, "b i k"]:
    """Soft majority vote: each label's share of the item's annotations (1/|I_n| in the paper's letters), 0 for padding items.

    tie_noise: votes are raised by up to so much, the same in every task, so that no two classes start alike: EM never parts those that do.
    """
    totals = support.votes.totals().detach()
    if tie_noise:
        noise = (
            torch.rand(totals.shape[1:], generator=torch.Generator().manual_seed(0)).to(totals) * tie_noise
        )
        noise = noise * (totals.sum(-1, keepdim=True) > 0)
        totals = totals + (noise if support.classes is None else noise * support.classes[:, None])
    return totals / totals.sum(-1, keepdim=True).clamp(min=torch.finfo(totals.dtype).tiny)


def em_step(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b i k"]:
    """Responsibilities after one M and one E step."""
    return e_step(m_step(responsibilities, support, prior), support)


def m_step(responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior) -> Parameters:
    """The parameters that maximise the expected complete log posterior, equation (7)."""
    return Parameters(
        *class_parameters(responsibilities, support, prior), _log_confusion(responsibilities, support, prior)
    )


def class_parameters(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "b k"]]:
    """Prototypes and log class prior of the M step: all that classifying query items needs."""
    class_sizes = responsibilities.sum(1)  # (b, k)
    prototypes = (
        torch.bmm(responsibilities.transpose(1, 2), support.embeddings)
        / (class_sizes + prior.precision)[..., None]
    )

    class_counts = class_sizes + prior.class_count
    # The number of items stands for the sum of responsibilities, as in (7): equal on the simplex, constant off it
    real_items = responsibilities.shape[1] if support.items is None else support.items.sum(-1)[:, None]
    real_classes = class_counts.shape[-1] if support.classes is None else support.classes.sum(-1)[:, None]
    log_class_prior = (class_counts / (real_classes * prior.class_count + real_items)).log()
    if support.classes is not None:
        log_class_prior = log_class_prior.masked_fill(~support.classes, LOG_ZERO)
    return prototypes, log_class_prior


def e_step(parameters: Parameters, support: Support) -> Float[Tensor, "b i k"]:
    """p(truth | embedding, annotations; parameters) of every support item, equation (6); rows sum to 1, 0 for padding items."""
    # Over a short last axis torch's softmax is ten times slower than over the middle one
    responsibilities = torch.softmax(log_joint(parameters, support).transpose(1, 2), 1).transpose(1, 2)
    return responsibilities if support.items is None else responsibilities * support.items[..., None]


def log_joint(parameters: Parameters, support: Support) -> Float[Tensor, "b i k"]:
    """ln p(embedding, annotations, truth = k) of every item, up to the same constant for every k: -|u|^2/2 - (d/2) ln 2 pi."""
    table = parameters.log_confusion.transpose(2, 3).flatten(1, 2)  # (b, j l, k)
    return predictive_scores(
        support.embeddings, parameters.prototypes, parameters.log_class_prior
    ) + support.votes.evidence(table)


def log_posterior(parameters: Parameters, support: Support, prior: Prior) -> Float[Tensor, " b"]:
    """ln p(embeddings, annotations, parameters) of each task, with every constant: what EM never lowers."""
    dimension = support.embeddings.shape[-1]
    items = torch.logsumexp(log_joint(parameters, support), -1) - 0.5 * support.embeddings.square().sum(-1)
    items = items - 0.5 * dimension * math.log(2 * math.pi)
    items = items if support.items is None else items * support.items
    return items.sum(-1) + log_prior(parameters, support, prior)


def evidence_bound(
    responsibilities: Float[Tensor, "b i k"], parameters: Parameters, support: Support, prior: Prior
) -> Float[Tensor, " b"]:
    """Equation (5), with every constant: the lower bound on `log_posterior` that any responsibilities give; tight after an E step."""
    dimension = support.embeddings.shape[-1]
    constant = 0.5 * support.embeddings.square().sum(-1, keepdim=True) + 0.5 * dimension * math.log(
        2 * math.pi
    )
    expected = responsibilities * (log_joint(parameters, support) - constant) - torch.xlogy(
        responsibilities, responsibilities
    )
    return expected.sum((1, 2)) + log_prior(parameters, support, prior)


def log_prior(parameters: Parameters, support: Support, prior: Prior) -> Float[Tensor, " b"]:
    """ln p(parameters) of each task, over the classes that it has and over all annotators, voting or not."""
    tasks, num_classes, dimension = parameters.prototypes.shape
    real = (
        parameters.prototypes.new_ones(tasks, num_classes, dtype=torch.bool)
        if support.classes is None
        else support.classes
    )
    precision = torch.as_tensor(
        prior.precision, dtype=parameters.prototypes.dtype, device=parameters.prototypes.device
    )
    normals = 0.5 * dimension * (
        precision / (2 * math.pi)
    ).log() - 0.5 * precision * parameters.prototypes.square().sum(-1)
    class_counts = (precision.new_zeros(()) + prior.class_count).expand(tasks, num_classes)
    label_counts = confusion_counts(prior, num_classes, support.classes, parameters.prototypes).expand(
        tasks, num_classes, num_classes
    )
    rows = _log_dirichlet(
        parameters.log_confusion, label_counts[:, None], real[:, None, None, :]
    )  # (b, j, k)
    return (
        (normals * real).sum(-1)
        + _log_dirichlet(parameters.log_class_prior, class_counts, real)
        + (rows * real[:, None]).sum((1, 2))
    )


def _log_confusion(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b j k l"]:
    counts = label_counts(responsibilities, support, prior)  # (b, j, l, k)
    totals = counts.sum(2, keepdim=True)
    if support.classes is None:
        return (counts / totals).log().transpose(2, 3)
    present = support.classes[:, None, :, None] & support.classes[:, None, None, :]
    shares = counts.masked_fill(~present, 1.0) / totals.masked_fill(~support.classes[:, None, None, :], 1.0)
    return shares.log().masked_fill(~present, LOG_ZERO).transpose(2, 3)


def _log_dirichlet(
    logs: Float[Tensor, "*b k"], counts: Float[Tensor, "*#b k"], real: Bool[Tensor, "*#b k"]
) -> Float[Tensor, "*b"]:
    """ln Dirichlet(counts + 1) at exp(logs), over the real entries of the last axis."""
    concentration = (counts + 1) * real
    normaliser = torch.lgamma(concentration.sum(-1)) - torch.lgamma(
        torch.where(real, concentration, 1.0)
    ).sum(-1)
    return normaliser + (counts * torch.where(real, logs, 0.0)).sum(-1)

r"""The prototype crowd: Gaussian classes in an embedding space, a confusion matrix per annotator (Kumagai et al. 2025, equations 1-4).

    class_prior           ~ Dirichlet(b + 1, ..., b + 1)
    prototype[k]          ~ Normal(0, I / tau)                      k true class
    confusion[j, k, :]    ~ Dirichlet(c[k, :] + 1)                  j annotator
    truth[i]              ~ Categorical(class_prior)                i item
    embedding[i]          ~ Normal(prototype[truth[i]], I)          observed
    label[n]              ~ Categorical(confusion[j[n], truth[i[n]], :])    observed, one row n per annotation; no row, no term

      +-- task ---------------------------------------------------------------------+
      |  class_prior -> truth -> embedding <- prototype      label <- confusion     |
      |                   |      (item)       (true_class)     ^     (annotator,    |
      |                   +------------------------------------+      true_class)   |
      +-----------------------------------------------------------------------------+

Annotations have no plate of their own: with `truth` enumerated, a plate of rows outside the plate of items silently gives a wrong
density. Their log likelihood is gathered by item first (`votes.evidence`) and enters as one factor per item and class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support, Votes

Scalar = Float[Tensor, ""] | float

# Stands for log 0: finite, so that 0 * log 0 is 0 in a matrix product
LOG_ZERO = -1e30


@dataclass(frozen=True)
class Prior:
    """What is believed before a task is seen. Numbers, or tensors of no dimension where a gradient is wanted.

    `precision` is the paper's tau > 0, `class_count` its b > 0 and `label_count` its c > 0: pseudo-counts, that is Dirichlet
    concentrations minus 1, so the MAP estimate is interior and no logarithm of 0 arises.

    Without `accuracy` the confusion prior is the paper's, Dirichlet(c + 1) on each row whatever its class. It says accuracy 1/K. With `accuracy`
    = a it favours the diagonal: off-diagonal concentrations stay c + 1, the diagonal one is (K - 1)(c + 1) a / (1 - a), so that the
    prior mean of an annotator's accuracy is a for every number of classes K. Its weight grows with K: a row counts as (K - 1)(c + 1) / (1 - a)
    labels. It needs a >= 1 / K.
    """

    precision: Scalar = 0.1
    class_count: Scalar = 10.0
    label_count: Scalar = 0.5
    accuracy: Scalar | None = None


def confusion_counts(
    prior: Prior, num_classes: int, classes: Bool[Tensor, "b k"] | None, like: Tensor
) -> Float[Tensor, "..."]:
    """Pseudo-counts of the confusion rows, of shape (), (k, l) or (b, k, l); symmetric in k and l; the same for every annotator.

    0 where `classes` says that a class or label is not part of the task.

    Raises:
        ValueError: `prior.accuracy` is worse than guessing, below 1 / K.
    """
    count = torch.as_tensor(prior.label_count, dtype=like.dtype, device=like.device)
    if prior.accuracy is not None:
        accuracy = torch.as_tensor(prior.accuracy, dtype=like.dtype, device=like.device)
        sizes = (
            torch.tensor(num_classes, dtype=like.dtype, device=like.device)
            if classes is None
            else classes.sum(-1)[:, None, None].to(like.dtype)
        )
        if bool((accuracy * sizes < 1 - 1e-6).logical_and(sizes > 1).any()):
            raise ValueError(
                f"prior accuracy {float(accuracy.detach()):g} is worse than guessing among {int(sizes.min())} classes: give at least 1 / classes"
            )
        diagonal = torch.where(sizes > 1, (sizes - 1) * (count + 1) * accuracy / (1 - accuracy) - 1, count)
        count = count + torch.eye(num_classes, dtype=like.dtype, device=like.device) * (diagonal - count)
    if classes is not None:
        count = count * (classes[:, :, None] & classes[:, None, :])
    return count


def label_counts(
    responsibilities: Float[Tensor, "b i k"], support: Support, prior: Prior
) -> Float[Tensor, "b j l k"]:
    """How often each annotator is expected to have said l of class k, with the prior's pseudo-counts; label before class, as votes count."""
    votes = support.votes
    counts = votes.counts(responsibilities).unflatten(1, (votes.num_annotators, votes.num_labels))
    pseudo = confusion_counts(prior, responsibilities.shape[-1], support.classes, responsibilities)
    return counts + (
        pseudo if pseudo.dim() < 3 else pseudo[:, None]
    )  # symmetric in k and l, so the transposed layout is the same


def prototype_crowd(
    embeddings: Float[Tensor, "b i d"],
    votes: Votes,
    prior: Prior,
    num_classes: int,
    items: Bool[Tensor, "b i"] | None = None,
) -> None:
    """Declare the model of a batch of tasks with the same number of classes; `items` marks the real ones where tasks are padded."""
    tasks, num_items, dimension = embeddings.shape
    one, count = embeddings.new_ones(()), confusion_counts(prior, num_classes, None, embeddings)
    with pyro.plate("task", tasks, dim=-3):
        class_prior = pyro.sample(
            "class_prior", dist.Dirichlet((one * (prior.class_count + 1)).expand(num_classes))
        )  # (b, 1, 1, k)
        with pyro.plate("true_class", num_classes, dim=-1):
            spread = (one * prior.precision).rsqrt()
            prototype = pyro.sample(
                "prototype", dist.Normal(embeddings.new_zeros(dimension), spread).to_event(1)
            )  # (b, 1, k, d)
            with pyro.plate("annotator", votes.num_annotators, dim=-2):
                rows = (count + 1).expand(num_classes, num_classes)
                confusion = pyro.sample("confusion", dist.Dirichlet(rows))  # (b, j, k, l)
        evidence = votes.evidence(confusion.log().transpose(2, 3).flatten(1, 2))  # (b, i, k)
        shown = torch.ones_like(embeddings[..., 0], dtype=torch.bool) if items is None else items
        with (
            pyro.plate("item", num_items, dim=-1),
            pyro.poutine.mask(mask=cast(torch.BoolTensor, shown[:, None])),
        ):
            truth = pyro.sample("truth", dist.Categorical(class_prior), infer={"enumerate": "parallel"})
            task = torch.arange(tasks, device=embeddings.device)[:, None, None]
            item = torch.arange(num_items, device=embeddings.device)
            pyro.sample(
                "embedding", dist.Normal(prototype[task, 0, truth], 1.0).to_event(1), obs=embeddings[:, None]
            )
            pyro.factor("label", evidence[task, item, truth])


def predictive_scores(
    queries: Float[Tensor, "b q d"],
    prototypes: Float[Tensor, "b k d"],
    log_class_prior: Float[Tensor, "b k"],
    spread: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b q k"]:
    """ln p(query embedding, truth = k; fitted parameters), up to what is the same for every k: class prior times Gaussian.

    spread: variances of the prototypes, which add to the unit variance of the embeddings; None: prototypes are known.
    """
    if spread is None:
        offset = log_class_prior - 0.5 * prototypes.square().sum(-1)
        return torch.baddbmm(offset[:, None], queries, prototypes.transpose(1, 2))
    variance, dimension = 1 + spread, queries.shape[-1]
    squares = queries.square().sum(-1, keepdim=True) - 2 * torch.bmm(queries, prototypes.transpose(1, 2))
    squares = squares + prototypes.square().sum(-1)[:, None]
    return (log_class_prior - 0.5 * dimension * variance.log())[:, None] - 0.5 * squares / variance[:, None]


def log_predictive(
    queries: Float[Tensor, "b q d"],
    prototypes: Float[Tensor, "b k d"],
    log_class_prior: Float[Tensor, "b k"],
    spread: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b q k"]:
    """log p(truth = k | query embedding; fitted parameters), equation (8); with `spread`, averaged over the prototypes."""
    return torch.log_softmax(predictive_scores(queries, prototypes, log_class_prior, spread), -1)

r"""The prototype crowd: Gaussian classes in an embedding space, a confusion matrix per annotator.

Kumagai et al. 2025, equations 1-4:

    class_prior           ~ Dirichlet(b + 1, ..., b + 1)
    prototype[k]          ~ Normal(0, I / tau)                      k true class
    confusion[j, k, :]    ~ Dirichlet(c[k, :] + 1)                  j annotator
    truth[i]              ~ Categorical(class_prior)                i item
    embedding[i]          ~ Normal(prototype[truth[i]], I)          observed
    label[n]              ~ Categorical(confusion[j[n], truth[i[n]], :])    observed, one row n per annotation

      +-- task ---------------------------------------------------------------------+
      |  class_prior -> truth -> embedding <- prototype      label <- confusion     |
      |                   |      (item)       (true_class)     ^     (annotator,    |
      |                   +------------------------------------+      true_class)   |
      +-----------------------------------------------------------------------------+

Annotations have no plate of their own: with `truth` enumerated, a plate of rows outside the plate of items
silently gives a wrong density. Their log likelihood is summed per item first (`votes.evidence`) and enters as
one factor per item and class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.data.vote_tensors import Votes

Scalar = Float[Tensor, ""] | float

# Stands for log 0: finite, so that 0 * log 0 is 0 in a matrix product
LOG_ZERO = -1e30


@dataclass(frozen=True)
class Prior:
    """Prior of a task's parameters: numbers, or scalar tensors to differentiate with respect to them.

    `precision` is the paper's tau > 0, `class_count` its b > 0 and `label_count` its c > 0. Counts are
    pseudo-counts, that is Dirichlet concentrations minus 1, so the MAP estimate is interior and no logarithm
    of 0 arises.

    Without `accuracy` the confusion prior is the paper's: Dirichlet(c + 1) on every row, which expects an
    accuracy of 1/K. With `accuracy` = a it favours the diagonal: concentrations are c + 1 off the diagonal
    and (K - 1)(c + 1) a / (1 - a) on it, so the prior mean of an annotator's accuracy is a for every number
    of classes K. Its weight grows with K: a row counts as much as (K - 1)(c + 1) / (1 - a) labels. It needs a
    >= 1 / K.
    """

    precision: Scalar = 0.1
    class_count: Scalar = 10.0
    label_count: Scalar = 0.5
    accuracy: Scalar | None = None


def confusion_pseudo_counts(
    prior: Prior, num_classes: int, classes: Bool[Tensor, "b k"] | None, like: Tensor
) -> Float[Tensor, "#b k l"]:
    """Return the pseudo-counts c of the confusion rows, equal for all annotators and symmetric in k and l.

    They are 0 for classes and labels outside the task (`classes`; None: all are inside). `like` gives dtype
    and device.

    Raises:
        ValueError: `prior.accuracy` is worse than guessing, that is below 1 / K.
    """
    count = torch.as_tensor(prior.label_count, dtype=like.dtype, device=like.device)
    counts = count.expand(1, num_classes, num_classes)
    if prior.accuracy is not None:
        accuracy = torch.as_tensor(prior.accuracy, dtype=like.dtype, device=like.device)
        sizes = classes_per_task(num_classes, classes, like)[:, None, None]
        if bool(((accuracy * sizes < 1 - 1e-6) & (sizes > 1)).any()):
            raise ValueError(
                f"prior accuracy {float(accuracy.detach()):g} is worse than guessing among "
                f"{int(sizes.min())} classes: "
                "give at least 1 / classes"
            )
        diagonal = torch.where(sizes > 1, (sizes - 1) * (count + 1) * accuracy / (1 - accuracy) - 1, count)
        counts = count + torch.eye(num_classes, dtype=like.dtype, device=like.device) * (diagonal - count)
    return fill_absent(counts, class_pairs(classes), 0.0)


def classes_per_task(
    num_classes: int, classes: Bool[Tensor, "b k"] | None, like: Tensor
) -> Float[Tensor, " #b"]:
    """Count the classes of each task, as numbers of the dtype of `like`."""
    return like.new_full((1,), num_classes) if classes is None else classes.sum(-1).to(like.dtype)


def class_pairs(classes: Bool[Tensor, "b k"] | None) -> Bool[Tensor, "b k l"] | None:
    """Mark the pairs of a true class and a label that both belong to the task; None if all do."""
    return None if classes is None else classes[:, :, None] & classes[:, None, :]


def fill_absent(values: Tensor, present: Tensor | None, fill: float) -> Tensor:
    """Replace values that are not `present` by `fill`; None: all are present."""
    return values if present is None else torch.where(present, values, fill)


def prototype_crowd(
    embeddings: Float[Tensor, "b i d"],
    votes: Votes,
    prior: Prior,
    num_classes: int,
    items: Bool[Tensor, "b i"] | None = None,
) -> None:
    """Declare the model of a batch of tasks with equally many classes; `items` marks what is not padding."""
    tasks, num_items, dimension = embeddings.shape
    one, rows = embeddings.new_ones(()), confusion_pseudo_counts(prior, num_classes, None, embeddings)[0] + 1
    with pyro.plate("task", tasks, dim=-3):
        class_prior = pyro.sample(
            "class_prior", dist.Dirichlet((one * (prior.class_count + 1)).expand(num_classes))
        )  # (b, 1, 1, k)
        with pyro.plate("true_class", num_classes, dim=-1):
            deviation = (one * prior.precision).rsqrt()
            prototype = pyro.sample(
                "prototype", dist.Normal(embeddings.new_zeros(dimension), deviation).to_event(1)
            )  # (b, 1, k, d)
            with pyro.plate("annotator", votes.num_annotators, dim=-2):
                confusion = pyro.sample("confusion", dist.Dirichlet(rows))  # (b, j, k, l)
        evidence = votes.evidence(confusion.log().transpose(2, 3).flatten(1, 2))  # (b, i, k)
        real = torch.ones_like(embeddings[..., 0], dtype=torch.bool) if items is None else items
        with (
            pyro.plate("item", num_items, dim=-1),
            pyro.poutine.mask(mask=cast(torch.BoolTensor, real[:, None])),
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
    variance: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b q k"]:
    """Return ln p(query embedding, truth = k), class prior times Gaussian, up to a constant equal for all k.

    variance: of the prototypes, added to the unit variance of the embeddings; None: prototypes are known.
    """
    if variance is None:
        offset = log_class_prior - 0.5 * prototypes.square().sum(-1)
        return torch.baddbmm(offset[:, None], queries, prototypes.transpose(1, 2))
    total, dimension = 1 + variance, queries.shape[-1]
    squares = queries.square().sum(-1, keepdim=True) - 2 * torch.bmm(queries, prototypes.transpose(1, 2))
    squares = squares + prototypes.square().sum(-1)[:, None]
    return (log_class_prior - 0.5 * dimension * total.log())[:, None] - 0.5 * squares / total[:, None]


def log_predictive(
    queries: Float[Tensor, "b q d"],
    prototypes: Float[Tensor, "b k d"],
    log_class_prior: Float[Tensor, "b k"],
    variance: Float[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b q k"]:
    """Return ln p(truth = k | query embedding), equation (8); averaged over prototypes with a `variance`."""
    return torch.log_softmax(predictive_scores(queries, prototypes, log_class_prior, variance), -1)

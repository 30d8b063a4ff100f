"""Scores of batches of tasks as torch tensors, from log probabilities and on any device.

`probcrowd.metrics.scores` has the same scores of probabilities as arrays; importing it does not load torch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from probcrowd.metrics.scores import TIE


def highest(scores: Float[Tensor, "*b k"]) -> Bool[Tensor, "*b k"]:
    """Which classes have the highest log probability or total of votes, several where they tie."""
    return scores >= scores.amax(-1, keepdim=True) - TIE


def accuracy(scores: Float[Tensor, "*b k"], truth: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Whether the highest-scoring class is the true one: 1, 0, or 1/m in a tie of m.

    This is the expectation if one is picked at random; picking by index would reward whatever class comes
    first.
    """
    best = highest(scores)
    hit = best.gather(-1, truth[..., None])[..., 0]
    return hit.to(scores.dtype) / best.sum(-1)


def log_loss(log_probabilities: Float[Tensor, "*b k"], truth: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """-log probability of the truth, in nats."""
    return -log_probabilities.gather(-1, truth[..., None])[..., 0]


def confusion_error(estimated: Float[Tensor, "*b k l"], true: Float[Tensor, "*b k l"]) -> Float[Tensor, "*b"]:
    """Mean total variation distance between the rows of two confusion matrices: 0 equal, 1 disjoint."""
    return 0.5 * (estimated - true).abs().sum(-1).mean(-1)


def aligned_confusion_error(
    estimated: Float[Tensor, "j k l"], true: Float[Tensor, "j k l"]
) -> Float[Tensor, " j"]:
    """`confusion_error` by annotator under the permutation of true classes, one for all, with the least sum.

    Labels alone cannot name the classes.
    """
    cost = (estimated[:, :, None] - true[:, None]).abs().sum((0, 3))  # (k, k)
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return confusion_error(estimated[:, torch.as_tensor(rows)[torch.as_tensor(columns).argsort()]], true)

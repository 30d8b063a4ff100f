"""Scores of predictions, with the conventions that the tables use."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval: mean +- 1.96 standard errors over independent tasks."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def accuracy(scores: Float[Tensor, "*b k"], truth: Int[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The probability of hitting the truth when one of the highest-scoring classes is picked at random: 1, 0, or 1/m in a tie of m.

    Picking by index instead would reward whatever class comes first.
    """
    best = scores == scores.amax(-1, keepdim=True)
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
    """`confusion_error` by annotator after renaming the true classes of all estimates alike, so that it is least: labels alone cannot name them."""
    cost = (estimated[:, :, None] - true[:, None]).abs().sum((0, 3))  # (k, k)
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return confusion_error(estimated[:, torch.as_tensor(rows)[torch.as_tensor(columns).argsort()]], true)


def interval(values: Float[Tensor, " n"]) -> Interval:
    """The mean of independent values with its 95 % interval; the interval of a single value is not known (nan)."""
    count = len(values)
    spread = float(values.std()) if count > 1 else math.nan
    return Interval(float(values.mean()), 1.96 * spread / math.sqrt(count), count)

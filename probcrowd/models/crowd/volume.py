r"""Log volumes: log det of Gram matrices over the true classes (Ibrahim, Nguyen & Fu 2023, equations 8 and 9).

    truth        gram[t, s] = sum_i f_t(x_i) f_s(x_i)                          at most K log(B / K), of balanced one-hot rows
    confusion    gram[t, s] = sum_{j, l} confusion[j, t, l] confusion[j, s, l] at most K log J, where every matrix is a permutation

The gradient of log det G is G^-1. A matrix that is next to singular (all items look alike, or there are fewer than classes) has an infinite
one; `RIDGE` of its mean eigenvalue is added to its diagonal then, so that the term still pushes away from there, and it is told.

A matrix of a few classes is too small for torch, whose every call takes longer than the work: it goes to LAPACK, from any device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.linalg.lapack import dpotrf, dpotri  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from probcrowd.models.crowd.kernels import add_gradient, gram

SINGULAR = 1e-8  # of the mean eigenvalue: the smallest pivot of a matrix that is not next to singular
RIDGE = 1e-3


def log_volume(log_rows: Float[Tensor, "n k"]) -> tuple[Float[Tensor, ""], bool]:
    """log det of the Gram matrix R'R of R = exp(log_rows), and whether it was next to singular; differentiable, in double precision."""
    gradient = torch.zeros_like(log_rows)
    value, singular = add_log_volume(log_rows, 1.0, gradient)
    return _Known.apply(log_rows, gradient, value), singular


def add_log_volume(
    log_rows: Float[Tensor, "n k"],
    strength: float,
    gradient: Float[Tensor, "n k"],
    at: Float64[np.ndarray, "k k"] | None = None,
) -> tuple[float, bool]:
    """strength times the same, whose gradient is added to another, without recording either.

    at: the matrix whose log det and inverse are taken instead. With a running mean of Gram matrices there, scaled to as many rows, the
    gradient is that of the log det of their expectation, without the bias of a small batch.
    """
    rows, found = gram(log_rows.detach().cpu().numpy())
    value, inverse, singular = log_det(found if at is None else at)
    if gradient.device.type == "cpu":
        add_gradient(rows, inverse, strength, gradient.numpy())
    else:
        gradient += torch.from_numpy(2 * strength * (rows @ inverse) * rows).to(gradient)
    return strength * value, singular


def log_det(matrix: Float64[np.ndarray, "k k"]) -> tuple[float, Float64[np.ndarray, "k k"], bool]:
    """The log determinant of a Gram matrix and its inverse, with a ridge where it is next to singular, and whether it is."""
    root, failed = dpotrf(matrix, lower=1)
    size = max(float(matrix.diagonal().mean()), float(np.finfo(float).tiny))
    singular = failed > 0 or not root.diagonal().min() ** 2 > SINGULAR * size
    if singular:
        root, _ = dpotrf(matrix + RIDGE * size * np.eye(len(matrix)), lower=1)
    half, _ = dpotri(root, lower=1)  # the lower half of the inverse
    inverse = half + half.T
    inverse.flat[:: len(matrix) + 1] /= 2
    return float(2 * np.log(root.diagonal()).sum()), inverse, bool(singular)


def by_class(logits: Float[Tensor, "j k l"]) -> Float[Tensor, "n k"]:
    """log softmax over labels, with row label * J + annotator for each label and annotator, and a column for every true class.

    Torch normalises along the first axis ten times as fast as along a short last one.
    """
    return torch.log_softmax(logits.permute(2, 0, 1).contiguous(), 0).view(-1, logits.shape[1])


class _Known(torch.autograd.Function):
    """A value whose gradient is known."""

    @staticmethod
    def forward(ctx: Any, argument: Tensor, gradient: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(gradient)
        return argument.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None

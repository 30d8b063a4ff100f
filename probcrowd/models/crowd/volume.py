r"""Log volumes: log det of Gram matrices over the classes (Ibrahim, Nguyen & Fu 2023, equations 8 and 9).

    truth        gram[t, s] = sum_i f_t(x_i) f_s(x_i)
                 at most K log(B / K), for balanced one-hot rows
    confusion    gram[t, s] = sum_{j, l} confusion[j, t, l] confusion[j, s, l]
                 at most K log J, where every matrix is a permutation

The gradient of log det G is G^-1. For a nearly singular matrix (all items look alike, or there are fewer
items than classes) it is unbounded; `RIDGE` times the mean eigenvalue is then added to the diagonal, so that
the term still pushes away from singularity, and the step is counted.

Matrices over a few classes are too small for torch, whose call overhead exceeds the work: they go to LAPACK,
from any device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from scipy.linalg.lapack import dpotrf, dpotri  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

from probcrowd.models.crowd.kernels import add_gradient, gram

SINGULAR = 1e-8  # the smallest squared pivot of a regular matrix, relative to the mean eigenvalue
RIDGE = 1e-3


def log_volume(log_rows: Float[Tensor, "n k"]) -> tuple[Float[Tensor, ""], bool]:
    """log det of the Gram matrix R'R of R = exp(log_rows), and whether it was nearly singular.

    Differentiable; computed in double precision.
    """
    gradient = torch.zeros_like(log_rows)
    value, singular = add_log_volume(log_rows, 1.0, gradient)
    return _ValueWithGradient.apply(log_rows, gradient, value), singular


def add_log_volume(
    log_rows: Float[Tensor, "n k"],
    strength: float,
    gradient: Float[Tensor, "n k"],
    at: Float64[np.ndarray, "k k"] | None = None,
) -> tuple[float, bool]:
    """`strength` times the log volume; adds its gradient to `gradient` in place, without autograd.

    at: use the log det and inverse of this matrix instead. With a running mean of Gram matrices, scaled to
    the same number of rows, the gradient is that of the log det of their expectation, without a small batch's
    bias.
    """
    rows, matrix = gram(log_rows.detach().cpu().numpy())
    value, inverse, singular = log_det(matrix if at is None else at)
    if gradient.device.type == "cpu":
        add_gradient(rows, inverse, strength, gradient.numpy())
    else:
        gradient += torch.from_numpy(2 * strength * (rows @ inverse) * rows).to(gradient)
    return strength * value, singular


def log_det(matrix: Float64[np.ndarray, "k k"]) -> tuple[float, Float64[np.ndarray, "k k"], bool]:
    """Log determinant and inverse of a Gram matrix, and whether it is nearly singular and has a ridge."""
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
    """Log softmax over labels, as a matrix with rows label * J + annotator and a column per true class.

    Torch normalises along the first axis ten times as fast as along a short last one.
    """
    return torch.log_softmax(logits.permute(2, 0, 1).contiguous(), 0).view(-1, logits.shape[1])


class _ValueWithGradient(torch.autograd.Function):
    """A value whose gradient has been computed already."""

    @staticmethod
    def forward(ctx: Any, argument: Tensor, gradient: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(gradient)
        return argument.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] * ctx.saved_tensors[0], None, None

r"""Log volumes: log det of Gram matrices over the true classes (Ibrahim, Nguyen & Fu 2023, equations 8 and 9).

    truth        gram[t, s] = sum_i f_t(x_i) f_s(x_i)                          at most K log(B / K), of balanced one-hot rows
    confusion    gram[t, s] = sum_{j, l} confusion[j, t, l] confusion[j, s, l] at most K log J, where every matrix is a permutation

The gradient of log det G is G^-1. A matrix that is next to singular (all items look alike, or there are fewer than classes) has an infinite
one; `log_volume` adds `RIDGE` of its mean eigenvalue then, so that the term still pushes away from there, and says so.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SINGULAR = 1e-8  # of the mean eigenvalue: the smallest pivot of a matrix that is not next to singular
RIDGE = 1e-3


def log_volume(gram: Float[Tensor, "k k"], at: Float[Tensor, "k k"] | None = None) -> tuple[Float[Tensor, ""], Bool[Tensor, ""]]:
    """log det of a Gram matrix in double precision, and whether it was next to singular.

    at: where to take the gradient and the value, the Gram matrix itself by default. With a running mean of Gram matrices there, the gradient
    is that of the log det of their expectation, without the bias of a small batch.
    """
    gram = gram.double()
    where = (gram if at is None else at.double()).detach()
    size, eye = (
        where.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny),
        torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
    )
    pivots, failed = torch.linalg.cholesky_ex(where)
    singular = (failed > 0) | ~(pivots.diagonal().square().min() > SINGULAR * size)
    root = torch.linalg.cholesky_ex(where + torch.where(singular, RIDGE * size, 0.0) * eye)[0]
    value = 2 * root.diagonal().log().sum()
    term = (torch.cholesky_inverse(root) * gram).sum()
    return value + term - term.detach(), singular


def truth_gram(truth: Float[Tensor, "b k"]) -> Float[Tensor, "k k"]:
    """Over items."""
    return truth.double().T @ truth.double()


def confusion_gram(confusion: Float[Tensor, "j k l"]) -> Float[Tensor, "k k"]:
    """Over annotators and labels."""
    flat = confusion.double().transpose(0, 1).flatten(1)
    return flat @ flat.T

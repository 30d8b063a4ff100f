r"""Run EM for J steps or to its fixed point, and choose how gradients pass through it.

J steps are J M steps with J - 1 E steps between them, so J = 1 never uses the confusion matrices. Gradients
with respect to the embeddings and to tensors in the prior:

    unrolled            through every step (the paper); memory grows with J
    one-step            through the last E and M step alone; constant memory
    implicit            of the fixed point: one dense solve of (items x classes) unknowns per task
    implicit-neumann    of the fixed point: a Neumann series, without a matrix

The implicit ones iterate until no responsibility of a task changes by more than `tolerance` (or by what
rounding allows), at most `steps` times. Where they do not apply they fall back with a warning: see
`fixed_point.implicit_step`.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta.em import Parameters, em_step, initial_responsibilities, m_step
from probcrowd.inference.meta.fixed_point import FixedPoint, implicit_step, one_step, run_to_fixed_point
from probcrowd.inference.meta.jacobian import em_jacobian
from probcrowd.models.meta.prototype import Prior

Gradient = Literal["unrolled", "implicit", "implicit-neumann", "one-step"]


def fit(
    support: Support,
    prior: Prior,
    *,
    steps: int = 2,
    gradient: Gradient = "unrolled",
    tolerance: float = 1e-8,
) -> Parameters:
    """Return the MAP parameters after `steps` EM steps from the soft majority vote."""
    responsibilities = iterate(support, prior, steps=steps, gradient=gradient, tolerance=tolerance)
    return m_step(responsibilities, support, prior)


def iterate(
    support: Support,
    prior: Prior,
    *,
    steps: int = 2,
    gradient: Gradient = "unrolled",
    tolerance: float = 1e-8,
    tie_noise: float = 0.0,
) -> Float[Tensor, "b i k"]:
    """Return the responsibilities that enter the last M step of `fit`, with their gradient.

    They are those after `steps` - 1 EM steps, or one step after the fixed point where the gradient is
    implicit.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    step = partial(em_step, support=support, prior=prior)
    if gradient in ("implicit", "implicit-neumann"):
        fixed_point = converge(support, prior, steps=steps, tolerance=tolerance, tie_noise=tie_noise)
        jacobian = em_jacobian(fixed_point.value, support, prior)
        return implicit_step(step, fixed_point, jacobian, dense=gradient == "implicit")
    responsibilities = initial_responsibilities(support, tie_noise)
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
    """Iterate EM from the soft majority vote to its fixed point, without a gradient.

    A tolerance below 16 units in the last place of 1, which rounding would not let EM reach, is raised to
    that.
    """
    tolerance = max(tolerance, 16 * torch.finfo(support.embeddings.dtype).eps)
    with torch.no_grad():
        step = partial(em_step, support=support, prior=prior)
        start = initial_responsibilities(support, tie_noise)
        return run_to_fixed_point(step, start, steps=steps, tolerance=tolerance)

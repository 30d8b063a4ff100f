r"""Gradients of a fixed point x = T(x, theta) that do not store the iterations, batched over tasks.

At a fixed point dx = (I - J)^-1 (dT/dtheta) dtheta with J = dT/dx, so the adjoint g of x reaches theta as
(dT/dtheta)' w with

    (I - J') w = g        w = g + J' w = g + J' g + J'^2 g + ...

The last expression is the Neumann series, which converges iff the largest eigenvalue of J is below 1. w = g
alone is the one-step gradient. For EM the eigenvalues of J are real and >= 0, and all below 1 exactly at
strict maxima, so one number per task tells whether the series is valid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcrowd.inference.meta.jacobian import Jacobian

Responsibilities = Float[Tensor, "b i k"]
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedPoint:
    """Where the iteration stopped; per task the steps, the last change, and whether it is small enough."""

    value: Responsibilities
    steps: Int[Tensor, " b"]
    change: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]


def run_to_fixed_point(step: Step, value: Responsibilities, *, steps: int, tolerance: float) -> FixedPoint:
    """Iterate each task until no entry changes by more than `tolerance`; converged tasks do not move."""
    moving = torch.ones(len(value), dtype=torch.bool, device=value.device)
    taken = torch.zeros(len(value), dtype=torch.long, device=value.device)
    change = value.new_full((len(value),), torch.inf)
    for _ in range(steps):
        after = step(value)
        taken += moving
        change = torch.where(moving, (after - value).abs().amax((1, 2)), change)
        value = torch.where(moving[:, None, None], after, value)
        moving = moving & (change > tolerance)
        if not bool(moving.any()):
            break
    return FixedPoint(value, taken, change, ~moving)


def one_step(step: Step, value: Responsibilities) -> Responsibilities:
    """Return step(value) with the gradient of this step alone."""
    return step(value.detach())


def implicit_step(
    step: Step,
    fixed_point: FixedPoint,
    jacobian: Jacobian,
    *,
    dense: bool,
    terms: int = 200,
    precision: float = 1e-12,
) -> Responsibilities:
    """Return step(fixed point) with the gradient of the fixed point.

    dense: solve for w directly; otherwise sum at most `terms` terms of the Neumann series, until they are
    below `precision` of g. A task that has not converged gets the one-step gradient. A task that is not at a
    strict maximum, where the series diverges, is solved densely, which gives the derivative along its branch.
    Both warn with the number of tasks.
    """
    after = one_step(step, fixed_point.value)
    if not after.requires_grad:
        return after
    converged = fixed_point.converged
    if not bool(converged.all()):
        warnings.warn(
            f"{int((~converged).sum())} of {len(converged)} tasks have not reached a fixed point (largest "
            "last change "
            f"{float(fixed_point.change.max()):.1e}): they get the one-step gradient. Allow more steps, or "
            "use gradient='unrolled'.",
            stacklevel=3,
        )

    def solve(adjoint: Tensor) -> Tensor:
        solution = (
            _dense(adjoint, jacobian) if dense else _neumann(adjoint, jacobian, converged, terms, precision)
        )
        return torch.where(converged[:, None, None], solution, adjoint)

    after.register_hook(solve)
    return after


def _dense(adjoint: Responsibilities, jacobian: Jacobian) -> Responsibilities:
    system = -jacobian.adjoint_matrix()
    system.diagonal(dim1=1, dim2=2).add_(1)
    return torch.linalg.solve(system, adjoint.flatten(1)[..., None])[..., 0].view_as(adjoint)


def _neumann(
    adjoint: Responsibilities, jacobian: Jacobian, converged: Tensor, terms: int, precision: float
) -> Responsibilities:
    scale = adjoint.abs().amax((1, 2))
    term = total = adjoint
    for _ in range(terms):
        term = jacobian.adjoint_product(term)
        total = total + term
        if bool((term.abs().amax((1, 2)) <= precision * scale)[converged].all()):
            break
    truncated = term.abs().amax((1, 2)) > max(precision, 1e-6) * scale
    eigenvalue = jacobian.largest_eigenvalue()
    invalid = converged & ((eigenvalue >= 1) | truncated)
    if bool(invalid.any()):
        warnings.warn(
            f"{int(invalid.sum())} of {len(invalid)} tasks are not at a strict maximum, or nearly so "
            "(largest eigenvalue of the EM step "
            f"{float(eigenvalue[invalid].max()):.3g}): their Neumann series does not converge, they are "
            "solved densely.",
            stacklevel=2,
        )
        total = torch.where(invalid[:, None, None], _dense(adjoint, jacobian), total)
    return total

r"""Gradients of a fixed point x = T(x, theta) that do not store the way to it; batched, each task on its own.

At a fixed point dx = (I - J)^-1 (dT/dtheta) dtheta with J = dT/dx, so the adjoint g of x reaches theta as (dT/dtheta)' w where

    (I - J') w = g        w = g + J' w = g + J' g + J'^2 g + ...

The last expression is the Neumann series; it converges iff the largest eigenvalue of J is below 1. w = g alone is the one-step
gradient. For EM the eigenvalues of J are real and >= 0, and all below 1 exactly at strict maxima, so one number per task tells whether
the series is valid.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Responsibilities = Float[Tensor, "b i k"]
Step = Callable[[Tensor], Tensor]


@runtime_checkable
class Bend(Protocol):
    """How the step bends at a point: products with J', the dense matrix J', and the largest eigenvalue of J, task by task."""

    def adjoint_product(self, vector: Responsibilities) -> Responsibilities: ...
    def adjoint_matrix(self) -> Float[Tensor, "b n n"]: ...
    def largest_eigenvalue(self) -> Float[Tensor, " b"]: ...


@dataclass(frozen=True)
class FixedPoint:
    """Where the iteration stopped, and for each task how many steps it took, its last change and whether that is small enough."""

    value: Responsibilities
    steps: Int[Tensor, " b"]
    change: Float[Tensor, " b"]
    converged: Bool[Tensor, " b"]


def run_to_fixed_point(step: Step, value: Responsibilities, *, steps: int, tolerance: float) -> FixedPoint:
    """Iterate each task until no entry changes by more than `tolerance`; a task that is there stands still while others go on."""
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
    """step(value), with the gradient of this one step only."""
    return step(value.detach())


def implicit_step(
    step: Step, reached: FixedPoint, bend: Bend, *, dense: bool, terms: int = 200, precision: float = 1e-12
) -> Responsibilities:
    """step(fixed point), whose gradient is that of the fixed point.

    dense: solve for w directly; else sum at most `terms` terms of the Neumann series, until they are below `precision` of the first.
    Never silently wrong: a task that has not converged gets the one-step gradient; a task at a point that is no strict maximum, where
    the series does not converge, is solved densely (the derivative along that branch). Both warn, with counts.
    """
    after = one_step(step, reached.value)
    if not after.requires_grad:
        return after
    if not bool(reached.converged.all()):
        warnings.warn(
            f"{int((~reached.converged).sum())} of {len(reached.converged)} tasks have not reached a fixed point (largest last change "
            f"{float(reached.change.max()):.1e}): they get the one-step gradient. Allow more steps, or use gradient='unrolled'.",
            stacklevel=3,
        )

    def solve(adjoint: Tensor) -> Tensor:
        solution = (
            _dense(adjoint, bend) if dense else _neumann(adjoint, bend, reached.converged, terms, precision)
        )
        return torch.where(reached.converged[:, None, None], solution, adjoint)

    after.register_hook(solve)
    return after


def _dense(adjoint: Responsibilities, bend: Bend) -> Responsibilities:
    system = -bend.adjoint_matrix()
    system.diagonal(dim1=1, dim2=2).add_(1)
    return torch.linalg.solve(system, adjoint.flatten(1)[..., None])[..., 0].view_as(adjoint)


def _neumann(
    adjoint: Responsibilities, bend: Bend, needed: Tensor, terms: int, precision: float
) -> Responsibilities:
    scale = adjoint.abs().amax((1, 2))
    term = total = adjoint
    for _ in range(terms):
        term = bend.adjoint_product(term)
        total = total + term
        if bool((term.abs().amax((1, 2)) <= precision * scale)[needed].all()):
            break
    left = term.abs().amax((1, 2)) > max(precision, 1e-6) * scale
    eigenvalue = bend.largest_eigenvalue()
    invalid = needed & ((eigenvalue >= 1) | left)
    if bool(invalid.any()):
        warnings.warn(
            f"{int(invalid.sum())} of {len(invalid)} tasks are not at a strict maximum, or nearly so (largest eigenvalue of the EM step "
            f"{float(eigenvalue[invalid].max()):.3g}): their Neumann series does not converge, they are solved densely.",
            stacklevel=2,
        )
        total = torch.where(invalid[:, None, None], _dense(adjoint, bend), total)
    return total

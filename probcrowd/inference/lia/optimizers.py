r"""Steps that raise an objective of LIA, of two kinds.

climb     over all items at once: L-BFGS on parameters in units of their prior spread, in double precision, which never lowers what it raises;
          fit for some 10^6 labels
wander    in batches of whole items: AMSGrad in single precision, whose moments go on from unit to unit, and whose batches come from
          (seed, unit), so that a fit resumed after any unit has the bits of one that was never interrupted
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize
from torch import Tensor

from probcrowd.inference.lia.objectives import Objective, log_prior
from probcrowd.models.lia.lia import LIABatch, Parameters
from probcrowd.models.lia.prior import Site

Target = Callable[[Parameters, LIABatch], Float[Tensor, ""]]


@dataclass(frozen=True)
class State:
    """Where a fit stands after `unit` units. values: the log marginal likelihood, with the log prior where the objective has one, after each.

    moments: of AMSGrad, by parameter: first, second, largest second; and the number of its steps.
    """

    parameters: Parameters
    unit: int = 0
    values: list[float] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    converged: bool = False


def lbfgs_steps(
    parameters: Parameters,
    said: LIABatch,
    declared: dict[str, Site],
    target: Target,
    objective: Objective,
    steps: int,
) -> Parameters:
    """L-BFGS steps on the whole."""
    names = list(parameters)
    centre = torch.cat([torch.from_numpy(declared[name].loc).flatten() for name in names])
    spread = torch.cat(
        [torch.full((parameters[name].numel(),), declared[name].scale, dtype=torch.float64) for name in names]
    )
    sizes = [parameters[name].numel() for name in names]

    def unpacked(unknown: Float[Tensor, " u"]) -> Parameters:
        values = (centre + spread * unknown).split(sizes)
        return {name: value.view(parameters[name].shape) for name, value in zip(names, values, strict=True)}

    def loss(unknown: Float64[np.ndarray, " u"]) -> tuple[float, Float64[np.ndarray, " u"]]:
        leaf = torch.from_numpy(unknown.copy()).requires_grad_()
        made = unpacked(leaf)
        value = -target(made, said)
        if objective.prior:
            value = value + leaf @ leaf / 2
        (slope,) = torch.autograd.grad(value, leaf)
        return value.item(), slope.numpy()

    begin = (torch.cat([parameters[name].flatten() for name in names]) - centre) / spread
    found = minimize(
        loss,
        begin.numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps + 10, "ftol": 0.0},
    )
    return {name: value.clone() for name, value in unpacked(torch.from_numpy(found.x)).items()}


def amsgrad_steps(
    state: State,
    said: LIABatch,
    declared: dict[str, Site],
    target: Target,
    objective: Objective,
    steps: int,
    *,
    batch: int,
    learning_rate: float,
    seed: int,
) -> State:
    """AMSGrad steps on batches of whole items, each scaled to stand for all."""
    parameters = {name: value.clone().requires_grad_() for name, value in state.parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), learning_rate, amsgrad=True, fused=True)
    for name, value in parameters.items():
        if state.steps:
            kinds = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            optimizer.state[value] = {"step": torch.tensor(float(state.steps))} | {
                kind: state.moments[f"{name}/{kind}"].clone() for kind in kinds
            }
    total = len(said.place)
    size = min(max(round(batch * total / max(len(said.item), 1)), 1), total)
    order = Shuffled(total, size, torch.Generator().manual_seed(seed * 1_000_003 + state.unit + 1))
    for _ in range(steps):
        items = order.draw()
        part = said if size == total else said.part(items)
        value = -target(parameters, part) * (total / max(size, 1))
        if objective.prior:
            value = value - log_prior(parameters, declared)
        value = value / max(len(said.item), 1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    moments = {
        f"{name}/{kind}": moment.detach().clone()
        for name, value in parameters.items()
        for kind, moment in optimizer.state[value].items()
        if kind != "step"
    }
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    return replace(state, parameters=kept, moments=moments, steps=state.steps + steps)


class Shuffled:
    """Batches of items without repetition until all have had their turn."""

    def __init__(self, total: int, size: int, generator: torch.Generator) -> None:
        self._total, self._size, self._generator = total, size, generator
        self._order, self._at = torch.randperm(total, generator=generator), 0

    def draw(self) -> Int[Tensor, " b"]:
        """The next batch; what is left at the end of a turn and too little for a batch is passed over."""
        if self._at + self._size > self._total:
            self._order, self._at = torch.randperm(self._total, generator=self._generator), 0
        self._at += self._size
        return self._order[self._at - self._size : self._at]

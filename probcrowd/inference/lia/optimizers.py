r"""Two optimizers that maximise an objective of LIA.

lbfgs_steps      over all items at once: L-BFGS on parameters in units of their prior scale, in double
                 precision; never lowers the objective; suitable for up to about 10^6 labels
amsgrad_steps    over batches of whole items: AMSGrad in single precision, with moments kept from unit to
                 unit and batches drawn from (seed, unit), so that a fit resumed after any unit is
                 bit-identical to an uninterrupted one
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """The state of a fit after `unit` units.

    values: the log marginal likelihood, plus the log prior if the objective has one, after each unit.
    moments: AMSGrad's, by parameter: first, second, largest second; steps: the number of its steps.
    """

    parameters: Parameters
    unit: int = 0
    values: list[float] = field(default_factory=list)
    moments: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    converged: bool = False


def lbfgs_steps(
    parameters: Parameters,
    batch: LIABatch,
    declared: dict[str, Site],
    target: Target,
    objective: Objective,
    steps: int,
) -> Parameters:
    """Take L-BFGS steps on all items."""
    shapes = {name: value.shape for name, value in parameters.items()}
    sizes = [value.numel() for value in parameters.values()]
    loc = torch.cat([torch.from_numpy(declared[name].loc).flatten() for name in shapes])
    scales = torch.tensor([declared[name].scale for name in shapes], dtype=torch.float64)
    scale = scales.repeat_interleave(torch.tensor(sizes))

    def unpack(standardised: Float[Tensor, " u"]) -> Parameters:
        values = (loc + scale * standardised).split(sizes)
        return {name: value.view(shape) for (name, shape), value in zip(shapes.items(), values, strict=True)}

    def loss(standardised: Float64[np.ndarray, " u"]) -> tuple[float, Float64[np.ndarray, " u"]]:
        leaf = torch.from_numpy(standardised.copy()).requires_grad_()
        value = -target(unpack(leaf), batch)
        if objective.prior:
            value = value + leaf @ leaf / 2
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    initial = (torch.cat([value.flatten() for value in parameters.values()]) - loc) / scale
    options = {"maxiter": steps, "maxfun": 2 * steps + 10, "ftol": 0.0}
    optimum = minimize(loss, initial.numpy(), jac=True, method="L-BFGS-B", options=options)
    return {name: value.clone() for name, value in unpack(torch.from_numpy(optimum.x)).items()}


def amsgrad_steps(
    state: State,
    batch: LIABatch,
    declared: dict[str, Site],
    target: Target,
    objective: Objective,
    steps: int,
    *,
    batch_labels: int,
    learning_rate: float,
    seed: int,
) -> State:
    """Take AMSGrad steps on batches of whole items, each scaled to represent all items.

    batch_labels: the number of labels that a batch has on average.
    """
    parameters = {name: value.clone().requires_grad_() for name, value in state.parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), learning_rate, amsgrad=True, fused=True)
    if state.steps:
        for name, value in parameters.items():
            kinds = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            optimizer.state[value] = {"step": torch.tensor(float(state.steps))} | {
                kind: state.moments[f"{name}/{kind}"].clone() for kind in kinds
            }
    items, labels = len(batch.possible), max(len(batch.annotations.item), 1)
    size = min(max(round(batch_labels * items / labels), 1), items)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + state.unit + 1)
    drawn = item_batches(items, size, generator)
    for _ in range(steps):
        selected = next(drawn)
        part = batch if size == items else batch.select(selected)
        value = -target(parameters, part) * (items / max(size, 1))
        if objective.prior:
            value = value - log_prior(parameters, declared)
        value = value / labels
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    moments = {
        f"{name}/{kind}": moment.detach().clone()
        for name, value in parameters.items()
        for kind, moment in optimizer.state[value].items()
        if kind != "step"
    }
    final = {name: value.detach().clone() for name, value in parameters.items()}
    return replace(state, parameters=final, moments=moments, steps=state.steps + steps)


def item_batches(items: int, size: int, generator: torch.Generator) -> Iterator[Int[Tensor, " b"]]:
    """Random batches without end, without repetition within a pass over the items.

    Items left over at the end of a pass, too few for a batch, are skipped.
    """
    while True:
        order = torch.randperm(items, generator=generator)
        yield from (order[low : low + size] for low in range(0, items - size + 1, max(size, 1)))

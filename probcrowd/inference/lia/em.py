r"""Fit LIA: generalised EM from the vote shares, then steps on the last objective, in resumable units.

    unit 0              M step given the vote shares (equation 8)
    unit 1 ... R - 1    E step, M step
    unit R ...          `chunk` steps each on the last objective (equation 9), until done or converged

Steps use all items at once or batches of them: see `probcrowd.inference.lia.optimizers`.

Time per step is proportional to labels x classes^2 x R, plus items times the size of the networks; so is
memory, over the labels of a batch. Nothing has the shape items x annotators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from probcrowd.compute.threads import one_thread
from probcrowd.data.rows import Rows
from probcrowd.inference.lia.objectives import (
    Objective,
    e_step,
    initial_responsibilities,
    last_objective,
    log_prior,
    m_step_objective,
)
from probcrowd.inference.lia.optimizers import State, Target, amsgrad_steps, lbfgs_steps
from probcrowd.models.lia.lia import LIABatch, Parameters, log_truth
from probcrowd.models.lia.prior import Inputs, LIAPrior, Site, sites

LBFGS_CHUNK = 50  # L-BFGS steps of a unit after EM
SMALL = 10**7  # numbers per step below which one thread is faster than several
CHUNK_SIZE = 2**18  # labels plus items of an E step held at once
INITIAL_SCALE = (
    0.1  # of parameters around the prior mean, in prior scales; hidden layers are drawn from the prior
)


@dataclass(frozen=True)
class Schedule:
    """Number of rounds of EM, of steps per M step, and of last steps after EM.

    batch: labels per batch; None: all items at once. learning_rate: of AMSGrad alone. tolerance: the gain per
    item, in nats, below which the last steps have converged.
    """

    rounds: int = 10
    steps: int = 25
    last_steps: int = 500
    batch: int | None = None
    learning_rate: float = 1e-3
    tolerance: float = 1e-6

    @property
    def chunk(self) -> int:
        """Steps of a unit after EM."""
        return LBFGS_CHUNK if self.batch is None else max(self.steps, 1)

    @property
    def units(self) -> int:
        """The largest possible number of units."""
        return self.rounds + math.ceil(self.last_steps / self.chunk)


@dataclass(frozen=True)
class Fitted:
    """A fit: parameters, posteriors q and class probabilities h of the items, values by unit, convergence."""

    parameters: Parameters
    posterior: Float64[np.ndarray, "i k"]
    truth: Float64[np.ndarray, "i k"]
    values: Float64[np.ndarray, " t"]
    converged: bool


def fit_lia(
    rows: Rows,
    inputs: Inputs,
    prior: LIAPrior,
    objective: Objective,
    schedule: Schedule,
    *,
    seed: int = 0,
    state: State | None = None,
    keep: Callable[[State], None] = lambda state: None,
    start: Float64[np.ndarray, "i k"] | None = None,
    progress: bool = False,
) -> Fitted:
    """Fit the networks to the labels.

    Args:
        state: the state of an earlier call, to continue from.
        keep: called with the state after every unit.
        start: initial class probabilities of the items, instead of the vote shares.

    Raises:
        FloatingPointError: the objective is no longer finite.
    """
    batch = LIABatch.of(rows, inputs, torch.float64 if schedule.batch is None else torch.float32)
    declared = sites(rows, inputs, prior)
    dtype = batch.annotations.weight.dtype
    state = State(_initial_parameters(declared, seed, dtype)) if state is None else state
    initial = (
        initial_responsibilities(batch) if start is None else torch.from_numpy(np.array(start)).to(dtype)
    )
    bar = tqdm(
        total=schedule.units, initial=state.unit, desc="lia", unit="round", disable=not progress, leave=False
    )
    with bar, one_thread(_small(batch)):
        while state.unit < schedule.units and not state.converged:
            state = advance(state, batch, declared, initial, objective, schedule, seed)
            if not math.isfinite(state.values[-1]):
                raise FloatingPointError(
                    f"the objective is {state.values[-1]} after round {state.unit}: lower the learning rate"
                )
            keep(state)
            bar.update()
            bar.set_postfix(log_posterior=f"{state.values[-1]:.1f}", refresh=False)
    posterior, truth, _ = predict(state.parameters, batch, objective)
    return Fitted(
        state.parameters,
        posterior.double().numpy(),
        truth.double().numpy(),
        np.array(state.values),
        state.converged,
    )


def advance(
    state: State,
    batch: LIABatch,
    declared: dict[str, Site],
    initial: Float[Tensor, "i k"],
    objective: Objective,
    schedule: Schedule,
    seed: int,
) -> State:
    """Run one unit and return the new state. initial: q of the first one."""
    target: Target
    if state.unit < schedule.rounds:
        q = initial if state.unit == 0 else posteriors(state.parameters, batch, objective)[0]
        target, steps = partial(_m_step_target, q, objective), schedule.steps
    else:
        target = partial(_last_target, objective)
        steps = min(schedule.chunk, schedule.last_steps - (state.unit - schedule.rounds) * schedule.chunk)
    if schedule.batch is None:
        parameters = lbfgs_steps(state.parameters, batch, declared, target, objective, steps)
        state = replace(state, parameters=parameters)
    else:
        options = {"batch_labels": schedule.batch, "learning_rate": schedule.learning_rate, "seed": seed}
        state = amsgrad_steps(state, batch, declared, target, objective, steps, **options)
    with torch.no_grad():
        value = posteriors(state.parameters, batch, objective)[1]
        if objective.prior:
            value = value + log_prior(state.parameters, declared)
    value = float(value)
    # Steps on an objective other than the likelihood may lower it: they end only when all are taken
    likelihood = schedule.batch is None and objective.last == "joint" and not objective.column_normaliser
    converged = (
        likelihood
        and state.unit >= max(schedule.rounds, 1)
        and value - state.values[-1] <= schedule.tolerance * max(len(batch.possible), 1)
    )
    return replace(state, unit=state.unit + 1, values=[*state.values, value], converged=converged)


def posteriors(
    parameters: Parameters, batch: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, ""]]:
    """The E step over all items, a chunk at a time."""
    with torch.no_grad():
        results = [e_step(parameters, part, objective) for part in chunks(batch)]
    return torch.cat([q for q, _ in results]), torch.stack([value.double() for _, value in results]).sum()


def predict(
    parameters: Parameters, batch: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, "i k"], Float[Tensor, ""]]:
    """Soft posteriors of the items, class probabilities h(x), and the log marginal likelihood."""
    q, value = posteriors(parameters, batch, replace(objective, hard=False))
    with torch.no_grad():
        truth = torch.cat([log_truth(parameters, part) for part in chunks(batch)]).exp()
    return q, truth, value


def chunks(batch: LIABatch) -> Iterator[LIABatch]:
    """The items in order, in parts of about `CHUNK_SIZE` labels and items."""
    items = len(batch.possible)
    ends = batch.annotations.starts[1:] + torch.arange(1, items + 1)  # labels and items up to each item
    cuts = torch.searchsorted(ends, torch.arange(0, int(ends[-1]) if items else 0, CHUNK_SIZE))
    edges = [*sorted({int(cut) for cut in cuts} | {0}), items]
    if len(edges) == 2:
        yield batch
        return
    for low, high in pairwise(edges):
        yield batch.select(torch.arange(low, high))


def _small(batch: LIABatch) -> bool:
    width = 1 if batch.item_features is None else batch.item_features.shape[1]
    items, classes = batch.possible.shape
    return len(batch.annotations.item) * classes**2 + items * width < SMALL


def _m_step_target(
    q: Float[Tensor, "i k"], objective: Objective, parameters: Parameters, part: LIABatch
) -> Float[Tensor, ""]:
    return m_step_objective(parameters, part, q[part.annotations.items], objective)


def _last_target(objective: Objective, parameters: Parameters, part: LIABatch) -> Float[Tensor, ""]:
    return last_objective(parameters, part, objective)


def _initial_parameters(declared: dict[str, Site], seed: int, dtype: torch.dtype) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    parameters: Parameters = {}
    for name, site in declared.items():
        hidden = name.rpartition("_")[2].isdigit() and "_weight_" in name
        draw = torch.randn(site.loc.shape, generator=generator, dtype=torch.float64)
        scale = site.scale * (1.0 if hidden else INITIAL_SCALE)
        parameters[name] = (torch.from_numpy(site.loc) + scale * draw).to(dtype)
    return parameters

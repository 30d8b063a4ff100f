r"""The fit of LIA: rounds of generalised EM from the vote shares, then steps on the last objective, in units that can be saved in between.

    unit 0              M step given the vote shares (equation 8)
    unit 1 ... R - 1    E step, M step
    unit R ...          `chunk` steps each on the last objective (equation 9), until they are spent or gain nothing more

Steps climb on all items at once, or wander over batches of them: see `probcrowd.inference.lia.optimizers`.

Time of a step grows with labels x classes^2 x R, and with items times the size of the networks; memory of a step likewise, over the labels
of a batch. Nothing has the shape items x annotators.
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
    last_objective,
    log_prior,
    m_step_objective,
    vote_shares,
)
from probcrowd.inference.lia.optimizers import State, Target, amsgrad_steps, lbfgs_steps
from probcrowd.models.lia.lia import LIABatch, Parameters, log_truth
from probcrowd.models.lia.prior import Inputs, LIAPrior, Site, sites

CHUNK = 50  # L-BFGS steps of a unit after EM
SMALL = 10**7  # numbers that a step touches, below which one thread is faster than several
AT_ONCE = 2**18  # labels of an E step held at once
START = 0.1  # spread of the start around the prior's centre, in prior spreads; hidden layers start at a draw from the prior


@dataclass(frozen=True)
class Schedule:
    """rounds of EM; steps of each M step; last_steps after them. batch: labels of a batch, None for all items at once. learning_rate: of AMSGrad
    alone. tolerance: the gain per item, in nats, at which the last steps have converged."""

    rounds: int = 10
    steps: int = 25
    last_steps: int = 500
    batch: int | None = None
    learning_rate: float = 1e-3
    tolerance: float = 1e-6

    @property
    def chunk(self) -> int:
        """Steps of a unit after EM."""
        return CHUNK if self.batch is None else max(self.steps, 1)

    @property
    def units(self) -> int:
        """Units, at most."""
        return self.rounds + math.ceil(self.last_steps / self.chunk)


@dataclass(frozen=True)
class Fitted:
    """Parameters, posteriors q and class probabilities h of the items, the state's values and whether it converged."""

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
    """The networks fitted to what was said of the items.

    Args:
        state: where an earlier call stood, to go on from.
        keep: called with the state after every unit.
        start: probabilities of the items' classes to begin with, in the place of the vote shares.

    Raises:
        FloatingPointError: the objective is not a number any more.
    """
    said = LIABatch.of(rows, inputs, torch.float64 if schedule.batch is None else torch.float32)
    declared = sites(rows, inputs, prior)
    state = State(_start(declared, seed, said.weight.dtype)) if state is None else state
    first = vote_shares(said) if start is None else torch.from_numpy(np.array(start)).to(said.weight.dtype)
    bar = tqdm(
        total=schedule.units, initial=state.unit, desc="lia", unit="round", disable=not progress, leave=False
    )
    with bar, one_thread(_small(said)):
        while state.unit < schedule.units and not state.converged:
            state = advance(state, said, declared, first, objective, schedule, seed)
            if not math.isfinite(state.values[-1]):
                raise FloatingPointError(
                    f"the objective is {state.values[-1]} after round {state.unit}: lower the learning rate"
                )
            keep(state)
            bar.update()
            bar.set_postfix(log_posterior=f"{state.values[-1]:.1f}", refresh=False)
    posterior, truth, _ = predict(state.parameters, said, objective)
    return Fitted(
        state.parameters,
        posterior.double().numpy(),
        truth.double().numpy(),
        np.array(state.values),
        state.converged,
    )


def advance(
    state: State,
    said: LIABatch,
    declared: dict[str, Site],
    first: Float[Tensor, "i k"],
    objective: Objective,
    schedule: Schedule,
    seed: int,
) -> State:
    """The state one unit later."""
    if state.unit < schedule.rounds:
        q = first if state.unit == 0 else posteriors(state.parameters, said, objective)[0]
        steps = schedule.steps

        target: Target = partial(_expected, q, objective)
    else:
        steps = min(schedule.chunk, schedule.last_steps - (state.unit - schedule.rounds) * schedule.chunk)

        target = partial(_marginal, objective)

    if schedule.batch is None:
        state = replace(
            state, parameters=lbfgs_steps(state.parameters, said, declared, target, objective, steps)
        )
    else:
        numbers = {"batch": schedule.batch, "learning_rate": schedule.learning_rate, "seed": seed}
        state = amsgrad_steps(state, said, declared, target, objective, steps, **numbers)
    with torch.no_grad():
        value = float(
            posteriors(state.parameters, said, objective)[1]
            + (log_prior(state.parameters, declared) if objective.prior else 0)
        )
    # Steps on another objective than the likelihood may lower it: they end when they are spent
    likelihood = schedule.batch is None and objective.last == "joint" and not objective.column_normaliser
    settled = (
        likelihood
        and state.unit >= max(schedule.rounds, 1)
        and value - state.values[-1] <= schedule.tolerance * max(len(said.place), 1)
    )
    return replace(state, unit=state.unit + 1, values=[*state.values, value], converged=settled)


def posteriors(
    parameters: Parameters, said: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, ""]]:
    """The E step over all items, some of them at a time."""
    with torch.no_grad():
        found = [e_step(parameters, part, objective) for part in batches(said)]
    return torch.cat([q for q, _ in found]), torch.stack([value.double() for _, value in found]).sum()


def predict(
    parameters: Parameters, said: LIABatch, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, "i k"], Float[Tensor, ""]]:
    """What is to be told of items: soft posteriors, class probabilities h(x), and the log marginal likelihood."""
    q, value = posteriors(parameters, said, replace(objective, hard=False))
    with torch.no_grad():
        truth = torch.cat([log_truth(parameters, part) for part in batches(said)]).exp()
    return q, truth, value


def batches(said: LIABatch) -> Iterator[LIABatch]:
    """The items in order, in batches of some `AT_ONCE` labels and items."""
    place = said.starts[1:] + torch.arange(1, len(said.place) + 1)
    cuts = torch.searchsorted(place, torch.arange(0, int(place[-1]) if len(place) else 0, AT_ONCE))
    edges = [*sorted({int(cut) for cut in cuts} | {0}), len(said.place)]
    if len(edges) == 2:
        yield said
        return
    for low, high in pairwise(edges):
        yield said.part(torch.arange(low, high))


def _small(said: LIABatch) -> bool:
    width = 1 if said.item_features is None else said.item_features.shape[1]
    return len(said.item) * said.possible.shape[1] ** 2 + len(said.place) * width < SMALL


def _expected(
    q: Float[Tensor, "i k"], objective: Objective, parameters: Parameters, part: LIABatch
) -> Float[Tensor, ""]:
    return m_step_objective(parameters, part, q[part.place], objective)


def _marginal(objective: Objective, parameters: Parameters, part: LIABatch) -> Float[Tensor, ""]:
    return last_objective(parameters, part, objective)


def _start(declared: dict[str, Site], seed: int, dtype: torch.dtype) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    made: Parameters = {}
    for name, site in declared.items():
        inner = name.rpartition("_")[2].isdigit() and "_weight_" in name
        draw = torch.randn(site.loc.shape, generator=generator, dtype=torch.float64)
        spread = site.scale * (1.0 if inner else START)
        made[name] = (torch.from_numpy(site.loc) + spread * draw).to(dtype)
    return made

r"""The fit of LIA: rounds of generalised EM from the vote shares, then steps on the last objective, in units that can be saved in between.

    unit 0              M step given the vote shares (equation 8)
    unit 1 ... R - 1    E step, M step
    unit R ...          `chunk` steps each on the last objective (equation 9), until they are spent or gain nothing more

Steps are of two kinds. Over all items at once: L-BFGS on parameters in units of their prior spread, in double precision, which never lowers
what it raises; fit for some 10^6 labels. In batches of whole items: AMSGrad in single precision, whose moments go on from unit to unit, and
whose batches come from (seed, unit), so that a fit resumed after any unit has the bits of one that was never interrupted.

Time of a step grows with labels x classes^2 x R, and with items times the size of the networks; memory of a step likewise, over the labels
of a batch. Nothing has the shape items x annotators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor
from tqdm import tqdm

from probcrowd.inference.gem import Objective, e_step, last_objective, log_prior, m_objective, vote_posterior
from probcrowd.models.lia import Parameters, Said, log_truth
from probcrowd.models.lia_prior import Inputs, LIAPrior, Site, sites
from probcrowd.models.rows import Rows

CHUNK = 50  # L-BFGS steps of a unit after EM
SMALL = 10**7  # numbers that a step touches, below which one thread is faster than several
AT_ONCE = 2**18  # labels of an E step held at once
START = 0.1  # spread of the start around the prior's centre, in prior spreads; hidden layers start at a draw from the prior

Target = Callable[[Parameters, Said], Float[Tensor, ""]]


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
    said = Said.of(rows, inputs, torch.float64 if schedule.batch is None else torch.float32)
    declared = sites(rows, inputs, prior)
    state = State(_start(declared, seed, said.weight.dtype)) if state is None else state
    first = vote_posterior(said) if start is None else torch.from_numpy(np.array(start)).to(said.weight.dtype)
    bar = tqdm(total=schedule.units, initial=state.unit, desc="lia", unit="round", disable=not progress, leave=False)
    with bar, _threads(said):
        while state.unit < schedule.units and not state.converged:
            state = advance(state, said, declared, first, objective, schedule, seed)
            if not math.isfinite(state.values[-1]):
                raise FloatingPointError(f"the objective is {state.values[-1]} after round {state.unit}: lower the learning rate")
            keep(state)
            bar.update()
            bar.set_postfix(log_posterior=f"{state.values[-1]:.1f}", refresh=False)
    posterior, truth, _ = answer(state.parameters, said, objective)
    return Fitted(state.parameters, posterior.double().numpy(), truth.double().numpy(), np.array(state.values), state.converged)


def advance(
    state: State,
    said: Said,
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
        state = replace(state, parameters=_climb(state.parameters, said, declared, target, objective, steps))
    else:
        state = _wander(state, said, declared, target, objective, schedule, steps, seed)
    with torch.no_grad():
        value = float(posteriors(state.parameters, said, objective)[1] + (log_prior(state.parameters, declared) if objective.prior else 0))
    # Steps on another objective than the likelihood may lower it: they end when they are spent
    likelihood = schedule.batch is None and objective.last == "joint" and not objective.column_normaliser
    settled = (
        likelihood and state.unit >= max(schedule.rounds, 1) and value - state.values[-1] <= schedule.tolerance * max(len(said.place), 1)
    )
    return replace(state, unit=state.unit + 1, values=[*state.values, value], converged=settled)


def posteriors(parameters: Parameters, said: Said, objective: Objective) -> tuple[Float[Tensor, "i k"], Float[Tensor, ""]]:
    """The E step over all items, some of them at a time."""
    with torch.no_grad():
        found = [e_step(parameters, part, objective) for part in parts(said)]
    return torch.cat([q for q, _ in found]), torch.stack([value.double() for _, value in found]).sum()


def answer(
    parameters: Parameters, said: Said, objective: Objective
) -> tuple[Float[Tensor, "i k"], Float[Tensor, "i k"], Float[Tensor, ""]]:
    """What is to be told of items: soft posteriors, class probabilities h(x), and the log marginal likelihood."""
    q, value = posteriors(parameters, said, replace(objective, hard=False))
    with torch.no_grad():
        truth = torch.cat([log_truth(parameters, part) for part in parts(said)]).exp()
    return q, truth, value


def parts(said: Said) -> Iterator[Said]:
    """The items in order, in batches of some `AT_ONCE` labels and items."""
    place = said.starts[1:] + torch.arange(1, len(said.place) + 1)
    cuts = torch.searchsorted(place, torch.arange(0, int(place[-1]) if len(place) else 0, AT_ONCE))
    edges = [*sorted({int(cut) for cut in cuts} | {0}), len(said.place)]
    if len(edges) == 2:
        yield said
        return
    for low, high in pairwise(edges):
        yield said.part(torch.arange(low, high))


@contextmanager
def _threads(said: Said) -> Iterator[None]:
    """One thread inside for small problems, whose threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    width = 1 if said.item_features is None else said.item_features.shape[1]
    small = len(said.item) * said.possible.shape[1] ** 2 + len(said.place) * width < SMALL
    with threadpool_limits(1, "blas") if small else nullcontext():
        torch.set_num_threads(1 if small else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _expected(q: Float[Tensor, "i k"], objective: Objective, parameters: Parameters, part: Said) -> Float[Tensor, ""]:
    return m_objective(parameters, part, q[part.place], objective)


def _marginal(objective: Objective, parameters: Parameters, part: Said) -> Float[Tensor, ""]:
    return last_objective(parameters, part, objective)


def _start(declared: dict[str, Site], seed: int, dtype: torch.dtype) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    made: Parameters = {}
    for name, site in declared.items():
        inner = name.rpartition("_")[2].isdigit() and "_weight_" in name
        draw = torch.randn(site.centre.shape, generator=generator, dtype=torch.float64)
        spread = site.spread * (1.0 if inner else START)
        made[name] = (torch.from_numpy(site.centre) + spread * draw).to(dtype)
    return made


def _climb(parameters: Parameters, said: Said, declared: dict[str, Site], target: Target, objective: Objective, steps: int) -> Parameters:
    """L-BFGS steps on the whole."""
    names = list(parameters)
    centre = torch.cat([torch.from_numpy(declared[name].centre).flatten() for name in names])
    spread = torch.cat([torch.full((parameters[name].numel(),), declared[name].spread, dtype=torch.float64) for name in names])
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
    found = minimize(loss, begin.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxfun": 2 * steps + 10, "ftol": 0.0})
    return {name: value.clone() for name, value in unpacked(torch.from_numpy(found.x)).items()}


def _wander(
    state: State,
    said: Said,
    declared: dict[str, Site],
    target: Target,
    objective: Objective,
    schedule: Schedule,
    steps: int,
    seed: int,
) -> State:
    """AMSGrad steps on batches of whole items, each scaled to stand for all."""
    assert schedule.batch is not None
    parameters = {name: value.clone().requires_grad_() for name, value in state.parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), schedule.learning_rate, amsgrad=True, fused=True)
    for name, value in parameters.items():
        if state.steps:
            kinds = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
            optimizer.state[value] = {"step": torch.tensor(float(state.steps))} | {
                kind: state.moments[f"{name}/{kind}"].clone() for kind in kinds
            }
    total = len(said.place)
    size = min(max(round(schedule.batch * total / max(len(said.item), 1)), 1), total)
    order = _Shuffled(total, size, torch.Generator().manual_seed(seed * 1_000_003 + state.unit + 1))
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


class _Shuffled:
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

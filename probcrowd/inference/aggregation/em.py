r"""EM for every model whose annotators are tables: expected counts in, scores out, one pass over the annotations, expected counts again.

    counts s  --channel-->  scores  --E step-->  counts F(s), log likelihood        objective(s) = log likelihood + penalty of the scores

Only `Source.e_step` sees the annotations, and its counts add over parts; so the same loop serves memory, files and a cluster. Plain steps never
lower the objective. With `accelerate`, Anderson's extrapolation is tried from the seventh pass on: with x = log s, g = log F(s) - log s of the last
three passes, and norms weighted by the counts themselves (their Fisher information),

    x' = log F - (dX + dG) gamma,     gamma = argmin |g - dG gamma|^2_s

It is tried where |g| fell twice in a row: where steps grow, EM leaves a saddle, and extrapolation would lead back. A pass whose objective is not
higher is taken back, the plain step follows, and further trials wait for 4, 8, 16 ... passes; so a fit costs few passes more than EM where nothing
is gained. EM picks its mode in the first passes; a higher mode may still be found, and so may a lower one: on real sets under the default prior
that has not been seen, under flat priors it has (benchmarks/aggregation.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from probcrowd.data.packed import Cells, Packed
from probcrowd.inference.aggregation.e_step import Expectation, Scores, Statistics, count_votes, e_step
from probcrowd.inference.aggregation.m_step import AnnotatorModel

_MEMORY, _FIRST, _WAIT = 2, 7, 4


@runtime_checkable
class Source(Protocol):
    """Annotations, wherever they are."""

    @property
    def num_rows(self) -> int: ...

    def start(self) -> Statistics:
        """The counts of the vote shares."""
        ...

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """A pass over all annotations."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Annotations packed in this process."""

    packed: Packed
    cells: Cells

    @property
    def num_rows(self) -> int:
        """The number of rows in memory, each pattern counted once."""
        return len(self.packed.cell)

    def start(self) -> Statistics:
        """The counts of the vote shares."""
        return count_votes(self.packed, self.cells)

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """A pass over all annotations."""
        return e_step(self.packed, scores, hard=hard)


@dataclass(frozen=True)
class Fit:
    """Where EM ended: the counts that the last pass made and the scores that follow from them, the objective of each pass that was
    kept, which passes these were, and how many passes it took in all."""

    statistics: Statistics
    scores: Scores
    objective: Float64[np.ndarray, " t"]
    kept: tuple[int, ...]
    passes: int
    converged: bool

    def passes_to(self, objective: float) -> int | None:
        """How many passes, those taken back included, it took to reach that objective; None if it was not reached."""
        reached = np.flatnonzero(self.objective >= objective)
        return self.kept[reached[0]] if len(reached) else None


@dataclass
class _Trail:
    """The last points and steps of EM, in logs."""

    rows: Float64[np.ndarray, "p 1"]
    items: float
    points: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, before: Statistics, after: Statistics) -> None:
        point = _logs(before)
        step = _logs(after) - point
        self.points, self.steps = [*self.points, point][-_MEMORY - 1 :], [*self.steps, step][-_MEMORY - 1 :]
        self.lengths = [*self.lengths, float(((_flat(after) + 1e-12) * step**2).sum())][-3:]

    def extrapolated(self, after: Statistics) -> Statistics | None:
        """Where the steps seem to lead, with the sums that all counts have; None where they do not shrink, or lead nowhere."""
        if len(self.lengths) < 3 or not self.lengths[0] > self.lengths[1] > self.lengths[2]:
            return None
        bends, moves = np.diff(np.stack(self.steps), axis=0), np.diff(np.stack(self.points), axis=0)
        metric = _flat(after) + 1e-12
        gram = (bends * metric) @ bends.T
        gram += 1e-10 * np.trace(gram) * np.eye(len(gram))
        try:
            shares = np.linalg.solve(gram, (bends * metric) @ self.steps[-1])
        except np.linalg.LinAlgError:
            return None
        counts = np.exp(np.minimum(_logs(after) - shares @ (moves + bends), 60.0))
        if not np.isfinite(counts).all():
            return None
        num_classes = len(after.class_count)
        by_cell, class_count = counts[:-num_classes].reshape(-1, num_classes), counts[-num_classes:]
        by_cell = by_cell * (self.rows / np.maximum(by_cell.sum(1, keepdims=True), 1e-300))
        return Statistics(by_cell, class_count * (self.items / class_count.sum()))


def fit_table(
    source: Source,
    channel: AnnotatorModel,
    start: Statistics | None = None,
    *,
    max_iter: int = 1000,
    tolerance: float = 1e-8,
    accelerate: bool = True,
    hard: bool = False,
    progress: bool = False,
) -> Fit:
    """Passes until a plain step gains less than `tolerance` per annotation, at most `max_iter`; from the vote shares by default.

    hard: the most probable class takes all (Fast Dawid-Skene); then the objective may fall, and passes end when counts repeat.
    """
    here = source.start() if start is None else start
    trail = _Trail(here.counts.sum(1, keepdims=True), float(here.class_count.sum()))
    least = tolerance * max(source.num_rows, 1)
    objective: list[float] = []
    kept: list[int] = []
    fallback: Statistics | None = None
    reached, wait, pause, converged, passes = here, _FIRST, _WAIT, False, 0
    last: Scores | None = None
    with tqdm(total=max_iter, disable=not progress, desc="EM", unit="pass", leave=False) as bar:
        while passes < max_iter:
            scores = channel.scores(here, last)
            expectation = source.e_step(scores, hard=hard)
            passes += 1
            value = expectation.log_likelihood + scores.penalty
            bar.update()
            if fallback is not None and not value >= objective[-1]:
                here, fallback = fallback, None
                wait, pause = pause, 2 * pause
                trail = _Trail(trail.rows, trail.items)
                continue
            gain = value - objective[-1] if objective else np.inf
            objective.append(value)
            kept.append(passes)
            last = scores
            bar.set_postfix_str(f"gain {gain:.3g}")
            reached, extrapolated, fallback = expectation.statistics, fallback is not None, None
            if hard:
                converged = passes > 1 and bool(np.array_equal(reached.counts, here.counts))
            else:
                converged = gain < least and not extrapolated
            if converged:
                break
            pause = max(_WAIT, pause // 2) if extrapolated else pause
            wait -= 1
            if accelerate and not hard:
                trail.add(here, reached)
                there = trail.extrapolated(reached) if wait <= 0 and gain >= least else None
                if there is not None:
                    here, fallback = there, reached
                    continue
            here = reached
    return Fit(reached, channel.scores(reached, last), np.array(objective), tuple(kept), passes, converged)


def _flat(statistics: Statistics) -> Float64[np.ndarray, " c"]:
    return np.concatenate([statistics.counts.ravel(), statistics.class_count])


def _logs(statistics: Statistics) -> Float64[np.ndarray, " c"]:
    return np.log(np.maximum(_flat(statistics), 0) + 1e-8)

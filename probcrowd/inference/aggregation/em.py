r"""EM for annotators described by probability tables: expected counts -> M step -> log probabilities -> E
step -> expected counts.

    counts s  --M step-->  scores  --E step-->  counts F(s), log likelihood
    objective(s) = log likelihood + penalty of the scores

Only `Source.e_step` reads the annotations, and its counts add over parts, so one loop serves memory, files
and a cluster. Plain steps never lower the objective. With `accelerate`, Anderson's extrapolation is tried
from the seventh pass on: with x = log s, g = log F(s) - log s of the last three passes, and norms weighted by
the counts themselves (their Fisher information),

    x' = log F - (dX + dG) gamma,     gamma = argmin |g - dG gamma|^2_s

It is tried where |g| fell twice in a row: where steps grow, EM leaves a saddle, and extrapolation would lead
back. A pass whose objective is not higher is undone, the plain step follows, and further trials wait for 4,
8, 16 ... passes, so a fit costs few passes more than EM where nothing is gained. EM picks its mode in the
first passes. Extrapolation may still lead to a higher mode, or to a lower one: on real sets this was not seen
under the default prior, but under flat priors it was (benchmarks/aggregation.py).

A few annotators who label many items produce few distinct patterns of labels, and then EM runs over patterns
instead of items. The result is exact: equal items have equal responsibilities, and a pattern counts as often
as it occurs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64
from tqdm import tqdm

from probcrowd.compute.compiled import fast
from probcrowd.data.table import Cells, Packed, in_ranges
from probcrowd.inference.aggregation.e_step import Expectation, Scores, Statistics, count, e_step
from probcrowd.inference.aggregation.m_step import AnnotatorModel

_MEMORY, _FIRST, _WAIT = 2, 7, 4
_MOST_TABULATED = 2**22


@runtime_checkable
class Source(Protocol):
    """Annotations in memory, in files or on a cluster."""

    @property
    def num_rows(self) -> int: ...

    def start(self) -> Statistics:
        """Return the counts of the vote shares."""
        ...

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """Run one pass over all annotations."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Packed annotations in this process."""

    packed: Packed
    cells: Cells

    @property
    def num_rows(self) -> int:
        """The number of rows in memory, each pattern counted once."""
        return len(self.packed.cell)

    def start(self) -> Statistics:
        """Return the counts of the vote shares."""
        return count(self.packed, self.packed.vote_shares(self.cells), len(self.cells))

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """Run one pass over all annotations."""
        return e_step(self.packed, scores, hard=hard)


@dataclass(frozen=True)
class Fit:
    """The end of EM: the counts of the last pass, the scores that follow from them, and the course of the
    fit.

    objective: after each pass that was not undone; accepted: the numbers of these passes. passes: how many
    there were in all.
    """

    statistics: Statistics
    scores: Scores
    objective: Float64[np.ndarray, " t"]
    accepted: tuple[int, ...]
    passes: int
    converged: bool

    def passes_to(self, objective: float) -> int | None:
        """Return the number of passes, undone ones included, until that objective was reached; None if it
        was not.
        """
        reached = np.flatnonzero(self.objective >= objective)
        return self.accepted[reached[0]] if len(reached) else None


def fit_table(
    source: Source,
    model: AnnotatorModel,
    start: Statistics | None = None,
    *,
    max_iter: int = 1000,
    tolerance: float = 1e-8,
    accelerate: bool = True,
    hard: bool = False,
    progress: bool = False,
) -> Fit:
    """Run EM until a plain step gains less than `tolerance` per annotation, at most `max_iter` passes.

    start: expected counts, by default those of the vote shares. hard: the most probable class takes all (Fast
    Dawid-Skene); then the objective may fall, and passes end when counts repeat.
    """
    here = source.start() if start is None else start
    trail = _Trail(here.counts.sum(1, keepdims=True), float(here.class_count.sum()))
    least = tolerance * max(source.num_rows, 1)
    objective: list[float] = []
    accepted: list[int] = []
    fallback: Statistics | None = None
    reached, wait, pause, converged, passes = here, _FIRST, _WAIT, False, 0
    last: Scores | None = None
    with tqdm(total=max_iter, disable=not progress, desc="EM", unit="pass", leave=False) as bar:
        while passes < max_iter:
            scores = model.scores(here, last)
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
            accepted.append(passes)
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
    return Fit(reached, model.scores(reached, last), np.array(objective), tuple(accepted), passes, converged)


@dataclass
class _Trail:
    """The last points and steps of EM, in logs. rows: weight of each cell; items: their number."""

    rows: Float64[np.ndarray, "p 1"]
    items: float
    points: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)

    def add(self, before: Statistics, after: Statistics) -> None:
        """Record one plain step."""
        point = _logs(before)
        step = _logs(after) - point
        self.points, self.steps = [*self.points, point][-_MEMORY - 1 :], [*self.steps, step][-_MEMORY - 1 :]
        self.lengths = [*self.lengths, float(((_flat(after) + 1e-12) * step**2).sum())][-3:]

    def extrapolated(self, after: Statistics) -> Statistics | None:
        """Extrapolate to the limit of the steps, with the sums that all counts have; None where steps do not
        shrink or the result is not finite.
        """
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


def _flat(statistics: Statistics) -> Float64[np.ndarray, " c"]:
    return np.concatenate([statistics.counts.ravel(), statistics.class_count])


def _logs(statistics: Statistics) -> Float64[np.ndarray, " c"]:
    return np.log(np.maximum(_flat(statistics), 0) + 1e-8)


def group_patterns(packed: Packed, cells: Cells) -> tuple[Packed, Int64[np.ndarray, " i"] | None]:
    """Return the distinct patterns with `times` and the pattern of each item; or the items themselves and
    None.

    Items are left alone where grouping would not halve them, with weights, with annotators who labelled an
    item twice, and where the numbers would not fit in 62 bits. A pattern's number has annotator j's label +
    1, or 0, as its digit j in base labels + 1; a known class is one more digit.
    """
    base = cells.num_labels + 1
    wide = math.log2(cells.num_classes + 1) + cells.num_annotators * math.log2(base) > 62
    if packed.weight is not None or packed.times is not None or not packed.num_items or wide:
        return packed, None
    power = np.int64(base) ** np.arange(cells.num_annotators + 1)
    code = np.zeros(packed.num_items, np.int64)
    gold = np.zeros(0, np.int32) if packed.gold is None else packed.gold
    owner = power[cells.annotator]
    parts = in_ranges(
        lambda low, high: _number_patterns(
            packed.starts, packed.cell, gold, owner, cells.label, power[-1], base, low, high, code
        ),
        packed,
    )
    if not all(parts):
        return packed, None
    room = (cells.num_classes + 1) * base**cells.num_annotators
    if room <= _MOST_TABULATED:
        counts = np.bincount(code, minlength=room)
        patterns = np.flatnonzero(counts)
        lookup = np.zeros(room, np.int64)
        lookup[patterns] = np.arange(len(patterns))
        place, times = lookup[code], counts[patterns]
    else:
        patterns, place, times = np.unique(code, return_inverse=True, return_counts=True)
    if 2 * len(patterns) > packed.num_items:
        return packed, None
    example = np.zeros(len(patterns), np.int64)
    example[place] = np.arange(packed.num_items)
    return replace(packed.take(example), times=times.astype(np.float64)), place


@fast
def _number_patterns(
    starts: Any, cell: Any, gold: Any, owner: Any, label: Any, most: int, base: int,
    low: int, high: int, code: Any,
) -> bool:  # fmt: skip
    """Fill in the numbers of those items; false if an annotator labelled one of them twice."""
    for i in range(low, high):
        number = 0
        for n in range(starts[i], starts[i + 1]):
            p = cell[n]
            if (number // owner[p]) % base:
                return False
            number += (label[p] + 1) * owner[p]
        if gold.size:
            number += (gold[i] + 1) * most
        code[i] = number
    return True

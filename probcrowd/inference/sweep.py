r"""One pass over annotations packed by item, compiled: responsibilities of each item and, while they are in the cache, what they add to the counts.

    s_ik = prior[k] prod over the item's cells p of table[p, k]^w      r_ik = s_ik / sum_k s_ik           E step
    said[p, k] = sum over rows with cell p of w times_i r_ik           class_count[k] = sum times_i r_ik   what an M step needs
    log_likelihood = sum times_i log sum_k s_ik

Responsibilities are written only where they are asked for, so a pass reads a number per annotation and keeps a table per thread. Rows of the
table are scaled to a maximum of 1 (the scales are added to the log likelihood), entries below 1e-30 of that are raised to it, and every eight
annotations the product of each class is lifted, and how often is noted, where it is small: neither long items nor contradictions underflow,
and a class may come back from far behind. With weights the sums are of logs.
"""

from __future__ import annotations

import inspect
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from jaxtyping import Float64, Int64

from probcrowd.models.cells import Cells, Packed

FLOOR = -69.0  # log of the least probability, relative to the row's highest
_LIFT = 1e-60  # eight rows at the floor leave a product of 1e-300
_ROWS_PER_RANGE, _ROWS_PER_CELL = 250_000, 4  # in a range at least, so that its own table of counts costs little
_NONE_INT, _NONE, _NONE_2D = np.zeros(0, np.int32), np.zeros(0), np.zeros((0, 1))


@dataclass(frozen=True)
class Statistics:
    """Expected counts: said[p, k] how much weight the pair p has on items of class k, class_count[k] how many items are of class k. They add."""

    said: Float64[np.ndarray, "p k"]
    class_count: Float64[np.ndarray, " k"]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.said + other.said, self.class_count + other.class_count)

    def extended(self, num_cells: int) -> Statistics:
        """With zeros for cells that are new."""
        return Statistics(np.pad(self.said, ((0, num_cells - len(self.said)), (0, 0))), self.class_count)


@dataclass(frozen=True)
class Scores:
    """What an E step needs: log_table[p, k] of every cell, log_prior[k], and the log prior density (or minus a divergence) of the parameters.

    state: what the channel wants to see again when it makes the next scores.
    """

    log_table: Float64[np.ndarray, "p k"]
    log_prior: Float64[np.ndarray, " k"]
    penalty: float = 0.0
    state: Any = None


@dataclass(frozen=True)
class Swept:
    """A pass: its counts and log likelihood."""

    statistics: Statistics
    log_likelihood: float

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.statistics + other.statistics, self.log_likelihood + other.log_likelihood)


def sweep(packed: Packed, scores: Scores, *, hard: bool = False, responsibilities: Float64[np.ndarray, "i k"] | None = None) -> Swept:
    """The counts and the log likelihood of those scores; fills `responsibilities` if it is given.

    hard: the most probable class takes all, the first of equals (Fast Dawid-Skene).
    """
    top, table, prior = _scaled(scores)
    log_table = np.log(table) if packed.weight is not None else _NONE_2D
    kernel = _kernels(table.shape[1])[0]
    out = _NONE_2D if responsibilities is None else responsibilities
    optional = _optional(packed)

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray, float]:
        said, class_count = np.zeros(table.shape), np.zeros(len(prior))
        total = kernel(packed.starts, packed.cell, *optional, table, log_table, prior, low, high, hard, said, class_count, out)
        return said, class_count, total

    done = in_threads(part, packed, len(table))
    said, class_count = (np.asarray(sum(each[part] for each in done)) for part in (0, 1))
    # What was scaled away: each row of a cell has the cell's maximum as a factor, and every row adds its weight to one class
    scale = float(top[1]) * float(class_count.sum()) + float(top[0] @ said.sum(1))
    return Swept(Statistics(said, class_count), float(sum(each[2] for each in done)) + scale)


def count(packed: Packed, responsibilities: Float64[np.ndarray, "i k"], num_cells: int) -> Statistics:
    """The counts that given responsibilities make."""
    shape = num_cells, responsibilities.shape[1]
    kernel, optional = _kernels(shape[1])[1], _optional(packed)

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        said, class_count = np.zeros(shape), np.zeros(shape[1])
        kernel(packed.starts, packed.cell, *optional, responsibilities, low, high, said, class_count)
        return said, class_count

    done = in_threads(part, packed, num_cells)
    return Statistics(np.asarray(sum(each[0] for each in done)), np.asarray(sum(each[1] for each in done)))


def votes(packed: Packed, cells: Cells) -> Float64[np.ndarray, "i k"]:
    """The weighted share of each class among an item's labels; the known class of an item that has one; 1/K where no label names a class."""
    shares, unused = np.zeros((packed.num_items, cells.num_classes)), np.zeros((0, cells.num_classes))
    kernel, optional = _kernels(cells.num_classes)[2], _optional(packed)

    def part(low: int, high: int) -> None:
        kernel(packed.starts, packed.cell, *optional, cells.label, low, high, unused, np.zeros(cells.num_classes), shares)

    in_threads(part, packed)
    return shares


def count_votes(packed: Packed, cells: Cells) -> Statistics:
    """The counts that the vote shares make, where EM starts."""
    kernel, optional, unused = _kernels(cells.num_classes)[2], _optional(packed), np.zeros((0, cells.num_classes))

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        said, class_count = np.zeros((len(cells), cells.num_classes)), np.zeros(cells.num_classes)
        kernel(packed.starts, packed.cell, *optional, cells.label, low, high, said, class_count, unused)
        return said, class_count

    done = in_threads(part, packed, len(cells))
    return Statistics(np.asarray(sum(each[0] for each in done)), np.asarray(sum(each[1] for each in done)))


def held_out(packed: Packed, scores: Scores) -> Statistics:
    """The counts with each row's own label left out of its item's responsibilities: how annotators stand to what the others say."""
    _, table, prior = _scaled(scores)
    kernel, optional = _kernels(table.shape[1])[3], _optional(packed)
    log_table = np.log(table)

    def part(low: int, high: int) -> np.ndarray:
        said = np.zeros(table.shape)
        kernel(packed.starts, packed.cell, *optional, log_table, np.log(prior), low, high, said)
        return said

    said = np.asarray(sum(in_threads(part, packed, len(table))))
    return Statistics(said, np.zeros(len(prior)))


def sums_by_owner(values: Float64[np.ndarray, "p k"], owner: Int64[np.ndarray, " p"], num_owners: int) -> Float64[np.ndarray, "j k"]:
    """Sums of rows that have the same owner."""
    sums = np.zeros((num_owners, values.shape[1]))
    _add_rows(values, owner, sums)
    return sums


def _scaled(scores: Scores) -> tuple[tuple[np.ndarray, float], np.ndarray, np.ndarray]:
    table, highest = np.empty(scores.log_table.shape), np.empty(len(scores.log_table))
    _scale_rows(scores.log_table, FLOOR, table, highest)
    most = float(scores.log_prior.max())
    return (highest, most), table, np.exp(np.maximum(scores.log_prior - most, FLOOR))


def _optional(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        _NONE if packed.weight is None else packed.weight,
        _NONE_INT if packed.gold is None else packed.gold,
        _NONE if packed.times is None else packed.times,
    )


def in_threads(part: Any, packed: Packed, num_cells: int = 0) -> list[Any]:
    """Results of up to eight contiguous ranges of items with about as many rows each, in order.

    How many ranges there are hangs on the sizes alone, so sums of them have the same bits on any number of cores.
    """
    ranges = max(1, min(8, len(packed.cell) // max(_ROWS_PER_RANGE, _ROWS_PER_CELL * num_cells)))
    if ranges == 1:
        return [part(0, packed.num_items)]
    bounds = np.searchsorted(packed.starts, np.linspace(0, len(packed.cell), ranges + 1)[1:-1])
    bounds = [0, *map(int, bounds), packed.num_items]
    return list(_pool().map(part, bounds[:-1], bounds[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8))


@cache
def _kernels(num_classes: int) -> tuple[Any, Any, Any, Any]:
    """The passes for that many classes: a known number lets the compiler use vector instructions. Kept on disk where a folder can be written."""
    K, LIFT = num_classes, _LIFT

    def pass_over(
        starts: Int64[np.ndarray, " s"], cell: Any, weight: Any, gold: Any, times: Any, table: Any, log_table: Any, prior: Any,
        low: int, high: int, hard: bool, said: Any, class_count: Any, out: Any,
    ) -> float:  # fmt: skip
        # Threads that write to the same cache line wait for each other, so what is short lies in the middle of an array of its own
        r, lifts, in_all = np.empty(K + 32)[16 : 16 + K], np.empty(K + 32, np.int64)[16 : 16 + K], np.zeros(K + 32)[16 : 16 + K]
        total, product = 0.0, 1.0
        for i in range(low, high):
            first, last = starts[i], starts[i + 1]
            for k in range(K):
                r[k] = prior[k]
            if gold.size and gold[i] >= 0:
                for k in range(K):
                    if k != gold[i]:
                        r[k] = 0.0
            extra = 0.0
            if weight.size:
                for k in range(K):
                    r[k] = math.log(r[k]) if r[k] > 0 else -math.inf
                for n in range(first, last):
                    row = log_table[cell[n]]
                    for k in range(K):
                        r[k] += weight[n] * row[k]
                extra = r[0]
                for k in range(1, K):
                    extra = max(extra, r[k])
                for k in range(K):
                    r[k] = math.exp(r[k] - extra)
            elif last - first <= 8:  # most items; what follows is for long ones
                for n in range(first, last):
                    p = cell[n]
                    for k in range(K):
                        r[k] *= table[p, k]
            else:
                steps, lifted = 0, False
                for n in range(first, last):
                    row = table[cell[n]]
                    for k in range(K):
                        r[k] *= row[k]
                    steps += 1
                    if steps == 8:
                        steps = 0
                        least = r[0]
                        for k in range(1, K):
                            least = min(least, r[k])
                        if least < LIFT:
                            if not lifted:
                                lifted = True
                                for k in range(K):
                                    lifts[k] = 0
                            for k in range(K):
                                while 0 < r[k] < LIFT:
                                    r[k] /= LIFT
                                    lifts[k] += 1
                if lifted:
                    fewest = -1
                    for k in range(K):
                        if r[k] > 0 and (fewest < 0 or lifts[k] < fewest):
                            fewest = lifts[k]
                    for k in range(K):
                        if lifts[k] > fewest:
                            r[k] *= LIFT ** (lifts[k] - fewest)
                    extra = fewest * math.log(LIFT)
            top = 0.0
            for k in range(K):
                top += r[k]
            inverse = 1.0 / top
            for k in range(K):
                r[k] *= inverse
            if gold.size and gold[i] >= 0:
                r[gold[i]] = 1.0  # whatever was rounded
            if times.size:
                total += times[i] * (extra + math.log(top))
            else:
                total += extra
                if top < 1e-100:
                    total += math.log(top)
                else:  # one logarithm for many items
                    product *= top
                    if product < 1e-200 or product > 1e200:
                        total += math.log(product)
                        product = 1.0
            if hard and last > first:  # an item without labels is of no class more than of another
                best = 0
                for k in range(1, K):
                    if r[k] > r[best] * (1 + 1e-9):
                        best = k
                for k in range(K):
                    r[k] = 1.0 if k == best else 0.0
            if out.shape[0]:
                for k in range(K):
                    out[i, k] = r[k]
            if times.size:
                for k in range(K):
                    r[k] *= times[i]
            for k in range(K):
                in_all[k] += r[k]
            if weight.size:
                for n in range(first, last):
                    row = said[cell[n]]
                    for k in range(K):
                        row[k] += weight[n] * r[k]
            else:
                for n in range(first, last):
                    p = cell[n]
                    for k in range(K):
                        said[p, k] += r[k]
        for k in range(K):
            class_count[k] += in_all[k]
        return total + math.log(product)

    def count_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, given: Any, low: int, high: int, said: Any, class_count: Any
    ) -> None:
        for i in range(low, high):
            share = times[i] if times.size else 1.0
            for k in range(K):
                class_count[k] += share * given[i, k]
            for n in range(starts[i], starts[i + 1]):
                w = share * weight[n] if weight.size else share
                row = said[cell[n]]
                for k in range(K):
                    row[k] += w * given[i, k]

    def vote_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, label: Any, low: int, high: int, said: Any, class_count: Any, out: Any
    ) -> None:  # fmt: skip
        r, in_all = np.empty(K + 32)[16 : 16 + K], np.zeros(K + 32)[16 : 16 + K]
        for i in range(low, high):
            total = 0.0
            for k in range(K):
                r[k] = 0.0
            if gold.size and gold[i] >= 0:
                r[gold[i]] = total = 1.0
            else:
                for n in range(starts[i], starts[i + 1]):
                    if label[cell[n]] < K:
                        w = weight[n] if weight.size else 1.0
                        r[label[cell[n]]] += w
                        total += w
            for k in range(K):
                r[k] = r[k] / total if total > 0 else 1.0 / K
                if out.shape[0]:
                    out[i, k] = r[k]
                in_all[k] += times[i] * r[k] if times.size else r[k]
            if said.shape[0]:
                for n in range(starts[i], starts[i + 1]):
                    w = weight[n] if weight.size else 1.0
                    if times.size:
                        w *= times[i]
                    p = cell[n]
                    for k in range(K):
                        said[p, k] += w * r[k]
        for k in range(K):
            class_count[k] += in_all[k]

    def held_out_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, log_table: Any, log_prior: Any, low: int, high: int, said: Any
    ) -> None:
        all_of, r = np.empty(K), np.empty(K)
        for i in range(low, high):
            share = times[i] if times.size else 1.0
            for k in range(K):
                all_of[k] = log_prior[k]
            for n in range(starts[i], starts[i + 1]):
                w = weight[n] if weight.size else 1.0
                for k in range(K):
                    all_of[k] += w * log_table[cell[n], k]
            for n in range(starts[i], starts[i + 1]):
                w = weight[n] if weight.size else 1.0
                if gold.size and gold[i] >= 0:
                    said[cell[n], gold[i]] += share * w
                    continue
                most = -math.inf
                for k in range(K):
                    r[k] = all_of[k] - w * log_table[cell[n], k]
                    most = max(most, r[k])
                top = 0.0
                for k in range(K):
                    r[k] = math.exp(r[k] - most)
                    top += r[k]
                for k in range(K):
                    said[cell[n], k] += share * w * r[k] / top

    return fast(pass_over), fast(count_over), fast(vote_over), fast(held_out_over)


def fast(function: Any) -> Any:
    """That function in machine code, without the interpreter's lock; kept on disk where a folder can be written."""
    options: dict[str, Any] = {
        "nogil": True,
        "boundscheck": False,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    }
    plain = inspect.unwrap(function)  # what checks shapes cannot be compiled
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # no folder for the cache
        return numba.njit(plain, **options)


@fast
def _add_rows(values: Any, owner: Any, sums: Any) -> None:
    for p in range(values.shape[0]):
        for k in range(values.shape[1]):
            sums[owner[p], k] += values[p, k]


@fast
def _scale_rows(logs: Any, floor: float, table: Any, highest: Any) -> None:
    """exp of rows minus their maxima, which are 0 where nothing is possible."""
    for p in range(logs.shape[0]):
        most = -math.inf
        for k in range(logs.shape[1]):
            most = max(most, logs[p, k])
        most = most if most > -math.inf else 0.0
        highest[p] = most
        for k in range(logs.shape[1]):
            table[p, k] = math.exp(max(logs[p, k] - most, floor))

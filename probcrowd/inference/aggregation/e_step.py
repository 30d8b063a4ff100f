r"""One pass over annotations packed by item, compiled: responsibilities of each item and, while they are in the cache, what they add to the counts.

    s_ik = prior[k] prod over the item's cells p of table[p, k]^w      r_ik = s_ik / sum_k s_ik           E step
    counts[p, k] = sum over rows with cell p of w times_i r_ik           class_count[k] = sum times_i r_ik   what an M step needs
    log_likelihood = sum times_i log sum_k s_ik

Responsibilities are written only where they are asked for, so a pass reads a number per annotation and keeps a table per range of items. Rows of
the table are scaled to a maximum of 1 (the scales are added to the log likelihood), and entries below 1e-30 of that are raised to it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probcrowd.data.packed import Cells, Packed
from probcrowd.inference.aggregation.e_step_kernels import add_rows, kernels, scale_rows

FLOOR = -69.0  # log of the least probability, relative to the row's highest
_ROWS_PER_RANGE, _ROWS_PER_CELL = (
    250_000,
    4,
)  # in a range at least, so that its own table of counts costs little
_NONE_INT, _NONE, _NONE_2D = np.zeros(0, np.int32), np.zeros(0), np.zeros((0, 1))


@dataclass(frozen=True)
class Statistics:
    """Expected counts: counts[p, k] how much weight the pair p has on items of class k, class_count[k] how many items are of class k. They add."""

    counts: Float64[np.ndarray, "p k"]
    class_count: Float64[np.ndarray, " k"]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.counts + other.counts, self.class_count + other.class_count)

    def extended(self, num_cells: int) -> Statistics:
        """With zeros for cells that are new."""
        return Statistics(np.pad(self.counts, ((0, num_cells - len(self.counts)), (0, 0))), self.class_count)


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
class Expectation:
    """A pass: its counts and log likelihood."""

    statistics: Statistics
    log_likelihood: float

    def __add__(self, other: Expectation) -> Expectation:
        return Expectation(self.statistics + other.statistics, self.log_likelihood + other.log_likelihood)


def e_step(
    packed: Packed,
    scores: Scores,
    *,
    hard: bool = False,
    responsibilities: Float64[np.ndarray, "i k"] | None = None,
) -> Expectation:
    """The counts and the log likelihood of those scores; fills `responsibilities` if it is given.

    hard: the most probable class takes all, the first of equals (Fast Dawid-Skene).
    """
    top, table, prior = _scaled(scores)
    log_table = np.log(table) if packed.weight is not None else _NONE_2D
    kernel = kernels(table.shape[1])[0]
    out = _NONE_2D if responsibilities is None else responsibilities
    optional = _optional(packed)

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray, float]:
        counts, class_count = np.zeros(table.shape), np.zeros(len(prior))
        total = kernel(
            packed.starts,
            packed.cell,
            *optional,
            table,
            log_table,
            prior,
            low,
            high,
            hard,
            counts,
            class_count,
            out,
        )
        return counts, class_count, total

    done = in_threads(part, packed, len(table))
    counts, class_count = (np.asarray(sum(each[part] for each in done)) for part in (0, 1))
    # What was scaled away: each row of a cell has the cell's maximum as a factor, and every row adds its weight to one class
    scale = float(top[1]) * float(class_count.sum()) + float(top[0] @ counts.sum(1))
    return Expectation(Statistics(counts, class_count), float(sum(each[2] for each in done)) + scale)


def count(packed: Packed, responsibilities: Float64[np.ndarray, "i k"], num_cells: int) -> Statistics:
    """The counts that given responsibilities make."""
    shape = num_cells, responsibilities.shape[1]
    kernel, optional = kernels(shape[1])[1], _optional(packed)

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        counts, class_count = np.zeros(shape), np.zeros(shape[1])
        kernel(packed.starts, packed.cell, *optional, responsibilities, low, high, counts, class_count)
        return counts, class_count

    done = in_threads(part, packed, num_cells)
    return Statistics(np.asarray(sum(each[0] for each in done)), np.asarray(sum(each[1] for each in done)))


def votes(packed: Packed, cells: Cells) -> Float64[np.ndarray, "i k"]:
    """The weighted share of each class among an item's labels; the known class of an item that has one; 1/K where no label names a class."""
    shares, unused = np.zeros((packed.num_items, cells.num_classes)), np.zeros((0, cells.num_classes))
    kernel, optional = kernels(cells.num_classes)[2], _optional(packed)

    def part(low: int, high: int) -> None:
        kernel(
            packed.starts,
            packed.cell,
            *optional,
            cells.label,
            low,
            high,
            unused,
            np.zeros(cells.num_classes),
            shares,
        )

    in_threads(part, packed)
    return shares


def count_votes(packed: Packed, cells: Cells) -> Statistics:
    """The counts that the vote shares make, where EM starts."""
    kernel, optional, unused = (
        kernels(cells.num_classes)[2],
        _optional(packed),
        np.zeros((0, cells.num_classes)),
    )

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        counts, class_count = np.zeros((len(cells), cells.num_classes)), np.zeros(cells.num_classes)
        kernel(packed.starts, packed.cell, *optional, cells.label, low, high, counts, class_count, unused)
        return counts, class_count

    done = in_threads(part, packed, len(cells))
    return Statistics(np.asarray(sum(each[0] for each in done)), np.asarray(sum(each[1] for each in done)))


def held_out(packed: Packed, scores: Scores) -> Statistics:
    """The counts with each row's own label left out of its item's responsibilities: how annotators stand to what the others say."""
    _, table, prior = _scaled(scores)
    kernel, optional = kernels(table.shape[1])[3], _optional(packed)
    log_table = np.log(table)

    def part(low: int, high: int) -> np.ndarray:
        counts = np.zeros(table.shape)
        kernel(packed.starts, packed.cell, *optional, log_table, np.log(prior), low, high, counts)
        return counts

    counts = np.asarray(sum(in_threads(part, packed, len(table))))
    return Statistics(counts, np.zeros(len(prior)))


def sums_by_owner(
    values: Float64[np.ndarray, "p k"], owner: Int64[np.ndarray, " p"], num_owners: int
) -> Float64[np.ndarray, "j k"]:
    """Sums of rows that have the same owner."""
    sums = np.zeros((num_owners, values.shape[1]))
    add_rows(values, owner, sums)
    return sums


def _scaled(scores: Scores) -> tuple[tuple[np.ndarray, float], np.ndarray, np.ndarray]:
    table, highest = np.empty(scores.log_table.shape), np.empty(len(scores.log_table))
    scale_rows(scores.log_table, FLOOR, table, highest)
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
    return list(_pool(os.getpid()).map(part, bounds[:-1], bounds[1:]))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process: a fork has none of its parent's, and would wait for them forever."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8))

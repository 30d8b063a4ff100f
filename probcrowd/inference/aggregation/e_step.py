r"""The E step: one compiled pass over annotations packed by item gives responsibilities and the expected
counts that they make.

    s_ik = prior[k] prod over the item's cells p of table[p, k]^w      r_ik = s_ik / sum_k s_ik
    counts[p, k] = sum over rows with cell p of w times_i r_ik      class_count[k] = sum times_i r_ik
    log_likelihood = sum times_i log sum_k s_ik

Responsibilities are written only on request, so a pass reads one number per annotation and keeps one table of
counts per range of items. Rows of the table are scaled to a maximum of 1 (the scales are added to the log
likelihood), and entries below 1e-30 of that are raised to it.

Products are not taken in logs: after every eight annotations small products are lifted by 1e60 and the lifts
counted, so neither long items nor contradictions underflow, and a class may recover from far behind. With
weights, logs are summed instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from probcrowd.compute.compiled import fast
from probcrowd.data.table import Packed, in_ranges
from probcrowd.metrics.scores import TIE

FLOOR = -69.0  # log of the least probability, relative to the row's highest
_LIFT = 1e-60  # eight rows at the floor leave a product of 1e-300
_NONE_2D = np.zeros((0, 1))


@dataclass(frozen=True)
class Statistics:
    """Expected counts; they add over parts of the annotations.

    counts[p, k]: weight of the pair p on items of class k. class_count[k]: number of items of class k.
    """

    counts: Float64[np.ndarray, "p k"]
    class_count: Float64[np.ndarray, " k"]

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.counts + other.counts, self.class_count + other.class_count)

    def extended(self, num_cells: int) -> Statistics:
        """Append zeros for new cells."""
        return Statistics(np.pad(self.counts, ((0, num_cells - len(self.counts)), (0, 0))), self.class_count)


@dataclass(frozen=True)
class Scores:
    """What an E step needs: log_table[p, k] = log P(label | class k) by cell, log_prior[k] = log P(class k).

    penalty: log prior density of the parameters, or minus a divergence. state: what the model needs for its
    next M step.
    """

    log_table: Float64[np.ndarray, "p k"]
    log_prior: Float64[np.ndarray, " k"]
    penalty: float = 0.0
    state: Any = None


@dataclass(frozen=True)
class Expectation:
    """The result of an E step: expected counts and log likelihood."""

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
    """Return the expected counts and the log likelihood; fill `responsibilities` if it is given.

    hard: the most probable class takes all, the first of equals (Fast Dawid-Skene).
    """
    highest, most, table, prior = scaled(scores)
    log_table = np.log(table) if packed.weight is not None else _NONE_2D
    kernel, arrays = _kernels(table.shape[1])[0], packed.arrays
    out = _NONE_2D if responsibilities is None else responsibilities

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray, float]:
        counts, class_count = np.zeros(table.shape), np.zeros(len(prior))
        total = kernel(*arrays, table, log_table, prior, low, high, hard, counts, class_count, out)
        return counts, class_count, total

    parts = in_ranges(part, packed, len(table))
    counts, class_count = (np.asarray(sum(each[which] for each in parts)) for which in (0, 1))
    # Scales: each row has its cell's maximum as a factor, and adds its weight to one class
    scale = most * float(class_count.sum()) + float(highest @ counts.sum(1))
    return Expectation(Statistics(counts, class_count), float(sum(each[2] for each in parts)) + scale)


def count(packed: Packed, responsibilities: Float64[np.ndarray, "i k"], num_cells: int) -> Statistics:
    """Return the expected counts that given responsibilities make."""
    shape = num_cells, responsibilities.shape[1]
    kernel, arrays = _kernels(shape[1])[1], packed.arrays

    def part(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        counts, class_count = np.zeros(shape), np.zeros(shape[1])
        kernel(*arrays, responsibilities, low, high, counts, class_count)
        return counts, class_count

    parts = in_ranges(part, packed, num_cells)
    return Statistics(*(np.asarray(sum(each[which] for each in parts)) for which in (0, 1)))


def sums_by_owner(
    values: Float64[np.ndarray, "p k"], owner: Int64[np.ndarray, " p"], num_owners: int
) -> Float64[np.ndarray, "j k"]:
    """Sum rows that have the same owner."""
    sums = np.zeros((num_owners, values.shape[1]))
    _add_rows(values, owner, sums)
    return sums


def shares_by_owner(
    values: Float64[np.ndarray, "p k"], owner: Int64[np.ndarray, " p"], num_owners: int
) -> Float64[np.ndarray, "p k"]:
    """Divide rows by the sum of those with the same owner; zeros where it is 0."""
    total = sums_by_owner(values, owner, num_owners)[owner]
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def scaled(scores: Scores) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Return the highest logs of rows and prior, and both as probabilities divided by the highest."""
    table, highest = np.empty(scores.log_table.shape), np.empty(len(scores.log_table))
    _scale_rows(scores.log_table, FLOOR, table, highest)
    most = float(scores.log_prior.max())
    return highest, most, table, np.exp(np.maximum(scores.log_prior - most, FLOOR))


@cache
def _kernels(num_classes: int) -> tuple[Any, Any]:
    """Compile the loops of `e_step` and `count`: with a known number of classes the compiler uses vector
    instructions.
    """
    K, LIFT = num_classes, _LIFT

    def pass_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, table: Any, log_table: Any, prior: Any,
        low: int, high: int, hard: bool, counts: Any, class_count: Any, out: Any,
    ) -> float:  # fmt: skip
        # Threads that write to one cache line wait for each other: short arrays lie amid longer ones
        r, in_all = np.empty(K + 32)[16 : 16 + K], np.zeros(K + 32)[16 : 16 + K]
        lifts = np.empty(K + 32, np.int64)[16 : 16 + K]
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
            elif last - first <= 8:  # most items
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
                r[gold[i]] = 1.0  # exactly
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
            if hard and last > first:  # no class is more probable for an item without labels
                best = 0
                for k in range(1, K):
                    if r[k] > r[best] * (1 + TIE):
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
                    row = counts[cell[n]]
                    for k in range(K):
                        row[k] += weight[n] * r[k]
            else:
                for n in range(first, last):
                    p = cell[n]
                    for k in range(K):
                        counts[p, k] += r[k]
        for k in range(K):
            class_count[k] += in_all[k]
        return total + math.log(product)

    def count_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, given: Any, low: int, high: int,
        counts: Any, class_count: Any,
    ) -> None:  # fmt: skip
        for i in range(low, high):
            share = times[i] if times.size else 1.0
            for k in range(K):
                class_count[k] += share * given[i, k]
            for n in range(starts[i], starts[i + 1]):
                w = share * weight[n] if weight.size else share
                row = counts[cell[n]]
                for k in range(K):
                    row[k] += w * given[i, k]

    return fast(pass_over), fast(count_over)


@fast
def _add_rows(values: Any, owner: Any, sums: Any) -> None:
    for p in range(values.shape[0]):
        for k in range(values.shape[1]):
            sums[owner[p], k] += values[p, k]


@fast
def _scale_rows(logs: Any, floor: float, table: Any, highest: Any) -> None:
    """Take exp of rows minus their maxima; the maximum counts as 0 where nothing is possible."""
    for p in range(logs.shape[0]):
        most = -math.inf
        for k in range(logs.shape[1]):
            most = max(most, logs[p, k])
        most = most if most > -math.inf else 0.0
        highest[p] = most
        for k in range(logs.shape[1]):
            table[p, k] = math.exp(max(logs[p, k] - most, floor))

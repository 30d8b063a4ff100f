r"""How often two annotators agree on an item if they err independently given the truth: p of `dependence`, compiled.

p = sum_k q[k] sum_l P(j says l | k) P(j' says l | k)        q[k] = p(truth | the item's labels other than the two), or the known class
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probcrowd.compute.compiled import compiled
from probcrowd.data.rows import Rows
from probcrowd.inference.aggregation.e_step import sums_by_owner

TINY = 1e-30  # stands for probability 0, whose logarithm cannot be taken away from a sum again
ROUNDING = 1e-9


@dataclass(frozen=True)
class Labels:
    """Rows of the cells cell[n], which come by annotator, then label: those of annotator j are first[j] to first[j + 1]."""

    rows: Rows
    cell: Int[np.ndarray, " n"]
    annotator: Int[np.ndarray, " p"]
    label: Int[np.ndarray, " p"]
    first: Int[np.ndarray, " j"]

    def shares(self, table: Float64[np.ndarray, "p k"]) -> Float64[np.ndarray, "p k"]:
        """The table scaled so that an annotator's labels sum to 1 for each class, or to 0 where none is possible."""
        total = sums_by_owner(table, self.annotator, len(self.first) - 1)[self.annotator]
        return np.divide(table, total, out=np.zeros_like(table), where=total > 0)

    def frequencies(
        self, some: Int[np.ndarray, " s"], known: Int[np.ndarray, " i"]
    ) -> Float64[np.ndarray, "p k"]:
        """How often an annotator gives each label in those rows, by the known class of the items."""
        groups, group = int(known.max(initial=0)) + 1, known[self.rows.item[some]]
        count = np.bincount(self.cell[some] * groups + group, minlength=len(self.label) * groups)
        return self.shares(count.reshape(-1, groups).astype(float))

    def agreement(
        self,
        left: Int[np.ndarray, " m"],
        right: Int[np.ndarray, " m"],
        shares: Float64[np.ndarray, "p k"],
        known: Int[np.ndarray, " i"],
        log_table: Float64[np.ndarray, "p k"] | None = None,
        score: Float64[np.ndarray, "i k"] | None = None,
    ) -> Float64[np.ndarray, " m"]:
        """p of those row pairs. score: log of prior times likelihood of every class, needed where the class is not known."""
        none, rows = np.zeros((0, shares.shape[1])), self.rows
        tables = (none, none) if log_table is None or score is None else (log_table, score)
        return expected_agreement(
            left,
            right,
            rows.item,
            rows.annotator,
            rows.weight,
            self.cell,
            self.first,
            self.label,
            shares,
            known,
            *tables,
        )


@dataclass(frozen=True)
class Compared:
    """Row pairs, and where those of each pair of annotators with enough of them begin, how many they are."""

    left: Int[np.ndarray, " m"]
    right: Int[np.ndarray, " m"]
    agree: Float64[np.ndarray, " m"]
    first: Int[np.ndarray, " g"]
    count: Int[np.ndarray, " g"]

    def sums(self, values: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " g"]:
        """By pair of annotators."""
        bounds = np.stack([self.first, self.first + self.count], axis=1).ravel()
        return np.add.reduceat(np.append(values, 0.0), bounds)[
            ::2
        ]  # every other stretch lies between two of them


def components(left: Int[np.ndarray, " m"], right: Int[np.ndarray, " m"], size: int) -> Int[np.ndarray, " j"]:
    """The connected component of each of so many nodes."""
    return connected_components(coo_array((np.ones(len(left)), (left, right)), (size, size)), directed=False)[
        1
    ].astype(np.int64)


@compiled
def expected_agreement(
    left: Int[np.ndarray, " m"],
    right: Int[np.ndarray, " m"],
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    cell: Int[np.ndarray, " n"],
    first: Int[np.ndarray, " j"],
    label: Int[np.ndarray, " p"],
    shares: Float64[np.ndarray, "p k"],
    known: Int[np.ndarray, " i"],
    log_table: Float64[np.ndarray, "c k"],
    score: Float64[np.ndarray, "h k"],
) -> Float64[np.ndarray, " m"]:
    """p of each row pair. They come by pair of annotators, whose agreement given each class is added up once."""
    num_classes, expected = shares.shape[1], np.empty(left.size)
    same, rest = np.zeros(num_classes), np.zeros(num_classes)
    j, other = -1, -1
    for pair in range(left.size):
        n, m = left[pair], right[pair]
        if annotator[n] != j or annotator[m] != other:
            j, other = annotator[n], annotator[m]
            same[:] = 0
            a, b = first[j], first[other]
            while a < first[j + 1] and b < first[other + 1]:
                if label[a] == label[b]:
                    for k in range(num_classes):
                        same[k] += shares[a, k] * shares[b, k]
                a, b = a + (label[a] <= label[b]), b + (label[b] <= label[a])
        i = item[n]
        if known[i] >= 0:
            expected[pair] = same[known[i]]
        else:
            for k in range(num_classes):
                rest[k] = score[i, k] - weight[n] * log_table[cell[n], k] - weight[m] * log_table[cell[m], k]
            top, mass, total = rest.max(), 0.0, 0.0
            for k in range(num_classes):
                q = math.exp(rest[k] - top)
                mass += q * same[k]
                total += q
            expected[pair] = mass / total
        expected[pair] = min(expected[pair], 1.0)
    return expected

r"""Agreement of pairs of annotators beyond chance, on the items that both labelled.

For annotators j and j' with n items in common, of which N[l, m] got l from j and m from j':

    po = sum_l N[l, l] / n       p, p' = shares of labels of j and of j' on these items       q = (p + p') / 2

    kappa           (po - pe) / (1 - pe),  pe = sum_l p_l p'_l              Cohen 1960
    bennett         the same with pe = 1 / L                                Bennett, Alpert & Goldstein 1954
    krippendorff    1 - (2n - 1) (1 - po) / (2n (1 - sum_l q_l^2))          two coders, nominal
    pearson         correlation of the labels as numbers: their values, or their codes

A coefficient is NaN where it is 0 / 0: no item in common, or a single label on all of them.

The standard error of the first three is sqrt(po (1 - po) / n) / (1 - pe), with pe taken as known and two
agreements and two disagreements added to po, so that it is never 0. That of a correlation comes from the
delta method: sqrt(mean of (x y - r (x^2 + y^2) / 2)^2 / n) in standard units, with four terms of 1/4 added.

Counts come from one sparse product V'V (V: items x (annotator, label)). Memory and work grow with the row
pairs that occur, sum_i n_i^2, and with at most pairs x L^2 counts; no annotators x annotators array is built.
Where most annotators labelled most items, the product runs over dense blocks of 8 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int
from scipy.sparse import coo_array, csr_array

from probcrowd.data.validation import check_option

COEFFICIENTS = ("kappa", "bennett", "krippendorff", "pearson")
_ROUNDING = 1e-12
_DENSE_SPEEDUP = 20  # a dense multiplication is so many times faster than a sparse one
_MOST_COLUMNS, _BLOCK_SIZE = 2_000, 2**20  # of a dense product, and numbers in one of its blocks


@dataclass(frozen=True)
class PairTables:
    """Joint counts of labels by pair of annotators, left[p] < right[p].

    Entry e counts the items that got left_label[e] and right_label[e] from the two annotators of pair[e].
    """

    left: Int[np.ndarray, " p"]
    right: Int[np.ndarray, " p"]
    pair: Int[np.ndarray, " e"]
    left_label: Int[np.ndarray, " e"]
    right_label: Int[np.ndarray, " e"]
    count: Float64[np.ndarray, " e"]
    num_labels: int

    @cached_property
    def items(self) -> Float64[np.ndarray, " p"]:
        """Number of items in common."""
        return self._sums(self.count)

    @cached_property
    def agreement(self) -> Float64[np.ndarray, " p"]:
        """Observed agreement po."""
        return self._sums(self.count * (self.left_label == self.right_label)) / self.items

    @cached_property
    def shares(self) -> tuple[Float64[np.ndarray, "p l"], Float64[np.ndarray, "p l"]]:
        """Shares of labels p and p'."""
        return self._shares(self.left_label), self._shares(self.right_label)

    def chance(self, kind: str) -> Float64[np.ndarray, " p"]:
        """Expected agreement pe; not used for a correlation."""
        first, second = self.shares
        if kind == "bennett":
            return np.full(len(self.items), 1 / self.num_labels)
        if kind == "krippendorff":
            return (((first + second) / 2) ** 2).sum(1)
        return (first * second).sum(1)

    def correlations(
        self, values: Float64[np.ndarray, " l"]
    ) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
        """Correlation of the labels as these numbers, and its standard error."""
        n, least = self.items, _ROUNDING * float(np.abs(values).max(initial=0))

        def standardised(
            share: Float64[np.ndarray, "p l"], label: Int[np.ndarray, " e"]
        ) -> Float64[np.ndarray, " e"]:
            mean = share @ values
            deviation = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
            return _ratio(values[label] - mean[self.pair], deviation[self.pair], least)

        left, right = self.shares
        x, y = standardised(left, self.left_label), standardised(right, self.right_label)
        correlation = self._sums(self.count * x * y) / n
        influence = x * y - correlation[self.pair] * (x**2 + y**2) / 2
        return correlation, np.sqrt((self._sums(self.count * influence**2) + 1) / (n + 4) / n)

    def _sums(self, values: Float64[np.ndarray, " e"]) -> Float64[np.ndarray, " p"]:
        return np.bincount(self.pair, values, minlength=len(self.left)).astype(np.float64)

    def _shares(self, label: Int[np.ndarray, " e"]) -> Float64[np.ndarray, "p l"]:
        cell, size = self.pair * self.num_labels + label, len(self.left) * self.num_labels
        return np.bincount(cell, self.count, size).reshape(-1, self.num_labels) / self.items[:, None]


def pair_shares(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    num_annotators: int,
) -> Float64[np.ndarray, " n"]:
    """Share of each row, by weight, among the labels by its annotator of its item: 1 for a single label."""
    place, owner = np.unique(item * num_annotators + annotator, return_inverse=True)
    return weight / np.bincount(owner, weight, minlength=len(place))[owner]


def pair_tables(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    share: Float64[np.ndarray, " n"] | None = None,
    *,
    num_annotators: int,
    num_labels: int,
) -> PairTables:
    """Count labels of all pairs with an item in common.

    share: see `pair_shares`; None where no annotator gave an item several labels.
    """
    column = annotator * num_labels + label
    share = np.ones(len(item)) if share is None else share
    shape = (int(item.max(initial=-1)) + 1, num_annotators * num_labels)
    votes = csr_array(coo_array((share, (item, column)), shape))
    dense = _dense_is_faster(np.bincount(item), shape[1])
    joint = coo_array(_dense_product(votes, *shape)) if dense else (votes.T @ votes).tocoo()
    left, right = joint.row // num_labels, joint.col // num_labels
    upper = left < right
    left, right, row, column, count = (
        part[upper] for part in (left, right, joint.row, joint.col, joint.data)
    )
    keys, pair = np.unique(left.astype(np.int64) * num_annotators + right, return_inverse=True)
    labels = ((part % num_labels).astype(np.int64) for part in (row, column))
    return PairTables(
        keys // num_annotators, keys % num_annotators, pair, *labels, count.astype(np.float64), num_labels
    )


def coefficients(
    tables: PairTables, kind: str = "kappa", values: Float64[np.ndarray, " l"] | None = None
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Coefficient and its standard error by pair. values: the labels as numbers, for a correlation.

    Raises:
        ValueError: an unknown coefficient.
    """
    check_option("similarity", kind, COEFFICIENTS)
    if kind == "pearson":
        codes = np.arange(tables.num_labels, dtype=np.float64)
        return tables.correlations(codes if values is None else values)
    n, po = tables.items, tables.agreement
    beyond_chance = 1 - tables.chance(kind)
    disagreement = (1 - po) * (2 * n - 1) / (2 * n) if kind == "krippendorff" else 1 - po
    smooth = (po * n + 2) / (n + 4)
    error = _ratio(np.sqrt(smooth * (1 - smooth) / n), beyond_chance)
    return 1 - _ratio(disagreement, beyond_chance), error


def as_matrix(
    tables: PairTables, values: Float64[np.ndarray, " p"], num_annotators: int
) -> Float64[np.ndarray, "j j"]:
    """Arrange values of pairs in a symmetric matrix: 1 on the diagonal, NaN where there is no pair."""
    matrix = np.full((num_annotators, num_annotators), np.nan)
    matrix[tables.left, tables.right] = matrix[tables.right, tables.left] = values
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _dense_is_faster(per_item: Int[np.ndarray, " i"], columns: int) -> bool:
    """Whether a product of dense blocks is faster than a sparse one, and its result small."""
    sparse_work = _DENSE_SPEEDUP * (per_item.astype(np.float64) ** 2).sum()
    return columns <= _MOST_COLUMNS and bool(sparse_work > len(per_item) * columns**2)


def _dense_product(votes: csr_array, rows: int, columns: int) -> Float64[np.ndarray, "s s"]:
    """V'V, a block of items at a time."""
    step, product = max(_BLOCK_SIZE // max(columns, 1), 1), np.zeros((columns, columns))
    for low in range(0, rows, step):
        block = votes[low : low + step].toarray()
        product += block.T @ block
    return product


def _ratio(
    numerator: Float64[np.ndarray, " p"], denominator: Float64[np.ndarray, " p"], least: float = _ROUNDING
) -> Float64[np.ndarray, " p"]:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > least)

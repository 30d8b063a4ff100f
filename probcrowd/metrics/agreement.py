r"""How far annotators agree beyond chance, by pair of them, on the items that both have labelled.

For annotators j and j' with n items in common, N[l, m] of which got l from j and m from j':

    po = sum_l N[l, l] / n           p, p' = the shares of labels of j and of j' on these items          q = (p + p') / 2

    kappa           (po - pe) / (1 - pe),  pe = sum_l p_l p'_l                                 Cohen 1960
    bennett         the same with pe = 1 / L                                                   Bennett, Alpert & Goldstein 1954
    krippendorff    1 - (2n - 1) (1 - po) / (2n (1 - sum_l q_l^2))                             two coders, nominal
    pearson         correlation of the labels as numbers: their values, or their places among the classes

NaN where a coefficient is 0 / 0: no item in common, or nothing but one label on them.

The standard error of the first three is sqrt(po (1 - po) / n) / (1 - pe) with the chance taken as known and two agreements and two disagreements added to po,
so that none is sure of itself; that of a correlation is the delta method's, sqrt(mean of (x y - r (x^2 + y^2) / 2)^2 / n) in standard units, with four
terms of 1/4 added.

Counts come from one sparse product V'V (V: items x (annotator, label)): memory and work are those of the row pairs that there are, sum_i n_i^2, and at
most pairs x L^2 counts; no array of annotators x annotators is made. Where most annotators have labelled most items, the product is one of dense blocks of 8 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64, Int
from scipy.sparse import coo_array, csr_array

from probcrowd.data.options import check_option

COEFFICIENTS = ("kappa", "bennett", "krippendorff", "pearson")
_ROUNDING = 1e-12
_FASTER, _MOST_DENSE, _AT_ONCE = (
    20,
    2_000,
    2**20,
)  # a dense multiplication; columns and numbers of a dense block


@dataclass(frozen=True)
class PairTables:
    """Joint counts of the labels of pairs of annotators, left[p] < right[p]: entry e counts items with left_label[e] and right_label[e] for pair[e]."""

    left: Int[np.ndarray, " p"]
    right: Int[np.ndarray, " p"]
    pair: Int[np.ndarray, " e"]
    left_label: Int[np.ndarray, " e"]
    right_label: Int[np.ndarray, " e"]
    count: Float64[np.ndarray, " e"]
    num_labels: int

    @cached_property
    def items(self) -> Float64[np.ndarray, " p"]:
        """Items in common."""
        return self._sums(self.count)

    @cached_property
    def agreement(self) -> Float64[np.ndarray, " p"]:
        """po."""
        return self._sums(self.count * (self.left_label == self.right_label)) / self.items

    @cached_property
    def shares(self) -> tuple[Float64[np.ndarray, "p l"], Float64[np.ndarray, "p l"]]:
        """p and p'."""
        return self._shares(self.left_label), self._shares(self.right_label)

    def chance(self, kind: str) -> Float64[np.ndarray, " p"]:
        """pe; for a correlation nothing that is used."""
        first, second = self.shares
        if kind == "bennett":
            return np.full(len(self.items), 1 / self.num_labels)
        if kind == "krippendorff":
            return (((first + second) / 2) ** 2).sum(1)
        return (first * second).sum(1)

    def correlations(
        self, values: Float64[np.ndarray, " l"]
    ) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
        """The correlation of the labels as those numbers, and its standard error."""
        scores, n = [], self.items
        for share, label in zip(self.shares, (self.left_label, self.right_label), strict=True):
            mean = share @ values
            spread = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
            scores.append(
                _ratio(
                    values[label] - mean[self.pair],
                    spread[self.pair],
                    _ROUNDING * float(np.abs(values).max(initial=0)),
                )
            )
        x, y = scores
        found = self._sums(self.count * x * y) / n
        influence = x * y - found[self.pair] * (x**2 + y**2) / 2
        return found, np.sqrt((self._sums(self.count * influence**2) + 1) / (n + 4) / n)

    def _sums(self, values: Float64[np.ndarray, " e"]) -> Float64[np.ndarray, " p"]:
        return np.bincount(self.pair, values, minlength=len(self.left)).astype(np.float64)

    def _shares(self, label: Int[np.ndarray, " e"]) -> Float64[np.ndarray, "p l"]:
        flat = np.bincount(
            self.pair * self.num_labels + label, self.count, minlength=len(self.left) * self.num_labels
        )
        return flat.reshape(-1, self.num_labels) / self.items[:, None]


def pair_shares(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    weight: Float64[np.ndarray, " n"],
    num_annotators: int,
) -> Float64[np.ndarray, " n"]:
    """The share of each row in what its annotator says of its item: 1, but where an annotator gave an item several labels, by their weights."""
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
    """The tables of all pairs with an item in common. share: see `pair_shares`; None: no annotator gave an item several labels."""
    seat = annotator * num_labels + label
    share = np.ones(len(item)) if share is None else share
    shape = (int(item.max(initial=-1)) + 1, num_annotators * num_labels)
    votes = csr_array(coo_array((share, (item, seat)), shape))
    joint = (
        coo_array(_product(votes, *shape))
        if _is_full(np.bincount(item), shape[1])
        else (votes.T @ votes).tocoo()
    )
    left, right = joint.row // num_labels, joint.col // num_labels
    kept = left < right
    left, right, row, column, count = (part[kept] for part in (left, right, joint.row, joint.col, joint.data))
    keys, pair = np.unique(left.astype(np.int64) * num_annotators + right, return_inverse=True)
    labels = ((part % num_labels).astype(np.int64) for part in (row, column))
    return PairTables(
        keys // num_annotators, keys % num_annotators, pair, *labels, count.astype(np.float64), num_labels
    )


def coefficients(
    tables: PairTables, kind: str = "kappa", values: Float64[np.ndarray, " l"] | None = None
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Coefficient and standard error by pair; values: of the labels, for a correlation.

    Raises:
        ValueError: an unknown coefficient.
    """
    check_option("similarity", kind, COEFFICIENTS)
    if kind == "pearson":
        return tables.correlations(
            np.arange(tables.num_labels, dtype=np.float64) if values is None else values
        )
    n, po = tables.items, tables.agreement
    room = 1 - tables.chance(kind)
    if kind == "krippendorff":
        found = 1 - _ratio((1 - po) * (2 * n - 1) / (2 * n), room)
    else:
        found = 1 - _ratio(1 - po, room)
    smooth = (po * n + 2) / (n + 4)
    return found, _ratio(np.sqrt(smooth * (1 - smooth) / n), room)


def as_matrix(
    tables: PairTables, values: Float64[np.ndarray, " p"], num_annotators: int
) -> Float64[np.ndarray, "j j"]:
    """Values of pairs as a symmetric matrix, 1 on the diagonal; NaN where there is no pair."""
    matrix = np.full((num_annotators, num_annotators), np.nan)
    matrix[tables.left, tables.right] = matrix[tables.right, tables.left] = values
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _is_full(per_item: Int[np.ndarray, " i"], columns: int) -> bool:
    """Whether a product of dense blocks takes less time than a sparse one, and its result little memory."""
    return columns <= _MOST_DENSE and bool(
        _FASTER * (per_item.astype(np.float64) ** 2).sum() > len(per_item) * columns**2
    )


def _product(votes: csr_array, rows: int, columns: int) -> Float64[np.ndarray, "s s"]:
    """V'V, of some items at a time."""
    step, found = max(_AT_ONCE // max(columns, 1), 1), np.zeros((columns, columns))
    for low in range(0, rows, step):
        block = votes[low : low + step].toarray()
        found += block.T @ block
    return found


def _ratio(
    above: Float64[np.ndarray, " p"], below: Float64[np.ndarray, " p"], least: float = _ROUNDING
) -> Float64[np.ndarray, " p"]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > least)

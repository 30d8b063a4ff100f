r"""Check whether annotators err independently given the truth; where they do not, probabilities are
overconfident.

For every pair of rows n, n' of one item i by two annotators j, j'

    p = sum_k q[k] sum_l P(j says l | k) P(j' says l | k)   q[k] = p(truth = k | labels of i but n, n')

is the probability of equal labels under the model. Both labels are left out of q; otherwise they make it
certain and hide their dependence. q is the known class where there is gold. If with probability rho the
second annotator repeats the first, they agree with probability p + rho (1 - p), so

    rho = sum (agree - p) / sum (1 - p)        over all row pairs, or over those of one pair of annotators
    z   = sum (agree - p) / sqrt(max(sum p (1 - p), sum (agree - p)^2))
    n_effective = n / (1 + (n - 1) max(rho, 0))

rho is the correlation of two labels given the truth, for annotators alike, so n_effective is the number of
independent labels with which a vote share varies as much (Kish's design effect). The standard error of rho
comes from the sums of items, and is at least sqrt(sum p (1 - p)) / sum (1 - p). It takes the table as known;
for tables fitted to the same labels it is some three times too large. A row counts once; its weight only
raises its likelihood in q. Labels that an annotator never gave have probability 0, the others are scaled to
sum to 1. Near duplicates are pairs with z above the normal quantile of 0.01 / number of pairs, and rho above
1/2 by two standard errors. `cliques` handles copies in the majority, and lists what the check does not see.
Memory: some 150 bytes a row pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int
from scipy.stats import norm

from probcrowd.compute.compiled import compiled
from probcrowd.data.table import Cells, Packed
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.e_step import shares_by_owner, sums_by_owner
from probcrowd.inference.dependence.labels import Labels

Values = Float64[np.ndarray, " m"]
ROUNDING = 1e-9
_TINY = 1e-30  # stands for probability 0: its logarithm can be subtracted again
_MOST_PAIRS, _MOST_LISTED = 500_000, 5_000
# Near duplicates: level of z (Bonferroni); standard errors of rho above 1/2
_FALSE_ALARM, _HALF_Z = 0.01, 2.0
_WARN_Z, _WARN_SHARE, _WARN_EXCESS = 3.0, 0.8, 0.01
ALIKE = 0.8  # least agreement of members of a clique
_COVERED = 0.95  # least share of the tables on labels that annotators used
_UNKNOWN = "annotators have too few labels for so many classes to estimate a copying rate"


@dataclass(frozen=True)
class Dependence:
    """How far annotators agree beyond the model; NaN where no item has two annotators, or where they must
    agree.

    residual: the copying rate rho; residual_error: its standard error. labels_per_item: mean number of labels
    of items that have two or more; effective_annotators: how many independent ones they are worth. agreement,
    expected: means over all row pairs. pairs: one row per pair of annotators with enough common items, near
    duplicates first, then by z, at most 5,000. note: empty, or a caveat.
    """

    residual: float
    residual_error: float
    labels_per_item: float
    effective_annotators: float
    agreement: float
    expected: float
    pairs: pd.DataFrame
    note: str

    @property
    def correlated(self) -> bool:
        """Whether rho exceeds 3 standard errors, labels lose over a fifth of their worth, and agreement
        exceeds that expected by 0.01 (where all agree always, rho depends on how the table was smoothed).
        """
        lost = self.effective_annotators < _WARN_SHARE * self.labels_per_item
        excess = self.agreement - self.expected
        return lost and excess > _WARN_EXCESS and self.residual > _WARN_Z * self.residual_error


def check_fit(packed: Packed, posterior: RowPosterior, class_prior: Float64[np.ndarray, " k"]) -> Dependence:
    """Check a fit on items drawn at random, enough for 500,000 row pairs.

    `dependence` takes labels that an annotator never gave for impossible. Where annotators have few labels
    for so many classes that the tables expect others, agreement seems too high, and no rate can be estimated.
    """
    cells, generator = posterior.cells, np.random.default_rng(0)
    pairs = packed.size * (packed.size - 1) // 2
    if pairs.sum() > _MOST_PAIRS:
        drawn = generator.permutation(np.flatnonzero((pairs > 0) & (pairs <= _MOST_PAIRS)))
        packed = packed.take(np.sort(drawn[np.cumsum(pairs[drawn]) <= _MOST_PAIRS]))
    # Tables shrunk to a prior expect too little agreement; those shrunk to the crowd's own mean do not
    crowd = sums_by_owner(posterior.counts, cells.label, cells.num_labels) + 1e-9
    mean = cells.num_labels * (crowd / crowd.sum(0))[cells.label]
    number = sums_by_owner(posterior.counts, cells.annotator, cells.num_annotators)  # (j, k)
    table = (posterior.counts + mean) / (number + cells.num_labels)[cells.annotator]
    result = dependence(packed, cells, table, class_prior, generator=generator, max_pairs=_MOST_PAIRS)
    covered = (sums_by_owner(table, cells.annotator, cells.num_annotators) * number).sum()
    if covered >= _COVERED * number.sum():
        return result
    unknown = {name: math.nan for name in ("residual", "residual_error", "effective_annotators")}
    return replace(result, **unknown, note=_UNKNOWN)


def dependence(
    packed: Packed,
    cells: Cells,
    table: Float64[np.ndarray, "p k"],
    class_prior: Float64[np.ndarray, " k"],
    *,
    generator: np.random.Generator,
    minimum: int = 10,
    max_pairs: int = 2_000_000,
) -> Dependence:
    """Check a fitted model: table[p, k] = P(the cell's annotator gives its label | truth k).

    Annotators with `minimum` row pairs are compared. Beyond `max_pairs` row pairs, items are drawn at random.
    """
    order = np.lexsort((cells.label, cells.annotator))
    cell, item = np.argsort(order)[packed.cell], np.repeat(np.arange(packed.num_items), packed.size)
    owner, label, table = cells.annotator[order], cells.label[order], table[order]
    first = np.searchsorted(owner, np.arange(cells.num_annotators + 1))
    labels = Labels(item, owner[cell], packed.weights, cell, owner, label, first)
    log_table = np.log(np.maximum(table, _TINY))
    score = np.tile(np.log(np.maximum(class_prior, _TINY)), (packed.num_items, 1))  # (i, k)
    for k in range(len(class_prior)):
        score[:, k] += np.bincount(item, labels.weight * log_table[cell, k], minlength=packed.num_items)

    sizes = {"minimum": minimum, "max_pairs": max_pairs}
    pairs = list_row_pairs(item, labels.annotator, packed.num_items, generator, **sizes)
    agree = (label[cell[pairs.left]] == label[cell[pairs.right]]).astype(float)
    shares = shares_by_owner(table, owner, cells.num_annotators)
    expected = expected_agreement(pairs.left, pairs.right, labels, shares, packed.known, log_table, score)
    trusted, number = np.ones(len(pairs.shared), bool), pairs.count[pairs.shared]
    share = pairs.sums(agree) / number
    error = np.sqrt(share * (1 - share) / number + 0.25 / number**2)
    lower = (share + 0.5 / number - error) / (1 + 1 / number)  # Wilson
    if (lower > ALIKE).any():  # there are no cliques otherwise
        from probcrowd.inference.dependence.cliques import without_cliques

        expected, trusted = without_cliques(labels, pairs, agree, lower, expected)
    residual, error = _rate(agree, expected, item[pairs.left])
    means = (float(agree.mean()), float(expected.mean())) if len(agree) else (math.nan, math.nan)
    several = packed.size[packed.size > 1]
    labels_per_item = float(several.mean()) if len(several) else math.nan
    effective = labels_per_item / (1 + (labels_per_item - 1) * max(residual, 0.0))
    frame = _pair_table(pairs, agree, expected, trusted)
    return Dependence(residual, error, labels_per_item, effective, *means, frame, pairs.note)


@dataclass(frozen=True)
class RowPairs:
    """Pairs of rows of one item by two annotators, sorted by pair of annotators: left[p], right[p].

    Pair g of annotators has count[g] row pairs from start[g] on. shared: the g that have enough of them;
    annotators: their codes. note: empty, or a caveat.
    """

    left: Int[np.ndarray, " p"]
    right: Int[np.ndarray, " p"]
    start: Int[np.ndarray, " g"]
    count: Int[np.ndarray, " g"]
    shared: Int[np.ndarray, " e"]
    annotators: Int[np.ndarray, "e 2"]
    note: str

    def sums(self, values: Float64[np.ndarray, " p"]) -> Float64[np.ndarray, " e"]:
        """Sum over the row pairs of each pair of annotators in `shared`."""
        return np.add.reduceat(values, self.start)[self.shared]


def list_row_pairs(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    num_items: int,
    generator: np.random.Generator,
    *,
    minimum: int,
    max_pairs: int = 2_000_000,
    most: int | None = None,
) -> RowPairs:
    """List the row pairs of all items, or of items drawn at random if there are more than `max_pairs`.

    Rows come by item. shared: pairs of annotators with `minimum` row pairs or more, at most `most` of them,
    those with most row pairs.
    """
    size, order = np.bincount(item, minlength=num_items), np.arange(num_items)
    count = size * (size - 1) // 2
    if count.sum() > max_pairs:
        order = generator.permutation(np.flatnonzero(count <= max_pairs))
    taken = np.zeros(num_items, bool)
    taken[order[np.cumsum(count[order]) <= max_pairs]] = True
    by = np.lexsort((annotator, item))
    earlier = np.arange(len(by)) - np.repeat(np.cumsum(size) - size, size)  # rows of the item before this one
    earlier[~taken[item]] = 0
    right = np.repeat(np.arange(len(by)), earlier)
    back = np.arange(len(right)) - np.repeat(np.cumsum(earlier) - earlier, earlier) + 1
    left, right = by[right - back], by[right]
    code = annotator[left].astype(np.int64) * (annotator.max(initial=0) + 1) + annotator[right]
    ordered = np.argsort(code, kind="stable")
    ordered = ordered[(annotator[left] != annotator[right])[ordered]]
    _, start, number = np.unique(code[ordered], return_index=True, return_counts=True)
    enough = min((number >= minimum).sum(), most or len(number))
    shared = np.sort(np.argsort(-number, kind="stable")[:enough])
    several = count > 0
    note = f"(from {taken[several].sum():,} of {several.sum():,} items, drawn at random)"
    left, right, note = left[ordered], right[ordered], "" if taken[several].all() else note
    names = np.stack([annotator[side[start[shared]]] for side in (left, right)], 1)
    return RowPairs(left, right, start, number, shared, names, note)


@compiled
def expected_agreement(
    left: Int[np.ndarray, " m"],
    right: Int[np.ndarray, " m"],
    labels: Labels,
    shares: Float64[np.ndarray, "p k"],
    known: Int[np.ndarray, " i"],
    log_table: Float64[np.ndarray, "c k"],
    score: Float64[np.ndarray, "h k"],
) -> Float64[np.ndarray, " m"]:
    """Return p of each row pair, from shares[p, k] = P(label of cell p | class k).

    Row pairs come by pair of annotators, whose agreement given each class is computed once. score: log of
    prior times likelihood of every class; it and log_table may be empty where the class of every item is
    known.
    """
    num_classes, expected = shares.shape[1], np.empty(left.size)
    first, label = labels.first, labels.label
    same, rest = np.zeros(num_classes), np.zeros(num_classes)
    j, other = -1, -1
    for pair in range(left.size):
        n, m = left[pair], right[pair]
        if labels.annotator[n] != j or labels.annotator[m] != other:
            j, other = labels.annotator[n], labels.annotator[m]
            same[:] = 0
            a, b = first[j], first[other]
            while a < first[j + 1] and b < first[other + 1]:
                if label[a] == label[b]:
                    for k in range(num_classes):
                        same[k] += shares[a, k] * shares[b, k]
                a, b = a + (label[a] <= label[b]), b + (label[b] <= label[a])
        i = labels.item[n]
        if known[i] >= 0:
            expected[pair] = same[known[i]]
        else:
            for k in range(num_classes):
                rest[k] = score[i, k] - labels.weight[n] * log_table[labels.cell[n], k]
                rest[k] -= labels.weight[m] * log_table[labels.cell[m], k]
            top, mass, total = rest.max(), 0.0, 0.0
            for k in range(num_classes):
                q = math.exp(rest[k] - top)
                mass += q * same[k]
                total += q
            expected[pair] = mass / total
        expected[pair] = min(expected[pair], 1.0)
    return expected


def _rate(agree: Values, p: Values, item: Int[np.ndarray, " m"]) -> tuple[float, float]:
    """Return rho and its standard error."""
    over, slack, variance = agree - p, 1 - p, p * (1 - p)
    if slack.sum() < ROUNDING:
        return math.nan, math.nan
    rate, items = over.sum() / slack.sum(), len(np.unique(item))
    spread = (np.bincount(item, over - rate * slack) ** 2).sum() * items / max(items - 1, 1)
    error = math.sqrt(max(spread, variance.sum())) / slack.sum()
    return float(rate), float(error) if items > 1 else math.nan


def _pair_table(pairs: RowPairs, agree: Values, p: Values, trusted: Bool[np.ndarray, " g"]) -> pd.DataFrame:
    over, slack, count = pairs.sums(agree - p), pairs.sums(1 - p), pairs.count[pairs.shared]
    z = _ratio(over, np.sqrt(np.maximum(pairs.sums(p * (1 - p)), pairs.sums((agree - p) ** 2))))
    # With rho = 1/2 they agree with probability (1 + p) / 2
    above_half = _ratio(over - slack / 2, np.sqrt(pairs.sums((1 - p**2) / 4)))
    columns = {
        "annotator": pairs.annotators[:, 0],
        "other": pairs.annotators[:, 1],
        "items": count,
        "agreement": pairs.sums(agree) / count,
        "expected": 1 - slack / count,
        "copying": np.where(slack > ROUNDING, _ratio(over, slack), math.nan),
        "z": z,
        "near_duplicate": trusted & (z > norm.isf(_FALSE_ALARM / max(len(z), 1))) & (above_half > _HALF_Z),
    }
    by = ["near_duplicate", "z"]
    table = pd.DataFrame(columns).sort_values(by, ascending=False, kind="stable", ignore_index=True)
    return table.head(_MOST_LISTED)


def _ratio(above: Float64[np.ndarray, " g"], below: Float64[np.ndarray, " g"]) -> Float64[np.ndarray, " g"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > ROUNDING)

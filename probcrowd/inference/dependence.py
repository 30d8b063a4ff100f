r"""Do annotators err independently given the truth, as Dawid and Skene's model has it? Where they do not, its confidence is too high.

For every pair of rows n, n' of one item i by two annotators j, j'

    p = sum_k q[k] sum_l P(j says l | k) P(j' says l | k)        q[k] = p(truth of i = k | the labels of i other than n and n')

is the probability of equal labels under the model. Both labels are left out of q, else they make it certain and hide that they depend on
each other. q is the known class where there is gold. If with probability rho the second annotator repeats the first, they agree with
probability p + rho (1 - p), so

    rho = sum (agree - p) / sum (1 - p)                          over all row pairs, or over those of one pair of annotators
    z   = sum (agree - p) / sqrt(max(sum p (1 - p), sum (agree - p)^2))
    n_effective = n / (1 + (n - 1) max(rho, 0))

rho is the correlation of two labels given the truth, for annotators alike, so n_effective is the number of independent labels with which
a vote share varies as much (Kish's design effect). The standard error of rho comes from the sums of items, and is at least
sqrt(sum p (1 - p)) / sum (1 - p). It takes the table as known; for tables fitted to the same labels it is some three times too large. A row
counts once, its weight only raises its likelihood in q. An annotator's labels that occur nowhere have probability 0, the others are scaled
to sum to 1.

Near duplicates are pairs with z above the normal quantile of 0.01 / number of pairs, and rho above 1/2: the score of rho = 1/2 is at least 2.
But copies in the majority make the model believe them right, and their agreement expected. What they cannot do is to explain the agreement
of the others. Take a clique: annotators linked by chance-corrected agreement above 0.8 (one standard error below, Wilson). Were its commonest
label the truth, the others would be independent given that label. So with p0 from the others' label frequencies and p1 from their frequencies
given the clique's label on the same items,

    T = sum (agree - p0)      U = sum (agree - p1)               over row pairs of annotators of two other cliques, or of none

and 1 - U / T is what the clique explains: 1 for annotators who are always right, however poor the others; c^2 for copies of an annotator
whose correlation with the truth is c. Where U exceeds T / 2 by 3 standard errors, its pairs are expected to agree with p = chance + (1 - U / T)
(1 - chance) instead. The model's p of all others is then wrong as well: they are no near duplicates before the copies are gone.

False alarms, in fits to simulated independent annotators (2 to 4 classes, 50 to 2,000 items, 20 labels or more per annotator): no warning of
rho in 4,600 tables; near duplicates in 2 of 14,600, most of them with experts among poor annotators. What it does not see, or mistakes:

    items that are hard for all       a fit mostly takes them for better annotators; gold and `predictive.vote_entropy` show them
    a majority of copies, c^2 > 1/2   they explain the others well enough
    experts, others share errors      seem to be copies, from a common cause of about a fifth of the others' labels on
    a table shrunk to the uniform     expects too little agreement: rho is then that misfit. Maximum likelihood will do with 20 labels or more per
                                      annotator (with 6 to 15: rho = 0.05 to 0.09); with fewer, shrink to the crowd's mean table

The row pairs take some 150 bytes each, at most `max_pairs` of them; besides there are items x classes and cells x classes numbers. The
work per row pair is at most labels x classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import norm

from probcrowd.inference.gibbs_kernels import compiled
from probcrowd.inference.predictive import row_pairs
from probcrowd.models.rows import Rows

_TINY = 1e-30  # stands for probability 0, whose logarithm cannot be taken away from a sum again
_ROUNDING = 1e-9
_MOST_LISTED, _MOST_CLIQUES, _MOST_NAMED = 5_000, 50, 5
_ALIKE = 0.8  # a clique's chance-corrected agreement, one standard error below (Wilson)
_UNEXPLAINED_Z = 3.0  # U above T / 2
_FALSE_ALARM, _HALF_Z = 0.01, 2.0  # near duplicates: Bonferroni's level of z, and how far rho lies above 1/2
_WARN_Z, _WARN_SHARE, _WARN_EXCESS = 3.0, 0.8, 0.01  # a warning: rho over its standard error, effective share of the labels, agree - p


@dataclass(frozen=True)
class Dependence:
    """How far annotators agree beyond the model; NaN where no item has labels of two annotators, or where they must agree.

    residual: the copying rate rho; residual_error: its standard error. labels_per_item: mean number of labels of the items that have two
    or more; effective_annotators: of that many. agreement, expected: means over all row pairs. pairs: one row per pair of annotators with enough common items, near duplicates first, then
    by z; beyond 5,000 pairs the rest is left out. near_duplicate: z above the normal quantile of 0.01 / number of pairs, and rho above 1/2
    by two standard errors. note: empty, or that items were drawn at random.
    """

    residual: float
    residual_error: float
    labels_per_item: float
    effective_annotators: float
    agreement: float
    expected: float
    pairs: pd.DataFrame
    note: str

    def warnings(self, annotators: pd.Index) -> list[str]:
        """Sentences for people, none if all is well: near duplicates; and rho above 3 standard errors, worth more than a fifth of the labels,
        with agreement more than 0.01 above that expected (where all agree always, rho hangs on how the table was smoothed)."""
        found, excess = [], self.agreement - self.expected
        material = self.effective_annotators < _WARN_SHARE * self.labels_per_item and excess > _WARN_EXCESS
        if material and self.residual > _WARN_Z * self.residual_error:
            found.append(
                f"labels agree in {self.agreement:.1%} of pairs, where the model expects {self.expected:.1%} (copying rate {self.residual:.2f} ± "
                f"{self.residual_error:.2f}): {self.labels_per_item:.1f} labels per item are worth about {self.effective_annotators:.1f} "
                f"independent ones; do not trust the confidences {self.note}".strip()
            )
        groups = self.near_duplicates()
        if groups:
            named = "; ".join(
                ", ".join(map(str, annotators[group[:10]])) + (", ..." if len(group) > 10 else "") for group in groups[:_MOST_NAMED]
            )
            more = f"; and {len(groups) - _MOST_NAMED} more groups" if len(groups) > _MOST_NAMED else ""
            found.append(
                f"annotators who agree like copies of each other: {named}{more}; "
                f"keep one of each group, or give each of its g members the weight 1/g, and fit again"
            )
        return found

    def near_duplicates(self) -> list[list[int]]:
        """Codes of annotators linked by near duplicate pairs, largest group first."""
        codes, ends = np.unique(self.pairs.loc[self.pairs["near_duplicate"], ["annotator", "other"]].to_numpy(), return_inverse=True)
        ends = ends.reshape(-1, 2)
        group = _components(ends[:, 0], ends[:, 1], len(codes))
        groups = [codes[group == g].tolist() for g in np.unique(group)]
        return sorted(groups, key=lambda members: (-len(members), members))


@dataclass(frozen=True)
class _Labels:
    """Rows of the cells cell[n], which come by annotator, then label: those of annotator j are first[j] to first[j + 1]."""

    rows: Rows
    cell: Int[np.ndarray, " n"]
    annotator: Int[np.ndarray, " p"]
    label: Int[np.ndarray, " p"]
    first: Int[np.ndarray, " j"]

    def shares(self, table: Float64[np.ndarray, "p k"]) -> Float64[np.ndarray, "p k"]:
        """The table scaled so that an annotator's labels sum to 1 for each class, or to 0 where none is possible."""
        total = np.zeros((len(self.first) - 1, table.shape[1]))
        np.add.at(total, self.annotator, table)
        total = total[self.annotator]
        return np.divide(table, total, out=np.zeros_like(table), where=total > 0)

    def frequencies(self, some: Int[np.ndarray, " s"], known: Int[np.ndarray, " i"]) -> Float64[np.ndarray, "p k"]:
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
            left, right, rows.item, rows.annotator, rows.weight, self.cell, self.first, self.label, shares, known, *tables
        )


@dataclass(frozen=True)
class _Compared:
    """Row pairs, and where those of each pair of annotators with enough of them begin, how many they are."""

    left: Int[np.ndarray, " m"]
    right: Int[np.ndarray, " m"]
    agree: Float64[np.ndarray, " m"]
    first: Int[np.ndarray, " g"]
    count: Int[np.ndarray, " g"]

    def sums(self, values: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " g"]:
        """By pair of annotators."""
        bounds = np.stack([self.first, self.first + self.count], axis=1).ravel()
        return np.add.reduceat(np.append(values, 0.0), bounds)[::2]  # every other stretch lies between two of them


def dependence(
    rows: Rows,
    cell: Int[np.ndarray, " n"],
    cell_annotator: Int[np.ndarray, " p"],
    cell_label: Int[np.ndarray, " p"],
    table: Float64[np.ndarray, "p k"],
    class_prior: Float64[np.ndarray, " k"],
    *,
    generator: np.random.Generator,
    minimum: int = 10,
    max_pairs: int = 2_000_000,
) -> Dependence:
    """The check of a fitted model: table[cell[n], k] = P(the annotator of row n gives its label | truth k).

    Cell c, a row of the table, is annotator cell_annotator[c] with label cell_label[c], each such pair once. Annotators are compared if they
    have `minimum` row pairs. Items are drawn at random where there are more than `max_pairs` row pairs in all.
    """
    order = np.lexsort((cell_label, cell_annotator))
    first = np.searchsorted(cell_annotator[order], np.arange(rows.num_annotators + 1))
    labels = _Labels(rows, np.argsort(order)[cell], cell_annotator[order], cell_label[order], first)
    log_table = np.log(np.maximum(table[order], _TINY))
    score = np.tile(np.log(np.maximum(class_prior, _TINY)), (rows.num_items, 1))  # (i, k)
    for k in range(len(class_prior)):
        score[:, k] += np.bincount(rows.item, rows.weight * log_table[labels.cell, k], minlength=rows.num_items)

    pairs = row_pairs(rows, generator, minimum=minimum, max_pairs=max_pairs)
    count = np.diff(np.append(pairs.start, len(pairs.left)))
    agree = (rows.label[pairs.left] == rows.label[pairs.right]).astype(float)
    compared = _Compared(pairs.left, pairs.right, agree, pairs.start[count >= minimum], count[count >= minimum])
    model = labels.agreement(pairs.left, pairs.right, labels.shares(table[order]), rows.gold, log_table, score)
    expected, judged = _without_cliques(labels, compared, model)
    residual, error = _rate(agree - expected, 1 - expected, expected * (1 - expected), rows.item[pairs.left])
    means = (float(agree.mean()), float(expected.mean())) if len(agree) else (math.nan, math.nan)
    size = np.bincount(rows.item, minlength=rows.num_items)
    labels_per_item = float(size[size > 1].mean()) if (size > 1).any() else math.nan
    effective = labels_per_item / (1 + (labels_per_item - 1) * max(residual, 0.0))
    return Dependence(residual, error, labels_per_item, effective, *means, _pair_table(rows, compared, expected, judged), pairs.note)


def _rate(
    over: Float64[np.ndarray, " m"], slack: Float64[np.ndarray, " m"], variance: Float64[np.ndarray, " m"], item: Int[np.ndarray, " m"]
) -> tuple[float, float]:
    """rho and its standard error."""
    if slack.sum() < _ROUNDING:
        return math.nan, math.nan
    rate, items = over.sum() / slack.sum(), len(np.unique(item))
    spread = (np.bincount(item, over - rate * slack) ** 2).sum() * items / max(items - 1, 1)
    error = math.sqrt(max(spread, variance.sum())) / slack.sum()
    return float(rate), float(error) if items > 1 else math.nan


def _pair_table(rows: Rows, compared: _Compared, p: Float64[np.ndarray, " m"], judged: Bool[np.ndarray, " g"]) -> pd.DataFrame:
    over, slack = compared.sums(compared.agree - p), compared.sums(1 - p)
    z = _ratio(over, np.sqrt(np.maximum(compared.sums(p * (1 - p)), compared.sums((compared.agree - p) ** 2))))
    # With rho = 1/2 they agree with probability (1 + p) / 2
    above_half = _ratio(over - slack / 2, np.sqrt(compared.sums((1 - p**2) / 4)))
    columns = {
        "annotator": rows.annotator[compared.left[compared.first]],
        "other": rows.annotator[compared.right[compared.first]],
        "items": compared.count,
        "agreement": compared.sums(compared.agree) / compared.count,
        "expected": 1 - slack / compared.count,
        "copying": np.where(slack > _ROUNDING, _ratio(over, slack), math.nan),
        "z": z,
        "near_duplicate": judged & (z > norm.isf(_FALSE_ALARM / max(len(z), 1))) & (above_half > _HALF_Z),
    }
    return pd.DataFrame(columns).sort_values(["near_duplicate", "z"], ascending=False, kind="stable", ignore_index=True).head(_MOST_LISTED)


def _ratio(above: Float64[np.ndarray, " g"], below: Float64[np.ndarray, " g"]) -> Float64[np.ndarray, " g"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > _ROUNDING)


def _without_cliques(
    labels: _Labels, compared: _Compared, model: Float64[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, " m"], Bool[np.ndarray, " g"]]:
    """The model's p, replaced in cliques that do not explain the others; and the pairs of annotators for which it can then be trusted."""
    rows, first, count = labels.rows, compared.first, compared.count
    left, right, share = compared.left[first], compared.right[first], compared.sums(compared.agree) / count
    alone = np.zeros(rows.num_items, np.int64)  # one class, known for all: chance
    chance = labels.agreement(left, right, labels.frequencies(np.arange(len(rows.item)), alone), alone)
    lower = (share + 0.5 / count - np.sqrt(share * (1 - share) / count + 0.25 / count**2)) / (1 + 1 / count)
    alike = lower - chance > _ALIKE * (1 - chance)
    clique = _components(rows.annotator[left[alike]], rows.annotator[right[alike]], rows.num_annotators)
    expected, inside, members, owner = model.copy(), np.zeros(len(first), bool), np.bincount(clique), clique[rows.annotator]
    for suspect in np.argsort(-members, kind="stable")[: min((members > 1).sum(), _MOST_CLIQUES)].tolist():
        unexplained = _unexplained(labels, compared, owner, suspect)
        both = (clique[rows.annotator[left]] == suspect) & (clique[rows.annotator[right]] == suspect) & (unexplained > 0)
        for pair in np.flatnonzero(both):
            expected[first[pair] : first[pair] + count[pair]] = 1 - unexplained * (1 - chance[pair])
        inside |= both
    return expected, inside | (not inside.any())


def _unexplained(labels: _Labels, compared: _Compared, clique: Int[np.ndarray, " n"], suspect: int) -> float:
    """U / T of a clique, 0 where U is not significantly above T / 2. clique: of each row's annotator."""
    rows, own = labels.rows, clique == suspect
    label = _commonest(rows.item[own], rows.label[own], rows.num_items)
    left, right = clique[compared.left], clique[compared.right]
    used = (label[rows.item[compared.left]] >= 0) & (left != suspect) & (right != suspect) & (left != right)
    left, right, told = compared.left[used], compared.right[used], np.flatnonzero((label[rows.item] >= 0) & ~own)
    total, unexplained = (
        np.bincount(
            rows.item[left], compared.agree[used] - labels.agreement(left, right, labels.frequencies(told, known), known), rows.num_items
        )
        for known in (np.minimum(label, 0), label)
    )
    above_half = unexplained - total / 2
    significant = total.sum() > 0 and above_half.sum() > _UNEXPLAINED_Z * math.sqrt((above_half**2).sum())
    return float(min(unexplained.sum() / total.sum(), 1.0)) if significant else 0.0


def _commonest(item: Int[np.ndarray, " m"], label: Int[np.ndarray, " m"], num_items: int) -> Int[np.ndarray, " i"]:
    """The commonest label of each item, the first of those; -1 for items without."""
    commonest = np.full(num_items, -1)
    said, count = np.unique(np.stack([item, label]), axis=1, return_counts=True)
    order = np.lexsort((-said[1], count))
    commonest[said[0, order]] = said[1, order]  # what comes last stays
    return commonest


def _components(left: Int[np.ndarray, " m"], right: Int[np.ndarray, " m"], size: int) -> Int[np.ndarray, " j"]:
    """The connected component of each of so many nodes."""
    return connected_components(coo_array((np.ones(len(left)), (left, right)), (size, size)), directed=False)[1].astype(np.int64)


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

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
Copies in the majority make the model believe them right, and their agreement expected: `copies` finds them out.

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
from scipy.stats import norm

from probcrowd.data.rows import Rows
from probcrowd.inference.checks.predictive import row_pairs
from probcrowd.inference.dependence.cliques import without_cliques
from probcrowd.inference.dependence.expected_agreement import ROUNDING, TINY, Compared, Labels, components

_MOST_LISTED, _MOST_NAMED = 5_000, 5
_FALSE_ALARM, _HALF_Z = 0.01, 2.0  # near duplicates: Bonferroni's level of z, and how far rho lies above 1/2
_WARN_Z, _WARN_SHARE, _WARN_EXCESS = (
    3.0,
    0.8,
    0.01,
)  # a warning: rho over its standard error, effective share of the labels, agree - p


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
                ", ".join(map(str, annotators[group[:10]])) + (", ..." if len(group) > 10 else "")
                for group in groups[:_MOST_NAMED]
            )
            more = f"; and {len(groups) - _MOST_NAMED} more groups" if len(groups) > _MOST_NAMED else ""
            found.append(
                f"annotators who agree like copies of each other: {named}{more}; "
                f"keep one of each group, or give each of its g members the weight 1/g, and fit again"
            )
        return found

    def near_duplicates(self) -> list[list[int]]:
        """Codes of annotators linked by near duplicate pairs, largest group first."""
        codes, ends = np.unique(
            self.pairs.loc[self.pairs["near_duplicate"], ["annotator", "other"]].to_numpy(),
            return_inverse=True,
        )
        ends = ends.reshape(-1, 2)
        group = components(ends[:, 0], ends[:, 1], len(codes))
        groups = [codes[group == g].tolist() for g in np.unique(group)]
        return sorted(groups, key=lambda members: (-len(members), members))


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
    labels = Labels(rows, np.argsort(order)[cell], cell_annotator[order], cell_label[order], first)
    log_table = np.log(np.maximum(table[order], TINY))
    score = np.tile(np.log(np.maximum(class_prior, TINY)), (rows.num_items, 1))  # (i, k)
    for k in range(len(class_prior)):
        score[:, k] += np.bincount(
            rows.item, rows.weight * log_table[labels.cell, k], minlength=rows.num_items
        )

    pairs = row_pairs(rows, generator, minimum=minimum, max_pairs=max_pairs)
    count = np.diff(np.append(pairs.start, len(pairs.left)))
    agree = (rows.label[pairs.left] == rows.label[pairs.right]).astype(float)
    compared = Compared(
        pairs.left, pairs.right, agree, pairs.start[count >= minimum], count[count >= minimum]
    )
    model = labels.agreement(
        pairs.left, pairs.right, labels.shares(table[order]), rows.gold, log_table, score
    )
    expected, judged = without_cliques(labels, compared, model)
    residual, error = _rate(agree - expected, 1 - expected, expected * (1 - expected), rows.item[pairs.left])
    means = (float(agree.mean()), float(expected.mean())) if len(agree) else (math.nan, math.nan)
    size = np.bincount(rows.item, minlength=rows.num_items)
    labels_per_item = float(size[size > 1].mean()) if (size > 1).any() else math.nan
    effective = labels_per_item / (1 + (labels_per_item - 1) * max(residual, 0.0))
    return Dependence(
        residual,
        error,
        labels_per_item,
        effective,
        *means,
        _pair_table(rows, compared, expected, judged),
        pairs.note,
    )


def _rate(
    over: Float64[np.ndarray, " m"],
    slack: Float64[np.ndarray, " m"],
    variance: Float64[np.ndarray, " m"],
    item: Int[np.ndarray, " m"],
) -> tuple[float, float]:
    """rho and its standard error."""
    if slack.sum() < ROUNDING:
        return math.nan, math.nan
    rate, items = over.sum() / slack.sum(), len(np.unique(item))
    spread = (np.bincount(item, over - rate * slack) ** 2).sum() * items / max(items - 1, 1)
    error = math.sqrt(max(spread, variance.sum())) / slack.sum()
    return float(rate), float(error) if items > 1 else math.nan


def _pair_table(
    rows: Rows, compared: Compared, p: Float64[np.ndarray, " m"], judged: Bool[np.ndarray, " g"]
) -> pd.DataFrame:
    over, slack = compared.sums(compared.agree - p), compared.sums(1 - p)
    z = _ratio(
        over, np.sqrt(np.maximum(compared.sums(p * (1 - p)), compared.sums((compared.agree - p) ** 2)))
    )
    # With rho = 1/2 they agree with probability (1 + p) / 2
    above_half = _ratio(over - slack / 2, np.sqrt(compared.sums((1 - p**2) / 4)))
    columns = {
        "annotator": rows.annotator[compared.left[compared.first]],
        "other": rows.annotator[compared.right[compared.first]],
        "items": compared.count,
        "agreement": compared.sums(compared.agree) / compared.count,
        "expected": 1 - slack / compared.count,
        "copying": np.where(slack > ROUNDING, _ratio(over, slack), math.nan),
        "z": z,
        "near_duplicate": judged & (z > norm.isf(_FALSE_ALARM / max(len(z), 1))) & (above_half > _HALF_Z),
    }
    return (
        pd.DataFrame(columns)
        .sort_values(["near_duplicate", "z"], ascending=False, kind="stable", ignore_index=True)
        .head(_MOST_LISTED)
    )


def _ratio(above: Float64[np.ndarray, " g"], below: Float64[np.ndarray, " g"]) -> Float64[np.ndarray, " g"]:
    return np.divide(above, below, out=np.zeros_like(above), where=below > ROUNDING)

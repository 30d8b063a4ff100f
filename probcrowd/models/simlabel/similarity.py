r"""Similarity of annotators: coefficients of agreement, shrunk to their mean when few items support them.

    c[p] ~ N(t[p], s[p]^2)      t[p] ~ N(m, v)          c: the coefficient of a pair, s: its standard error

    v = max(0, (Q - (P - 1)) / (W - sum w^2 / W))       DerSimonian & Laird 1986
        with w = 1 / s^2,  W = sum w,  Q = sum w (c - weighted mean)^2
    m = mean of c with weights 1 / (s^2 + v)
    t | c ~ N( (v c + s^2 m) / (v + s^2),  v s^2 / (v + s^2) );      a pair without items in common: N(m, v)

Pairs are treated as independent. With labels missing at random and 5, 8, 15 and 30 items in common, shrinking
lowers the mean square error of ten annotators in two groups by 32, 23, 9 and 2 %, and the 95 % intervals
cover 84, 94, 94 and 95 %; if all pairs share the same few items their errors are alike, and nothing is
gained.

Weights of soft labels (Zhang et al. 2025, equation 3): w[k, k'] = max(t, 0), 0 on the diagonal. An annotator
whose weights are all 0 gets equal ones if it shares items with no one; if it is known to disagree with
everyone, it gets none with shrinkage, and equal ones without, as published. Memory: annotators^2 numbers of 4
bytes, hence `MAX_ANNOTATORS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int

from probcrowd.metrics.agreement import PairTables, as_matrix, coefficients, pair_tables

MAX_ANNOTATORS = 20_000  # 1.6 GB of weights


@dataclass(frozen=True)
class Similarity:
    """Agreement of pairs of annotators with items in common: coefficient, standard error, and both shrunk.

    mean, scale: m and sqrt(v) over all pairs. Without shrinkage both are 0, the value of pairs without common
    items.
    """

    tables: PairTables
    coefficient: Float64[np.ndarray, " p"]
    standard_error: Float64[np.ndarray, " p"]
    value: Float64[np.ndarray, " p"]
    value_error: Float64[np.ndarray, " p"]
    mean: float
    scale: float
    num_annotators: int
    shrunk: bool

    def matrix(self) -> Float64[np.ndarray, "j j"]:
        """The values as a matrix, 1 on the diagonal."""
        matrix = as_matrix(self.tables, self.value, self.num_annotators)
        return np.where(np.isnan(matrix), self.mean, matrix)

    def weights(self) -> Float64[np.ndarray, "j j"]:
        """w[k, k']: the weight of the prediction for k' in soft labels of k, for items that k' labelled."""
        weights = np.maximum(self.matrix(), 0.0)
        np.fill_diagonal(weights, 0.0)
        alone = weights.sum(1) <= 0
        if self.shrunk:
            known = np.isfinite(self.coefficient)
            annotators = np.concatenate([self.tables.left[known], self.tables.right[known]])
            alone &= np.bincount(annotators, minlength=len(weights)) == 0
        weights[alone] = 1.0
        weights[alone, alone] = 0.0
        return weights

    def frame(self, annotators: pd.Index) -> pd.DataFrame:
        """A row per pair with items in common; `attrs` has m as "mean" and sqrt(v) as "scale"."""
        columns = {
            "annotator": annotators[self.tables.left],
            "other": annotators[self.tables.right],
            "items": self.tables.items,
            "agreement": self.tables.agreement,
            "coefficient": self.coefficient,
            "standard_error": self.standard_error,
            "similarity": self.value,
            "similarity_error": self.value_error,
        }
        frame = pd.DataFrame(columns)
        frame.attrs |= {"mean": self.mean, "scale": self.scale}
        return frame


def similarity(
    item: Int[np.ndarray, " n"],
    annotator: Int[np.ndarray, " n"],
    label: Int[np.ndarray, " n"],
    share: Float64[np.ndarray, " n"] | None = None,
    *,
    num_annotators: int,
    num_labels: int,
    kind: str = "kappa",
    shrink: bool = True,
    values: Float64[np.ndarray, " l"] | None = None,
) -> Similarity:
    """The similarity of all pairs of annotators.

    share: of rows, where an annotator gave an item several labels
    (`probcrowd.metrics.agreement.pair_shares`). shrink: towards the mean of all pairs, the more the larger
    the standard error; if false, unknown coefficients are 0.

    Raises:
        ValueError: an unknown kind of coefficient, or more annotators than `MAX_ANNOTATORS`.
    """
    if num_annotators > MAX_ANNOTATORS:
        raise ValueError(
            f"{num_annotators:,} annotators: a similarity matrix would take {4e-9 * num_annotators**2:.1f} "
            f"GB; leave out those with the fewest labels, at most {MAX_ANNOTATORS:,}"
        )
    tables = pair_tables(item, annotator, label, share, num_annotators=num_annotators, num_labels=num_labels)
    coefficient, error = coefficients(tables, kind, values)
    if not shrink:
        return Similarity(
            tables, coefficient, error, np.nan_to_num(coefficient), error, 0.0, 0.0, num_annotators, False
        )
    known = np.isfinite(coefficient) & np.isfinite(error)
    mean, variance = _population(coefficient[known], error[known])
    total = np.where(known, error**2, np.inf) + variance
    reliability = np.where(total > 0, variance / np.where(total > 0, total, 1.0), 0.0)
    value = mean + reliability * np.where(known, coefficient - mean, 0.0)
    return Similarity(
        tables,
        coefficient,
        error,
        value,
        np.sqrt(variance * (1 - reliability)),
        mean,
        float(np.sqrt(variance)),
        num_annotators,
        True,
    )


def _population(
    coefficient: Float64[np.ndarray, " p"], error: Float64[np.ndarray, " p"]
) -> tuple[float, float]:
    """m and v."""
    if not len(coefficient):
        return 0.0, 0.0
    weight = error**-2.0
    mean = np.average(coefficient, weights=weight)
    scale = weight.sum() - (weight**2).sum() / weight.sum()
    excess = (weight * (coefficient - mean) ** 2).sum() - (len(coefficient) - 1)
    variance = max(excess / scale, 0.0) if scale > 0 else 0.0
    return float(np.average(coefficient, weights=1 / (error**2 + variance))), float(variance)

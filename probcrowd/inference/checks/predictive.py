r"""Predictive checks: do replicated labels on the same design (item and annotator per row) look like the
observed ones?

    statistic            entries                  detects
    pairwise_agreement   pairs of annotators      annotators who copy, or fail on the same items
    vote_entropy         bins of entropy          items of different difficulty
    annotator_bias       annotators and labels    differences between annotators that the model lacks
    error_correlation    pairs of annotators      errors that are dependent given the true class

Labels have the shape (s, n); observed labels are one replicate. A replicate has one label per row, so weights
play no part. Pairs are listed row by row, so that nothing is as large as items x annotators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.special import entr

from probcrowd.data.rows import Rows
from probcrowd.inference.dependence.dependence import RowPairs, list_row_pairs
from probcrowd.metrics.intervals import CENTRAL
from probcrowd.metrics.scores import TIE

MIN_PAIRS = 5  # rows that two annotators share
MAX_PAIRS = 2_000_000  # of rows
MAX_ENTRIES = 10_000  # pairs of annotators
_BINS = 10


@dataclass(frozen=True)
class Statistic:
    """A statistic of replicated labels: values[s, e] of the entries in `index`, and overall[s] of the whole
    table.
    """

    values: Float[np.ndarray, "s e"]
    index: pd.Index
    overall: Float[np.ndarray, " s"]
    note: str = ""


@dataclass(frozen=True)
class PredictiveCheck:
    """Observed against replicated labels.

    table: per entry the observed value, mean and central 95 % interval of the replicates, and two-sided
    p-value. overall: the same for the whole table. p_value: omnibus, over all entries. outside: share of
    entries outside their interval.
    """

    table: pd.DataFrame
    overall: pd.Series
    p_value: float
    outside: float
    note: str = ""

    def __str__(self) -> str:
        observed, mean, p = (self.overall[name] for name in ("observed", "mean", "p"))
        one = f"overall {observed:.3g}, replicated {mean:.3g} (p = {p:.3g})"
        outside = f"{self.outside:.1%} of {len(self.table)} entries outside their 95 % interval"
        many = f"p = {self.p_value:.3g}, {outside}"
        return f"{many if len(self.table) else 'no entries to compare'}; {one} {self.note}".strip()


def predictive_checks(
    rows: Rows,
    labels_replicated: Int[np.ndarray, "s n"],
    responsibilities: Float[np.ndarray, "i k"],
    truth_replicated: Float[np.ndarray, "s i k"] | Int[np.ndarray, "s i"] | None = None,
    *,
    generator: np.random.Generator,
    minimum: int = MIN_PAIRS,
    max_pairs: int = MAX_PAIRS,
) -> dict[str, PredictiveCheck]:
    """Return all four checks by name; without the truth of the replicates (see `error_correlation`) all but
    the last.
    """
    observed, replicated = np.asarray(rows.label)[None], labels_replicated
    pairs = row_pairs(rows, generator, minimum=minimum, max_pairs=max_pairs)
    checks = {
        "pairwise_agreement": check(
            pairwise_agreement(observed, pairs), pairwise_agreement(replicated, pairs)
        ),
        "vote_entropy": check(vote_entropy(rows, observed), vote_entropy(rows, replicated)),
        "annotator_bias": check(annotator_bias(rows, observed), annotator_bias(rows, replicated)),
    }
    if truth_replicated is None:
        return checks
    errors = (
        error_correlation(rows, observed, responsibilities[None], pairs),
        error_correlation(rows, replicated, truth_replicated, pairs),
    )
    return checks | {"error_correlation": check(*errors)}


def check(observed: Statistic, replicated: Statistic) -> PredictiveCheck:
    """Compare observed with replicated values, by entry and overall.

    p = 2 min(1 + #{T_s >= T}, 1 + #{T_s <= T}) / (S + 1), at most 1. The omnibus p counts the data sets with
    a discrepancy D = sum over entries (T - mean)^2 / variance at least the observed one; mean and variance
    are over observed and replicates together, so that p is exact if all S + 1 are exchangeable. Entries that
    never vary are left out.
    """
    table = _compare(observed.values[0], replicated.values).set_index(observed.index)
    overall = _compare(observed.overall, replicated.overall[:, None]).iloc[0]
    if table.empty:
        return PredictiveCheck(table, overall, math.nan, math.nan, observed.note)
    together = np.concatenate([observed.values[:1], replicated.values])
    together = together[:, np.ptp(together, 0) > TIE]
    deviations = (together - together.mean(0)) ** 2
    discrepancy = (deviations / deviations.mean(0)).sum(1)
    as_large = discrepancy >= discrepancy[0] * (1 - TIE)  # the observed one included
    value, lower, upper = (table[column].to_numpy() for column in ("observed", "lower", "upper"))
    outside = (value < lower - TIE) | (value > upper + TIE)
    return PredictiveCheck(table, overall, float(as_large.mean()), float(outside.mean()), observed.note)


def _compare(observed: Float[np.ndarray, " e"], replicated: Float[np.ndarray, "s e"]) -> pd.DataFrame:
    lower, upper = np.quantile(replicated, CENTRAL, axis=0)
    tail = np.minimum((replicated >= observed - TIE).sum(0), (replicated <= observed + TIE).sum(0))
    p = np.where(np.isnan(observed), np.nan, np.minimum(1, 2 * (1 + tail) / (len(replicated) + 1)))
    return pd.DataFrame(
        {"observed": observed, "mean": replicated.mean(0), "lower": lower, "upper": upper, "p": p}
    )


def pairwise_agreement(labels: Int[np.ndarray, "s n"], pairs: RowPairs) -> Statistic:
    """Return the share of row pairs with equal labels, by pair of annotators; overall: of all row pairs."""
    count = pairs.sums(np.ones(len(pairs.left)))
    values, overall = np.empty((len(labels), len(count))), np.full(len(labels), math.nan)
    for replicate, given in enumerate(labels if len(pairs.left) else []):
        same = (given[pairs.left] == given[pairs.right]).astype(float)
        values[replicate], overall[replicate] = pairs.sums(same) / count, same.mean()
    return Statistic(values, _index(pairs), overall, pairs.note)


def vote_entropy(rows: Rows, labels: Int[np.ndarray, "s n"]) -> Statistic:
    """Return the share of items by entropy of their labels, in ten equal bins of [0, log K]; items with two
    rows or more. Overall: mean entropy.
    """
    size, most = np.bincount(rows.item, minlength=rows.num_items), math.log(max(rows.num_classes, 2))
    several = size > 1
    index = pd.IntervalIndex.from_breaks(np.linspace(0, most, _BINS + 1), closed="left", name="entropy")[
        : _BINS * several.any()
    ]
    values, overall = np.empty((len(labels), len(index))), np.full(len(labels), math.nan)
    for replicate, given in enumerate(labels if several.any() else []):
        votes = np.bincount(
            rows.item * rows.num_classes + given, minlength=len(size) * rows.num_classes
        ).reshape(len(size), -1)
        entropy = entr(votes[several] / size[several, None]).sum(1)
        place = np.minimum((entropy / most * _BINS + TIE).astype(int), _BINS - 1)
        values[replicate], overall[replicate] = (
            np.bincount(place, minlength=_BINS) / len(entropy),
            entropy.mean(),
        )
    return Statistic(values, index, overall)


def annotator_bias(rows: Rows, labels: Int[np.ndarray, "s n"]) -> Statistic:
    """Return the frequency of each label by annotator. Overall: mean over rows of the squared distance to the
    overall frequencies.
    """
    size, cell = np.bincount(rows.annotator, minlength=rows.num_annotators), rows.annotator * rows.num_classes
    active = np.flatnonzero(size)
    counts = np.stack([np.bincount(cell + given, minlength=len(size) * rows.num_classes) for given in labels])
    counts = counts.reshape(len(labels), len(size), -1)[:, active]
    frequency = counts / size[active, None]
    distance = ((frequency - counts.sum(1, keepdims=True) / size.sum()) ** 2).sum(2)
    index = pd.MultiIndex.from_product([active, range(rows.num_classes)], names=["annotator", "given_label"])
    return Statistic(frequency.reshape(len(labels), -1), index, distance @ size[active] / size.sum())


def error_correlation(
    rows: Rows,
    labels: Int[np.ndarray, "s n"],
    truth: Float[np.ndarray, "s i k"] | Int[np.ndarray, "s i"],
    pairs: RowPairs,
) -> Statistic:
    """Return the correlation of two annotators' errors within true classes, by pair of annotators; overall:
    over all row pairs.

        e[n, k] = 1{label n is not k} - m[j, k]
        m[j, k] = mean error of annotator j on class k, rows weighted by q[i, k]
        r = sum_pk q[i, k] e[n, k] e[n', k] / sqrt(sum_pk q[i, k] e[n, k]^2  sum_pk q[i, k] e[n', k]^2)
        p = (n, n') of one item i

    0 where an annotator's errors never vary. truth: q = p(truth | labels) of each replicate, or its true
    classes. Sums with q have the mean of sums with true classes and less variance, so comparing observed q
    with replicated classes is conservative. Labels evaluated with the q of other labels appear to share
    errors wherever that q is uncertain.
    """
    values, overall = np.empty((len(labels), len(pairs.shared))), np.full(len(labels), math.nan)
    for replicate, residual in enumerate(_residuals(rows, labels, truth) if len(pairs.left) else []):
        # Class by class: an array (p, k) is large and slow to fill
        products = sum(
            (each.take(pairs.left) * each.take(pairs.right) for each in residual), np.zeros(len(pairs.left))
        )
        left, right = ((residual**2).sum(0).take(side) for side in (pairs.left, pairs.right))
        values[replicate] = _ratio(pairs.sums(products), np.sqrt(pairs.sums(left) * pairs.sums(right)))
        overall[replicate] = _ratio(products.sum(), np.sqrt(left.sum() * right.sum()))
    return Statistic(values, _index(pairs), overall, pairs.note)


def _residuals(rows: Rows, labels: np.ndarray, truth: np.ndarray) -> Iterator[Float[np.ndarray, "c n"]]:
    """Yield sqrt(q) e per replicate: for every class, or for the true class alone where it is known."""
    known = truth.ndim == 2
    for given, true in zip(labels, truth, strict=True):
        classes = (
            true[rows.item][None] if known else np.arange(rows.num_classes)[:, None]
        )  # (1, n), or (k, 1)
        weight = np.ones((1, len(given))) if known else true.T[:, rows.item]  # (1, n), or (k, n)
        wrong, cells = given != classes, rows.annotator * rows.num_classes + classes
        mass, errors = (np.bincount(cells.ravel(), each.ravel()) for each in (weight, weight * wrong))
        yield np.sqrt(weight) * (wrong - _ratio(errors, mass)[cells])


def _ratio(above: Any, below: Any) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def row_pairs(
    rows: Rows, generator: np.random.Generator, *, minimum: int = MIN_PAIRS, max_pairs: int = MAX_PAIRS
) -> RowPairs:
    """List row pairs as `list_row_pairs` does; entries are at most 10,000 pairs of annotators, those with
    most row pairs.
    """
    columns = np.asarray(rows.item), np.asarray(rows.annotator), rows.num_items
    return list_row_pairs(*columns, generator, minimum=minimum, max_pairs=max_pairs, most=MAX_ENTRIES)


def _index(pairs: RowPairs) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays(pairs.annotators.T, names=["annotator", "other"])

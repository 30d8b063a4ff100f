r"""Summaries of annotators from expected counts: confusion, accuracy, information and spamming, with
intervals, in closed form.

Rows of confusion have the posterior Dirichlet(a + n), n the expected counts, with means m and totals A + N;
the weights w are the class prior.

    accuracy     = sum_k w_k confusion[k, k]        mean and variance are exact; interval: the Beta with both
    information  = H(sum_k w_k confusion[k, :]) - sum_k w_k H(confusion[k, :])     in bits
                   mean: the second term exact, the first to second order; variance: delta method, plus the
                   second-order term, the only one left at a spammer; interval: the Gamma with both
    P(spamming)  = p s / (p s + (1 - p) r),      p = 0.1 a priori
                   r = prod_k B(a_k + h_k) / B(a_k),     s = B(b + sum_k h_k) / B(b)

B is the multivariate Beta function. A spammer's labels do not depend on the truth: one row for all classes,
of concentrations b, the mean of a over classes. h are counts from `held_out`, which leaves an annotator's own
label out of the truth; otherwise the only annotator of an item looks perfect. These are posteriors given the
responsibilities, so they omit the uncertainty about those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.special import digamma, expit, gammaln
from scipy.stats import beta, gamma

from probcrowd.compute.compiled import fast
from probcrowd.data.table import Cells, Packed, in_ranges
from probcrowd.inference.aggregation.e_step import Scores, Statistics, scaled
from probcrowd.metrics.intervals import ANNOTATOR_LEVEL, central

SPAM_PRIOR = 0.1
_CHUNK = 2**20


@dataclass(frozen=True)
class RowPosterior:
    """Dirichlet posteriors of confusion rows: shared concentrations (k, l) plus counts by cell (p, k) and, if
    any, earlier counts (p, k).
    """

    cells: Cells
    base: Float64[np.ndarray, "k l"]
    counts: Float64[np.ndarray, "p k"]
    history: Float64[np.ndarray, "p k"] | None = None

    def chunks(
        self, *values: Float64[np.ndarray, "p k"]
    ) -> Iterator[tuple[slice, list[Float64[np.ndarray, "c k l"]]]]:
        """Yield the values as dense arrays over annotator, class and label, a group of annotators at a
        time.
        """
        cells = self.cells
        order = np.argsort(cells.annotator, kind="stable")
        ends = np.searchsorted(cells.annotator[order], np.arange(cells.num_annotators + 1))
        step = max(1, _CHUNK // (cells.num_classes * cells.num_labels))
        for low in range(0, cells.num_annotators, step):
            high = min(low + step, cells.num_annotators)
            here = order[ends[low] : ends[high]]
            parts = []
            for value in values:
                dense = np.zeros((high - low, cells.num_labels, cells.num_classes))
                dense[cells.annotator[here] - low, cells.label[here]] = value[here]
                parts.append(dense.transpose(0, 2, 1))
            yield slice(low, high), parts


def annotator_table(
    posterior: RowPosterior,
    class_prior: Float64[np.ndarray, " k"],
    held_out: Float64[np.ndarray, "p k"] | None = None,
) -> pd.DataFrame:
    """Return a table by annotator code: num_labels (sum of weights), accuracy and information_bits (mean,
    _lower, _upper: central 90 %), spammer.
    """
    history = posterior.counts * 0 if posterior.history is None else posterior.history
    left = posterior.counts if held_out is None else held_out
    parts = []
    for _, (counts, earlier, held) in posterior.chunks(posterior.counts, history, left):
        prior = posterior.base + earlier
        columns = {"num_labels": counts.sum((1, 2))}
        columns |= _accuracy(prior + counts, class_prior) | _information(prior + counts, class_prior)
        parts.append(pd.DataFrame(columns | {"spammer": _spammer(prior, held)}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _accuracy(rows: Float64[np.ndarray, "c k l"], weight: Float64[np.ndarray, " k"]) -> dict[str, np.ndarray]:
    total, diagonal = rows.sum(2), np.diagonal(rows, axis1=1, axis2=2)
    share = diagonal / total
    mean, variance = share @ weight, (share * (1 - share) / (total + 1)) @ weight**2
    strength = np.maximum(mean * (1 - mean) / np.maximum(variance, 1e-300) - 1, 1e-3)
    certain = variance < 1e-14
    a, b = mean * strength, (1 - mean) * strength
    return _interval(
        "accuracy", mean, certain, lambda q: beta.ppf(q, np.where(certain, 1.0, a), np.where(certain, 1.0, b))
    )


def _information(
    rows: Float64[np.ndarray, "c k l"], weight: Float64[np.ndarray, " k"]
) -> dict[str, np.ndarray]:
    total = rows.sum(2, keepdims=True)
    share = rows / total
    mixed = np.einsum("k,ckl->cl", weight, share)  # distribution of labels, over all classes
    entropy = -(share * (digamma(rows + 1) - digamma(total + 1))).sum(2)  # exact mean of the rows' entropies
    spread = share * (1 - share) / (total + 1)
    curvature = 0.5 * np.einsum("k,ckl->cl", weight**2, spread) / mixed
    mean = np.maximum(-(mixed * np.log(mixed)).sum(1) - curvature.sum(1) - entropy @ weight, 0)
    slope = np.log(share / mixed[:, None])
    first = ((share * slope**2).sum(2) - (share * slope).sum(2) ** 2) / (total[..., 0] + 1)
    bias = 0.5 * (np.einsum("k,ckl->c", weight, spread / share)) - curvature.sum(1)
    freedom = max((rows.shape[1] - 1) * (rows.shape[2] - 1), 1)
    variance = first @ weight**2 + 2 * bias**2 / freedom
    certain = (variance < 1e-14) | (mean < 1e-12)
    shape = np.where(certain, 1.0, mean**2 / np.maximum(variance, 1e-300))
    scale = np.where(certain, 1.0, variance / np.where(certain, 1.0, mean))
    most = np.log(min(rows.shape[1:])) / np.log(2)
    columns = _interval(
        "information_bits", mean / np.log(2), certain, lambda q: gamma.ppf(q, shape, scale=scale) / np.log(2)
    )
    return {name: np.minimum(value, most) for name, value in columns.items()}


def _spammer(
    prior: Float64[np.ndarray, "c k l"], counts: Float64[np.ndarray, "c k l"]
) -> Float64[np.ndarray, " c"]:
    truthful = _log_beta(prior + counts).sum(1) - _log_beta(prior).sum(1)
    shared = prior.mean(1)
    spamming = _log_beta(shared + counts.sum(1)) - _log_beta(shared)
    return expit(np.log(SPAM_PRIOR / (1 - SPAM_PRIOR)) + spamming - truthful)


def _log_beta(a: Float64[np.ndarray, "... l"]) -> Float64[np.ndarray, "..."]:
    return gammaln(a).sum(-1) - gammaln(a.sum(-1))


def _interval(name: str, mean: np.ndarray, certain: np.ndarray, quantile: object) -> dict[str, np.ndarray]:
    bounds = [np.where(certain, mean, quantile(q)) for q in central(ANNOTATOR_LEVEL)]  # pyright: ignore[reportCallIssue]
    return {name: mean, f"{name}_lower": bounds[0], f"{name}_upper": bounds[1]}


def confusion_table(posterior: RowPosterior) -> Float64[np.ndarray, "j k l"]:
    """Return posterior means of all confusion matrices."""
    history = posterior.counts * 0 if posterior.history is None else posterior.history
    confusion = np.zeros(
        (posterior.cells.num_annotators, posterior.cells.num_classes, posterior.cells.num_labels)
    )
    for where, (counts, earlier) in posterior.chunks(posterior.counts, history):
        rows = posterior.base + earlier + counts
        confusion[where] = rows / rows.sum(2, keepdims=True)
    return confusion


def held_out(packed: Packed, scores: Scores) -> Statistics:
    """Return expected counts with each row's own label left out of its item's responsibilities, so that an
    annotator is compared with the others.
    """
    _, _, table, prior = scaled(scores)
    log_table, log_prior = np.log(table), np.log(prior)

    def part(low: int, high: int) -> np.ndarray:
        counts = np.zeros(table.shape)
        _held_out(*packed.arrays, log_table, log_prior, low, high, counts)
        return counts

    counts = np.asarray(sum(in_ranges(part, packed, len(table))))
    return Statistics(counts, np.zeros(len(prior)))


@fast
def _held_out(
    starts: Any, cell: Any, weight: Any, gold: Any, times: Any,
    log_table: Any, log_prior: Any, low: int, high: int, counts: Any,
) -> None:  # fmt: skip
    num_classes = log_prior.size
    all_of, r = np.empty(num_classes), np.empty(num_classes)
    for i in range(low, high):
        share = times[i] if times.size else 1.0
        for k in range(num_classes):
            all_of[k] = log_prior[k]
        for n in range(starts[i], starts[i + 1]):
            w = weight[n] if weight.size else 1.0
            for k in range(num_classes):
                all_of[k] += w * log_table[cell[n], k]
        for n in range(starts[i], starts[i + 1]):
            w = weight[n] if weight.size else 1.0
            if gold.size and gold[i] >= 0:
                counts[cell[n], gold[i]] += share * w
                continue
            most = -math.inf
            for k in range(num_classes):
                r[k] = all_of[k] - w * log_table[cell[n], k]
                most = max(most, r[k])
            top = 0.0
            for k in range(num_classes):
                r[k] = math.exp(r[k] - most)
                top += r[k]
            for k in range(num_classes):
                counts[cell[n], k] += share * w * r[k] / top

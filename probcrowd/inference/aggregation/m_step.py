r"""The M step in closed form: expected counts in, log probabilities for the next E step out; and
probabilities averaged over parameters.

n[p, k] = expected count of cell p = (j, l) on items of class k;  N[j, k] its sum over labels;  a[j, k, l] the
prior's concentrations, A their sum

    mode       confusion = (n + a - 1) / (N + A - L)       penalty = log prior density       a >= 1
    averaged   log confusion ~ psi(n + a) - psi(N + A)     penalty = - KL(Dirichlet(n + a) || Dirichlet(a))

Mode: EM for the posterior mode; maximum likelihood is the mode under flat priors. Averaged: the variational
approximation with independent posteriors of truth and parameters (Kim and Ghahramani 2012: iBCC); log
likelihood + penalty then bounds the log evidence. In both cases EM never lowers the sum of the two. A label
that an annotator never used has no cell; its share of a row comes from the prior alone.

At the mode alone label probabilities are overconfident. Given the responsibilities r of all other items, the
rows of an item's labels have independent Dirichlet posteriors, so the average of their product is the product
of their means:

    p(truth_i = k | labels) ~ mean[class k] prod over rows n of i of mean[confusion[j_n, k, l_n]]^w
    mean[confusion[j, k, l]] = (n[jl, k] - w r_ik + a_kl) / (N[j, k] - w r_ik + A_k)
    mean[class k] = (n_k - r_ik + b_k) / (I - 1 + sum b)

The item's own share r_i is left out of the counts; otherwise an annotator with few labels is trusted because
of the label in question. This is one step of collapsed variational Bayes (Asuncion et al. 2009, CVB0) from
the mode. Rows of one annotator on one item are treated as if by several. Where annotators err together, n
labels of an item are worth n / (1 + (n - 1) rho) independent ones (`inference.dependence`); with a copying
rate rho > 0 the labels of an item count by that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from scipy.special import digamma, gammaln, xlogy

from probcrowd.compute.compiled import fast
from probcrowd.data.table import Cells, Packed
from probcrowd.inference.aggregation.e_step import Scores, Statistics, sums_by_owner

RowLogs = tuple[Float64[np.ndarray, "r k"], Float64[np.ndarray, " r"]]
_NOTHING = 1e-280  # counts below this would leave a mode to rounding


@runtime_checkable
class AnnotatorModel(Protocol):
    """A model of annotators, as EM sees it."""

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Run the M step; `previous` are the scores that the counts came from, if any."""
        ...


@dataclass(frozen=True)
class Means:
    """Posterior means as ratios: above[p, k] / below[p, k] of cells, class_above[k] / class_below of classes
    (None: equally likely).

    coin: whether an annotator's rows share one accuracy, so that a row adds to all classes at once.
    """

    above: Float64[np.ndarray, "p k"]
    below: Float64[np.ndarray, "p k"]
    class_above: Float64[np.ndarray, " k"] | None
    coin: bool = False

    @property
    def scores(self) -> Scores:
        """Scores of items that are not part of the counts."""
        prior = np.ones(self.above.shape[1]) if self.class_above is None else self.class_above
        return Scores(
            np.log(np.maximum(self.above, 1e-300)) - np.log(self.below), np.log(prior / prior.sum())
        )


@runtime_checkable
class Averaging(Protocol):
    """A model with posterior means in closed form."""

    def means(self, statistics: Statistics) -> Means:
        """Return the posterior means of every cell, given the counts."""
        ...


@dataclass(frozen=True)
class ClassPrior:
    """Dirichlet concentrations of the class prior (k); None: the classes are equally likely, and known to be.

    Raises:
        ValueError: a concentration below 1, which has no mode, unless averaged.
    """

    concentration: Float64[np.ndarray, " k"] | None
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged and self.concentration is not None:
            require_mode(self.concentration)

    def scores(self, class_count: Float64[np.ndarray, " k"]) -> tuple[Float64[np.ndarray, " k"], float]:
        """Return log_prior and penalty."""
        if self.concentration is None:
            return np.full(len(class_count), -math.log(len(class_count))), 0.0
        counts, a = class_count[None, :], self.concentration[None, :]
        logs, penalty = (dirichlet_expected_logs if self.averaged else dirichlet_mode)(counts, a)
        return logs[0], float(penalty[0])

    def above(self, class_count: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"] | None:
        """Return counts plus concentrations, None where the classes are known to be equally likely."""
        return None if self.concentration is None else class_count + self.concentration


@dataclass(frozen=True)
class DirichletRows:
    """A confusion matrix per annotator. base: concentrations that all share (k, l); history: an annotator's
    own on top, by cell (p, k).

    Raises:
        ValueError: a concentration below 1, which has no mode, unless averaged.
    """

    cells: Cells
    base: Float64[np.ndarray, "k l"]
    class_prior: ClassPrior
    history: Float64[np.ndarray, "p k"] | None = None
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged:
            require_mode(self.base)

    @cached_property
    def concentration(self) -> Float64[np.ndarray, "p k"]:
        """Concentration of every cell and class."""
        shared = self.base.T[self.cells.label]
        return shared if self.history is None else shared + self.history

    @cached_property
    def _beyond_flat(self) -> Float64[np.ndarray, "p k"]:
        return self.concentration - 1

    @cached_property
    def total(self) -> Float64[np.ndarray, "j k"]:
        """Concentration of every row, over all its labels."""
        shared = np.repeat(self.base.sum(1)[None, :], self.cells.num_annotators, 0)
        return shared if self.history is None else shared + row_totals(self.history, self.cells)

    @cached_property
    def _unseen(self) -> tuple[Float64[np.ndarray, "j k"], float]:
        """Terms of labels without a cell: the sum over them of a - 1, and their part of the log density
        except that sum times the log of the row's total; the latter includes the normalising constants of all
        rows.
        """
        shared = self.base.T[self.cells.label]
        left = (self.base - 1).sum(1) - row_totals(shared - 1, self.cells)
        everyone = (xlogy(self.base - 1, self.base - 1) - gammaln(self.base)).sum()
        constant = self.cells.num_annotators * everyone
        constant = constant - (xlogy(shared - 1, shared - 1) - gammaln(shared)).sum()
        constant = constant - gammaln(self.concentration).sum()
        return np.maximum(left, 0), float(constant + gammaln(self.total).sum())

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Return the mode, or the expected logs, of every cell."""
        log_prior, penalty = self.class_prior.scores(statistics.class_count)
        counts, owner = statistics.counts, self.cells.annotator
        row = row_totals(counts, self.cells)
        if self.averaged:
            above, below = counts + self.concentration, row + self.total
            logs, logs_below = digamma(above), digamma(below)
            bound = (gammaln(above) - gammaln(self.concentration) - counts * logs).sum()
            bound += (gammaln(self.total) - gammaln(below) + row * logs_below).sum()
            return Scores(logs - logs_below[owner], log_prior, penalty + float(bound))
        below = row + (self.total - self.cells.num_labels)  # counts may be far below the rounding of 1
        empty = below < _NOTHING  # neither labels nor a prior: every label is as likely
        log_below = np.log(np.where(empty, 1.0, below))
        log_below[empty] = math.log(self.cells.num_labels)
        above = np.where(empty[owner], 1.0, np.maximum(counts + self._beyond_flat, 0))
        with np.errstate(divide="ignore"):
            log_table = np.log(above) - log_below[owner]
        left, constant = self._unseen
        # Where the prior is flat the log may be -inf, and counts for nothing
        density = (
            constant + (self._beyond_flat * np.maximum(log_table, -1e300)).sum() - (left * log_below).sum()
        )
        return Scores(log_table, log_prior, penalty + float(density))

    def means(self, statistics: Statistics) -> Means:
        """Return posterior means of every cell."""
        below = row_totals(statistics.counts, self.cells) + self.total
        return Means(
            statistics.counts + self.concentration,
            below[self.cells.annotator],
            self.class_prior.above(statistics.class_count),
        )


def row_totals(counts: Float64[np.ndarray, "p k"], cells: Cells) -> Float64[np.ndarray, "j k"]:
    """Sum over the labels of an annotator."""
    return sums_by_owner(counts, cells.annotator, cells.num_annotators)


def require_mode(concentration: Float64[np.ndarray, "..."]) -> None:
    """Raise ValueError for concentrations without a mode."""
    lowest = float(concentration.min(initial=np.inf))
    if lowest < 1:
        raise ValueError(
            "a posterior mode needs Dirichlet concentrations of at least 1, "
            f"the lowest is {lowest:g}: use averaging"
        )


def dirichlet_mode(counts: Float64[np.ndarray, "r k"], a: Float64[np.ndarray, "#r k"]) -> RowLogs:
    """Return logs of the mode of Dirichlet(a + counts), and its log density under Dirichlet(a)."""
    total = a.sum(1)
    above, below = counts + (a - 1), counts.sum(1) + (total - a.shape[1])
    empty = below < _NOTHING
    with np.errstate(divide="ignore"):
        logs = np.log(np.where(empty[:, None], 1.0, np.maximum(above, 0)))
        logs -= np.log(np.where(empty, a.shape[1], below))[:, None]
    return logs, gammaln(total) - gammaln(a).sum(1) + xlogy(a - 1, np.exp(logs)).sum(1)


def dirichlet_expected_logs(counts: Float64[np.ndarray, "r k"], a: Float64[np.ndarray, "#r k"]) -> RowLogs:
    """Return expected logs under Dirichlet(a + counts), and minus its divergence from Dirichlet(a)."""
    total = a.sum(1)
    above, below = counts + a, counts.sum(1) + total
    logs = digamma(above) - digamma(below)[:, None]
    return logs, gammaln(total) - gammaln(below) + (gammaln(above) - gammaln(a) - counts * logs).sum(1)


def averaged_probabilities(
    packed: Packed,
    cells: Cells,
    responsibilities: Float64[np.ndarray, "i k"],
    means: Means,
    copying: float = 0.0,
) -> Float64[np.ndarray, "i k"]:
    """Average p(truth | labels) over parameters, for items in the counts; known items keep their class."""
    averaged, prior = responsibilities.copy(), np.zeros(0) if means.class_above is None else means.class_above
    arrays = *packed.arrays[:4], cells.label, means.above, means.below, prior
    _average(*arrays, means.coin, max(copying, 0.0), averaged)
    return averaged


def discounted(packed: Packed, copying: float) -> Packed:
    """Weight the labels of each item by what dependent labels are worth."""
    if copying <= 0:
        return packed
    worth = np.repeat(1 / (1 + np.maximum(packed.size - 1, 0) * copying), packed.size)
    return replace(packed, weight=worth if packed.weight is None else worth * packed.weight)


@fast
def _average(
    starts: Any, cell: Any, weight: Any, gold: Any, label: Any, above: Any, below: Any, class_above: Any,
    coin: bool, copying: float, out: Any,
) -> None:  # fmt: skip
    num_classes = out.shape[1]
    logs, total = np.empty(num_classes), class_above.sum()
    for i in range(out.shape[0]):
        if gold.size and gold[i] >= 0:
            continue
        size = starts[i + 1] - starts[i]
        worth = 1.0 / (1.0 + max(size - 1, 0) * copying)
        for k in range(num_classes):
            logs[k] = 0.0
            if class_above.size:
                logs[k] = math.log(max(class_above[k] - out[i, k], 1e-12)) - math.log(max(total - 1.0, 1e-12))
        for n in range(starts[i], starts[i + 1]):
            p, w = cell[n], weight[n] if weight.size else 1.0
            for k in range(num_classes):
                mine, all_mine = w * out[i, k], w * out[i, k]
                if coin:
                    hit = out[i, label[p]]
                    mine = w * hit if k == label[p] else w * (1.0 - hit) / max(num_classes - 1, 1)
                    all_mine = w
                share = max(above[p, k] - mine, 1e-12) / max(below[p, k] - all_mine, 1e-12)
                logs[k] += worth * w * math.log(share)
        most = logs[0]
        for k in range(1, num_classes):
            most = max(most, logs[k])
        top = 0.0
        for k in range(num_classes):
            logs[k] = math.exp(logs[k] - most)
            top += logs[k]
        for k in range(num_classes):
            out[i, k] = logs[k] / top

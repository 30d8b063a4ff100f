r"""What the models of confusion make of expected counts: scores for the next E step, in closed form.

n[p, k] = counts, the expected count of cell p = (j, l) on items of class k;  N[j, k] its sum over labels;  a[j, k, l] the prior's concentrations, A their sum

    Dirichlet rows, mode       confusion = (n + a - 1) / (N + A - L)          penalty = log prior density                      a >= 1
    Dirichlet rows, averaged   log confusion ~ psi(n + a) - psi(N + A)        penalty = - KL(Dirichlet(n + a) || Dirichlet(a))
    one coin, mode             accuracy[j] = (right + r - 1) / (N + r + w - 2),  right = n of cells with l = k
    one coin, averaged         psi in place of logs, Beta(right + r, N - right + w)

Mode: EM for the posterior mode; maximum likelihood is the mode under flat priors. Averaged: the variational approximation with independent
posteriors of truth and parameters (Kim and Ghahramani 2012: iBCC); log likelihood + penalty then bounds the log evidence. In both cases the
sum of the two is what EM never lowers. A label that an annotator never used has no cell; its share of a row is the prior's alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64
from scipy.special import digamma, gammaln, xlogy

from probcrowd.data.packed import Cells
from probcrowd.inference.aggregation.averaging import Means
from probcrowd.inference.aggregation.e_step import Scores, Statistics, sums_by_owner

_NOTHING = 1e-280  # below, rounding would make the row of a mode


@runtime_checkable
class Averaging(Protocol):
    """A channel with posterior means in closed form."""

    def means(self, statistics: Statistics) -> Means:
        """Posterior means of every cell, given the counts."""
        ...


@runtime_checkable
class AnnotatorModel(Protocol):
    """A model of confusion, as EM sees it."""

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """What the counts make of the parameters; `previous` are the scores that the counts came from, where there were any."""
        ...


@dataclass(frozen=True)
class ClassPrior:
    """Dirichlet concentrations of the class prior (k); None: the classes are equally likely, and known to be.

    Raises:
        ValueError: a mode is asked for, and a concentration below 1 has none.
    """

    concentration: Float64[np.ndarray, " k"] | None
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged and self.concentration is not None:
            _check_mode(self.concentration)

    def scores(self, class_count: Float64[np.ndarray, " k"]) -> tuple[Float64[np.ndarray, " k"], float]:
        """log_prior and penalty."""
        if self.concentration is None:
            return np.full(len(class_count), -math.log(len(class_count))), 0.0
        counts, a = class_count[None, :], self.concentration[None, :]
        logs, penalty = (_averaged if self.averaged else _mode)(counts, counts.sum(1), a, a.sum(1))
        return logs[0], float(penalty[0])

    def above(self, class_count: Float64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"] | None:
        """Counts and concentrations, None where the classes are known to be equally likely."""
        return None if self.concentration is None else class_count + self.concentration


@dataclass(frozen=True)
class DirichletRows:
    """A confusion matrix per annotator. base: concentrations that all share (k, l); history: an annotator's own on top, by cell (p, k).

    Raises:
        ValueError: a mode is asked for, and a concentration below 1 has none.
    """

    cells: Cells
    base: Float64[np.ndarray, "k l"]
    class_prior: ClassPrior
    history: Float64[np.ndarray, "p k"] | None = None
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged:
            _check_mode(self.base)

    @cached_property
    def concentration(self) -> Float64[np.ndarray, "p k"]:
        """Of every cell and class."""
        shared = self.base.T[self.cells.label]
        return shared if self.history is None else shared + self.history

    @cached_property
    def _beyond_flat(self) -> Float64[np.ndarray, "p k"]:
        return self.concentration - 1

    @cached_property
    def total(self) -> Float64[np.ndarray, "j k"]:
        """Of every row, over all its labels."""
        shared = np.repeat(self.base.sum(1)[None, :], self.cells.num_annotators, 0)
        return shared if self.history is None else shared + row_totals(self.history, self.cells)

    @cached_property
    def _unseen(self) -> tuple[Float64[np.ndarray, "j k"], float]:
        """Labels without a cell: the sum over them of a - 1, and all that their density adds but that sum times the row's total; also the
        normalising constants of all rows."""
        shared = self.base.T[self.cells.label]
        left = (self.base - 1).sum(1) - row_totals(shared - 1, self.cells)
        everyone = (
            self.cells.num_annotators * (xlogy(self.base - 1, self.base - 1) - gammaln(self.base)).sum()
        )
        constant = (
            everyone
            - (xlogy(shared - 1, shared - 1) - gammaln(shared)).sum()
            - gammaln(self.concentration).sum()
        )
        return np.maximum(left, 0), float(constant + gammaln(self.total).sum())

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """The mode, or the averaged logs, of every cell."""
        log_prior, penalty = self.class_prior.scores(statistics.class_count)
        counts, row, owner = (
            statistics.counts,
            row_totals(statistics.counts, self.cells),
            self.cells.annotator,
        )
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
        """Posterior means of every cell."""
        below = row_totals(statistics.counts, self.cells) + self.total
        return Means(
            statistics.counts + self.concentration,
            below[self.cells.annotator],
            self.class_prior.above(statistics.class_count),
        )


@dataclass(frozen=True)
class OneCoinModel:
    """An accuracy per annotator, the same for all classes; wrong labels are equally likely. right, wrong: Beta concentrations (j).

    Raises:
        ValueError: a mode is asked for, and a concentration below 1 has none.
    """

    cells: Cells
    right: Float64[np.ndarray, " j"]
    wrong: Float64[np.ndarray, " j"]
    class_prior: ClassPrior
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged:
            _check_mode(np.concatenate([self.right, self.wrong]))

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """The mode, or the averaged logs, of every cell."""
        log_prior, penalty = self.class_prior.scores(statistics.class_count)
        hits, row = (
            right_counts(statistics.counts, self.cells),
            row_totals(statistics.counts, self.cells).sum(1),
        )
        coins = np.stack([hits, np.maximum(row - hits, 0)], 1)
        prior = np.stack([self.right, self.wrong], 1)
        logs, penalties = (_averaged if self.averaged else _mode)(coins, coins.sum(1), prior, prior.sum(1))
        return Scores(coin_table(logs, self.cells), log_prior, penalty + float(penalties.sum()))

    def means(self, statistics: Statistics) -> Means:
        """Posterior means of every cell."""
        hits, row = (
            right_counts(statistics.counts, self.cells),
            row_totals(statistics.counts, self.cells).sum(1),
        )
        right, below = hits + self.right, row + self.right + self.wrong
        with np.errstate(divide="ignore"):
            logs = np.log(np.stack([right, np.maximum(below - right, 0)], 1))
        above = np.exp(coin_table(logs, self.cells))
        wide = np.repeat(below[self.cells.annotator, None], self.cells.num_classes, 1)
        return Means(above, wide, self.class_prior.above(statistics.class_count), coin=True)


def coin_table(logs: Float64[np.ndarray, "j 2"], cells: Cells) -> Float64[np.ndarray, "p k"]:
    """log P(label | truth) of every cell, from the logs of being right and of being wrong."""
    others = math.log(max(cells.num_classes - 1, 1))
    table = np.repeat((logs[cells.annotator, 1] - others)[:, None], cells.num_classes, 1)
    table[np.arange(len(cells)), cells.label] = logs[cells.annotator, 0]
    return table


def row_totals(counts: Float64[np.ndarray, "p k"], cells: Cells) -> Float64[np.ndarray, "j k"]:
    """Sums over the labels of an annotator."""
    return sums_by_owner(counts, cells.annotator, cells.num_annotators)


def right_counts(counts: Float64[np.ndarray, "p k"], cells: Cells) -> Float64[np.ndarray, " j"]:
    """How much of what an annotator said names the true class."""
    named = np.flatnonzero(cells.label < cells.num_classes)
    return np.bincount(
        cells.annotator[named], counts[named, cells.label[named]], cells.num_annotators
    ).astype(np.float64)


def _check_mode(concentration: Float64[np.ndarray, "..."]) -> None:
    lowest = float(concentration.min(initial=np.inf))
    if lowest < 1:
        raise ValueError(
            f"a posterior mode needs Dirichlet concentrations of at least 1, the lowest is {lowest:g}: use averaging"
        )


def _mode(
    counts: Float64[np.ndarray, "r k"],
    row: Float64[np.ndarray, " r"],
    a: Float64[np.ndarray, "#r k"],
    total: Float64[np.ndarray, "#r"],
):
    """Logs of the mode of Dirichlet(a + counts), and its log density under Dirichlet(a)."""
    above, below = counts + (a - 1), row + (total - a.shape[1])
    empty = below < _NOTHING
    with np.errstate(divide="ignore"):
        logs = (
            np.log(np.where(empty[:, None], 1.0, np.maximum(above, 0)))
            - np.log(np.where(empty, a.shape[1], below))[:, None]
        )
    return logs, gammaln(total) - gammaln(a).sum(1) + xlogy(a - 1, np.exp(logs)).sum(1)


def _averaged(
    counts: Float64[np.ndarray, "r k"],
    row: Float64[np.ndarray, " r"],
    a: Float64[np.ndarray, "#r k"],
    total: Float64[np.ndarray, "#r"],
):
    """Expected logs under Dirichlet(a + counts), and minus its divergence from Dirichlet(a)."""
    above, below = counts + a, row + total
    logs = digamma(above) - digamma(below)[:, None]
    return logs, gammaln(total) - gammaln(below) + (gammaln(above) - gammaln(a) - counts * logs).sum(1)

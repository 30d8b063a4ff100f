r"""One coin per annotator: the accuracy is the same for all classes, and wrong labels are equally likely.

mode       accuracy[j] = (right + r - 1) / (N + r + w - 2)
           right = expected counts of cells (j, l) with l = k, N all of j's
averaged   psi in place of logs, Beta(right + r, N - right + w); both as in `m_step`, with rows of two labels
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.e_step import Scores, Statistics
from probcrowd.inference.aggregation.m_step import (
    ClassPrior,
    Means,
    dirichlet_expected_logs,
    dirichlet_mode,
    require_mode,
    row_totals,
)


@dataclass(frozen=True)
class OneCoinModel:
    """An accuracy per annotator, the same for all classes; wrong labels are equally likely. right, wrong:
    Beta concentrations (j).

    Raises:
        ValueError: a concentration below 1, which has no mode, unless averaged.
    """

    cells: Cells
    right: Float64[np.ndarray, " j"]
    wrong: Float64[np.ndarray, " j"]
    class_prior: ClassPrior
    averaged: bool = False

    def __post_init__(self) -> None:
        if not self.averaged:
            require_mode(np.concatenate([self.right, self.wrong]))

    def _totals(self, statistics: Statistics) -> tuple[Float64[np.ndarray, " j"], Float64[np.ndarray, " j"]]:
        """Return expected numbers of right labels and of all labels."""
        counts = statistics.counts
        return right_counts(counts, self.cells), row_totals(counts, self.cells).sum(1)

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Return the mode, or the expected logs, of every cell."""
        log_prior, penalty = self.class_prior.scores(statistics.class_count)
        hits, row = self._totals(statistics)
        coins = np.stack([hits, np.maximum(row - hits, 0)], 1)
        prior = np.stack([self.right, self.wrong], 1)
        logs, penalties = (dirichlet_expected_logs if self.averaged else dirichlet_mode)(coins, prior)
        return Scores(coin_table(logs, self.cells), log_prior, penalty + float(penalties.sum()))

    def means(self, statistics: Statistics) -> Means:
        """Return posterior means of every cell."""
        hits, row = self._totals(statistics)
        right, below = hits + self.right, row + self.right + self.wrong
        with np.errstate(divide="ignore"):
            logs = np.log(np.stack([right, np.maximum(below - right, 0)], 1))
        above = np.exp(coin_table(logs, self.cells))
        wide = np.repeat(below[self.cells.annotator, None], self.cells.num_classes, 1)
        return Means(above, wide, self.class_prior.above(statistics.class_count), coin=True)


def coin_table(logs: Float64[np.ndarray, "j 2"], cells: Cells) -> Float64[np.ndarray, "p k"]:
    """Return log P(label | truth) of every cell, from the logs of being right and of being wrong."""
    others = math.log(max(cells.num_classes - 1, 1))
    table = np.repeat((logs[cells.annotator, 1] - others)[:, None], cells.num_classes, 1)
    table[np.arange(len(cells)), cells.label] = logs[cells.annotator, 0]
    return table


def right_counts(counts: Float64[np.ndarray, "p k"], cells: Cells) -> Float64[np.ndarray, " j"]:
    """Return the expected number of right labels by annotator."""
    named = np.flatnonzero(cells.label < cells.num_classes)
    return np.bincount(
        cells.annotator[named], counts[named, cells.label[named]], cells.num_annotators
    ).astype(np.float64)

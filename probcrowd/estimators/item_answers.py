"""What an aggregator answers of items, and how far its annotators seem to err independently."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from probcrowd.data.files import some
from probcrowd.data.packed import Packed
from probcrowd.data.rows import Rows
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.e_step import sums_by_owner
from probcrowd.inference.aggregation.m_step import row_totals
from probcrowd.inference.dependence.dependence import Dependence, dependence
from probcrowd.metrics.scores import most_probable

MOST_PAIRS = 500_000
_COVERED = (
    0.95  # share of annotators' tables on labels that they used, below which a copying rate cannot be told
)
_UNTOLD = "annotators have too few labels for so many classes to tell a copying rate"


@dataclass(frozen=True)
class ItemResults:
    """Responsibilities of items (i, k), how many labels each has, how many of them by known annotators, and whether its class was known."""

    items: pd.Index
    responsibilities: Float64[np.ndarray, "i k"]
    size: Int64[np.ndarray, " i"]
    heard: Int64[np.ndarray, " i"]
    known: Bool[np.ndarray, " i"]

    def probability_frame(self, classes: pd.Index) -> pd.DataFrame:
        """Label probabilities under the users' ids."""
        return pd.DataFrame(
            self.responsibilities.copy(), pd.Index(self.items, name="item"), classes.rename("class")
        )

    @property
    def best(self) -> Bool[np.ndarray, "i k"]:
        """The most probable classes, several where they tie."""
        return most_probable(self.responsibilities)

    def frame(self, classes: pd.Index) -> pd.DataFrame:
        """The columns of `Aggregator.describe`."""
        top, best = self.responsibilities.max(1), self.best
        flag = np.where(self.heard == 0, "unknown annotators only", "")
        flag = np.where(self.size == 0, "no labels", flag)
        columns = {"label": classes.take(best.argmax(1)), "probability": top, "num_labels": self.size}
        columns |= {"tied": best.sum(1) > 1, "known": self.known, "flag": flag}
        return pd.DataFrame(columns, index=pd.Index(self.items, name="item"))


def known_of(gold: pd.Series, items: pd.Index) -> pd.Series:
    """The gold labels of those items.

    Raises:
        ValueError: there are none.
    """
    known = gold.loc[gold.notna() & gold.index.isin(items)]
    if not len(known):
        raise ValueError(
            f"gold has no class of any of the items: its ids are {some(gold.index)}, those of items {some(items)}"
        )
    return known


class DependenceWarning(UserWarning):
    """Annotators agree beyond what the truth explains, so label probabilities are too sure."""


def dependence_of(
    packed: Packed, posterior: RowPosterior, class_prior: Float64[np.ndarray, " k"]
) -> Dependence:
    """The dependence check of a fit, on enough items, drawn at random, for 500,000 pairs of labels.

    `dependence` takes labels that an annotator never gave for impossible. Where annotators have few labels for so many classes, the tables
    expect that they give others, agreement then seems too high and no rate can be told.
    """
    cells, generator = posterior.cells, np.random.default_rng(0)
    items = np.arange(packed.num_items)
    pairs = packed.size * (packed.size - 1) // 2
    if pairs.sum() > MOST_PAIRS:
        drawn = generator.permutation(np.flatnonzero((pairs > 0) & (pairs <= MOST_PAIRS)))
        items = np.sort(drawn[np.cumsum(pairs[drawn]) <= MOST_PAIRS])
    part = packed.take(items)
    item, cell = np.repeat(np.arange(len(items)), part.size), part.cell.astype(np.int64)
    sizes = cells.num_annotators, cells.num_classes
    rows = Rows(
        item, cells.annotator[cell], cells.label[cell], part.weights, part.known.astype(np.int64), *sizes
    )
    # Tables that lean on a prior expect too little agreement; those that lean on the crowd's own mean do not
    crowd = sums_by_owner(posterior.counts, cells.label, cells.num_labels) + 1e-9
    lean = cells.num_labels * (crowd / crowd.sum(0))[cells.label]
    number = row_totals(posterior.counts, cells)  # (j, k)
    means = (posterior.counts + lean) / (number + cells.num_labels)[cells.annotator]
    known = np.asarray(class_prior, np.float64)
    found = dependence(
        rows, cell, cells.annotator, cells.label, means, known, generator=generator, max_pairs=MOST_PAIRS
    )
    if (row_totals(means, cells) * number).sum() < _COVERED * number.sum():
        return replace(
            found, residual=math.nan, residual_error=math.nan, effective_annotators=math.nan, note=_UNTOLD
        )
    return found

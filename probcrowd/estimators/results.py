"""What aggregators hold after a fit, and the tables that users see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from probcrowd.data.files import some
from probcrowd.data.table import Packed, Table
from probcrowd.inference.aggregation.annotator_summary import (
    RowPosterior,
    annotator_table,
    confusion_table,
    held_out,
)
from probcrowd.inference.aggregation.e_step import Scores, Statistics
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.metrics.scores import most_probable

MOST_CONFUSION = 2 * 10**8


@dataclass(frozen=True)
class ItemResults:
    """Items and their responsibilities.

    size: number of labels. size_known: number of labels by annotators of the fit. known: whether the class is
    known.
    """

    items: pd.Index
    responsibilities: Float64[np.ndarray, "i k"]
    size: Int64[np.ndarray, " i"]
    size_known: Int64[np.ndarray, " i"]
    known: Bool[np.ndarray, " i"]

    def probability_frame(self, classes: pd.Index) -> pd.DataFrame:
        """Return label probabilities under the users' ids."""
        return pd.DataFrame(
            self.responsibilities.copy(), pd.Index(self.items, name="item"), classes.rename("class")
        )

    @property
    def best(self) -> Bool[np.ndarray, "i k"]:
        """The most probable classes, several where they tie."""
        return most_probable(self.responsibilities)

    def frame(self, classes: pd.Index) -> pd.DataFrame:
        """Return the columns of `Aggregator.describe`."""
        top, best = self.responsibilities.max(1), self.best
        flag = np.where(self.size_known == 0, "unknown annotators only", "")
        flag = np.where(self.size == 0, "no labels", flag)
        columns = {"label": classes.take(best.argmax(1)), "probability": top, "num_labels": self.size}
        columns |= {"tied": best.sum(1) > 1, "known": self.known, "flag": flag}
        return pd.DataFrame(columns, index=pd.Index(self.items, name="item"))


@dataclass(frozen=True)
class Fitted:
    """The private record of a fitted aggregator.

    items: results of the fitted table. annotators, classes, labels: ids (labels are the classes, and the
    abstention if it is an event). packed: the annotations. rows: the annotators' confusion given the expected
    counts. class_prior: p(class). class_shares: weights of the classes in summaries of annotators. objective:
    after every iteration. model: what the method learned. copying: the rate at which labels count as copies
    of others of their item. frames: tables computed on request.
    """

    items: ItemResults
    annotators: pd.Index
    classes: pd.Index
    labels: pd.Index
    packed: Packed
    rows: RowPosterior
    class_prior: Float64[np.ndarray, " k"]
    class_shares: Float64[np.ndarray, " k"]
    objective: Float64[np.ndarray, " t"]
    converged: bool
    model: Any = None
    copying: float = 0.0
    frames: dict[str, pd.DataFrame] = field(default_factory=dict, init=False, repr=False)

    def frame(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a table, computed at the first request."""
        if name not in self.frames:
            self.frames[name] = make()
        return self.frames[name]

    def keep_answers(
        self, table: Table, probabilities: Float64[np.ndarray, "i k"]
    ) -> Float64[np.ndarray, "i k"]:
        """Return probabilities of a table where items with exactly the labels that they had in the fit keep
        theirs.
        """
        place = self.items.items.get_indexer(table.items)
        size = np.bincount(table.item, minlength=len(place))
        items = np.flatnonzero((place >= 0) & (size == self.packed.size[place]))
        if not len(items):
            return probabilities
        position = np.full(len(place), -1)
        position[items] = np.arange(len(items))
        new, old = table.select(position[table.item] >= 0), self.packed.take(place[items])
        rows = (
            (position[new.item], new.key, new.weights),
            (np.repeat(np.arange(len(items)), old.size), self.rows.cells.key[old.cell], old.weights),
        )
        first, second = ([part[np.lexsort(columns[::-1])] for part in columns] for columns in rows)
        differ = (first[1] != second[1]) | (first[2] != second[2])
        equal = items[np.bincount(first[0], differ, minlength=len(items)) == 0]
        probabilities = probabilities.copy()
        probabilities[equal] = self.items.responsibilities[place[equal]]
        return probabilities

    def annotator_frame(self, packed: Packed) -> pd.DataFrame:
        """Summarise annotators; spamming is judged with each one's own labels left out of the truth."""
        rows = DirichletRows(
            self.rows.cells, self.rows.base, ClassPrior(None, True), self.rows.history, averaged=True
        )
        uniform = rows.scores(Statistics(self.rows.counts, np.ones(len(self.class_shares))))
        scores = Scores(uniform.log_table, np.log(np.maximum(self.class_shares, 1e-12)))
        table = annotator_table(self.rows, self.class_shares, held_out(packed, scores).counts)
        return table.set_axis(pd.Index(self.annotators, name="annotator"), axis=0)

    def confusion_frame(self, confusion: Callable[[], Float64[np.ndarray, "j k l"]]) -> pd.DataFrame:
        """Return confusion matrices under the users' ids.

        Raises:
            ValueError: they would have more than 2 * 10^8 numbers.
        """
        size = len(self.annotators) * len(self.classes) * len(self.labels)
        if size > MOST_CONFUSION:
            raise ValueError(
                f"the confusion matrices have {size:,} numbers; `counts_` has those that are not zero"
            )
        rows = pd.MultiIndex.from_product([self.annotators, self.classes], names=["annotator", "true_class"])
        return pd.DataFrame(confusion().reshape(len(rows), -1), rows, self.labels.rename("label"))

    def mode_confusion(self, table: Float64[np.ndarray, "p k"]) -> Float64[np.ndarray, "j k l"]:
        """Return confusion matrices from P(label | class) by cell, at the mode.

        A label that an annotator never used has what the others leave, in the proportions of the prior's
        mode.
        """
        cells, base = self.rows.cells, self.rows.base
        confusion = np.zeros((cells.num_annotators, cells.num_classes, cells.num_labels))
        for where, (dense,) in self.rows.chunks(table):
            confusion[where] = dense
        used = np.zeros((cells.num_annotators, cells.num_labels), bool)
        used[cells.annotator, cells.label] = True
        shares = np.where(used[:, None], 0.0, np.maximum(base - 1, 0)[None])
        shares += np.where(~used[:, None] & (shares.sum(2, keepdims=True) == 0), 1.0, 0.0)
        total = shares.sum(2, keepdims=True)
        left = np.maximum(1 - confusion.sum(2, keepdims=True), 0)
        return confusion + left * np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)

    def mean_confusion(self) -> Float64[np.ndarray, "j k l"]:
        """Return posterior means of the confusion matrices."""
        return confusion_table(self.rows)


def known_labels(gold: pd.Series, items: pd.Index) -> pd.Series:
    """Return the gold labels of those items.

    Raises:
        ValueError: there are none.
    """
    known = gold.loc[gold.notna() & gold.index.isin(items)]
    if not len(known):
        raise ValueError(
            f"gold has no class of any of the items: its ids are {some(gold.index)}, "
            f"those of items {some(items)}"
        )
    return known

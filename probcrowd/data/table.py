"""A table of annotations as an estimator takes it: in any of the forms users have, with abstentions set apart, coded by a fit's ids where there was one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data.annotations import Annotations
from probcrowd.data.columns import reject
from probcrowd.data.files import some
from probcrowd.data.packed import Cells, Packed, occurring, pack
from probcrowd.data.rows import Rows, gold_codes

Abstentions = Literal["ignore", "event"]


@dataclass(frozen=True)
class Table:
    """Rows as codes: label[n] < len(classes) is a class, label[n] = len(classes) an abstention that counts as an event.

    gold: the known class of each item, or -1.
    """

    item: Int64[np.ndarray, " n"]
    annotator: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"] | None
    gold: Int64[np.ndarray, " i"]
    items: pd.Index
    annotators: pd.Index
    classes: pd.Index
    num_labels: int

    @property
    def key(self) -> Int64[np.ndarray, " n"]:
        """(annotator, label) as one number."""
        return self.annotator * self.num_labels + self.label

    @property
    def rows(self) -> Rows:
        """The rows sorted by item, for methods that know no abstentions."""
        order = np.argsort(self.item, kind="stable")
        sizes = len(self.annotators), len(self.classes)
        return Rows(
            self.item[order], self.annotator[order], self.label[order], self.weights[order], self.gold, *sizes
        )

    @property
    def weights(self) -> Float64[np.ndarray, " n"]:
        """The weight of every row."""
        return np.ones(len(self.item)) if self.weight is None else self.weight

    @property
    def cells(self) -> Cells:
        """The (annotator, label) pairs that occur."""
        return occurring(self.key, len(self.annotators), self.num_labels, len(self.classes))

    def packed(self, cells: Cells) -> Packed:
        """The rows by item, where every pair has one of those cells."""
        return pack(self.item, self.key, cells, len(self.items), weight=self.weight, gold=self.gold)

    def kept(self, rows: np.ndarray) -> Table:
        """Those rows alone; items and annotators keep their places."""
        weight = None if self.weight is None else self.weight[rows]
        return replace(
            self, item=self.item[rows], annotator=self.annotator[rows], label=self.label[rows], weight=weight
        )


def read_table(
    annotations: Any,
    gold: pd.Series | None = None,
    *,
    abstention: Any = None,
    abstentions: Abstentions = "ignore",
    classes: pd.Index | None = None,
) -> Table:
    """The table of an `Annotations`, or of a data frame in long form.

    classes: those of a fit, where there was one. Gold labels are then coded by these, and nobody need abstain, or all may.

    Raises:
        TypeError: something else, or gold labels that are no Series by item id.
        ValueError: any fault of the table; an abstention that nobody gave; gold labels that are none of the classes.
    """
    said = _annotations(annotations)
    if abstention is None:
        marks = np.zeros(said.num_classes, bool)
    else:
        marks = np.asarray(said.classes.astype(object) == abstention, dtype=bool)
        if classes is None and not marks.any():
            raise ValueError(
                f"nobody gave the label {abstention!r} that stands for an abstention; labels are {list(said.classes[:10])}"
            )
    if classes is None and marks.all():
        raise ValueError("every label is an abstention")
    code = np.where(marks, (~marks).sum(), np.cumsum(~marks) - 1)
    label, named = code[said.label], said.classes[~marks]
    silent = marks[said.label]
    counts = abstentions == "event" and bool(marks.any())
    table = Table(
        said.item,
        said.annotator,
        label,
        said.weight,
        gold_codes(said.items, named if classes is None else classes, _by_item(gold)),
        said.items,
        said.annotators,
        named,
        len(named) + counts,
    )
    return table if counts else table.kept(~silent)


def recode(table: Table, annotators: pd.Index, classes: pd.Index, num_labels: int) -> Table:
    """The table in the codes of a fit, by which its gold labels are already; annotators that the fit does not know come after those it does, labels it does not know are refused."""
    place = classes.get_indexer(table.classes)
    used = np.unique(table.label[table.label < len(table.classes)])
    unknown = np.zeros(len(table.classes), bool)
    unknown[used] = place[used] < 0
    if unknown.any():
        wrong = np.isin(table.label, np.flatnonzero(unknown))
        named = pd.Series(table.classes[table.label[wrong]], index=table.items[table.item[wrong]])
        reject(
            np.ones(len(named), bool),
            named,
            f"labels of items that the fit does not know: its classes are {list(classes[:10])}",
        )
    if table.num_labels > len(table.classes) and num_labels == len(classes):
        raise ValueError("the fit ignored abstentions, so they can be no events here")
    places = np.append(place, len(classes))
    new = table.annotators[annotators.get_indexer(table.annotators) < 0]
    everyone = annotators.append(new) if len(new) else annotators
    seats = everyone.get_indexer(table.annotators)
    return replace(
        table,
        annotator=seats[table.annotator].astype(np.int64),
        label=places[table.label].astype(np.int64),
        annotators=everyone,
        classes=classes,
        num_labels=num_labels,
    )


def warn_of_unknown(table: Table, num_known: int, meaning: str) -> None:
    """Tells which annotators of a new table the fit has not seen, and what becomes of their labels."""
    unknown = table.annotators[num_known:]
    if len(unknown):
        warnings.warn(
            f"{len(unknown)} annotators are not known from the fit and {meaning}: {some(unknown)}",
            UserWarning,
            stacklevel=4,
        )


def _annotations(annotations: Any) -> Annotations:
    if isinstance(annotations, Annotations):
        return annotations
    if isinstance(annotations, pd.DataFrame):
        return Annotations.from_frame(annotations)
    kind = type(annotations).__name__
    raise TypeError(
        f"annotations must be a data frame with item, annotator and label, or an Annotations, not {kind}: a matrix goes to Annotations.from_wide"
    )


def _by_item(gold: Any) -> pd.Series | None:
    if gold is None or isinstance(gold, pd.Series):
        return gold
    raise TypeError(f"gold labels must be a Series by item id, not {type(gold).__name__}")

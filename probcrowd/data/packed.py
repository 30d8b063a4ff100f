"""Annotations packed for speed: by item, each as one number, the cell of the table that says what it tells about the truth.

    cell p = a pair (annotator[p], label[p]) that occurs;   a table has a row of K numbers per cell, e.g. table[p, k] = P(j says l | truth is k)
    item i has the cells cell[starts[i] : starts[i + 1]],   weight w each, and stands for times[i] items with the same cells

Pairs that never occur have no row, so a table takes cells x K numbers and never annotators x K x K. Labels may be more than the classes: an
abstention that counts as an event is a label that is no class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int32, Int64, Integer

_MOST_FLAGS = 2**26  # pairs that may be marked one by one; beyond, they are sorted


@dataclass(frozen=True)
class Cells:
    """The (annotator, label) pairs that occur, as codes (p); labels >= num_classes are events that no class is named after."""

    annotator: Int64[np.ndarray, " p"]
    label: Int64[np.ndarray, " p"]
    num_annotators: int
    num_labels: int
    num_classes: int

    def __len__(self) -> int:
        return len(self.annotator)

    @property
    def key(self) -> Int64[np.ndarray, " p"]:
        """The pair as one number."""
        return self.annotator * self.num_labels + self.label

    def joined(self, key: Int64[np.ndarray, " m"], num_annotators: int) -> Cells:
        """These cells, in their places, followed by those of `key` that are new."""
        new = pd.unique(key)
        new = np.sort(new[pd.Index(self.key).get_indexer(new) < 0])
        annotator, label = np.divmod(new, self.num_labels)
        return replace(
            self,
            annotator=np.concatenate([self.annotator, annotator]),
            label=np.concatenate([self.label, label]),
            num_annotators=num_annotators,
        )

    def locate(self, key: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """The cell of each pair, -1 where it has none."""
        return pd.Index(self.key).get_indexer(key).astype(np.int32)


@dataclass(frozen=True)
class Packed:
    """Annotations by item. weight, gold and times are None where every one is 1, no class is known, every item stands for itself."""

    starts: Int64[np.ndarray, " starts"]
    cell: Int32[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"] | None = None
    gold: Int32[np.ndarray, " i"] | None = None
    times: Float64[np.ndarray, " i"] | None = None

    @property
    def num_items(self) -> int:
        """The number of items, each pattern counted once."""
        return len(self.starts) - 1

    @property
    def size(self) -> Int64[np.ndarray, " i"]:
        """The number of rows of each item."""
        return np.diff(self.starts)

    @property
    def weights(self) -> Float64[np.ndarray, " n"]:
        """The weight of every row."""
        return np.ones(len(self.cell)) if self.weight is None else self.weight

    @property
    def known(self) -> Int32[np.ndarray, " i"]:
        """The known class of every item, or -1."""
        return np.full(self.num_items, -1, np.int32) if self.gold is None else self.gold

    def take(self, items: Int64[np.ndarray, " m"]) -> Packed:
        """Those items alone, in that order."""
        size = self.size[items]
        starts = np.concatenate([[0], np.cumsum(size)])
        rows = np.repeat(self.starts[items] - starts[:-1], size) + np.arange(starts[-1])
        return Packed(
            starts,
            self.cell[rows],
            *(
                None if a is None else a[b]
                for a, b in ((self.weight, rows), (self.gold, items), (self.times, items))
            ),
        )


def pack(
    item: Integer[np.ndarray, " n"],
    key: Int64[np.ndarray, " n"],
    cells: Cells,
    num_items: int,
    *,
    weight: Float64[np.ndarray, " n"] | None = None,
    gold: Integer[np.ndarray, " i"] | None = None,
) -> Packed:
    """The annotations by item; every pair of `key` has a cell. Rows may come in any order."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=num_items))])
    cell = _places(key, cells)
    if (item[1:] < item[:-1]).any():
        order = np.argsort(item, kind="stable")
        cell, weight = cell[order], None if weight is None else weight[order]
    if gold is not None:
        gold = gold.astype(np.int32) if (gold >= 0).any() else None
    ones = weight is None or bool((weight == 1).all())
    return Packed(starts, cell, None if ones else weight, gold)


def occurring(key: Int64[np.ndarray, " n"], num_annotators: int, num_labels: int, num_classes: int) -> Cells:
    """The cells of those pairs, ordered by annotator and label."""
    if num_annotators * num_labels <= max(_MOST_FLAGS, len(key)):
        flags = np.zeros(num_annotators * num_labels, bool)
        flags[key] = True
        pairs = np.flatnonzero(flags)
    else:
        pairs = np.sort(pd.unique(key))
    annotator, label = np.divmod(pairs, num_labels)
    return Cells(annotator, label, num_annotators, num_labels, num_classes)


def _places(key: Int64[np.ndarray, " n"], cells: Cells) -> Int32[np.ndarray, " n"]:
    room = cells.num_annotators * cells.num_labels
    if room > max(_MOST_FLAGS, len(key)):
        return cells.locate(key)
    lookup = np.full(room, -1, np.int32)
    lookup[cells.key] = np.arange(len(cells), dtype=np.int32)
    return lookup[key]

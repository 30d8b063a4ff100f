"""Annotations packed for speed: by item, each as one number, the cell of the table that says what it tells about the truth.

    cell p = a pair (annotator[p], label[p]) that occurs;   a table has a row of K numbers per cell, e.g. table[p, k] = P(j says l | truth is k)
    item i has the cells cell[starts[i] : starts[i + 1]],   weight w each, and stands for times[i] items with the same cells

Pairs that never occur have no row, so a table takes cells x K numbers and never annotators x K x K. Labels may be more than the classes: an
abstention that counts as an event is a label that is no class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int32, Int64, Integer

_MOST_FLAGS = 2**26  # pairs that may be marked one by one; beyond, they are sorted
_MOST_PATTERNS = 2**22


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

    def take(self, items: Int64[np.ndarray, " m"]) -> Packed:
        """Those items alone, in that order."""
        size = self.size[items]
        starts = np.concatenate([[0], np.cumsum(size)])
        rows = np.repeat(self.starts[items] - starts[:-1], size) + np.arange(starts[-1])
        return Packed(
            starts,
            self.cell[rows],
            *(None if a is None else a[b] for a, b in ((self.weight, rows), (self.gold, items), (self.times, items))),
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


def collapsed(packed: Packed, cells: Cells) -> tuple[Packed, Int64[np.ndarray, " i"] | None]:
    """Items with the same cells and gold as one with `times`, and the place of each item among them; as it was where that is not worth it.

    A few annotators with many items leave few patterns: an item is a number whose digit j is what annotator j said, or nothing.
    """
    base = cells.num_labels + 1
    size = packed.num_items * max(len(packed.cell), 1)
    if packed.weight is not None or packed.times is not None or size == 0:
        return packed, None
    if math.log2(cells.num_classes + 1) + cells.num_annotators * math.log2(base) > 62:
        return packed, None
    room = (cells.num_classes + 1) * base**cells.num_annotators
    digit = cells.label + 1, np.int64(base) ** cells.annotator
    said = (digit[0] * digit[1])[packed.cell]
    item = np.repeat(np.arange(packed.num_items), packed.size)
    pair = cells.annotator[packed.cell]
    met = np.zeros(packed.num_items * cells.num_annotators, bool)
    met[item * cells.num_annotators + pair] = True
    if np.count_nonzero(met) < len(pair):  # repeated pairs have no digit
        return packed, None
    code = np.zeros(packed.num_items, np.int64)
    filled = packed.size > 0
    code[filled] = np.add.reduceat(said, packed.starts[:-1][filled])
    if packed.gold is not None:
        code += (packed.gold.astype(np.int64) + 1) * base**cells.num_annotators
    if room <= _MOST_PATTERNS:
        counts = np.bincount(code, minlength=room)
        patterns = np.flatnonzero(counts)
        lookup = np.zeros(len(counts), np.int64)
        lookup[patterns] = np.arange(len(patterns))
        place, times = lookup[code], counts[patterns]
    else:
        patterns, place, times = np.unique(code, return_inverse=True, return_counts=True)
    if 2 * len(patterns) > packed.num_items:
        return packed, None
    first = np.zeros(len(patterns), np.int64)
    first[place[::-1]] = np.arange(packed.num_items)[::-1]
    return replace(packed.take(first), times=times.astype(np.float64)), place


def _places(key: Int64[np.ndarray, " n"], cells: Cells) -> Int32[np.ndarray, " n"]:
    room = cells.num_annotators * cells.num_labels
    if room > max(_MOST_FLAGS, len(key)):
        return cells.locate(key)
    lookup = np.full(room, -1, np.int32)
    lookup[cells.key] = np.arange(len(cells), dtype=np.int32)
    return lookup[key]

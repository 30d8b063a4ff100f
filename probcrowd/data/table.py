"""Annotations as codes, and packed by item for EM.

`Table` holds one row per annotation, with abstentions set apart. `Packed` sorts the rows by item and stores
each as one integer, its cell:

    cell p = a pair (annotator[p], label[p]) that occurs; parameters have K numbers per cell,
             e.g. table[p, k] = P(j says l | truth is k)
    item i has the cells cell[starts[i] : starts[i + 1]], weight w each, and stands for times[i] equal items

Pairs that never occur have no cell, so parameters take cells x K numbers and never annotators x K x K. Labels
may outnumber classes: an abstention that counts as an event is a label that is no class.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int32, Int64, Integer

from probcrowd.compute.compiled import fast
from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows, gold_codes

Abstentions = Literal["ignore", "event"]
Shares = TypeVar("Shares")
_MOST_FLAGS = 2**26  # pairs that are marked one by one; beyond, they are sorted
_ROWS_PER_RANGE, _ROWS_PER_CELL = 250_000, 4  # at least, so that a range's own table of counts costs little
_NONE, _NO_GOLD = np.zeros(0), np.zeros(0, np.int32)


@dataclass(frozen=True)
class Table:
    """Rows as codes: label[n] < len(classes) is a class, label[n] = len(classes) an abstention that counts
    as an event.

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
        """The rows sorted by item, for methods without abstentions."""
        order = np.argsort(self.item, kind="stable")
        sizes = len(self.annotators), len(self.classes)
        item, annotator, label = self.item[order], self.annotator[order], self.label[order]
        return Rows(item, annotator, label, self.weights[order], self.gold, *sizes)

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

    def select(self, rows: np.ndarray) -> Table:
        """Those rows alone; items and annotators keep their places."""
        parts = {name: getattr(self, name)[rows] for name in ("item", "annotator", "label")}
        return replace(self, **parts, weight=None if self.weight is None else self.weight[rows])


def read_table(
    annotations: Any,
    gold: pd.Series | None = None,
    *,
    abstention: Any = None,
    abstentions: Abstentions = "ignore",
    classes: pd.Index | None = None,
) -> Table:
    """Read the table of an `Annotations`, or of a data frame in long form.

    classes: those of a fit. Gold labels are then coded by them, and the table may have no abstention, or
    nothing else.

    Raises:
        TypeError: something else, or gold labels that are no Series by item id.
        ValueError: any fault of the table; an abstention that does not occur; gold labels that are none of
            the classes.
    """
    if isinstance(annotations, pd.DataFrame):
        annotations = Annotations.from_frame(annotations)
    if not isinstance(annotations, Annotations):
        raise TypeError(
            "annotations must be a data frame with item, annotator and label, or an Annotations, not "
            f"{type(annotations).__name__}: a matrix goes to Annotations.from_wide"
        )
    if not (gold is None or isinstance(gold, pd.Series)):
        raise TypeError(f"gold labels must be a Series by item id, not {type(gold).__name__}")
    given = annotations.classes
    silent = np.zeros(len(given), bool)
    if abstention is not None:
        silent = np.asarray(given.astype(object) == abstention, dtype=bool)
        if classes is None and not silent.any():
            raise ValueError(f"no row has the abstention label {abstention!r}; labels are {list(given[:10])}")
    if classes is None and silent.all():
        raise ValueError("every label is an abstention")
    code = np.where(silent, (~silent).sum(), np.cumsum(~silent) - 1)
    named, event = given[~silent], abstentions == "event" and bool(silent.any())
    columns = annotations.item, annotations.annotator, code[annotations.label], annotations.weight
    known = np.full(len(annotations.items), -1)
    if gold is not None:
        known = gold_codes(annotations.items, named if classes is None else classes, gold)
    table = Table(*columns, known, annotations.items, annotations.annotators, named, len(named) + event)
    return table if event else table.select(~silent[annotations.label])


@dataclass(frozen=True)
class Cells:
    """The (annotator, label) pairs that occur, as codes; labels >= num_classes are events, not classes."""

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
        key = np.concatenate([self.key, new])
        annotator, label = np.divmod(key, self.num_labels)
        return replace(self, annotator=annotator, label=label, num_annotators=num_annotators)

    def locate(self, key: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """The cell of each pair, -1 where it has none."""
        return pd.Index(self.key).get_indexer(key).astype(np.int32)


@dataclass(frozen=True)
class Packed:
    """Annotations by item. weight, gold and times are None where every one is 1, no class is known, every
    item stands for itself.
    """

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

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """starts, cell, weight, gold, times for compiled loops; empty arrays stand for None."""
        weight, gold, times = self.weight, self.gold, self.times
        optional = (_NONE if weight is None else weight, _NO_GOLD if gold is None else gold)
        return self.starts, self.cell, *optional, _NONE if times is None else times

    def take(self, items: Int64[np.ndarray, " m"]) -> Packed:
        """Those items alone, in that order."""
        size = self.size[items]
        starts = np.concatenate([[0], np.cumsum(size)])
        rows = np.repeat(self.starts[items] - starts[:-1], size) + np.arange(starts[-1])
        parts = (self.weight, rows), (self.gold, items), (self.times, items)
        return Packed(starts, self.cell[rows], *(None if a is None else a[b] for a, b in parts))

    def vote_shares(self, cells: Cells) -> Float64[np.ndarray, "i k"]:
        """Each class's share of an item's labels; its known class where there is gold; 1/K where no label is
        a class.
        """
        totals = np.zeros((self.num_items, cells.num_classes))
        in_ranges(lambda low, high: _add_votes(*self.arrays[:4], cells.label, low, high, totals), self)
        return vote_shares(totals, 1 / cells.num_classes)


def pack(
    item: Integer[np.ndarray, " n"],
    key: Int64[np.ndarray, " n"],
    cells: Cells,
    num_items: int,
    *,
    weight: Float64[np.ndarray, " n"] | None = None,
    gold: Integer[np.ndarray, " i"] | None = None,
) -> Packed:
    """Pack annotations by item; every pair of `key` has a cell. Rows may come in any order."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(item, minlength=num_items))])
    room = cells.num_annotators * cells.num_labels
    if room > max(_MOST_FLAGS, len(key)):
        cell = cells.locate(key)
    else:
        lookup = np.full(room, -1, np.int32)
        lookup[cells.key] = np.arange(len(cells), dtype=np.int32)
        cell = lookup[key]
    if (item[1:] < item[:-1]).any():
        order = np.argsort(item, kind="stable")
        cell, weight = cell[order], None if weight is None else weight[order]
    if gold is not None:
        gold = gold.astype(np.int32) if (gold >= 0).any() else None
    return Packed(starts, cell, None if weight is None or (weight == 1).all() else weight, gold)


def occurring(key: Int64[np.ndarray, " n"], num_annotators: int, num_labels: int, num_classes: int) -> Cells:
    """Return the cells of those pairs, ordered by annotator and label."""
    if num_annotators * num_labels <= max(_MOST_FLAGS, len(key)):
        flags = np.zeros(num_annotators * num_labels, bool)
        flags[key] = True
        pairs = np.flatnonzero(flags)
    else:
        pairs = np.sort(pd.unique(key))
    annotator, label = np.divmod(pairs, num_labels)
    return Cells(annotator, label, num_annotators, num_labels, num_classes)


def vote_shares(totals: Shares, empty: float = 0.0) -> Shares:
    """Divide votes (..., k) by their sum over classes; items without votes get `empty` for every class.
    NumPy or torch.
    """
    votes: Any = totals
    total = votes.sum(-1)[..., None]
    absent = (total == 0) + 0 * total  # 0 or 1, in the precision of the votes
    return votes / (total + absent) + absent * empty


def in_ranges(part: Callable[[int, int], Any], packed: Packed, num_cells: int = 0) -> list[Any]:
    """Run `part(low, high)` in threads, on up to eight contiguous ranges of items with about equally many
    rows; results in order.

    The ranges depend on the sizes alone, so sums over them have the same bits on any number of cores.
    """
    ranges = max(1, min(8, len(packed.cell) // max(_ROWS_PER_RANGE, _ROWS_PER_CELL * num_cells)))
    if ranges == 1:
        return [part(0, packed.num_items)]
    bounds = np.searchsorted(packed.starts, np.linspace(0, len(packed.cell), ranges + 1)[1:-1])
    bounds = [0, *map(int, bounds), packed.num_items]
    return list(_pool(os.getpid()).map(part, bounds[:-1], bounds[1:]))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of a process: after a fork, waiting for the parent's threads would never end."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8))


@fast
def _add_votes(
    starts: Any, cell: Any, weight: Any, gold: Any, label: Any, low: int, high: int, totals: Any
) -> None:
    for i in range(low, high):
        if gold.size and gold[i] >= 0:
            totals[i, gold[i]] = 1.0
            continue
        for n in range(starts[i], starts[i + 1]):
            if label[cell[n]] < totals.shape[1]:
                totals[i, label[cell[n]]] += weight[n] if weight.size else 1.0

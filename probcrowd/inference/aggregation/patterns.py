"""Items with the same labels by the same annotators are one pattern: a few annotators with many items leave few of them, and passes are over those.

An item is a number whose digit j, in base labels + 1, is what annotator j said, or 0; its known class, if it has one, is a digit more. The answer
is exact: equal items have equal responsibilities, and a pattern counts as often as it occurs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from probcrowd.compute.compiled import fast
from probcrowd.data.packed import Cells, Packed
from probcrowd.inference.aggregation.e_step import in_threads

_MOST_TABULATED = 2**22


def collapsed(packed: Packed, cells: Cells) -> tuple[Packed, Int64[np.ndarray, " i"] | None]:
    """The patterns with `times`, and the place of each item among them; or the items as they were, where that would not halve them.

    So it is with weights, with annotators who labelled an item twice, and where the numbers would not fit in 62 bits.
    """
    base = cells.num_labels + 1
    wide = math.log2(cells.num_classes + 1) + cells.num_annotators * math.log2(base) > 62
    if packed.weight is not None or packed.times is not None or not packed.num_items or wide:
        return packed, None
    power = np.int64(base) ** np.arange(cells.num_annotators + 1)
    code = np.zeros(packed.num_items, np.int64)
    gold = np.zeros(0, np.int32) if packed.gold is None else packed.gold
    owner = power[cells.annotator]
    parts = in_threads(
        lambda low, high: _number(
            packed.starts, packed.cell, gold, owner, cells.label, power[-1], base, low, high, code
        ),
        packed,
    )
    if not all(parts):
        return packed, None
    room = (cells.num_classes + 1) * base**cells.num_annotators
    if room <= _MOST_TABULATED:
        counts = np.bincount(code, minlength=room)
        patterns = np.flatnonzero(counts)
        lookup = np.zeros(room, np.int64)
        lookup[patterns] = np.arange(len(patterns))
        place, times = lookup[code], counts[patterns]
    else:
        patterns, place, times = np.unique(code, return_inverse=True, return_counts=True)
    if 2 * len(patterns) > packed.num_items:
        return packed, None
    example = np.zeros(len(patterns), np.int64)
    example[place] = np.arange(packed.num_items)
    return replace(packed.take(example), times=times.astype(np.float64)), place


@fast
def _number(
    starts: Any, cell: Any, gold: Any, owner: Any, label: Any, most: int, base: int, low: int, high: int, code: Any
) -> bool:  # fmt: skip
    """Fills the numbers of those items; false if an annotator labelled one of them twice."""
    for i in range(low, high):
        number = 0
        for n in range(starts[i], starts[i + 1]):
            p = cell[n]
            if (number // owner[p]) % base:
                return False
            number += (label[p] + 1) * owner[p]
        if gold.size:
            number += (gold[i] + 1) * most
        code[i] = number
    return True

"""The state of a simulated table while its labels are drawn, which effects change."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

Ids = Sequence[Hashable] | None


@dataclass
class Draw:
    """Labels while they are drawn: rows as codes, and what has been planted so far."""

    rng: np.random.Generator
    items: pd.Index
    annotators: pd.Index
    classes: pd.Index
    truth: Int64[np.ndarray, " i"]
    item: Int64[np.ndarray, " n"]
    annotator: Int64[np.ndarray, " n"]
    label: Int64[np.ndarray, " n"]
    confusion: Float64[np.ndarray, "j k l"]
    abstention: Hashable | None = None
    difficulty: Float64[np.ndarray, " i"] | None = None
    misleading: Int64[np.ndarray, " i"] | None = None
    copies: list[tuple[Hashable, ...]] = field(default_factory=list)
    cliques: list[tuple[Hashable, ...]] = field(default_factory=list)

    def members(self, ids: Ids) -> Int64[np.ndarray, " members"]:
        """Codes of annotators; None means all of them."""
        if ids is None:
            return np.arange(len(self.annotators))
        return find_codes(self.annotators, ids, "annotators")

    def rows_of(self, members: Int64[np.ndarray, " members"]) -> Int64[np.ndarray, " rows"]:
        """Positions of the annotators' rows."""
        return np.flatnonzero(np.isin(self.annotator, members))

    def replace(self, rows: Int64[np.ndarray, " rows"], probability: Any, labels: Any) -> None:
        """Give rows new labels, each with a probability."""
        replaced: Bool[np.ndarray, " rows"] = self.rng.random(len(rows)) < probability
        self.label[rows] = np.where(replaced, labels, self.label[rows])

    def mix(self, members: Int64[np.ndarray, " members"], probability: Any, new: Any) -> None:
        """Mix `new` into the members' confusion matrices with a probability."""
        self.confusion[members] = (1 - probability) * self.confusion[members] + probability * new

    def class_codes(self, *ids: Hashable) -> list[int]:
        """Codes of classes."""
        return find_codes(self.classes, ids, "classes").tolist()

    def choose_items(self, items: float | Sequence[Hashable]) -> Int64[np.ndarray, " chosen"]:
        """Codes of items: of a share of them, chosen at random, or of those given."""
        if not isinstance(items, float | int):
            return find_codes(self.items, items, "items")
        if not 0 <= items <= 1:
            raise ValueError(f"the share of hard or misleading items must be between 0 and 1, not {items}")
        return self.rng.permutation(len(self.truth))[: round(items * len(self.truth))]

    def mean_by_class(self, values: Float64[np.ndarray, " i"]) -> Float64[np.ndarray, "k 1"]:
        """Mean of the items' values for each true class; 0 for a class without items."""
        count = np.bincount(self.truth, minlength=len(self.classes))
        return (np.bincount(self.truth, values, len(self.classes)) / np.maximum(count, 1))[:, None]


def find_codes(known: pd.Index, ids: Sequence[Hashable], what: str) -> Int64[np.ndarray, " codes"]:
    """Positions of ids among the known ones.

    Raises:
        ValueError: an unknown or repeated id. TypeError: a text instead of a list.
    """
    if isinstance(ids, str):
        raise TypeError(f"{what} must be a list of ids, not the text {ids!r}")
    codes = known.get_indexer(pd.Index(list(ids), dtype=known.dtype if len(ids) == 0 else None))
    if (codes < 0).any() or len(set(codes.tolist())) < len(codes):
        raise ValueError(
            f"{what} {list(ids)}: each must be one of {known[:10].tolist()}{' ...' * (len(known) > 10)}, once"
        )
    return codes.astype(np.int64)

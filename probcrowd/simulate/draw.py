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

    def choose_items(self, share: float) -> Int64[np.ndarray, " chosen"]:
        """A share of the items, chosen at random."""
        return self.rng.permutation(len(self.truth))[: round(share * len(self.truth))]


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

"""Which annotator labels which item: (item, annotator) pairs without repetition, sorted by item.

    nothing given             every annotator labels every item
    labels_per_item = m       m different annotators for each item
    labels_per_annotator = m  m different items for each annotator; items may remain without labels
    observed = p              each pair with probability p, independently
    activity = s              annotator j has weight exp(s e[j]), e[j] ~ N(0, 1). Annotators of an item are
    drawn one
                              after the other with these weights, or numbers of items are proportional to them
    repeated = r              a share r of the items has `labels_per_item` labels, the others have one
    batches = b               items and annotators are cut into b groups; annotators label items of their
    group only

Memory is proportional to the pairs, never to items x annotators.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

_FEW_ANNOTATORS, _CELLS = 32, 2_000_000


@dataclass(frozen=True)
class Assignment:
    """The options above, validated. `labels_per_item`, `labels_per_annotator`, `observed` exclude each
    other."""

    labels_per_item: int | None = None
    labels_per_annotator: int | None = None
    observed: float | None = None
    activity: float = 0.0
    repeated: float = 1.0
    batches: int = 1

    def __post_init__(self) -> None:
        names = ("labels_per_item", "labels_per_annotator", "observed")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one")
        for name in names[:2]:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("observed", "repeated"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {share}")
        if not 0 <= self.activity < float("inf"):
            raise ValueError(f"activity must be finite and >= 0, not {self.activity}")
        if self.activity and (not given or self.observed is not None):
            raise ValueError("activity needs labels_per_item or labels_per_annotator")
        if self.repeated < 1 and self.labels_per_item is None:
            raise ValueError("repeated needs labels_per_item, the number of labels of those items")

    def groups(self, size: int, what: str) -> Int64[np.ndarray, " size"]:
        """The batch of each of `size` items or annotators: consecutive groups of nearly equal size."""
        if not 1 <= self.batches <= size:
            raise ValueError(
                f"batches must be between 1 and the number of {what}, {size}, not {self.batches}"
            )
        return np.arange(size) * self.batches // size

    def add_batches(self, covariates: pd.DataFrame | None, ids: pd.Index, what: str) -> pd.DataFrame | None:
        """Covariates with a column `batch`, where there are several batches."""
        if self.batches == 1:
            return covariates
        batch = [f"batch {group}" for group in self.groups(len(ids), what)]
        return (
            pd.DataFrame(index=ids).assign(batch=batch)
            if covariates is None
            else covariates.assign(batch=batch)
        )

    def pairs(
        self, rng: np.random.Generator, num_items: int, num_annotators: int
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Items and annotators of the pairs, sorted by item."""
        of_item, of_annotator = self.groups(num_items, "items"), self.groups(num_annotators, "annotators")
        items, annotators = [], []
        for batch in range(self.batches):
            inside, members = np.flatnonzero(of_item == batch), np.flatnonzero(of_annotator == batch)
            item, annotator = self._pairs_of_batch(rng, len(inside), len(members))
            items.append(inside[item])
            annotators.append(members[annotator])
        return np.concatenate(items), np.concatenate(annotators)

    def _pairs_of_batch(
        self, rng: np.random.Generator, num_items: int, num_annotators: int
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        weight = np.exp(self.activity * rng.normal(size=num_annotators))
        if self.labels_per_item is not None:
            size = self.labels_per_item
            if size > num_annotators:
                raise ValueError(
                    f"labels_per_item={size} needs as many annotators, there are {num_annotators}"
                )
            count = np.ones(num_items, np.int64)
            count[rng.permutation(num_items)[: round(self.repeated * num_items)]] = size
            chosen = _choose_distinct(rng, num_items, weight, size)
            return np.repeat(np.arange(num_items), count), chosen[np.arange(size) < count[:, None]]
        if self.labels_per_annotator is not None:
            if self.labels_per_annotator > num_items:
                raise ValueError(
                    f"labels_per_annotator={self.labels_per_annotator} needs as many items, not {num_items}"
                )
            count = np.rint(self.labels_per_annotator * weight / weight.mean()).astype(np.int64)
            count = count.clip(1, num_items)
        else:
            count = rng.binomial(num_items, 1.0 if self.observed is None else self.observed, num_annotators)
        item = np.concatenate([rng.choice(num_items, size, replace=False) for size in count.tolist()])
        annotator = np.repeat(np.arange(num_annotators), count)
        order = np.lexsort((annotator, item))
        return item[order].astype(np.int64), annotator[order]


def _choose_distinct(
    rng: np.random.Generator, num_rows: int, weight: Float64[np.ndarray, " j"], count: int
) -> Int64[np.ndarray, "rows count"]:
    """Draw `count` different annotators for each row, one after the other, in proportion to `weight`."""
    if len(weight) <= max(_FEW_ANNOTATORS, 2 * count):
        # The annotators with the smallest waiting times, in their order, have this distribution
        size = max(1, _CELLS // len(weight))
        parts = [min(size, num_rows - begin) for begin in range(0, num_rows, size)]
        waiting = (rng.exponential(size=(part, len(weight))) / weight for part in parts)
        return np.concatenate([np.argsort(times, axis=1)[:, :count] for times in waiting])
    cumulative = weight.cumsum() / weight.sum()
    cumulative[-1] = 1.0
    chosen = np.empty((num_rows, count), np.int64)
    for column in range(count):
        open_rows = np.arange(num_rows)
        while len(open_rows):  # draw again where the annotator already has the item
            annotator = np.searchsorted(cumulative, rng.random(len(open_rows)), side="right")
            chosen[open_rows, column] = annotator
            open_rows = open_rows[(chosen[open_rows, :column] == annotator[:, None]).any(1)]
    return chosen

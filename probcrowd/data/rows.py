"""Annotations as plain arrays, which every declaration without a batch of tasks takes: Pyro, NumPyro and the
Gibbs sampler read the same record.

row n: annotator[n] gave item[n] label[n], counted weight[n] times;   gold[i] = known class of item i, or -1
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from probcrowd.data.annotations import Annotations
from probcrowd.data.covariates import Covariates
from probcrowd.data.validation import reject


@dataclass(frozen=True)
class Rows:
    """Annotations sorted by item. The arrays are NumPy's, or JAX's inside a compiled function; sizes are
    known beforehand.

    An item without rows keeps its place and tells nothing; so does an annotator.
    """

    item: Int[Any, " n"]
    annotator: Int[Any, " n"]
    label: Int[Any, " n"]
    weight: Float[Any, " n"]
    gold: Int[Any, " i"]
    num_annotators: int
    num_classes: int
    annotator_covariates: Covariates = field(default_factory=Covariates)
    item_covariates: Covariates = field(default_factory=Covariates)

    @property
    def num_items(self) -> int:
        """The number of items, with or without rows."""
        return self.gold.shape[0]

    @property
    def vote_totals(self) -> Float[np.ndarray, "i k"]:
        """The weight of each label among an item's rows (see `vote_shares`)."""
        cells = np.asarray(self.item) * self.num_classes + np.asarray(self.label)
        totals = np.bincount(cells, np.asarray(self.weight, float), self.num_items * self.num_classes)
        return totals.reshape(-1, self.num_classes).astype(float, copy=False)  # integers without rows

    @staticmethod
    def from_annotations(annotations: Annotations, gold: pd.Series | None = None) -> Rows:
        """The rows of a table, in a stable order by item.

        gold: the known class of some items, by item id, in the user's own labels; those of other items are
        ignored.

        Raises:
            ValueError: gold labels that are none of the classes, or an item with two of them.
        """
        order = np.argsort(annotations.item, kind="stable")
        weight = np.ones(len(annotations)) if annotations.weight is None else annotations.weight[order]
        return Rows(
            annotations.item[order],
            annotations.annotator[order],
            annotations.label[order],
            weight,
            gold_codes(annotations.items, annotations.classes, gold),
            annotations.num_annotators,
            annotations.num_classes,
            Covariates.from_frame(annotations.annotator_covariates),
            Covariates.from_frame(annotations.item_covariates),
        )


def gold_codes(items: pd.Index, classes: pd.Index, gold: pd.Series | None) -> Int[np.ndarray, " i"]:
    """Return the known class of each item as a position in `classes`, -1 where it is unknown."""
    if gold is None:
        return np.full(len(items), -1, dtype=np.int64)
    known = gold.loc[gold.notna() & gold.index.isin(items)]
    reject(
        known.index.duplicated(keep=False),
        pd.Series(known.index),
        "items with more than one gold label: keep one each",
    )
    codes = classes.get_indexer(known.to_numpy())
    message = f"gold labels that are none of the classes {list(classes[:10])}"
    reject(codes < 0, known, f"{message}: declare `classes`, or correct the labels")
    return pd.Series(codes, index=known.index).reindex(items, fill_value=-1).to_numpy(np.int64)

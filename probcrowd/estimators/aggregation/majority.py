"""Majority vote; ties are reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probcrowd.data.table import Table
from probcrowd.data.validation import check_option
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.results import Fitted, ItemResults, known_labels


@dataclass(kw_only=True, eq=False, repr=False)
class MajorityVote(Aggregator):
    """Each label's share of an item's labels; the class with the highest share wins. `class_prior_` is the
    mean of the shares over items.

    Where classes tie, `items_["tied"]` is true, `score` counts 1/m for a tie of m classes, and `predict`
    chooses one according to `ties`.

    Args:
        ties: with "expected" and "first" `predict` returns the first of the tied classes, and with "first"
            `score` counts that class only; "random": `predict` draws one of them.
        random_state: the seed of "random".
        dependence: "warn" if annotators err together, or "ignore".
        abstention: the label that stands for an abstention; such rows are no votes.
    """

    ties: Literal["expected", "random", "first"] = "expected"
    random_state: int = 0

    unknown = "vote like all others"

    def score(self, annotations: Any, gold: pd.Series) -> float:
        """Return the share of items with gold whose label is right; with ties="expected", 1/m in a tie of m
        classes.
        """
        if self.ties == "expected":
            return super().score(annotations, gold)
        label = self.predict(annotations)
        known = known_labels(gold, label.index)
        return float((label.loc[known.index].to_numpy() == known.to_numpy()).mean())

    def _check(self) -> None:
        super()._check()
        check_option("ties", self.ties, ("expected", "random", "first"))

    def _solve(self, table: Table) -> Fitted:
        return self._summarise(table, self._predict(table), np.zeros(0), True)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        cells = table.cells
        return table.packed(cells).vote_shares(cells)

    def _item_frame(self, results: ItemResults) -> pd.DataFrame:
        frame = super()._item_frame(results)
        if self.ties == "random" and bool(np.asarray(frame["tied"]).any()):
            best = results.best
            drawn = np.random.default_rng(self.random_state).random(best.shape)
            frame["label"] = self.classes_.take(np.where(best, drawn, -1.0).argmax(1))
        return frame

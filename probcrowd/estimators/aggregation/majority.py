"""Majority vote, with ties said."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.options import check_option
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.item_answers import ItemResults, known_of
from probcrowd.inference.aggregation.e_step import votes


class MajorityVote(Aggregator):
    """Each label's share of an item's labels; the class with the highest share wins.

    Where classes tie, `items_["tied"]` is true, `score` counts 1/m for m of them, and `predict` names one as `ties` says.

    Args:
        ties: "expected" and "first": `predict` names the first class in order, and "first" also `score`s that one alone; "random": one drawn.
        random_state: the seed of "random".
        dependence: "warn" if annotators err together, or "ignore".
        abstention: the label that stands for an abstention; such rows are no votes.
    """

    def __init__(
        self,
        *,
        ties: Literal["expected", "random", "first"] = "expected",
        random_state: int = 0,
        dependence: str = "warn",
        abstention: Any = None,
    ) -> None:
        self.ties = ties
        self.random_state = random_state
        self.dependence = dependence
        self.abstention = abstention

    _unknown = "vote like all others"

    def _check(self) -> None:
        super()._check()
        check_option("ties", self.ties, ("expected", "random", "first"))

    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        cells = table.cells
        packed = table.packed(cells)
        shares = votes(packed, cells)
        self._count(packed, cells, shares)
        self._answer(table, shares, np.zeros(0), True)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        cells = table.cells
        return votes(table.packed(cells), cells)

    def _frame(self, answered: ItemResults) -> pd.DataFrame:
        frame = super()._frame(answered)
        if self.ties == "random" and bool(np.asarray(frame["tied"]).any()):
            best = answered.best
            drawn = np.random.default_rng(self.random_state).random(best.shape)
            frame["label"] = self.classes_.take(np.where(best, drawn, -1.0).argmax(1))
        return frame

    def score(self, annotations: Any, gold: pd.Series) -> float:
        """The share of items with gold whose label is right; with ties="expected", 1/m in a tie of m classes."""
        if self.ties == "expected":
            return super().score(annotations, gold)
        label = self.predict(annotations)
        known = known_of(gold, label.index)
        return float((label.loc[known.index].to_numpy() == known.to_numpy()).mean())

    @property
    def class_prior_(self) -> pd.Series:
        """Mean of the vote shares over items, by class."""
        check_is_fitted(self, "classes_")
        counts = self._counts.class_count
        return pd.Series(counts / counts.sum(), self.classes_.rename("class"), name="class_prior")

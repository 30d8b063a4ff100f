"""Aggregators with parameters of both annotators and items: GLAD, minimax entropy and KOS."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.results import Fitted
from probcrowd.inference.aggregation.glad import fit_glad, new_items_glad
from probcrowd.inference.aggregation.kos import fit_kos, new_items_kos
from probcrowd.inference.aggregation.minimax import fit_minimax, new_items_minimax
from probcrowd.inference.aggregation.result import Result


@dataclass(kw_only=True, eq=False, repr=False)
class ItemModel(Aggregator):
    """An aggregator with parameters of items. Classes are equally likely a priori unless the method has a
    class prior.

    Confusion matrices are posterior means given the label probabilities, under the prior "accurate".
    """

    unknown = "are left out"

    @abc.abstractmethod
    def _fit_rows(self, rows: Rows, classes: pd.Index) -> Result:
        """Run the method."""

    @abc.abstractmethod
    def _predict_rows(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        """Return label probabilities of items outside the fit, labelled by annotators of the fit."""

    def _solve(self, table: Table) -> Fitted:
        result = self._fit_rows(table.rows, table.classes)
        uniform = np.full(len(table.classes), 1 / len(table.classes))
        prior = result.parameters.get("class_prior", uniform)
        parts = result.probabilities, result.objective, result.converged
        return self._summarise(table, *parts, prior, result.parameters)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        number = len(self._fitted.annotators)
        return self._predict_rows(replace(table.select(table.annotator < number).rows, num_annotators=number))

    def _by_annotator(self, name: str) -> pd.Series:
        fitted = self._record
        return pd.Series(fitted.model[name], pd.Index(fitted.annotators, name="annotator"), name=name)

    def _by_item(self, name: str) -> pd.Series:
        fitted = self._record
        return pd.Series(fitted.model[name], pd.Index(fitted.items.items, name="item"), name=name)


@dataclass(kw_only=True, eq=False, repr=False)
class GLAD(ItemModel):
    """Abilities of annotators and ease of items (Whitehill et al. 2009): P(right) = sigmoid(ability *
    exp(log_ease)), both with priors Normal(1, 1).

    Args:
        max_iter: largest number of iterations. tolerance: the gain in log posterior per item below which
            the fit has converged.
        dependence, abstention: as for `DawidSkene`.
    """

    max_iter: int = 100
    tolerance: float = 1e-6

    def _fit_rows(self, rows: Rows, classes: pd.Index) -> Result:
        return fit_glad(rows, max_iter=self.max_iter, tolerance=self.tolerance)

    def _predict_rows(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_glad(rows, self._fitted.model)

    @property
    def ability_(self) -> pd.Series:
        """Ability by annotator: 0 is guessing, below 0 labels are wrong more often than by guessing."""
        return self._by_annotator("ability")

    @property
    def log_ease_(self) -> pd.Series:
        """Log ease by item: the lower, the harder."""
        return self._by_item("log_ease")


@dataclass(kw_only=True, eq=False, repr=False)
class MinimaxEntropy(ItemModel):
    """Minimax conditional entropy (Zhou et al. 2012): labels are a softmax of scores of the annotator and
    scores of the item, both regularised.

    Args:
        annotator_penalty, item_penalty: ridge penalties; None: 0.25 K^2, and 0.25 K^2 times the
            mean number of labels per annotator over that per item.
        max_iter: largest number of rounds.
        dependence, abstention: as for `DawidSkene`.
    """

    annotator_penalty: float | None = None
    item_penalty: float | None = None
    max_iter: int = 50

    def _fit_rows(self, rows: Rows, classes: pd.Index) -> Result:
        return fit_minimax(
            rows,
            annotator_penalty=self.annotator_penalty,
            item_penalty=self.item_penalty,
            max_iter=self.max_iter,
        )

    def _predict_rows(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_minimax(rows, self._fitted.model)


@dataclass(kw_only=True, eq=False, repr=False)
class KOS(ItemModel):
    """Message passing for two classes (Karger, Oh and Shah 2011), averaged over several random starts.

    Args:
        restarts: the number of starts. random_state: their seed. max_iter: largest number of rounds.
        dependence, abstention: as for `DawidSkene`.
    """

    restarts: int = 10
    random_state: int = 0
    max_iter: int = 100

    def _fit_rows(self, rows: Rows, classes: pd.Index) -> Result:
        return fit_kos(rows, seed=self.random_state, restarts=self.restarts, max_iter=self.max_iter)

    def _predict_rows(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_kos(rows, self._fitted.model)

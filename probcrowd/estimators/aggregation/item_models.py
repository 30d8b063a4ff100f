"""Aggregators with parameters of items as well: GLAD, minimax entropy, and KOS, whose messages run between items and annotators."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.inference.aggregation.glad import fit_glad, new_items_glad
from probcrowd.inference.aggregation.kos import fit_kos, new_items_kos
from probcrowd.inference.aggregation.minimax import fit_minimax, new_items_minimax
from probcrowd.inference.aggregation.result import Answer


class ItemModel(Aggregator):
    """An aggregator whose `Answer` comes from rows. Classes are equally likely a priori; confusion matrices are posterior means given the
    label probabilities, under the prior "accurate"."""

    _unknown = "are left out"

    @abc.abstractmethod
    def _solve(self, rows: Rows) -> Answer:
        """The method's answer."""

    @abc.abstractmethod
    def _solve_new(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        """Label probabilities of other items by annotators of the fit."""

    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        answer = self._solve(table.rows)
        self._parameters = answer.parameters
        cells = table.cells
        self._count(table.packed(cells), cells, answer.probabilities)
        self._answer(table, answer.probabilities, answer.objective, answer.converged)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        known = table.annotator < len(self._annotator_ids)
        rows = replace(table.kept(known).rows, num_annotators=len(self._annotator_ids))
        return self._solve_new(rows)

    @property
    def class_prior_(self) -> pd.Series:
        """The known class prior, uniform, by class."""
        check_is_fitted(self, "classes_")
        return pd.Series(1 / len(self.classes_), self.classes_.rename("class"), name="class_prior")

    def _by_annotator(self, name: str) -> pd.Series:
        check_is_fitted(self, "classes_")
        return pd.Series(self._parameters[name], pd.Index(self._annotator_ids, name="annotator"), name=name)

    def _by_item(self, name: str) -> pd.Series:
        check_is_fitted(self, "classes_")
        return pd.Series(self._parameters[name], pd.Index(self._answered.items, name="item"), name=name)


class GLAD(ItemModel):
    """Abilities of annotators and ease of items (Whitehill et al. 2009): P(right) = sigmoid(ability * exp(log_ease)), both with priors Normal(1, 1).

    Args:
        max_iter: iterations, at most. tolerance: the gain of log posterior per item at which it has converged.
        dependence, abstention: as for `DawidSkene`.
    """

    def __init__(
        self,
        *,
        max_iter: int = 100,
        tolerance: float = 1e-6,
        dependence: str = "warn",
        abstention: Any = None,
    ) -> None:
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.dependence = dependence
        self.abstention = abstention

    def _solve(self, rows: Rows) -> Answer:
        return fit_glad(rows, max_iter=self.max_iter, tolerance=self.tolerance)

    def _solve_new(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_glad(rows, self._parameters)

    @property
    def ability_(self) -> pd.Series:
        """By annotator; 0 is guessing, below it is against the truth."""
        return self._by_annotator("ability")

    @property
    def log_ease_(self) -> pd.Series:
        """By item; the lower, the harder."""
        return self._by_item("log_ease")


class MinimaxEntropy(ItemModel):
    """Minimax conditional entropy (Zhou et al. 2012): labels are a softmax of scores of the annotator and scores of the item, both regularised.

    Args:
        annotator_penalty, item_penalty: ridge penalties; None: 0.25 K^2, and that times annotators' mean labels over items' mean labels.
        max_iter: rounds, at most.
        dependence, abstention: as for `DawidSkene`.
    """

    def __init__(
        self,
        *,
        annotator_penalty: float | None = None,
        item_penalty: float | None = None,
        max_iter: int = 50,
        dependence: str = "warn",
        abstention: Any = None,
    ) -> None:
        self.annotator_penalty = annotator_penalty
        self.item_penalty = item_penalty
        self.max_iter = max_iter
        self.dependence = dependence
        self.abstention = abstention

    def _solve(self, rows: Rows) -> Answer:
        return fit_minimax(
            rows,
            annotator_penalty=self.annotator_penalty,
            item_penalty=self.item_penalty,
            max_iter=self.max_iter,
        )

    def _solve_new(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_minimax(rows, self._parameters)


class KOS(ItemModel):
    """Message passing for two classes (Karger, Oh and Shah 2011), as the mean over several random starts.

    Args:
        restarts: the number of starts. random_state: their seed. max_iter: rounds of messages, at most.
        dependence, abstention: as for `DawidSkene`.
    """

    def __init__(
        self,
        *,
        restarts: int = 10,
        random_state: int = 0,
        max_iter: int = 100,
        dependence: str = "warn",
        abstention: Any = None,
    ) -> None:
        self.restarts = restarts
        self.random_state = random_state
        self.max_iter = max_iter
        self.dependence = dependence
        self.abstention = abstention

    def _solve(self, rows: Rows) -> Answer:
        return fit_kos(rows, seed=self.random_state, restarts=self.restarts, max_iter=self.max_iter)

    def _solve_new(self, rows: Rows) -> Float64[np.ndarray, "i k"]:
        return new_items_kos(rows, self._parameters)

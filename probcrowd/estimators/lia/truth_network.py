"""Aggregators with a network h(x) that tells an item's class from its features alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import Standardiser, like_the_fit, numeric
from probcrowd.data.files import by_item
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.fitted import Learned
from probcrowd.inference.lia.em import Fitted
from probcrowd.models.lia.prior import Inputs


class NetworkAggregator(Aggregator):
    """What `LIA` and `TwoStage` share."""

    _learned: Learned
    _standards: tuple[Standardiser | None, Standardiser | None]
    _truth: Float64[np.ndarray, "i k"]

    def predict_items(self, features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
        """h(x) by item (rows) and class: of items that nobody has labelled. `features`: as in `fit`, with the same columns.

        Raises:
            ValueError: the fit had no features, or others.
        """
        check_is_fitted(self, "classes_")
        asked = by_item(features, "features")
        found = self._learned.class_probabilities(self._seen(asked))
        return pd.DataFrame(found, pd.Index(asked.index, name="item"), self.classes_.rename("class"))

    @property
    def truth_probabilities_(self) -> pd.DataFrame:
        """h(x) of the fitted items, by item and class: what the network says of their features alone."""
        check_is_fitted(self, "classes_")
        return pd.DataFrame(
            self._truth.copy(), pd.Index(self._answered.items, name="item"), self.classes_.rename("class")
        )

    @property
    def class_prior_(self) -> pd.Series:
        """Mean of h(x) over the fitted items, by class."""
        check_is_fitted(self, "classes_")
        return pd.Series(self._truth.mean(0), self.classes_.rename("class"), name="class_prior")

    @property
    def parameters_(self) -> dict[str, np.ndarray]:
        """What the networks learned, by site of the declared model (`probcrowd.models.lia.lia`)."""
        check_is_fitted(self, "classes_")
        return {name: value.numpy().copy() for name, value in self._learned.parameters.items()}

    @property
    def inputs_(self) -> Inputs:
        """What the networks saw of the fitted items and annotators: features less their mean, of mean square 1."""
        check_is_fitted(self, "classes_")
        return self._learned.inputs

    def _install(
        self,
        table: Table,
        inputs: Inputs,
        standards: tuple[Standardiser | None, Standardiser | None],
        fitted: Fitted,
        told: Float64[np.ndarray, "i k"],
    ) -> None:
        """Sets what answers are made of; `told`: label probabilities of the items."""
        parameters = {name: value.double() for name, value in fitted.parameters.items()}
        self._learned = Learned(parameters, inputs, len(table.classes))
        self._standards, self._truth = standards, fitted.truth
        cells = table.cells
        self._count(table.packed(cells), cells, told)
        self._answer(table, told, fitted.values, fitted.converged)

    def _seen(self, asked: pd.DataFrame, which: int = 0) -> Float64[np.ndarray, "i w"]:
        """Features as the networks saw those of the fit; `which`: 0 of items, 1 of annotators."""
        name = ("features", "annotator_features")[which]
        self._width(name, which)
        standard = self._standards[which]
        assert standard is not None
        return standard.apply(numeric(like_the_fit(asked, standard, name), name).to_numpy())

    def _width(self, name: str, which: int) -> int:
        standard = self._standards[which]
        if standard is None:
            raise ValueError(f"the fit had no {name}: give them to `fit` for answers about others")
        return len(standard.mean) if standard.axes is None else standard.axes.shape[1]

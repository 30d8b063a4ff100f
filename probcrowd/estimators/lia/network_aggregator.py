"""Aggregators with a network h(x) that predicts an item's class from its features alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.features import Standardiser, in_order, numeric
from probcrowd.data.files import by_item, some
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.fitted import FittedLIA
from probcrowd.estimators.results import Fitted
from probcrowd.models.lia.prior import Inputs


class NetworkAggregator(Aggregator):
    """What `LIA` and `TwoStage` share. `class_prior_` is the mean of h(x) over the fitted items."""

    @property
    def _network(self) -> FittedLIA:
        return self._fitted.model

    def predict_items(self, features: pd.DataFrame | np.ndarray) -> pd.DataFrame:
        """h(x) by item and class, for items without labels. features: as in `fit`, with the same columns.

        Raises:
            ValueError: the fit had no features, or other columns.
        """
        check_is_fitted(self, "classes_")
        frame = by_item(features, "features")
        seen = self._standardise(frame, "features")
        return self._truth_frame(self._network.truth_at(np.full(len(frame), -1), seen), frame.index)

    @property
    def truth_probabilities_(self) -> pd.DataFrame:
        """h(x) of the fitted items, by item and class: predictions from features alone."""
        check_is_fitted(self, "classes_")
        return self._truth_frame(self._network.truth.copy(), self._fitted.items.items)

    @property
    def parameters_(self) -> dict[str, np.ndarray]:
        """The networks' parameters by site of the model (`probcrowd.models.lia.lia`)."""
        check_is_fitted(self, "classes_")
        return {name: value.numpy().copy() for name, value in self._network.parameters.items()}

    @property
    def inputs_(self) -> Inputs:
        """The networks' inputs of the fitted items and annotators: centred, with mean square 1."""
        check_is_fitted(self, "classes_")
        return self._network.inputs

    def _truth_frame(self, probabilities: Float64[np.ndarray, "i k"], items: pd.Index) -> pd.DataFrame:
        return pd.DataFrame(probabilities, pd.Index(items, name="item"), self.classes_.rename("class"))

    def _summarise_networks(
        self, table: Table, network: FittedLIA, probabilities: Float64[np.ndarray, "i k"]
    ) -> Fitted:
        """The record of the fit. probabilities: of the items' labels."""
        parts = network.values, network.converged, network.truth.mean(0), network
        return self._summarise(table, probabilities, *parts)

    def _standardise(self, frame: pd.DataFrame, name: str) -> Float64[np.ndarray, "i w"]:
        """Features as inputs of the networks. name: "features" of items or "annotator_features"."""
        standard = self._standard(name)
        return standard.apply(numeric(in_order(frame, standard.columns, name), name).to_numpy())

    def _standard(self, name: str) -> Standardiser:
        standard = self._network.standards[("features", "annotator_features").index(name)]
        if standard is None:
            raise ValueError(f"the fit had no {name}: pass them to `fit` to predict from them")
        return standard


def positions(ids: pd.Index, chosen: Any, name: str) -> Int64[np.ndarray, " p"]:
    """The positions of one id or several, all of them for None.

    Raises:
        ValueError: ids that are not in the fit.
    """
    if chosen is None:
        return np.arange(len(ids))
    chosen = pd.Index([chosen] if isinstance(chosen, str) or np.ndim(chosen) == 0 else chosen)
    place = ids.get_indexer(chosen)
    if (place < 0).any():
        raise ValueError(f"{name} that are not in the fit: {some(chosen[place < 0])}; it has {some(ids)}")
    return place.astype(np.int64)

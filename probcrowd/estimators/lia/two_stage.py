"""Aggregate, then train: a network learned from the label probabilities of another aggregator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.special import xlogy
from sklearn.base import clone

from probcrowd.data.features import standardised
from probcrowd.data.files import some
from probcrowd.data.table import Table
from probcrowd.data.validation import check_whole
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.fitted import FittedLIA
from probcrowd.estimators.lia.network_aggregator import NetworkAggregator
from probcrowd.estimators.results import Fitted
from probcrowd.inference.lia.em import Schedule, fit_lia
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.prior import Inputs, LIAPrior


@dataclass(kw_only=True, eq=False, repr=False)
class TwoStage(NetworkAggregator):
    """The truth network of `LIA`, trained on the label probabilities of another aggregator.

    These are the two-stage baselines MAJ*, MMCE* (and, without features, MAJ*-E, MMCE*-E) of Platanios et al.
    2020, table 2. The answer for an item, labelled or not, is h(x): it depends on the item's own labels only
    through the training. Without features every item has an embedding, learned from its own label
    probabilities alone: with less than about two hundred items the default prior holds all of these at zero,
    and every item gets the same answer; `LIAPrior(truth=3)` is wide enough.

    Args:
        aggregator: the first stage, unfitted. None: `MajorityVote`.
        prior: the network's sizes, its scales `truth` and `class_logit`, and `item_embedding`; what concerns
            annotators has no effect.
        steps: maximum number of L-BFGS steps on the expected log likelihood plus log prior.
        random_state: the seed of the initial values.
        dependence, abstention: as for `DawidSkene`; the first stage has its own.
    """

    aggregator: Aggregator | None = None
    prior: LIAPrior | None = None
    steps: int = 500
    random_state: int = 0
    dependence: str = "ignore"

    unknown = "are ignored: predictions depend on features alone"

    def fit(
        self,
        annotations: Any,
        gold: pd.Series | None = None,
        *,
        history: pd.DataFrame | None = None,
        features: Any = None,
    ) -> TwoStage:
        """Fit the first stage (`aggregator_`), then the network; returns this estimator.

        Args:
            gold, history: for the first stage. The network learns from gold, but the answer is h(x) all the
                same.
            features: numbers by item, as for `LIA.fit`.

        Raises:
            TypeError, ValueError: invalid tables, items without features, what the first stage refuses.
        """
        given = annotations, gold, history, features
        return self._fit(annotations, gold, lambda table: self._solve(table, *given))

    def _solve(
        self,
        table: Table,
        annotations: Any,
        gold: pd.Series | None,
        history: pd.DataFrame | None,
        features: Any,
    ) -> Fitted:
        item, standard = standardised(features, table.items, "features")
        first: Any = (
            MajorityVote(dependence="ignore", abstention=self.abstention)
            if self.aggregator is None
            else clone(self.aggregator)
        )
        self.aggregator_: Aggregator = first.fit(annotations, gold, history=history)
        if set(first.classes_) != set(table.classes):
            raise ValueError(
                f"the first stage has the classes {some(first.classes_)}, the table {some(table.classes)}: "
                "give both stages the same abstention"
            )
        targets = first.probabilities_.reindex(index=table.items, columns=table.classes).to_numpy()
        # Labels have had their effect in the first stage
        rows = replace(table.select(table.item < 0).rows, gold=np.full(len(table.items), -1))
        prior, seed = LIAPrior() if self.prior is None else self.prior, int(self.random_state)
        schedule, inputs = Schedule(1, self.steps, 0), Inputs(item)
        fitted = fit_lia(rows, inputs, prior, OBJECTIVES["joint"], schedule, seed=seed, start=targets)
        fitted = replace(fitted, values=fitted.values + xlogy(targets, fitted.truth).sum())
        return self._summarise_networks(table, FittedLIA.of(fitted, inputs, (standard, None)), fitted.truth)

    def _check(self) -> None:
        super()._check()
        if not (self.aggregator is None or isinstance(self.aggregator, Aggregator)):
            raise ValueError(f"aggregator={self.aggregator!r}: give one such as DawidSkene(), or None")
        if not (self.prior is None or isinstance(self.prior, LIAPrior)):
            raise ValueError(f"prior={self.prior!r}: give a LIAPrior, or None")
        check_whole("steps", self.steps)
        check_whole("random_state", self.random_state, 0)

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        return self._network.truth_at(self._fitted.items.items.get_indexer(table.items))

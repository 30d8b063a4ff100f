"""Aggregate, then train: what a network learns from the labels that another aggregator made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import xlogy
from sklearn.base import clone

from probcrowd.data.features import standardised
from probcrowd.data.files import some
from probcrowd.data.options import check_whole
from probcrowd.data.table import Table
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.truth_network import NetworkAggregator
from probcrowd.inference.lia.em import Schedule, fit_lia
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.prior import Inputs, LIAPrior


class TwoStage(NetworkAggregator):
    """The truth network of `LIA`, trained on the label probabilities of another aggregator: the two-stage baselines MAJ*, MMCE* (and, without
    features, MAJ*-E, MMCE*-E) of Platanios et al. 2020, table 2.

    The answer for an item, labelled or not, is h(x): it does not hear what was said of that item, but what was said of items like it. Without
    features every item has an embedding, learned from its own label probabilities alone: on less than some two hundred items the default prior
    holds all of these at zero, and every item gets the same answer; `LIAPrior(truth=3)` lets them go.

    Args:
        aggregator: the first stage, not fitted. None: `MajorityVote`.
        prior: the network's size, its spreads `truth` and `class_logit`, and `item_embedding`; what it says of annotators has no effect.
        steps: L-BFGS steps on the expected log likelihood plus log prior, at most.
        random_state: the seed of the start.
        dependence, abstention: as for `DawidSkene`; the first stage has its own.
    """

    _unknown = "were not heard: answers are made from features alone"

    def __init__(
        self,
        aggregator: Aggregator | None = None,
        *,
        prior: LIAPrior | None = None,
        steps: int = 500,
        random_state: int = 0,
        dependence: str = "ignore",
        abstention: Any = None,
    ) -> None:
        self.aggregator = aggregator
        self.prior = prior
        self.steps = steps
        self.random_state = random_state
        self.dependence = dependence
        self.abstention = abstention

    def fit(
        self,
        annotations: Any,
        gold: pd.Series | None = None,
        *,
        history: pd.DataFrame | None = None,
        features: Any = None,
    ) -> TwoStage:
        """This estimator, fitted; `aggregator_` is the first stage. features: numbers by item, as for `LIA.fit`.

        gold, history: for the first stage. The network learns from gold; its answer is h(x) all the same.

        Raises:
            TypeError, ValueError: tables that cannot be read, items without features, what the first stage refuses.
        """
        self._fitted(
            annotations, gold, lambda table: self._train(table, annotations, gold, history, features)
        )
        return self

    def _train(
        self,
        table: Table,
        annotations: Any,
        gold: pd.Series | None,
        history: pd.DataFrame | None,
        features: Any,
    ) -> None:
        item, standard = standardised(features, table.items, "features")
        first: Any = (
            MajorityVote(dependence="ignore", abstention=self.abstention)
            if self.aggregator is None
            else clone(self.aggregator)
        )
        self.aggregator_: Aggregator = first.fit(annotations, gold, history=history)
        if set(first.classes_) != set(table.classes):
            words = "do both stages have the same abstention?"
            raise ValueError(
                f"the first stage has the classes {some(first.classes_)}, the table {some(table.classes)}: {words}"
            )
        told = first.probabilities_.reindex(index=table.items, columns=table.classes).to_numpy()
        # Nobody is heard a second time
        rows = replace(table.kept(table.item < 0).rows, gold=np.full(len(table.items), -1))
        schedule = Schedule(1, self.steps, 0)
        prior = LIAPrior() if self.prior is None else self.prior
        fitted = fit_lia(
            rows, Inputs(item), prior, OBJECTIVES["joint"], schedule, seed=int(self.random_state), start=told
        )
        fitted = replace(fitted, values=fitted.values + xlogy(told, fitted.truth).sum())
        self._install(table, Inputs(item), (standard, None), fitted, fitted.truth)

    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        raise NotImplementedError  # `fit` trains

    def _check(self) -> None:
        super()._check()
        if not (self.aggregator is None or isinstance(self.aggregator, Aggregator)):
            raise ValueError(f"aggregator={self.aggregator!r}: give one such as DawidSkene(), or None")
        if not (self.prior is None or isinstance(self.prior, LIAPrior)):
            raise ValueError(f"prior={self.prior!r}: give a LIAPrior, or None")
        for name, least in (("steps", 1), ("random_state", 0)):
            check_whole(name, getattr(self, name), least)

    def _predict(self, table: Table) -> Any:
        return self._learned.truth(self._answered.items.get_indexer(table.items))

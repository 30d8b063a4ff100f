"""The methods of the LIA paper's tables, and those that it should have been compared with, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone

from probcrowd.data.features import standardised
from probcrowd.data.table import read_table
from probcrowd.estimators.aggregation.coins import OneCoin
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.estimators.aggregation.item_models import MinimaxEntropy
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.aggregation.snorkel import SnorkelLabelModel
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.network_aggregator import NetworkAggregator
from probcrowd.estimators.lia.options import resolve_prior, resolve_schedule
from probcrowd.estimators.lia.two_stage import TwoStage
from probcrowd.inference.lia.em import State, fit_lia, predict
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.lia import LIABatch
from probcrowd.models.lia.prior import Inputs, LIAPrior
from probcrowd.models.priors import CoinPrior, DirichletPrior

_SMOOTHED = DirichletPrior(np.full(2, 1.01), np.full((2, 2), 1.01))
_IBCC = DirichletPrior(np.ones(2), np.eye(2) * 3 + 1)
_COIN = CoinPrior(np.ones(2), 4.0, 1.0)
_FREE = LIAPrior(truth=10.0)  # for item embeddings, which a narrower prior shrinks to nothing
_ALONE: dict[str, Any] = {"dependence": "ignore"}
_MODE: dict[str, Any] = {"dependence": "ignore", "confidence": "plug-in"}
Answers = dict[str, pd.DataFrame]  # probabilities by item and class, under the name of the answer


@dataclass(frozen=True)
class Method:
    """estimator: is cloned and gets the seed of the cell.

    published: its column in the paper's table 2 or 3, if any. features: none for aggregators of labels; a
    truth network without features learns an embedding of each item instead. by_stage: also the answers before
    the last steps (equation 9). slow: takes minutes per set and redundancy.
    """

    estimator: Aggregator
    published: str | None = None
    features: bool = True
    shuffled: bool = False
    by_stage: bool = False
    slow: bool = False

    def fit(self, labels: pd.DataFrame, features: pd.DataFrame, seed: int) -> Answers:
        """Class probabilities from the labels: "labels" by annotations, "h(x)" by the truth network alone."""
        model: Any = clone(self.estimator)
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        if self.shuffled:
            order = np.random.default_rng(seed).permutation(np.asarray(features.index))
            features = features.set_axis(order, axis=0)
        inputs = features if self.features else None
        if self.by_stage:
            return _answers_by_stage(model, labels, inputs, seed)
        if not isinstance(self.estimator, NetworkAggregator):
            return {"labels": model.fit(labels).probabilities_}
        fitted = model.fit(labels, features=inputs)
        answers = {"labels": fitted.probabilities_}
        return answers if isinstance(fitted, TwoStage) else answers | {"h(x)": fitted.truth_probabilities_}


def _answers_by_stage(lia: LIA, labels: pd.DataFrame, features: pd.DataFrame | None, seed: int) -> Answers:
    """Answers of LIA with a published objective, after EM and after the last steps."""
    table, objective = read_table(labels), OBJECTIVES[lia.objective]
    inputs = Inputs(standardised(features, table.items, "features")[0])
    after_em: list[State] = []

    def keep(state: State) -> None:
        if state.unit == lia.rounds:
            after_em.append(state)

    prior, schedule = resolve_prior(lia), resolve_schedule(lia)
    fitted = fit_lia(table.rows, inputs, prior, objective, schedule, seed=seed, keep=keep)
    posterior, truth, _ = predict(
        after_em[0].parameters, LIABatch.of(table.rows, inputs, torch.float32), objective
    )
    answers = {"labels": fitted.posterior, "h(x)": fitted.truth}
    answers |= {"labels before equation 9": posterior, "h(x) before equation 9": truth}
    return {
        name: pd.DataFrame(np.asarray(value, np.float64), table.items, table.classes)
        for name, value in answers.items()
    }


METHODS: dict[str, Method] = {
    "majority vote": Method(MajorityVote(**_ALONE), "majority vote"),
    "Dawid-Skene (MAP)": Method(DawidSkene(**_MODE)),
    "Dawid-Skene +.01": Method(DawidSkene(prior=_SMOOTHED, **_MODE)),
    "Dawid-Skene": Method(DawidSkene(**_ALONE)),
    "iBCC": Method(DawidSkene(prior=_IBCC, confidence="variational", **_ALONE)),
    "one coin": Method(OneCoin(prior=_COIN, **_MODE)),
    "MMCE": Method(MinimaxEntropy(**_ALONE), "MMCE"),
    "Snorkel 0.10": Method(SnorkelLabelModel(**_ALONE), "MeTaL"),
    "MAJ*": Method(TwoStage(), "MAJ*"),
    "MAJ*-E": Method(TwoStage(prior=_FREE), "MAJ*-E", features=False),
    "MMCE*": Method(TwoStage(aggregator=MinimaxEntropy(**_ALONE)), "MMCE*"),
    "MMCE*-E": Method(TwoStage(aggregator=MinimaxEntropy(**_ALONE), prior=_FREE), "MMCE*-E", features=False),
    "LIA joint": Method(LIA(**_ALONE), "LIA"),
    "LIA joint, held-out spreads": Method(LIA(prior="held-out", **_ALONE), "LIA", slow=True),
    "LIA joint, EM only": Method(LIA(last_steps=0, **_ALONE), "LIA before equation 9"),
    "LIA joint, shuffled features": Method(LIA(**_ALONE), shuffled=True),
    "LIA-E joint": Method(LIA(**_ALONE), "LIA-E", features=False),
    "LIA composite": Method(LIA(objective="composite", **_ALONE), "LIA"),
    "LIA as written": Method(LIA(objective="as_written"), "LIA", by_stage=True, slow=True),
    "LIA as coded": Method(LIA(objective="as_coded"), "LIA", by_stage=True, slow=True),
    "LIA-E as written": Method(
        LIA(objective="as_written"), "LIA-E", features=False, by_stage=True, slow=True
    ),
}

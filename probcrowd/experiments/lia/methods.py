"""The methods of the LIA paper's tables, and those that it should have been compared with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

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
_FREE = LIAPrior(truth=10.0)  # of embeddings: with less the prior would rather have none
Answers = dict[str, pd.DataFrame]  # probabilities by item and class, under the name of who answers


@dataclass(frozen=True)
class Method:
    """fit: answers from labels drawn, features and a seed. published: the column of the paper's table 2 or 3 that says how it did there.

    slow: minutes per set and redundancy.
    """

    fit: Callable[[pd.DataFrame, pd.DataFrame, int], Answers]
    published: str | None = None
    slow: bool = False


def _aggregated(
    make: Callable[[int], Aggregator], labels: pd.DataFrame, features: pd.DataFrame, seed: int
) -> Answers:
    return {"labels": make(seed).fit(labels).probabilities_}


def _network(
    make: Callable[[int], Any], how: str, labels: pd.DataFrame, features: pd.DataFrame, seed: int
) -> Answers:
    """Answers of an aggregator with a truth network. how: what it sees of items: features, shuffled features, nothing."""
    seen: pd.DataFrame | None = features
    if how == "shuffled":
        seen = features.set_axis(np.random.default_rng(seed).permutation(np.asarray(features.index)), axis=0)
    fitted: NetworkAggregator = make(seed).fit(labels, features=None if how == "nothing" else seen)
    found = {"labels": fitted.probabilities_}
    return found if isinstance(fitted, TwoStage) else found | {"h(x)": fitted.truth_probabilities_}


def _stages(lia: LIA, how: str, labels: pd.DataFrame, features: pd.DataFrame, seed: int) -> Answers:
    """Answers of LIA with a published objective, after EM and after the last steps."""
    table, objective = read_table(labels), OBJECTIVES[lia.objective]
    inputs = Inputs(None if how == "nothing" else standardised(features, table.items, "features")[0])
    after_em: list[State] = []

    def keep(state: State) -> None:
        if state.unit == lia.rounds:
            after_em.append(state)

    fitted = fit_lia(
        table.rows, inputs, resolve_prior(lia), objective, resolve_schedule(lia), seed=seed, keep=keep
    )
    posterior, truth, _ = predict(
        after_em[0].parameters, LIABatch.of(table.rows, inputs, torch.float32), objective
    )
    found = {
        "labels": fitted.posterior,
        "h(x)": fitted.truth,
        "labels before equation 9": posterior,
        "h(x) before equation 9": truth,
    }
    return {
        name: pd.DataFrame(np.asarray(value, np.float64), table.items, table.classes)
        for name, value in found.items()
    }


METHODS: dict[str, Method] = {
    "majority vote": Method(
        partial(_aggregated, lambda seed: MajorityVote(dependence="ignore")), "majority vote"
    ),
    "Dawid-Skene (MAP)": Method(
        partial(_aggregated, lambda seed: DawidSkene(confidence="plug-in", dependence="ignore"))
    ),
    "Dawid-Skene +.01": Method(
        partial(
            _aggregated, lambda seed: DawidSkene(prior=_SMOOTHED, confidence="plug-in", dependence="ignore")
        )
    ),
    "Dawid-Skene": Method(partial(_aggregated, lambda seed: DawidSkene(dependence="ignore"))),
    "iBCC": Method(
        partial(
            _aggregated, lambda seed: DawidSkene(prior=_IBCC, confidence="variational", dependence="ignore")
        )
    ),
    "one coin": Method(
        partial(_aggregated, lambda seed: OneCoin(prior=_COIN, confidence="plug-in", dependence="ignore"))
    ),
    "MMCE": Method(partial(_aggregated, lambda seed: MinimaxEntropy(dependence="ignore")), "MMCE"),
    "Snorkel 0.10": Method(
        partial(_aggregated, lambda seed: SnorkelLabelModel(random_state=seed, dependence="ignore")), "MeTaL"
    ),
    "MAJ*": Method(partial(_network, lambda seed: TwoStage(random_state=seed), "features"), "MAJ*"),
    "MAJ*-E": Method(
        partial(_network, lambda seed: TwoStage(prior=_FREE, random_state=seed), "nothing"), "MAJ*-E"
    ),
    "MMCE*": Method(
        partial(
            _network,
            lambda seed: TwoStage(aggregator=MinimaxEntropy(dependence="ignore"), random_state=seed),
            "features",
        ),
        "MMCE*",
    ),
    "MMCE*-E": Method(
        partial(
            _network,
            lambda seed: TwoStage(
                aggregator=MinimaxEntropy(dependence="ignore"), prior=_FREE, random_state=seed
            ),
            "nothing",
        ),
        "MMCE*-E",
    ),
    "LIA joint": Method(
        partial(_network, lambda seed: LIA(random_state=seed, dependence="ignore"), "features"), "LIA"
    ),
    "LIA joint, held-out spreads": Method(
        partial(
            _network, lambda seed: LIA(prior="held-out", random_state=seed, dependence="ignore"), "features"
        ),
        "LIA",
        slow=True,
    ),
    "LIA joint, EM only": Method(
        partial(_network, lambda seed: LIA(last_steps=0, random_state=seed, dependence="ignore"), "features"),
        "LIA before equation 9",
    ),
    "LIA joint, shuffled features": Method(
        partial(_network, lambda seed: LIA(random_state=seed, dependence="ignore"), "shuffled")
    ),
    "LIA-E joint": Method(
        partial(_network, lambda seed: LIA(random_state=seed, dependence="ignore"), "nothing"), "LIA-E"
    ),
    "LIA composite": Method(
        partial(
            _network,
            lambda seed: LIA(objective="composite", random_state=seed, dependence="ignore"),
            "features",
        ),
        "LIA",
    ),
    "LIA as written": Method(partial(_stages, LIA(objective="as_written"), "features"), "LIA", slow=True),
    "LIA as coded": Method(partial(_stages, LIA(objective="as_coded"), "features"), "LIA", slow=True),
    "LIA-E as written": Method(partial(_stages, LIA(objective="as_written"), "nothing"), "LIA-E", slow=True),
}

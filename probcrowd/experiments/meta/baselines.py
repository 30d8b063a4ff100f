"""Logistic regression and random forests on the items' own inputs and aggregated labels, one fit per task."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from probcrowd.compute.threads import one_thread
from probcrowd.inference.meta.maml import GradientSteps, label_probabilities
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.episodes import Episodes, EpisodeSource

STRENGTHS = (0.1, 1.0, 10.0)  # inverse penalties of logistic regression
TREES = 50
# Probability of a class that a classifier excludes or never saw: 0 would give a query an infinite log loss
LEAST = 1e-3


def input_classifiers(
    kind: Literal["logistic", "forest"],
    labels: Literal["majority-vote", "dawid-skene"],
    source: EpisodeSource,
    episodes: Episodes,
    prior: Prior,
    seed: int,
) -> dict[str, Float[Tensor, "b q k"]]:
    """Log class probabilities of the queries by setting, which is the penalty of logistic regression.

    An item counts once for each class that its labels leave possible, with the probability as weight.
    """
    classes = label_probabilities(episodes, GradientSteps(labels, prior=prior), torch.float64).cpu().numpy()
    support, queries = (
        source.inputs(index).flatten(2).cpu().numpy() for index in (episodes.support, episodes.query)
    )
    results: dict[str, list[np.ndarray]] = {}
    with one_thread():
        for task in range(len(classes)):
            item, label = np.nonzero(classes[task] > LEAST)
            weight = classes[task][item, label]
            for name, model in _models(kind, seed).items():
                probabilities = np.full((queries.shape[1], classes.shape[2]), 0.0)
                if len(np.unique(label)) == 1:
                    probabilities[:, label[0]] = 1.0
                else:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ConvergenceWarning)
                        model.fit(support[task][item], label, sample_weight=weight)
                    probabilities[:, model.classes_] = model.predict_proba(queries[task])
                results.setdefault(name, []).append(probabilities)
    device = episodes.query.device
    return {
        name: _smoothed_logs(torch.from_numpy(np.stack(parts))).to(device) for name, parts in results.items()
    }


def _models(kind: str, seed: int) -> dict[str, Any]:
    if kind == "forest":
        return {"": RandomForestClassifier(TREES, random_state=seed)}
    return {f"C = {strength:g}": LogisticRegression(C=strength, max_iter=200) for strength in STRENGTHS}


def _smoothed_logs(probabilities: Tensor) -> Tensor:
    return ((1 - LEAST * probabilities.shape[-1]) * probabilities + LEAST).log().float()

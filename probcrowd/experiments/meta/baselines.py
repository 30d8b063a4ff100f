"""Classifiers of the items' own inputs, without any network: logistic regression and random forests on aggregated labels, one fit per task."""

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
LEAST = 1e-3  # probability of a class that a classifier excludes, or has never seen; else a single query has an infinite log loss


def input_classifiers(
    kind: Literal["logistic", "forest"],
    labels: Literal["majority-vote", "dawid-skene"],
    source: EpisodeSource,
    episodes: Episodes,
    prior: Prior,
    seed: int,
) -> dict[str, Float[Tensor, "b q k"]]:
    """Log class probabilities of the queries by setting: of the penalty, or of nothing.

    An item takes part once for each class that its labels leave possible, with that weight.
    """
    known = label_probabilities(episodes, GradientSteps(labels, prior=prior), torch.float64).cpu().numpy()
    support, queries = (
        source.inputs(index).flatten(2).cpu().numpy() for index in (episodes.support, episodes.query)
    )
    found: dict[str, list[np.ndarray]] = {}
    with one_thread():
        for task in range(len(known)):
            item, label = np.nonzero(known[task] > LEAST)
            weight = known[task][item, label]
            for name, model in _models(kind, seed).items():
                probabilities = np.full((queries.shape[1], known.shape[2]), 0.0)
                if len(np.unique(label)) == 1:
                    probabilities[:, label[0]] = 1.0
                else:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore", ConvergenceWarning)
                        model.fit(support[task][item], label, sample_weight=weight)
                    probabilities[:, model.classes_] = model.predict_proba(queries[task])
                found.setdefault(name, []).append(probabilities)
    device = episodes.query.device
    return {
        name: _smoothed_logs(torch.from_numpy(np.stack(parts))).to(device) for name, parts in found.items()
    }


def _models(kind: str, seed: int) -> dict[str, Any]:
    if kind == "forest":
        return {"": RandomForestClassifier(TREES, random_state=seed)}
    return {f"C = {strength:g}": LogisticRegression(C=strength, max_iter=200) for strength in STRENGTHS}


def _smoothed_logs(probabilities: Tensor) -> Tensor:
    kept = (1 - LEAST * probabilities.shape[-1]) * probabilities + LEAST
    return kept.log().float()

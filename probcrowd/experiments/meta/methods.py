"""The methods compared: how each one predicts target tasks, and the grid that validation tasks choose from.

LR, RF    logistic regression, random forest on the items' inputs; labels by majority (MV) or Dawid-Skene (DS)
Pr, Ma    prototypical network, MAML, meta-trained on clean labels; MV or DS
CL, CNAL  a network with a crowd layer, or common noise adaptation layers, fitted to each task;
          untrained before, or (M) the prototypical network
w/o PA    the paper's method, meta-trained without pseudo-annotators
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probcrowd.experiments.meta.baselines import input_classifiers
from probcrowd.experiments.meta.networks import VARIANTS, network_settings
from probcrowd.inference.meta import em
from probcrowd.inference.meta.adaptation import Method, predict
from probcrowd.inference.meta.fine_tune import FineTuning, fine_tune
from probcrowd.inference.meta.maml import GradientSteps, maml_predict
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.network import evaluating, new_network
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import Episodes, EpisodeSource

OURS = "EM, J = 2"
DAWID_SKENE_STEPS, GRADIENT_STEPS, FITTED_STEPS, FITTED_RATE = (1, 2, 3, 10), (1, 5, 10), (5, 15, 40), 1e-2
TIE_NOISE, TEMPERATURES = 0.01, (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)  # noise in votes
Labels = Literal["majority-vote", "dawid-skene"]
# By setting: log class probabilities of queries, and the fitted parameters if the method has any
Answers = dict[str, tuple[Tensor, em.Parameters | None]]


@dataclass(frozen=True)
class Context:
    """What a method predicts from: the settings of the split, its network, how that adapts, and the tasks."""

    settings: MetaTraining
    network: nn.Module
    method: Method
    source: EpisodeSource
    episodes: Episodes
    generator: torch.Generator


@dataclass(frozen=True)
class Entry:
    """A method: the group of its row, the network it needs, if any, and its predictions."""

    group: Literal["baseline", "control", "paper", "beyond"]
    network: str | None
    predict: Callable[[Context], Answers]


def network_and_method(
    settings: MetaTraining, entry: Entry, input_shape: tuple[int, ...], device: torch.device
) -> tuple[nn.Module, Method]:
    """The trained network of a method, or an untrained one, and how it adapts."""
    if entry.network is None:
        return new_network(settings, input_shape, None).to(device), settings.adaptation.method
    run = load_run(network_settings(settings, entry.network).out)
    adaptation = (
        run.settings.adaptation if run.settings.adaptation.learner == "prototypes" else settings.adaptation
    )
    return run.encoder.to(device), adaptation.method


def _adapt(context: Context, methods: Mapping[str, Method]) -> Answers:
    with evaluating(context.network):
        return {
            name: predict(context.network, context.source, context.episodes, method)
            for name, method in methods.items()
        }


def _prototypes(context: Context, **changes: Any) -> Answers:
    return _adapt(context, {"": replace(context.method, **changes)})


def _dawid_skene(context: Context) -> Answers:
    methods = {f"{steps} steps": replace(context.method, steps=steps) for steps in DAWID_SKENE_STEPS}
    return _adapt(context, methods)


def _calibrated(context: Context) -> Answers:
    log_classes, parameters = _prototypes(context)[""]
    return {
        f"temperature {value:g}": (torch.log_softmax(log_classes / value, -1), parameters)
        for value in TEMPERATURES
    }


def _maml(labels: Labels, context: Context) -> Answers:
    answers: Answers = {}
    for steps in GRADIENT_STEPS:
        method = GradientSteps(labels, steps, context.settings.adaptation.rate, context.method.prior)
        scores = maml_predict(context.network, context.source, context.episodes, method)
        answers[f"{steps} steps"] = scores, None
    return answers


def _fine_tune(channel: Literal["crowd-layer", "conal"], context: Context) -> Answers:
    method = FineTuning(channel, FITTED_STEPS, FITTED_RATE)
    by_steps = fine_tune(context.network, context.source, context.episodes, method, context.generator)
    return {f"{steps} steps": (scores, None) for steps, scores in by_steps.items()}


def _classify_inputs(kind: Literal["logistic", "forest"], labels: Labels, context: Context) -> Answers:
    prior, seed = context.method.prior, context.settings.seed
    by_setting = input_classifiers(kind, labels, context.source, context.episodes, prior, seed)
    return {name: (scores, None) for name, scores in by_setting.items()}


METHODS: dict[str, Entry] = {
    "LRMV": Entry("baseline", None, partial(_classify_inputs, "logistic", "majority-vote")),
    "LRDS": Entry("baseline", None, partial(_classify_inputs, "logistic", "dawid-skene")),
    "RFMV": Entry("baseline", None, partial(_classify_inputs, "forest", "majority-vote")),
    "RFDS": Entry("baseline", None, partial(_classify_inputs, "forest", "dawid-skene")),
    "PrMV": Entry("baseline", "prototypes", partial(_prototypes, labels="majority-vote")),
    "PrDS": Entry("baseline", "prototypes", _dawid_skene),
    "MaMV": Entry("baseline", "maml", partial(_maml, "majority-vote")),
    "MaDS": Entry("baseline", "maml", partial(_maml, "dawid-skene")),
    "CL": Entry("baseline", None, partial(_fine_tune, "crowd-layer")),
    "MCL": Entry("baseline", "prototypes", partial(_fine_tune, "crowd-layer")),
    "CNAL": Entry("baseline", None, partial(_fine_tune, "conal")),
    "MCNAL": Entry("baseline", "prototypes", partial(_fine_tune, "conal")),
    "w/o PA": Entry("baseline", "em-clean", _prototypes),
    "PrDS + PA": Entry("control", "labels", _dawid_skene),
    "EM, J = 1": Entry("control", "em-1", _prototypes),
    OURS: Entry("paper", "em-2", _prototypes),
    "EM, J = 3": Entry("paper", "em-3", _prototypes),
    "tie-noise": Entry("beyond", "em-2", partial(_prototypes, tie_noise=TIE_NOISE)),
    **{name: Entry("beyond", name, _prototypes) for name in VARIANTS},
    "J = 2, calibrated": Entry("beyond", "em-2", _calibrated),
    "w/o PA, calibrated": Entry("beyond", "em-clean", _calibrated),
    "best, calibrated": Entry("beyond", "best", _calibrated),
}

"""The methods of the meta-learning experiment: what each makes of target tasks, with the settings of which validation tasks choose.

LR, RF    logistic regression, random forest on the items' own inputs; labels by majority vote (MV) or Dawid-Skene (DS)
Pr, Ma    prototypical network, MAML, meta-trained on clean labels; MV or DS
CL, CNAL  a network with a crowd layer, or common noise adaptation layers, fitted to each task; from the start or (M) from the prototypical network
w/o PA    the paper's method, meta-trained without pseudo-annotators
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

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
Answers = dict[
    str, tuple[Tensor, em.Parameters | None]
]  # by setting: log class probabilities of queries, and what was fitted
Answer = Callable[[EpisodeSource, Episodes, torch.Generator], Answers]
DAWID_SKENE_STEPS, GRADIENT_STEPS, FITTED_STEPS, FITTED_RATE = (1, 2, 3, 10), (1, 5, 10), (5, 15, 40), 1e-2
TIE_NOISE, TEMPERATURES = 0.01, (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0)  # noise in votes


@dataclass(frozen=True)
class Entry:
    """A method: the group of its row, and the network it needs, if any."""

    group: Literal["baseline", "control", "paper", "beyond"]
    network: str | None
    answer: Callable[["Context"], Answer]


@dataclass(frozen=True)
class Context:
    """What a method is given: the settings of the split, its network, and how that adapts."""

    settings: MetaTraining
    network: nn.Module
    method: Method


def context(
    settings: MetaTraining, entry: Entry, input_shape: tuple[int, ...], device: torch.device
) -> Context:
    """The context of one method, with its trained network, or with one as it starts."""
    if entry.network is None:
        return Context(
            settings, new_network(settings, input_shape, None).to(device), settings.adaptation.method
        )
    run = load_run(network_settings(settings, entry.network).out)
    method = (
        run.settings.adaptation.method
        if run.settings.adaptation.learner == "prototypes"
        else settings.adaptation.method
    )
    return Context(settings, run.encoder.to(device), method)


def _prototypes(context: Context) -> Answer:
    return _adapted(context, {"": context.method})


def _votes(context: Context) -> Answer:
    return _adapted(context, {"": replace(context.method, labels="majority-vote")})


def _parted(context: Context) -> Answer:
    return _adapted(context, {"": replace(context.method, tie_noise=TIE_NOISE)})


def _tempered(context: Context) -> Answer:
    plain = _prototypes(context)

    def answer(source: EpisodeSource, episodes: Episodes, generator: torch.Generator) -> Answers:
        ((log_classes, parameters),) = plain(source, episodes, generator).values()
        return {
            f"temperature {value:g}": (torch.log_softmax(log_classes / value, -1), parameters)
            for value in TEMPERATURES
        }

    return answer


def _dawid_skene(context: Context) -> Answer:
    return _adapted(
        context, {f"{steps} steps": replace(context.method, steps=steps) for steps in DAWID_SKENE_STEPS}
    )


def _adapted(context: Context, methods: Mapping[str, Method]) -> Answer:
    def answer(source: EpisodeSource, episodes: Episodes, generator: torch.Generator) -> Answers:
        with evaluating(context.network):
            return {
                name: predict(context.network, source, episodes, method) for name, method in methods.items()
            }

    return answer


def _maml(labels: Literal["majority-vote", "dawid-skene"]) -> Callable[[Context], Answer]:
    def made(context: Context) -> Answer:
        def answer(source: EpisodeSource, episodes: Episodes, generator: torch.Generator) -> Answers:
            found: Answers = {}
            for steps in GRADIENT_STEPS:
                method = GradientSteps(labels, steps, context.settings.adaptation.rate, context.method.prior)
                found[f"{steps} steps"] = maml_predict(context.network, source, episodes, method), None
            return found

        return answer

    return made


def _fitted(channel: Literal["crowd-layer", "conal"]) -> Callable[[Context], Answer]:
    def made(context: Context) -> Answer:
        def answer(source: EpisodeSource, episodes: Episodes, generator: torch.Generator) -> Answers:
            method = FineTuning(channel, FITTED_STEPS, FITTED_RATE)
            found = fine_tune(context.network, source, episodes, method, generator)
            return {f"{steps} steps": (scores, None) for steps, scores in found.items()}

        return answer

    return made


def _inputs(
    kind: Literal["logistic", "forest"], labels: Literal["majority-vote", "dawid-skene"]
) -> Callable[[Context], Answer]:
    def made(context: Context) -> Answer:
        def answer(source: EpisodeSource, episodes: Episodes, generator: torch.Generator) -> Answers:
            found = input_classifiers(
                kind, labels, source, episodes, context.method.prior, context.settings.seed
            )
            return {name: (scores, None) for name, scores in found.items()}

        return answer

    return made


METHODS: dict[str, Entry] = {
    "LRMV": Entry("baseline", None, _inputs("logistic", "majority-vote")),
    "LRDS": Entry("baseline", None, _inputs("logistic", "dawid-skene")),
    "RFMV": Entry("baseline", None, _inputs("forest", "majority-vote")),
    "RFDS": Entry("baseline", None, _inputs("forest", "dawid-skene")),
    "PrMV": Entry("baseline", "prototypes", _votes),
    "PrDS": Entry("baseline", "prototypes", _dawid_skene),
    "MaMV": Entry("baseline", "maml", _maml("majority-vote")),
    "MaDS": Entry("baseline", "maml", _maml("dawid-skene")),
    "CL": Entry("baseline", None, _fitted("crowd-layer")),
    "MCL": Entry("baseline", "prototypes", _fitted("crowd-layer")),
    "CNAL": Entry("baseline", None, _fitted("conal")),
    "MCNAL": Entry("baseline", "prototypes", _fitted("conal")),
    "w/o PA": Entry("baseline", "em-clean", _prototypes),
    "PrDS + PA": Entry("control", "labels", _dawid_skene),
    "EM, J = 1": Entry("control", "em-1", _prototypes),
    OURS: Entry("paper", "em-2", _prototypes),
    "EM, J = 3": Entry("paper", "em-3", _prototypes),
    "tie-noise": Entry("beyond", "em-2", _parted),
    **{name: Entry("beyond", name, _prototypes) for name in VARIANTS},
    "J = 2, calibrated": Entry("beyond", "em-2", _tempered),
    "w/o PA, calibrated": Entry("beyond", "em-clean", _tempered),
    "best, calibrated": Entry("beyond", "best", _tempered),
}

"""The networks of the meta-learning experiment: of the paper, its baselines, controls and variants."""

from __future__ import annotations

from probcrowd.inference.meta.adaptation import FLAT_COUNT, FLAT_PRECISION
from probcrowd.runs.meta.configuration import Adaptation, Annotators, MetaTraining

_PRIOR = ("precision", "class_count", "label_count", "scale")
_AVERAGED = {"inference": "variational", "average_prototypes": False}
_BEST = {
    **_AVERAGED,
    "steps": 5,
    "population": True,
    "separate": True,
    "learned": ("precision", "class_count", "scale", "temperature", "population"),
}
# What differs from the paper's J = 2, by the name of the network
PAPER = {
    "em-2": {},
    "em-clean": {"pseudo_annotators": False},
    "prototypes": {
        "labels": "dawid-skene",
        "pseudo_annotators": False,
        "precision": FLAT_PRECISION,
        "class_count": FLAT_COUNT,
    },
    "maml": {"learner": "maml", "steps": 5, "pseudo_annotators": False},
}
CONTROLS = {"em-1": {"steps": 1}, "em-3": {"steps": 3}, "labels": {"labels": "dawid-skene"}}
VARIANTS = {
    "learned-prior": {"learned": _PRIOR},
    "diagonal": {"accuracy": 0.65},
    "variational": {"inference": "variational"},
    "averaged": _AVERAGED,
    "population": {**_AVERAGED, "population": True},
    "random-annotators": {},
    "half-clean": {"clean_share": 0.5},
    "separate": {"separate": True, "learned": (*_PRIOR, "temperature")},
    "best": _BEST,
    "best-random": _BEST,
}
RANDOM = ("random-annotators", "best-random")  # pseudo-annotators of random number, kinds and missingness
RANDOM_CROWD = Annotators(
    expert=0.1, hammer=0.5, spammer=0.2, flipper=0.1, class_spammer=0.1, observed=0.4, random=True
)
RANDOM_NUMBERS = (2, 3, 4, 5, 6, 7, 10)
NETWORKS = {**PAPER, **CONTROLS, **VARIANTS}


def network_settings(settings: MetaTraining, name: str) -> MetaTraining:
    """The settings to train one network, in its own folder below `settings.out`."""
    adaptation = Adaptation.model_validate({**settings.adaptation.model_dump(), **NETWORKS[name]})
    changed = settings.model_copy(update={"adaptation": adaptation, "out": settings.out / "networks" / name})
    if name not in RANDOM:
        return changed
    episode = settings.episode.model_copy(update={"annotators": RANDOM_NUMBERS})
    return changed.model_copy(update={"annotators": RANDOM_CROWD, "episode": episode})

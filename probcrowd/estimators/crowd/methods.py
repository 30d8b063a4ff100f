"""The ways to learn a classifier from annotators that `CrowdClassifier` knows, by name, with their strengths and their published starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.annotations import Annotations
from probcrowd.data.options import find_name
from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.models.crowd.aggregated_labels import Targets, majority
from probcrowd.models.crowd.base import ConfusionChannel, diagonal_logit, diagonal_logits, normalise_rows
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.models.crowd.doctor_net import DoctorNet
from probcrowd.models.crowd.max_mig import MaxMIG
from probcrowd.models.crowd.mbem import MBEM
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.crowd.raykar import Raykar
from probcrowd.models.crowd.union_net import UnionNet

Start = float | Literal["published"]


@dataclass(frozen=True)
class Task:
    """What a channel is made for: the labels it may train on, as arrays and as tensors, and the width of what the last layer sees."""

    rows: Rows
    labels: AnnotationTensors
    num_features: int

    @property
    def num_classes(self) -> int:
        """Classes, those that nobody named included."""
        return self.rows.num_classes

    @property
    def num_annotators(self) -> int:
        """Annotators, those all of whose labels are held out included."""
        return self.rows.num_annotators


@dataclass(frozen=True)
class Method:
    """make: a channel, from a task, the logit on the diagonal at the start, the strength of the method's term, and options of its own.

    strength: of its term, None where it has none. published: the logit of its published start; None where it starts at no diagonal.
    """

    make: Callable[..., ConfusionChannel]
    strength: float | None = None
    published: float | None = None


def _mixture(
    term: str | None, task: Task, size: float, strength: float, running: bool = False
) -> ConfusionChannel:
    terms = {} if term is None else {term: strength}
    logits = diagonal_logits(size, task.num_annotators, task.num_classes).to(task.labels.weight.device)
    if term != "truth_volume" and running:
        raise ValueError("options: running=True is for geocrowdnet-f")
    return Mixture(logits, **terms, running=running, num_items=len(task.labels.items))


def _votes(task: Task, size: float, strength: float, soft: bool = False) -> ConfusionChannel:
    votes = task.labels.votes(task.num_classes)
    return Targets(normalise_rows(votes) if soft else majority(votes), task.labels, task.num_annotators)


def _dawid_skene(task: Task, size: float, strength: float, soft: bool = True) -> ConfusionChannel:
    found = _posterior(task)
    return Targets(found if soft else majority(found), task.labels, task.num_annotators)


def _crowd_layer(task: Task, size: float, strength: float, kind: str = "MW") -> ConfusionChannel:
    return CrowdLayer(task.num_annotators, task.num_classes, kind, size)


def _conal(task: Task, size: float, strength: float, width: int = 20) -> ConfusionChannel:
    return CoNAL(task.num_annotators, task.num_classes, task.num_features, width, size, strength)


def _union_net(task: Task, size: float, strength: float, kind: str = "B") -> ConfusionChannel:
    return UnionNet(task.num_annotators, task.num_classes, kind, size)


def _told(
    kind: Callable[..., ConfusionChannel], task: Task, size: float, strength: float, **options: Any
) -> ConfusionChannel:
    return kind(task.num_annotators, task.num_classes, task.labels, **options)


def _doctor_net(task: Task, size: float, strength: float, **options: Any) -> ConfusionChannel:
    return DoctorNet(task.num_annotators, task.num_classes, task.num_features, task.labels, **options)


def _posterior(task: Task) -> Float[Tensor, "i k"]:
    """Of Dawid-Skene."""
    rows = task.rows
    items, annotators, classes = (
        pd.RangeIndex(size) for size in (rows.num_items, rows.num_annotators, rows.num_classes)
    )
    said = Annotations(rows.item, rows.annotator, rows.label, items, annotators, classes, rows.weight)
    return torch.from_numpy(DawidSkene(dependence="ignore").fit(said).probabilities_.to_numpy().copy()).to(
        task.labels.weight
    )


METHODS: dict[str, Method] = {
    "ccem": Method(partial(_mixture, None), published=1.0),
    "geocrowdnet-f": Method(partial(_mixture, "truth_volume"), 0.01, 1.0),
    "geocrowdnet-w": Method(partial(_mixture, "confusion_volume"), 0.01, 1.0),
    "trace-reg": Method(partial(_mixture, "trace"), 0.01, 6.0),
    "crowd-layer": Method(_crowd_layer, published=1.0),
    "conal": Method(_conal, 1e-5, 2.0),
    "union-net": Method(_union_net, published=1.0),
    "raykar": Method(partial(_told, Raykar)),
    "mbem": Method(partial(_told, MBEM)),
    "max-mig": Method(partial(_told, MaxMIG)),
    "doctor-net": Method(_doctor_net),
    "majority-vote": Method(_votes),
    "dawid-skene": Method(_dawid_skene),
}


def find_method(name: str) -> Method:
    """The method of that name, with underscores or hyphens.

    Raises:
        ValueError: there is none.
    """
    return METHODS[find_name("method", name, METHODS)]


def make_channel(
    name: str, task: Task, start: Start, strength: float | None, options: Mapping[str, Any]
) -> ConfusionChannel:
    """The channel of a method.

    Raises:
        ValueError: a strength where the method has no term, or options that it has not.
    """
    method = find_method(name)
    if strength is not None and method.strength is None:
        raise ValueError(f"strength={strength!r}: the method {name!r} has no term that it would weigh")
    size = (method.published or 0.0) if start == "published" else diagonal_logit(start, task.num_classes)
    weight = method.strength if strength is None else strength
    try:
        return method.make(task, size, 0.0 if weight is None else float(weight), **options)
    except TypeError as error:
        if options:
            raise ValueError(f"options={dict(options)!r} do not fit the method {name!r}: {error}") from error
        raise

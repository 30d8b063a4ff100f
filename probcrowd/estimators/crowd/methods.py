"""The methods of `CrowdClassifier` by name: their channels, default strengths and published starts."""

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
from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.data.validation import find_name
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
    """The labels to train on, as arrays and as tensors, and the input width of the network's last layer.

    Sizes include classes without labels, and annotators whose labels are all held out.
    """

    rows: Rows
    labels: AnnotationTensors
    num_features: int = 1

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of annotators and classes."""
        return self.rows.num_annotators, self.rows.num_classes


@dataclass(frozen=True)
class Method:
    """make: a channel, from a task, the initial logit on the diagonal, the strength of the term, and options.

    strength: the default one; None if the method has no term. published: the logit of the published start;
    None if the method does not start at a diagonal. volume: the term is the log volume of the truth or of the
    confusion matrices, which identifies them.
    """

    make: Callable[..., ConfusionChannel]
    strength: float | None = None
    published: float | None = None
    volume: Literal["truth", "confusion"] | None = None


def _mixture(
    term: str | None, task: Task, logit: float, strength: float, running: bool = False
) -> ConfusionChannel:
    if term != "truth_volume" and running:
        raise ValueError("options: running=True is for geocrowdnet-f")
    logits = diagonal_logits(logit, *task.sizes).to(task.labels.weight.device)
    terms = {} if term is None else {term: strength}
    return Mixture(logits, **terms, running=running, num_items=len(task.labels.items))


def _crowd_layer(task: Task, logit: float, strength: float, kind: str = "MW") -> ConfusionChannel:
    return CrowdLayer(*task.sizes, kind, logit)


def _conal(task: Task, logit: float, strength: float, width: int = 20) -> ConfusionChannel:
    return CoNAL(*task.sizes, task.num_features, width, logit, strength)


def _union_net(task: Task, logit: float, strength: float, kind: str = "B") -> ConfusionChannel:
    return UnionNet(*task.sizes, kind, logit)


def _counting(
    kind: Callable[..., ConfusionChannel], task: Task, logit: float, strength: float, **options: Any
) -> ConfusionChannel:
    return kind(*task.sizes, task.labels, **options)


def _doctor_net(task: Task, logit: float, strength: float, **options: Any) -> ConfusionChannel:
    return DoctorNet(*task.sizes, task.num_features, task.labels, **options)


def _majority_vote(task: Task, logit: float, strength: float, soft: bool = False) -> ConfusionChannel:
    votes = task.labels.votes(task.rows.num_classes)
    return Targets(normalise_rows(votes) if soft else majority(votes), task.labels, task.rows.num_annotators)


def _dawid_skene(task: Task, logit: float, strength: float, soft: bool = True) -> ConfusionChannel:
    posterior = _posterior(task.rows).to(task.labels.weight)
    return Targets(posterior if soft else majority(posterior), task.labels, task.rows.num_annotators)


def _posterior(rows: Rows) -> Float[Tensor, "i k"]:
    """p(class | labels) of Dawid-Skene."""
    sizes = rows.num_items, rows.num_annotators, rows.num_classes
    items, annotators, classes = (pd.RangeIndex(size) for size in sizes)
    table = Annotations(rows.item, rows.annotator, rows.label, items, annotators, classes, rows.weight)
    return torch.from_numpy(DawidSkene(dependence="ignore").fit(table).probabilities_.to_numpy().copy())


METHODS: dict[str, Method] = {
    "ccem": Method(partial(_mixture, None), published=1.0),
    "geocrowdnet-f": Method(partial(_mixture, "truth_volume"), 0.01, 1.0, "truth"),
    "geocrowdnet-w": Method(partial(_mixture, "confusion_volume"), 0.01, 1.0, "confusion"),
    "trace-reg": Method(partial(_mixture, "trace"), 0.01, 6.0),
    "crowd-layer": Method(_crowd_layer, published=1.0),
    "conal": Method(_conal, 1e-5, 2.0),
    "union-net": Method(_union_net, published=1.0),
    "raykar": Method(partial(_counting, Raykar)),
    "mbem": Method(partial(_counting, MBEM)),
    "max-mig": Method(partial(_counting, MaxMIG)),
    "doctor-net": Method(_doctor_net),
    "majority-vote": Method(_majority_vote),
    "dawid-skene": Method(_dawid_skene),
}


def find_method(name: str) -> Method:
    """The method of that name, with underscores or hyphens.

    Raises:
        ValueError: no such method.
    """
    return METHODS[find_name("method", name, METHODS)]


def make_channel(
    name: str, task: Task, start: Start, strength: float | None, options: Mapping[str, Any]
) -> ConfusionChannel:
    """Build the channel of a method.

    Raises:
        ValueError: a strength for a method without a term, or options that the method lacks.
    """
    method = find_method(name)
    if strength is not None and method.strength is None:
        raise ValueError(f"strength={strength!r}: the method {name!r} has no term to weight")
    logit = (
        (method.published or 0.0) if start == "published" else diagonal_logit(start, task.rows.num_classes)
    )
    weight = method.strength if strength is None else strength
    try:
        return method.make(task, logit, 0.0 if weight is None else float(weight), **options)
    except TypeError as error:
        if options:
            raise ValueError(f"options={dict(options)!r} do not fit the method {name!r}: {error}") from error
        raise

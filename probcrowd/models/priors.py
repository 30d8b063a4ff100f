r"""Priors of the models of annotation. Concentrations are Dirichlet parameters, so 1 is flat; K is the number
of classes.

A prior for confusion rows with d on the diagonal and o elsewhere gives an annotator the mean accuracy
d / (d + o (K - 1)). Rules with fixed d and o (flat: 1 and 1) grow more pessimistic with K; the default here
does not.

    name       diagonal d        elsewhere o         mean accuracy                        source
    accurate   (K - 1) a/(1-a)   1                   a = 0.7 for every K                  the default
    rater      8 * 0.6           8 * 0.4 / (K - 1)   0.6 for every K; class prior 3       rater 1.3 (R)
    stan       2.5 K             1                   0.83 (K = 2), 0.74 (K = 10)          Stan; class prior 3
    flat       1                 1                   1 / K: permuting classes changes nothing
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float64

PriorName = Literal["accurate", "rater", "stan", "flat"]


@runtime_checkable
class Counts(Protocol):
    """Pseudo-counts, the fields of `probcrowd.models.meta.prototype.Prior`."""

    @property
    def class_count(self) -> Any: ...
    @property
    def label_count(self) -> Any: ...
    @property
    def accuracy(self) -> Any: ...
    @property
    def precision(self) -> Any: ...


def by_name(record: Any) -> dict[str, Callable[[int], Any]]:
    """The named priors of a record, as functions of the number of classes: `Model.priors`."""
    return {name: partial(record.named, name) for name in record.NAMES}


@dataclass(frozen=True)
class DirichletPrior:
    """Concentrations of the class prior (k) and of confusion rows (k, l), or (j, k, l) where annotators
    differ (their history).

    Raises:
        ValueError: shapes that do not fit each other, or concentrations that are not finite and positive.
    """

    class_prior: Float64[np.ndarray, " k"]
    confusion: Float64[np.ndarray, "..."]  # __post_init__ checks the shape, with a message of its own
    NAMES: ClassVar = get_args(PriorName)

    def __post_init__(self) -> None:
        num_classes = len(self.class_prior)
        if self.confusion.shape[-2:] != (num_classes, num_classes):
            raise ValueError(
                f"concentrations of shape {self.confusion.shape} do not fit {num_classes} classes"
            )
        for concentrations in (self.class_prior, self.confusion):
            if not (np.isfinite(concentrations) & (concentrations > 0)).all():
                raise ValueError(
                    "Dirichlet concentrations must be finite and > 0, "
                    f"got {concentrations.min()} .. {concentrations.max()}"
                )

    @property
    def exchangeable(self) -> bool:
        """Whether permuting the classes leaves the prior unchanged, so that only the votes identify the
        classes.
        """
        return _all_equal(self.class_prior) and _all_equal(np.moveaxis(self.confusion, -2, 0))

    @staticmethod
    def named(name: PriorName, num_classes: int, *, accuracy: float = 0.7) -> DirichletPrior:
        """Return one of the priors in the table above; only "accurate" uses `accuracy`."""
        others = max(num_classes - 1, 1)
        diagonal, elsewhere, class_prior = {
            "accurate": (others * _odds(accuracy, num_classes), 1.0, 1.0),
            "rater": (8 * 0.6, 8 * 0.4 / others, 3.0),
            "stan": (2.5 * num_classes, 1.0, 3.0),
            "flat": (1.0, 1.0, 1.0),
        }[name]
        confusion = np.full((num_classes, num_classes), elsewhere)
        np.fill_diagonal(confusion, diagonal)
        return DirichletPrior(np.full(num_classes, class_prior), confusion)

    @staticmethod
    def of_counts(prior: Counts, num_classes: int) -> DirichletPrior:
        """Convert the pseudo-counts of the prototype crowd: counts + 1, and a diagonal with its mean
        accuracy.
        """
        elsewhere = float(prior.label_count) + 1
        confusion = np.full((num_classes, num_classes), elsewhere)
        if prior.accuracy is not None:
            np.fill_diagonal(
                confusion, max(num_classes - 1, 1) * elsewhere * _odds(float(prior.accuracy), num_classes)
            )
        return DirichletPrior(np.full(num_classes, float(prior.class_count) + 1), confusion)


@dataclass(frozen=True)
class CoinPrior:
    """accuracy[j] ~ Beta(right, wrong); class_prior ~ Dirichlet."""

    class_prior: Float64[np.ndarray, " k"]
    right: float
    wrong: float
    NAMES: ClassVar = get_args(PriorName)

    @staticmethod
    def named(name: PriorName, num_classes: int, *, accuracy: float = 0.7) -> CoinPrior:
        """Return the Beta prior that `DirichletPrior.named` implies for the diagonal of a confusion row."""
        rows = DirichletPrior.named(name, num_classes, accuracy=accuracy)
        return CoinPrior(
            rows.class_prior, float(rows.confusion[0, 0]), float(rows.confusion[0, 1:].sum()) or 1.0
        )


@dataclass(frozen=True)
class SpamPrior:
    """MACE: competence[j] ~ Beta(honest, spamming); labels of a spammer, spam[j] ~ Dirichlet(answers, ...,
    answers).

    The defaults are those of Hovy et al. 2013, named "hovy". Classes are equally likely.
    """

    honest: float = 0.5
    spamming: float = 0.5
    answers: float = 10.0
    NAMES: ClassVar = ("hovy", "flat")

    @staticmethod
    def named(name: Literal["hovy", "flat"], num_classes: int) -> SpamPrior:
        """Return the prior "hovy", or "flat" with every concentration 1."""
        return {"hovy": SpamPrior(), "flat": SpamPrior(1.0, 1.0, 1.0)}[name]


@dataclass(frozen=True)
class LogitPrior:
    """Logits of confusion rows: mean[k, l] ~ Normal(centre[k, l], mean_scale), standard deviations ~
    HalfNormal(spread_scale or item_scale).

    `reference` pins the logit of the last label to 0, as Paun et al. (2018) do; the last class is then
    another one a priori. `centre` has K columns, or K - 1 with a reference.
    """

    class_prior: Float64[np.ndarray, " k"]
    centre: Float64[np.ndarray, "k m"]
    mean_scale: float = 1.0
    spread_scale: float = 1.0
    item_scale: float = 1.0
    reference: bool = False
    NAMES: ClassVar = ("accurate", "rater", "flat", "paun")

    @property
    def exchangeable(self) -> bool:
        """Whether permuting the classes leaves the prior unchanged."""
        return _all_equal(self.class_prior) and _all_equal(self.centre)

    @staticmethod
    def named(
        name: Literal["accurate", "rater", "flat", "paun"], num_classes: int, *, accuracy: float = 0.7
    ) -> LogitPrior:
        """Return a named prior.

        accurate: diagonal centre log(a (K - 1) / (1 - a)), accuracy a for every K.
        rater: centre 2 on the diagonal, class prior 3.
        flat: centre 0, so labels are independent of the class on average and classes exchangeable; logits
            have a normal prior all the same.
        paun: centre 0 and the last label as reference; the last label is special, classes are exchangeable.
        """
        if name == "paun":
            return LogitPrior(np.ones(num_classes), np.zeros((num_classes, num_classes - 1)), reference=True)
        if name == "flat":
            return LogitPrior(np.ones(num_classes), np.zeros((num_classes, num_classes)))
        diagonal = (
            2.0 if name == "rater" else math.log(max(num_classes - 1, 1) * _odds(accuracy, num_classes))
        )
        return LogitPrior(
            np.full(num_classes, 3.0 if name == "rater" else 1.0), diagonal * np.eye(num_classes)
        )


def rows_base(
    prior: str | DirichletPrior, num_classes: int, num_labels: int
) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k l"]]:
    """Concentrations of the class prior and of confusion rows; an abstention that is an event has the lowest
    of its row.

    Raises:
        ValueError: a prior for another number of classes.
    """
    if isinstance(prior, str):
        prior = DirichletPrior.named(prior, num_classes)  # pyright: ignore[reportArgumentType]
    if prior.confusion.shape != (num_classes, num_classes):
        shape = prior.confusion.shape
        raise ValueError(
            f"the prior's confusion has the shape {shape}, the table {num_classes} classes; "
            "earlier counts go to `history`"
        )
    lowest = np.repeat(prior.confusion.min(1, keepdims=True), num_labels - num_classes, 1)
    return prior.class_prior, np.hstack([prior.confusion, lowest])


def _odds(accuracy: float, num_classes: int) -> float:
    if not 1 / num_classes <= accuracy < 1 and num_classes > 1:
        raise ValueError(f"prior accuracy {accuracy:g} is not between guessing, 1/{num_classes}, and 1")
    return accuracy / (1 - accuracy)


def _all_equal(values: Float64[np.ndarray, "k ..."]) -> bool:
    return bool((values == values[:1]).all())

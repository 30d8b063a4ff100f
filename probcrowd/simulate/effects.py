"""Structure planted into simulated labels. Each effect replaces some labels after annotators have given their
own.

    HardItems        on a share of items, annotators guess with a probability
    MisleadingItems  on a share of items, annotators give the same wrong class with a probability
    HardClass        items of one class are given another label with a probability
    ClassBias        annotators give one label with a probability, whatever the item
    Clique           annotators give the label of a common, unseen leader with a probability
    Abstain          annotators abstain with a probability, which is recorded as a label that is no class
    Copies           annotators repeat the label that another one gives, or would give

Effects act in this order, whatever the order in which they are listed, so copies also repeat guesses, errors
of a clique and abstentions. Each effect updates the annotators' confusion matrices as well, so those describe
the labels in the table.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Int64

from probcrowd.simulate.draw import Draw, Ids, find_codes
from probcrowd.simulate.skill import draw_labels, uniform_errors


@runtime_checkable
class Effect(Protocol):
    """Anything that changes a draw; effects with a lower `stage` act first."""

    stage: ClassVar[int]

    def apply(self, draw: Draw) -> None:
        """Replace labels and update the confusion matrices."""
        ...


@dataclass(frozen=True)
class HardItems:
    """On some items annotators guess, each with probability `guessing`.

    items: the share of hard items, chosen at random, or their ids.
    guessing: one probability, or a range (low, high) from which that of each hard item is drawn uniformly.
    annotators: who guesses; None: all.
    """

    stage: ClassVar[int] = 0
    items: float | Sequence[Hashable]
    guessing: float | tuple[float, float] = 1.0
    annotators: Ids = None

    def apply(self, draw: Draw) -> None:
        low, high = np.broadcast_to(np.asarray(self.guessing, float), (2,))
        _check_probabilities(self, guessing=(low, high))
        hard = draw.choose_items(self.items)
        difficulty = np.zeros(len(draw.truth))
        difficulty[hard] = draw.rng.uniform(low, high, len(hard))
        members, num_classes = draw.members(self.annotators), len(draw.classes)
        rows = draw.rows_of(members)
        draw.replace(rows, difficulty[draw.item[rows]], draw.rng.integers(num_classes, size=len(rows)))
        draw.mix(members, draw.mean_by_class(difficulty), 1 / num_classes)
        draw.difficulty = (
            difficulty if draw.difficulty is None else 1 - (1 - draw.difficulty) * (1 - difficulty)
        )


@dataclass(frozen=True)
class MisleadingItems:
    """On some items annotators give one wrong class, the same for all, each with probability `rate`.

    items: the share of misleading items, chosen at random, or their ids. annotators: those misled; None: all.
    """

    stage: ClassVar[int] = 1
    items: float | Sequence[Hashable]
    rate: float = 0.8
    annotators: Ids = None

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate)
        num_classes = len(draw.classes)
        if num_classes < 2:
            raise ValueError("MisleadingItems needs at least two classes")
        chosen = draw.choose_items(self.items)
        wrong = np.full(len(draw.truth), -1)
        wrong[chosen] = (draw.truth[chosen] + draw.rng.integers(1, num_classes, len(chosen))) % num_classes
        members = draw.members(self.annotators)
        rows = draw.rows_of(members)
        given = wrong[draw.item[rows]]
        draw.replace(rows, np.where(given >= 0, self.rate, 0.0), given)
        elsewhere = (1 - np.eye(num_classes)) / (num_classes - 1)
        draw.mix(members, draw.mean_by_class(np.where(wrong >= 0, self.rate, 0.0)), elsewhere)
        draw.misleading = wrong if draw.misleading is None else np.where(wrong >= 0, wrong, draw.misleading)


@dataclass(frozen=True)
class HardClass:
    """Annotators (None: all) give items of class `true_class` the label `given` with probability `rate`."""

    stage: ClassVar[int] = 2
    true_class: Hashable
    given: Hashable
    rate: float = 0.7
    annotators: Ids = None

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate)
        true_class, given = draw.class_codes(self.true_class, self.given)
        members = draw.members(self.annotators)
        rows = draw.rows_of(members)
        rows = rows[draw.truth[draw.item[rows]] == true_class]
        draw.replace(rows, self.rate, given)
        rate = np.where(np.arange(len(draw.classes)) == true_class, self.rate, 0.0)[:, None]
        draw.mix(members, rate, np.eye(draw.confusion.shape[2])[given])


@dataclass(frozen=True)
class ClassBias:
    """Annotators (None: all) give the label `label` with probability `rate`, whatever the item."""

    stage: ClassVar[int] = 3
    label: Hashable
    rate: float = 0.3
    annotators: Ids = None

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate)
        (label,), members = draw.class_codes(self.label), draw.members(self.annotators)
        draw.replace(draw.rows_of(members), self.rate, label)
        draw.mix(members, self.rate, np.eye(draw.confusion.shape[2])[label])


@dataclass(frozen=True)
class Clique:
    """Annotators who share errors: each gives, with probability `rate`, the label of one unseen leader.

    accuracy: of the leader, errors spread evenly; None: the leader's confusion matrix is the mean of the
    members'.
    """

    stage: ClassVar[int] = 4
    annotators: Sequence[Hashable]
    rate: float = 0.8
    accuracy: float | None = None

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate, accuracy=0.0 if self.accuracy is None else self.accuracy)
        members = draw.members(self.annotators)
        if len(members) < 2:
            raise ValueError("Clique needs at least two annotators")
        num_classes = len(draw.classes)
        leader = draw.confusion[members].mean(0, keepdims=True)
        if self.accuracy is not None:
            leader = uniform_errors(np.array([self.accuracy]), num_classes)
        rows = draw.rows_of(members)
        items, place = np.unique(draw.item[rows], return_inverse=True)
        label = draw_labels(draw.rng, leader, np.zeros(len(items), np.int64), draw.truth[items])
        draw.replace(rows, self.rate, label[place])
        draw.mix(members, self.rate, leader)
        draw.cliques.append(tuple(draw.annotators[members]))


@dataclass(frozen=True)
class Abstain:
    """Annotators (None: all) abstain with probability `rate`: they give `label`, which is not a class."""

    stage: ClassVar[int] = 5
    rate: float = 0.1
    label: Hashable = "abstain"
    annotators: Ids = None

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate)
        if self.label in draw.classes:
            raise ValueError(f"Abstain: the label {self.label!r} is one of the classes: choose another")
        if draw.abstention not in (None, self.label):
            raise ValueError(f"Abstain: two labels, {draw.abstention!r} and {self.label!r}: use one")
        num_classes, members = len(draw.classes), draw.members(self.annotators)
        if draw.abstention is None:
            draw.abstention = self.label
            draw.confusion = np.pad(draw.confusion, ((0, 0), (0, 0), (0, 1)))
        draw.replace(draw.rows_of(members), self.rate, num_classes)
        draw.mix(members, self.rate, np.eye(num_classes + 1)[num_classes])


@dataclass(frozen=True)
class Copies:
    """Annotators `copies` repeat the labels of `source`, each with probability `rate`: 1 for exact copies.

    Where the source does not label the item, they repeat the label it would have given, so copies agree with
    each other there too.
    """

    stage: ClassVar[int] = 6
    source: Hashable
    copies: Sequence[Hashable]
    rate: float = 1.0

    def codes(self, annotators: pd.Index) -> tuple[int, Int64[np.ndarray, " copies"]]:
        """The codes of the source and of its copies."""
        if self.source in list(self.copies):
            raise ValueError(f"Copies: annotator {self.source!r} is its own copy")
        (source,) = find_codes(annotators, [self.source], "annotators").tolist()
        return source, find_codes(annotators, self.copies, "annotators")

    def apply(self, draw: Draw) -> None:
        _check_probabilities(self, rate=self.rate)
        source, members = self.codes(draw.annotators)
        rows, own = draw.rows_of(members), draw.rows_of(np.array([source]))
        own = own[np.argsort(draw.item[own], kind="stable")]
        place = np.searchsorted(draw.item[own], draw.item[rows])
        draw.replace(rows, self.rate, draw.label[own[place]] if len(rows) else draw.label[rows])
        draw.mix(members, self.rate, draw.confusion[source])
        draw.copies.append((self.source, *draw.annotators[members]))


def source_rows(
    effects: Sequence[Effect],
    annotators: pd.Index,
    item: Int64[np.ndarray, " n"],
    annotator: Int64[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " more"], Int64[np.ndarray, " more"]]:
    """Items and annotators of rows that copies repeat but the table lacks: drawn, and dropped at the end."""
    copying = [effect.codes(annotators) for effect in effects if isinstance(effect, Copies)]
    both = {code for _, members in copying for code in members.tolist()} & {source for source, _ in copying}
    if both:
        raise ValueError(f"Copies: annotator {annotators[min(both)]!r} is both a copy and a source")
    more = []
    for source in sorted({source for source, _ in copying}):
        members = np.concatenate([members for own, members in copying if own == source])
        needed = np.unique(item[np.isin(annotator, members)])
        items = needed[~np.isin(needed, item[annotator == source])]
        more.append(np.stack([items, np.full(len(items), source)]))
    return tuple(np.concatenate([np.empty((2, 0), np.int64), *more], axis=1))


def _check_probabilities(effect: Effect, **values: Any) -> None:
    for name, value in values.items():
        if not (np.asarray(value) >= 0).all() or not (np.asarray(value) <= 1).all():
            raise ValueError(f"{type(effect).__name__}: {name} must be between 0 and 1, not {value}")

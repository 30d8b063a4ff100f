"""Simulated annotations together with what they were drawn from.

    truth[i] ~ class_prior             or given
    label    ~ confusion[j, truth[i]]  for each assigned (item, annotator) pair; or from an ordinal scale

Effects then replace some of the labels: hard items, cliques, copies ..., see `probcrowd.simulate.effects`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data.annotations import Annotations
from probcrowd.simulate.assignment import Assignment
from probcrowd.simulate.draw import Draw
from probcrowd.simulate.effects import Effect, source_rows
from probcrowd.simulate.ordinal import OrdinalAnnotators
from probcrowd.simulate.skill import Description, draw_labels, read_annotators


@dataclass(frozen=True, eq=False)
class SimulatedAnnotations:
    """Annotations, the truth, and everything that was planted.

    annotations: the table. truth: the class of each item. gold: the truth of the items whose class is known.
    confusion: P(label | true class) of each annotator, effects included, in the form of an estimator's
    `confusion_`. class_prior: by class.
    copies: groups of annotators, the source first. cliques: groups of annotators. abstention: its label.
    difficulty: by item, the probability that a susceptible annotator guesses (`HardItems`). misleading: the
    wrong class of each misleading item. score: the latent score of each item of an ordinal scale. All of
    these are None where nothing of the kind was simulated.
    """

    annotations: Annotations
    truth: pd.Series
    gold: pd.Series
    confusion: pd.DataFrame
    class_prior: pd.Series
    copies: tuple[tuple[Hashable, ...], ...] = ()
    cliques: tuple[tuple[Hashable, ...], ...] = ()
    abstention: Hashable | None = None
    difficulty: pd.Series | None = None
    misleading: pd.Series | None = None
    score: pd.Series | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """The annotations as a long table: item, annotator, label, and weight if there is one."""
        return self.annotations.to_frame()

    @property
    def accuracy(self) -> pd.Series:
        """P(label = true class) by annotator, mean over the class prior; abstentions count as errors."""
        shape = (-1, len(self.class_prior), self.confusion.shape[1])
        right = np.diagonal(self.confusion.to_numpy().reshape(shape), axis1=1, axis2=2)
        return pd.Series(right @ self.class_prior.to_numpy(), self.annotations.annotators, name="accuracy")


def simulate_annotations(
    items: int | pd.Series = 200,
    annotators: Description | OrdinalAnnotators = 8,
    *,
    seed: int | np.random.Generator,
    classes: int | Sequence[Hashable] | pd.Index | None = None,
    class_prior: Sequence[float] | np.ndarray | None = None,
    labels_per_item: int | None = None,
    labels_per_annotator: int | None = None,
    observed: float | None = None,
    activity: float = 0.0,
    repeated: float = 1.0,
    batches: int = 1,
    effects: Sequence[Effect] = (),
    gold: float = 0.0,
    weights: tuple[float, float] | None = None,
    counts: tuple[int, int] | None = None,
) -> SimulatedAnnotations:
    """Simulate annotations; by default every annotator labels every item.

    >>> simulated = simulate_annotations(100, {"ann": 0.9, "bob": 0.7}, classes=["no", "yes"], seed=0)
    >>> simulated.annotations
    Annotations(200 rows, num_items=100, num_annotators=2, num_classes=2)
    >>> simulated.accuracy.to_dict()
    {'ann': 0.9, 'bob': 0.7}

    Args:
        items: the number of items, or their true classes by item id.
        annotators: their number (accuracies between 0.6 and 0.95 at random); a sequence of accuracies or
            confusion matrices (k, l); the same by annotator id; a frame with a column `accuracy`, whose other
            columns become covariates; or `OrdinalAnnotators`. An accuracy has errors spread evenly over the
            other classes.
        seed: a number or a NumPy generator; the same seed gives the same table.
        classes: their number or their ids; by default 2, or the sorted classes of `items`. Ids are i0, i1,
            ... for items, a0, ... for annotators, c0, ... for classes where none are given.
        class_prior: probabilities of the classes, by default equal; with true classes in `items`, their
            frequencies.
        labels_per_item, labels_per_annotator, observed, activity, repeated, batches: who labels what; see
            `probcrowd.simulate.assignment`. Several batches are named in the covariate `batch`.
        effects: planted structure, such as `[Copies("a0", ["a1"]), HardItems(0.2)]`; see
            `probcrowd.simulate.effects`.
        gold: the share of items whose true class is known, chosen at random.
        weights: a range of row weights, drawn uniformly. counts: a range of whole numbers, both ends
            included, of times that each row counts.

    Raises:
        ValueError: an argument that is out of range or contradicts another one.
    """
    rng = np.random.default_rng(seed)
    item_ids, truth, class_ids, prior = _draw_truth(rng, items, classes, class_prior)
    num_items, num_classes = len(truth), len(class_ids)
    assignment = Assignment(labels_per_item, labels_per_annotator, observed, activity, repeated, batches)
    if isinstance(annotators, OrdinalAnnotators):
        scale = annotators.draw(rng, prior)
        annotator_ids, confusion = scale.ids, scale.confusion
        score = scale.draw_scores(rng, truth)
    else:
        scale, score = None, None
        annotator_ids, confusion = read_annotators(annotators, num_classes, rng)
    annotator_covariates = None
    if isinstance(annotators, pd.DataFrame) and annotators.shape[1] > 1:
        annotator_covariates = annotators.drop(columns="accuracy")
    item, annotator = assignment.pairs(rng, num_items, len(annotator_ids))
    num_rows = len(item)
    more_items, more_annotators = source_rows(effects, annotator_ids, item, annotator)
    item, annotator = np.append(item, more_items), np.append(annotator, more_annotators)
    if scale is None or score is None:
        label = draw_labels(rng, confusion, annotator, truth[item])
    else:
        label = scale.draw_labels(rng, annotator, score[item])
    draw = Draw(rng, item_ids, annotator_ids, class_ids, truth, item, annotator, label, confusion)
    for effect in sorted(effects, key=lambda effect: effect.stage):
        effect.apply(draw)
    label_ids = class_ids if draw.abstention is None else class_ids.append(pd.Index([draw.abstention]))
    annotations = Annotations(
        item[:num_rows],
        annotator[:num_rows],
        draw.label[:num_rows],
        item_ids,
        annotator_ids,
        label_ids,
        _draw_weights(rng, num_rows, weights, counts),
        assignment.add_batches(annotator_covariates, annotator_ids, "annotators"),
        assignment.add_batches(None, item_ids, "items"),
    )
    if not 0 <= gold <= 1:
        raise ValueError(f"gold is the share of items whose class is known, between 0 and 1, not {gold}")
    known = np.sort(rng.permutation(num_items)[: round(gold * num_items)])
    true_classes = pd.Series(class_ids[truth], item_ids, name="truth")

    def by_item(values: np.ndarray | None, name: str) -> pd.Series | None:
        return None if values is None else pd.Series(values, item_ids, name=name)

    misleading = None
    if draw.misleading is not None:
        misled = draw.misleading >= 0
        misleading = pd.Series(class_ids[draw.misleading[misled]], item_ids[misled], name="misleading")
    rows = pd.MultiIndex.from_product([annotator_ids, class_ids], names=["annotator", "true_class"])
    return SimulatedAnnotations(
        annotations,
        true_classes,
        true_classes.iloc[known].rename("gold"),
        pd.DataFrame(draw.confusion.reshape(len(rows), -1), rows, label_ids.rename("label")),
        pd.Series(prior, class_ids, name="class_prior"),
        tuple(draw.copies),
        tuple(draw.cliques),
        draw.abstention,
        by_item(draw.difficulty, "difficulty"),
        misleading,
        by_item(score, "score"),
    )


def _draw_truth(
    rng: np.random.Generator, items: int | pd.Series, classes: Any, class_prior: Any
) -> tuple[pd.Index, Int64[np.ndarray, " i"], pd.Index, Float64[np.ndarray, " k"]]:
    """Item ids, true classes as codes, class ids and class prior."""
    if classes is None:
        classes = sorted(pd.unique(items)) if isinstance(items, pd.Series) else 2
    class_ids = pd.Index([f"c{k}" for k in range(classes)] if isinstance(classes, int) else list(classes))
    if not len(class_ids) or not class_ids.is_unique:
        raise ValueError(f"classes must be a positive number or distinct ids, not {classes}")
    if isinstance(items, pd.Series):
        truth = class_ids.get_indexer(pd.Index(items)).astype(np.int64)
        if class_prior is not None:
            raise ValueError("class_prior has no use where `items` gives the true classes: leave it out")
        if not len(truth) or (truth < 0).any():
            raise ValueError(
                f"true classes in `items` must be among {class_ids[:10].tolist()}, for at least one item"
            )
        return items.index, truth, class_ids, np.bincount(truth, minlength=len(class_ids)) / len(truth)
    if items < 1:
        raise ValueError(f"there must be at least one item, not {items}")
    prior = (
        np.full(len(class_ids), 1 / len(class_ids)) if class_prior is None else np.asarray(class_prior, float)
    )
    if prior.shape != (len(class_ids),) or not (prior >= 0).all() or abs(prior.sum() - 1) > 1e-6:
        raise ValueError(f"class_prior must be {len(class_ids)} probabilities with sum 1, not {class_prior}")
    truth = np.searchsorted(prior.cumsum()[:-1], rng.random(items), side="right").astype(np.int64)
    return pd.Index([f"i{i}" for i in range(items)]), truth, class_ids, prior


def _draw_weights(
    rng: np.random.Generator, num_rows: int, weights: Any, counts: Any
) -> Float64[np.ndarray, " n"] | None:
    given = counts if weights is None else weights
    if given is None:
        return None
    if weights is not None and counts is not None:
        raise ValueError("weights and counts exclude each other: give one")
    low, high = given
    if not 0 < low <= high < float("inf"):
        raise ValueError(f"weights and counts must be a range of numbers > 0, not ({low}, {high})")
    if weights is None:
        return rng.integers(low, high, num_rows, endpoint=True).astype(float)
    return rng.uniform(low, high, num_rows)

r"""Panels in which (nearly) every annotator labelled every item, so that hidden labels can serve as truth.

    digits-groups, labelme-groups    simulated labels on real features (scikit-learn's digits; LabelMe)
    dices350, llmbar, bluebirds      people who rate safety, language models that judge answers, people who
                                     tell birds apart

All but the digits are read from the data folder.

Simulated labels come from twelve annotators. Ten are in three groups with shared habits (a class read as
another one), each with a confusion matrix drawn around the group's. One permutes the names of all classes,
and one follows the first group on some items and the second on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probcrowd.experiments.datasets import read_folder

SETS = ("digits-groups", "labelme-groups", "dices350", "llmbar", "bluebirds")
ANNOTATORS = 24  # of a real panel, drawn once where there are more
GROUPS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
TEST = 0.3  # of the items
HABITS, HABIT, RIGHT, CONCENTRATION = 0.4, 0.6, 0.9, 60.0
LOST = 0.9  # of the labels of an annotator who loses a block


@dataclass(frozen=True)
class Panel:
    """features: by item. labels: codes, -1 where missing. truth: codes, -1 where unknown; None if all are."""

    name: str
    features: pd.DataFrame
    labels: Int[np.ndarray, "i j"]
    truth: Int[np.ndarray, " i"] | None

    def split(self, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """Draw training and test items."""
        order = np.random.default_rng([seed, 2]).permutation(len(self.labels))
        cut = round(TEST * len(order))
        return np.sort(order[cut:]), np.sort(order[:cut])


def read_panel(root: Path | None, name: str, seed: int) -> Panel:
    """Read a panel, or simulate its labels with this seed.

    Raises:
        ValueError: see `probcrowd.experiments.datasets.read_folder`.
    """
    if name == "digits-groups":
        from sklearn.datasets import load_digits

        pixels, classes = (np.asarray(part) for part in load_digits(return_X_y=True))
        return simulate_labels(name, pd.DataFrame(pixels), classes.astype(np.int64), seed)
    stored = read_folder(root, name.removesuffix("-groups"))
    features, labels = stored.features, stored.labels
    known = stored.gold["label"].reindex(features.index)
    if name == "labelme-groups":
        return simulate_labels(name, features, known.to_numpy(np.int64), seed)
    wide = labels.pivot(index="item", columns="annotator", values="label").reindex(features.index)
    chosen = np.sort(np.random.default_rng(0).permutation(wide.shape[1])[:ANNOTATORS])
    classes = pd.Index(sorted(labels["label"].unique()))
    codes = np.stack([classes.get_indexer(pd.Index(wide.iloc[:, column])) for column in chosen], 1)
    truth = np.where(known.notna(), classes.get_indexer(pd.Index(known)), -1).astype(np.int64)
    return Panel(name, features, codes.astype(np.int64), truth if (truth >= 0).any() else None)


def simulate_labels(name: str, features: pd.DataFrame, truth: Int[np.ndarray, " i"], seed: int) -> Panel:
    """Simulate labels of twelve annotators for items of known classes."""
    rng = np.random.default_rng([seed, 3])
    classes = int(truth.max()) + 1
    groups = np.stack([_draw_habits(classes, rng) for _ in range(3)])
    matrices = [np.stack([rng.dirichlet(CONCENTRATION * row) for row in groups[group]]) for group in GROUPS]
    matrices.append(
        RIGHT * np.roll(np.eye(classes), 1 + rng.integers(classes - 1), 1) + (1 - RIGHT) / classes
    )
    by_item = [matrix[truth] for matrix in matrices]
    values = features.to_numpy(np.float64)
    side = values @ rng.normal(size=values.shape[1])
    first = side > np.median(side)
    by_item.append(np.where(first[:, None], groups[0][truth], groups[1][truth]))
    bounds = np.stack(by_item, 1).cumsum(2)[..., :-1]  # (i, j, l)
    labels = (rng.random(bounds.shape[:2])[..., None] >= bounds).sum(2)
    return Panel(name, features, labels.astype(np.int64), truth)


def hide_labels(
    observed: Bool[np.ndarray, "i j"], base: float, removal: str, rate: float, rng: np.random.Generator
) -> Bool[np.ndarray, "i j"]:
    """The labels that remain after hiding the share `base` at random, then the share `rate` of the rest.

    removal: "random": all labels alike; "blocks": one annotator after another loses `LOST` of the labels
    until the share of all is hidden.
    """
    remaining = observed & (rng.random(observed.shape) >= base)
    if removal == "random":
        return remaining & (rng.random(observed.shape) >= rate)
    goal, total = rate * remaining.sum(), 0.0
    for annotator in rng.permutation(remaining.shape[1]):
        count = remaining[:, annotator].sum()
        share = min(LOST, (goal - total) / count) if count else 0.0
        if share <= 0:
            continue
        lost = remaining[:, annotator] & (rng.random(len(remaining)) < share)
        remaining[:, annotator] &= ~lost
        total += lost.sum()
    return remaining


def _draw_habits(classes: int, rng: np.random.Generator) -> Float[np.ndarray, "k l"]:
    """Draw a confusion matrix in which some classes are often read as one other class."""
    matrix = RIGHT * np.eye(classes) + (1 - RIGHT) / classes
    for k in rng.permutation(classes)[: max(round(HABITS * classes), 1)]:
        other = (k + 1 + rng.integers(classes - 1)) % classes
        moved = HABIT * matrix[k, k]
        matrix[k, k] -= moved
        matrix[k, other] += moved
    return matrix

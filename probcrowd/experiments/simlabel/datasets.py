r"""Panels in which (nearly) every annotator has labelled every item, from which labels can be hidden and come back as the truth of the experiment.

    digits-groups, labelme-groups    generated labels on real features (scikit-learn's digits; LabelMe, from the data folder)
    dices350, llmbar, bluebirds      people who judge safety, language models that judge answers, people who tell birds apart: from the data folder

Generated labels come from twelve annotators: ten in three groups that share habits (a class read as another one), each with a confusion matrix drawn around
the group's, one who has the names of all classes turned round, and one who follows the first group on some items and the second on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from probcrowd.experiments.lia.datasets import read_folder

GENERATED, REAL = ("digits-groups", "labelme-groups"), ("dices350", "llmbar", "bluebirds")
SETS = GENERATED + REAL
ANNOTATORS = 24  # of a real panel, drawn once where there are more
GROUPS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 2)
TEST = 0.3  # of the items
HABITS, HABIT, RIGHT, CONCENTRATION = 0.4, 0.6, 0.9, 60.0
LOST = 0.9  # of the labels of an annotator whose block is removed


@dataclass(frozen=True)
class Panel:
    """features: by item. labels: codes, items x annotators, -1 where there is none. truth: codes by item, -1 where it is not known; None: there is none."""

    name: str
    features: pd.DataFrame
    labels: Int[np.ndarray, "i j"]
    truth: Int[np.ndarray, " i"] | None

    def split(self, seed: int) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """Items to learn from, and items to judge by."""
        order = np.random.default_rng([seed, 2]).permutation(len(self.labels))
        cut = round(TEST * len(order))
        return np.sort(order[cut:]), np.sort(order[:cut])


def read_panel(root: Path | None, name: str, seed: int) -> Panel:
    """The panel of that name; the labels of a generated one are drawn by the seed.

    Raises:
        ValueError: there is no data folder, and the panel is in one.
    """
    if name == "digits-groups":
        from sklearn.datasets import load_digits

        pixels, classes = (np.asarray(part) for part in load_digits(return_X_y=True))
        return generated(name, pd.DataFrame(pixels), classes.astype(np.int64), seed)
    if root is None:
        raise ValueError(f"{name} is in a data folder: name it with --data or PROBCROWD_DATA")
    labels, gold, features = read_folder(root, name.removesuffix("-groups"))
    known = gold["label"].reindex(features.index)
    if name == "labelme-groups":
        return generated(name, features, known.to_numpy(np.int64), seed)
    wide = labels.pivot(index="item", columns="annotator", values="label").reindex(features.index)
    chosen = np.sort(np.random.default_rng(0).permutation(wide.shape[1])[:ANNOTATORS])
    classes = pd.Index(sorted(labels["label"].unique()))
    codes = np.stack([classes.get_indexer(pd.Index(wide.iloc[:, column])) for column in chosen], 1)
    truth = np.where(known.notna(), classes.get_indexer(pd.Index(known)), -1)
    return Panel(
        name, features, codes.astype(np.int64), truth.astype(np.int64) if (truth >= 0).any() else None
    )


def generated(name: str, features: pd.DataFrame, truth: Int[np.ndarray, " i"], seed: int) -> Panel:
    """Labels of twelve annotators for items of known classes."""
    rng = np.random.default_rng([seed, 3])
    classes = int(truth.max()) + 1
    groups = np.stack([_habits(classes, rng) for _ in range(3)])
    matrices = np.stack([_jittered(groups[group], rng) for group in GROUPS])
    turned = RIGHT * np.roll(np.eye(classes), 1 + rng.integers(classes - 1), 1) + (1 - RIGHT) / classes
    of_item = [matrix[truth] for matrix in [*matrices, turned]]
    values = features.to_numpy(np.float64)
    side = values @ rng.normal(size=values.shape[1]) * 1.0
    first = side > np.median(side)
    of_item.append(np.where(first[:, None], groups[0][truth], groups[1][truth]))
    bounds = np.stack(of_item, 1).cumsum(2)[..., :-1]  # (i, j, l)
    labels = (rng.random(bounds.shape[:2])[..., None] >= bounds).sum(2)
    return Panel(name, features, labels.astype(np.int64), truth)


def hidden(
    observed: Bool[np.ndarray, "i j"], base: float, removal: str, rate: float, rng: np.random.Generator
) -> Bool[np.ndarray, "i j"]:
    """The labels that are left: first the share `base` goes at random, then the share `rate` of what is left.

    removal: "random": all alike; "blocks": annotators, one after the other, lose `LOST` of their labels until that share of all is gone.
    """
    left = observed & (rng.random(observed.shape) >= base)
    if removal == "random":
        return left & (rng.random(observed.shape) >= rate)
    goal, gone = rate * left.sum(), 0.0
    for annotator in rng.permutation(left.shape[1]):
        own = left[:, annotator].sum()
        share = min(LOST, (goal - gone) / own) if own else 0.0
        if share <= 0:
            continue
        lost = left[:, annotator] & (rng.random(len(left)) < share)
        left[:, annotator] &= ~lost
        gone += lost.sum()
    return left


def _habits(classes: int, rng: np.random.Generator) -> Float[np.ndarray, "k l"]:
    """A confusion matrix in which some classes are often read as one other."""
    matrix = RIGHT * np.eye(classes) + (1 - RIGHT) / classes
    for k in rng.permutation(classes)[: max(round(HABITS * classes), 1)]:
        other = (k + 1 + rng.integers(classes - 1)) % classes
        moved = HABIT * matrix[k, k]
        matrix[k, k] -= moved
        matrix[k, other] += moved
    return matrix


def _jittered(matrix: Float[np.ndarray, "k l"], rng: np.random.Generator) -> Float[np.ndarray, "k l"]:
    return np.stack([rng.dirichlet(CONCENTRATION * row) for row in matrix])

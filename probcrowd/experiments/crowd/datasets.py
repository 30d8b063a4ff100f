"""Real data sets with features on which classifiers learned from annotators are compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from probcrowd.experiments.datasets import read_folder

SETS = ("labelme", "music_genre", "cifar10n")
CIFAR_TRAIN, CIFAR_VALID, CIFAR_TEST = 10_000, 500, 10_000  # of the 50,000 images with labels, drawn once
MUSIC_VALID = 100  # of the 300 test songs, drawn by the seed; selection by gold is scored on the others


@dataclass(frozen=True)
class CrowdTask:
    """A data set with its split.

    features: by item. labels: item, annotator, label of training items. truth: classes by item. test, valid:
    items.
    """

    name: str
    features: pd.DataFrame
    labels: pd.DataFrame
    truth: pd.Series
    test: pd.Index
    valid: pd.Index

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Build the network that all methods share: 128 units with dropout of one half.

        Music features come in different units, so for them batch normalisation stands before the first and
        before the last layer.
        """
        (width,) = shape
        music = self.name == "music_genre"
        first = [nn.BatchNorm1d(width, affine=False)] if music else []
        last = [nn.BatchNorm1d(128)] if music else []
        return nn.Sequential(
            *first, nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5), *last, nn.Linear(128, classes)
        )

    def split(self, seed: int) -> tuple[pd.Index, pd.Index]:
        """Items whose gold labels select an epoch, and items on which that selection is scored."""
        if len(self.valid):
            return self.valid, self.test
        order = np.random.default_rng(seed).permutation(len(self.test))
        return self.test[order[:MUSIC_VALID]], self.test[order[MUSIC_VALID:]]


def read_task(root: Path | None, name: str) -> CrowdTask:
    """Read a data set with its split into training, validation and test items.

    Raises:
        ValueError: see `probcrowd.experiments.datasets.read_folder`.
    """
    stored = read_folder(root, name)
    labels, features, items = stored.labels, stored.features, stored.features.index
    truth = pd.Series(stored.gold["label"].to_numpy(), stored.gold.index.rename("item"))
    if "split" in stored.tasks:
        test, valid = (items[(stored.tasks["split"] == part).to_numpy(bool)] for part in ("test", "valid"))
        return CrowdTask(name, features, labels, truth, test, valid)
    order = items[np.random.default_rng(0).permutation(len(items))]
    cuts = np.cumsum([CIFAR_TRAIN, CIFAR_VALID, CIFAR_TEST])
    train, valid, test, _ = (order[part] for part in np.split(np.arange(len(order)), cuts))
    used = features.loc[order[: cuts[2]]]
    return CrowdTask(name, used, labels.loc[labels["item"].isin(train)], truth, test, valid)

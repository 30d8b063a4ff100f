"""Real sets with features on which classifiers learned from annotators are compared, from a data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from probcrowd.experiments.lia.datasets import read_folder

CIFAR_TRAIN, CIFAR_VALID, CIFAR_TEST = 10_000, 500, 10_000  # of the 50,000 images with labels, drawn once
MUSIC_VALID = 100  # of the 300 test songs, drawn by the seed; selection by gold is judged on the others


@dataclass(frozen=True)
class CrowdTask:
    """features: by item. labels: item, annotator, label of the items to train on. truth: classes by item. test, valid: items."""

    name: str
    features: pd.DataFrame
    labels: pd.DataFrame
    truth: pd.Series
    test: pd.Index
    valid: pd.Index

    def network(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The same for all methods: 128 units and dropout of one half; for features in all units, standardised by batches before and after."""
        (width,) = shape
        if self.name != "music_genre":
            return nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes))
        inner = [
            nn.BatchNorm1d(width, affine=False),
            nn.Linear(width, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.BatchNorm1d(128),
        ]
        return nn.Sequential(*inner, nn.Linear(128, classes))

    def split(self, seed: int) -> tuple[pd.Index, pd.Index]:
        """Items to choose an epoch by with gold, and those to judge that choice on."""
        if len(self.valid):
            return self.valid, self.test
        order = np.random.default_rng(seed).permutation(len(self.test))
        return self.test[order[:MUSIC_VALID]], self.test[order[MUSIC_VALID:]]


SETS = ("labelme", "music_genre", "cifar10n")


def read_task(root: Path, name: str) -> CrowdTask:
    """The set in a folder of the data folder.

    Raises:
        ValueError: see `probcrowd.experiments.lia.datasets.read_folder`.
    """
    labels, gold, features = read_folder(root, name)
    truth = pd.Series(gold["label"].to_numpy(), gold.index.rename("item"))
    tasks, ids = pd.read_csv(root / name / "tasks.csv"), features.index
    if "split" in tasks:
        test, valid = (ids[(tasks["split"] == part).to_numpy(bool)] for part in ("test", "valid"))
        return CrowdTask(name, features, labels, truth, test, valid)
    order = ids[np.random.default_rng(0).permutation(len(ids))]
    cuts = np.cumsum([CIFAR_TRAIN, CIFAR_VALID, CIFAR_TEST])
    train, valid, test = order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] : cuts[2]]
    return CrowdTask(
        name, features.loc[order[: cuts[2]]], labels.loc[labels["item"].isin(train)], truth, test, valid
    )

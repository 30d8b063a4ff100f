"""Data sets with features, each in its own folder of the data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class StoredSet:
    """A data set as stored.

    labels: item, annotator, label, of repeated pairs the first. gold: by item. features, tasks: row per item.
    """

    labels: pd.DataFrame
    gold: pd.DataFrame
    features: pd.DataFrame
    tasks: pd.DataFrame


def read_folder(root: Path | None, name: str) -> StoredSet:
    """Read a data set from its folder below `root`.

    Raises:
        ValueError: no data folder, no such folder in it, or no features there.
    """
    if root is None:
        raise ValueError(f"{name} is read from the data folder: name it with --data or PROBCROWD_DATA")
    folder = root / name
    if not (folder / "features.npy").is_file():
        raise ValueError(
            f"{folder} holds no data set with features; name the data folder with --data or PROBCROWD_DATA"
        )
    labels = pd.read_parquet(folder / "annotations.parquet", columns=["task", "worker", "label"]).dropna()
    labels = labels.set_axis(["item", "annotator", "label"], axis=1).drop_duplicates(["item", "annotator"])
    gold = pd.read_parquet(folder / "gold.parquet").drop_duplicates("task").set_index("task")
    tasks = pd.read_csv(folder / "tasks.csv")
    features = np.load(folder / "features.npy")
    table = pd.DataFrame(
        features.reshape(len(features), -1).astype(np.float64),
        index=pd.Index(tasks["task"].astype(labels["item"].dtype)),
    )
    return StoredSet(labels.reset_index(drop=True), gold, table, tasks)

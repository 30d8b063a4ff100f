"""The data sets of the LIA paper as its tables use them, at a number of labels per item, from a data folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

REDUNDANCIES: dict[str, tuple[int, ...]] = {
    "bluebirds": (2, 5, 10, 20, 39),
    "snow_wordsim": (2, 5, 10),
    "snow_rte": (2, 5, 10),
    "medrel_cause": (2, 5, 10),
    "medrel_treat": (2, 5, 10),
}
SIMILAR, TRULY_SIMILAR = (
    5.0,
    2.0,
)  # word pairs: of 10 points by annotators, of 4 by the gold standard; section 9 of what its code does


@dataclass(frozen=True)
class CrowdSet:
    """labels: item, annotator, label. features: by item. truths: known classes by item, under the name of who says so."""

    name: str
    labels: pd.DataFrame
    features: pd.DataFrame
    truths: dict[str, pd.Series]

    def drawn(self, redundancy: int, seed: int) -> pd.DataFrame:
        """At most so many labels of every item, drawn at random."""
        shuffled = self.labels.sample(frac=1, random_state=seed)
        kept = shuffled.groupby("item", sort=False).cumcount() < redundancy
        return shuffled.loc[kept].sort_index()


def read_folder(root: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Of a folder of the data folder: labels (item, annotator, label), gold as it stands there by task, and features by item.

    Raises:
        ValueError: there is no such folder, or it has no features.
    """
    folder = root / name
    if not (folder / "features.npy").is_file():
        raise ValueError(
            f"{folder} holds no data set with features; give the data folder with --data or PROBCROWD_DATA"
        )
    labels = pd.read_parquet(folder / "annotations.parquet", columns=["task", "worker", "label"]).dropna()
    labels = (
        labels.set_axis(["item", "annotator", "label"], axis=1)
        .drop_duplicates(["item", "annotator"])
        .reset_index(drop=True)
    )
    gold = pd.read_parquet(folder / "gold.parquet").drop_duplicates("task").set_index("task")
    tasks = pd.read_csv(folder / "tasks.csv")["task"].astype(labels["item"].dtype)
    features = np.load(folder / "features.npy")
    return (
        labels,
        gold,
        pd.DataFrame(features.reshape(len(features), -1).astype(np.float64), index=pd.Index(tasks)),
    )


def read_set(root: Path, name: str) -> CrowdSet:
    """The set in a folder of the data folder.

    Raises:
        ValueError: see `read_folder`.
    """
    labels, gold, table = read_folder(root, name)
    truths: dict[str, Any]
    if name == "snow_wordsim":
        labels["label"] = (labels["label"] >= SIMILAR).astype(np.int64)
        truths = {"gold": (gold["label"] >= TRULY_SIMILAR).astype(np.int64)}
    elif name.startswith("medrel"):
        # The relation holds if the expert says so; the authors' code takes whether the expert agrees with distant supervision
        known = gold.dropna(subset=["expert"])
        truths = {
            "expert": (known["expert"] > 0).astype(np.int64),
            "as the authors' code": (known["expert"] * known["baseline"] > 0).astype(np.int64),
        }
    else:
        truths = {"gold": gold["label"].dropna().astype(np.int64)}
    labels["label"] = labels["label"].astype(np.int64)
    return CrowdSet(name, labels, table, truths)

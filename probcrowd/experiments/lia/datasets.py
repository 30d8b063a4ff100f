"""The data sets of the LIA paper as its tables use them, with a limited number of labels per item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.experiments.datasets import read_folder

REDUNDANCIES: dict[str, tuple[int, ...]] = {
    "bluebirds": (2, 5, 10, 20, 39),
    "snow_wordsim": (2, 5, 10),
    "snow_rte": (2, 5, 10),
    "medrel_cause": (2, 5, 10),
    "medrel_treat": (2, 5, 10),
}
MEDICAL = ("medrel_cause", "medrel_treat")
# Word pairs are similar from 5 of 10 points by annotators and 2 of 4 in the gold standard, as in their code
SIMILAR, TRULY_SIMILAR = 5.0, 2.0


@dataclass(frozen=True)
class CrowdSet:
    """labels: item, annotator, label. features: by item. truths: classes by item, by definition of truth."""

    name: str
    labels: pd.DataFrame
    features: pd.DataFrame
    truths: dict[str, pd.Series]

    def draw(self, redundancy: int, seed: int) -> pd.DataFrame:
        """Draw at most `redundancy` labels of each item at random."""
        shuffled = self.labels.sample(frac=1, random_state=seed)
        return shuffled.loc[shuffled.groupby("item", sort=False).cumcount() < redundancy].sort_index()


def read_set(root: Path | None, name: str) -> CrowdSet:
    """Read a data set of the paper.

    Raises:
        ValueError: see `probcrowd.experiments.datasets.read_folder`.
    """
    stored = read_folder(root, name)
    labels, gold = stored.labels, stored.gold
    truths: dict[str, Any]
    if name == "snow_wordsim":
        labels["label"] = labels["label"] >= SIMILAR
        truths = {"gold": gold["label"] >= TRULY_SIMILAR}
    elif name in MEDICAL:
        # The relation holds if the expert says so; the authors' code scores whether the expert agrees with
        # distant supervision
        known = gold.dropna(subset=["expert"])
        truths = {
            "expert": known["expert"] > 0,
            "as the authors' code": known["expert"] * known["baseline"] > 0,
        }
    else:
        truths = {"gold": gold["label"].dropna()}
    labels["label"] = labels["label"].astype(np.int64)
    return CrowdSet(
        name, labels, stored.features, {key: truth.astype(np.int64) for key, truth in truths.items()}
    )

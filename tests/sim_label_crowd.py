"""A small simulated table for `SimLabel`, quick fits, and a comparison of two fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from probcrowd.data.table import read_table
from probcrowd.estimators.network.inputs import read_items
from probcrowd.estimators.network.split import split_items
from probcrowd.estimators.simlabel.options import ARCHITECTURES
from probcrowd.estimators.simlabel.sim_label import SimLabel

CLASSES = np.array(["ant", "bee", "cat"])
LOW = 0.02  # a threshold that many soft labels reach after a few epochs
every_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def simulate(items: int = 60, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Three classes that features determine, five annotators with accuracies of 60 to 95 %, three labels an
    item.

    The last ten items have no labels. The first rows have one of each annotator, from "u" to "y".
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items + 10, 4))
    truth = (x @ rng.normal(size=(4, 3))).argmax(1)
    item = np.repeat(np.arange(items), 3)
    annotator = np.concatenate([rng.choice(5, 3, replace=False) for _ in range(items)])
    right = rng.random(len(item)) < np.linspace(0.6, 0.95, 5)[annotator]
    ids = np.array([f"pic{n}" for n in range(items + 10)])
    columns = {"item": ids[item], "annotator": np.array([*"uvwxy"])[annotator]}
    table = pd.DataFrame(
        columns | {"label": CLASSES[np.where(right, truth[item], rng.integers(0, 3, len(item)))]}
    )
    return (
        shuffled(table.sort_values("annotator"), seed),
        pd.DataFrame(x, ids, [*"abcd"]),
        pd.Series(CLASSES[truth], ids),
    )


def shuffled(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Shuffle the rows, keeping the order in which annotators first occur."""
    first = table.drop_duplicates("annotator")
    return pd.concat([first, table.drop(first.index).sample(frac=1, random_state=seed)], ignore_index=True)


def embed(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.ReLU())


def ready(architecture: str = "madl", encoder: Any = embed, **more: Any) -> SimLabel:
    options = {"width": 16} if architecture == "qumatl" else {}
    return SimLabel(
        encoder=encoder,
        architecture=architecture,
        **{"epochs": 3, "batch": 16, "learning_rate": 0.02, "options": options} | more,
    )


def held_out(table: pd.DataFrame, X: pd.DataFrame, seed: int = 0) -> list[str]:
    _, part = split_items(read_table(table), read_items(X), 0.1, seed, "cpu")
    return list(X.index[part.place.numpy()])


def require_same(left: SimLabel, right: SimLabel, X: Any) -> None:
    """Assert that two fits have the same results, bit for bit."""
    pd.testing.assert_frame_equal(left.history_, right.history_, check_exact=True)
    pd.testing.assert_frame_equal(left.predict_proba(X), right.predict_proba(X), check_exact=True)
    pd.testing.assert_frame_equal(left.annotator_proba(X), right.annotator_proba(X), check_exact=True)
    for name in (
        "imputed_",
        "withdrawn_",
        "similarity_",
        "similarity_matrix_",
        "refreshed_similarity_matrix_",
        "annotators_",
    ):
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name), check_exact=True, obj=name)
    assert left.epoch_ == right.epoch_ and left.classes_.equals(right.classes_)

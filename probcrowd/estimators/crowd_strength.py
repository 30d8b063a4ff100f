"""How strong a method's term should be, without gold: the strongest that foretells held-out labels as well as the best does.

Along the ambiguity that a volume settles (`probcrowd.models.channels.mixture`) the probabilities of labels do not change at all, so held-out labels
cannot see what it is good for. They can see when it begins to do harm; below that, more of it is what identifies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from probcrowd.storage.files import write_table

STRENGTHS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
_FILE = "strengths.csv"


def compared_strengths(scores: Callable[[float], np.ndarray], weight: np.ndarray, out: Path | None) -> pd.DataFrame:
    """By strength: the mean log score of held-out labels in nats, how much less that is than the best, and the standard error of this.

    out: a folder that keeps the table.
    """
    if out is not None and (out / _FILE).is_file():
        return load_strengths(out)
    found = np.stack([scores(strength) for strength in STRENGTHS])
    mean = np.average(found, axis=1, weights=weight)
    lost = found[mean.argmax()] - found
    error = [float(np.std(row * weight / weight.mean(), ddof=1)) / math.sqrt(len(weight)) if len(weight) > 1 else 0.0 for row in lost]
    table = pd.DataFrame(
        {"score": mean, "lost": np.average(lost, axis=1, weights=weight), "standard_error": error}, pd.Index(STRENGTHS, name="strength")
    )
    if out is not None:
        write_table(out / _FILE, table)
    return load_strengths(out) if out is not None else table


def load_strengths(out: Path) -> pd.DataFrame:
    """The table that a folder keeps."""
    return pd.read_csv(out / _FILE, index_col="strength")


def chosen_strength(table: pd.DataFrame) -> float:
    """The strongest that is within a standard error of the best."""
    return float(table.index[(table["lost"] <= table["standard_error"]).to_numpy(bool)].max())

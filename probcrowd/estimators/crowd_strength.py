"""How strong a method's term should be, without gold: the strongest that foretells held-out items about as well as the best does.

Along the ambiguity that a volume settles (`probcrowd.models.channels.mixture`) the probabilities of single labels do not change, so these cannot see
what it is good for. All labels of an item together can: given its class they are independent under the right confusion matrices alone. So the
score is the log probability of all labels of an item; where items have one label each, it sees only when the term begins to do harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from probcrowd.storage.files import write_table

STRENGTHS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_FILE = "strengths.csv"


def compared_strengths(scores: Callable[[float], np.ndarray], out: Path | None) -> pd.DataFrame:
    """By strength: the mean score of the items held out, how much less that is than the best, and the standard error of this.

    scores: of every item. out: a folder that keeps the table.
    """
    if out is not None and (out / _FILE).is_file():
        return load_strengths(out)
    found = np.stack([scores(strength) for strength in STRENGTHS])
    lost = found[found.mean(1).argmax()] - found
    error = lost.std(1, ddof=1) / math.sqrt(found.shape[1]) if found.shape[1] > 1 else np.zeros(len(found))
    columns = {"score": found.mean(1), "lost": lost.mean(1), "standard_error": error}
    table = pd.DataFrame(columns, pd.Index(STRENGTHS, name="strength"))
    if out is None:
        return table
    write_table(out / _FILE, table)
    return load_strengths(out)


def load_strengths(out: Path) -> pd.DataFrame:
    """The table that a folder keeps."""
    return pd.read_csv(out / _FILE, index_col="strength")


def chosen_strength(table: pd.DataFrame, *, gold: bool = False) -> float:
    """The strongest that is within a standard error of the best; by gold the best, as published."""
    if gold:
        return float(table.index[table["score"].to_numpy().argmax()])
    return float(table.index[(table["lost"] <= table["standard_error"]).to_numpy(bool)].max())

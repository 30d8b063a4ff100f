"""How strong a method's term should be, without gold: the strongest that foretells held-out items about as well as the best does.

Along the ambiguity that a volume settles (`probcrowd.models.crowd.mixture`) the probabilities of single labels do not change, so these cannot see
what it is good for. All labels of an item together can: given its class they are independent under the right confusion matrices alone. So the
score is the log probability of all labels of an item; where items have one label each, it sees only when the term begins to do harm. No
label sees classes named anew, which a term does that overwhelms the start: such strengths are told by their agreement with the votes, and left out.
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


def compared_strengths(
    scores: Callable[[float], tuple[np.ndarray, bool] | None], out: Path | None
) -> pd.DataFrame:
    """By strength: the mean score of the items held out, how much less that is than the best, the standard error of this, and `renamed`.

    scores: of every item, and whether classes were named anew; None where the training came to no numbers. out: a folder that keeps the table.

    Raises:
        FloatingPointError: no training came to numbers.
    """
    if out is not None and (out / _FILE).is_file():
        return load_strengths(out)
    both = [scores(strength) for strength in STRENGTHS]
    some = next((one for one in both if one is not None), None)
    if some is None:
        raise FloatingPointError("trainings of all strengths came to no numbers: lower the learning rate")
    found, anew = (
        np.stack([np.full(len(some[0]), np.nan) if one is None else one[0] for one in both]),
        [one is None or one[1] for one in both],
    )
    lost = found[np.where(anew, -np.inf, found.mean(1)).argmax()] - found
    error = lost.std(1, ddof=1) / math.sqrt(found.shape[1]) if found.shape[1] > 1 else np.zeros(len(found))
    columns = {"score": found.mean(1), "lost": lost.mean(1), "standard_error": error, "renamed": anew}
    table = pd.DataFrame(columns, pd.Index(STRENGTHS, name="strength"))
    if out is None:
        return table
    write_table(out / _FILE, table)
    return load_strengths(out)


def load_strengths(out: Path) -> pd.DataFrame:
    """The table that a folder keeps."""
    return pd.read_csv(out / _FILE, index_col="strength")


def chosen_strength(table: pd.DataFrame, *, strongest: bool) -> float:
    """The best, or the strongest that is within a standard error of it, where strength is what identifies; none that names classes anew."""
    left = table.loc[~table["renamed"].to_numpy(bool)]
    left = left if len(left) else table.dropna()
    if not strongest:
        return float(left.index[left["score"].to_numpy().argmax()])
    return float(left.index[(left["lost"] <= left["standard_error"]).to_numpy(bool)].max())

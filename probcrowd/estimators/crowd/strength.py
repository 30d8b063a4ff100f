"""Select the strength of a method's term without gold: the largest that scores about as well as the best one.

Along the ambiguity that a volume resolves (`probcrowd.models.crowd.mixture`) the probabilities of single
labels do not change, so they cannot show whether the term helps. All labels of an item together can: given
its class they are independent only under the right confusion matrices. So the score is the log probability of
all labels of an item; where items have one label each, it shows only when the term starts to harm. No label
shows permuted classes, which a term causes when it overwhelms the initial values: such strengths are
recognised by the votes and skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

STRENGTHS = (0.0, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def compare_strengths(fit_scores: Callable[[float], tuple[np.ndarray, bool] | None]) -> pd.DataFrame:
    """By strength: mean score, loss against the best with its standard error, and whether it permutes
    classes.

    fit_scores: scores by held-out item and whether the fit permuted the classes; None if training diverged.

    Raises:
        FloatingPointError: training diverged at every strength.
    """
    fits = [fit_scores(strength) for strength in STRENGTHS]
    size = next((len(fit[0]) for fit in fits if fit is not None), None)
    if size is None:
        raise FloatingPointError("training diverged at every strength: lower the learning rate")
    scores = np.stack([np.full(size, np.nan) if fit is None else fit[0] for fit in fits])
    permuted = [fit is None or fit[1] for fit in fits]
    lost = scores[np.where(permuted, -np.inf, scores.mean(1)).argmax()] - scores
    error = lost.std(1, ddof=1) / math.sqrt(size) if size > 1 else np.zeros(len(scores))
    columns = {"score": scores.mean(1), "lost": lost.mean(1), "standard_error": error, "permuted": permuted}
    return pd.DataFrame(columns, pd.Index(STRENGTHS, name="strength"))


def select_strength(table: pd.DataFrame, *, strongest: bool) -> float:
    """The best strength, or with `strongest=True` the largest one within one standard error of it.

    Strengths that permute the classes are skipped, unless all do.
    """
    candidates = table.loc[~table["permuted"].to_numpy(bool)]
    candidates = candidates if len(candidates) else table.dropna()
    if not strongest:
        return float(candidates.index[candidates["score"].to_numpy().argmax()])
    close = (candidates["lost"] <= candidates["standard_error"]).to_numpy(bool)
    return float(candidates.index[close].max())

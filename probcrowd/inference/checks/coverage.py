"""Posteriors of annotators' accuracies against gold labels that the fit did not see; `probcrowd.metrics.scores` has label probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from probcrowd.inference.posterior.tree import array
from probcrowd.metrics.intervals import LEVELS, central
from probcrowd.metrics.scores import TIE


def accuracy_coverage(
    tree: xr.DataTree, gold: Int[np.ndarray, " i"], generator: np.random.Generator, *, least: int = 5
) -> pd.DataFrame:
    """How often the posterior's intervals hold the share of an annotator's labels that gold says are right, at 50, 80, 90 and 95 %.

    The fit saw these labels; of that share it does not know the true classes alone. So the true classes are those drawn from
    p(truth | labels, parameters), a draw for all annotators. An interval for labels yet to come would be wider, and would hold such a
    share too often. Annotators with `least` labels of items with gold or more; at most 1,000 draws, chosen at random.
    """
    item, annotator = (array(tree, "constant_data", name) for name in ("row_item", "row_annotator"))
    label, truths = array(tree, "observed_data", "label"), array(tree, "truth", "truth")
    known = gold[item] >= 0
    item, annotator, label = item[known], annotator[known], label[known]
    asked = np.bincount(annotator, minlength=int(tree.attrs["num_annotators"]))
    chosen = asked >= least

    def shares(truth: Int[np.ndarray, " i"]) -> Float[np.ndarray, " j"]:
        return np.bincount(annotator, label == truth[item], len(asked))[chosen] / asked[chosen]

    truths = generator.permutation(truths.reshape(-1, len(gold)))[:1000]
    drawn = np.stack([shares(truth) for truth in truths])  # (s, j)
    right, rows = shares(gold), []
    for nominal in LEVELS:
        lower, upper = np.quantile(drawn, central(nominal), axis=0)
        inside = (right >= lower - TIE) & (right <= upper + TIE)
        rows.append(
            {
                "nominal": nominal,
                "covered": inside.mean() if len(inside) else np.nan,
                "annotators": int(chosen.sum()),
            }
        )
    return pd.DataFrame(rows)

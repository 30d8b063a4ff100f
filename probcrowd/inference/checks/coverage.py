"""Coverage of annotators' accuracies by the posterior, on gold labels that the fit did not see;
`probcrowd.metrics.scores` scores label probabilities.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from probcrowd.inference.posterior.tree import array
from probcrowd.metrics.intervals import LEVELS, central
from probcrowd.metrics.scores import TIE

MIN_LABELS = 5
MAX_DRAWS = 1000


def accuracy_coverage(
    tree: xr.DataTree, gold: Int[np.ndarray, " i"], generator: np.random.Generator
) -> pd.DataFrame:
    """Return how often posterior intervals at 50, 80, 90 and 95 % cover the share of an annotator's labels
    that are right by gold.

    The fit saw these labels, so only the true classes are unknown: they are drawn from p(truth | labels,
    parameters), jointly for all annotators. Intervals for future labels would be wider and would cover this
    share too often. Annotators with at least `MIN_LABELS` labels of items with gold; at most 1,000 draws,
    chosen at random.
    """
    item, annotator = (array(tree, "constant_data", name) for name in ("row_item", "row_annotator"))
    label, truths = array(tree, "constant_data", "row_label"), array(tree, "truth", "truth")
    known = gold[item] >= 0
    item, annotator, label = item[known], annotator[known], label[known]
    num_labels = np.bincount(annotator, minlength=int(tree.attrs["num_annotators"]))
    chosen = num_labels >= MIN_LABELS

    def shares(truth: Int[np.ndarray, " i"]) -> Float[np.ndarray, " j"]:
        return np.bincount(annotator, label == truth[item], len(num_labels))[chosen] / num_labels[chosen]

    truths = generator.permutation(truths.reshape(-1, len(gold)))[:MAX_DRAWS]
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

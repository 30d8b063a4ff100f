"""What a posterior says of items and annotators, as tables under the user's ids."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import xarray as xr

from probcrowd.inference.checks.prior_sensitivity import accuracy
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.intervals import CENTRAL, CENTRAL_HALF
from probcrowd.metrics.scores import predicted

ANNOTATOR_COLUMNS = [
    "accuracy_mean",
    "accuracy_sd",
    "lower_95",
    "lower_50",
    "upper_50",
    "upper_95",
    "plug_in_accuracy",
]


def item_table(tree: xr.DataTree) -> pd.DataFrame:
    """Per item: p(class | labels) averaged over the draws, the most probable class, how probable it is, and the same number at EM's point."""
    averaged, plugged = array(tree, "responsibilities", "mean"), array(tree, "plug_in", "responsibility")
    classes = class_names(tree)
    own = ["most_probable_class", "confidence", "plug_in_confidence"]
    # A class may be called like a column
    columns = [f"class {name}" if name in ["item", *own] else name for name in classes]
    table = pd.DataFrame(averaged, pd.Index(array(tree, "constant_data", "item"), name="item"), columns)
    return table.assign(
        **dict(
            zip(own, (np.array(classes)[predicted(averaged)], averaged.max(1), plugged.max(1)), strict=True)
        )
    )


def annotator_table(tree: xr.DataTree, annotators: pd.Index | None = None) -> pd.DataFrame:
    """Per annotator: number of labels, and P(label = truth): posterior mean, standard deviation, central intervals, and EM's point.

    Where annotators share a matrix they all have its numbers; a model without matrices gives none (NaN). annotators: their ids, which trees
    of such models do not hold; codes stand for them otherwise.
    """
    labels = np.bincount(
        array(tree, "constant_data", "row_annotator"), minlength=int(tree.attrs["num_annotators"])
    )
    posterior = dataset(tree, "posterior")
    if "annotator" in posterior.coords:
        ids = pd.Index(posterior["annotator"].to_numpy())
    else:
        ids = pd.RangeIndex(len(labels)) if annotators is None else annotators
    table = pd.DataFrame({"labels": labels}, index=ids.rename("annotator"))
    if "confusion" not in posterior:
        return table.assign(**dict.fromkeys(ANNOTATOR_COLUMNS, np.nan))
    right = accuracy(posterior).transpose("chain", "draw", ...).to_numpy()
    right = right.reshape(-1, *right.shape[2:])  # (s, j), or (s,) where all share one matrix
    lower_95, lower_50, upper_50, upper_95 = np.quantile(
        right, [CENTRAL[0], *CENTRAL_HALF, CENTRAL[1]], axis=0
    )
    plugged = accuracy(dataset(tree, "plug_in")).to_numpy()
    values = (right.mean(0), right.std(0), lower_95, lower_50, upper_50, upper_95, plugged)
    return table.assign(**dict(zip(ANNOTATOR_COLUMNS, values, strict=True)))


def class_names(tree: xr.DataTree) -> list[str]:
    """The classes as text, in the order of their codes."""
    return json.loads(tree.attrs["classes"])

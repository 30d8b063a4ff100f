"""Tables of items and annotators from a posterior, under the user's ids."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import xarray as xr

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
    """Return a row per item: p(class | labels) averaged over draws, the most probable class, its probability,
    and the highest one at the mode.
    """
    averaged, plugged = array(tree, "responsibilities", "mean"), array(tree, "plug_in", "responsibility")
    classes = class_names(tree)
    own = ["most_probable_class", "confidence", "plug_in_confidence"]
    # A class may have the name of a column
    columns = [f"class {name}" if name in ["item", *own] else name for name in classes]
    table = pd.DataFrame(averaged, pd.Index(array(tree, "constant_data", "item"), name="item"), columns)
    return table.assign(
        **dict(
            zip(own, (np.array(classes)[predicted(averaged)], averaged.max(1), plugged.max(1)), strict=True)
        )
    )


def annotator_table(tree: xr.DataTree, annotators: pd.Index | None = None) -> pd.DataFrame:
    """Return a row per annotator: labels given, and the posterior mean, standard deviation, central intervals
    and mode of P(label = truth).

    Annotators who share a matrix share its numbers; a model without confusion matrices gives NaN. annotators:
    their ids, which trees of such models do not contain; codes are used without them.
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
    """Return the classes as text, in the order of their codes."""
    return json.loads(tree.attrs["classes"])


def accuracy(posterior: xr.Dataset) -> xr.DataArray:
    """Return P(label = truth) per annotator: the diagonal of the confusion matrix, weighted by the class
    prior (uniform in models without one).
    """
    confusion = posterior["confusion"]
    same = xr.DataArray(np.eye(confusion.sizes["true_class"]), dims=("true_class", "given_label"))
    right = (confusion * same).sum("given_label")
    return (
        (right * posterior["class_prior"]).sum("true_class")
        if "class_prior" in posterior
        else right.mean("true_class")
    )

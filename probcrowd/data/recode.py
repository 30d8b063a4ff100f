"""Bring a new table into the codes of a fit."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd

from probcrowd.data.files import some
from probcrowd.data.table import Table
from probcrowd.data.validation import reject


def recode(table: Table, annotators: pd.Index, classes: pd.Index, num_labels: int) -> Table:
    """Return the table in the codes of a fit; new annotators get codes after those of the fit.

    Gold labels must be coded by `classes` already (see `read_table`).

    Raises:
        ValueError: labels that the fit does not know, or abstentions as events where the fit ignored them.
    """
    place = classes.get_indexer(table.classes)
    used = np.unique(table.label[table.label < len(table.classes)])
    unknown = np.zeros(len(table.classes), bool)
    unknown[used] = place[used] < 0
    if unknown.any():
        wrong = np.isin(table.label, np.flatnonzero(unknown))
        named = pd.Series(table.classes[table.label[wrong]], index=table.items[table.item[wrong]])
        reject(
            np.ones(len(named), bool),
            named,
            f"labels of items that the fit does not know: its classes are {list(classes[:10])}",
        )
    if table.num_labels > len(table.classes) and num_labels == len(classes):
        raise ValueError("the fit ignored abstentions, so they can be no events here")
    new = table.annotators[annotators.get_indexer(table.annotators) < 0]
    everyone = annotators.append(new) if len(new) else annotators
    return replace(
        table,
        annotator=everyone.get_indexer(table.annotators)[table.annotator].astype(np.int64),
        label=np.append(place, len(classes))[table.label].astype(np.int64),
        annotators=everyone,
        classes=classes,
        num_labels=num_labels,
    )


def warn_of_unknown(table: Table, num_known: int, meaning: str) -> None:
    """Warn about annotators of a new table that the fit has not seen; `meaning` says how their labels are
    treated.
    """
    unknown = table.annotators[num_known:]
    if len(unknown):
        warnings.warn(
            f"{len(unknown)} annotators are not known from the fit and {meaning}: {some(unknown)}",
            UserWarning,
            stacklevel=4,
        )

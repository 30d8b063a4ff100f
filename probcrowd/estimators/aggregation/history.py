"""Earlier counts, used as prior counts of a fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from probcrowd.data.table import Cells, Table
from probcrowd.data.validation import declare, reject


@dataclass(frozen=True)
class History:
    """Counts by (annotator, label) pair, coded as one number, and by true class."""

    key: Int64[np.ndarray, " m"]
    true_class: Int64[np.ndarray, " m"]
    count: Float64[np.ndarray, " m"]

    def by_cell(self, cells: Cells) -> Float64[np.ndarray, "p k"]:
        """Sum the counts by cell and class."""
        counts = np.zeros((len(cells), cells.num_classes))
        np.add.at(counts, (cells.locate(self.key), self.true_class), self.count)
        return counts


def read_history(table: Table, history: pd.DataFrame, abstention: Any) -> tuple[Table, History]:
    """Read a history in the form of `counts_`; return the table with the annotators of both, and the history
    in its codes.

    Raises:
        TypeError, ValueError: columns, ids, classes, labels or counts that cannot be read.
    """
    if not isinstance(history, pd.DataFrame):
        raise TypeError(f"the history must be a data frame, as `counts_` is, not {type(history).__name__}")
    missing = {"annotator", "true_class", "label", "count"} - set(history.columns)
    if missing:
        raise ValueError(
            "the history needs the columns annotator, true_class, label and count; "
            f"{', '.join(sorted(missing))} is missing"
        )
    column: dict[str, pd.Series] = {
        name: history.loc[:, name] for name in ("annotator", "true_class", "label", "count")
    }
    reject(
        column["annotator"].isna().to_numpy(bool), column["annotator"], "missing annotator ids in the history"
    )
    count = pd.Series(pd.to_numeric(column["count"], errors="coerce")).to_numpy(np.float64, na_value=np.nan)
    reject(
        ~(np.isfinite(count) & (count >= 0)), column["count"], "counts of the history must be finite and >= 0"
    )
    new = pd.Index(column["annotator"].unique())
    new = new[table.annotators.get_indexer(new) < 0]
    # `declare` rejects ids of another type ("1" and 1), whose history would be lost
    table = (
        replace(table, annotators=declare(table.annotators.append(new), "annotators")) if len(new) else table
    )
    known = table.classes.get_indexer(pd.Index(column["true_class"]))
    reject(
        known < 0, column["true_class"], f"classes of the history that are none of {list(table.classes[:10])}"
    )
    label = table.classes.get_indexer(pd.Index(column["label"]))
    if table.num_labels > len(table.classes):
        label = np.where(np.asarray(column["label"] == abstention, dtype=bool), len(table.classes), label)
    reject(label < 0, column["label"], f"labels of the history that are none of {list(table.classes[:10])}")
    key = table.annotators.get_indexer(pd.Index(column["annotator"])) * table.num_labels + label
    return table, History(key.astype(np.int64), known.astype(np.int64), count)

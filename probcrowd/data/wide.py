"""Convert between long tables of annotations and items x annotators matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64
from pandas.api.types import infer_dtype

from probcrowd.data.validation import declare, factorize, plain, reject, undo_float

MAX_CELLS = 10**8


def wide_to_long(
    matrix: Any, missing_label: Any, classes: Any, items: Any, annotators: Any
) -> tuple[pd.DataFrame, pd.Index, pd.Index]:
    """Return a frame with columns item, annotator, label, row by row, and the ids of all rows and columns.

    Its index is (item, annotator), so that messages name cells. See `Annotations.from_wide` for the
    arguments.
    """
    if not isinstance(matrix, pd.DataFrame):
        matrix = _frame(matrix, items, annotators)
    rows, columns = declare(matrix.index, "items"), declare(matrix.columns, "annotators")
    # One column after the other
    cells = plain(pd.Series(matrix.set_axis(range(len(columns)), axis=1).melt()["value"]))
    codes, values = factorize(cells)
    given = codes >= 0
    if missing_label is not None and len(values):
        given &= ~np.asarray(values.astype(object) == missing_label, dtype=bool)[codes]
    place = np.flatnonzero(given)
    place = place[np.argsort(place % len(rows), kind="stable")]  # row by row
    item, annotator = place % len(rows), place // len(rows)
    labels = cells.iloc[place]
    if len(labels) < len(cells):
        labels = undo_float(labels)
    if isinstance(labels.dtype, pd.CategoricalDtype) and missing_label in labels.cat.categories:
        labels = labels.cat.set_categories(labels.cat.categories.drop(missing_label))
    levels = [rows.astype(object), columns.astype(object)]
    labels.index = pd.MultiIndex(levels=levels, codes=[item, annotator])
    if missing_label is None and classes is None:
        distinct = undo_float(pd.Series(factorize(labels)[1])).astype(object)
        if infer_dtype(distinct) == "integer":
            remedy = "set missing_label=-1, or declare classes"
            reject((labels == -1).to_numpy(bool), labels, f"-1 usually marks 'not labelled': {remedy}")
    names = {"item": rows[item], "annotator": columns[annotator], "label": labels.array}
    return pd.DataFrame(names, labels.index), rows, columns


def long_to_wide(
    item: Int64[np.ndarray, " n"],
    annotator: Int64[np.ndarray, " n"],
    label: pd.Index,
    items: pd.Index,
    annotators: pd.Index,
) -> pd.DataFrame:
    """Arrange labels in a matrix by the codes of items and annotators.

    Raises:
        ValueError: a pair has several labels, or the matrix would have more than `MAX_CELLS` cells.
    """
    if len(items) * len(annotators) > MAX_CELLS:
        sizes = f"{len(items)} items x {len(annotators)} annotators = {len(items) * len(annotators)} cells"
        raise ValueError(
            f"{sizes}, more than {MAX_CELLS}: use to_frame(), or make a table of fewer items first"
        )
    pairs = pd.DataFrame({"item": item, "annotator": annotator})
    repeated = pairs.duplicated(keep=False).to_numpy()
    if repeated.any():
        named = pd.Series(list(zip(items[item], annotators[annotator], strict=True)))
        reject(
            repeated,
            named,
            "a wide table has one cell per (item, annotator) pair and these have several; use to_frame()",
        )
    wide = pd.Series(label.array, index=pd.MultiIndex.from_frame(pairs)).unstack()
    return wide.reindex(index=range(len(items)), columns=range(len(annotators)))


def _frame(matrix: Any, items: Any, annotators: Any) -> pd.DataFrame:
    """The matrix with the declared ids of its rows and columns, or 0, 1, ..."""
    values = matrix if isinstance(matrix, np.ndarray) else np.array(matrix, dtype=object)
    if values.ndim != 2:
        needs = "2-D, items x annotators, with rows of equal length"
        raise ValueError(f"the matrix must be {needs}; its shape is {values.shape}")
    frame = pd.DataFrame(values)
    for axis, (plural, ids) in enumerate({"items": items, "annotators": annotators}.items()):
        if ids is not None and len(ids) != values.shape[axis]:
            shape = f"a matrix of shape {values.shape}, items x annotators"
            raise ValueError(f"{len(ids)} {plural} declared for {shape}")
        frame = frame if ids is None else frame.set_axis(declare(ids, plural), axis=axis)
    return frame

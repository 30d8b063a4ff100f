"""Tables in files, read as the library needs them, and one published table that comes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.data.annotations import Annotations

_ITEM, _ANNOTATOR = ("item", "task"), ("annotator", "worker", "rater", "user")


def anesthesia() -> Annotations:
    """The fitness for anaesthesia of 45 patients, 1 to 4, as 5 anaesthetists judged it, the first of them three times (Dawid and Skene 1979, table 1).

    No gold labels exist. Each of the 315 judgements counts: a patient's three by one annotator are three rows.
    """
    with files("probcrowd.data").joinpath("anesthesia.csv").open() as file:
        return Annotations.from_frame(pd.read_csv(file), duplicates="count")


def read_features(path: Path) -> pd.DataFrame:
    """Inputs by item from .csv, .parquet (ids in the column `item`, or `task`; else rows are items 0, 1, ...) or .npy (n, ...).

    Item ids of files are text, so that 007 is not 7 and files of different formats agree.

    Raises:
        ValueError: no such file, another ending, or pickled objects in the file.
    """
    return _features(path, _ITEM)


def read_annotator_features(path: Path, annotations: Annotations) -> pd.DataFrame:
    """Numbers by annotator, as `read_features` has them by item (ids in the column `annotator`, `worker`, `rater` or `user`); ids of the
    annotations are the annotations' own, text or not.

    Raises:
        ValueError: as `read_features`.
    """
    frame = _features(path, _ANNOTATOR)
    own = {str(name): name for name in annotations.annotators}
    return frame.set_axis([own.get(name, name) for name in frame.index], axis=0)


def read_annotations(
    path: Path,
    *,
    item: str | None = None,
    annotator: str | None = None,
    label: str | None = None,
    weight: str | None = None,
    duplicates: str = "error",
    missing: str = "error",
) -> Annotations:
    """Annotations from .csv or .parquet with columns item, annotator, label (or task, worker, label), or those named.

    Item ids are text, and so is all of a .csv file but the weights: 007 is not 7, "NA" is a label like any other, an empty cell is missing.

    Raises:
        ValueError: no such file, another ending, or any fault of the table.
    """
    frame = _table(path, "annotations")
    if path.suffix == ".csv":
        frame = frame.assign(**{weight: pd.to_numeric(frame[weight])}) if weight in frame.columns else frame
    else:
        ids = [
            name for name in ([item] if item else _ITEM) if name in frame.columns and not frame[name].hasnans
        ]
        frame = frame.astype(dict.fromkeys(ids, str))
    if weight is None and "weight" in frame.columns:
        raise ValueError(
            f"{path} has a column 'weight': name it with --weight weight, or remove it if each row counts once"
        )
    columns: dict[str, Any] = {"item": item, "annotator": annotator, "label": label, "weight": weight}
    return Annotations.from_frame(frame, **columns, duplicates=duplicates, missing=missing)


def named_columns(text: str | None) -> dict[str, str]:
    """The columns that "item=task,label=answer" names.

    Raises:
        ValueError: a part that is no pair, or a role that is none of item, annotator, label and weight.
    """
    pairs = [part.split("=", 1) for part in text.split(",")] if text else []
    wrong = [
        pair
        for pair in pairs
        if len(pair) != 2
        or pair[0].strip() not in ("item", "annotator", "label", "weight")
        or not pair[1].strip()
    ]
    if wrong:
        raise ValueError(
            f"columns are named as item=NAME,annotator=NAME,label=NAME,weight=NAME; got {'='.join(wrong[0])!r}"
        )
    return {role.strip(): name.strip() for role, name in pairs}


def read_gold(path: Path, annotations: Annotations) -> pd.Series:
    """Known classes by item as `read_classes` has them, with item ids as text, and text or numbers as the annotations have them.

    Raises:
        ValueError: no such file, another ending, or columns that are missing.
    """
    gold = read_classes(path)
    gold = gold.set_axis(gold.index.astype(str))
    if pd.api.types.is_numeric_dtype(annotations.classes):
        return gold.astype(annotations.classes.dtype)
    return gold if annotations.classes.dtype == gold.dtype else gold.map(str)


def read_classes(path: Path) -> pd.Series:
    """Known classes by item from .csv (all text) or .parquet with columns item (or task) and label (or gold).

    Raises:
        ValueError: no such file, another ending, or columns that are missing.
    """
    frame = _table(path, "gold labels")
    names = [
        next((name for name in wanted if name in frame.columns), None)
        for wanted in (_ITEM, ("label", "gold"))
    ]
    if None in names:
        raise ValueError(
            f"{path} needs the columns item (or task) and label (or gold), it has {', '.join(map(str, frame.columns))}"
        )
    return pd.Series(frame[names[1]].array, index=pd.Index(frame[names[0]])).dropna()


def by_item(rows: pd.DataFrame | np.ndarray, name: str) -> pd.DataFrame:
    """A row of numbers per item; arrays are flattened, and their items are 0, 1, ..."""
    if isinstance(rows, pd.DataFrame):
        frame = rows
    elif rows.ndim >= 2 and rows.dtype.kind in "buif":
        frame = pd.DataFrame(rows.reshape(len(rows), math.prod(rows.shape[1:])))
    else:
        raise ValueError(
            f"{name}: an array of numbers with one row per item is needed, got shape {rows.shape} of {rows.dtype}"
        )
    repeated = frame.index[frame.index.duplicated()]
    if len(repeated):
        raise ValueError(f"{name}: the item ids {some(repeated)} occur more than once")
    return frame


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with text that a spreadsheet would run as a formula prefixed with an apostrophe: ids come from strangers."""
    text = [column for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    return frame.assign(**{column: frame[column].map(_defused) for column in text}).rename(columns=_defused)


def some(values: Sequence[object] | pd.Index) -> str:
    """The first few, for a message."""
    shown = ", ".join(repr(value) for value in list(values)[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _features(path: Path, ids: Sequence[str]) -> pd.DataFrame:
    """Numbers by text: the first of those columns that there is, or the number of the row."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".npy":
        frame = by_item(np.load(path, allow_pickle=False), str(path))
        return frame.set_axis(frame.index.astype(str), axis=0)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: features are read from .csv, .parquet or .npy")
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    named = [name for name in ids if name in frame.columns][:1]
    if named and path.suffix == ".csv":  # "NA" and 007 are ids like any other
        frame = frame.assign(**pd.read_csv(path, usecols=named, dtype=str, keep_default_na=False))
    frame = frame.set_index(named[0]) if named else frame
    return frame.set_axis(frame.index.astype(str), axis=0)


def _table(path: Path, what: str) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: {what} are read from .csv or .parquet")
    return (
        pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        if path.suffix == ".csv"
        else pd.read_parquet(path)
    )


def _defused(value: object) -> object:
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )

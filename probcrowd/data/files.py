"""Read tables from files; and one published table, part of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.data.annotations import Annotations
from probcrowd.data.validation import NAMES


def anesthesia() -> Annotations:
    """Fitness for anaesthesia of 45 patients, 1 to 4, by 5 anaesthetists (Dawid and Skene 1979, table 1).

    The first anaesthetist judged every patient three times; each of the 315 judgements is a row. No gold
    labels exist.
    """
    with files("probcrowd.data").joinpath("anesthesia.csv").open() as file:
        return Annotations.from_frame(pd.read_csv(file), duplicates="count")


def read_features(path: Path) -> pd.DataFrame:
    """Read inputs by item from .csv, .parquet or .npy (n, ...).

    Ids are in the column item or task; without it, and in arrays, items are 0, 1, ...

    Item ids from files are text, so that 007 is not 7 and files of different formats agree.

    Raises:
        ValueError: a missing file, another format, or pickled objects in the file.
    """
    return _features(path, NAMES["item"])


def read_annotator_features(path: Path, annotations: Annotations) -> pd.DataFrame:
    """Read features by annotator; ids in the column annotator, worker, rater or user.

    Ids that occur in the annotations get the type they have there; see `read_features`.

    Raises:
        ValueError: as `read_features`.
    """
    frame = _features(path, NAMES["annotator"])
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
    """Read annotations from .csv or .parquet, usually from columns item, annotator, label (or task, worker).

    Item ids are text, and so is all of a .csv file except weights: 007 is not 7, "NA" is a label like any
    other, and an empty cell is missing.

    Raises:
        ValueError: a missing file, another format, or an invalid table.
    """
    frame = _table(path, "annotations")
    if path.suffix == ".csv":
        frame = frame.assign(**{weight: pd.to_numeric(frame[weight])}) if weight in frame.columns else frame
    else:
        usual = [item] if item else NAMES["item"]
        ids = [name for name in usual if name in frame.columns and not frame[name].hasnans]
        frame = frame.astype(dict.fromkeys(ids, str))
    if weight is None and "weight" in frame.columns:
        raise ValueError(
            f"{path} has a column 'weight': name it with --columns weight=weight, or remove it if every "
            "row counts once"
        )
    columns: dict[str, Any] = {"item": item, "annotator": annotator, "label": label, "weight": weight}
    return Annotations.from_frame(frame, **columns, duplicates=duplicates, missing=missing)


def named_columns(text: str | None) -> dict[str, str]:
    """Parse names of columns by role, as in "item=task,label=answer".

    Raises:
        ValueError: a part that is not ROLE=NAME, or a role other than item, annotator, label and weight.
    """
    names = {}
    for part in text.split(",") if text else ():
        role, _, name = (word.strip() for word in part.partition("="))
        if role not in NAMES or not name:
            usage = "item=NAME,annotator=NAME,label=NAME,weight=NAME"
            raise ValueError(f"columns are named as {usage}; got {part!r}")
        names[role] = name
    return names


def read_gold(path: Path, annotations: Annotations) -> pd.Series:
    """Read known classes by item, with item ids as text and classes of the type that the annotations have.

    Raises:
        ValueError: a missing file, another format, or missing columns.
    """
    gold = read_classes(path)
    gold = gold.set_axis(gold.index.astype(str))
    if pd.api.types.is_numeric_dtype(annotations.classes):
        return gold.astype(annotations.classes.dtype)
    return gold if annotations.classes.dtype == gold.dtype else gold.map(str)


def read_classes(path: Path) -> pd.Series:
    """Read known classes by item from .csv (all text) or .parquet: columns item or task, label or gold.

    Raises:
        ValueError: a missing file, another format, or missing columns.
    """
    frame = _table(path, "gold labels")
    usual = NAMES["item"], ("label", "gold")
    names = [next((name for name in wanted if name in frame.columns), None) for wanted in usual]
    if None in names:
        known = ", ".join(map(str, frame.columns))
        raise ValueError(f"{path} needs the columns item (or task) and label (or gold), it has {known}")
    return pd.Series(frame[names[1]].array, index=pd.Index(frame[names[0]])).dropna()


def by_item(rows: pd.DataFrame | np.ndarray, name: str) -> pd.DataFrame:
    """Return inputs as a frame with one row per item; arrays are flattened, and their items are 0, 1, ..."""
    if isinstance(rows, pd.DataFrame):
        frame = rows
    elif rows.ndim >= 2 and rows.dtype.kind in "buif":
        frame = pd.DataFrame(rows.reshape(len(rows), math.prod(rows.shape[1:])))
    else:
        got = f"got shape {rows.shape} of {rows.dtype}"
        raise ValueError(f"{name}: an array of numbers with one row per item is needed, {got}")
    repeated = frame.index[frame.index.duplicated()]
    if len(repeated):
        raise ValueError(f"{name}: the item ids {some(repeated)} occur more than once")
    return frame


def without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """Prefix text that a spreadsheet would run as a formula with an apostrophe: ids come from strangers."""
    text = [column for column in frame.columns if not pd.api.types.is_numeric_dtype(frame[column])]
    return frame.assign(**{column: frame[column].map(_defused) for column in text}).rename(columns=_defused)


def some(values: Sequence[object] | pd.Index) -> str:
    """Show the first few values in a message."""
    shown = ", ".join(repr(value) for value in list(values)[:5])
    return shown + (", ..." if len(values) > 5 else "")


def _features(path: Path, ids: Sequence[str]) -> pd.DataFrame:
    """Read features indexed by the first of those columns that exists, or by row number; ids become text."""
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

"""Read what network estimators are given: inputs by item, annotations, and true classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from probcrowd.data.annotations import Annotations
from probcrowd.data.features import in_order, numeric, other_types
from probcrowd.data.files import by_item, some
from probcrowd.data.table import Table, read_table
from probcrowd.data.validation import reject


@dataclass(frozen=True)
class Items:
    """Inputs by item id.

    values: a tensor with a row per item, or a dataset whose elements are inputs, or tuples that begin with
    one.
    columns: those of a table, in the order of the fit. device: where batches go; a tensor is already there.
    named: the ids are the user's, not positions.
    """

    ids: pd.Index
    values: Any
    columns: tuple[str, ...]
    device: str
    named: bool = False

    def __call__(self, items: Int[Tensor, " b"]) -> Tensor:
        """The inputs of the items at those positions."""
        if isinstance(self.values, Tensor):
            return self.values[items]
        return torch.stack([self._element(place) for place in items.tolist()]).to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        if isinstance(self.values, Tensor):
            return tuple(self.values.shape[1:])
        return tuple(self._element(0).shape)

    def place(self, ids: pd.Index) -> Int[np.ndarray, " i"]:
        """The positions of those ids.

        Raises:
            ValueError: ids that X lacks.
        """
        place = self.ids.get_indexer(ids)
        if len(missing := ids[place < 0]):
            types = other_types(ids, self.ids, "X")
            raise ValueError(f"X lacks annotated items: {some(missing)} ({len(missing)} in all){types}")
        return place.astype(np.int64)

    def _element(self, place: int) -> Tensor:
        element = self.values[place]
        value = torch.as_tensor(element[0] if isinstance(element, (tuple, list)) else element).float()
        if not torch.isfinite(value).all():
            raise ValueError(f"X: item {place} has missing or infinite values")
        return value


def read_items(X: Any, device: str = "cpu", columns: tuple[str, ...] = ()) -> Items:
    """Read inputs: a data frame (ids are its index), an array, a tensor or a torch Dataset (ids 0, 1, ...).

    columns: those of the fit; the columns of a frame are put in their order.

    Raises:
        TypeError: another type.
        ValueError: no items, repeated ids, values that are missing, infinite or no numbers; columns that
            differ from the fit's.
    """
    if isinstance(X, pd.DataFrame):
        frame = X.set_axis(X.index.to_flat_index(), axis=0) if isinstance(X.index, pd.MultiIndex) else X
        frame = by_item(frame, "X")
        frame = numeric(in_order(frame, columns, "X") if columns else frame, "X")
        if not frame.shape[1]:
            raise ValueError("X: a table without columns")
        names = tuple(map(str, frame.columns))
        items = Items(frame.index, _tensor(frame.to_numpy(), frame.index, device), names, device, True)
    elif isinstance(X, (np.ndarray, Tensor)):
        values = X.detach().float().cpu().numpy() if isinstance(X, Tensor) else X
        if values.ndim < 2 or values.dtype.kind not in "buif":
            raise ValueError(
                "X must be an array of numbers with one row per item, "
                f"not of shape {values.shape} and type {values.dtype}"
            )
        if np.ma.is_masked(values):
            raise ValueError("X is a masked array: fill the masked values or leave these items out")
        ids = pd.RangeIndex(len(values))
        items = Items(ids, _tensor(values, ids, device), (), device)
    elif isinstance(X, Dataset):
        items = Items(pd.RangeIndex(len(X)), X, (), device)  # pyright: ignore[reportArgumentType]
    else:
        raise TypeError(
            f"X must be a data frame, an array, a tensor or a torch Dataset, not {type(X).__name__}"
        )
    if not len(items.ids):
        raise ValueError("X: no items")
    return items


def read_labels(annotations: Any, missing_label: Any, items: Items) -> Table:
    """Read a long table, an `Annotations`, or a matrix with a row per item and a column per annotator.

    Raises:
        ValueError: a matrix whose rows are not the items, or `missing_label` without a matrix.
    """
    if isinstance(annotations, Tensor):
        annotations = annotations.detach().cpu().numpy()
    if isinstance(annotations, pd.DataFrame) and "label" not in annotations.columns:
        if not annotations.index.isin(items.ids).all():
            raise ValueError(
                "annotations need the columns item, annotator and label; "
                "a matrix needs a row per item, under the ids of X"
            )
        annotations = Annotations.from_wide(annotations, missing_label=missing_label)
    elif isinstance(annotations, (np.ndarray, list)):
        if len(annotations) != len(items.ids):
            raise ValueError(
                f"a matrix of {len(annotations)} rows for {len(items.ids)} items: "
                "give it a row per item and a column per annotator"
            )
        annotations = Annotations.from_wide(annotations, missing_label=missing_label, items=items.ids)
    elif missing_label is not None:
        raise ValueError(
            "missing_label marks empty cells of a matrix; leave missing labels out of a long table"
        )
    return read_table(annotations)


def class_codes(truth: Any, items: Items, classes: pd.Index) -> Int[np.ndarray, " i"]:
    """True classes, by item id or in the order of the items, as positions in `classes`; -1 where missing.

    Raises:
        ValueError: another number of classes than items, ids where X has none, repeated ids, unknown classes,
            or no class of any item.
    """
    if isinstance(truth, pd.Series) and items.named:
        repeated = truth.index.duplicated(keep=False)
        reject(repeated, pd.Series(list(truth.index)), "items with more than one true class: keep one each")
        known = truth.reindex(items.ids)
    elif isinstance(truth, pd.Series) and not truth.index.equals(pd.RangeIndex(len(items.ids))):
        raise ValueError(
            "the true classes have ids and X has none: "
            "give them as an array in the order of X, or X as a data frame"
        )
    else:
        values = np.asarray(truth)
        if values.ndim != 1 or len(values) != len(items.ids):
            raise ValueError(
                f"true classes of shape {values.shape} for {len(items.ids)} items: give one per item"
            )
        known = pd.Series(values, items.ids)
    codes = np.where(known.notna(), classes.get_indexer(pd.Index(known)), -1)
    unknown = np.asarray((codes < 0) & known.notna(), dtype=bool)
    reject(unknown, known, f"true classes that no annotator used: the classes are {some(classes)}")
    if not (codes >= 0).any():
        raise ValueError(f"no item has a true class, for example {some(items.ids)}")
    return codes.astype(np.int64)


def sorted_ids(ids: pd.Index) -> pd.Index:
    """The ids sorted; as text if they cannot be compared."""
    try:
        return ids.sort_values()
    except TypeError:
        return ids[np.argsort(ids.astype(str), kind="stable")]


def _tensor(values: np.ndarray, ids: pd.Index, device: str) -> Tensor:
    with np.errstate(over="ignore"):
        single = np.require(values, np.float32, ["C", "W"])
    bad = np.asarray(~np.isfinite(single).reshape(len(single), -1).all(1), dtype=bool)
    reject(
        bad,
        pd.Series(list(ids)),
        "X: values that are missing, infinite or too large for single precision: "
        "fill them or leave these items out",
    )
    return torch.from_numpy(single).to(device)

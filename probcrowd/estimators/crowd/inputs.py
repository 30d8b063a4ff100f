"""What a network sees of items, in any of the forms users have: a table, an array, a tensor, or a dataset that is read as it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from probcrowd.data.columns import reject
from probcrowd.data.features import numeric
from probcrowd.data.files import by_item, some


@dataclass(frozen=True)
class Items:
    """Inputs by item id. values: a tensor with a row per item, or a dataset whose elements are inputs, or tuples that begin with one.

    columns: of a table, whose order must be that of the fit. device: where batches go; a tensor is there already. named: the ids are the
    user's, not places.
    """

    ids: pd.Index
    values: Any
    columns: tuple[str, ...]
    device: str
    named: bool = False

    def __call__(self, items: Int[Tensor, " b"]) -> Tensor:
        """The inputs of the items at those places."""
        if isinstance(self.values, Tensor):
            return self.values[items]
        return torch.stack([self._element(place) for place in items.tolist()]).to(self.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (
            tuple(self.values.shape[1:]) if isinstance(self.values, Tensor) else tuple(self._element(0).shape)
        )

    def place(self, ids: pd.Index) -> Int[np.ndarray, " i"]:
        """Where those ids are.

        Raises:
            ValueError: ids that are not there.
        """
        place = self.ids.get_indexer(ids)
        if len(missing := ids[place < 0]):
            kinds = (
                f"; ids are {ids.dtype} in the annotations and {self.ids.dtype} in X"
                if ids.dtype != self.ids.dtype
                else ""
            )
            raise ValueError(
                f"X has no items {some(missing)} ({len(missing)} in all) that annotations are about{kinds}"
            )
        return place.astype(np.int64)

    def _element(self, place: int) -> Tensor:
        element = self.values[place]
        value = torch.as_tensor(element[0] if isinstance(element, (tuple, list)) else element).float()
        if not torch.isfinite(value).all():
            raise ValueError(f"X: item {place} has missing or infinite values")
        return value


def read_items(X: Any, device: str = "cpu", columns: tuple[str, ...] | None = None) -> Items:
    """Items of a data frame (ids are its index), an array or a tensor, or a `torch.utils.data.Dataset` (ids are 0, 1, ...).

    columns: those of the fit, into whose order the columns of a frame are put.

    Raises:
        TypeError: something else.
        ValueError: no items, repeated ids, values that are no numbers, missing or infinite; other columns than the fit's.
    """
    if isinstance(X, pd.DataFrame):
        frame = X.set_axis(X.index.to_flat_index(), axis=0) if isinstance(X.index, pd.MultiIndex) else X
        frame = numeric(_ordered(by_item(frame, "X"), columns), "X")
        _require_items(len(frame))
        if not frame.shape[1]:
            raise ValueError("X: a table without columns")
        return Items(
            frame.index,
            _tensor(frame.to_numpy(), frame.index, device),
            tuple(map(str, frame.columns)),
            device,
            True,
        )
    if isinstance(X, Tensor):
        X = X.detach().float().cpu().numpy()
    if isinstance(X, np.ndarray):
        if X.ndim < 2 or X.dtype.kind not in "buif":
            raise ValueError(
                f"X: an array of numbers with one row per item is needed, got shape {X.shape} of {X.dtype}"
            )
        _require_items(len(X))
        if np.ma.is_masked(X):
            raise ValueError("X: a masked array: fill what is masked or leave these items out")
        return Items(pd.RangeIndex(len(X)), _tensor(X, pd.RangeIndex(len(X)), device), (), device)
    if isinstance(X, Dataset):
        size = len(X)  # pyright: ignore[reportArgumentType]
        _require_items(size)
        return Items(pd.RangeIndex(size), X, (), device)
    raise TypeError(f"X must be a data frame, an array, a tensor or a torch Dataset, not {type(X).__name__}")


def classes_of(truth: Any, items: Items, classes: pd.Index) -> np.ndarray:
    """True classes, by item id or in the order of the items, as positions in `classes`, -1 where they are missing.

    Raises:
        ValueError: other numbers of them, ids where the items have none, repeated ids, classes that nobody gave, or none at all.
    """
    if isinstance(truth, pd.Series) and items.named:
        reject(
            truth.index.duplicated(keep=False),
            pd.Series(list(truth.index)),
            "items with more than one true class: keep one each",
        )
        known = truth.reindex(items.ids)
    elif isinstance(truth, pd.Series) and not truth.index.equals(pd.RangeIndex(len(items.ids))):
        raise ValueError(
            "the true classes have ids and X has none: give them as an array in the order of X, or X as a data frame"
        )
    else:
        values = np.asarray(truth)
        if values.ndim != 1 or len(values) != len(items.ids):
            raise ValueError(
                f"true classes of shape {values.shape} for {len(items.ids)} items: one each is needed"
            )
        known = pd.Series(values, items.ids)
    codes = np.where(known.notna(), classes.get_indexer(pd.Index(known)), -1)
    reject(
        np.asarray((codes < 0) & known.notna(), dtype=bool),
        known,
        f"true classes that nobody gave: the classes are {some(classes)}",
    )
    if not (codes >= 0).any():
        raise ValueError(f"no true class of any of these items, such as {some(items.ids)}")
    return codes.astype(np.int64)


def _ordered(frame: pd.DataFrame, columns: tuple[str, ...] | None) -> pd.DataFrame:
    """By name where both have names, else as they stand."""
    here = tuple(map(str, frame.columns))
    if columns is None or here == columns:
        return frame
    if sorted(here) == sorted(columns) and len(set(here)) == len(here):
        return frame.iloc[:, pd.Index(here).get_indexer(pd.Index(columns))]
    raise ValueError(
        f"X: the columns are {some(here)} ({len(here)}), those of the fit {some(columns)} ({len(columns)})"
    )


def _tensor(values: np.ndarray, ids: pd.Index, device: str) -> Tensor:
    with np.errstate(over="ignore"):
        single = np.require(values, np.float32, ["C", "W"])
    bad = ~np.isfinite(single).reshape(len(single), -1).all(1)
    words = (
        "X: missing or infinite values, or too large for single precision: fill them or leave these items out"
    )
    reject(np.asarray(bad, dtype=bool), pd.Series(list(ids)), words)
    return torch.from_numpy(single).to(device)


def _require_items(count: int) -> None:
    if not count:
        raise ValueError("X: no items")

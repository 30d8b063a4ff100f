"""Features of items and annotators as networks take them: matched by id, centred, rotated and of one size."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from probcrowd.compute.threads import one_thread
from probcrowd.data.columns import reject
from probcrowd.data.files import by_item, some

LARGEST_SHARE = 0.95  # of the variance, in one column: a sign of columns in different units


@dataclass(frozen=True)
class Standardiser:
    """z = (x - mean) @ axes / root_mean_square, so that the mean square of z is 1.

    axes: where there are more columns than items, the principal axes: what a linear layer with equal normal priors on its weights can do
    with x, it can do with z at the same price, and z has no more columns than there are items. None: the columns themselves.
    columns: the names of x's columns; none where they are only numbered.
    """

    mean: Float64[np.ndarray, " p"]
    root_mean_square: float
    axes: Float64[np.ndarray, "p w"] | None
    columns: tuple[str, ...] = ()

    def apply(self, features: Float[np.ndarray, "i p"]) -> Float64[np.ndarray, "i w"]:
        """z of these features or of others."""
        centred = features - self.mean
        return (centred if self.axes is None else centred @ self.axes) / self.root_mean_square


def standardiser(features: Float[np.ndarray, "i p"]) -> Standardiser:
    """The standardiser of these features. Columns keep their relative spreads."""
    values = np.asarray(features, np.float64)
    mean, axes = values.mean(0), None
    z = values - mean
    if values.shape[1] > len(values):
        _, size, right = np.linalg.svd(z, full_matrices=False)
        axes = np.ascontiguousarray(right[: max(int((size > 1e-6 * size[0]).sum()), 1)].T)
        z = z @ axes
    return Standardiser(mean, float(np.sqrt((z**2).mean())) or 1.0, axes)


def warn_of_units(frame: pd.DataFrame, name: str) -> None:
    """Tells if one column is nearly all that distinguishes rows: the networks would see little of the others."""
    spread = frame.to_numpy().var(0)
    if len(spread) > 1 and spread.max() > LARGEST_SHARE * spread.sum():
        column, share = frame.columns[int(spread.argmax())], 100 * spread.max() / spread.sum()
        words = f"{name}: column {column!r} has {share:.1f} % of the variance of all; if units differ, divide every column by its spread first"
        warnings.warn(words, UserWarning, stacklevel=7)


def standardised(
    features: Any, ids: pd.Index, name: str
) -> tuple[Float64[np.ndarray, "i w"] | None, Standardiser | None]:
    """The features of those ids as networks take them, and what does the same to others; None without features.

    Raises:
        ValueError: see `matched`.
    """
    if features is None:
        return None, None
    frame = matched(features, ids, name)
    if not frame.shape[1]:
        raise ValueError(f"{name}: a table without columns")
    warn_of_units(frame, name)
    with one_thread():  # a fit that is resumed on another machine must see the same numbers
        made = replace(standardiser(frame.to_numpy()), columns=_names(frame))
        return made.apply(frame.to_numpy()), made


def matched(features: Any, ids: pd.Index, name: str) -> pd.DataFrame:
    """The rows of features for those ids, in their order.

    features: a frame with ids as its index; of an array the rows are 0, 1, ...

    Raises:
        ValueError: ids without features, repeated ids, columns that are not numbers, missing or infinite values.
    """
    frame = by_item(features if isinstance(features, pd.DataFrame) else np.asarray(features), name)
    place = frame.index.get_indexer(ids)
    missing = ids[place < 0]
    if len(missing):
        kinds = (
            f"; ids are {ids.dtype} in the annotations and {frame.index.dtype} in the features"
            if ids.dtype != frame.index.dtype
            else ""
        )
        raise ValueError(f"{name}: no features of {some(missing)} ({len(missing)} in all){kinds}")
    return numeric(frame.take(place), name)


def like_the_fit(frame: pd.DataFrame, standard: Standardiser, name: str) -> pd.DataFrame:
    """The frame with its columns in the order that they had in the fit: by name where both have names, else as they stand.

    Raises:
        ValueError: more or fewer columns, or others.
    """
    if frame.shape[1] != len(standard.mean):
        raise ValueError(f"{name}: {frame.shape[1]} columns, the fit had {len(standard.mean)}")
    numbers = tuple(map(str, range(frame.shape[1])))
    here, there = _names(frame) or numbers, standard.columns or numbers
    if here == there:
        return frame
    if sorted(here) == sorted(there) and len(set(here)) == len(here):
        return frame.iloc[:, pd.Index(here).get_indexer(pd.Index(there))]
    if numbers in (here, there):
        return frame
    raise ValueError(f"{name}: the columns are {some(here)}, those of the fit {some(there)}")


def numeric(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame, all of whose values are finite numbers."""
    kinds = zip(frame.columns, frame.dtypes, strict=True)
    text = [column for column, kind in kinds if len(frame) and not pd.api.types.is_numeric_dtype(kind)]
    if text:
        raise ValueError(
            f"{name}: columns {some(text)} are not numbers; is one of them the ids? They belong in the index"
        )
    values = frame.to_numpy(np.float64, na_value=np.nan)
    reject(
        np.asarray(~np.isfinite(values).all(1), dtype=bool),
        pd.Series(frame.index),
        f"{name}: missing or infinite values: fill them or leave these rows out",
    )
    return pd.DataFrame(values, frame.index, frame.columns)


def _names(frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns' names; none where they are 0, 1, ... as those of an array are."""
    return () if frame.columns.equals(pd.RangeIndex(frame.shape[1])) else tuple(map(str, frame.columns))

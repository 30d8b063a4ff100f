"""Features of items and annotators for networks: matched by id, centred, scaled, rotated if many."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from probcrowd.compute.threads import one_thread
from probcrowd.data.files import by_item, some
from probcrowd.data.validation import reject

LARGEST_SHARE = 0.95  # of the variance in one column, above which columns probably have different units
RANK_TOLERANCE = 1e-6  # singular values below this share of the largest count as 0


@dataclass(frozen=True)
class Standardiser:
    """z = (x - mean) @ axes / root_mean_square, so that the mean square of z is 1.

    axes: if there are more columns than items, the principal axes, else None (the columns themselves). A
    linear layer with equal normal priors on its weights can do with z what it can do with x at the same cost,
    and z has no more columns than there are items. columns: the names of x's columns.
    """

    mean: Float64[np.ndarray, " p"]
    root_mean_square: float
    axes: Float64[np.ndarray, "p w"] | None = None
    columns: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The number of columns of z."""
        return len(self.mean) if self.axes is None else self.axes.shape[1]

    def apply(self, features: Float[np.ndarray, "i p"]) -> Float64[np.ndarray, "i w"]:
        """z of these features."""
        centred = features - self.mean
        return (centred if self.axes is None else centred @ self.axes) / self.root_mean_square


def standardiser(features: Float[np.ndarray, "i p"]) -> Standardiser:
    """Fit the standardiser of these features. Columns keep their relative spreads."""
    values = np.asarray(features, np.float64)
    mean, axes = values.mean(0), None
    z = values - mean
    if values.shape[1] > len(values):
        _, size, right = np.linalg.svd(z, full_matrices=False)
        axes = np.ascontiguousarray(right[: max(int((size > RANK_TOLERANCE * size[0]).sum()), 1)].T)
        z = z @ axes
    return Standardiser(mean, float(np.sqrt((z**2).mean())) or 1.0, axes)


def warn_of_units(frame: pd.DataFrame, name: str) -> None:
    """Warn if one column has nearly all of the variance: networks would hardly see the others."""
    spread = frame.to_numpy().var(0)
    if len(spread) > 1 and spread.max() > LARGEST_SHARE * spread.sum():
        column, share = frame.columns[int(spread.argmax())], 100 * spread.max() / spread.sum()
        message = f"{name}: column {column!r} has {share:.1f} % of the variance of all columns"
        advice = "if their units differ, divide every column by its standard deviation first"
        warnings.warn(f"{message}; {advice}", UserWarning, stacklevel=7)


def standardised(
    features: Any, ids: pd.Index, name: str
) -> tuple[Float64[np.ndarray, "i w"] | None, Standardiser | None]:
    """The standardised features of those ids, and the standardiser; None and None without features.

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
        standard = replace(standardiser(frame.to_numpy()), columns=tuple(map(str, frame.columns)))
        return standard.apply(frame.to_numpy()), standard


def matched(features: Any, ids: pd.Index, name: str) -> pd.DataFrame:
    """The features of those ids, in their order.

    features: a frame with ids as its index; the rows of an array are items 0, 1, ...

    Raises:
        ValueError: ids without features, repeated ids, columns that are not numbers, missing or infinite
            values.
    """
    frame = by_item(features if isinstance(features, pd.DataFrame) else np.asarray(features), name)
    place = frame.index.get_indexer(ids)
    if len(missing := ids[place < 0]):
        types = other_types(ids, frame.index, "the features")
        raise ValueError(f"{name}: no features of {some(missing)} ({len(missing)} in all){types}")
    return numeric(frame.take(place), name)


def in_order(frame: pd.DataFrame, columns: tuple[str, ...], name: str) -> pd.DataFrame:
    """Put the columns in the order of the fit: by name if both sides have names, else as they are.

    Raises:
        ValueError: another number of columns, or other names.
    """
    if frame.shape[1] != len(columns):
        raise ValueError(f"{name}: {frame.shape[1]} columns, the fit had {len(columns)}")
    names, numbers = tuple(map(str, frame.columns)), tuple(map(str, range(len(columns))))
    if names == columns:
        return frame
    if sorted(names) == sorted(columns) and len(set(names)) == len(names):
        return frame.iloc[:, pd.Index(names).get_indexer(pd.Index(columns))]
    if numbers in (names, columns):
        return frame
    raise ValueError(f"{name}: the columns are {some(names)}, those of the fit {some(columns)}")


def numeric(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame as double precision.

    Raises:
        ValueError: columns that are not numbers, missing or infinite values.
    """
    kinds = zip(frame.columns, frame.dtypes, strict=True)
    text = [column for column, kind in kinds if len(frame) and not pd.api.types.is_numeric_dtype(kind)]
    if text:
        raise ValueError(f"{name}: columns {some(text)} are not numbers; ids belong in the index")
    values = frame.to_numpy(np.float64, na_value=np.nan)
    bad = np.asarray(~np.isfinite(values).all(1), dtype=bool)
    reject(
        bad, pd.Series(frame.index), f"{name}: missing or infinite values: fill them or leave these rows out"
    )
    return pd.DataFrame(values, frame.index, frame.columns)


def other_types(ids: pd.Index, known: pd.Index, where: str) -> str:
    """A hint for messages about unmatched ids whose types differ; empty if they do not."""
    return (
        ""
        if ids.dtype == known.dtype
        else f"; ids are {ids.dtype} in the annotations and {known.dtype} in {where}"
    )

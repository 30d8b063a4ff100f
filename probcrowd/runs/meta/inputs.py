"""Check the inputs of a new task: features as in training, and annotations that match them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probcrowd.data.annotations import Annotations
from probcrowd.data.files import some


def network_inputs(frame: pd.DataFrame, name: str, input_shape: tuple[int, ...], scale: float) -> Tensor:
    """Convert a frame with one row per item to network inputs (n, *input_shape), divided by `scale`.

    Raises:
        ValueError: columns that are not numbers or not as many as the network's inputs; values that are
            missing, infinite or, for pixels, out of range.
    """
    text = [c for c in frame.columns if len(frame) and not pd.api.types.is_numeric_dtype(frame[c])]
    if text:
        raise ValueError(
            f"{name}: columns {some(text)} are not numbers; is one of them the item ids? Name the id column "
            "'item'"
        )
    size = int(np.prod(input_shape))
    if frame.shape[1] != size:
        raise ValueError(
            f"{name}: {frame.shape[1]} columns, the network was trained on {size} (shape {input_shape}); "
            f"the first are {some(frame.columns)}; ids belong in a column 'item'"
        )
    values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    invalid = np.flatnonzero(~np.isfinite(values).all(1))
    if len(invalid):
        raise ValueError(
            f"{name}: missing or infinite values in items {some(frame.index[invalid])}: fill them or leave "
            "these items out"
        )
    if scale == 255.0:
        outside = np.flatnonzero(((values < 0) | (values > 255)).any(1))
        if len(outside):
            raise ValueError(f"{name}: pixels outside 0..255 in items {some(frame.index[outside])}")
        if len(values) and 0 < values.max() <= 1:
            raise ValueError(
                f"{name}: all pixels are in 0..1, the network was trained on 0..255: multiply them by 255"
            )
    return torch.from_numpy(values / np.float32(scale)).unflatten(1, input_shape)


def order_columns(support: pd.DataFrame, query: pd.DataFrame) -> pd.DataFrame:
    """Order the query's columns as the support's, where both have names and are equally many."""
    columns = support.columns, query.columns
    named = all(len(names) and all(isinstance(name, str) for name in names) for names in columns)
    if not named or list(columns[0]) == list(columns[1]) or len(columns[0]) != len(columns[1]):
        return query
    other = query.columns.difference(support.columns)
    if len(other):
        raise ValueError(
            f"query: columns {some(other)} are not in the support, whose columns begin with "
            f"{some(support.columns)}: "
            "name them alike"
        )
    return query.reindex(columns=support.columns)


def labelled_items(annotations: Annotations) -> Annotations:
    """Drop the items without annotations."""
    if (annotations.counts_per_item() > 0).all():
        return annotations
    return Annotations.from_frame(
        annotations.to_frame(),
        weight=None if annotations.weight is None else "weight",
        annotators=annotations.annotators,
        classes=annotations.classes,
        duplicates="count",
    )


def match_items(items: pd.Index, annotations: Annotations) -> None:
    """Check that support items and annotated items are the same.

    Raises:
        ValueError: annotated items without features, or support items without annotations.
    """
    unknown = annotations.items.difference(items, sort=False)
    if len(unknown):
        types = f"; ids are {annotations.items.dtype} in the annotations and {items.dtype} in the features"
        hint = types if annotations.items.dtype != items.dtype else ""
        raise ValueError(f"annotated items without features: {some(unknown)} ({len(unknown)} in all){hint}")
    unlabelled = items.difference(annotations.items, sort=False)
    if len(unlabelled):
        raise ValueError(
            f"support items without any annotation: {some(unlabelled)} ({len(unlabelled)} in all): "
            "give them as query items instead"
        )

"""Check the inputs of a new task: features as in training, and annotations that match them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probcrowd.data.annotations import Annotations
from probcrowd.data.files import some


def network_inputs(frame: pd.DataFrame, name: str, input_shape: tuple[int, ...], scale: float) -> Tensor:
    """Convert finite numbers, one row per item, to network inputs (n, *input_shape), divided by `scale`.

    Raises:
        ValueError: more or fewer columns than the network has inputs, or pixels (`scale` 255) out of range.
    """
    size = int(np.prod(input_shape))
    if frame.shape[1] != size:
        raise ValueError(
            f"{name}: {frame.shape[1]} columns, the network was trained on {size} (shape {input_shape}); "
            f"the first are {some(frame.columns)}; ids belong in a column 'item'"
        )
    values = frame.to_numpy(np.float32)
    if scale == 255.0:
        outside = np.flatnonzero(((values < 0) | (values > 255)).any(1))
        if len(outside):
            raise ValueError(f"{name}: pixels outside 0..255 in items {some(frame.index[outside])}")
        if len(values) and 0 < values.max() <= 1:
            raise ValueError(
                f"{name}: all pixels are in 0..1, the network was trained on 0..255: multiply them by 255"
            )
    return torch.from_numpy(values / np.float32(scale)).unflatten(1, input_shape)


def labelled_items(annotations: Annotations, items: pd.Index) -> Annotations:
    """Drop items without annotations from the table; `items` are the support items, all of which need some.

    Raises:
        ValueError: support items without annotations.
    """
    if (annotations.counts_per_item() == 0).any():
        annotations = Annotations.from_frame(
            annotations.to_frame(),
            weight=None if annotations.weight is None else "weight",
            annotators=annotations.annotators,
            classes=annotations.classes,
            duplicates="count",
        )
    unlabelled = items.difference(annotations.items, sort=False)
    # Where no id matches, `matched` explains why
    if len(unlabelled) and len(unlabelled) < len(items):
        raise ValueError(
            f"support items without any annotation: {some(unlabelled)} ({len(unlabelled)} in all): "
            "give them as query items instead"
        )
    return annotations

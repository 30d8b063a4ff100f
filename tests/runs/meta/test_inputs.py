"""Inputs of a new task: every bound is accepted, and refused one step beyond."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from probcrowd import Annotations
from probcrowd.runs.meta.inputs import labelled_items, network_inputs


def pixels(*values: float) -> pd.DataFrame:
    """Items with two pixels, of which one is 128."""
    return pd.DataFrame(
        {"first": [128.0] * len(values), "second": values}, index=list("abcde")[: len(values)]
    )


def test_pixels_are_divided_and_shaped() -> None:
    inputs = network_inputs(pixels(0.0, 255.0), "support", (1, 1, 2), 255.0)
    assert inputs.shape == (2, 1, 1, 2) and inputs.dtype == torch.float32
    assert inputs.flatten().tolist() == pytest.approx([128 / 255, 0, 128 / 255, 1])


@pytest.mark.parametrize("value", [-0.001, 255.001])
def test_pixels_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"support: pixels outside 0..255 in items 'b'"):
        network_inputs(pixels(0.0, value), "support", (2,), 255.0)


@pytest.mark.parametrize(("largest", "refused"), [(0.0, False), (0.5, True), (1.0, True), (1.001, False)])
def test_pixels_scaled_to_one_are_refused(largest: float, refused: bool) -> None:
    frame = pd.DataFrame([[0.0, largest]])
    if refused:
        with pytest.raises(ValueError, match="multiply them by 255"):
            network_inputs(frame, "query", (2,), 255.0)
    else:
        assert network_inputs(frame, "query", (2,), 255.0).shape == (1, 2)
    assert network_inputs(frame, "query", (2,), 1.0).tolist() == [pytest.approx([0.0, largest])]


def test_other_numbers_of_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 columns, the network was trained on 3 \(shape \(3,\)\)"):
        network_inputs(pixels(1.0), "support", (3,), 1.0)


def test_items_without_annotations_are_dropped_from_the_table_and_refused_in_the_support() -> None:
    frame = pd.DataFrame({"item": [1, 2], "annotator": ["x", "y"], "label": ["p", "q"]})
    annotations = Annotations.from_frame(frame, items=[1, 2, 3])
    labelled = labelled_items(annotations, pd.Index([2, 1]))
    assert list(labelled.items) == [1, 2] and list(labelled.annotators) == ["x", "y"]
    with pytest.raises(
        ValueError, match=r"support items without any annotation: 3 \(1 in all\).*as query items"
    ):
        labelled_items(annotations, pd.Index([1, 2, 3]))

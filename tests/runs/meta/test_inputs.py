"""Inputs of a new task: every bound is accepted, and refused one step beyond."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from probcrowd import Annotations
from probcrowd.runs.meta.inputs import labelled_items, match_items, network_inputs, order_columns


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_item(value: float) -> None:
    with pytest.raises(ValueError, match="query: missing or infinite values in items 'b'"):
        network_inputs(pixels(1.0, value), "query", (2,), 1.0)


def test_text_and_other_numbers_of_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="columns 'id' are not numbers.*Name the id column 'item'"):
        network_inputs(pixels(1.0).assign(id="x"), "support", (3,), 1.0)
    with pytest.raises(ValueError, match=r"2 columns, the network was trained on 3 \(shape \(3,\)\)"):
        network_inputs(pixels(1.0), "support", (3,), 1.0)


def test_named_columns_take_the_order_of_the_support() -> None:
    support, query = pixels(1.0), pixels(2.0)[["second", "first"]]
    assert list(order_columns(support, query)) == ["first", "second"]
    numbered = query.set_axis([0, 1], axis=1)
    assert order_columns(support, numbered) is numbered  # one of them has no names
    fewer = query[["second"]]
    assert order_columns(support, fewer) is fewer  # `network_inputs` reports their number
    with pytest.raises(ValueError, match="query: columns 'third' are not in the support.*name them alike"):
        order_columns(support, query.rename(columns={"first": "third"}))


def test_items_without_annotations_are_dropped_and_the_rest_must_match() -> None:
    frame = pd.DataFrame({"item": [1, 2], "annotator": ["x", "y"], "label": ["p", "q"]})
    annotations = Annotations.from_frame(frame, items=[1, 2, 3])
    labelled = labelled_items(annotations)
    assert list(labelled.items) == [1, 2] and list(labelled.annotators) == ["x", "y"]
    match_items(pd.Index([2, 1]), labelled)
    with pytest.raises(ValueError, match=r"annotated items without features: 2 \(1 in all\)$"):
        match_items(pd.Index([1]), labelled)
    with pytest.raises(ValueError, match="ids are int64 in the annotations and (object|str)"):
        match_items(pd.Index(["1", "2"]), labelled)
    with pytest.raises(ValueError, match="support items without any annotation: 3.*as query items"):
        match_items(pd.Index([1, 2, 3]), labelled)

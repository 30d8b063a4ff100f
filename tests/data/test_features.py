"""Features as networks take them: matched by id, centred, scaled and rotated, and messages about faulty
ones."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from probcrowd.data.features import (
    LARGEST_SHARE,
    RANK_TOLERANCE,
    in_order,
    matched,
    standardised,
    standardiser,
    warn_of_units,
)


@pytest.mark.parametrize("shape", [(20, 3), (6, 40)])
def test_standardised_features_are_centred_and_have_mean_square_one(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(3, np.linspace(0.5, 2, shape[1]), shape)
    made = standardiser(x)
    z = made.apply(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    assert math.isclose((z**2).mean(), 1, rel_tol=1e-12)
    centred = x - x.mean(0)
    np.testing.assert_allclose(
        z @ z.T / z.shape[1], centred @ centred.T * len(x) / (centred**2).sum(), atol=1e-12
    )
    others = np.random.default_rng(1).normal(size=(4, shape[1]))
    np.testing.assert_allclose(
        made.apply(others) @ z.T / z.shape[1],
        (others - x.mean(0)) @ centred.T * len(x) / (centred**2).sum(),
        atol=1e-12,
    )
    if shape[0] > shape[1]:
        assert made.axes is None
        np.testing.assert_allclose(
            z.std(0) / z[:, :1].std(), x.std(0) / x[:, :1].std()
        )  # columns keep their relative spreads
    else:
        assert z.shape == (6, 5)  # six centred rows span five dimensions
    np.testing.assert_allclose(standardiser(x * 1000).apply(x * 1000), z, atol=1e-9)


def test_constant_features_become_zero() -> None:
    for shape in ((5, 2), (2, 5)):
        z = standardiser(np.full(shape, 7.0)).apply(np.full((3, shape[1]), 7.0))
        np.testing.assert_array_equal(z, np.zeros((3, 2 if shape[0] == 5 else 1)))
    x = np.random.default_rng(0).normal(size=(5, 2))
    wider = np.column_stack([x, np.full(5, 3.0)])
    np.testing.assert_array_equal(standardiser(wider).apply(wider)[:, 2], 0)


def test_only_more_columns_than_items_are_rotated() -> None:
    x = np.random.default_rng(0).normal(size=(5, 6))
    assert standardiser(x[:, :5]).axes is None and standardiser(x[:, :5]).width == 5
    assert standardiser(x).width == 4


@pytest.mark.parametrize(("factor", "width"), [(0.5, 1), (2.0, 2)])
def test_axes_with_a_negligible_singular_value_are_dropped(factor: float, width: int) -> None:
    left, right = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)) - 1)[0], np.eye(8)
    left -= left.mean(0)
    axes, _ = np.linalg.qr(left[:, :2])
    x = axes @ np.diag([1.0, factor * RANK_TOLERANCE]) @ right[:2]
    assert standardiser(x).width == width


@pytest.mark.parametrize("columns", [["b", "a"], ["0", "1"]])
def test_columns_are_put_in_the_order_of_the_fit(columns: list[str]) -> None:
    frame = pd.DataFrame([[1.0, 2.0]], columns=["a", "b"])
    values = in_order(frame, tuple(columns), "features").to_numpy()
    np.testing.assert_array_equal(values, [[2, 1]] if columns == ["b", "a"] else [[1, 2]])
    with pytest.raises(ValueError, match="features: the columns are 'a', 'b', those of the fit 'a', 'c'"):
        in_order(frame, ("a", "c"), "features")
    with pytest.raises(ValueError, match="features: 2 columns, the fit had 3"):
        in_order(frame, ("a", "b", "c"), "features")


def test_one_column_with_nearly_all_variance_causes_a_warning() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), columns=["a", "b", "c"])
    warn_of_units(frame, "features")
    warn_of_units(frame[["a"]] * 1000, "features")
    warn_of_units(frame * 0, "features")
    with pytest.warns(
        UserWarning,
        match=r"features: column 'b' has 9\d\.\d % of the variance of all columns; if their units differ, "
        "divide every column",
    ):
        standardised(frame.assign(b=10 * frame["b"]), frame.index, "features")


@pytest.mark.parametrize(("excess", "warned"), [(-1e-6, False), (1e-6, True)])
def test_the_largest_share_of_variance_without_a_warning(excess: float, warned: bool) -> None:
    share = LARGEST_SHARE + excess
    frame = pd.DataFrame({"a": [1.0, -1, 1, -1], "b": np.sqrt(1 / share - 1) * np.array([1.0, 1, -1, -1])})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_units(frame, "features")
    assert bool(caught) is warned


def test_features_have_the_same_bits_on_any_number_of_threads() -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 1000)))
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, "blas"):
            found.append(standardised(frame, frame.index, "features")[0])
    np.testing.assert_array_equal(*found)


def test_errors_name_the_fault_of_features() -> None:
    frame, ids = pd.DataFrame(np.eye(3), ["x", "y", "z"], ["a", "b", "c"]), pd.Index(["z", "x"])
    np.testing.assert_array_equal(matched(frame, ids, "features"), np.eye(3)[[2, 0]])
    assert list(matched(frame, ids, "features").index) == ["z", "x"] and standardised(
        None, ids, "features"
    ) == (None, None)
    for given, wanted, words in (
        (frame, ["x", "w", "v"], r"people: no features of 'w', 'v' \(2 in all\)$"),
        (
            np.eye(3),
            ["0", "1"],
            r"no features of '0', '1' \(2 in all\); ids are str in the annotations and int64 in the features",
        ),
        (frame.set_axis(["x", "y", "x"], axis=0), ["x"], "the item ids 'x' occur more than once"),
        (frame.assign(b=["u", "v", "w"]), ["x"], "columns 'b' are not numbers; ids belong in the index"),
        (np.arange(3), [0], r"an array of numbers with one row per item is needed, got shape \(3,\)"),
        (frame["a"], ["x"], r"one row per item is needed, got shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            matched(given, pd.Index(wanted), "people")
    twins = pd.concat([frame, frame.assign(b=2.0)], axis=1)  # names occur twice
    np.testing.assert_array_equal(matched(twins, ids, "features"), twins.to_numpy()[[2, 0]])
    with pytest.raises(ValueError, match="columns 'b' are not numbers"):
        matched(pd.concat([frame, frame[["b"]].astype(str)], axis=1), ids, "features")
    nullable = frame.astype("Float64").mask(frame == 1)
    with pytest.raises(
        ValueError,
        match=r"features: missing or infinite values: fill them.*\(2 of 2 rows: 0, 1; values: 'z', 'x'\)",
    ):
        matched(nullable, ids, "features")
    with pytest.raises(ValueError, match="features: a table without columns"):
        standardised(frame[[]], ids, "features")
    assert matched(frame > 0, ids, "features").dtypes.eq(np.float64).all()
    pictures = np.arange(24.0).reshape(3, 2, 4)
    np.testing.assert_array_equal(
        matched(pictures, pd.Index([2, 0]), "features"), pictures.reshape(3, 8)[[2, 0]]
    )

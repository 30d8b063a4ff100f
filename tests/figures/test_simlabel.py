"""Figures of annotators' own labels draw the given numbers, for few, many and unlabelled annotators."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from probcrowd.figures.simlabel import (
    ANNOTATORS,
    PAIRS,
    annotator_accuracy_figure,
    imputed_figure,
    similarity_figure,
)

IDS = {
    "whole numbers": lambda place: 1000 + place,
    "strings": lambda place: f"ann {place}",
    "dollars": lambda place: f"$x_{place}$ of $",
}


def crowd(count: int, groups: int, name: object = "strings") -> tuple[pd.DataFrame, pd.DataFrame]:
    """A similarity matrix of annotators in groups by position modulo their number, and the frame of pairs."""
    rng = np.random.default_rng(0)
    group = np.arange(count) % groups
    noise = rng.normal(0, 0.05, (count, count))
    matrix = np.where(group[:, None] == group, 0.7, 0.1) + noise + noise.T
    np.fill_diagonal(matrix, 1)
    ids = pd.Index([IDS[str(name)](place) for place in range(count)], name="annotator")
    left, right = np.triu_indices(count, 1)
    columns = {
        "items": rng.poisson(30.0, len(left)),
        "coefficient": matrix[left, right],
        "standard_error": 0.1,
    }
    pairs = pd.DataFrame(
        {
            "annotator": ids[left],
            "other": ids[right],
            **columns,
            "similarity": 0.8 * matrix[left, right] + 0.05,
        }
    )
    return pd.DataFrame(matrix, ids, ids.rename("other")), pairs


def names(figure: Figure, part: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[part].get_yticklabels()]


@pytest.mark.parametrize("name", IDS)
def test_groups_stand_side_by_side_and_cells_are_those_of_the_matrix(name: str) -> None:
    matrix, pairs = crowd(12, 3, name)
    figure = similarity_figure(matrix, pairs)
    figure.canvas.draw()
    shown = [place.replace("$", r"\$") for place in map(str, matrix.index)]
    order = np.array([shown.index(place) for place in names(figure)])
    assert sorted(order) == list(range(12)) and list(order) != list(range(12))
    assert [len(set(part % 3)) for part in np.split(order, 3)] == [1, 1, 1]
    drawn = figure.axes[0].images[0].get_array()
    assert isinstance(drawn, np.ma.MaskedArray)
    off = ~np.eye(12, dtype=bool)
    assert np.array_equal(np.ma.getmaskarray(drawn), ~off) and np.array_equal(
        drawn[off], matrix.to_numpy()[np.ix_(order, order)][off]
    )
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == names(figure)
    assert figure.axes[0].get_title() == "all annotators" and not plt.get_fignums()


def test_pairs_stand_at_their_items_with_their_error_and_what_is_made_of_them() -> None:
    matrix, pairs = crowd(5, 2)
    pairs.loc[3, ["coefficient", "standard_error"]] = np.nan
    axis = similarity_figure(matrix, pairs).axes[1]
    sorted_pairs = pairs.sort_values(["items", "coefficient"])
    for line, column in zip(axis.lines, ["coefficient", "similarity"], strict=False):
        assert np.allclose(line.get_ydata(), sorted_pairs[column], equal_nan=True)
        assert np.array_equal(np.round(np.asarray(line.get_xdata(), float)), sorted_pairs["items"])
    bars = next(part for part in axis.collections if isinstance(part, LineCollection))
    assert np.allclose(
        np.nanmax([np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)]), 0.2
    )
    assert len(similarity_figure(matrix, pairs.iloc[:0]).axes) == 2  # the map and its colours


def test_of_many_annotators_those_with_most_items_in_common_are_shown_and_groups_are_still_found() -> None:
    matrix, pairs = crowd(200, 4, "whole numbers")
    pairs["items"] += 1000 * (pairs[["annotator", "other"]] >= 1150).all(axis=1)
    figure = similarity_figure(matrix, pairs)
    figure.canvas.draw()
    found = np.array([int(name) for name in names(figure)])
    assert len(found) == ANNOTATORS and found.min() >= 1150
    assert (np.diff(found % 4) != 0).sum() == 3
    assert figure.axes[0].get_title() == f"{ANNOTATORS} of 200 annotators, with most items in common"
    assert figure.axes[1].get_title() == f"{PAIRS} of 19,900 pairs" and figure.axes[1].lines[
        0
    ].get_xydata().shape == (PAIRS, 2)
    assert max(figure.get_size_inches()) < 17
    few = similarity_figure(matrix, most=6)
    assert (
        sorted(map(int, names(few))) == list(range(1000, 1006))
        and few.axes[0].get_title() == "6 of 200 annotators, the first"
    )


def test_one_annotator_resembles_nobody() -> None:
    for count in (1, 2):
        figure = similarity_figure(crowd(count, 1)[0])
        figure.canvas.draw()
        assert names(figure) == [f"ann {place}" for place in range(count)]
        assert len(figure.axes[0].texts) == count * (count - 1)


def test_bars_are_the_numbers_of_observed_and_imputed_labels() -> None:
    ids = pd.Index(["$a$", "b", "c"], name="annotator")
    annotators = pd.DataFrame({"labels": [5, 9, 0], "imputed": [7, 0, 2], "mean_similarity": 0.1}, ids)
    sure = np.array([0.61, 0.63, 0.71, 0.99, 1.0, 1.0, 0.81, 0.81, 0.81])
    figure = imputed_figure(pd.DataFrame({"confidence": sure.astype(np.float32)}), annotators)
    figure.canvas.draw()
    left, right = figure.axes
    counts = [bar.get_height() for bar in left.patches]
    assert (
        counts == [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 3]
        and left.get_title() == "9 imputed labels"
    )
    assert np.isclose(left.patches[0].get_x(), 0.6) and np.isclose(
        left.patches[-1].get_x() + left.patches[-1].get_width(), 1
    )
    observed, made = (part for part in right.containers if isinstance(part, BarContainer))
    assert names(figure, 1) == ["b", r"\$a\$", "c"]
    assert [bar.get_width() for bar in observed] == [9, 5, 0] and [bar.get_width() for bar in made] == [
        0,
        7,
        2,
    ]
    assert [bar.get_x() for bar in made] == [9, 5, 0]


@pytest.mark.parametrize("count", [1, 200])
def test_without_imputed_labels_and_with_many_annotators(count: int) -> None:
    annotators = pd.DataFrame(
        {"labels": np.arange(count), "imputed": 0}, pd.RangeIndex(count, name="annotator")
    )
    figure = imputed_figure(pd.DataFrame({"confidence": np.zeros(0, np.float32)}), annotators)
    figure.canvas.draw()
    assert figure.axes[0].get_title() == "no imputed labels" and not figure.axes[0].patches
    assert len(names(figure, 1)) == min(count, ANNOTATORS) and names(figure, 1)[0] == str(count - 1)
    assert [text.get_text() for text in figure.axes[1].texts] == [
        "160 of 200 annotators between these are not shown"
    ] * (count > 1)
    assert figure.get_figheight() < 12


def test_accuracies_with_their_intervals_and_those_without_labels_last() -> None:
    nothing = [np.nan, 0.5, 0.9]
    table = pd.DataFrame(
        {"labels": [0, 20, 1500], "accuracy": nothing, "lower": nothing, "upper": nothing}, [7, 8, 9]
    )
    table[["lower", "upper"]] = table[["accuracy"]].to_numpy() + [-0.1, 0.05]
    other = table.assign(accuracy=table["accuracy"] - 0.2).drop(9)
    figure = annotator_accuracy_figure(table, other, ("mine", "yours"))
    figure.canvas.draw()
    axis = figure.axes[0]
    assert names(figure) == ["9", "8", "7"] and [text.get_text() for text in axis.texts] == [
        "1,500",
        "20",
        "no labels",
    ]
    mine, yours = (np.asarray(line.get_xdata(), float) for line in axis.lines)
    assert np.allclose(mine, [0.9, 0.5, np.nan], equal_nan=True) and np.allclose(
        yours, [np.nan, 0.3, np.nan], equal_nan=True
    )
    heights = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    assert (heights[0] < heights[1]).all()
    bars = next(part for part in axis.collections if isinstance(part, LineCollection))
    assert np.allclose(bars.get_segments()[0][:, 0], [0.8, 0.95])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mine", "yours"]
    left, right = axis.get_xlim()
    assert left < 0.4 and right > 0.95


@pytest.mark.parametrize("count", [1, 200])
def test_accuracies_of_nobody_and_of_many(count: int) -> None:
    empty = pd.DataFrame(
        {"labels": 0, "accuracy": np.nan, "lower": np.nan, "upper": np.nan},
        [f"${place}" for place in range(count)],
    )
    figure = annotator_accuracy_figure(empty)
    figure.canvas.draw()
    assert not figure.legends and len(names(figure)) == min(count, ANNOTATORS) and names(figure)[0] == r"\$0"
    assert figure.get_figheight() < 13 and figure.axes[0].get_xlim() == (0, 1.02)

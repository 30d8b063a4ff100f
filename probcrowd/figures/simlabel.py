"""Figures of predictors of each annotator's own label, as matplotlib figures to show, change or save."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from probcrowd.figures.base import CALM, INK, OTHER, name_annotators, outermost, short, write_number

ANNOTATORS, PAIRS = 40, 250  # shown at most
WRITTEN = 15  # annotators up to which numbers are written into cells


def similarity_figure(
    similarity_matrix: pd.DataFrame, similarity: pd.DataFrame | None = None, most: int = ANNOTATORS
) -> Figure:
    """Similarity of annotators, similar ones side by side; with the table of pairs also its uncertainty.

    Arguments: `SimLabel.similarity_matrix_` and `SimLabel.similarity_`. Of more than `most` annotators those
    with most items in common are shown, or the first ones if the pairs are not given.
    """
    pairs = pd.DataFrame() if similarity is None else similarity
    total, shown = len(similarity_matrix), _most_overlapping(similarity_matrix.index, pairs, most)
    matrix = similarity_matrix.to_numpy(np.float64)[np.ix_(shown, shown)]
    order = _similar_neighbours(matrix)
    names = [short(similarity_matrix.index[place]) for place in shown[order]]
    size = 3.2 + 0.16 * max(len(names), 8)
    figure = Figure(figsize=(size + 1.2 + 5 * (len(pairs) > 0), size), layout="constrained")
    left, *right = figure.subplots(
        1, 1 + (len(pairs) > 0), squeeze=False, width_ratios=[size + 1.2, 5][: 1 + (len(pairs) > 0)]
    )[0]
    ordered = matrix[np.ix_(order, order)]
    values = np.ma.masked_array(ordered, np.eye(len(names), dtype=bool))
    image = left.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    if len(names) <= WRITTEN:
        for place, value in np.ndenumerate(ordered):
            if place[0] != place[1]:
                write_number(left, place, float(value), "white" if abs(value) > 0.6 else INK)
    left.set_facecolor("0.88")
    left.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    left.set_yticks(range(len(names)), names, fontsize=7)
    how = "the first" if not len(pairs) else "with most items in common"
    words = "all annotators" if total == len(names) else f"{len(names)} of {total:,} annotators, {how}"
    left.set_title(words, fontsize=9)
    figure.colorbar(image, ax=left, shrink=0.8, label="similarity")
    for axis in right:
        _draw_pairs(axis, pairs)
    return figure


def imputed_figure(imputed: pd.DataFrame, annotators: pd.DataFrame) -> Figure:
    """Confidence of imputed labels, and numbers of observed and imputed labels by annotator.

    Arguments: `SimLabel.imputed_` and `SimLabel.annotators_`.
    """
    table = annotators.sort_values("labels", ascending=False, kind="stable")
    table, height = outermost(table, ANNOTATORS)
    figure = Figure(figsize=(9, max(0.2 * len(table) + 1.4, 3)), layout="constrained")
    left, right = figure.subplots(1, 2)
    confidence = imputed["confidence"].to_numpy(np.float64)
    if len(confidence):
        low = np.floor(confidence.min() * 20) / 20
        left.hist(confidence, np.linspace(low, 1, 21), color=OTHER)
        left.set_xlim(low, 1)
        left.set(xlabel="confidence (not a probability)", ylabel="imputed labels")
    else:
        left.set(xticks=[], yticks=[])
    left.set_title(
        f"{len(confidence):,} imputed labels" if len(confidence) else "no imputed labels", fontsize=9
    )
    right.barh(height, table["labels"], 0.7, color=CALM, label="observed")
    right.barh(height, table["imputed"], 0.7, left=table["labels"], color=OTHER, label="imputed")
    right.set_xlabel("labels of the annotator")
    right.set_xlim(0, 1.03 * max((table["labels"] + table["imputed"]).max(), 1))
    name_annotators(right, table, height, len(annotators))
    for axis, lines in ((left, "both"), (right, "x")):
        axis.grid(axis=lines, alpha=0.3)
        axis.set_axisbelow(True)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8
    )
    return figure


def annotator_accuracy_figure(
    evaluation_annotators: pd.DataFrame,
    other: pd.DataFrame | None = None,
    names: tuple[str, str] = ("this fit", "the other"),
) -> Figure:
    """Share of each annotator's labels predicted correctly, with 95 % intervals, highest first.

    Annotators without labels come last. Arguments: `annotators` of results of `SimLabel.evaluate`. names: of
    the two results if there is another.
    """
    table = evaluation_annotators.sort_values("accuracy", ascending=False, kind="stable", na_position="last")
    table, height = outermost(table, ANNOTATORS)
    figure = Figure(figsize=(6.4, 0.24 * len(table) + 1.6), layout="constrained")
    axis = figure.subplots()
    parts = [(table, CALM, "o", names[0])] + (
        [] if other is None else [(other.reindex(table.index), OTHER, "s", names[1])]
    )
    for part, (accuracies, colour, marker, name) in enumerate(parts):
        here = height + (0.26 * part - 0.13) * (len(parts) > 1)
        axis.hlines(here, accuracies["lower"], accuracies["upper"], color=colour, lw=1.5)
        axis.plot(accuracies["accuracy"], here, marker, ms=4, color=colour, label=name)
    for place, count in zip(height, table["labels"], strict=True):
        words = f"{count:,}" if count else "no labels"
        axis.text(1.01, place, words, va="center", fontsize=7, transform=axis.get_yaxis_transform())
    axis.set_title("labels", loc="right", fontsize=8)
    lows = pd.concat([part["lower"] for part, *_ in parts]).dropna()
    lowest = max(lows.min(), 0) - 0.02 if len(lows) else 0
    axis.set(xlabel="share of labels predicted correctly", xlim=(lowest, 1.02))
    axis.grid(axis="x", alpha=0.3)
    name_annotators(axis, table, height, len(evaluation_annotators))
    if len(parts) > 1:
        figure.legend(
            *axis.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=8
        )
    return figure


def _most_overlapping(annotators: pd.Index, pairs: pd.DataFrame, most: int) -> Int[np.ndarray, " a"]:
    """Positions of the annotators with most items in common with others; without pairs the first."""
    common = np.zeros(len(annotators))
    for side in ("annotator", "other") if len(pairs) else ():
        np.add.at(common, annotators.get_indexer(pd.Index(pairs[side])), pairs["items"])
    return np.sort(np.argsort(-common, kind="stable")[:most])


def _similar_neighbours(matrix: Float[np.ndarray, "a a"]) -> Int[np.ndarray, " a"]:
    """Positions in the order of the leaves of an average-linkage tree, with the most similar neighbours."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    distance = squareform(1 - (matrix + matrix.T) / 2, checks=False)
    return leaves_list(linkage(distance, "average", optimal_ordering=True)).astype(np.int64)


def _draw_pairs(axis: Axes, pairs: pd.DataFrame) -> None:
    """Draw coefficients with a standard error either way, and the similarities used, by items in common."""
    table = pairs.sort_values(["items", "coefficient"], kind="stable")
    table = table.iloc[np.unique(np.linspace(0, len(table) - 1, min(len(table), PAIRS)).round().astype(int))]
    alike = table.groupby("items")["items"]
    # Side by side, so that pairs do not hide each other
    place = table["items"] + 0.8 * ((alike.cumcount() + 0.5) / alike.transform("size") - 0.5)
    low, high = (table["coefficient"] + sign * table["standard_error"] for sign in (-1, 1))
    axis.vlines(place, low, high, color=CALM, lw=0.8, alpha=0.45)
    axis.plot(
        place, table["coefficient"], "o", ms=3.5, mfc="none", color=CALM, label="coefficient ± standard error"
    )
    axis.plot(place, table["similarity"], "o", ms=3, color=OTHER, label="similarity used")
    axis.axhline(0, color=INK, lw=0.6)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="items in common; equal numbers side by side", ylabel="agreement of a pair beyond chance")
    words = "all pairs" if len(table) == len(pairs) else f"{len(table):,} of {len(pairs):,} pairs"
    axis.set_title(words, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=7)

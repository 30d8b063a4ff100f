"""Figures of aggregated labels, returned as matplotlib figures for the caller to show, change or save."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probcrowd.figures.base import (
    CALM,
    INK,
    OTHER,
    draw_reliability,
    frame_reliability,
    name_annotators,
    outermost,
    short,
)
from probcrowd.metrics.scores import reliability

ANNOTATORS = 40  # shown at most
NAMED, SHAPE = 12, 0.8  # names in a map, and its height by its width


def annotators_figure(annotators: pd.DataFrame) -> Figure:
    """Accuracy and information of annotators with 90 % intervals, the most informative first; probable spammers in another colour.

    annotators: as `Aggregator.annotators_` has them.
    """
    table = annotators.sort_values("information_bits", ascending=False, kind="stable")
    table, height = outermost(table, ANNOTATORS)
    figure = Figure(figsize=(9, 0.2 * len(table) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    spams = table["spammer"].to_numpy() > 0.5
    for axis, name, words in (
        (left, "accuracy", "probability of a right label"),
        (right, "information_bits", "bits about the truth, by a label"),
    ):
        for mask, colour, label in ((~spams, CALM, "annotator"), (spams, OTHER, "probably a spammer")):
            if mask.any():
                part = table.loc[mask]
                axis.hlines(height[mask], part[f"{name}_lower"], part[f"{name}_upper"], color=colour, lw=1.5)
                axis.plot(part[name], height[mask], "o", ms=4, color=colour, label=label)
        axis.set_xlabel(words)
        axis.grid(axis="x", alpha=0.3)
    name_annotators(left, table, height, len(annotators))
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def confidence_figure(
    probabilities: Float[np.ndarray, "i k"], gold: Int[np.ndarray, " i"] | None = None
) -> Figure:
    """How many items have which highest probability; with gold codes (-1 unknown) also how often that is right, with 95 % intervals."""
    known = np.zeros(len(probabilities), bool) if gold is None else gold >= 0
    judged = gold is not None and bool(known.any())
    figure = Figure(figsize=(8 if judged else 4.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    axes[0].hist(
        probabilities.max(1),
        np.linspace(1 / probabilities.shape[1] - 1e-9, 1 + 1e-9, 21),
        color=CALM,
        alpha=0.6,
    )
    axes[0].set(xlabel="probability of the label", ylabel="items", yscale="log")
    if gold is not None and judged:
        draw_reliability(axes[1], reliability(probabilities[known], gold[known]), CALM)
        frame_reliability(axes[1], int(known.sum()))
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def annotator_map_figure(annotator_map: pd.DataFrame) -> Figure:
    """Annotators in two dimensions: those near each other label alike, the cross is the mean annotator; colour is accuracy, area labels.

    annotator_map: as `LIA.annotator_map_` has it. Names stand beside those farthest out, as far as they do not cover one another.
    """
    points = annotator_map[["first", "second"]].to_numpy(np.float64)
    labels, accuracy = (
        annotator_map["num_labels"].to_numpy(np.float64),
        annotator_map["accuracy"].to_numpy(np.float64),
    )
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color=INK, lw=0.6, alpha=0.35, zorder=0)
    axis.axvline(0, color=INK, lw=0.6, alpha=0.35, zorder=0)
    axis.plot(0, 0, "+", color=INK, ms=12, mew=1.2, zorder=3)
    crowded = np.clip(60 / np.sqrt(len(points)), 1, 6)  # so that many points leave room
    area = 8 + 50 * crowded / 2 * labels / max(labels.max(), 1.0)
    best = accuracy.max()
    first_the_large = np.argsort(-area, kind="stable")
    drawn = axis.scatter(
        *points[first_the_large].T,
        s=area[first_the_large],
        c=accuracy[first_the_large],
        cmap="viridis",
        vmin=min(accuracy.min(), best - 0.01),  # equal accuracies have one colour
        vmax=best,
        edgecolors="white",
        linewidths=0.4,
        alpha=0.85,
        zorder=2,
    )
    figure.colorbar(drawn, ax=axis, label="accuracy on an average item", shrink=0.85)
    low, high = np.minimum(points.min(0), 0), np.maximum(points.max(0), 0)
    middle, half = (low + high) / 2, (high - low) / 2
    width = 1.2 * max(float(half[0]), float(half[1]) / SHAPE) or 1.0
    axis.set(
        xlim=(middle[0] - width, middle[0] + width),
        ylim=(middle[1] - SHAPE * width, middle[1] + SHAPE * width),
    )
    axis.set(xlabel="first component", ylabel="second component", aspect="equal")
    axis.set_title(f"area: number of labels, at most {labels.max():,.0f}", fontsize=9)
    axis.grid(alpha=0.3)
    farthest = np.argsort(-np.hypot(*points.T), kind="stable")[:NAMED]
    _name_points(
        figure, axis, points, area, {int(place): short(annotator_map.index[place]) for place in farthest}
    )
    return figure


def _name_points(
    figure: Figure,
    axis: Axes,
    points: Float[np.ndarray, "p 2"],
    area: Float[np.ndarray, " p"],
    names: dict[int, str],
) -> None:
    """Writes names beside the points at those places, on one of four sides where they cover nothing; a name without room is left out."""
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    radius = pixel * np.sqrt(area)[:, None] / 2
    centre = axis.transData.transform(points)
    taken = np.hstack([centre - radius, centre + radius])  # left, bottom, right, top
    frame = np.asarray(axis.get_window_extent().extents)
    for place, name in names.items():
        away = 2 + float(radius[place, 0]) / pixel
        outward = 1 if points[place, 0] >= 0 else -1
        for right, up in ((outward, 0), (-outward, 0), (0, 1), (0, -1)):
            text = axis.annotate(
                name,
                (float(points[place, 0]), float(points[place, 1])),
                (right * away, up * away),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=8,
            )
            text.set_in_layout(False)
            box = np.asarray(text.get_window_extent().extents)
            covers = np.all((box[:2] < taken[:, 2:]) & (box[2:] > taken[:, :2]), axis=1)
            if not covers.any() and np.all(box[:2] > frame[:2]) and np.all(box[2:] < frame[2:]):
                taken = np.vstack([taken, box])
                break
            text.remove()

"""Figures of aggregated labels, returned as matplotlib figures to show, change or save."""

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
    """Accuracy and information of annotators with 90 % intervals, most informative first; spammers coloured.

    annotators: as `Aggregator.annotators_`.
    """
    table = annotators.sort_values("information_bits", ascending=False, kind="stable")
    table, height = outermost(table, ANNOTATORS)
    figure = Figure(figsize=(9, 0.2 * len(table) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    spams = table["spammer"].to_numpy() > 0.5
    for axis, name, words in (
        (left, "accuracy", "probability of a correct label"),
        (right, "information_bits", "bits about the truth per label"),
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
    """Histogram of the highest probabilities; with gold codes (-1 unknown) also their reliability.

    Bars of the reliability are 95 % intervals.
    """
    known = np.zeros(len(probabilities), bool) if gold is None else gold >= 0
    judged = gold is not None and bool(known.any())
    figure = Figure(figsize=(8 if judged else 4.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    bins = np.linspace(1 / probabilities.shape[1] - 1e-9, 1 + 1e-9, 21)
    axes[0].hist(probabilities.max(1), bins, color=CALM, alpha=0.6)
    axes[0].set(xlabel="probability of the label", ylabel="items", yscale="log")
    if gold is not None and judged:
        draw_reliability(axes[1], reliability(probabilities[known], gold[known]), CALM)
        frame_reliability(axes[1], int(known.sum()))
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def annotator_map_figure(annotator_map: pd.DataFrame) -> Figure:
    """Annotators in two dimensions: those near each other label alike; the cross is the mean annotator.

    Colour is accuracy, area the number of labels.

    annotator_map: as `LIA.annotator_map_`. The annotators farthest out are named where names do not overlap.
    """
    points = annotator_map[["first", "second"]].to_numpy(np.float64)
    labels, accuracy = annotator_map[["num_labels", "accuracy"]].to_numpy(np.float64).T
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axis = figure.subplots()
    axis.axhline(0, color=INK, lw=0.6, alpha=0.35, zorder=0)
    axis.axvline(0, color=INK, lw=0.6, alpha=0.35, zorder=0)
    axis.plot(0, 0, "+", color=INK, ms=12, mew=1.2, zorder=3)
    scale = np.clip(60 / np.sqrt(len(points)), 1, 6)  # smaller where there are many points
    area = 8 + 50 * scale / 2 * labels / max(labels.max(), 1.0)
    best = accuracy.max()
    largest_first = np.argsort(-area, kind="stable")
    drawn = axis.scatter(
        *points[largest_first].T,
        s=area[largest_first],
        c=accuracy[largest_first],
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
    (x, y), tall = middle, SHAPE * width
    axis.set(xlim=(x - width, x + width), ylim=(y - tall, y + tall))
    axis.set(xlabel="first component", ylabel="second component", aspect="equal")
    axis.set_title(f"area: number of labels, at most {labels.max():,.0f}", fontsize=9)
    axis.grid(alpha=0.3)
    farthest = np.argsort(-np.hypot(*points.T), kind="stable")[:NAMED]
    names = {int(place): short(annotator_map.index[place]) for place in farthest}
    _name_points(figure, axis, points, area, names)
    return figure


def _name_points(
    figure: Figure,
    axis: Axes,
    points: Float[np.ndarray, "p 2"],
    area: Float[np.ndarray, " p"],
    names: dict[int, str],
) -> None:
    """Write names beside points, on a side where they cover nothing; leave out names without room."""
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

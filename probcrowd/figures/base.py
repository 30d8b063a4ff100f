"""Style and shared parts of figures, and the figures of meta-learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probcrowd.metrics.intervals import share_interval
from probcrowd.storage.files import replacing

SHOWN = 10  # annotators in a figure of confusion matrices
INK, CALM, OTHER, ALARM = "0.15", "#33689e", "#d08c2e", "#c0392b"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a .png file, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def accuracy_figure(table: pd.DataFrame) -> Figure:
    """Accuracy against the number of annotators: a panel per number of shots, a line per method.

    table: columns method, shots, annotators, accuracy, half_width, as `probcrowd.runs.meta.evaluate.summary`
    returns them.
    """
    shots, methods = table["shots"].unique(), list(table["method"].unique())
    figure = Figure(figsize=(3.6 * len(shots) + 2.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    ticks = sorted(table["annotators"].unique())
    for axis, shot in zip(axes, shots, strict=True):
        _draw_methods(axis, table.loc[table["shots"] == shot], methods, "annotators", 0.18)
        title = f"{shot} item{'s' if shot > 1 else ''} per class"
        axis.set(title=title, xlabel="annotators", xticks=ticks)
    axes[0].set_ylabel("query accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def share_figure(table: pd.DataFrame) -> Figure:
    """Accuracy against the share of spammers, a line per method, with 95 % intervals.

    table: columns method, share, accuracy, half_width, as `probcrowd.runs.meta.evaluate.summary` returns
    them.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis, table = figure.subplots(), table.sort_values(by="share")
    _draw_methods(axis, table, list(table["method"].unique()), "share", 0.012)
    words = "share of spammers, or of others who err in their own way"
    axis.set(xlabel=words, ylabel="query accuracy", xticks=sorted(table["share"].unique()))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def confusion_figure(estimated: pd.DataFrame, true: pd.DataFrame | None = None) -> Figure:
    """Confusion matrices of the first `SHOWN` annotators, with true ones below if given.

    Both tables: index (annotator, true class), columns labels, as in
    `probcrowd.runs.meta.trained.Adapted.confusion`.
    """
    tables = {"estimated": estimated} if true is None else {"estimated": estimated, "true": true}
    annotators = list(estimated.index.get_level_values(0).unique())[:SHOWN]
    size = min(0.35 * max(len(estimated.columns), 3) + 0.7, 3.5)
    figure = Figure(figsize=(size * len(annotators) + 1.2, size * len(tables) + 0.6), layout="constrained")
    grid = figure.subplots(len(tables), len(annotators), squeeze=False, sharex=True, sharey=True)
    image = None
    for row, (kind, table) in zip(grid, tables.items(), strict=True):
        for axis, annotator in zip(row, annotators, strict=True):
            matrix = table.loc[annotator]
            image = axis.imshow(matrix.to_numpy(), vmin=0, vmax=1, cmap="Blues")
            _cells(axis, matrix.to_numpy(), list(matrix.columns))
        row[0].set_ylabel(f"{kind}\n(true class)")
    for axis, annotator in zip(grid[0], annotators, strict=True):
        axis.set_title(short(annotator, 12), fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("label", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.7, label="probability")
    return figure


def outermost(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, Float[np.ndarray, " r"]]:
    """Choose at most `most` first and last rows of a sorted table, and their heights, with a gap between."""
    half, total = most // 2, len(table)
    shown = table if total <= most else pd.concat([table.iloc[:half], table.iloc[-half:]])
    place = np.arange(len(shown))
    return shown, place + 1.5 * ((place >= half) & (total > most))


def name_annotators(axis: Axes, shown: pd.DataFrame, height: Float[np.ndarray, " r"], total: int) -> None:
    """Label the rows of `outermost` with ids, the first on top, and write how many of `total` are hidden."""
    axis.set_yticks(height, [short(name, 28) for name in shown.index], fontsize=8)
    axis.set_ylim(height[-1] + 0.8, -0.8)
    if total > len(shown):
        words = f"{total - len(shown):,} of {total:,} annotators between these are not shown"
        axis.text(
            0.02, len(shown) // 2 + 0.25, words, va="center", fontsize=8, transform=axis.get_yaxis_transform()
        )


def draw_reliability(
    axis: Axes, bins: pd.DataFrame, colour: str, marker: str = "o", label: str | None = None
) -> None:
    """Draw mean confidence against accuracy by bin (`metrics.scores.reliability`), with 95 % intervals."""
    right = bins["accuracy"] * bins["items"]
    lower, upper = share_interval(right, bins["items"])
    axis.vlines(bins["confidence"], lower, upper, color=colour, lw=1, alpha=0.6)
    axis.plot(bins["confidence"], bins["accuracy"], marker, color=colour, ms=5, label=label)


def frame_reliability(axis: Axes, items: int) -> None:
    """Draw the diagonal, and set labels and limits, of a figure of reliability on `items` items."""
    axis.axline((1, 1), slope=1, color=INK, lw=0.8)
    axis.set(
        xlabel="mean confidence of a bin of items",
        ylabel="share of correct labels",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axis.set_title(f"{items:,} items with gold that the fit did not see", fontsize=9)


def short(name: object, most: int = 18) -> str:
    """Shorten a name to one line, leaving out its middle if it is long: ids often begin alike."""
    text = " ".join(str(name).split())
    half = (most - 1) // 2
    text = text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")  # a dollar sign would start mathematics


def write_number(axis: Axes, place: tuple[int, ...], value: float, colour: str) -> None:
    """Write a number with two digits into the cell (row, column) of a drawn matrix."""
    row, column = place
    axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _draw_methods(axis: Axes, table: pd.DataFrame, methods: list[Any], x: str, spread: float) -> None:
    """Draw accuracies with error bars, a line per method, shifted so that bars do not hide each other."""
    offsets = np.linspace(-spread, spread, len(methods)) if len(methods) > 1 else [0.0]
    for number, (method, offset) in enumerate(zip(methods, offsets, strict=True)):
        rows = table[table["method"] == method]
        style: Any = {
            "marker": "osD^vPX"[number % 7],
            "ms": 4,
            "lw": 1.2,
            "capsize": 2,
            "color": f"C{number}",
        }
        axis.errorbar(rows[x] + offset, rows["accuracy"], rows["half_width"], label=str(method), **style)
    axis.grid(alpha=0.3)


def _cells(axis: Axes, matrix: np.ndarray, names: Sequence[object]) -> None:
    shown = list(range(0, len(names), 1 + (len(names) - 1) // 8))  # at most eight names fit
    labels = [short(names[position], 12) for position in shown]
    axis.set_xticks(shown, labels, fontsize=7)
    axis.set_yticks(shown, labels, fontsize=7)
    if len(names) <= 6:
        for place, value in np.ndenumerate(matrix):
            write_number(axis, place, float(value), "white" if value > 0.6 else "black")

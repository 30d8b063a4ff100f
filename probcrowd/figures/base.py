"""Figures, returned as matplotlib figures for the caller to show, change or save."""

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
    """Accuracy against the number of annotators, a panel per number of shots, a line per method, bars for 95 % intervals.

    table: columns method, shots, annotators, accuracy, half_width, as `runs.evaluate.summary` gives them.
    """
    shots, methods = table["shots"].unique(), list(table["method"].unique())
    figure = Figure(figsize=(3.6 * len(shots) + 2.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    offsets = (
        np.linspace(-0.18, 0.18, len(methods)) if len(methods) > 1 else [0.0]
    )  # so that bars do not hide one another
    for axis, shot in zip(axes, shots, strict=True):
        for number, (method, offset) in enumerate(zip(methods, offsets, strict=True)):
            _line(
                axis,
                table[(table["shots"] == shot) & (table["method"] == method)],
                "annotators",
                offset,
                method,
                number,
            )
        axis.set(
            title=f"{shot} item{'s' if shot > 1 else ''} per class",
            xlabel="annotators",
            xticks=sorted(table["annotators"].unique()),
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("query accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def share_figure(table: pd.DataFrame) -> Figure:
    """Accuracy against the share of spammers, a line per method, bars for 95 % intervals.

    table: columns method, share, accuracy, half_width, as `runs.evaluate.summary` gives them.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis, table = figure.subplots(), table.sort_values(by="share")
    methods = list(table["method"].unique())
    offsets = np.linspace(-0.012, 0.012, len(methods)) if len(methods) > 1 else [0.0]
    for number, (method, offset) in enumerate(zip(methods, offsets, strict=True)):
        _line(axis, table[table["method"] == method], "share", offset, method, number)
    axis.set(
        xlabel="share of spammers, or of others who err in their own way",
        ylabel="query accuracy",
        xticks=sorted(table["share"].unique()),
    )
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def confusion_figure(estimated: pd.DataFrame, true: pd.DataFrame | None = None) -> Figure:
    """Confusion matrices of the annotators, estimated and, where given, true ones below; at most the first `SHOWN` annotators.

    Both tables: index (annotator, true class), columns labels, as in `runs.trained.Adapted.confusion`.
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
        axis.set_title(_short(annotator), fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("label", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=grid, shrink=0.7, label="probability")
    return figure


def outermost(table: pd.DataFrame, most: int) -> tuple[pd.DataFrame, Float[np.ndarray, " r"]]:
    """The rows of a sorted table to show, the first and the last ones where there are more than `most`, and their heights, with a gap between."""
    half, total = most // 2, len(table)
    shown = table if total <= most else pd.concat([table.iloc[:half], table.iloc[-half:]])
    place = np.arange(len(shown))
    return shown, place + 1.5 * ((place >= half) & (total > most))


def name_annotators(axis: Axes, shown: pd.DataFrame, height: Float[np.ndarray, " r"], total: int) -> None:
    """The ids of the rows of `outermost` at their heights, the first on top, and how many of so many annotators are not shown."""
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
    """Mean confidence against accuracy of bins, as `scoring.reliability` makes them, with 95 % intervals of the accuracy."""
    right = bins["accuracy"] * bins["items"]
    lower, upper = share_interval(right, bins["items"])
    axis.vlines(bins["confidence"], lower, upper, color=colour, lw=1, alpha=0.6)
    axis.plot(bins["confidence"], bins["accuracy"], marker, color=colour, ms=5, label=label)


def frame_reliability(axis: Axes, items: int) -> None:
    """The diagonal, names and limits of a figure of reliability on so many items."""
    axis.axline((1, 1), slope=1, color=INK, lw=0.8)
    axis.set(
        xlabel="mean confidence of a bin of items",
        ylabel="share that gold agrees with",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
    )
    axis.set_title(f"{items:,} items with gold that the fit did not see", fontsize=9)


def short(name: object, most: int = 18) -> str:
    """The name on one line, with its middle left out if it is long: ids often begin alike."""
    text = " ".join(str(name).split())
    half = (most - 1) // 2
    text = text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")  # which would start mathematics


def _line(axis: Axes, rows: Any, along: str, offset: float, method: object, number: int) -> None:
    """Accuracies of one method with bars for their intervals, moved aside so that bars do not hide one another."""
    style = {"marker": "osD^vPX"[number % 7], "ms": 4, "lw": 1.2, "capsize": 2, "color": f"C{number}"}
    axis.errorbar(rows[along] + offset, rows["accuracy"], rows["half_width"], label=str(method), **style)


def _cells(axis: Axes, matrix: np.ndarray, names: Sequence[object]) -> None:
    shown = list(range(0, len(names), 1 + (len(names) - 1) // 8))  # at most eight names fit
    axis.set_xticks(shown, [_short(names[position]) for position in shown], fontsize=7)
    axis.set_yticks(shown, [_short(names[position]) for position in shown], fontsize=7)
    if len(names) <= 6:
        for (row, column), value in np.ndenumerate(matrix):
            axis.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if value > 0.6 else "black",
            )


def _short(name: object) -> str:
    # a dollar sign would start mathematics, and ids can be long
    text = str(name).replace("$", r"\$")
    return text if len(text) <= 12 else text[:11] + "…"

"""Figures of aggregated labels, returned as matplotlib figures for the caller to show, change or save."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from probcrowd.figures import CALM, OTHER, draw_reliability, frame_reliability, name_annotators, outermost
from probcrowd.scoring import reliability

ANNOTATORS = 40  # shown at most


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
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def confidence_figure(probabilities: Float[np.ndarray, "i k"], gold: Int[np.ndarray, " i"] | None = None) -> Figure:
    """How many items have which highest probability; with gold codes (-1 unknown) also how often that is right, with 95 % intervals."""
    known = np.zeros(len(probabilities), bool) if gold is None else gold >= 0
    judged = gold is not None and bool(known.any())
    figure = Figure(figsize=(8 if judged else 4.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if judged else 1, squeeze=False)[0]
    axes[0].hist(probabilities.max(1), np.linspace(1 / probabilities.shape[1] - 1e-9, 1 + 1e-9, 21), color=CALM, alpha=0.6)
    axes[0].set(xlabel="probability of the label", ylabel="items", yscale="log")
    if gold is not None and judged:
        draw_reliability(axes[1], reliability(probabilities[known], gold[known]), CALM)
        frame_reliability(axes[1], int(known.sum()))
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure

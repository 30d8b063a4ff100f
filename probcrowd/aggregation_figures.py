"""Figures of aggregated labels, returned as matplotlib figures for the caller to show, change or save."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.stats import beta

from probcrowd.figures import CALM, INK, OTHER, short
from probcrowd.scoring import reliability

ANNOTATORS = 40  # shown at most


def annotators_figure(annotators: pd.DataFrame) -> Figure:
    """Accuracy and information of annotators with 90 % intervals, the most informative first; probable spammers in another colour.

    annotators: as `Aggregator.annotators_` has them.
    """
    table = annotators.sort_values("information_bits", ascending=False, kind="stable")
    half = ANNOTATORS // 2
    total, table = len(table), table if len(table) <= ANNOTATORS else pd.concat([table.iloc[:half], table.iloc[-half:]])
    height = np.arange(len(table)) + 1.5 * ((np.arange(len(table)) >= half) & (total > ANNOTATORS))
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
    left.set_yticks(height, [short(name, 28) for name in table.index], fontsize=8)
    left.set_ylim(height[-1] + 0.8, -0.8)
    if total > ANNOTATORS:
        words = f"{total - ANNOTATORS:,} of {total:,} annotators between these are not shown"
        left.text(0.02, half + 0.25, words, va="center", fontsize=8, transform=left.get_yaxis_transform())
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
        bins = reliability(probabilities[known], gold[known])
        right = bins["accuracy"] * bins["items"]
        lower, upper = (beta.ppf(p, right + 0.5, bins["items"] - right + 0.5) for p in (0.025, 0.975))
        axes[1].vlines(bins["confidence"], lower, upper, color=CALM, lw=1)
        axes[1].plot(bins["confidence"], bins["accuracy"], "o", color=CALM, ms=5)
        axes[1].axline((1, 1), slope=1, color=INK, lw=0.8)
        axes[1].set(
            xlabel="mean confidence of a bin of items", ylabel="share that gold agrees with", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
        )
        axes[1].set_title(f"{known.sum():,} items with gold that the fit did not see", fontsize=9)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure

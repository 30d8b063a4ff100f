"""Figures of a posterior and of its checks, returned as matplotlib figures to show, change or save.

chains        draws of functionals without class names and of the prior    do all chains agree?
energy        NUTS alone                                                   does momentum reach all energies?
annotators    accuracy with intervals, best first                          how accurate is each annotator?
items         label probabilities of the most uncertain items              which items are undecided?
plug_in       confidence at EM's point and averaged                        what did averaging change?
reliability   confidence against accuracy, where gold is known             are the probabilities calibrated?
predictive    replicated against observed labels                           does the model fit?
pareto_k      by item                                                      can leave-one-out be trusted?
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from matplotlib.figure import Figure

from probcrowd.figures.base import (
    ALARM,
    CALM,
    INK,
    OTHER,
    draw_reliability,
    frame_reliability,
    name_annotators,
    outermost,
    short,
)
from probcrowd.figures.checks import chains_figure, energy_figure, pareto_figure, predictive_figure
from probcrowd.inference.checks.check import Checked
from probcrowd.inference.posterior.tables import annotator_table, class_names
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.scores import reliability

ANNOTATORS, ITEMS, CLASSES = 40, 20, 8  # shown at most


def posterior_figures(
    tree: xr.DataTree, checked: Checked, gold: Int[np.ndarray, " i"] | None = None
) -> dict[str, Figure]:
    """Draw the figures above that apply, by name. gold: codes of true classes, -1 if unknown."""
    figures = {"chains": chains_figure(tree, checked)}
    if "energy" in dataset(tree, "sample_stats"):
        figures["energy"] = energy_figure(tree)
    if "confusion" in dataset(tree, "posterior"):
        figures["annotators"] = annotators_figure(tree)
    figures |= {"items": items_figure(tree), "plug_in": plug_in_figure(checked.tables["items"])}
    unseen = None if gold is None else np.where(array(tree, "constant_data", "gold") >= 0, -1, gold)
    if unseen is not None and (unseen >= 0).any():
        figures["reliability"] = reliability_figure(tree, unseen)
    terms = dataset(tree, "log_likelihood").sizes
    good_k = min(1 - 1 / np.log10(terms["chain"] * terms["draw"]), 0.7)  # as ArviZ has it
    return figures | {
        "predictive": predictive_figure(checked),
        "pareto_k": pareto_figure(checked.tables["loo_by_item"], good_k),
    }


def annotators_figure(tree: xr.DataTree) -> Figure:
    """Accuracy by annotator, best first, with 50 and 95 % intervals, EM's point and numbers of labels."""
    table = annotator_table(tree)
    if "annotator" not in dataset(tree, "posterior")["confusion"].dims:
        table = table.assign(labels=table["labels"].sum()).iloc[:1].set_axis(["all annotators"])
    total = len(table)
    table, height = outermost(table.sort_values("accuracy_mean", ascending=False, kind="stable"), ANNOTATORS)
    figure = Figure(figsize=(8, 0.2 * len(table) + 1.3), layout="constrained")
    axis = figure.subplots()
    axis.hlines(height, table["lower_95"], table["upper_95"], color=CALM, lw=1.2)
    axis.hlines(height, table["lower_50"], table["upper_50"], color=CALM, lw=4)
    words = "posterior mean, 50 and 95 % intervals"
    axis.plot(table["accuracy_mean"], height, "o", ms=4, mfc="white", mec=CALM, label=words)
    axis.plot(table["plug_in_accuracy"], height, "x", ms=5, color=OTHER, label="EM's point")
    axis.axvline(1 / len(class_names(tree)), color="0.5", lw=1, ls=":", label="random labels")
    name_annotators(axis, table, height, total)
    lowest = min(float(table[["lower_95", "plug_in_accuracy"]].to_numpy().min()), 1 / len(class_names(tree)))
    axis.set(xlim=(max(lowest - 0.05, -0.01), 1.01), xlabel="probability of a correct label")
    counts = axis.secondary_yaxis("right")
    counts.set_yticks(height, [f"{count:,}" for count in table["labels"]], fontsize=8)
    counts.set_ylabel("labels")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def items_figure(tree: xr.DataTree) -> Figure:
    """Label probabilities of the items with the highest entropy, as stacked bars."""
    averaged, names = array(tree, "responsibilities", "mean"), class_names(tree)
    ids = array(tree, "constant_data", "item")
    entropy = -(averaged * np.log(np.maximum(averaged, 1e-300))).sum(1)
    chosen = np.argsort(-entropy, kind="stable")[:ITEMS]
    shown = averaged[chosen]
    classes = np.sort(np.argsort(-shown.sum(0), kind="stable")[:CLASSES])
    parts = [(short(names[k]), shown[:, k], f"C{number}") for number, k in enumerate(classes)]
    if len(classes) < len(names):
        parts.append((f"{len(names) - len(classes)} other classes", 1 - shown[:, classes].sum(1), "0.8"))
    figure = Figure(figsize=(8, 0.22 * len(chosen) + 1.2), layout="constrained")
    axis, left = figure.subplots(), np.zeros(len(chosen))
    for name, width, colour in parts:
        axis.barh(np.arange(len(chosen)), width, left=left, height=0.75, color=colour, label=name, alpha=0.85)
        left = left + width
    axis.set_yticks(range(len(chosen)), [short(ids[item]) for item in chosen], fontsize=8)
    axis.set(xlim=(0, 1), ylim=(len(chosen) - 0.4, -0.6), xlabel="probability of the class", ylabel="item")
    figure.legend(loc="outside upper center", ncols=min(len(parts), 5), frameon=False, fontsize=8)
    return figure


def plug_in_figure(items: pd.DataFrame) -> Figure:
    """Confidence at EM's point against that averaged over the posterior, by item, and histograms of both."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    points, counts = figure.subplots(1, 2)
    for differs, colour, name in ((False, CALM, "same class"), (True, ALARM, "another class")):
        part = items[items["class_differs"] == differs]
        if len(part):
            style = {
                "ms": 4,
                "alpha": 0.5,
                "mew": 0,
                "color": colour,
                "label": f"{name}: {len(part):,} items",
            }
            points.plot(part["confidence"], part["plug_in_confidence"], "o", **style)
    points.axline((1, 1), slope=1, color=INK, lw=0.8)
    lowest = float(items[["confidence", "plug_in_confidence"]].to_numpy().min())
    limits = (lowest - 0.05 * (1.02 - lowest), 1 + 0.05 * (1.02 - lowest))
    points.set(
        xlabel="averaged over the posterior", ylabel="at EM's point", xlim=limits, ylim=limits, aspect="equal"
    )
    points.set_title("highest class probability, by item", fontsize=10)
    bins = np.linspace(min(lowest, 0.99), 1 + 1e-9, 21)
    counts.hist(items["confidence"], bins, color=CALM, alpha=0.45, label="averaged over the posterior")
    counts.hist(
        items["plug_in_confidence"], bins, histtype="step", lw=1.5, color=OTHER, label="at EM's point"
    )
    counts.set(xlabel="highest class probability", ylabel="items", yscale="log", ylim=(0.7, 2 * len(items)))
    points.legend(frameon=False, fontsize=8, loc="lower right")
    counts.legend(frameon=False, fontsize=8, loc="upper left")
    for axis in (points, counts):
        axis.grid(alpha=0.3)
    return figure


def reliability_figure(tree: xr.DataTree, gold: Int[np.ndarray, " i"]) -> Figure:
    """Mean confidence against accuracy in equally filled bins, averaged and at EM's point, with intervals."""
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    axis, known = figure.subplots(), gold >= 0
    answers = {
        "averaged over the posterior": (array(tree, "responsibilities", "mean"), CALM, "o"),
        "at EM's point": (array(tree, "plug_in", "responsibility"), OTHER, "x"),
    }
    for name, (probabilities, colour, marker) in answers.items():
        draw_reliability(axis, reliability(probabilities[known], gold[known]), colour, marker, name)
    frame_reliability(axis, int(known.sum()))
    axis.set_aspect("equal")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    return figure

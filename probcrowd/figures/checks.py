"""Figures of the checks of a posterior: chains, energies, replicated labels, leave-one-out."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from arviz_plots import plot_energy
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probcrowd.figures.base import ALARM, CALM, INK, short
from probcrowd.inference.checks.check import Checked
from probcrowd.inference.checks.predictive import PredictiveCheck
from probcrowd.inference.posterior.tree import dataset
from probcrowd.metrics.scores import TIE

_ENTRIES = 8  # shown at most
_WITH_INTERVALS = 150  # intervals of more entries would cover each other
_BAD_K = 1.0


def chains_figure(tree: xr.DataTree, checked: Checked) -> Figure:
    """Traces and histograms by chain: the log likelihood, then the functionals with the worst R-hat."""
    entries = _entries(dataset(tree, "invariants"), "invariants")
    posterior = dataset(tree, "posterior")
    entries |= _entries(posterior[["class_prior"]], "posterior") if "class_prior" in posterior else {}
    r_hat = checked.tables["convergence"]["r_hat"]
    known = [name for name in r_hat.index[np.argsort(-r_hat.to_numpy(), kind="stable")] if name in entries]
    chosen = sorted(known, key=lambda name: name[1] != "log_likelihood")[:_ENTRIES]
    figure = Figure(figsize=(8, 0.95 * len(chosen) + 0.5), layout="constrained")
    grid = figure.subplots(len(chosen), 2, width_ratios=[3, 1], squeeze=False)
    for (trace, histogram), name in zip(grid, chosen, strict=True):
        draws = entries[name]
        bins = np.histogram_bin_edges(draws, 25)
        for number, chain in enumerate(draws):
            trace.plot(chain, lw=0.5, alpha=0.7, color=f"C{number % 10}")
            histogram.hist(chain, bins, histtype="step", color=f"C{number % 10}")
        words = f"{short(name[1].replace('_', ' '), 27)}\nR-hat {r_hat[name]:.3f}"
        trace.set_ylabel(words, rotation=0, ha="right", va="center", fontsize=8)
        trace.margins(x=0.01)
        histogram.set_yticks([])
        for axis in (trace, histogram):
            axis.tick_params(labelsize=7)
        if name != chosen[-1]:
            trace.set_xticklabels([])
    grid[-1][0].set_xlabel("draw", fontsize=8)
    grid[-1][1].set_xlabel("value", fontsize=8)
    return figure


def energy_figure(tree: xr.DataTree) -> Figure:
    """ArviZ's energy plot."""
    stats = xr.DataTree.from_dict({"sample_stats": dataset(tree, "sample_stats")[["energy"]]})
    figure = plot_energy(stats, backend="matplotlib").viz["figure"].item()
    plt.close(figure)
    figure.set_size_inches(8, 3)
    figure.axes[0].set_yticks(range(stats["sample_stats"].sizes["chain"]))
    return figure


def predictive_figure(checked: Checked) -> Figure:
    """Four statistics of observed and replicated labels; entries outside their 95 % interval in red."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    for axis, (name, check) in zip(figure.subplots(2, 2).flat, checked.predictive.items(), strict=True):
        title, overall = name.replace("_", " "), check.overall
        if check.table.empty:
            words = "no rows to compare"
            if not np.isnan(overall["observed"]):
                replicated = f"replicated {overall['lower']:.2g} to {overall['upper']:.2g}"
                observed = f"overall observed {overall['observed']:.2g}"
                words = f"too few rows for single entries\n\n{observed}\n{replicated}"
            axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=9, transform=axis.transAxes)
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
            continue
        axis.set_title(f"{title}: p = {check.p_value:.2g} by entry, {overall['p']:.2g} overall", fontsize=9)
        axis.grid(alpha=0.3)
        (_entropy_panel if name == "vote_entropy" else _entries_panel)(axis, check)
    return figure


def pareto_figure(table: pd.DataFrame, good_k: float) -> Figure:
    """Pareto k of leaving out each item, with thresholds; items above the lower are red, the worst named."""
    k = table["pareto_k"].to_numpy()
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis, high = figure.subplots(), k > good_k
    axis.plot(np.flatnonzero(~high), k[~high], ".", color=CALM, ms=4 if len(k) < 1000 else 2)
    axis.plot(np.flatnonzero(high), k[high], "o", color=ALARM, ms=4)
    for level, words in ((good_k, "reliable below"), (_BAD_K, "unusable above")):
        axis.axhline(level, color=INK, lw=0.8, ls="--")
        axis.text(1.005, level, words, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    for place in np.argsort(-k)[: min(5, int(high.sum()))]:
        point = int(place), float(k[place])
        axis.annotate(short(table.index[place]), point, (4, 3), textcoords="offset points", fontsize=7)
    limits = min(k.min(), 0) - 0.1, max(k.max(), _BAD_K) + 0.15
    axis.set(xlabel="item, in the order of the table", ylabel="Pareto k", ylim=limits)
    axis.grid(alpha=0.3)
    return figure


def _entropy_panel(axis: Axes, check: PredictiveCheck) -> None:
    table, centre = check.table, np.array([interval.mid for interval in check.table.index])
    width = 0.9 * (centre[1] - centre[0])
    axis.bar(centre, table["observed"], width, color="0.8", label="observed")
    # Drawn separately, because the mean of a rare bin may lie outside its central interval
    axis.vlines(centre, table["lower"], table["upper"], color=CALM, lw=1)
    axis.plot(centre, table["mean"], "o", ms=3, color=CALM, label="replicated, 95 %")
    axis.set(xlabel="entropy of an item's labels (nats)", ylabel="share of items")
    axis.legend(frameon=False, fontsize=8)


def _entries_panel(axis: Axes, check: PredictiveCheck) -> None:
    table = check.table
    outside = (table["observed"] < table["lower"] - TIE) | (table["observed"] > table["upper"] + TIE)
    for part, colour in ((table[~outside], CALM), (table[outside], ALARM)):
        if len(table) <= _WITH_INTERVALS:
            axis.vlines(part["observed"], part["lower"], part["upper"], color=colour, lw=0.8, alpha=0.5)
        size = 5 if len(table) <= _WITH_INTERVALS or colour == ALARM else 2
        axis.plot(part["observed"], part["mean"], ".", ms=size, color=colour)
    observed = table["observed"].to_numpy()
    lowest, highest = float(observed.min()), float(observed.max())
    margin = 0.05 * (highest - lowest) + 0.01
    limits = [lowest - margin, highest + margin]
    axis.plot(limits, limits, color=INK, lw=0.8)
    words = f"{outside.sum():,} of {len(table):,} outside their interval"
    axis.set_xlabel(f"observed ({words})", fontsize=9)
    axis.set_ylabel("replicated", fontsize=9)


def _entries(group: xr.Dataset, name: str) -> dict[tuple[str, str], Float[np.ndarray, "c s"]]:
    """Draws of each element of sites with at most one axis, by their names in the table of convergence."""
    entries = {}
    for site, values in group.data_vars.items():
        values = values.transpose("chain", "draw", ...)
        for place in np.ndindex(values.shape[2:]):
            ids = [values[dim].to_numpy()[at] for dim, at in zip(values.dims[2:], place, strict=True)]
            entry = f"{site}[{', '.join(map(str, ids))}]" if ids else str(site)
            entries[name, entry] = values.to_numpy()[(..., *place)]
    return entries

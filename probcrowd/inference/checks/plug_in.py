"""EM against MCMC: where the mode sits in the posterior, and how much surer label probabilities are at one point than averaged over all.

position   (mode - posterior mean) / posterior standard deviation, and the share of draws below the mode, of each parameter
overconfidence   mean over items of max_k p(truth = k | labels, mode), minus the same of the averaged probabilities
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import entr

from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.intervals import CENTRAL
from probcrowd.metrics.scores import predicted, scores


@dataclass(frozen=True)
class PlugIn:
    """parameters: one row per site, mean and extremes of the mode's position. items: label probabilities by both ways, per item."""

    findings: list[Finding]
    parameters: pd.DataFrame
    items: pd.DataFrame


def compare_with_mode(tree: xr.DataTree) -> PlugIn:
    """The posterior's mode, where EM ends, against the posterior."""
    posterior, mode = dataset(tree, "posterior"), dataset(tree, "plug_in")
    rows = {}
    for site in posterior.data_vars:
        draws, at = posterior[site], mode[site]
        spread = draws.std(("chain", "draw"))
        position = np.asarray((at - draws.mean(("chain", "draw"))) / spread).ravel()
        below = np.asarray((draws < at).mean(("chain", "draw"))).ravel()
        kept = np.asarray(spread).ravel() > 1e-12
        if kept.any():
            rows[site] = {
                "mean_absolute_position": np.abs(position[kept]).mean(),
                "outermost_position": np.abs(position[kept]).max(),
                "outside_central_95": ((below[kept] < CENTRAL[0]) | (below[kept] > CENTRAL[1])).mean(),
            }
    averaged, plugged = array(tree, "responsibilities", "mean"), array(tree, "plug_in", "responsibility")
    unknown = array(tree, "constant_data", "gold") < 0
    items = pd.DataFrame(
        {
            "confidence": averaged.max(1),
            "plug_in_confidence": plugged.max(1),
            "entropy": entr(averaged).sum(1),
            "plug_in_entropy": entr(plugged).sum(1),
            "largest_difference": np.abs(averaged - plugged).max(1),
            "class_differs": predicted(averaged) != predicted(plugged),
        },
        index=pd.Index(array(tree, "constant_data", "item"), name="item"),
    )
    surer = (plugged.max(1) - averaged.max(1))[unknown]
    gap = float(surer.mean()) if len(surer) else 0.0
    total, plugged_total = entr(averaged[unknown]).sum(), entr(plugged[unknown]).sum()
    times = (
        f"{total / plugged_total:.3g} times the entropy"
        if plugged_total > 1e-6 * total
        else "entropy where it has none"
    )
    changed = int((predicted(averaged) != predicted(plugged))[unknown].sum())
    outside = float(np.mean([row["outside_central_95"] for row in rows.values()]))
    meaning = (
        f"Label probabilities at the mode are {'surer' if gap >= 0 else 'less sure'} by {abs(gap):.4f} on average than those averaged over the posterior, "
        f"which have {times}; {changed} of {len(surer)} items change their most probable class."
    )
    found = [
        Finding("plug-in overconfidence", "model", gap, "tells, does not judge", None, meaning),
        Finding(
            "mode outside central 95 %",
            "model",
            outside,
            "tells, does not judge",
            None,
            "Share of parameters whose mode lies in the posterior's tails.",
        ),
    ]
    return PlugIn(found, pd.DataFrame(rows).T, items)


def compare_on_gold(tree: xr.DataTree, gold: np.ndarray) -> pd.DataFrame:
    """Scores of the averaged and of the plug-in label probabilities against gold codes (i), -1 where unknown or used in the fit."""
    ways = {
        "posterior": array(tree, "responsibilities", "mean"),
        "plug-in": array(tree, "plug_in", "responsibility"),
    }
    return pd.DataFrame({name: scores(probabilities, gold) for name, probabilities in ways.items()}).T

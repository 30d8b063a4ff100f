"""EM against MCMC: the position of the mode in the posterior, and the overconfidence of label probabilities
at the mode.

position        (mode - posterior mean) / posterior standard deviation, and the share of draws below it,
                per parameter
overconfidence  mean over items of max_k p(truth = k | labels, mode), minus that of averaged probabilities
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from scipy.special import entr

from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.intervals import CENTRAL
from probcrowd.metrics.scores import predicted, scores

CONSTANT = 1e-12  # standard deviation up to which a parameter counts as fixed


@dataclass(frozen=True)
class PlugIn:
    """parameters: mean and extreme position of the mode per site. items: confidence and entropy of both label
    probabilities per item.
    """

    findings: list[Finding]
    parameters: pd.DataFrame
    items: pd.DataFrame


def compare_with_mode(tree: xr.DataTree) -> PlugIn:
    """Compare the posterior with its mode, where EM ends."""
    posterior, mode = dataset(tree, "posterior"), dataset(tree, "plug_in")
    positions = {site: mode_position(posterior[site], mode[site]) for site in posterior.data_vars}
    rows = {site: position for site, position in positions.items() if position}
    averaged, plug_in = array(tree, "responsibilities", "mean"), array(tree, "plug_in", "responsibility")
    unknown = array(tree, "constant_data", "gold") < 0
    items = pd.DataFrame(
        {
            "confidence": averaged.max(1),
            "plug_in_confidence": plug_in.max(1),
            "entropy": entr(averaged).sum(1),
            "plug_in_entropy": entr(plug_in).sum(1),
            "largest_difference": np.abs(averaged - plug_in).max(1),
            "class_differs": predicted(averaged) != predicted(plug_in),
        },
        index=pd.Index(array(tree, "constant_data", "item"), name="item"),
    )
    gaps = (plug_in.max(1) - averaged.max(1))[unknown]
    gap = float(gaps.mean()) if len(gaps) else 0.0
    total, plug_in_total = entr(averaged[unknown]).sum(), entr(plug_in[unknown]).sum()
    times = (
        f"{total / plug_in_total:.3g} times the entropy"
        if plug_in_total > 1e-6 * total
        else "entropy where the mode has none"
    )
    changed = int((predicted(averaged) != predicted(plug_in))[unknown].sum())
    outside = float(np.mean([row["outside_central_95"] for row in rows.values()]))
    meaning = (
        f"Label probabilities at the mode are {'more' if gap >= 0 else 'less'} confident by {abs(gap):.4f} "
        f"on average than those averaged over the posterior, which have {times}; "
        f"{changed} of {len(gaps)} items change their most probable class."
    )
    tails = "Share of parameters whose mode lies in the posterior's tails."
    findings = [
        Finding("plug-in overconfidence", "model", gap, "no threshold", None, meaning),
        Finding("mode outside central 95 %", "model", outside, "no threshold", None, tails),
    ]
    return PlugIn(findings, pd.DataFrame(rows).T, items)


def mode_position(draws: xr.DataArray, mode: xr.DataArray) -> dict[str, float]:
    """Locate the mode among the draws, in standard deviations and tails; empty if no entry varies."""
    spread = draws.std(("chain", "draw"))
    varies = np.asarray(spread).ravel() > CONSTANT
    if not varies.any():
        return {}
    position = np.asarray((mode - draws.mean(("chain", "draw"))) / spread).ravel()[varies]
    below = np.asarray((draws < mode).mean(("chain", "draw"))).ravel()[varies]
    return {
        "mean_absolute_position": np.abs(position).mean(),
        "outermost_position": np.abs(position).max(),
        "outside_central_95": outside_central_95(below).mean(),
    }


def outside_central_95(below: Float[np.ndarray, " e"]) -> Bool[np.ndarray, " e"]:
    """Whether a share of draws below a value puts the value outside the central 95 % interval."""
    return (below < CENTRAL[0]) | (below > CENTRAL[1])


def compare_on_gold(tree: xr.DataTree, gold: np.ndarray) -> pd.DataFrame:
    """Score the averaged and the plug-in label probabilities against gold codes (i), -1 where unknown or used
    in the fit.
    """
    estimates = {
        "posterior": array(tree, "responsibilities", "mean"),
        "plug-in": array(tree, "plug_in", "responsibility"),
    }
    return pd.DataFrame({name: scores(probabilities, gold) for name, probabilities in estimates.items()}).T

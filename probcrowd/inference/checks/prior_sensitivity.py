"""How much the answer leans on the prior: power scaling (Kallioinen et al. 2024), one component of the prior at a time.

Raising a component's density to a power slightly off 1 and reweighting the draws tells how far functionals move; no new sampling. A flat
component cannot be scaled, so silence about it means nothing: refit under another prior instead.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import psense

from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.posterior.tree import dataset, number_names

THRESHOLD = 0.05


def prior_sensitivity(tree: xr.DataTree) -> tuple[list[Finding], pd.DataFrame]:
    """Findings, and the sensitivity of every functional to each component of the prior and to the likelihood."""
    priors = dataset(tree, "log_prior")
    # Standardised offsets have a prior by construction; what can be chosen is that of their scales
    priors = priors[[name for name in priors.data_vars if not str(name).endswith("_offset")]]
    spread = {name: float(values.std()) for name, values in priors.data_vars.items()}
    flat = [str(name) for name in spread if spread[name] < 1e-9]
    scaled = [str(name) for name in spread if spread[name] >= 1e-9]
    small = xr.DataTree.from_dict(
        {
            "posterior": functionals(tree).sel(draw=priors["draw"]),
            "log_prior": priors,
            "log_likelihood": dataset(tree, "log_likelihood"),
        }
    )
    parts = {}
    for component in scaled:
        sides = {"prior": ("prior", component), "likelihood": ("likelihood", "label")}
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # few tail draws: the weights are nearly equal, as they should be
            moved = {
                side: psense(small, group=group, group_var_names=[name])
                for side, (group, name) in sides.items()
            }
        columns = {
            side: np.concatenate([np.ravel(found[name]) for name in found.data_vars])
            for side, found in moved.items()
        }
        names = [label for name in moved["prior"].data_vars for label in number_names(moved["prior"][name])]
        parts[component] = pd.DataFrame(columns, index=names)
    table = (
        pd.concat(parts, names=["component", "functional"])
        if parts
        else pd.DataFrame(columns=["prior", "likelihood"])
    )
    findings = []
    for component in scaled:
        found = table.loc[component]
        worst = found["prior"].to_numpy().max()
        steady = bool(worst < THRESHOLD)
        most = found["prior"].idxmax()
        meaning = (
            f"The prior of {component} hardly moves the answer."
            if steady
            else f"The prior of {component} moves {most}: report it, and try another."
        )
        findings.append(
            Finding(
                f"sensitivity to the prior of {component}",
                "model",
                worst,
                f"below {THRESHOLD}",
                steady,
                meaning,
            )
        )
    findings += [
        Finding(
            f"sensitivity to the prior of {component}",
            "model",
            np.nan,
            f"below {THRESHOLD}",
            None,
            "A flat prior cannot be scaled: refit under another one.",
        )
        for component in flat
    ]
    return findings, table


def functionals(tree: xr.DataTree) -> xr.Dataset:
    """What users read off: the class prior, and how often each annotator is right (all of them, where they share a matrix)."""
    posterior = dataset(tree, "posterior")
    found = {}
    if "class_prior" in posterior:
        found["class_prior"] = posterior["class_prior"]
    if "confusion" in posterior:
        found["accuracy"] = accuracy(posterior)
    elif "mean" in posterior:
        found["mean"] = posterior["mean"]
    return xr.Dataset(found)


def accuracy(posterior: xr.Dataset) -> xr.DataArray:
    """P(label = truth) of each annotator: its confusion matrix's diagonal, weighted by the class prior (uniform, if the model has none)."""
    confusion = posterior["confusion"]
    same = xr.DataArray(np.eye(confusion.sizes["true_class"]), dims=("true_class", "label"))
    right = (confusion * same).sum("label")
    return (
        (right * posterior["class_prior"]).sum("true_class")
        if "class_prior" in posterior
        else right.mean("true_class")
    )

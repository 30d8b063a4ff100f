"""Sensitivity to the prior by power scaling (Kallioinen et al. 2024), one component of the prior at a time.

A component's density is raised to a power slightly off 1 and draws are reweighted, which shows how far
functionals move without new sampling. A flat component cannot be scaled, so nothing is known about it: refit
under another prior instead.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import psense

from probcrowd.inference.checks.findings import Area, Finding
from probcrowd.inference.posterior.tables import accuracy
from probcrowd.inference.posterior.tree import dataset, number_names

THRESHOLD = 0.05  # of the sensitivity, as its authors suggest
FLAT = 1e-9  # standard deviation of a log density below which a component is constant


def prior_sensitivity(tree: xr.DataTree) -> tuple[list[Finding], pd.DataFrame]:
    """Return findings, and the sensitivity of every functional to each component of the prior and to the
    likelihood.
    """
    priors = dataset(tree, "log_prior")
    # The prior of standardised effects is fixed; that of their scales is a choice
    standardised = json.loads(tree.attrs.get("standardised", "[]"))
    priors = priors[[name for name in priors.data_vars if name not in standardised]]
    flat = [str(name) for name, values in priors.data_vars.items() if is_flat(values)]
    scaled = [str(name) for name in priors.data_vars if name not in flat]
    small = xr.DataTree.from_dict(
        {
            "posterior": functionals(tree).sel(draw=priors["draw"]),
            "log_prior": priors,
            "log_likelihood": dataset(tree, "log_likelihood"),
        }
    )
    parts = {}
    for component in scaled:
        sides = {"prior": ("prior", component), "likelihood": ("likelihood", "votes")}
        with warnings.catch_warnings():
            # Weights are nearly equal by design, which leaves few tail draws
            warnings.simplefilter("ignore", UserWarning)
            sensitivity = {
                side: psense(small, group=group, group_var_names=[name])
                for side, (group, name) in sides.items()
            }
        columns = {
            side: np.concatenate([np.ravel(values[name]) for name in values.data_vars])
            for side, values in sensitivity.items()
        }
        numbers = sensitivity["prior"]
        names = [label for name in numbers.data_vars for label in number_names(numbers[name])]
        parts[component] = pd.DataFrame(columns, index=names)
    table = (
        pd.concat(parts, names=["component", "functional"])
        if parts
        else pd.DataFrame(columns=["prior", "likelihood"])
    )
    findings = [_finding(component, table.loc[component, "prior"]) for component in scaled]
    for component in flat:
        meaning = "A flat prior cannot be scaled: refit under another one."
        findings.append(Finding(*_title(component), np.nan, f"below {THRESHOLD}", None, meaning))
    return findings, table


def _finding(component: str, sensitivity: pd.Series) -> Finding:
    worst = float(sensitivity.to_numpy().max())
    passed = bool(worst < THRESHOLD)
    meaning = (
        f"The prior of {component} hardly moves the results."
        if passed
        else f"The prior of {component} moves {sensitivity.idxmax()}: report it, and try another."
    )
    return Finding(*_title(component), worst, f"below {THRESHOLD}", passed, meaning)


def _title(component: str) -> tuple[str, Area]:
    return f"sensitivity to the prior of {component}", "model"


def is_flat(log_prior: xr.DataArray) -> bool:
    """Return whether the log density of a component is constant over the draws."""
    return float(log_prior.std()) < FLAT


def functionals(tree: xr.DataTree) -> xr.Dataset:
    """Return the quantities that users report: the class prior, and the accuracy of each annotator (of all,
    where they share a matrix); all sites of a model that has neither.
    """
    posterior = dataset(tree, "posterior")
    values = {}
    if "class_prior" in posterior:
        values["class_prior"] = posterior["class_prior"]
    if "confusion" in posterior:
        values["accuracy"] = accuracy(posterior)
    elif "mean" in posterior:
        values["mean"] = posterior["mean"]
    return xr.Dataset(values) if values else posterior

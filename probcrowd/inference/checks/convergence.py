"""Convergence: R-hat, effective sample sizes, divergences, energy, and the order of the classes.

R-hat and effective sizes are computed twice: of functionals that no permutation of the classes changes, and
of the parameters after permutation. A large gap between the two is label switching. Chains with a common
start cannot reveal other modes; overdispersed ones can.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import bfmi, ess, rhat

from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.posterior.label_switching import Switching, switching
from probcrowd.inference.posterior.tree import dataset, number_names

MIN_CHAINS = 4
MAX_RHAT = 1.01
ESS_PER_CHAIN = 100
MIN_BFMI = 0.3
NEGLIGIBLE_LEAD = -5.0  # log density of another mode against that of the votes
EQUAL_MODES = 1e-3  # log densities this close are permutations of one mode
MAX_NUMBERS = 2000  # per site
INVARIANTS = "functionals that permuting classes cannot change"
_CONSTANT = 1e-12  # range of draws of a number that does not vary


def summarise(group: xr.Dataset) -> pd.DataFrame:
    """Return R-hat, bulk and tail effective sample size of the numbers that vary, by site and ids, worst
    R-hat first.

    Sites with more than 2,000 such numbers are reduced to the 2,000 with the largest ratio of between-chain
    to within-chain variance.
    """
    parts = []
    for site in group.data_vars:
        if not {"chain", "draw"} <= set(group[site].dims):
            continue
        values = group[site].transpose("chain", "draw", ...)
        names = np.array(number_names(values))
        numbers = values.to_numpy().reshape(*values.shape[:2], -1)  # (c, s, e)
        chosen = np.flatnonzero(np.ptp(numbers, axis=(0, 1)) > _CONSTANT)
        if len(chosen) > MAX_NUMBERS:
            apart = numbers.mean(1).var(0)[chosen] / np.maximum(numbers.var(1).mean(0)[chosen], 1e-300)
            chosen = np.sort(chosen[np.argsort(-apart, kind="stable")[:MAX_NUMBERS]])
        if len(chosen):
            one = xr.Dataset({"x": (("chain", "draw", "number"), numbers[..., chosen])})
            columns = {"r_hat": rhat(one), "ess_bulk": ess(one), "ess_tail": ess(one, method="tail")}
            parts.append(
                pd.DataFrame(
                    {name: values["x"].to_numpy() for name, values in columns.items()}, index=names[chosen]
                )
            )
    table = (
        pd.concat(parts) if parts else pd.DataFrame(columns=["r_hat", "ess_bulk", "ess_tail"], dtype=float)
    )
    return table.sort_values("r_hat", ascending=False)


def convergence(tree: xr.DataTree) -> tuple[list[Finding], pd.DataFrame]:
    """Return findings about the draws, and the numbers behind them, one row per parameter or functional."""
    stats = dataset(tree, "sample_stats")
    chains, permuted = stats.sizes["chain"], bool(stats.attrs["renamed"])
    tables = {name: summarise(dataset(tree, name)) for name in ("invariants", "posterior")}
    invariants = _table_findings(tables["invariants"], INVARIANTS, chains)
    parameters = _table_findings(tables["posterior"], "parameters", chains)
    findings = [*_chains_findings(chains), *invariants, *parameters]
    usable = all(finding.passed for finding in invariants)
    findings.append(_order_finding(switching(stats["permutation"].to_numpy()), permuted, usable))
    if "modes" in tree:
        findings.append(_modes_finding(dataset(tree, "modes").to_dataframe(), permuted))
    if "diverging" in stats:
        findings += _nuts_findings(stats)
    return findings, pd.concat(tables, names=["group"])


def _chains_findings(chains: int) -> list[Finding]:
    if chains >= MIN_CHAINS:
        return []
    meaning = "Fewer chains cannot show that they agree."
    return [_finding("chains", float(chains), f"at least {MIN_CHAINS}", False, meaning)]


def _table_findings(table: pd.DataFrame, title: str, chains: int) -> list[Finding]:
    worst, required = float(table["r_hat"].to_numpy().max(initial=1.0)), ESS_PER_CHAIN * chains
    agree = worst <= MAX_RHAT
    meaning = (
        "The chains agree."
        if agree
        else f"The chains disagree, most about {table['r_hat'].idxmax()}: run longer, or seek other modes."
    )
    findings = [_finding(f"R-hat, {title}", worst, f"at most {MAX_RHAT}", agree, meaning)]
    for kind, use in (("bulk", "means"), ("tail", "intervals")):
        sizes = table[f"ess_{kind}"]
        smallest = float(sizes.to_numpy().min(initial=np.inf))
        enough = smallest >= required
        quality = "precise enough" if enough else f"too noisy for {sizes.idxmin()}: draw more"
        meaning = f"Estimates of {use} are {quality}."
        findings.append(_finding(f"{kind} ESS, {title}", smallest, f"at least {required}", enough, meaning))
    return findings


def _order_finding(order: Switching, permuted: bool, usable: bool) -> Finding:
    meaning = str(order)
    if order.share and permuted:
        functionals = (
            "Functionals that no permutation changes are usable."
            if usable
            else "Not even functionals that no permutation changes agree."
        )
        meaning += (
            " The prior treats all classes alike, so the posterior contains every permutation; draws were "
            "permuted to match the votes. "
            f"{functionals} A prior that favours the diagonal would identify the classes."
        )
    elif order.share:
        meaning += (
            " The prior identifies the classes, so these draws were left unchanged; some classes are hard to "
            "distinguish."
        )
    # Under a prior that identifies the classes, a permutation that all chains visit alike is uncertainty, not
    # failure
    failed = order.between_chains or (permuted and order.share > 0)
    threshold = "draws with permuted classes; alike in all chains"
    return _finding("order of the classes", order.share, threshold, not failed, meaning)


def _modes_finding(modes: pd.DataFrame, permuted: bool) -> Finding:
    others = modes.iloc[1:]
    if permuted:  # equally high modes are permutations, which all belong to the posterior
        others = others[others["lead"].abs() > EQUAL_MODES]
    name, threshold = "other modes, log density", f"below {NEGLIGIBLE_LEAD} relative to the votes' mode"
    starts = f"{modes['starts'].to_numpy().sum() - 1} overdispersed starts"
    if not len(others):
        meaning = f"{starts} led to the mode of the votes{' or its permutations' if permuted else ''}."
        return _finding(name, -np.inf, threshold, True, meaning)
    highest = others.iloc[int(others["lead"].to_numpy().argmax())]
    negligible = bool(highest["lead"] < NEGLIGIBLE_LEAD)
    advice = (
        "chains need not visit it"
        if negligible
        else "chains started at the votes may miss much of the posterior: compare start='dispersed'"
    )
    agreement = f"in the highest, classes agree with {highest['agreement']:.2f} of the votes"
    meaning = f"{starts} led to {len(others)} other modes; {agreement}; {advice}."
    return _finding(name, float(highest["lead"]), threshold, negligible, meaning)


def _nuts_findings(stats: xr.Dataset) -> list[Finding]:
    divergent = int(stats["diverging"].sum())
    energies = np.atleast_1d(np.asarray(bfmi(xr.DataTree.from_dict({"sample_stats": stats}))["energy"]))
    deepest = float((stats["tree_depth"] >= stats.attrs.get("max_depth", 10)).mean())
    trajectories = "Some regions were not explored: raise target_accept." if divergent else "None diverged."
    depth = (
        "Trajectories are cut off: raise max_depth, or expect slow mixing."
        if deepest
        else "Trajectories end by themselves."
    )
    return [
        _finding("divergences", float(divergent), "none", divergent == 0, trajectories),
        _energy_finding(float(energies.min())),
        _finding("share of deepest trees", deepest, "none", None if deepest else True, depth),
    ]


def _energy_finding(lowest: float) -> Finding:
    explored = lowest >= MIN_BFMI
    meaning = (
        "Momentum explores the energies well."
        if explored
        else "Energies are explored slowly (heavy tails, a funnel): run longer, or change their prior."
    )
    return _finding("E-BFMI", lowest, f"at least {MIN_BFMI}", explored, meaning)


def _finding(name: str, value: float, threshold: str, passed: bool | None, meaning: str) -> Finding:
    return Finding(name, "sampling", value, threshold, passed, meaning)

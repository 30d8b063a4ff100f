"""Can the draws be trusted? R-hat, effective sample sizes, divergences, energy, and the names of the classes.

Every number is taken twice: of functionals that no renaming of the classes changes, and of the parameters after renaming. A large gap
between the two is label switching. Chains with a common start say nothing about other modes; scattered ones do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats import bfmi, ess, rhat

from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.posterior.label_switching import switching
from probcrowd.inference.posterior.tree import dataset, number_names

MAX_RHAT, ESS_PER_CHAIN, MIN_BFMI, NEGLIGIBLE, MOST_NUMBERS = 1.01, 100, 0.3, 5.0, 2000


def summarise(group: xr.Dataset) -> pd.DataFrame:
    """R-hat, bulk and tail effective sample size of the numbers that vary, under their site and ids; the worst R-hat first.

    Of a site with more than 2,000 such numbers, those 2,000 whose chains lie furthest apart by the plain R-hat, which is quick.
    """
    parts = []
    for site in group.data_vars:
        if not {"chain", "draw"} <= set(group[site].dims):
            continue
        values = group[site].transpose("chain", "draw", ...)
        names = np.array(number_names(values))
        numbers = values.to_numpy().reshape(*values.shape[:2], -1)  # (c, s, e)
        chosen = np.flatnonzero(np.ptp(numbers, axis=(0, 1)) > 1e-12)
        if len(chosen) > MOST_NUMBERS:
            apart = numbers.mean(1).var(0)[chosen] / np.maximum(numbers.var(1).mean(0)[chosen], 1e-300)
            chosen = np.sort(chosen[np.argsort(-apart, kind="stable")[:MOST_NUMBERS]])
        if len(chosen):
            one = xr.Dataset({"x": (("chain", "draw", "number"), numbers[..., chosen])})
            columns = {"r_hat": rhat(one), "ess_bulk": ess(one), "ess_tail": ess(one, method="tail")}
            parts.append(
                pd.DataFrame(
                    {name: found["x"].to_numpy() for name, found in columns.items()}, index=names[chosen]
                )
            )
    table = (
        pd.concat(parts) if parts else pd.DataFrame(columns=["r_hat", "ess_bulk", "ess_tail"], dtype=float)
    )
    return table.sort_values("r_hat", ascending=False)


def convergence(tree: xr.DataTree) -> tuple[list[Finding], pd.DataFrame]:
    """Findings about the draws, and the numbers behind them, one row per parameter or functional."""
    stats = dataset(tree, "sample_stats")
    chains = stats.sizes["chain"]
    tables = {name: summarise(dataset(tree, name)) for name in ("invariants", "posterior")}
    findings = []
    if chains < 4:
        findings.append(
            Finding(
                "chains",
                "sampling",
                float(chains),
                "at least 4",
                False,
                "Fewer chains cannot show that they agree.",
            )
        )
    for name, words in (
        ("invariants", "functionals that renaming classes cannot change"),
        ("posterior", "parameters"),
    ):
        findings += _of_table(tables[name], words, chains)
    findings.append(_naming(stats, findings))
    if "modes" in tree:
        findings.append(_of_modes(dataset(tree, "modes").to_dataframe(), bool(stats.attrs["renamed"])))
    if "diverging" in stats:
        findings += _of_nuts(stats)
    return findings, pd.concat(tables, names=["group"])


def _of_table(table: pd.DataFrame, words: str, chains: int) -> list[Finding]:
    worst, least = float(table["r_hat"].to_numpy().max(initial=1.0)), ESS_PER_CHAIN * chains
    where = table["r_hat"].idxmax() if len(table) else "none"
    agree = (
        "the chains agree"
        if worst <= MAX_RHAT
        else f"the chains disagree, most about {where}: run longer, or look for several modes"
    )
    findings = [
        Finding(
            f"R-hat, {words}",
            "sampling",
            worst,
            f"at most {MAX_RHAT}",
            worst <= MAX_RHAT,
            agree[0].upper() + agree[1:] + ".",
        )
    ]
    for column, kind, use in (("ess_bulk", "bulk", "means"), ("ess_tail", "tail", "intervals")):
        smallest = float(table[column].to_numpy().min(initial=np.inf))
        enough = smallest >= least
        rest = "precise enough" if enough else f"too noisy for {table[column].idxmin()}: draw more"
        name = f"{kind} ESS, {words}"
        findings.append(
            Finding(
                name, "sampling", smallest, f"at least {least}", enough, f"Estimates of {use} are {rest}."
            )
        )
    return findings


def _naming(stats: xr.Dataset, findings: list[Finding]) -> Finding:
    found = switching(stats["permutation"].to_numpy())
    renamed = bool(stats.attrs["renamed"])
    meaning = str(found)
    if found.share and renamed:
        usable = all(finding.passed for finding in findings if "functionals" in finding.name)
        meaning += " The prior treats all classes alike, so the posterior has every naming; draws were renamed towards the votes. "
        meaning += (
            "Functionals without names are usable." if usable else "Not even functionals without names agree."
        )
        meaning += " A prior that favours the diagonal would name the classes."
    elif found.share:
        meaning += " The prior names the classes, so these draws were left as they are; they tell that some classes are hard to tell apart."
    # Under a prior that names the classes, a naming that all chains visit alike is uncertainty, not failure
    failed = found.between_chains or (renamed and found.share > 0)
    return Finding(
        "names of the classes",
        "sampling",
        found.share,
        "draws named otherwise than the votes, alike in all chains",
        not failed,
        meaning,
    )


def _of_modes(modes: pd.DataFrame, renamed: bool) -> Finding:
    others = modes.iloc[1:]
    if renamed:  # equally high ones are renamings, which all have their share of the posterior
        others = others[others["lead"].abs() > 1e-3]
    name, threshold = "other modes, log density", f"below {-NEGLIGIBLE} of the votes' mode"
    tried = f"{modes['found'].to_numpy().sum() - 1} scattered starts"
    if not len(others):
        return Finding(
            name,
            "sampling",
            -np.inf,
            threshold,
            True,
            f"{tried} led to the mode of the votes{' or its renamings' if renamed else ''}.",
        )
    lead, agreement = (
        float(others["lead"].max()),
        float(others["agreement"].to_numpy()[others["lead"].argmax()]),
    )
    small = lead < -NEGLIGIBLE
    rest = (
        "chains need not visit it"
        if small
        else "chains started at the votes may miss a good part of the posterior: compare start='dispersed'"
    )
    meaning = f"{tried} led to {len(others)} other modes; in the highest, classes agree with {agreement:.2f} of the votes; {rest}."
    return Finding(name, "sampling", lead, threshold, small, meaning)


def _of_nuts(stats: xr.Dataset) -> list[Finding]:
    divergent = int(stats["diverging"].sum())
    parts = np.atleast_1d(np.asarray(bfmi(xr.DataTree.from_dict({"sample_stats": stats}))["energy"]))
    lowest = float(parts.min())
    deepest = float((stats["tree_depth"] >= stats.attrs.get("max_depth", 10)).mean())
    straight = (
        "No trajectory broke down"
        if divergent == 0
        else "Some regions were not explored: raise target_accept"
    )
    energy = (
        "Momentum explores the energies well"
        if lowest >= MIN_BFMI
        else "Energies are explored slowly: heavy tails or a funnel; run longer or change the prior of the scales"
    )
    deep = (
        "Trajectories end by themselves"
        if deepest == 0
        else "Trajectories are cut off: raise max_depth, or expect slow mixing"
    )
    return [
        Finding("divergences", "sampling", float(divergent), "none", divergent == 0, straight + "."),
        Finding("E-BFMI", "sampling", lowest, f"at least {MIN_BFMI}", lowest >= MIN_BFMI, energy + "."),
        Finding("share of deepest trees", "sampling", deepest, "none", None if deepest else True, deep + "."),
    ]

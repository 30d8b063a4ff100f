"""Tables of the SimLabel experiment: settings chosen by held-out labels, means over seeds, gains paired by seed, and texts of all of them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.metrics.intervals import interval

SKIP, OURS, RIVAL = "skip", "SimLabel", "pooled"  # two methods, and the architecture of the rivals
ALIKE, DECAY = (
    "skip, same weight decay",
    "weight_decay=0.0001",
)  # skipping with the weight decay of those who choose another weight
MEASURES = (
    "mean_accuracy",
    "accuracy",
    "log_loss",
    "calibration_error",
    "soft_cross_entropy",
    "dic",
    "dic_relative",
    "dic_pairs",
    "bae",
    "consensus_accuracy",
    "imputed",
    "imputed_right",
    "similarity_error",
    "similarity_drift",
    "seconds",
)
_KEYS = ["panel", "removal", "rate", "architecture", "method"]


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's setting: the one with the best mean held-out score over seeds; and those of skipping at the weight decay of the others."""
    groups: Any = rows.groupby([*_KEYS, "setting"], sort=False)
    mean = groups["held_out_score"].mean().reset_index()
    best = mean.loc[mean.groupby(_KEYS, sort=False)["held_out_score"].idxmax(), [*_KEYS, "setting"]]
    alike = rows.loc[(rows["method"] == SKIP) & (rows["setting"] == DECAY)].assign(method=ALIKE)
    return pd.concat([rows.merge(best, on=[*_KEYS, "setting"]), alike], ignore_index=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and the standard error of the mean accuracy, which is in per cent as all accuracies are."""
    rows = rows.assign(
        **{
            name: 100 * rows[name]
            for name in ("mean_accuracy", "accuracy", "consensus_accuracy", "imputed_right")
        }
    )
    groups: Any = rows.groupby([*_KEYS, "setting"], sort=False)
    found = groups[list(MEASURES)].mean()
    found.insert(1, "standard_error", groups["mean_accuracy"].std(ddof=1) / np.sqrt(groups.size()))
    found.insert(0, "seeds", groups.size())
    return found.reset_index()


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences of the mean accuracy in per cent and of the log loss in nats, paired by seed, with 95 % t intervals over seeds."""
    made = []
    groups: Any = rows.groupby(["panel", "removal", "rate"], sort=False)
    for (panel, removal, rate), part in groups:
        wide = {
            name: part.pivot_table(index="seed", columns=["architecture", "method"], values=name)
            for name in ("mean_accuracy", "log_loss")
        }
        for architecture, method, other in _compared(wide["mean_accuracy"].columns):
            row = {
                "panel": panel,
                "removal": removal,
                "rate": rate,
                "architecture": architecture[0],
                "method": method,
                "less": other,
            }
            for name, scale in (("mean_accuracy", 100), ("log_loss", 1)):
                difference = (
                    scale
                    * (wide[name][(architecture[0], method)] - wide[name][(architecture[1], other)]).dropna()
                )
                found = interval(difference.to_numpy(), t=True)
                row |= {name: found.mean, f"{name}_half_width": found.half_width, "seeds": found.count}
            made.append(row)
    columns = ["panel", "removal", "rate", "architecture", "method", "less", "seeds"]
    columns += ["mean_accuracy", "mean_accuracy_half_width", "log_loss", "log_loss_half_width"]
    return pd.DataFrame(made, columns=columns)


def published() -> pd.DataFrame:
    """What the paper reports, accuracy in per cent, mean over annotators."""
    with (files("probcrowd.experiments.simlabel") / "published.csv").open() as file:
        return pd.read_csv(file)


def results_text(results: pd.DataFrame) -> str:
    """Mean accuracy and standard error in per cent for readers: a table per panel and removal, methods by rate."""
    cell = [
        f"{mean:.1f}±{error:.1f}"
        for mean, error in zip(results["mean_accuracy"], results["standard_error"].fillna(0.0), strict=True)
    ]
    return _by_rate(results.assign(cell=cell, name=results["architecture"] + " " + results["method"]))


def gains_text(found: pd.DataFrame) -> str:
    """Gains for readers, in per cent with half widths of 95 % intervals, starred where the interval leaves 0 out."""
    cell = [
        f"{mean:+.1f}±{width:.1f}{'*' if abs(mean) > width else ' '}"
        for mean, width in zip(found["mean_accuracy"], found["mean_accuracy_half_width"], strict=True)
    ]
    return _by_rate(
        found.assign(cell=cell, name=found["architecture"] + " " + found["method"] + " - " + found["less"])
    )


def published_text() -> str:
    """What the paper reports, for readers."""
    wide = published().pivot_table(
        index=["architecture", "method"], columns=["rate", "set"], values="accuracy", sort=False
    )
    return wide.to_string(na_rep="")


def _by_rate(table: pd.DataFrame) -> str:
    """A table of cells by name and rate per panel and removal; where nothing more is removed, both ways of removal have the same rows."""
    parts = []
    groups: Any = table.loc[table["removal"] != "none"].groupby(["panel", "removal"], sort=False)
    for (panel, removal), part in groups:
        both = pd.concat([table.loc[(table["removal"] == "none") & (table["panel"] == panel)], part])
        wide = (
            both.pivot_table(index="name", columns="rate", values="cell", aggfunc="first", sort=False)
            .sort_index(axis=1)
            .fillna("")
        )
        parts.append(
            f"{panel}, removed by {removal}\n{wide.rename_axis(None).rename_axis(None, axis=1).to_string()}"
        )
    return "\n\n".join(parts)


def _compared(columns: pd.MultiIndex) -> list[tuple[tuple[str, str], str, str]]:
    """(architectures of both), method, what is taken from it."""
    here, found = set(columns), []
    for architecture, method in columns:
        if architecture == RIVAL:
            continue
        found += [
            ((architecture, architecture), method, skip)
            for skip in (SKIP, ALIKE)
            if method not in (SKIP, ALIKE) and (architecture, skip) in here
        ]
        if method == OURS:
            controls = [
                ((architecture, architecture), method, other) for other in ("uniform weights", "consensus")
            ]
            controls += [((architecture, RIVAL), method, other) for rival, other in columns if rival == RIVAL]
            found += [pair for pair in controls if (pair[0][1], pair[2]) in here]
    return found

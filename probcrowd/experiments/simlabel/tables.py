"""Tables of the SimLabel experiment: selected settings, means over seeds, gains paired by seed, and texts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from probcrowd.experiments.tables import (
    average_over_seeds,
    format_errors,
    format_results,
    select_settings,
)
from probcrowd.metrics.intervals import interval

SKIP, OURS, RIVAL = "skip", "SimLabel", "pooled"  # two methods, and the architecture of the rivals
CONTROLS = ("uniform weights", "consensus")
# Skipping with the weight decay of the methods that select another weight
SAME_DECAY, DECAY = "skip, same weight decay", "weight_decay=0.0001"
MEASURES = (
    *("mean_accuracy", "accuracy", "log_loss", "calibration_error", "soft_cross_entropy"),
    *("dic", "dic_relative", "dic_pairs", "bae", "consensus_accuracy"),
    *("imputed", "imputed_right", "similarity_error", "similarity_drift", "seconds"),
)
_PERCENT = ("mean_accuracy", "accuracy", "consensus_accuracy", "imputed_right")
_CONDITION = ["panel", "removal", "rate"]
_KEYS = [*_CONDITION, "architecture", "method"]


def select(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of each method's selected setting, and add skipping at the weight decay of the others."""
    same = rows.loc[(rows["method"] == SKIP) & (rows["setting"] == DECAY)].assign(method=SAME_DECAY)
    return pd.concat([select_settings(rows, _KEYS, "setting"), same], ignore_index=True)


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with the standard error of the mean accuracy; accuracies in per cent."""
    columns = ["seeds", MEASURES[0], "standard_error", *MEASURES[1:]]
    return average_over_seeds(rows, [*_KEYS, "setting"], columns, measure="mean_accuracy", percent=_PERCENT)


def gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences of mean accuracy (per cent) and log loss (nats), paired by seed, with 95 % t intervals."""
    table = []
    groups: Any = rows.groupby(_CONDITION, sort=False)
    for condition, part in groups:
        accuracy, loss = (
            part.pivot_table(index="seed", columns=["architecture", "method"], values=measure)
            for measure in ("mean_accuracy", "log_loss")
        )
        for ours in accuracy.columns:
            for other in _compared_with(ours, list(accuracy.columns)):
                more = interval((100 * (accuracy[ours] - accuracy[other])).dropna().to_numpy(), t=True)
                worse = interval((loss[ours] - loss[other]).dropna().to_numpy(), t=True)
                values = [more.mean, more.half_width, worse.mean, worse.half_width]
                table.append([*condition, *ours, other[1], worse.count, *values])
    columns = [*_KEYS, "less", "seeds", "mean_accuracy", "mean_accuracy_half_width"]
    columns += ["log_loss", "log_loss_half_width"]
    return pd.DataFrame(table, columns=pd.Index(columns))


def _compared_with(ours: tuple[str, str], known: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a method is compared with: skipping and, for SimLabel, its controls and rivals."""
    architecture, method = ours
    if architecture == RIVAL or method in (SKIP, SAME_DECAY):
        return []
    others = [(architecture, SKIP), (architecture, SAME_DECAY)]
    if method == OURS:
        others += [(architecture, control) for control in CONTROLS]
        others += [each for each in known if each[0] == RIVAL]
    return [each for each in others if each in known]


def format_means(results: pd.DataFrame) -> str:
    """Format mean accuracy and standard error in per cent: a table per panel and removal, methods by rate."""
    cell = format_errors(results, "mean_accuracy")
    return _by_rate(results.assign(cell=cell, name=results["architecture"] + " " + results["method"]))


def format_gains(table: pd.DataFrame) -> str:
    """Format gains in per cent with half widths of 95 % intervals, starred where the interval excludes 0."""
    cell = [
        f"{mean:+.1f}±{width:.1f}{'*' if abs(mean) > width else ' '}"
        for mean, width in zip(table["mean_accuracy"], table["mean_accuracy_half_width"], strict=True)
    ]
    name = table["architecture"] + " " + table["method"] + " - " + table["less"]
    return _by_rate(table.assign(cell=cell, name=name))


def format_published(published: pd.DataFrame) -> str:
    """Format the numbers of the paper: methods by removed share and data set."""
    wide = published.pivot_table(
        index=["architecture", "method"], columns=["rate", "set"], values="accuracy", sort=False
    )
    return wide.to_string(na_rep="")


def _by_rate(table: pd.DataFrame) -> str:
    """Both kinds of removal start from the same rows, those of which nothing more is removed."""
    complete, removed = (table.loc[(table["removal"] == "none") == same] for same in (True, False))
    kinds = removed[["panel", "removal"]].drop_duplicates()
    repeated = complete.drop(columns="removal").merge(kinds, on="panel")
    return format_results(pd.concat([repeated, removed]), ["panel", "removal"], "{}, removed by {}", "rate")

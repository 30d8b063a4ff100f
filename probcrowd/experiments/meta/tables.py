"""Tables and figures of the meta-learning experiment.

table.csv      by method, kind of target task, shots and annotators: accuracy with 95 % intervals over tasks,
               log loss, calibration error, seconds
tests.csv      paired t-tests of the paper's method and of the best variant against every other method, by
               size and over all sizes
networks.csv   by network: seconds of training, steps, validation accuracy
published.csv  what is reported of the paper, with its source
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp

from probcrowd.experiments.meta.methods import METHODS, OURS
from probcrowd.figures.base import accuracy_figure, share_figure
from probcrowd.metrics.intervals import interval
from probcrowd.metrics.scores import TIE
from probcrowd.runs.meta.evaluate import summary

BEST = "best"
SHOWN = ("w/o PA", "PrMV", "PrDS", "MaMV", "MCL", "PrDS + PA", "EM, J = 1", OURS, BEST)  # in figures
_SIZE = ["shots", "annotators"]


def in_order(scores: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by method, in the order of `METHODS`."""
    order = {name: place for place, name in enumerate(METHODS)}
    return scores.sort_values("method", key=lambda names: names.map(order), kind="stable")


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over tasks, one row per method, kind and size of target task."""
    by = ["method", "kind", *_SIZE]
    grouped: Any = scores.groupby(by, sort=False)
    means = grouped[["log_loss", "calibration_error", "confusion_error", "seconds"]].mean().reset_index()
    return summary(scores, by).merge(means, on=by)


def summarize_networks(networks: pd.DataFrame) -> pd.DataFrame:
    """Means over splits, one row per network."""
    grouped: Any = networks.groupby("network", sort=False)
    return grouped[["seconds", "step", "validation_accuracy", "parameters"]].mean().reset_index()


def compare(scores: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the paper's method and of the best variant less that of each other one, on the same tasks.

    size: of the tasks, or "all".

    p_tasks: paired t-test over tasks, as in the paper; tasks of a split share their networks, so it does not
    generalise to other splits. p_splits: over the mean differences of the splits, which does, with few
    degrees of freedom. verdict: ahead, behind, or tied, by p_tasks < .05.
    """
    rows = []
    kinds: Any = scores.groupby("kind", sort=False)
    for kind, part in kinds:
        wide = part.pivot(index=["split", *_SIZE, "share", "task"], columns="method", values="accuracy")
        for first in [name for name in (OURS, BEST) if name in wide]:
            for other in [name for name in wide if name != first]:
                difference = pd.Series(wide[first] - wide[other]).dropna()
                sizes: Any = difference.groupby(level=_SIZE, sort=True)
                by_size = {f"{shots}x{annotators}": values for (shots, annotators), values in sizes}
                rows += [
                    {"kind": kind, "method": first, "less": other, "size": size, **_test(values)}
                    for size, values in {"all": difference, **by_size}.items()
                ]
    columns = ["kind", "method", "less", "size", "difference", "half_width", "p_tasks", "p_splits"]
    return pd.DataFrame(rows, columns=pd.Index([*columns, "tasks", "verdict", "splits_ahead"]))


def _test(difference: pd.Series) -> dict[str, Any]:
    splits: Any = difference.groupby(level="split")
    means = np.asarray(splits.mean(), float)
    over_tasks = interval(difference.to_numpy(float), t=True)
    p_tasks = _p_value(difference.to_numpy(float))
    return {
        "difference": over_tasks.mean,
        "half_width": over_tasks.half_width,
        "p_tasks": p_tasks,
        "p_splits": _p_value(means),
        "tasks": over_tasks.count,
        "verdict": "tied" if not p_tasks < 0.05 else "ahead" if over_tasks.mean > 0 else "behind",
        "splits_ahead": f"{int((means > 0).sum())} of {len(means)}",
    }


def _p_value(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    if np.ptp(values) < TIE:  # equal but for rounding
        return 1.0 if abs(values[0]) < TIE else 0.0
    result: Any = ttest_1samp(values, 0.0)
    return float(result.pvalue)


def draw_figures(scores: pd.DataFrame) -> dict[str, Figure]:
    """Draw accuracy against the number of annotators and the share of spammers.

    Without tasks with spammers, the first kind of tasks is drawn.
    """
    kinds = list(scores["kind"].unique())
    main: Any = scores[scores["kind"] == ("spammers" if "spammers" in kinds else kinds[0])]
    shown = main[main["method"].isin(SHOWN)]
    main = shown if len(shown) else main
    return {
        "annotators": accuracy_figure(summary(main, ["method", *_SIZE])),
        "spammers": share_figure(summary(main, ["method", "share"])),
    }


def format_accuracy(table: pd.DataFrame, kind: str) -> str:
    """Format results on one kind of tasks: accuracy in per cent by size, means over sizes."""
    part: Any = table[table["kind"] == kind]
    wide = 100 * part.pivot(index="method", columns=_SIZE, values="accuracy").loc[part["method"].unique()]
    means = part.groupby("method", sort=False)[["log_loss", "calibration_error"]].mean()
    text = wide.map("{:.1f}".format)
    text.columns = [f"{shots}x{annotators}" for shots, annotators in text.columns]
    text["mean"] = wide.mean(axis=1).map("{:.2f}".format)
    text["log loss"] = means["log_loss"].map("{:.3f}".format)
    text["calib. error"] = means["calibration_error"].map("{:.3f}".format)
    return text.rename_axis("shots x annotators").to_string()


def format_tests(tests: pd.DataFrame, kind: str, method: str) -> str:
    """Format one method less every other over all sizes, in per cent, and how many sizes it is ahead in."""
    part: Any = tests[(tests["kind"] == kind) & (tests["method"] == method)]
    rows = {}
    for other, pairs in part.groupby("less", sort=False):
        verdicts = pairs.loc[pairs["size"] != "all", "verdict"].value_counts()
        total = pairs[pairs["size"] == "all"].iloc[0]
        rows[f"{method} less {other}"] = {
            "difference": f"{100 * total['difference']:+.2f} ± {100 * total['half_width']:.2f}",
            "p (tasks)": f"{total['p_tasks']:.1e}",
            "p (splits)": f"{total['p_splits']:.1e}",
            "splits ahead": total["splits_ahead"],
            "sizes ahead/tied/behind": "/".join(
                str(verdicts.get(word, 0)) for word in ("ahead", "tied", "behind")
            ),
        }
    if not rows:
        return "nothing to compare"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("comparison").to_string()

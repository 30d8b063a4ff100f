"""Tables and figures of the meta-learning experiment.

table.csv      by method, kind of target task, shots and annotators: accuracy with 95 % intervals over tasks, log loss, calibration error, seconds
tests.csv      paired t-tests of the paper's method and of the best variant against every other method, by size and over all sizes
networks.csv   by network: seconds of training, steps, validation accuracy
published.csv  what is reported of the paper, with provenance
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from probcrowd.experiments.meta.methods import METHODS, OURS
from probcrowd.figures.base import accuracy_figure, save_figure, share_figure
from probcrowd.metrics.intervals import interval
from probcrowd.metrics.scores import TIE
from probcrowd.runs.meta.evaluate import summary
from probcrowd.storage.files import write_table

BEST = "best"
_KEYS = ["kind", "shots", "annotators"]
_TESTED = [
    *("kind", "method", "less", "size", "difference", "half_width", "p_tasks", "p_splits"),
    *("tasks", "verdict", "splits_ahead"),
]
_TASK = ["split", *_KEYS, "share", "task"]
SHOWN = ("w/o PA", "PrMV", "PrDS", "MaMV", "MCL", "PrDS + PA", "EM, J = 1", OURS, BEST)  # in figures


def write_tables(out: Path, scores: pd.DataFrame, networks: pd.DataFrame | None) -> pd.DataFrame:
    """Writes tables and figures of what there is; the table of results comes back, methods in their own order."""
    order = {name: place for place, name in enumerate(METHODS)}
    scores = scores.sort_values("method", key=lambda names: names.map(order), kind="stable")
    table = results(scores)
    written = {"table": table, "tests": tests(scores), "published": published()}
    if networks is not None:
        measured: Any = networks.groupby("network", sort=False)
        written["networks"] = (
            measured[["seconds", "step", "validation_accuracy", "parameters"]].mean().reset_index()
        )
    for name, frame in written.items():
        write_table(out / f"{name}.csv", frame)
    kinds = list(scores["kind"].unique())
    first = "spammers" if "spammers" in kinds else kinds[0]
    main: Any = scores[scores["kind"] == first]
    shown = main[main["method"].isin(SHOWN)]
    main = shown if len(shown) else main
    save_figure(accuracy_figure(summary(main, ["method", "shots", "annotators"])), out / "annotators.png")
    save_figure(share_figure(summary(main, ["method", "share"])), out / "spammers.png")
    return table


def results(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per method, kind and size of target task."""
    by = ["method", *_KEYS]
    found = summary(scores, by)
    grouped: Any = scores.groupby(by, sort=False)
    means = grouped[["log_loss", "calibration_error", "confusion_error", "seconds"]].mean().reset_index()
    return found.merge(means, on=by)


def tests(scores: pd.DataFrame) -> pd.DataFrame:
    """Differences of accuracy on the same tasks, for each size and over all ("all"), of the paper's method and the best variant less each other one.

    p_tasks: paired t-test over tasks, as in the paper; tasks of a split share their networks, so it says nothing of other splits. p_splits: over
    the mean differences of the splits, which says that, with few degrees of freedom. verdict: ahead, behind, or tied, by p_tasks < .05.
    """
    rows = []
    kinds: Any = scores.groupby("kind", sort=False)
    for kind, part in kinds:
        wide = part.pivot(
            index=[name for name in _TASK if name != "kind"], columns="method", values="accuracy"
        )
        for first in [name for name in (OURS, BEST) if name in wide]:
            for other in [name for name in wide if name != first]:
                difference = pd.Series(wide[first] - wide[other]).dropna()
                sizes: Any = difference.groupby(level=["shots", "annotators"], sort=True)
                for size, values in [
                    ("all", difference),
                    *((f"{shots}x{annotators}", each) for (shots, annotators), each in sizes),
                ]:
                    rows.append(
                        {"kind": kind, "method": first, "less": other, "size": size, **_tested(values)}
                    )
    return pd.DataFrame(rows, columns=pd.Index(_TESTED))


def _tested(values: pd.Series) -> dict[str, Any]:
    splits: Any = values.groupby(level="split")
    means = np.asarray(splits.mean(), float)
    p_tasks, p_splits = (_p_value(each) for each in (np.asarray(values, float), means))
    mean, half = (found := interval(values.to_numpy(float), t=True)).mean, found.half_width
    verdict = "tied" if not p_tasks < 0.05 else "ahead" if mean > 0 else "behind"
    found = {
        "difference": mean,
        "half_width": half,
        "p_tasks": p_tasks,
        "p_splits": p_splits,
        "tasks": len(values),
        "verdict": verdict,
    }
    return {**found, "splits_ahead": f"{int((means > 0).sum())} of {len(means)}"}


def _p_value(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    if np.ptp(values) < TIE:  # the same but for rounding
        return 1.0 if abs(values[0]) < TIE else 0.0
    found: Any = ttest_1samp(values, 0.0)
    return float(found.pvalue)


def published() -> pd.DataFrame:
    """What is reported of the paper's experiments, with where it is from."""
    with files("probcrowd.experiments.meta").joinpath("published.csv").open() as file:
        return pd.read_csv(file)


def accuracy_text(table: pd.DataFrame, kind: str) -> str:
    """Accuracy of one kind in per cent: a row per method, a column per size, the mean over sizes; and its mean log loss and calibration error."""
    part: Any = table[table["kind"] == kind]
    wide = part.pivot(index="method", columns=["shots", "annotators"], values="accuracy").loc[
        part["method"].unique()
    ]
    text = (100 * wide).map("{:.1f}".format)
    text.columns = [f"{shots}x{annotators}" for shots, annotators in text.columns]
    groups: Any = part.groupby("method", sort=False)
    others = groups[["log_loss", "calibration_error"]].mean()
    text["mean"] = (100 * wide.mean(axis=1)).map("{:.2f}".format)
    text["log loss"], text["calib. error"] = (
        others["log_loss"].map("{:.3f}".format),
        others["calibration_error"].map("{:.3f}".format),
    )
    return text.rename_axis("shots x annotators").to_string()


def tests_text(found: pd.DataFrame, kind: str, method: str) -> str:
    """Differences in per cent of one method less every other, over all sizes, and how many sizes it is ahead, tied and behind in."""
    part: Any = found[(found["kind"] == kind) & (found["method"] == method)]
    rows = []
    for other in part["less"].unique():
        sizes = part[(part["less"] == other) & (part["size"] != "all")]["verdict"].value_counts()
        total = part[(part["less"] == other) & (part["size"] == "all")].iloc[0]
        counts = "/".join(str(sizes.get(word, 0)) for word in ("ahead", "tied", "behind"))
        shown = f"{100 * total['difference']:+.2f} ± {100 * total['half_width']:.2f}"
        p_values = [f"{total[name]:.1e}" for name in ("p_tasks", "p_splits")]
        rows.append([f"{method} less {other}", shown, *p_values, total["splits_ahead"], counts])
    columns = [
        "comparison",
        "difference",
        "p (tasks)",
        "p (splits)",
        "splits ahead",
        "sizes ahead/tied/behind",
    ]
    return (
        pd.DataFrame(rows, columns=pd.Index(columns)).set_index("comparison").to_string()
        if rows
        else "nothing to compare"
    )


def published_text() -> str:
    """The reported numbers."""
    return published().to_string(index=False)

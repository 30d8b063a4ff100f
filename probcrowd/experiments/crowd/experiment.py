"""Classifiers learned from annotators, all methods in one harness: same network, features, epochs, optimiser and seeds.

Three ways to choose the epoch, never mixed: "last"; "held-out", by the labels of a tenth of the training items; "gold", by true classes of
other items, a privilege that few have. The best epoch on test items is not among them. Each method has the learning rates, of those tried, whose
fits foretell held-out labels best on average over seeds; test items have no part in that either.

results.csv    one row per set, selection and method: accuracy and log score on test items, mean and standard error over seeds
rates.csv      the same of every learning rate
asked.csv      each of ours against each baseline, paired by seed
published.csv  what papers report, with the rule by which they chose the epoch
cells/         every number: one row per seed
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.compute.threads import one_thread
from probcrowd.estimators.crowd.classifier import CrowdClassifier
from probcrowd.experiments.crowd.datasets import SETS, CrowdTask, read_task
from probcrowd.experiments.grid import Cell, read_cells, run_cells
from probcrowd.metrics.scores import scores
from probcrowd.storage.files import write_table
from probcrowd.storage.settings import Settings

RATES = ((1e-3, 1e-3), (1e-3, 1e-2), (1e-2, 1e-2))  # of the network and of the channel
SELECTIONS = ("held-out", "last", "gold")
METHODS: dict[str, dict[str, Any]] = {
    "true labels": {
        "method": "majority-vote"
    },  # a ceiling: the annotators are replaced by one who is always right
    "majority vote": {"method": "majority-vote"},
    "Dawid-Skene": {"method": "dawid-skene"},
    "CrowdLayer MW": {"method": "crowd-layer", "initial_accuracy": "published"},
    "CrowdLayer VW": {"method": "crowd-layer", "initial_accuracy": "published", "options": {"kind": "VW"}},
    "CrowdLayer VB": {"method": "crowd-layer", "initial_accuracy": "published", "options": {"kind": "VB"}},
    "CrowdLayer VW+B": {
        "method": "crowd-layer",
        "initial_accuracy": "published",
        "options": {"kind": "VW+B"},
    },
    "CrowdLayer SW": {"method": "crowd-layer", "initial_accuracy": "published", "options": {"kind": "SW"}},
    "Raykar": {"method": "raykar"},
    "MBEM": {"method": "mbem"},
    "TraceReg": {"method": "trace-reg", "initial_accuracy": "published"},
    "CoNAL": {"method": "conal", "initial_accuracy": "published"},
    "UnionNet": {"method": "union-net", "initial_accuracy": "published"},
    "Max-MIG": {"method": "max-mig"},
    "DoctorNet": {"method": "doctor-net"},
    "CCEM": {"method": "ccem"},
    "CCEM, published start": {"method": "ccem", "initial_accuracy": "published"},
    "GeoCrowdNet(F)": {"method": "geocrowdnet-f"},
    "GeoCrowdNet(F), published start": {"method": "geocrowdnet-f", "initial_accuracy": "published"},
    "GeoCrowdNet(F), running": {"method": "geocrowdnet-f", "options": {"running": True}},
    "GeoCrowdNet(W)": {"method": "geocrowdnet-w"},
    "GeoCrowdNet(W), published start": {"method": "geocrowdnet-w", "initial_accuracy": "published"},
}
CEILING = "true labels"
_OURS = ("CCEM", "GeoCrowdNet")
METHODS |= {
    f"{name}, selected strength": {**METHODS[name], "strength": "selected"}
    for name in ("GeoCrowdNet(F)", "GeoCrowdNet(W)")
}


class CrowdsReproduction(Settings):
    """What the numbers depend on."""

    out: Path
    seeds: int
    epochs: int
    batch: int
    learning_rates: tuple[tuple[float, float], ...]
    weight_decay: float
    sets: tuple[str, ...]


def reproduce_crowds(
    root: Path,
    out: Path,
    *,
    sets: Sequence[str] = SETS[:2],
    methods: Sequence[str] = (),
    seeds: int = 5,
    epochs: int = 60,
    batch: int = 100,
    learning_rates: Sequence[tuple[float, float]] = RATES,
    weight_decay: float = 1e-4,
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of results, after writing it and its parts into `out`; cells that are there already are not made again, and count.

    Args:
        root: the data folder. methods: none: all.

    Raises:
        ValueError: unknown sets or methods, no such data, or `out` holds results of other settings.
    """
    chosen = list(methods) or list(METHODS)
    for given, known in ((sets, SETS), (chosen, METHODS)):
        if wrong := [name for name in given if name not in known]:
            raise ValueError(f"unknown: {', '.join(wrong)}; choose from {'; '.join(known)}")
    settings = CrowdsReproduction(
        out=out,
        seeds=seeds,
        epochs=epochs,
        batch=batch,
        learning_rates=tuple((float(one), float(other)) for one, other in learning_rates),
        weight_decay=weight_decay,
        sets=tuple(name for name in SETS if name in sets),
    )
    for name in settings.sets:
        read_task(root, name)
    cells = _cells(root, settings)
    run_cells(
        out,
        settings,
        {name: cell for name, (method, cell) in cells.items() if method in chosen},
        seeds,
        jobs=jobs,
        progress=progress,
    )
    every = read_cells(out, cells)
    rows = tuned(every)
    results = summary(rows)
    write_table(out / "results.csv", results.set_index("set"))
    write_table(out / "rates.csv", summary(every).set_index("set"))
    write_table(out / "asked.csv", compared(rows).set_index("set"))
    write_table(out / "published.csv", published().set_index("set"))
    return results


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each method's learning rate on a set: the one with the best mean held-out score over seeds."""
    held = rows.loc[rows["selection"] == "held-out"]
    mean = (
        held.groupby(["set", "method", "learning_rates"], sort=False)["held_out_score"].mean().reset_index()
    )
    best = mean.loc[
        mean.groupby(["set", "method"], sort=False)["held_out_score"].idxmax(),
        ["set", "method", "learning_rates"],
    ]
    return rows.merge(best, on=["set", "method", "learning_rates"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and standard errors over seeds; accuracy in per cent."""
    groups = rows.groupby(["set", "selection", "method", "learning_rates"], sort=False)
    made = groups.agg(
        seeds=("seed", "size"),
        accuracy=("accuracy", "mean"),
        log_loss=("log_loss", "mean"),
        seconds=("seconds", "mean"),
    )
    made["accuracy"] *= 100
    made.insert(
        2, "standard_error", 100 * groups["accuracy"].std(ddof=1) / np.sqrt(groups["accuracy"].size())
    )
    return made.reset_index()


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Ours less the baselines in per cent, paired by seed, with the standard error of the mean difference over seeds."""
    made = []
    groups: Any = rows.groupby(["set", "selection"], sort=False)
    for (name, selection), part in groups:
        wide = part.pivot_table(index="seed", columns="method", values="accuracy", sort=False)
        for ours in (method for method in wide if method.startswith(_OURS)):
            for theirs in (method for method in wide if not method.startswith(_OURS) and method != CEILING):
                difference = 100 * (wide[ours] - wide[theirs])
                error = (
                    float(difference.std(ddof=1) / math.sqrt(len(difference)))
                    if len(difference) > 1
                    else math.nan
                )
                row = {
                    "set": name,
                    "selection": selection,
                    "ours": ours,
                    "baseline": theirs,
                    "difference": difference.mean(),
                }
                made.append(
                    {
                        **row,
                        "standard_error": error,
                        "no_worse": bool(difference.mean() >= -(0 if math.isnan(error) else error)),
                    }
                )
    columns = ["set", "selection", "ours", "baseline", "difference", "standard_error", "no_worse"]
    return pd.DataFrame(made, columns=columns)


def published() -> pd.DataFrame:
    """What papers report, in per cent."""
    with (files("probcrowd.experiments.crowd") / "published.csv").open() as file:
        return pd.read_csv(file)


def results_text(results: pd.DataFrame) -> str:
    """The results for readers: a table per set, methods by selection, accuracy and standard error in per cent."""
    parts = []
    groups: Any = results.groupby("set", sort=False)
    for name, part in groups:
        cell = [
            f"{mean:.1f}±{error:.1f}"
            for mean, error in zip(part["accuracy"], part["standard_error"].fillna(0.0), strict=True)
        ]
        wide = part.assign(cell=cell).pivot_table(
            index="method", columns="selection", values="cell", aggfunc="first", sort=False
        )
        parts.append(f"{name}\n{wide.fillna('').rename_axis(None).rename_axis(None, axis=1).to_string()}")
    return "\n\n".join(parts)


def published_text() -> str:
    """What papers report, for readers: numbers of one column are comparable, those of several are not."""
    table = published().assign(column=lambda found: found["source"] + ", " + found["selection"])
    parts = []
    groups: Any = table.groupby("set", sort=False)
    for name, part in groups:
        wide = part.pivot_table(index="method", columns="column", values="accuracy", sort=False)
        parts.append(f"{name}\n{wide.rename_axis(None).rename_axis(None, axis=1).to_string(na_rep='')}")
    return "\n\n".join(parts)


def _cells(root: Path, settings: CrowdsReproduction) -> dict[str, tuple[str, Cell]]:
    """The method and the function of every cell that there may be, by names that may be files'."""
    found: dict[str, tuple[str, Cell]] = {}
    for name in settings.sets:
        for selection in SELECTIONS:
            for method, options in METHODS.items():
                for rates in (
                    settings.learning_rates if selection != "last" or "strength" not in options else ()
                ):
                    cell = partial(_scored, root, settings, name, selection, rates, method)
                    found[f"{name} {selection} {_told(rates)} {method}"] = method, cell
    return found


def _scored(
    root: Path,
    settings: CrowdsReproduction,
    name: str,
    selection: str,
    rates: tuple[float, float],
    method: str,
    seed: int,
) -> list[dict[str, Any]]:
    task = read_task(root, name)
    labels = _true_labels(task) if method == CEILING else task.labels
    valid, test = task.split(seed) if selection == "gold" else (task.valid, task.test)
    begun = time.perf_counter()
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        known = (task.features.loc[valid], task.truth) if selection == "gold" else None
        fitted = _classifier(task, settings, selection, rates, METHODS[method], seed).fit(
            task.features, labels, validation=known
        )
    found = fitted.predict_proba(task.features.loc[test])
    judged = scores(
        found.to_numpy(), fitted.classes_.get_indexer(pd.Index(task.truth.loc[test])).astype(np.int64)
    )
    held = fitted.history_["score"].max() if selection == "held-out" else math.nan
    told = {
        "learning_rates": _told(rates),
        "held_out_score": held,
        "epoch": fitted.epoch_,
        "degenerate": fitted.degenerate_,
        "seconds": time.perf_counter() - begun,
    }
    return [{"set": name, "selection": selection, "method": method, **judged, **told}]


def _classifier(
    task: CrowdTask,
    settings: CrowdsReproduction,
    selection: str,
    rates: tuple[float, float],
    options: Mapping[str, Any],
    seed: int,
) -> CrowdClassifier:
    return CrowdClassifier(
        network=task.network,
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=rates[0],
        channel_learning_rate=rates[1],
        weight_decay=settings.weight_decay,
        selection=selection,  # pyright: ignore[reportArgumentType]
        random_state=seed,
        **options,
    )


def _told(rates: tuple[float, float]) -> str:
    """Of the network and of the channel."""
    return f"{rates[0]:g} {rates[1]:g}"


def _true_labels(task: CrowdTask) -> pd.DataFrame:
    """One annotator, who is always right."""
    items = task.labels["item"].unique()
    return pd.DataFrame({"item": items, "annotator": "truth", "label": task.truth.loc[items].to_numpy()})

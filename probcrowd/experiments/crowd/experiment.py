"""Classifiers learned from annotators, all with the same network, features, epochs, optimiser and seeds.

Three ways to select the epoch, never mixed: "last"; "held-out", by the labels of a tenth of the training
items; "gold", by true classes of other items, a privilege that few have. The best epoch on test items is not
among them. Each method uses, of the learning rates tried, those whose fits predict held-out labels best on
average over seeds; test items play no part in that either.

results.csv      one row per set, selection and method: accuracy and log score on test items, mean and
                 standard error over seeds
rates.csv        the same for every learning rate
comparisons.csv  each of our methods against each baseline, paired by seed
published.csv    what papers report, with the rule by which they selected the epoch
cells/           every number: one row per seed
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.estimators.crowd.classifier import CrowdClassifier
from probcrowd.experiments.crowd.datasets import SETS, CrowdTask, read_task
from probcrowd.experiments.grid import Rows, Stage, read_cells
from probcrowd.experiments.harness import Experiment, Options, Tables
from probcrowd.experiments.tables import (
    average_over_seeds,
    format_errors,
    format_results,
    read_published,
    select_settings,
    standard_error,
)
from probcrowd.metrics.scores import scores

RATES = ((1e-3, 1e-3), (1e-3, 1e-2), (1e-2, 1e-2))  # of the network and of the channel
SELECTIONS = ("held-out", "last", "gold")
CEILING = "true labels"  # the annotators are replaced by one who is always right


def _published_start(method: str, **options: Any) -> dict[str, Any]:
    return {"method": method, "initial_accuracy": "published", **({"options": options} if options else {})}


METHODS: dict[str, dict[str, Any]] = {
    CEILING: {"method": "majority-vote"},
    "majority vote": {"method": "majority-vote"},
    "Dawid-Skene": {"method": "dawid-skene"},
    "CrowdLayer MW": _published_start("crowd-layer"),
    **{
        f"CrowdLayer {kind}": _published_start("crowd-layer", kind=kind)
        for kind in ("VW", "VB", "VW+B", "SW")
    },
    "Raykar": {"method": "raykar"},
    "MBEM": {"method": "mbem"},
    "TraceReg": _published_start("trace-reg"),
    "CoNAL": _published_start("conal"),
    "UnionNet": _published_start("union-net"),
    "Max-MIG": {"method": "max-mig"},
    "DoctorNet": {"method": "doctor-net"},
    "CCEM": {"method": "ccem"},
    "CCEM, published start": _published_start("ccem"),
    "GeoCrowdNet(F)": {"method": "geocrowdnet-f"},
    "GeoCrowdNet(F), published start": _published_start("geocrowdnet-f"),
    "GeoCrowdNet(F), running": {"method": "geocrowdnet-f", "options": {"running": True}},
    "GeoCrowdNet(W)": {"method": "geocrowdnet-w"},
    "GeoCrowdNet(W), published start": _published_start("geocrowdnet-w"),
    "GeoCrowdNet(F), selected strength": {"method": "geocrowdnet-f", "strength": "selected"},
    "GeoCrowdNet(W), selected strength": {"method": "geocrowdnet-w", "strength": "selected"},
}
_OURS = ("CCEM", "GeoCrowdNet")
_KEYS = ["set", "selection", "method", "learning_rates"]


class CrowdOptions(Options):
    """methods: none: all. learning_rates: pairs, of the network and of the channel."""

    seeds: int = 5
    epochs: int = 60
    batch: int = 100
    learning_rates: tuple[tuple[float, float], ...] = RATES
    weight_decay: float = 1e-4
    sets: tuple[str, ...] = SETS[:2]


def _stages(options: CrowdOptions) -> list[Stage]:
    for name in options.sets:
        read_task(options.data, name)
    return [Stage(options.out, options, _cells(options, options.methods or METHODS), options.seeds)]


def _cells(options: CrowdOptions, methods: Collection[str]) -> dict[str, Any]:
    return {
        f"{name} {selection} {_format_rates(rates)} {method}": partial(
            _fit, options, name, selection, rates, method
        )
        for name in options.sets
        for selection in SELECTIONS
        for method in METHODS
        if method in methods and (selection != "last" or "strength" not in METHODS[method])
        for rates in options.learning_rates
    }


def _fit(
    options: CrowdOptions, name: str, selection: str, rates: tuple[float, float], method: str, seed: int
) -> Rows:
    task = read_task(options.data, name)
    labels = true_labels(task) if method == CEILING else task.labels
    valid, test = task.split(seed) if selection == "gold" else (task.valid, task.test)
    start = time.perf_counter()
    classifier = CrowdClassifier(
        network=task.network,
        epochs=options.epochs,
        batch=options.batch,
        learning_rate=rates[0],
        channel_learning_rate=rates[1],
        weight_decay=options.weight_decay,
        selection=selection,  # pyright: ignore[reportArgumentType]
        random_state=seed,
        **METHODS[method],
    )
    gold = (task.features.loc[valid], task.truth) if selection == "gold" else None
    fitted = classifier.fit(task.features, labels, validation=gold)
    probabilities = fitted.predict_proba(task.features.loc[test])
    truth = fitted.classes_.get_indexer(pd.Index(task.truth.loc[test])).astype(np.int64)
    return [
        {
            "set": name,
            "selection": selection,
            "method": method,
            **scores(probabilities.to_numpy(), truth),
            "learning_rates": _format_rates(rates),
            "held_out_score": fitted.history_["score"].max() if selection == "held-out" else math.nan,
            "epoch": fitted.epoch_,
            "degenerate": fitted.degenerate_,
            "seconds": time.perf_counter() - start,
        }
    ]


def true_labels(task: CrowdTask) -> pd.DataFrame:
    """The labels of one annotator who is always right about the training items."""
    items = task.labels["item"].unique()
    return pd.DataFrame({"item": items, "annotator": "truth", "label": task.truth.loc[items].to_numpy()})


def _format_rates(rates: tuple[float, float]) -> str:
    return f"{rates[0]:g} {rates[1]:g}"


def _tables(options: CrowdOptions) -> Tables:
    rows = read_cells(options.out, _cells(options, METHODS))
    selected = select_settings(rows, ["set", "method"], "learning_rates")
    return {
        "results": summarize(selected),
        "rates": summarize(rows),
        "comparisons": compare(selected),
        "published": read_published("crowd"),
    }


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and standard errors over seeds; accuracy in per cent."""
    columns = ["seeds", "accuracy", "standard_error", "log_loss", "seconds"]
    return average_over_seeds(rows, _KEYS, columns, measure="accuracy", percent=["accuracy"])


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """Our methods less the baselines in per cent, paired by seed, with standard errors over seeds."""
    table = []
    groups: Any = rows.groupby(["set", "selection"], sort=False)
    for (name, selection), part in groups:
        wide = part.pivot_table(index="seed", columns="method", values="accuracy", sort=False)
        for ours in (method for method in wide if method.startswith(_OURS)):
            for baseline in (method for method in wide if not method.startswith((*_OURS, CEILING))):
                difference = 100 * (wide[ours] - wide[baseline])
                mean, error = difference.mean(), standard_error(difference)
                no_worse = bool(mean >= -np.nan_to_num(error))
                table.append([name, selection, ours, baseline, mean, error, no_worse])
    columns = ["set", "selection", "ours", "baseline", "difference", "standard_error", "no_worse"]
    return pd.DataFrame(table, columns=pd.Index(columns))


def _report(tables: Tables) -> list[tuple[str, str]]:
    results, published = tables["results"], tables["published"]
    shown = results.assign(cell=format_errors(results, "accuracy"), name=results["method"])
    columns = published["source"] + ", " + published["selection"]
    reported = published.assign(name=published["method"], cell=published["accuracy"], column=columns)
    heading = "accuracy on test items ± standard error in per cent, by what selects the epoch"
    beside = "published, by source and rule of selection: compare within a column alone"
    return [
        (heading, format_results(shown, ["set"], "{}", "selection")),
        (beside, format_results(reported, ["set"], "{}", "column")),
    ]


_QUICK = {"seeds": 2, "epochs": 10, "learning_rates": ((1e-3, 1e-2),)}
EXPERIMENT = Experiment(CrowdOptions, _QUICK, {"sets": SETS, "methods": METHODS}, _stages, _tables, _report)

"""Does SimLabel predict annotators better than skipping missing labels?

Three architectures (Zhang et al. 2025), with controls that the paper lacks.

Labels of a panel are hidden in training: first a share at random, as in the sparse data of the paper, then a
further 0, 20, 30 and 40 % of the rest, at random or by annotators. Methods are scored on all labels of items
without labels in training: per annotator, then the mean over annotators. Every method has two settings of its
own weight (soft labels: of missing pairs; skipping: weight decay; the hierarchical rival: the scale of its
prior). The one whose fits predict held-out observed labels best on average over seeds counts; these labels
select the epoch as well. Test items play no part in either.

results.csv    one row per panel, removal, rate, architecture and method: means and standard errors over seeds
gains.csv      each method less skipping, SimLabel less its controls, paired by seed, with 95 % t intervals
published.csv  what the paper reports
cells/         every number: one row per seed and setting
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from probcrowd.estimators.simlabel.sim_label import SimLabel
from probcrowd.experiments.grid import Rows, Stage, cell_names, read_cells
from probcrowd.experiments.harness import Experiment, Options, Tables
from probcrowd.experiments.simlabel.datasets import SETS, Panel, hide_labels, read_panel
from probcrowd.experiments.simlabel.tables import (
    CONTROLS,
    MEASURES,
    OURS,
    RIVAL,
    SKIP,
    format_gains,
    format_means,
    format_published,
    gains,
    select,
    summarize,
)
from probcrowd.experiments.tables import read_published
from probcrowd.models.simlabel.similarity import similarity

REMOVALS = ("random", "blocks")
ARCHITECTURES = ("qumatl", "madl", "padl")
HELD_OUT = 0.15  # of the training items, to select epochs and settings by
_DECAYS = [{"weight_decay": decay} for decay in (1e-4, 1e-2)]
_WEIGHTS = [{"kl_weight": weight} for weight in (0.1, 1.0)]
# Options of SimLabel by method, and the settings that held-out labels select from
Methods = Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]]
METHODS: Methods = {
    SKIP: ({"missing": "skip"}, _DECAYS),
    OURS: ({}, _WEIGHTS),
    "SimLabel + confidence": ({"threshold": 0.6}, _WEIGHTS),
    **{control: ({"missing": control.split()[0]}, _WEIGHTS) for control in CONTROLS},
}
VARIANTS: Methods = {  # only run by name
    "SimLabel, paper": ({"variant": "paper"}, _WEIGHTS),
    "SimLabel, released": ({"variant": "released"}, _WEIGHTS),
    "SimLabel, small weights": ({}, [{"kl_weight": weight} for weight in (0.01, 0.03)]),
    "SimLabel, imputed labels in the loss": ({"threshold": 0.6, "imputed": "loss"}, _WEIGHTS),
}
RIVALS: Methods = {
    "hierarchical prior": ({}, [{"options": {"scale": scale}} for scale in (0.5, 2.0)]),
    "no prior": ({"options": {"scale": math.inf}}, _DECAYS),
    "one voice for all": ({"options": {"scale": 1e-3}}, _DECAYS),
}


class SimLabelOptions(Options):
    """panels: none: all, or the one that needs no data folder. methods: none: all but variants of SimLabel.

    rates: shares of labels removed besides. base: the share of labels hidden first, at random; by default
    that of the paper's AMER2.
    """

    panels: tuple[str, ...] = Field((), exclude=True)
    rates: tuple[float, ...] = Field((0.0, 0.2, 0.3, 0.4), exclude=True)
    removals: tuple[str, ...] = Field(REMOVALS, exclude=True)
    base: float = 0.79
    seeds: int = 5
    epochs: int = 60
    patience: int = 15
    batch: int = 64
    learning_rate: float = 3e-3


def _stages(options: SimLabelOptions) -> list[Stage]:
    if not all(0 <= share < 1 for share in (*options.rates, options.base)):
        raise ValueError(
            f"rates {options.rates} and base {options.base}: give shares of labels, from 0 to below 1"
        )
    panels = options.panels or (SETS[:1] if options.data is None else SETS)
    for panel in panels:
        read_panel(options.data, panel, 0)
    conditions = [("none", 0.0)] if 0.0 in options.rates else []
    conditions += [(removal, rate) for removal in options.removals for rate in options.rates if rate]
    chosen = options.methods or (*METHODS, *RIVALS)
    fits = [(architecture, method) for architecture in ARCHITECTURES for method in [*METHODS, *VARIANTS]]
    cells = {
        f"{panel} {removal} {rate:g} {architecture} {method}": partial(
            _fit, options, panel, removal, rate, architecture, method
        )
        for panel in panels
        for removal, rate in conditions
        for architecture, method in [*fits, *((RIVAL, rival) for rival in RIVALS)]
        if method in chosen
    }
    return [Stage(options.out, options, cells, options.seeds)]


def _fit(
    options: SimLabelOptions, name: str, removal: str, rate: float, architecture: str, method: str, seed: int
) -> Rows:
    panel = read_panel(options.data, name, seed)
    training, test = panel.split(seed)
    observed = hide_labels(
        panel.labels[training] >= 0,
        options.base,
        "random" if removal == "none" else removal,
        rate,
        np.random.default_rng([seed, 4]),
    )
    labels = np.where(observed, panel.labels[training], -1)
    inputs = [panel.features.iloc[part].reset_index(drop=True) for part in (training, test)]
    truth = None if panel.truth is None else panel.truth[test]
    given, settings = {**METHODS, **VARIANTS, **RIVALS}[method]
    given = ({"missing": "skip"} if architecture == RIVAL else {}) | given
    common = options.model_dump(include={"epochs", "patience", "batch", "learning_rate"})
    rows: Rows = []
    for setting in settings:
        start = time.perf_counter()
        estimator = SimLabel(
            architecture=architecture,  # pyright: ignore[reportArgumentType]
            validation_fraction=HELD_OUT,
            random_state=seed,
            **common,
            **given,
            **setting,
        )
        fitted = estimator.fit(inputs[0], labels, missing_label=-1)
        measures = fitted.evaluate(inputs[1], panel.labels[test], truth, missing_label=-1).overall
        row = {
            "panel": name,
            "removal": removal,
            "rate": rate,
            "architecture": architecture,
            "method": method,
        }
        row |= {
            "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
            "labels": int(observed.sum()),
            "held_out_score": fitted.history_["score"].max(),
            "epoch": fitted.epoch_,
            "seconds": time.perf_counter() - start,
        }
        row |= {measure: measures.get(measure, math.nan) for measure in MEASURES if measure not in row}
        rows.append(row | _score_imputed(fitted, panel, training))
    return rows


def _score_imputed(fitted: SimLabel, panel: Panel, training: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Number of imputed labels, the share that equals the hidden ones, and the error of the similarities.

    These are compared with those of all labels of the training items: mean absolute and mean difference
    over pairs of annotators.
    """
    complete = panel.labels[training]
    item, annotator = np.nonzero(complete >= 0)
    sizes = {"num_annotators": complete.shape[1], "num_labels": int(panel.labels.max()) + 1}
    true = similarity(item, annotator, complete[item, annotator], **sizes, shrink=False).matrix()
    error = (fitted.refreshed_similarity_matrix_.to_numpy() - true)[np.triu_indices(len(true), 1)]
    imputed = fitted.imputed_
    hidden = complete[imputed["item"].to_numpy(int), imputed["annotator"].to_numpy(int)]
    right = (hidden == imputed["label"].to_numpy(int)).mean() if len(imputed) else math.nan
    return {
        "imputed": float(len(imputed)),
        "imputed_right": float(right),
        "similarity_error": float(np.abs(error).mean()),
        "similarity_drift": float(error.mean()),
    }


def _tables(options: SimLabelOptions) -> Tables:
    rows = select(read_cells(options.out, cell_names(options.out)))
    return {"results": summarize(rows), "gains": gains(rows), "published": read_published("simlabel")}


def _report(tables: Tables) -> list[tuple[str, str]]:
    means = (
        "mean accuracy over annotators ± standard error in per cent, by the share of labels removed besides"
    )
    differences = "differences with half widths of 95 % intervals, paired by seed; * where it excludes 0"
    return [
        (means, format_means(tables["results"])),
        (differences, format_gains(tables["gains"])),
        ("published, on data that are not public", format_published(tables["published"])),
    ]


_CHOICES = {"panels": SETS, "methods": [*METHODS, *VARIANTS, *RIVALS], "removals": REMOVALS}
_QUICK = {"panels": SETS[:1], "rates": (0.0, 0.4), "removals": REMOVALS[:1], "seeds": 2, "epochs": 10}
EXPERIMENT = Experiment(SimLabelOptions, _QUICK, _CHOICES, _stages, _tables, _report)

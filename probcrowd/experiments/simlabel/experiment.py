"""Does SimLabel foretell annotators better than leaving missing labels out? Three architectures, with the controls that its paper lacks.

The labels of a panel are hidden in training: first a share at random, as in the sparse data of the paper, then a further 0, 20, 30 and 40 % of what is left, at random
or by annotators. Methods are judged by all labels of items that nobody labelled in training: per annotator, then the mean over annotators. Every method has two
settings of its own weight (soft labels: of missing pairs; skipping: weight decay; the hierarchical rival: the spread of its prior), of which the one counts
whose fits foretell held-out observed labels best on average over seeds; these choose the epoch as well. Items judged by have no part in either.

results.csv    one row per panel, removal, rate, architecture and method: means and standard errors over seeds
gains.csv      each method less skipping, and SimLabel less its controls, paired by seed, with 95 % t intervals
published.csv  what the paper reports
cells/         every number: one row per seed and setting
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.compute.threads import one_thread
from probcrowd.estimators.simlabel.sim_label import SimLabel
from probcrowd.experiments.grid import Cell, read_cells, run_cells
from probcrowd.experiments.simlabel.datasets import SETS, Panel, hidden, read_panel
from probcrowd.experiments.simlabel.tables import (
    MEASURES,
    OURS,
    RIVAL,
    SKIP,
    gains,
    published,
    summary,
    tuned,
)
from probcrowd.models.simlabel.similarity import similarity
from probcrowd.storage.files import write_table
from probcrowd.storage.settings import Settings

RATES, REMOVALS = (0.0, 0.2, 0.3, 0.4), ("random", "blocks")
ARCHITECTURES = ("qumatl", "madl", "padl")
_DECAYS = [{"weight_decay": decay} for decay in (1e-4, 1e-2)]
_WEIGHTS = [{"kl_weight": weight} for weight in (0.1, 1.0)]
METHODS: dict[
    str, tuple[dict[str, Any], list[dict[str, Any]]]
] = {  # parameters, and the settings of which held-out labels choose
    SKIP: ({"missing": "skip"}, _DECAYS),
    OURS: ({}, _WEIGHTS),
    "SimLabel + confidence": ({"threshold": 0.6}, _WEIGHTS),
    "uniform weights": ({"missing": "uniform"}, _WEIGHTS),
    "consensus": ({"missing": "consensus"}, _WEIGHTS),
}
MORE: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {  # run by name alone
    "SimLabel, paper": ({"variant": "paper"}, _WEIGHTS),
    "SimLabel, released": ({"variant": "released"}, _WEIGHTS),
    "SimLabel, small weights": ({}, [{"kl_weight": weight} for weight in (0.01, 0.03)]),
    "SimLabel, imputed labels in the loss": ({"threshold": 0.6, "imputed": "loss"}, _WEIGHTS),
}
RIVALS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "hierarchical prior": ({}, [{"options": {"scale": scale}} for scale in (0.5, 2.0)]),
    "no prior": ({"options": {"scale": math.inf}}, _DECAYS),
    "one voice for all": ({"options": {"scale": 1e-3}}, _DECAYS),
}
HELD = 0.15  # of the items learned from, to choose epochs and settings by


class SimLabelReproduction(Settings):
    """What the numbers depend on."""

    out: Path
    base: float
    seeds: int
    epochs: int
    patience: int
    batch: int
    learning_rate: float


def reproduce_simlabel(
    root: Path | None,
    out: Path,
    *,
    panels: Sequence[str] = SETS,
    methods: Sequence[str] = (),
    rates: Sequence[float] = RATES,
    removals: Sequence[str] = REMOVALS,
    base: float = 0.79,
    seeds: int = 5,
    epochs: int = 60,
    patience: int = 15,
    batch: int = 64,
    learning_rate: float = 3e-3,
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of results, after writing it and its parts into `out`; cells that are there already are not made again, and count.

    Args:
        root: the data folder, for panels that are in one. methods: none: all but those of `MORE`. base: the share of labels that is hidden first,
            at random; that of the paper's AMER2 by default.

    Raises:
        ValueError: unknown names, no such data, or `out` holds results of other settings.
    """
    every = {**METHODS, **MORE, **RIVALS}
    for given, known in ((panels, SETS), (methods, tuple(every)), (removals, REMOVALS)):
        if wrong := [name for name in given if name not in known]:
            raise ValueError(f"unknown: {', '.join(wrong)}; choose from {'; '.join(known)}")
    if not all(0 <= share < 1 for share in (*rates, base)):
        raise ValueError(f"rates {tuple(rates)} and base {base}: choose shares of labels, from 0 to below 1")
    settings = SimLabelReproduction(
        out=out,
        base=base,
        seeds=seeds,
        epochs=epochs,
        patience=patience,
        batch=batch,
        learning_rate=learning_rate,
    )
    for name in panels:
        read_panel(root, name, 0)
    chosen = set(methods or (*METHODS, *RIVALS))
    cells = _cells(root, settings, panels, rates, removals, chosen)
    run_cells(out, settings, cells, seeds, jobs=jobs, progress=progress)
    rows = tuned(read_cells(out, sorted(path.stem for path in (out / "cells").glob("*.csv"))))
    results = summary(rows)
    write_table(out / "results.csv", results.set_index("panel"))
    write_table(out / "gains.csv", gains(rows).set_index("panel"))
    write_table(out / "published.csv", published().set_index("set"))
    return results


def _cells(
    root: Path | None,
    settings: SimLabelReproduction,
    panels: Sequence[str],
    rates: Sequence[float],
    removals: Sequence[str],
    methods: set[str],
) -> dict[str, Cell]:
    """The functions of the cells asked for, by names that may be files'."""
    found: dict[str, Cell] = {}
    for panel in panels:
        conditions = [("none", 0.0)] if 0.0 in rates else []
        conditions += [(removal, float(rate)) for removal in removals for rate in rates if rate]
        for removal, rate in conditions:
            for architecture, table in [
                *((name, {**METHODS, **MORE}) for name in ARCHITECTURES),
                (RIVAL, RIVALS),
            ]:
                for method, (options, tried) in table.items():
                    if method in methods:
                        name = f"{panel} {removal} {rate:g} {architecture} {method}"
                        found[name] = partial(
                            _scored,
                            root,
                            settings,
                            panel,
                            removal,
                            rate,
                            architecture,
                            method,
                            options,
                            tried,
                        )
    return found


def _scored(
    root: Path | None,
    settings: SimLabelReproduction,
    name: str,
    removal: str,
    rate: float,
    architecture: str,
    method: str,
    options: Mapping[str, Any],
    tried: Sequence[Mapping[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    panel = read_panel(root, name, seed)
    learned, judged = panel.split(seed)
    kept = hidden(
        panel.labels[learned] >= 0,
        settings.base,
        "random" if removal == "none" else removal,
        rate,
        np.random.default_rng([seed, 4]),
    )
    seen, rows = np.where(kept, panel.labels[learned], -1), []
    with one_thread():
        for setting in tried:
            begun = time.perf_counter()
            chosen: dict[str, Any] = {"missing": "skip"} if architecture == RIVAL else {}
            chosen |= {**options, **setting, "architecture": architecture, "random_state": seed}
            for parameter in ("epochs", "patience", "batch", "learning_rate"):
                chosen[parameter] = getattr(settings, parameter)
            made = SimLabel(validation_fraction=HELD, **chosen)
            fit = made.fit(panel.features.iloc[learned].reset_index(drop=True), seen, missing_label=-1)
            truth = None if panel.truth is None else panel.truth[judged]
            found = fit.evaluate(
                panel.features.iloc[judged].reset_index(drop=True),
                panel.labels[judged],
                truth,
                missing_label=-1,
            )
            row = {
                "panel": name,
                "removal": removal,
                "rate": rate,
                "architecture": architecture,
                "method": method,
            }
            row |= {
                "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
                "labels": int(kept.sum()),
            }
            row |= {
                "held_out_score": fit.history_["score"].max(),
                "epoch": fit.epoch_,
                "seconds": time.perf_counter() - begun,
            }
            known = {
                measure: found.overall.get(measure, math.nan) for measure in MEASURES if measure not in row
            }
            rows.append({**row, **known, **_imputed(fit, panel, learned)})
    return rows


def _imputed(fit: SimLabel, panel: Panel, learned: np.ndarray) -> dict[str, float]:
    """How many labels were imputed, the share of them that the annotator really gave, and how far the similarities used are from those of all labels that
    these annotators gave the items learned from: mean absolute and mean difference over pairs."""
    everything = panel.labels[learned]
    item, annotator = np.nonzero(everything >= 0)
    sizes = {"num_annotators": everything.shape[1], "num_labels": int(panel.labels.max()) + 1}
    true = similarity(item, annotator, everything[item, annotator], **sizes, shrink=False).matrix()
    off = (fit.refreshed_similarity_matrix_.to_numpy() - true)[np.triu_indices(len(true), 1)]
    made = fit.imputed_
    right = (
        (
            everything[made["item"].to_numpy(int), made["annotator"].to_numpy(int)]
            == made["label"].to_numpy(int)
        ).mean()
        if len(made)
        else math.nan
    )
    return {
        "imputed": float(len(made)),
        "imputed_right": float(right),
        "similarity_error": float(np.abs(off).mean()),
        "similarity_drift": float(off.mean()),
    }

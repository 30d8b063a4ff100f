"""Aggregate annotations in Parquet that need not fit in memory, on one machine or on a Dask cluster.

labels/part-*.parquet   item, label, its probability, the probability of every class, sorted by item
annotators.csv          as in `runs.aggregate`
summary.json            sizes, fit, class prior; written last, after all other files

Dawid-Skene alone, as in memory: EM to the posterior mode, and probabilities averaged over the parameters.
Dependence between annotators is not estimated: aggregate a sample of the items in memory for that.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probcrowd
from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.annotator_summary import RowPosterior, annotator_table, held_out
from probcrowd.inference.aggregation.e_step import Scores, Statistics
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.inference.out_of_core.buckets import load_bucket, write_probabilities
from probcrowd.inference.out_of_core.fit import fit_parquet
from probcrowd.models.priors import rows_base
from probcrowd.storage.files import replacing, write_json, write_table


def aggregate_files(
    path: Path,
    *,
    out: Path,
    prior: str = "accurate",
    gold: pd.Series | None = None,
    columns: dict[str, str] | None = None,
    duplicates: str = "error",
    work: Path | None = None,
    client: Any = None,
    max_iter: int = 1000,
    progress: bool = True,
) -> dict[str, Any]:
    """Aggregate the files, write the results above into `out`, and return the summary.

    Args:
        path: a Parquet file or a folder of them.
        columns: the names of columns by role: item, annotator, label, weight.
        gold: known classes by item, taken as certain.
        work: a folder for intermediate files, reused by the next run on the same files; default: a
            temporary one.
        client: a `distributed.Client` whose workers see the same files.

    Raises:
        ValueError: as `fit_parquet`.
    """

    def channel(cells: Cells) -> DirichletRows:
        class_prior, base = rows_base(prior, cells.num_classes, cells.num_labels)
        return DirichletRows(cells, base, ClassPrior(class_prior))

    out.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        **(columns or {}),
        "duplicates": duplicates,
        "work": work,
        "client": client,
        "max_iter": max_iter,
    }
    with fit_parquet(path, channel=channel, gold=gold, progress=progress, **options) as result:
        rows = channel(result.buckets.cells)
        statistics = result.buckets.e_step(result.scores).statistics
        means = rows.means(statistics)
        with replacing(out / "labels") as fresh:
            write_probabilities(result.buckets, result.scores, fresh, means=means, progress=progress)
        each = result.buckets.map(
            _held_out, range(result.buckets.num_buckets), result.buckets.folder, means.scores
        )
        table = annotator_table(
            RowPosterior(rows.cells, rows.base, statistics.counts),
            np.exp(result.scores.log_prior),
            reduce(add, each).counts,
        )
        table = table.set_axis(pd.Index(result.annotators, name="annotator"), axis=0)
        write_table(out / "annotators.csv", table)
        summary = {
            "model": "dawid-skene",
            "prior": prior,
            "annotations": result.buckets.num_rows,
            "items": result.buckets.num_items,
            "annotators": len(result.annotators),
            "classes": [str(name) for name in result.classes],
            "iterations": len(result.fit.objective),
            "passes": result.fit.passes,
            "converged": result.fit.converged,
            "log_posterior": float(result.fit.objective[-1]),
            "class_prior": {
                str(name): float(p)
                for name, p in zip(result.classes, np.exp(result.scores.log_prior), strict=True)
            },
            "annotators_probably_spamming": int((np.asarray(table["spammer"]) > 0.5).sum()),
            "version": probcrowd.__version__,
        }
    write_json(out / "summary.json", summary)
    return summary


def _held_out(number: int, folder: Path, scores: Scores) -> Statistics:
    return held_out(load_bucket(number, folder), scores)

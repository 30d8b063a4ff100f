"""Fit annotations in Parquet that need not fit in memory: buckets on disk, one pass over them per EM step.

    work/manifest.json    the inputs of the buckets, written last: without it they are incomplete
    work/buckets/         see buckets.py; during packing, also the scattered rows
    work/annotators.arrow, classes.arrow, cells.npy

Buckets of the same files (path, size, modification time) and the same arguments are reused; others are
rebuilt. Peak memory for 10**8 annotations of 2 * 10**7 items by 10**4 annotators: under 1 GB. Time is
linear in the number of annotations.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout
from pandas.util import hash_pandas_object

from probcrowd.data.table import Cells
from probcrowd.data.validation import check_option
from probcrowd.inference.aggregation.e_step import Scores
from probcrowd.inference.aggregation.em import Fit, fit_table
from probcrowd.inference.aggregation.m_step import AnnotatorModel
from probcrowd.inference.out_of_core.buckets import Buckets, Map, in_turn, read_batches, write_batches
from probcrowd.inference.out_of_core.pack import DUPLICATES, shuffle
from probcrowd.inference.out_of_core.parquet import Survey, survey
from probcrowd.inference.out_of_core.partition import Job
from probcrowd.storage.files import PARTIAL, replacing, write_json

_MANIFEST, _LOCK, _BUCKETS, _CELLS = "manifest.json", ".lock", "buckets", "cells.npy"
_IDS = "annotators", "classes"
_LAYOUT = 1


@dataclass(frozen=True)
class ParquetFit:
    """The result of EM. Close it, or use it in a `with` block, to remove temporary buckets."""

    fit: Fit
    buckets: Buckets
    temporary: TemporaryDirectory[str] | None = None

    @property
    def scores(self) -> Scores:
        """The log probabilities of the last counts, for `buckets.write_probabilities`."""
        return self.fit.scores

    @property
    def annotators(self) -> pd.Index:
        """The sorted ids of annotators."""
        return self.buckets.annotators

    @property
    def classes(self) -> pd.Index:
        """The sorted labels."""
        return self.buckets.classes

    def close(self) -> None:
        """Remove the buckets if their folder is temporary."""
        if self.temporary is not None:
            self.temporary.cleanup()

    def __enter__(self) -> ParquetFit:  # noqa: PYI034  (beartype takes Self only where it decorates the class)
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def fit_parquet(
    path: Path,
    *,
    channel: Callable[[Cells], AnnotatorModel],
    item: str | None = None,
    annotator: str | None = None,
    label: str | None = None,
    weight: str | None = None,
    gold: pd.Series | None = None,
    duplicates: str = "error",
    work: Path | None = None,
    client: Any = None,
    max_iter: int = 1000,
    tolerance: float = 1e-8,
    bucket_rows: int = 4_000_000,
    progress: bool = False,
) -> ParquetFit:
    """Run EM on the rows of a Parquet file or a folder of Parquet files.

    The fit equals that of the same rows in memory, up to rounding.

    Args:
        path: see `parquet.survey`. Items, annotators and labels are text, whole numbers or booleans.
        channel: builds the model from the cells, e.g. a `DirichletRows`.
        item, annotator, label, weight: names of columns; defaults as in `Annotations.from_frame`.
        gold: the known class of some items, by item id; ids that are not in the files are ignored.
        duplicates: what to do with repeated (item, annotator) pairs, as in `Annotations.from_frame`; "first"
            and "last" follow the order of the files.
        work: the folder for buckets: new, empty, or from an earlier fit; default: a temporary one. On a
            cluster all workers must see it.
        client: a `distributed.Client`; its workers do everything that reads rows.
        bucket_rows: about how many rows are in memory at once.

    Raises:
        ValueError: absent files or columns, missing or invalid values, repeated pairs, gold labels that no
            annotator used, or a `work` folder that holds other files or is in use.
    """
    check_option("duplicates", duplicates, DUPLICATES)
    if bucket_rows < 1:
        raise ValueError(f"bucket_rows must be at least 1, got {bucket_rows}")
    surveyed = survey(
        path, {"item": item, "annotator": annotator, "label": label, "weight": weight}, bucket_rows
    )
    temporary = None
    if work is None:
        temporary = TemporaryDirectory(prefix="probcrowd-")
        work = Path(temporary.name)
    try:
        buckets = _buckets(surveyed, work, gold, duplicates, bucket_rows, _map_of(client), progress)
        fit = fit_table(
            buckets, channel(buckets.cells), max_iter=max_iter, tolerance=tolerance, progress=progress
        )
        return ParquetFit(fit, buckets, temporary)
    except BaseException:
        if temporary is not None:
            temporary.cleanup()
        raise


def _map_of(client: Any) -> Map:
    if client is None:
        return in_turn
    from probcrowd.inference.out_of_core.dask import OnCluster

    return OnCluster(client)


def _buckets(
    surveyed: Survey,
    work: Path,
    gold: pd.Series | None,
    duplicates: str,
    bucket_rows: int,
    map: Map,
    progress: bool,
) -> Buckets:
    """Load the buckets in `work` if they match the inputs, or build them."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    known = {_MANIFEST, _LOCK, _BUCKETS, _CELLS, *(f"{name}.arrow" for name in _IDS)}
    unknown = sorted(
        file.name for file in work.iterdir() if file.name not in known and not file.name.endswith(PARTIAL)
    )
    if unknown:
        raise ValueError(f"{work} holds {', '.join(unknown[:3])}; pass a new or an empty folder as `work`")
    inputs = _inputs(surveyed, gold, duplicates, bucket_rows)
    try:
        with FileLock(work / _LOCK, timeout=0):
            if (buckets := _loaded(work, inputs, map)) is None:
                (work / _MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(work / _BUCKETS, ignore_errors=True)
                job = Job(
                    work / _BUCKETS,
                    surveyed.columns,
                    len(surveyed.pieces),
                    -(-surveyed.num_rows // bucket_rows),
                    duplicates,
                )
                buckets = shuffle(surveyed, job, gold=gold, map=map, progress=progress)
                _save(buckets, work, inputs)
            return buckets
    except Timeout as error:
        raise ValueError(
            f"another process is writing buckets in {work}; wait for it, or give another folder"
        ) from error


def _inputs(surveyed: Survey, gold: pd.Series | None, duplicates: str, bucket_rows: int) -> dict[str, Any]:
    """Return everything the buckets depend on, in the types that JSON preserves."""
    stats = [(str(file.resolve()), file.stat()) for file in surveyed.files]
    known = None if gold is None else hash_pandas_object(gold.dropna()).to_numpy()  # pyright: ignore[reportCallIssue]
    return {
        "layout": _LAYOUT,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        "columns": {role: [column.name, column.kind] for role, column in surveyed.columns.items()},
        "gold": None if known is None else hashlib.sha256(known.tobytes()).hexdigest(),
        "duplicates": duplicates,
        "bucket_rows": bucket_rows,
    }


def _save(buckets: Buckets, work: Path, inputs: dict[str, Any]) -> None:
    for name, ids in zip(_IDS, (buckets.annotators, buckets.classes), strict=True):
        with replacing(work / f"{name}.arrow") as path:
            write_batches(path, [pa.record_batch({name: pa.array(ids.tolist())})])
    with replacing(work / _CELLS) as path, path.open("wb") as file:
        np.save(file, buckets.cells.key)
    sizes = {name: getattr(buckets, name) for name in ("num_buckets", "num_rows", "num_items")}
    write_json(work / _MANIFEST, {"inputs": inputs, "sizes": sizes})


def _loaded(work: Path, inputs: dict[str, Any], map: Map) -> Buckets | None:
    """Load the buckets in `work` if they are complete and have these inputs."""
    if not (work / _MANIFEST).exists():
        return None
    manifest = json.loads((work / _MANIFEST).read_text())
    if manifest.get("inputs") != inputs:
        return None
    annotators, classes = (
        pd.Index(read_batches(work / f"{name}.arrow")[name].to_pandas(), name=name) for name in _IDS
    )
    annotator, label = np.divmod(np.load(work / _CELLS), len(classes))
    cells = Cells(annotator, label, len(annotators), len(classes), len(classes))
    return Buckets(work / _BUCKETS, cells, annotators, classes, map=map, **manifest["sizes"])

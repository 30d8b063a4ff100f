"""Time Dawid-Skene on annotations that stay on disk.

    python benchmarks/out_of_core.py [--annotations 1e8] [--folder DIR] [--workers 0] [--text]

Written first, in chunks: Parquet files with 5 labels of each item in 4 classes by 10,000 annotators whose
accuracies are 0.4 to 0.95, rows in random order over all files, item ids that look random, as int64 or as
text. Then another process fits, and reports seconds of each stage, seconds per pass and nanoseconds per
annotation and pass, the highest resident memory, and how far the accuracies are from the true ones.
--workers: fit on a Dask cluster of that many processes on this machine; the memory is then that of the client
alone.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.em import fit_table
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows, row_totals
from probcrowd.inference.aggregation.one_coin import right_counts
from probcrowd.inference.out_of_core.buckets import Map, in_turn, write_probabilities
from probcrowd.inference.out_of_core.dask import OnCluster
from probcrowd.inference.out_of_core.pack import shuffle
from probcrowd.inference.out_of_core.parquet import survey
from probcrowd.inference.out_of_core.partition import Job

CLASSES, LABELS, FILES, CHUNK = 4, 5, 8, 400_000


def accuracies(num_annotators: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.4, 0.95, num_annotators)


def make(folder: Path, num_items: int, num_annotators: int, text: bool) -> None:
    """Parquet files that share the rows of each chunk of items at random."""
    accuracy = accuracies(num_annotators)
    writers: list[pq.ParquetWriter] = []
    for first in range(0, num_items, CHUNK):
        chance = np.random.default_rng((2, first))
        item = np.arange(first, min(first + CHUNK, num_items))
        truth = chance.integers(0, CLASSES, len(item))
        step = chance.integers(1, num_annotators // LABELS, len(item))  # an annotator labels an item once
        annotator = (
            chance.integers(0, num_annotators, len(item))[:, None] + step[:, None] * np.arange(LABELS)
        ) % num_annotators
        wrong = (truth[:, None] + chance.integers(1, CLASSES, annotator.shape)) % CLASSES
        label = np.where(chance.random(annotator.shape) < accuracy[annotator], truth[:, None], wrong)
        ids = (
            np.repeat(item, LABELS).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(1)
        ).astype(np.int64)
        order = chance.permutation(annotator.size)
        columns = {"item": ids[order], "annotator": annotator.ravel()[order], "label": label.ravel()[order]}
        table = pa.table(columns)
        if text:
            table = pa.table({name: table[name].cast(pa.string()) for name in columns})
        bounds = np.linspace(0, len(order), FILES + 1).astype(int)
        for n in range(FILES):
            if len(writers) == n:
                writers.append(pq.ParquetWriter(folder / f"part-{n}.parquet", table.schema))
            writers[n].write_table(table.slice(bounds[n], bounds[n + 1] - bounds[n]))
    for writer in writers:
        writer.close()


def dawid_skene(cells: Cells) -> DirichletRows:
    """Maximum a posteriori under weak priors."""
    return DirichletRows(
        cells, np.full((CLASSES, CLASSES), 1.01) + np.eye(CLASSES), ClassPrior(np.full(CLASSES, 2.0))
    )


class Stopwatch:
    """A map that adds up the seconds of each function, and how often it was mapped."""

    def __init__(self, map: Map) -> None:
        self.map, self.calls = map, Counter[str]()
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]:
        begun = time.perf_counter()
        yield from self.map(function, parts, *shared)
        self.seconds[function.__name__] += time.perf_counter() - begun
        self.calls[function.__name__] += 1


def fit(source: Path, work: Path, map: Map, passes: int, bucket_rows: int) -> None:
    """Stage by stage what `fit_parquet` does, and the probabilities."""
    watch, begun = Stopwatch(map), time.perf_counter()
    found = survey(source, {"item": None, "annotator": None, "label": None, "weight": None}, bucket_rows)
    job = Job(work / "buckets", found.columns, len(found.pieces), -(-found.num_rows // bucket_rows), "error")
    buckets = shuffle(found, job, map=watch)
    made = time.perf_counter()
    result = fit_table(buckets, dawid_skene(buckets.cells), max_iter=passes)
    fitted = time.perf_counter()
    write_probabilities(buckets, result.scores, work / "probabilities")
    written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows, per_pass = buckets.num_rows, watch.seconds["e_step_bucket"] / watch.calls["e_step_bucket"]
    hits = right_counts(result.statistics.counts, buckets.cells) / row_totals(
        result.statistics.counts, buckets.cells
    ).sum(1)
    error = np.abs(hits - accuracies(len(hits))[buckets.annotators.astype(int)]).mean()
    print(
        f"{rows:,} annotations, {buckets.num_items:,} items, {len(buckets.annotators):,} annotators, "
        f"{buckets.num_buckets} buckets"
    )
    print(
        f"buckets        {made - begun:7.1f} s: scatter {watch.seconds['scatter']:.1f}, "
        f"pack {watch.seconds['pack_bucket']:.1f}"
    )
    print(
        f"fit            {fitted - made:7.1f} s: votes {watch.seconds['bucket_votes']:.1f}, "
        f"{result.passes} passes, converged: {result.converged}"
    )
    print(f"a pass         {per_pass:7.2f} s: {1e9 * per_pass / rows:.2f} ns per annotation")
    print(f"probabilities  {written - fitted:7.1f} s")
    print(f"peak memory    {peak:7.2f} GiB")
    print(f"accuracies are off by {error:.4f} on average")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=float, default=1e8)
    parser.add_argument("--annotators", type=int, default=10_000)
    parser.add_argument("--passes", type=int, default=100)
    parser.add_argument("--bucket-rows", type=float, default=4e6)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to put a temporary folder")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)  # the data: this is the process that fits
    chosen = parser.parse_args()
    if chosen.fit is None:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            (Path(folder) / "source").mkdir()
            begun = time.perf_counter()
            make(Path(folder) / "source", int(chosen.annotations) // LABELS, chosen.annotators, chosen.text)
            print(f"data           {time.perf_counter() - begun:7.1f} s", flush=True)
            subprocess.run([sys.executable, *sys.argv, "--fit", folder], check=True)
        return
    arguments = chosen.passes, int(chosen.bucket_rows)
    if not chosen.workers:
        fit(chosen.fit / "source", chosen.fit, in_turn, *arguments)
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=chosen.workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        fit(chosen.fit / "source", chosen.fit, OnCluster(client), *arguments)


if __name__ == "__main__":
    main()

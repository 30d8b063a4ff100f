r"""Annotations on disk in buckets of whole items; passes over them hold one bucket in memory at a time.

    bucket b = all rows of the items with hash(item id) mod B = b,
               packed (starts, cell, weight, gold), with the ids of its items
    counts(all) = counts(bucket 0) + counts(bucket 1) + ... + counts(bucket B - 1),    added in this order

A pass maps `e_step` over the buckets, one after the other or, with another `Map`, on a cluster, and adds the
results in the order of the buckets. The sum is therefore the same, bit for bit, for any number of workers, if
all have the same processor and number of cores. On disk a bucket takes 4 bytes per annotation (12 with
weights) and 8 per item (12 with gold), plus the ids. Memory: one bucket, which the system may drop, 8K bytes
per item of the bucket in the first pass, and a few tables of 8K bytes per cell. Nothing grows with the total
number of items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from probcrowd.data.table import Cells, Packed
from probcrowd.inference.aggregation.e_step import Expectation, Scores, Statistics, count, e_step
from probcrowd.inference.aggregation.m_step import Means, averaged_probabilities
from probcrowd.metrics.scores import predicted
from probcrowd.storage.files import replacing

_ARRAYS = "starts", "cell", "weight", "gold"


@runtime_checkable
class Map(Protocol):
    """Yield function(part, *shared) for every part, in the order of the parts.

    Functions are pickled by name, so that other processes can run them: no lambdas or closures.
    """

    def __call__(self, function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]: ...


def in_turn(function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]:
    """Process the parts one after the other in this process."""
    return (function(part, *shared) for part in parts)


@dataclass(frozen=True)
class Buckets:
    """Packed annotations in the files of a folder: a `Source`.

    annotators, classes: the sorted ids; the codes of the cells are positions in them.
    """

    folder: Path
    cells: Cells
    annotators: pd.Index
    classes: pd.Index
    num_buckets: int
    num_rows: int
    num_items: int
    map: Map = in_turn

    def start(self) -> Statistics:
        """Count the vote shares of all items."""
        return reduce(add, self._mapped(bucket_votes, self.cells))

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """Run one E step over all annotations."""
        return reduce(add, self._mapped(e_step_bucket, scores, hard))

    def _mapped(self, function: Callable[..., Any], *shared: Any) -> Iterator[Any]:
        return self.map(function, range(self.num_buckets), self.folder, *shared)


def write_probabilities(
    buckets: Buckets, scores: Scores, folder: Path, *, means: Means | None = None, progress: bool = False
) -> None:
    """Write the class probabilities of all items, one Parquet part per bucket, rows sorted by item.

    Columns: item, label (the most probable class; in a tie the first), probability, and p_<class> of each
    class. The parts are written beside `folder`, which gets its name when all are complete; a failure leaves
    nothing behind. Memory: 8 (2 K + 3) bytes per item of one bucket.

    means: posterior means given the counts of one pass with `scores`; probabilities are then averaged over
    the parameters (`inference.aggregation.averaging`).

    Raises:
        ValueError: `folder` exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; delete it, or give the name of a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as unfinished:
        unfinished.mkdir()
        done = buckets.map(
            write_part,
            range(buckets.num_buckets),
            buckets.folder,
            scores,
            means,
            buckets.cells,
            buckets.classes,
            unfinished,
        )
        for _ in tqdm(
            done,
            total=buckets.num_buckets,
            disable=not progress,
            desc="probabilities",
            unit="bucket",
            leave=False,
        ):
            pass


def save_bucket(number: int, folder: Path, packed: Packed, items: pa.Array) -> None:
    """Save the files of a bucket, each atomically."""
    for name in _ARRAYS:
        array = getattr(packed, name)
        if array is not None:
            with replacing(_file(folder, number, f"{name}.npy")) as path, path.open("wb") as file:
                np.save(file, array)
    with replacing(_file(folder, number, "items.arrow")) as path:
        write_batches(path, [pa.record_batch({"item": items})])


def load_bucket(number: int, folder: Path) -> Packed:
    """Load a bucket; its arrays stay on disk until they are read."""
    files = {name: _file(folder, number, f"{name}.npy") for name in _ARRAYS}
    # Copy on write: read-only arrays would need another compilation, and the files must not change
    return Packed(
        **{name: np.asarray(np.load(path, mmap_mode="c")) for name, path in files.items() if path.exists()}
    )


def load_items(number: int, folder: Path) -> pa.Array:
    """Load the sorted ids of the items of a bucket."""
    return read_batches(_file(folder, number, "items.arrow"))["item"].combine_chunks()


def e_step_bucket(number: int, folder: Path, scores: Scores, hard: bool) -> Expectation:
    """Run the E step over one bucket."""
    return e_step(load_bucket(number, folder), scores, hard=hard)


def bucket_votes(number: int, folder: Path, cells: Cells) -> Statistics:
    """Count the vote shares of one bucket."""
    packed = load_bucket(number, folder)
    return count(packed, packed.vote_shares(cells), len(cells))


def write_part(
    number: int,
    folder: Path,
    scores: Scores,
    means: Means | None,
    cells: Cells,
    classes: pd.Index,
    target: Path,
) -> None:
    """Write the class probabilities of the items of one bucket."""
    packed = load_bucket(number, folder)
    probabilities = np.zeros((packed.num_items, len(classes)))
    e_step(packed, scores, responsibilities=probabilities)
    if means is not None:
        probabilities = averaged_probabilities(packed, cells, probabilities, means)
    labels = pa.array(classes[predicted(probabilities)], from_pandas=True)
    columns = {"item": load_items(number, folder), "label": labels, "probability": probabilities.max(1)}
    columns |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(classes)}
    with replacing(target / f"part-{number:05d}.parquet") as path:
        pq.write_table(pa.table(columns), path)


def write_batches(path: Path, batches: Iterator[pa.RecordBatch] | Sequence[pa.RecordBatch]) -> None:
    """Write batches to an Arrow file: at least one, which may be empty."""
    batches = iter(batches)
    first = next(batches)
    with path.open("wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: Path, first: int = 0, step: int = 1) -> pa.Table:
    """Read the batches first, first + step, ... of an Arrow file."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches(
            [reader.get_batch(n) for n in range(first, reader.num_record_batches, step)], reader.schema
        )


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}-{name}"

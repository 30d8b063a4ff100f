r"""Annotations on disk in buckets of whole items, and passes over them that hold one bucket at a time.

    bucket b = all rows of the items with hash(item id) mod B = b, packed (starts, cell, weight, gold) with the ids of its items
    counts(all) = counts(bucket 0) + counts(bucket 1) + ... + counts(bucket B - 1),    added in this order

A pass maps `e_step` over the buckets, here one after the other or, by another `Map`, on a cluster, and adds
the results in the order of the buckets: the answer has the same bits however many workers there are, if all
have the same processor and number of cores. On disk a bucket takes 4 bytes per annotation (12 with weights)
and 8 per item (12 with gold) besides the ids. Memory: one bucket, which the system may drop, 8K bytes per
item of it at the first pass, and a few tables of 8K bytes per cell; nothing grows with the number of all
items.
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
    """function(part, *shared) of every part, in the order of the parts. Functions are found by name, so that other processes may run them."""

    def __call__(self, function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]: ...


def in_turn(function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]:
    """Process the parts one after the other in this process."""
    return (function(part, *shared) for part in parts)


@dataclass(frozen=True)
class Buckets:
    """Packed annotations in the files of a folder: a `Source`. annotators, classes: the sorted ids that the cells' codes point into."""

    folder: Path
    cells: Cells
    annotators: pd.Index
    classes: pd.Index
    num_buckets: int
    num_rows: int
    num_items: int
    map: Map = in_turn

    def start(self) -> Statistics:
        """The counts of the vote shares."""
        return reduce(add, self._mapped(bucket_votes, self.cells))

    def e_step(self, scores: Scores, *, hard: bool = False) -> Expectation:
        """A pass over all annotations."""
        return reduce(add, self._mapped(e_step_bucket, scores, hard))

    def _mapped(self, function: Callable[..., Any], *shared: Any) -> Iterator[Any]:
        return self.map(function, range(self.num_buckets), self.folder, *shared)


def write_probabilities(
    buckets: Buckets, scores: Scores, folder: Path, *, means: Means | None = None, progress: bool = False
) -> None:
    """A Parquet part per bucket with columns item, label (the most probable class, the first of equals), probability, and p_<class> of each class.

    The parts are written beside `folder`, which appears under its name when all are whole; a failure leaves
    nothing. Within a part, rows are sorted by item. Memory: 8 (2 K + 3) bytes per item of one bucket.

    means: posterior means given the counts that `scores` make; probabilities are then averaged over
    parameters (`inference.averaged`).

    Raises:
        ValueError: `folder` is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; delete it, or give the name of a new folder")
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
    """A bucket whose arrays stay on disk until they are read."""
    found = {name: _file(folder, number, f"{name}.npy") for name in _ARRAYS}
    # Copy on write: compiled code for arrays that may be written to is there already, and the files stay as they are
    return Packed(
        **{name: np.asarray(np.load(path, mmap_mode="c")) for name, path in found.items() if path.exists()}
    )


def load_items(number: int, folder: Path) -> pa.Array:
    """The sorted ids of the items of a bucket."""
    return read_batches(_file(folder, number, "items.arrow"))["item"].combine_chunks()


def e_step_bucket(number: int, folder: Path, scores: Scores, hard: bool) -> Expectation:
    """A pass over one bucket."""
    return e_step(load_bucket(number, folder), scores, hard=hard)


def bucket_votes(number: int, folder: Path, cells: Cells) -> Statistics:
    """The counts of the vote shares of one bucket."""
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
    """The probabilities of the items of one bucket."""
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
    """An Arrow file of at least one batch, which may be empty."""
    batches = iter(batches)
    first = next(batches)
    with path.open("wb") as file, pa.ipc.new_file(file, first.schema) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: Path, first: int = 0, step: int = 1) -> pa.Table:
    """The batches first, first + step, ... of an Arrow file."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches(
            [reader.get_batch(n) for n in range(first, reader.num_record_batches, step)], reader.schema
        )


def _file(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}-{name}"

"""Scatter the rows of a piece of the files to buckets, by the hash of their item.

    piece p  ->  file p:  batch 0 of bucket 0, batch 0 of bucket 1, ..., batch 1 of bucket 0, ...
                 and the (annotator, label) pairs that occur in it

Bucket b is therefore every B-th batch, starting with batch b. Known classes are scattered in the same way.
Memory: a batch of a million rows and its reordered copy, about 100 bytes per row with numbers as ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64
from pandas.util import hash_array

from probcrowd.data.files import some
from probcrowd.inference.out_of_core.buckets import read_batches, write_batches
from probcrowd.inference.out_of_core.parquet import Column, Piece, as_ids, batches, kind_of
from probcrowd.storage.files import replacing


@dataclass(frozen=True)
class Job:
    """Arguments shared by all tasks: where to write, the columns by role, the number of buckets."""

    folder: Path
    columns: dict[str, Column]
    num_pieces: int
    num_buckets: int
    duplicates: str

    @property
    def scattered(self) -> Path:
        """The folder of rows that are not packed yet."""
        return self.folder / "pieces"

    def rows_of(self, bucket: int) -> pa.Table:
        """Read the rows of a bucket, in the order of the pieces."""
        return pa.concat_tables(
            read_batches(self.file_of(piece), bucket, self.num_buckets) for piece in range(self.num_pieces)
        )

    def gold_of(self, bucket: int) -> pa.Table:
        """Read the gold labels of a bucket's items with their codes, -1 for labels that are not a class."""
        return read_batches(self.scattered / "gold.arrow", bucket, self.num_buckets)

    def file_of(self, piece: int) -> Path:
        """Return the file with the scattered rows of a piece."""
        return self.scattered / f"{piece:06d}.arrow"


def scatter(piece: Piece, job: Job) -> pa.Table:
    """Write the rows of a piece by bucket, and return the (annotator, label) pairs that occur in it."""
    pairs: list[pa.Table] = []

    def by_bucket() -> Iterator[pa.RecordBatch]:
        for batch in batches(piece, job.columns):
            pairs[:] = [distinct_pairs(*pairs, pa.Table.from_batches([batch.select(["annotator", "label"])]))]
            yield from _split(batch, job.num_buckets)

    with replacing(job.file_of(piece.number)) as path:
        write_batches(path, by_bucket())
    return pairs[0]


def scatter_gold(gold: pd.Series, job: Job, labels: pa.Array) -> None:
    """Write the known classes by bucket.

    Raises:
        ValueError: an item with two known classes, or ids or labels of another kind than in the files.
    """
    known = gold.dropna()
    repeated = known.index[known.index.duplicated()]
    if len(repeated):
        raise ValueError(f"items with more than one gold label: keep one each ({some(repeated)})")
    table = pa.Table.from_pandas(
        pd.DataFrame({"item": known.index, "label": known.array}), preserve_index=False
    )
    for role in ("item", "label"):
        values = table[role]
        if len(values) and kind_of(values.type) != job.columns[role].kind:
            raise ValueError(
                f"the {role}s of gold are {kind_of(values.type)}, those of the files "
                f"{job.columns[role].kind}; convert one of them"
            )
    items, classes = (
        as_ids(table[role].combine_chunks(), job.columns[role].kind) for role in ("item", "label")
    )
    batch = pa.record_batch({"item": items, "code": positions(classes, labels), "label": classes})
    write_batches(job.scattered / "gold.arrow", _split(batch, job.num_buckets))


def distinct_pairs(*tables: pa.Table) -> pa.Table:
    """Return each (annotator, label) pair once."""
    # Copied, because arrays received over a network may be misaligned in memory
    copied = pa.concat_tables(tables).combine_chunks()
    return copied.group_by(["annotator", "label"]).aggregate([])


def positions(values: pa.Array | pa.ChunkedArray, ids: pa.Array) -> Int64[np.ndarray, " n"]:
    """Return the position of each value among the ids, -1 if absent."""
    return pc.index_in(values, value_set=ids).fill_null(-1).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]


def bucket_of(ids: pa.Array, num_buckets: int) -> Int64[np.ndarray, " n"]:
    """Return the bucket of each item, from a hash that is the same in every process."""
    hashes = hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)  # pyright: ignore[reportCallIssue]
    return (hashes % np.uint64(num_buckets)).astype(np.int64)


def _split(batch: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    bucket = bucket_of(batch["item"], num_buckets)
    # NumPy sorts 16-bit integers in linear time
    narrow = bucket.astype(np.uint16) if num_buckets <= 2**16 else bucket
    order = np.argsort(narrow, kind="stable")
    batch = batch.take(pa.array(order))
    bounds = np.cumsum(np.bincount(bucket, minlength=num_buckets))
    return (batch.slice(low, high - low) for low, high in pairwise([0, *bounds.tolist()]))

r"""Build buckets from Parquet: scatter rows by the hash of their item, then pack each bucket.

    scatter   piece of a file  ->  its rows by bucket, and the (annotator, label) pairs that occur
    merge     pairs of all pieces  ->  annotators and classes, sorted, and the cells
    pack      a bucket's rows from all pieces  ->  sorted by item id, cell and weight  ->  saved

The bits of the buckets depend on the set of rows alone, not on their order or on the files, except where
`duplicates` retains the first or the last row of a pair in the order of the files. Every task may run twice,
or be killed and repeated. Time is linear except for sorting within buckets. On disk: about 24 bytes per
annotation with numbers as ids, removed after packing. Memory: about 120 bytes per row of the largest bucket
with numbers as ids, 150 with short text. All rows of an item are in one bucket, so an item with very many
rows makes its bucket large.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int64
from tqdm import tqdm

from probcrowd.data.files import some
from probcrowd.data.table import Cells, pack
from probcrowd.inference.out_of_core.buckets import Buckets, Map, in_turn, save_bucket
from probcrowd.inference.out_of_core.parquet import Survey
from probcrowd.inference.out_of_core.partition import Job, distinct_pairs, positions, scatter, scatter_gold

DUPLICATES = "error", "first", "last", "count", "share"


@dataclass(frozen=True)
class Ids:
    """The sorted annotators and labels, and the cells of their pairs."""

    annotators: pa.Array
    labels: pa.Array
    cells: Cells


def shuffle(
    surveyed: Survey, job: Job, *, gold: pd.Series | None = None, map: Map = in_turn, progress: bool = False
) -> Buckets:
    """Build the buckets of all rows in a folder that holds nothing else.

    Raises:
        ValueError: rows with missing or invalid values, repeated (item, annotator) pairs, or gold labels that
            no annotator used.
    """
    job.scattered.mkdir(parents=True, exist_ok=True)
    scattered = map(scatter, surveyed.pieces, job)
    pairs = tqdm(
        scattered, total=job.num_pieces, disable=not progress, desc="scatter", unit="piece", leave=False
    )
    ids = _ids_of(reduce(distinct_pairs, pairs))
    if gold is not None:
        scatter_gold(gold, job, ids.labels)
    packed = map(pack_bucket, range(job.num_buckets), job, ids, gold is not None)
    sizes = list(
        tqdm(packed, total=job.num_buckets, disable=not progress, desc="pack", unit="bucket", leave=False)
    )
    shutil.rmtree(job.scattered)
    num_rows, num_items = np.sum(sizes, 0).tolist()
    annotators, classes = (
        pd.Index(values.to_pandas(), name=name)
        for values, name in ((ids.annotators, "annotators"), (ids.labels, "classes"))
    )
    return Buckets(job.folder, ids.cells, annotators, classes, job.num_buckets, num_rows, num_items, map)


def pack_bucket(number: int, job: Job, ids: Ids, with_gold: bool) -> tuple[int, int]:
    """Pack and save a bucket; return its numbers of rows and items."""
    rows, num_labels = job.rows_of(number), ids.cells.num_labels
    num_pairs = ids.cells.num_annotators * num_labels
    items, item = _sorted_codes(rows["item"])
    code = (
        item * num_pairs
        + positions(rows["annotator"], ids.annotators) * num_labels
        + positions(rows["label"], ids.labels)
    )
    weight = rows["weight"].to_numpy() if "weight" in job.columns else None
    del rows, item
    if job.duplicates in ("first", "last"):
        retained = _one_per_pair(code // num_labels, job.duplicates == "last")
        code, weight = code[retained], None if weight is None else weight[retained]
    if weight is None:
        code.sort()
    else:
        order = np.lexsort((weight, code))
        code, weight = code[order], weight[order]
    item, key = np.divmod(code, num_pairs)
    if job.duplicates in ("error", "share"):
        repeated = np.diff(code // num_labels, prepend=-1) == 0
        if job.duplicates == "share" and repeated.any():
            size = np.bincount(np.cumsum(~repeated) - 1)
            weight = (1.0 if weight is None else weight) / np.repeat(size, size)
        elif repeated.any():
            _reject_repeated(
                items.take(pa.array(item[repeated])),
                ids.annotators.take(pa.array(key[repeated] // num_labels)),
            )
    gold = _gold_codes(job.gold_of(number), items) if with_gold else None
    save_bucket(number, job.folder, pack(item, key, ids.cells, len(items), weight=weight, gold=gold), items)
    return len(key), len(items)


def _ids_of(pairs: pa.Table) -> Ids:
    (annotators, annotator), (labels, label) = (_sorted_codes(pairs[role]) for role in ("annotator", "label"))
    annotator, label = np.divmod(np.sort(annotator * len(labels) + label), len(labels))
    return Ids(annotators, labels, Cells(annotator, label, len(annotators), len(labels), len(labels)))


def _sorted_codes(values: pa.ChunkedArray) -> tuple[pa.Array, Int64[np.ndarray, " n"]]:
    """Return the distinct values in order, and the position of each value among them."""
    encoded = values.combine_chunks().dictionary_encode()
    ids = encoded.dictionary.sort()
    return ids, positions(encoded.dictionary, ids)[encoded.indices.to_numpy()]


def _one_per_pair(pair: Int64[np.ndarray, " n"], last: bool) -> Int64[np.ndarray, " m"]:
    """Return the position of the first or the last row of each pair."""
    _, position = np.unique(pair[::-1] if last else pair, return_index=True)
    return len(pair) - 1 - position if last else position


def _reject_repeated(item: pa.Array, annotator: pa.Array) -> None:
    pairs = list(dict.fromkeys(zip(item[:6].to_pylist(), annotator[:6].to_pylist(), strict=True)))
    raise ValueError(
        "repeated (item, annotator) pairs; set duplicates='first', 'last', 'count' or 'share', or remove "
        f"rows ({len(item)} surplus rows in a part of the data: {some(pairs)})"
    )


def _gold_codes(gold: pa.Table, items: pa.Array) -> Int64[np.ndarray, " i"]:
    """Return the known class of each item, -1 if unknown; gold of other items is ignored."""
    position, code = positions(gold["item"], items), gold["code"].to_numpy()
    wrong = np.flatnonzero((position >= 0) & (code < 0))
    if len(wrong):
        examples = gold.take(pa.array(wrong[:6]))
        pairs = list(zip(examples["item"].to_pylist(), examples["label"].to_pylist(), strict=True))
        raise ValueError(
            f"gold contains labels that no annotator ever used: correct or remove them ({some(pairs)})"
        )
    codes = np.full(len(items), -1)
    codes[position[position >= 0]] = code[position >= 0]
    return codes

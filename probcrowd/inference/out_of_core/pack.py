r"""Parquet to buckets: rows are scattered by the hash of their item, then each bucket is packed by itself.

    scatter   piece of a file  ->  its rows by bucket, and the (annotator, label) pairs that occur
    merge     pairs of all pieces  ->  annotators and classes, sorted, and the cells
    pack      bucket: its rows in all pieces  ->  items sorted by id, rows within an item by cell and weight  ->  saved

So the bits of the buckets depend on the set of rows alone, not on their order nor on the files, except where
`duplicates` keeps the first or the last row of a pair: first in the order of the files. Every task may run
twice, or be killed and run again. Time is linear but for sorting within buckets. On disk, about 24 bytes per
annotation with numbers as ids, removed when all is packed. Memory: about 120 bytes per row of the largest
bucket with numbers as ids, 150 with short text. All rows of an item are in one bucket, so an item with very
many makes it large.
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
from probcrowd.inference.out_of_core.partition import Job, distinct_pairs, places, scatter, scatter_gold

DUPLICATES = "error", "first", "last", "count", "share"


@dataclass(frozen=True)
class Ids:
    """The sorted annotators and labels, and the cells of their pairs."""

    annotators: pa.Array
    labels: pa.Array
    cells: Cells


def shuffle(
    found: Survey, job: Job, *, gold: pd.Series | None = None, map: Map = in_turn, progress: bool = False
) -> Buckets:
    """The buckets of all rows, in a folder that holds nothing else.

    Raises:
        ValueError: rows with missing or unfit values, repeated (item, annotator) pairs, or gold that is no
            class.
    """
    job.scattered.mkdir(parents=True, exist_ok=True)
    scattered = map(scatter, found.pieces, job)
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
    room = ids.cells.num_annotators * num_labels
    items, item = _sorted_codes(rows["item"])
    code = (
        item * room
        + places(rows["annotator"], ids.annotators) * num_labels
        + places(rows["label"], ids.labels)
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
    item, key = np.divmod(code, room)
    if job.duplicates in ("error", "share"):
        again = np.diff(code // num_labels, prepend=-1) == 0
        if job.duplicates == "share" and again.any():
            size = np.bincount(np.cumsum(~again) - 1)
            weight = (1.0 if weight is None else weight) / np.repeat(size, size)
        elif again.any():
            _reject_repeated(
                items.take(pa.array(item[again])), ids.annotators.take(pa.array(key[again] // num_labels))
            )
    gold = _gold_codes(job.gold_of(number), items) if with_gold else None
    save_bucket(number, job.folder, pack(item, key, ids.cells, len(items), weight=weight, gold=gold), items)
    return len(key), len(items)


def _ids_of(pairs: pa.Table) -> Ids:
    (annotators, annotator), (labels, label) = (_sorted_codes(pairs[role]) for role in ("annotator", "label"))
    annotator, label = np.divmod(np.sort(annotator * len(labels) + label), len(labels))
    return Ids(annotators, labels, Cells(annotator, label, len(annotators), len(labels), len(labels)))


def _sorted_codes(values: pa.ChunkedArray) -> tuple[pa.Array, Int64[np.ndarray, " n"]]:
    """The distinct values in order, and the place of each value among them."""
    encoded = values.combine_chunks().dictionary_encode()
    ids = encoded.dictionary.sort()
    return ids, places(encoded.dictionary, ids)[encoded.indices.to_numpy()]


def _one_per_pair(pair: Int64[np.ndarray, " n"], last: bool) -> Int64[np.ndarray, " m"]:
    """The place of the first or the last row of each pair."""
    _, place = np.unique(pair[::-1] if last else pair, return_index=True)
    return len(pair) - 1 - place if last else place


def _reject_repeated(item: pa.Array, annotator: pa.Array) -> None:
    pairs = list(dict.fromkeys(zip(item[:6].to_pylist(), annotator[:6].to_pylist(), strict=True)))
    remedy = "set duplicates='first', 'last', 'count' or 'share', or remove rows"
    raise ValueError(
        f"repeated (item, annotator) pairs; {remedy} ({len(item)} rows too many in a part of the data: {some(pairs)})"
    )


def _gold_codes(gold: pa.Table, items: pa.Array) -> Int64[np.ndarray, " i"]:
    """The known class of each item, -1 if unknown. Gold of other items is ignored."""
    place, code = places(gold["item"], items), gold["code"].to_numpy()
    wrong = np.flatnonzero((place >= 0) & (code < 0))
    if len(wrong):
        found = gold.take(pa.array(wrong[:6]))
        pairs = list(zip(found["item"].to_pylist(), found["label"].to_pylist(), strict=True))
        raise ValueError(
            f"gold contains labels that no annotator ever used: correct or remove them ({some(pairs)})"
        )
    codes = np.full(len(items), -1)
    codes[place[place >= 0]] = code[place >= 0]
    return codes

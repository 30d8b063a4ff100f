"""Records of arrays that the compiled Gibbs sampler reads and writes, all of one memory layout."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.models.gibbs_blocks import CONFUSION, SPAM, GibbsBlocks
from probcrowd.models.model import Model


class Table(NamedTuple):
    """The rows of item i are first[i] .. first[i + 1] - 1; share: of each label in the item's votes; d is 0
    without features.
    """

    first: Int64[np.ndarray, " i+1"]
    cell: Int32[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]
    gold: Int64[np.ndarray, " i"]
    share: Float64[np.ndarray, "i l"]
    embedding: Float64[np.ndarray, "i d"]


class State(NamedTuple):
    """Counts given the true classes, agreement with the votes, logs of the parameters, and workspace;
    overwritten in place.

    counts[jl, k]: weight of the rows of cell jl (confusion matrix j, label l) whose item has class k.
    """

    class_count: Float64[np.ndarray, " k"]
    counts: Float64[np.ndarray, "jl k"]
    centre: Float64[np.ndarray, "k d"]
    agreement: Float64[np.ndarray, "k l"]
    log_class: Float64[np.ndarray, " k"]
    log_table: Float64[np.ndarray, "jl k"]
    log_coin: Float64[np.ndarray, "j 2"]
    log_spam: Float64[np.ndarray, "j l"]
    prototype: Float64[np.ndarray, "k d"]
    score: Float64[np.ndarray, " k"]
    pair: Float64[np.ndarray, " 2"]


class Retained(NamedTuple):
    """Draws of one chain, as logs except prototypes. total_probability: sum of p(truth | data, parameters)
    over sweeps after warm-up.
    """

    log_class: Float64[np.ndarray, "s k"]
    log_rows: Float64[np.ndarray, "s j k l"]
    log_coin: Float64[np.ndarray, "s j 2"]
    log_spam: Float64[np.ndarray, "s j l"]
    prototype: Float64[np.ndarray, "s k d"]
    log_likelihood: Float64[np.ndarray, " s"]
    agreement: Float64[np.ndarray, "s k l"]
    total_probability: Float64[np.ndarray, "i k"]


def make_table(model: Model, rows: Rows, embeddings: Float[np.ndarray, "i d"] | None) -> Table:
    """Return the data in the sampler's layout.

    Raises:
        ValueError: features missing, superfluous, not finite or of another number of items; codes out of
            range; rows not sorted by item.
    """
    if model.features != (embeddings is not None):
        raise ValueError(
            f"{model.name} {'needs embeddings of the items' if model.features else 'takes no embeddings'}"
        )
    if embeddings is None:
        embeddings = np.empty((rows.num_items, 0))
    if len(embeddings) != rows.num_items or not np.isfinite(embeddings).all():
        raise ValueError(
            "embeddings must be finite, one per item: "
            f"got shape {embeddings.shape} for {rows.num_items} items"
        )
    num_items, num_annotators, num_classes = rows.num_items, rows.num_annotators, rows.num_classes
    # Compiled code does not check indices
    for name, least, size in (
        ("item", 0, num_items),
        ("annotator", 0, num_annotators),
        ("label", 0, num_classes),
        ("gold", -1, num_classes),
    ):
        codes = getattr(rows, name)
        if ((codes < least) | (codes >= size)).any():
            raise ValueError(f"{name} codes outside {least} .. {size - 1}: {codes.min()} .. {codes.max()}")
    item, label = np.asarray(rows.item, np.int64), np.asarray(rows.label, np.int32)
    if (np.diff(item) < 0).any():
        raise ValueError("rows must be sorted by item, as `Rows.from_annotations` does")
    shared = "annotator" not in model.dims["confusion"]
    annotator = np.zeros_like(label) if shared else np.asarray(rows.annotator, np.int32)
    return Table(
        np.searchsorted(item, np.arange(rows.num_items + 1)),
        annotator * np.int32(rows.num_classes) + label,
        np.array(rows.weight, np.float64),
        np.array(rows.gold, np.int64),
        vote_shares(rows.vote_totals),
        np.array(embeddings, np.float64, order="C"),
    )


def allocate_draws(
    chains: int, draws: int, table: Table, blocks: GibbsBlocks, num_annotators: int
) -> Retained:
    """Return empty arrays for the draws of all chains."""
    num_items, num_classes = table.share.shape
    return Retained(
        np.empty((chains, draws, num_classes)),
        np.empty((chains, draws, *blocks.rows.shape)),
        np.empty((chains, draws, 0 if blocks.kind == CONFUSION else num_annotators, 2)),
        np.empty((chains, draws, num_annotators if blocks.kind == SPAM else 0, num_classes)),
        np.empty((chains, draws, num_classes, table.embedding.shape[1])),
        np.empty((chains, draws)),
        np.empty((chains, draws, num_classes, num_classes)),
        np.zeros((chains, num_items, num_classes)),
    )


def make_state(table: Table, blocks: GibbsBlocks, num_annotators: int) -> State:
    """Return a chain's state before true classes are counted; competence starts at the prior mean."""
    num_classes, dimension = table.share.shape[1], table.embedding.shape[1]
    tables = len(blocks.rows) if blocks.kind == CONFUSION else num_annotators
    return State(
        np.zeros(num_classes),
        np.zeros((tables * num_classes, num_classes)),
        np.zeros((num_classes, dimension)),
        np.zeros((num_classes, num_classes)),
        np.full(num_classes, -np.log(num_classes)),
        np.zeros((tables * num_classes, num_classes)),
        np.tile(np.log(blocks.coin / blocks.coin.sum()), (0 if blocks.kind == CONFUSION else tables, 1)),
        np.full((tables if blocks.kind == SPAM else 0, num_classes), -np.log(num_classes)),
        np.zeros((num_classes, dimension)),
        np.zeros(num_classes),
        np.zeros(2),
    )

"""What the compiled Gibbs sampler reads and writes, made from rows and priors: records of arrays, all of one memory layout."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.models.catalogue import MODELS, find_model
from probcrowd.models.priors import CoinPrior, Counts, DirichletPrior, SpamPrior

CONFUSION, COIN, SPAM = 0, 1, 2
_PRIORS = {
    "multinomial": DirichletPrior,
    "dawid_skene": DirichletPrior,
    "one_coin": CoinPrior,
    "mace": SpamPrior,
    "prototype_crowd": Counts,
}


class Table(NamedTuple):
    """The rows of item i are first[i] .. first[i + 1]; share is that of each label in its votes; without features d is 0."""

    first: Int64[np.ndarray, " i+1"]
    cell: Int32[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]
    gold: Int64[np.ndarray, " i"]
    share: Float64[np.ndarray, "i l"]
    embedding: Float64[np.ndarray, "i d"]


class Concentrations(NamedTuple):
    """kind: of parameters; rows: of confusion rows; coin: right and wrong, or honest and spamming; precision: tau. What a model lacks is empty."""

    kind: int
    class_prior: Float64[np.ndarray, " k"]
    rows: Float64[np.ndarray, "j k l"]
    coin: Float64[np.ndarray, " 2"]
    answers: float
    precision: float


class State(NamedTuple):
    """Counts given the labels, agreement with the votes, logs of the parameters, and room to compute; overwritten in place."""

    class_count: Float64[np.ndarray, " k"]
    said: Float64[np.ndarray, "jl k"]
    centre: Float64[np.ndarray, "k d"]
    agreement: Float64[np.ndarray, "k l"]
    log_class: Float64[np.ndarray, " k"]
    log_table: Float64[np.ndarray, "jl k"]
    log_coin: Float64[np.ndarray, "j 2"]
    log_spam: Float64[np.ndarray, "j l"]
    prototype: Float64[np.ndarray, "k d"]
    score: Float64[np.ndarray, " k"]
    pair: Float64[np.ndarray, " 2"]


class Kept(NamedTuple):
    """Draws of one chain; parameters but prototypes are logs. total_probability sums p(truth | data, parameters) over sweeps after the warm-up."""

    log_class: Float64[np.ndarray, "s k"]
    log_rows: Float64[np.ndarray, "s j k l"]
    log_coin: Float64[np.ndarray, "s j 2"]
    log_spam: Float64[np.ndarray, "s j l"]
    prototype: Float64[np.ndarray, "s k d"]
    log_likelihood: Float64[np.ndarray, " s"]
    agreement: Float64[np.ndarray, "s k l"]
    total_probability: Float64[np.ndarray, "i k"]


def make_concentrations(model: str, rows: Rows, prior: Any) -> Concentrations:
    """The prior in the sampler's terms."""
    if not find_model(model).conjugate:
        raise ValueError(
            f"{model} is not conjugate: Gibbs takes {', '.join(name for name, found in MODELS.items() if found.conjugate)}"
        )
    if not isinstance(prior, _PRIORS[model]):
        wanted = (
            "probcrowd.models.meta.prototype.Prior" if model == "prototype_crowd" else _PRIORS[model].__name__
        )
        raise TypeError(f"the prior of {model} is a {wanted}, got {type(prior).__name__}")
    num_classes = rows.num_classes
    no_rows, no_coin = np.empty((0, num_classes, num_classes)), np.ones(2)
    if isinstance(prior, SpamPrior):
        _check_positive(prior.honest, prior.spamming, prior.answers)
        coin = np.array([prior.honest, prior.spamming], float)
        return Concentrations(SPAM, np.ones(num_classes), no_rows, coin, float(prior.answers), 1.0)
    precision = 1.0
    if model == "prototype_crowd":
        precision = float(prior.precision)
        _check_positive(precision)
        prior = DirichletPrior.of_counts(prior, num_classes)
    if len(prior.class_prior) != num_classes:
        raise ValueError(f"the prior is for {len(prior.class_prior)} classes, the rows have {num_classes}")
    class_prior = np.array(prior.class_prior, float)
    if isinstance(prior, CoinPrior):
        _check_positive(prior.right, prior.wrong, *class_prior)
        return Concentrations(
            COIN, class_prior, no_rows, np.array([prior.right, prior.wrong], float), 1.0, 1.0
        )
    tables, given = 1 if model == "multinomial" else rows.num_annotators, prior.confusion.shape[:-2]
    if given not in ((), (tables,)) or (given and model == "multinomial"):
        raise ValueError(
            f"concentrations of shape {prior.confusion.shape} do not fit {model} with {rows.num_annotators} annotators"
        )
    confusion = np.array(
        np.broadcast_to(prior.confusion, (tables, num_classes, num_classes)), float, order="C"
    )
    return Concentrations(CONFUSION, class_prior, confusion, no_coin, 1.0, precision)


def make_table(model: str, rows: Rows, embeddings: Float[np.ndarray, "i d"] | None) -> Table:
    """The data in the sampler's layout."""
    features = find_model(model).features
    if features != (embeddings is not None):
        raise ValueError(
            f"{model} needs embeddings of the items" if features else f"{model} takes no embeddings"
        )
    if embeddings is None:
        embeddings = np.empty((rows.num_items, 0))
    if len(embeddings) != rows.num_items or not np.isfinite(embeddings).all():
        raise ValueError(
            f"embeddings must be finite, one per item: got shape {embeddings.shape} for {rows.num_items} items"
        )
    num_items, people, num_classes = rows.num_items, rows.num_annotators, rows.num_classes
    # Compiled code writes wherever a code points to
    for name, least, size in (
        ("item", 0, num_items),
        ("annotator", 0, people),
        ("label", 0, num_classes),
        ("gold", -1, num_classes),
    ):
        codes = getattr(rows, name)
        if ((codes < least) | (codes >= size)).any():
            raise ValueError(f"{name} codes outside {least} .. {size - 1}: {codes.min()} .. {codes.max()}")
    item, label = np.asarray(rows.item, np.int64), np.asarray(rows.label, np.int32)
    if (np.diff(item) < 0).any():
        raise ValueError("rows must be sorted by item, as `Rows.from_annotations` does")
    annotator = 0 if model == "multinomial" else np.asarray(rows.annotator, np.int32)
    return Table(
        np.searchsorted(item, np.arange(rows.num_items + 1)),
        annotator * np.int32(rows.num_classes) + label,
        np.array(rows.weight, np.float64),
        np.array(rows.gold, np.int64),
        vote_shares(rows.vote_totals),
        np.array(embeddings, np.float64, order="C"),
    )


def make_room(chains: int, draws: int, table: Table, prior: Concentrations, num_annotators: int) -> Kept:
    """Empty arrays for the draws of all chains."""
    num_items, num_classes = table.share.shape
    return Kept(
        np.empty((chains, draws, num_classes)),
        np.empty((chains, draws, *prior.rows.shape)),
        np.empty((chains, draws, 0 if prior.kind == CONFUSION else num_annotators, 2)),
        np.empty((chains, draws, num_annotators if prior.kind == SPAM else 0, num_classes)),
        np.empty((chains, draws, num_classes, table.embedding.shape[1])),
        np.empty((chains, draws)),
        np.empty((chains, draws, num_classes, num_classes)),
        np.zeros((chains, num_items, num_classes)),
    )


def make_state(table: Table, prior: Concentrations, num_annotators: int) -> State:
    """A chain before its first labelling is counted; spam is first told from knowledge by the prior's means."""
    num_classes, dimension = table.share.shape[1], table.embedding.shape[1]
    tables = len(prior.rows) if prior.kind == CONFUSION else num_annotators
    return State(
        np.zeros(num_classes),
        np.zeros((tables * num_classes, num_classes)),
        np.zeros((num_classes, dimension)),
        np.zeros((num_classes, num_classes)),
        np.full(num_classes, -np.log(num_classes)),
        np.zeros((tables * num_classes, num_classes)),
        np.tile(np.log(prior.coin / prior.coin.sum()), (0 if prior.kind == CONFUSION else tables, 1)),
        np.full((tables if prior.kind == SPAM else 0, num_classes), -np.log(num_classes)),
        np.zeros((num_classes, dimension)),
        np.zeros(num_classes),
        np.zeros(2),
    )


def _check_positive(*numbers: float) -> None:
    if not all(np.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"concentrations and precisions must be finite and > 0, got {min(numbers)}")

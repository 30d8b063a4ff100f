"""Which items a network is trained on, which are held out to choose an epoch by, and how well these are foretold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd.inputs import Items
from probcrowd.inference.crowd.network_output import Inputs, apply_network_to_all
from probcrowd.metrics.tensors import accuracy
from probcrowd.models.crowd.base import Channel

CLEARLY = 0.1  # share of all labels that other names of classes must gain
Judge = Callable[
    [nn.Module, Channel], Float64[np.ndarray, " b"]
]  # of every item that selects: how well it is foretold


@dataclass(frozen=True)
class Split:
    """rows, labels: those to train on, whose items are 0, 1, ... ; place: where these are in X. held, held_place: likewise, held out."""

    rows: Rows
    labels: AnnotationTensors
    place: Int[Tensor, " i"]
    held: AnnotationTensors
    held_place: Int[Tensor, " h"]


def split_of(table: Table, items: Items, held_share: float, seed: int, device: str) -> Split:
    """The items with labels, in the order of X whatever that of the table, of which a share, drawn by the seed, is held out.

    Raises:
        ValueError: items that X has not, or too few to hold any out.
    """
    labelled = np.unique(table.item)
    place = items.place(table.items[labelled])
    labelled, place = labelled[np.argsort(place)], np.sort(place)
    if not len(labelled):
        raise ValueError("there are no labels to learn from")
    count = math.ceil(held_share * len(labelled))
    if held_share and len(labelled) - count < 2:
        raise ValueError(
            f"{len(labelled)} items with labels are too few to hold any out: say selection='last'"
        )
    held = np.zeros(len(labelled), bool)
    held[np.random.default_rng([seed, 1]).permutation(len(labelled))[:count]] = True
    train_rows, held_rows = (_rows(table, labelled[part]) for part in (~held, held))
    places = [torch.from_numpy(place[part]).to(device) for part in (~held, held)]
    return Split(
        train_rows,
        AnnotationTensors.of(train_rows, device),
        places[0],
        AnnotationTensors.of(held_rows, device),
        places[1],
    )


def held_out_scores(
    network: nn.Module, channel: Channel, inputs: Inputs, labels: AnnotationTensors
) -> Float64[np.ndarray, " b"]:
    """log P(all labels of the item | x) of every item, in nats."""
    seen = apply_network_to_all(
        network, channel, inputs, torch.arange(len(labels.items), device=labels.items.device)
    )
    with torch.no_grad():
        return channel.item_log_likelihood(seen, labels).double().cpu().numpy()


def known_scores(
    network: nn.Module, channel: Channel, inputs: Items, truth: np.ndarray
) -> Float64[np.ndarray, " b"]:
    """Whether an item gets its class, of items whose class is known."""
    known = torch.from_numpy(np.flatnonzero(truth >= 0)).to(inputs.device)
    with torch.no_grad():
        log_truth = channel.log_truth(apply_network_to_all(network, channel, inputs, known))
        return accuracy(log_truth.double().cpu(), torch.from_numpy(truth[truth >= 0])).numpy()


def renamed(
    network: nn.Module, channel: Channel, inputs: Inputs, labels: AnnotationTensors, num_classes: int
) -> bool:
    """Whether the classes would be closer to what annotators call them under other names.

    Nothing but the start ties class k to label k: a term that is too strong can name classes anew, which no label that is held out would tell.
    """
    seen = apply_network_to_all(
        network, channel, inputs, torch.arange(len(labels.items), device=labels.items.device)
    )
    with torch.no_grad():
        agreement = (
            (channel.log_truth(seen).exp().double().T @ labels.votes(num_classes).double()).cpu().numpy()
        )
    best = agreement[linear_sum_assignment(-agreement)].sum()
    return bool(best > agreement.trace() + CLEARLY * agreement.sum())


def _rows(table: Table, items: np.ndarray) -> Rows:
    """The rows of those items, which become 0, 1, ..."""
    number = np.full(len(table.items), -1, np.int64)
    number[items] = np.arange(len(items))
    item = number[table.item]
    order = np.lexsort((table.label, table.annotator, item))
    order = order[item[order] >= 0]
    annotator, label, weight = (part[order] for part in (table.annotator, table.label, table.weights))
    gold = np.full(len(items), -1, np.int64)
    return Rows(item[order], annotator, label, weight, gold, len(table.annotators), len(table.classes))

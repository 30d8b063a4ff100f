"""Split labelled items into training and held-out sets, and score networks on items."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.network.inputs import Items
from probcrowd.inference.crowd.network_output import Inputs, apply_network_to_all
from probcrowd.metrics.tensors import accuracy
from probcrowd.models.crowd.base import Channel, NetworkOutput

MIN_TRAINED = 2  # items that must be left to train on
MIN_GAIN = 0.1  # share of all labels by which permuted classes must agree better to count as permuted
ItemScores = Callable[[nn.Module, Channel], Float64[np.ndarray, " b"]]  # one score per item, higher is better


@dataclass(frozen=True)
class LabelledItems:
    """Items 0, 1, ... with their labels. place: their positions in X; inputs: of those items, by number."""

    rows: Rows
    labels: AnnotationTensors
    place: Int[Tensor, " i"]
    inputs: Inputs


@dataclass(frozen=True)
class TrainingData:
    """Inputs and annotations of a fit; its labelled items in a training and a held-out set."""

    items: Items
    table: Table
    train: LabelledItems
    held_out: LabelledItems

    @property
    def ids(self) -> dict[str, pd.Index]:
        """The user's ids: items (all of X), annotators and classes."""
        ids = {"annotators": self.table.annotators, "classes": self.table.classes}
        return {"items": self.items.ids, **ids}

    @property
    def summary(self) -> tuple[Rows, dict[str, pd.Index], tuple[str, ...], tuple[int, ...]]:
        """The fields `rows`, `ids`, `columns` and `shape` of a `FittedNetwork`."""
        return self.train.rows, self.ids, self.items.columns, self.items.shape


def split_items(
    table: Table, items: Items, held_out_share: float, seed: int, device: str
) -> tuple[LabelledItems, LabelledItems]:
    """Split the labelled items into training and held-out sets.

    Items keep the order of X, whatever the order of the table; `seed` decides which are held out.

    Raises:
        ValueError: items that X lacks, no labels, or too few items to hold any out.
    """
    labelled = np.unique(table.item)
    place = items.place(table.items[labelled])
    labelled, place = labelled[np.argsort(place)], np.sort(place)
    if not len(labelled):
        raise ValueError("there are no labels to learn from")
    count = math.ceil(held_out_share * len(labelled))
    if held_out_share and len(labelled) - count < MIN_TRAINED:
        raise ValueError(f"{len(labelled)} labelled items are too few to hold any out: set selection='last'")
    held_out = np.zeros(len(labelled), bool)
    held_out[np.random.default_rng([seed, 1]).permutation(len(labelled))[:count]] = True

    def part(chosen: np.ndarray) -> LabelledItems:
        rows, at = _rows(table, labelled[chosen]), torch.from_numpy(place[chosen]).to(device)
        return LabelledItems(rows, AnnotationTensors.of(rows, device), at, lambda numbers: items(at[numbers]))

    return part(~held_out), part(held_out)


def held_out_scores(network: nn.Module, channel: Channel, part: LabelledItems) -> Float64[np.ndarray, " b"]:
    """log P(all labels of the item | x) by item, in nats."""
    with torch.no_grad():
        return channel.item_log_likelihood(_look(network, channel, part), part.labels).double().cpu().numpy()


def gold_scores(
    network: nn.Module, channel: Channel, items: Items, truth: Int[np.ndarray, " i"]
) -> Float64[np.ndarray, " b"]:
    """Accuracy (1 or 0; 1/m in a tie of m classes) by item with a known class."""
    known = np.flatnonzero(truth >= 0)
    with torch.no_grad():
        output = apply_network_to_all(network, channel, items, torch.from_numpy(known).to(items.device))
        log_truth = channel.log_truth(output).double().cpu()
    return accuracy(log_truth, torch.from_numpy(truth[known])).numpy()


def classes_permuted(network: nn.Module, channel: Channel, part: LabelledItems) -> bool:
    """Whether the network's classes agree clearly better with the votes under a permutation.

    Only the initial values tie class k to label k. A term that is too strong can permute the classes, and
    held-out labels cannot show it.
    """
    votes = part.labels.votes(part.rows.num_classes).double()
    with torch.no_grad():
        probabilities = channel.log_truth(_look(network, channel, part)).exp().double()
    agreement = (probabilities.T @ votes).cpu().numpy()
    best = agreement[linear_sum_assignment(-agreement)].sum()
    return bool(best > agreement.trace() + MIN_GAIN * agreement.sum())


def _look(network: nn.Module, channel: Channel, part: LabelledItems) -> NetworkOutput:
    return apply_network_to_all(network, channel, part.inputs, part.labels.items)


def _rows(table: Table, items: np.ndarray) -> Rows:
    """The rows of those items, renumbered 0, 1, ..."""
    number = np.full(len(table.items), -1, np.int64)
    number[items] = np.arange(len(items))
    item = number[table.item]
    order = np.lexsort((table.label, table.annotator, item))
    order = order[item[order] >= 0]
    annotator, label, weight = (part[order] for part in (table.annotator, table.label, table.weights))
    gold = np.full(len(items), -1, np.int64)
    return Rows(item[order], annotator, label, weight, gold, len(table.annotators), len(table.classes))

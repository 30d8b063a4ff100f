"""Splitting labelled items into training and held-out sets, and the scores that select an epoch."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from probcrowd.data.rows import Rows
from probcrowd.data.table import read_table
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.network.inputs import read_items
from probcrowd.estimators.network.split import LabelledItems, classes_permuted, gold_scores, split_items
from probcrowd.models.crowd.aggregated_labels import Targets


def table(items: int) -> pd.DataFrame:
    """Two labels per item, in reverse order of the items."""
    item = np.repeat(np.arange(items)[::-1], 2)
    return pd.DataFrame({"item": item, "annotator": np.tile([0, 1], items), "label": item % 2})


@pytest.mark.parametrize(
    ("items", "share", "held_out"), [(10, 0.1, 1), (11, 0.1, 2), (3, 0.1, 1), (4, 0.5, 2), (5, 0.0, 0)]
)
def test_the_share_of_held_out_items_is_rounded_up(items: int, share: float, held_out: int) -> None:
    X = read_items(np.zeros((items, 2)))
    train, held = split_items(read_table(table(items)), X, share, 0, "cpu")
    assert (len(train.place), len(held.place)) == (items - held_out, held_out)
    assert sorted([*train.place.tolist(), *held.place.tolist()]) == list(range(items))
    for part in (train, held):
        assert part.place.tolist() == sorted(part.place.tolist())  # the order of X
        assert part.rows.item.tolist() == np.repeat(np.arange(len(part.place)), 2).tolist()
        assert part.rows.label.tolist() == np.repeat(part.place.numpy() % 2, 2).tolist()


@pytest.mark.parametrize(("items", "share"), [(2, 0.1), (4, 0.7)])
def test_fewer_than_two_items_to_train_on_are_too_few(items: int, share: float) -> None:
    X, labels = read_items(np.zeros((items, 2))), read_table(table(items))
    with pytest.raises(
        ValueError, match=rf"^{items} labelled items are too few to hold any out: set selection"
    ):
        split_items(labels, X, share, 0, "cpu")
    assert len(split_items(labels, X, 0.0, 0, "cpu")[0].place) == items


def test_the_seed_decides_which_items_are_held_out() -> None:
    X, labels = read_items(np.zeros((40, 2))), read_table(table(40))
    held = [split_items(labels, X, 0.25, seed, "cpu")[1].place.tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


class Fixed(nn.Module):
    """A network that returns its inputs as logits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def swapped(share: float, items: int = 1000) -> tuple[LabelledItems, Targets]:
    """Items with one label each of two classes, where the network predicts the other class for that share of
    them."""
    label = np.arange(items) % 2
    rows = Rows(np.arange(items), np.zeros(items, int), label, np.ones(items), np.full(items, -1), 1, 2)
    labels = AnnotationTensors.of(rows)
    predicted = np.where(np.arange(items) < share * items, 1 - label, label)
    logits = torch.from_numpy(np.where(np.eye(2)[predicted] > 0, 50.0, -50.0)).float()
    part = LabelledItems(rows, labels, torch.arange(items), logits.__getitem__)
    return part, Targets(labels.votes(2), labels, 1)


@pytest.mark.parametrize(
    ("share", "permuted"), [(0.0, False), (0.5, False), (0.548, False), (0.552, True), (1, True)]
)
def test_classes_are_permuted_if_a_permutation_gains_a_tenth_of_all_labels(
    share: float, permuted: bool
) -> None:
    """With a share s of labels on the other class, swapping the names gains 2 s - 1 of them."""
    part, channel = swapped(share)
    assert classes_permuted(Fixed(), channel, part) is permuted


def test_gold_scores_are_accuracies_of_items_with_a_known_class() -> None:
    X = read_items(np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 3.0], [9.0, 1.0]]))
    _, channel = swapped(0.0, items=4)
    scores = gold_scores(Fixed(), channel, X, np.array([0, 0, 1, -1]))
    np.testing.assert_allclose(scores, [1, 0, 0.5])

"""Seconds of an epoch of every way to learn from crowds, and the ratio to the same network trained on hard labels: `python benchmarks/crowds.py`.

Of the size of LabelMe: 1,000 items of 512 features, 59 annotators, 2,547 labels of 8 classes, 128 hidden units, batches of 100 items as published. Methods take
turns, epoch by epoch, so that whatever else the machine does falls on all of them; medians over epochs after the first two.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.data.table import read_table
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd.inputs import read_items
from probcrowd.estimators.crowd.methods import METHODS, Task, make_channel
from probcrowd.estimators.crowd.split import split_of
from probcrowd.inference.crowd.training import TrainingOptions, train
from probcrowd.models.crowd.aggregated_labels import majority
from probcrowd.models.crowd.base import Channel, NetworkOutput

ITEMS, FEATURES, ANNOTATORS, LABELS, CLASSES = 1000, 512, 59, 2547, 8


class HardLabels(Channel):
    """Cross-entropy with a class per item, and nothing else."""

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        self.classes = classes

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Tensor:
        return nn.functional.nll_loss(seen.log_truth, self.classes[labels.items])

    def confusion(self) -> Tensor:
        raise NotImplementedError


def table(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features that decide the class, and labels of one to three annotators per item."""
    seen = rng.normal(size=(ITEMS, FEATURES))
    truth = (seen @ rng.normal(size=(FEATURES, CLASSES))).argmax(1)
    item = np.concatenate([np.arange(ITEMS), rng.integers(ITEMS, size=LABELS - ITEMS)])
    annotator = rng.integers(ANNOTATORS, size=LABELS)
    label = np.where(rng.random(LABELS) < 0.7, truth[item], rng.integers(CLASSES, size=LABELS))
    said = pd.DataFrame({"item": item, "annotator": annotator, "label": label})
    return pd.DataFrame(seen), said.drop_duplicates(["item", "annotator"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    seen, said = table(np.random.default_rng(0))
    items = read_items(seen)
    split = split_of(read_table(said), items, 0.0, 0, "cpu")
    task = Task(split.rows, split.labels, 128)
    votes = majority(split.labels.votes(CLASSES)).argmax(1)
    channels: dict[str, Channel] = {"hard labels": HardLabels(votes)}
    channels |= {name: make_channel(name, task, 0.8, None, {}) for name in METHODS}
    channels["geocrowdnet-f, running"] = make_channel("geocrowdnet-f", task, 0.8, None, {"running": True})
    networks = {}
    for name in channels:
        torch.manual_seed(0)
        networks[name] = nn.Sequential(
            nn.Linear(FEATURES, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, CLASSES)
        )
    seconds: dict[str, list[float]] = {name: [] for name in channels}
    for epoch in range(given.epochs):
        for name, channel in channels.items():
            begun = time.perf_counter()
            train(
                networks[name],
                channel,
                lambda places: items(split.place[places]),
                split.labels,
                TrainingOptions(epochs=1, batch=given.batch),
                seed=epoch,
            )
            seconds[name].append(time.perf_counter() - begun)
    base = np.array(seconds["hard labels"][2:])
    for name, found in seconds.items():
        ratio = np.median(np.array(found[2:]) / base)
        print(f"{name:24s} {np.median(found[2:]):.4f} s an epoch, {ratio:.2f} times hard labels")


if __name__ == "__main__":
    main()

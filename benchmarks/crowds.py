"""Time of an epoch for every way to learn from crowds, relative to training the same network on hard labels.

    python benchmarks/crowds.py

The size of LabelMe: 1,000 items of 512 features, 59 annotators, 2,547 labels of 8 classes, 128 hidden units,
batches of 100 items as published. Methods alternate epoch by epoch, so that other load on the machine affects
all of them alike; medians over epochs after the first two.
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
from probcrowd.estimators.crowd.methods import METHODS, Task, make_channel
from probcrowd.estimators.network.inputs import read_items
from probcrowd.estimators.network.split import split_items
from probcrowd.inference.crowd.training import TrainingOptions, train
from probcrowd.models.crowd.aggregated_labels import majority
from probcrowd.models.crowd.base import Channel, NetworkOutput

ITEMS, FEATURES, ANNOTATORS, LABELS, CLASSES = 1000, 512, 59, 2547, 8


class HardLabels(Channel):
    """Cross-entropy with one class per item; annotators never err."""

    def __init__(self, classes: Tensor) -> None:
        super().__init__()
        self.classes = classes

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Tensor:
        return nn.functional.nll_loss(output.log_truth, self.classes[labels.items])

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Tensor:
        return output.log_truth[labels.item]


def table(rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features that determine the class, and labels by one to three annotators per item."""
    features = rng.normal(size=(ITEMS, FEATURES))
    truth = (features @ rng.normal(size=(FEATURES, CLASSES))).argmax(1)
    item = np.concatenate([np.arange(ITEMS), rng.integers(ITEMS, size=LABELS - ITEMS)])
    annotator = rng.integers(ANNOTATORS, size=LABELS)
    label = np.where(rng.random(LABELS) < 0.7, truth[item], rng.integers(CLASSES, size=LABELS))
    labels = pd.DataFrame({"item": item, "annotator": annotator, "label": label})
    return pd.DataFrame(features), labels.drop_duplicates(["item", "annotator"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    features, labels = table(np.random.default_rng(0))
    items = read_items(features)
    split, _ = split_items(read_table(labels), items, 0.0, 0, "cpu")
    task = Task(split.rows, split.labels, 128)
    votes = majority(split.labels.votes(CLASSES)).argmax(1)
    channels: dict[str, Channel] = {"hard labels": HardLabels(votes)}
    channels |= {name: make_channel(name, task, 0.8, None, {}) for name in METHODS}
    channels["geocrowdnet-f, running"] = make_channel("geocrowdnet-f", task, 0.8, None, {"running": True})
    networks = {}
    for name, channel in channels.items():
        channel.head = "3"  # the network's last layer
        torch.manual_seed(0)
        networks[name] = nn.Sequential(
            nn.Linear(FEATURES, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, CLASSES)
        )
    seconds: dict[str, list[float]] = {name: [] for name in channels}
    for epoch in range(arguments.epochs):
        for name, channel in channels.items():
            start = time.perf_counter()
            train(
                networks[name],
                channel,
                split.inputs,
                split.labels,
                TrainingOptions(epochs=1, batch=arguments.batch),
                seed=epoch,
            )
            seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["hard labels"][2:])
    for name, times in seconds.items():
        ratio = np.median(np.array(times[2:]) / base)
        print(f"{name:24s} {np.median(times[2:]):.4f} s an epoch, {ratio:.2f} times hard labels")


if __name__ == "__main__":
    main()

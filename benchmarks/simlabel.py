"""Time of an epoch of SimLabel, relative to skipping missing labels: `python benchmarks/simlabel.py`.

Three sizes: the panel of the experiments (1,000 items of 64 features, 12 annotators, 10 classes, 79 %
missing), a large sparse crowd (5,000 items of 384 features, 203 annotators, 5 labels an item, 2 classes), and
small pictures before a convolutional encoder (1,000 of 3 x 32 x 32, 12 annotators, 79 % missing). Ways take
turns, epoch by epoch, so that whatever else the machine does falls on all of them; medians over epochs of the
ratio, after the first two.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.simlabel.options import ARCHITECTURES, make_predictor
from probcrowd.inference.crowd.training import TrainingOptions, train
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.encoders import small_encoder
from probcrowd.models.simlabel.imputed_labels import SoftLabelOptions
from probcrowd.models.simlabel.soft_labels import SoftLabels

WAYS = {
    "skip": SoftLabelOptions("skip"),
    "SimLabel": SoftLabelOptions(),
    "SimLabel + confidence": SoftLabelOptions(threshold=0.6),
    "imputed in the loss": SoftLabelOptions(threshold=0.6, imputed="loss"),
    "uniform weights": SoftLabelOptions("uniform"),
}
SIZES: dict[
    str, tuple[int, tuple[int, ...], int, int, float]
] = {  # items, inputs, annotators, classes, share of labels that are there
    "panel": (1000, (64,), 12, 10, 0.21),
    "crowd": (5000, (384,), 203, 2, 5 / 203),
    "pictures": (1000, (3, 32, 32), 12, 10, 0.21),
}


class AfterFirstEpoch(SoftLabels):
    """Soft labels that count every epoch as one later: nothing is imputed in the very first."""

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        super().start_epoch(epoch + 1, epochs, evaluate)


def convolutional(shape: tuple[int, ...]) -> nn.Module:
    """Two layers; a feature map of 32 x 8 x 8."""
    first = [nn.Conv2d(shape[0], 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))


def rows(items: int, annotators: int, classes: int, share: float, rng: np.random.Generator) -> Rows:
    """Labels of random pairs, at least one per item."""
    there = rng.random((items, annotators)) < share
    there[np.arange(items), rng.integers(annotators, size=items)] = True
    item, annotator = np.nonzero(there)
    truth = rng.integers(classes, size=items)
    label = np.where(rng.random(len(item)) < 0.7, truth[item], rng.integers(classes, size=len(item)))
    return Rows(item, annotator, label, np.ones(len(item)), np.full(items, -1), annotators, classes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument(
        "--architectures", nargs="*", default=[name for name in ARCHITECTURES if name != "pooled"]
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for size in arguments.sizes:
        items, shape, annotators, classes, share = SIZES[size]
        rng = np.random.default_rng(0)
        table = rows(items, annotators, classes, share, rng)
        inputs = torch.from_numpy(rng.normal(size=(items, *shape)).astype(np.float32))
        labels = AnnotationTensors.of(table)
        encoder: Callable[[tuple[int, ...]], nn.Module] = convolutional if len(shape) > 1 else small_encoder
        embedding = tuple(encoder(shape)(inputs[:2]).shape[1:])
        for architecture in arguments.architectures:
            fits = {}
            for way, options in WAYS.items():
                torch.manual_seed(0)
                predictor = make_predictor(architecture, embedding, annotators, classes, {})
                fits[way] = encoder(shape), AfterFirstEpoch(predictor, table, labels, options)
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for epoch in range(arguments.epochs):
                for way, (network, channel) in fits.items():
                    start = time.perf_counter()
                    train(
                        network,
                        channel,
                        inputs.__getitem__,
                        labels,
                        TrainingOptions(epochs=1, batch=arguments.batch),
                        seed=epoch,
                    )
                    seconds[way].append(time.perf_counter() - start)
            base = np.array(seconds["skip"][2:])
            for way, times in seconds.items():
                ratio = np.median(np.array(times[2:]) / base)
                print(
                    f"{size:9s} {architecture:7s} {way:22s} {1000 * np.median(times[2:]):7.1f} ms an epoch, "
                    f"{ratio:.2f} times skip",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Networks from items to embeddings, (n, *input) -> (n, d), or to logits of classes.

Any `torch.nn.Module` of that signature can replace them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Fully connected ReLU layers on flattened inputs."""

    def __init__(self, inputs: int, hidden: Sequence[int], dimension: int) -> None:
        sizes = [inputs, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], dimension))


class Conv4(nn.Sequential):
    """The standard few-shot network: four blocks of 3x3 convolution, batch normalisation, ReLU, 2x2 pooling.

    The output is flattened: d is channels * (side // 16)^2: 64 for 28 x 28 images, 1,600 for 84 x 84 ones. In
    training mode batch statistics cover all images of the step; with several processes, each normalises its
    own share.

    Raises:
        ValueError: images smaller than 16 x 16, which four poolings reduce to nothing.
    """

    def __init__(self, image_channels: int, side: int, channels: int = 64) -> None:
        if side < 16:
            raise ValueError(
                f"Conv4 halves images four times and needs at least 16 x 16 pixels, got {side} x {side}: "
                "use the MLP"
            )
        blocks: list[nn.Module] = []
        for inputs in (image_channels, channels, channels, channels):
            blocks += [
                nn.Conv2d(inputs, channels, 3, padding=1),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        super().__init__(*blocks, nn.Flatten())


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a classifier for inputs in any units: standardised by batch, 128 hidden units, dropout 0.5."""
    return nn.Sequential(*small_encoder(shape), nn.Linear(128, classes))


def small_encoder(shape: tuple[int, ...]) -> nn.Sequential:
    """Build the same network without its last layer: 128 outputs."""
    width = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(width, affine=False), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5)
    )


def embed(encoder: nn.Module, *groups: Tensor) -> list[Tensor]:
    """Embed groups of inputs (b, i, *input) as (b, i, d), all in one pass of the network."""
    inputs = torch.cat([group.flatten(0, 1) for group in groups])
    embeddings = encoder(inputs).split([group.shape[0] * group.shape[1] for group in groups])
    return [part.unflatten(0, group.shape[:2]) for part, group in zip(embeddings, groups, strict=True)]

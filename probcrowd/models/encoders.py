"""Networks that embed items, (n, *input) -> (n, d), or give logits of classes. Any `torch.nn.Module` with that signature does as well."""

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
    """Four blocks of 3x3 convolution, batch normalisation, ReLU and 2x2 pooling, then flattened: the usual few-shot network.

    d is channels * (side // 16)^2: 64 for 28 x 28 images, 1,600 for 84 x 84 ones. In training mode batch statistics are those of all
    images of the step; spread over processes, each process normalises its own share.

    Raises:
        ValueError: images smaller than 16 x 16, of which nothing is left after four poolings.
    """

    def __init__(self, image_channels: int, side: int, channels: int = 64) -> None:
        if side < 16:
            raise ValueError(
                f"Conv4 halves images four times and needs at least 16 x 16 pixels, got {side} x {side}: use the MLP"
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
    """One hidden layer for numbers in any units: standardised by batches, 128 units, dropout of one half."""
    return nn.Sequential(*small_encoder(shape), nn.Linear(128, classes))


def small_encoder(shape: tuple[int, ...]) -> nn.Sequential:
    """The same without the last layer: 128 units."""
    width = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(width, affine=False), nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.5)
    )


def embed(encoder: nn.Module, *groups: Tensor) -> list[Tensor]:
    """Embeddings (b, i, d) of groups of inputs (b, i, *input), all in one pass of the network."""
    together = torch.cat([group.flatten(0, 1) for group in groups])
    embeddings = encoder(together).split([group.shape[0] * group.shape[1] for group in groups])
    return [part.unflatten(0, group.shape[:2]) for part, group in zip(embeddings, groups, strict=True)]

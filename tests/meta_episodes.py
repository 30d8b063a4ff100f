"""Two small sources of episodes for the tests of the baselines: Gaussian classes and noisy images."""

from __future__ import annotations

from functools import cache

import torch

from probcrowd.data.images import ClassItems
from probcrowd.simulate.annotators import Mixture
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource, draw_episodes

SHAPE = EpisodeShape(ways=3, shots=4, queries=5, annotators=5)


@cache
def blobs(dimension: int = 6, distance: float = 2.0) -> EpisodeSource:
    """Twelve Gaussian classes of 15 items."""
    generator = torch.Generator().manual_seed(2)
    label = torch.arange(12).repeat_interleave(15)
    centres = distance * torch.randn(12, dimension, generator=generator)
    inputs = centres[label] + torch.randn(180, dimension, generator=generator)
    return EpisodeSource.of(
        ClassItems(inputs, label, torch.arange(12), torch.arange(12), tuple(map(str, range(12))))
    )


@cache
def images() -> EpisodeSource:
    """Six classes of 10 noisy images of 16 x 16."""
    generator = torch.Generator().manual_seed(3)
    label = torch.arange(6).repeat_interleave(10)
    inputs = torch.randn(6, 1, 16, 16, generator=generator)[label] + 0.3 * torch.randn(
        60, 1, 16, 16, generator=generator
    )
    return EpisodeSource.of(
        ClassItems(inputs, label, torch.arange(6), torch.arange(6), tuple(map(str, range(6))))
    )


def episodes_of(
    source: EpisodeSource, tasks: int = 4, shape: EpisodeShape = SHAPE, mixture: Mixture | None = None
) -> Episodes:
    return draw_episodes(source, shape, mixture or Mixture(), tasks, torch.Generator().manual_seed(5))

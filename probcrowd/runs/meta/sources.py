"""Split the classes of a run by its seed, and derive a random generator for every purpose.

No random state is carried from step to step: step t draws from generators seeded by (seed, purpose, t), the
same in every process and after every resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from probcrowd.data.image_sets import load_classes
from probcrowd.data.images import augment_classes, split_classes
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.simulate.episodes import EpisodeSource


@dataclass(frozen=True)
class Sources:
    """Disjoint classes for training, validation and target tasks, with their `names` in that order."""

    training: EpisodeSource
    validation: EpisodeSource
    target: EpisodeSource
    input_shape: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]


def class_sources(settings: MetaTraining, device: torch.device | str = "cpu") -> Sources:
    """Split the classes of a run by its seed; training classes include their warps."""
    items = load_classes(settings.data)
    sizes = (settings.classes.train, settings.classes.validation, settings.classes.target)
    training, validation, target = split_classes(items, sizes, generator_of(settings, "split"))
    names = training.names, validation.names, target.names
    if settings.classes.augment:
        training = augment_classes(training, settings.classes.augment, generator_of(settings, "augment"))
    return Sources(
        EpisodeSource.of(training, device),
        EpisodeSource.of(validation, device),
        EpisodeSource.of(target, device),
        items.input_shape,
        names,
    )


def generator_of(
    settings: MetaTraining, purpose: str, index: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a generator for one purpose and one index."""
    return torch.Generator(device).manual_seed(seed_of(settings, purpose, index))


def seed_of(settings: MetaTraining, purpose: str, index: int = 0) -> int:
    """Return 63 bits from (seed, purpose, index); a hash, so that neighbouring steps are unrelated."""
    digest = hashlib.sha256(f"{settings.seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

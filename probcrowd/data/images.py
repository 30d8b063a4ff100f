"""Items by class, the source of episodes: how they are selected, split, augmented, and read from a .npz file.

A file holds the arrays `inputs` (n, ...) and `labels` (n,). Images are uint8 (n, channels, height, width)
until an episode draws them; anything else is float32. `probcrowd.data.image_sets` reads named data sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate


@dataclass(frozen=True)
class ClassItems:
    """Items with their classes, numbered 0..g-1.

    Inputs of dtype uint8 are pixel values 0..255; others are floats. Two classes of one family never occur in
    the same episode (a digit and the same digit rotated). Classes of one group stay in the same part of every
    split.
    """

    inputs: Shaped[Tensor, "n ..."]
    label: Int[Tensor, " n"]
    family: Int[Tensor, " g"]
    group: Int[Tensor, " g"]
    names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one item: channels, height, width for images."""
        return tuple(self.inputs.shape[1:])

    @property
    def scale(self) -> float:
        """The divisor of the inputs before a network sees them: 255 for pixels."""
        return 255.0 if self.inputs.dtype == torch.uint8 else 1.0


def select_classes(source: ClassItems, classes: Sequence[int]) -> ClassItems:
    """Return the given classes only, renumbered in the given order."""
    chosen = torch.tensor(classes, dtype=torch.long)
    position = torch.full((len(source.names),), -1)
    position[chosen] = torch.arange(len(classes))
    retained = position[source.label] >= 0
    family, group = (
        torch.unique(values[chosen], return_inverse=True)[1] for values in (source.family, source.group)
    )
    return ClassItems(
        source.inputs[retained],
        position[source.label[retained]],
        family,
        group,
        tuple(source.names[index] for index in classes),
    )


def split_classes(source: ClassItems, sizes: Sequence[int], generator: torch.Generator) -> list[ClassItems]:
    """Split the classes at random into disjoint sets of the given sizes; groups stay together.

    Some classes may be left out. Orders of the groups are drawn uniformly until one fits the sizes.

    Raises:
        ValueError: `sizes` sum to more classes than there are, or a thousand draws did not fit.
    """
    total, num_groups = len(source.names), int(source.group.max()) + 1
    groups = [torch.nonzero(source.group == group).flatten().tolist() for group in range(num_groups)]
    bounds = torch.tensor([0, *sizes, total - sum(sizes)]).cumsum(0).tolist()
    for _ in range(1000 if sum(sizes) <= total else 0):
        order = [
            member
            for group in torch.randperm(num_groups, generator=generator).tolist()
            for member in groups[group]
        ]
        parts = [order[low:high] for low, high in pairwise(bounds)]
        held = [set(source.group[torch.tensor(part, dtype=torch.long)].tolist()) for part in parts]
        if sum(len(part) for part in held) == num_groups:  # no group is cut by a bound
            return [select_classes(source, part) for part in parts[:-1]]
    raise ValueError(
        f"{total} classes in {num_groups} inseparable groups cannot be split into {list(sizes)} classes"
    )


def augment_classes(source: ClassItems, warps: int, generator: torch.Generator) -> ClassItems:
    """Add `warps` warped versions of every class of images as further classes.

    A version is warped alike for all classes. A warp rotates by any angle, may mirror, shears and bends
    smoothly. It adds variety where classes are few.

    Raises:
        ValueError: the inputs are not images.
    """
    if len(source.input_shape) != 3 or source.inputs.dtype != torch.uint8:
        raise ValueError(
            "only images (channels, height, width) can be warped, "
            f"the inputs have shape {source.input_shape}: set augment = 0"
        )
    pixels = source.inputs.float()
    images = [source.inputs, *(_warp(pixels, generator) for _ in range(warps))]
    copies, size = warps + 1, len(source.names)
    return ClassItems(
        torch.cat(images),
        torch.cat([source.label + size * copy for copy in range(copies)]),
        torch.arange(size * copies),
        source.group.repeat(copies),
        tuple(f"{name}~{copy}" if copy else name for copy in range(copies) for name in source.names),
    )


def read_class_items(path: Path) -> ClassItems:
    """Read items by class from a .npz file.

    Raises:
        ValueError: no such file, missing arrays, or unsuitable inputs or labels.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    with np.load(path) as arrays:  # NumPy refuses pickled objects here
        if {"inputs", "labels"} - set(arrays.files):
            raise ValueError(
                f"{path} holds the arrays {sorted(arrays.files)}, needs 'inputs' (n, ...) and 'labels' (n,)"
            )
        inputs, labels = arrays["inputs"], arrays["labels"]
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels) or not len(labels):
        raise ValueError(
            f"{path}: inputs have shape {inputs.shape} and labels {labels.shape}; needs (n, ...) and (n,), "
            "n > 0"
        )
    if inputs.dtype != np.uint8:
        if inputs.dtype.kind not in "biuf":
            raise ValueError(f"{path}: inputs are {inputs.dtype}, needs uint8 pixels or real numbers")
        with np.errstate(over="ignore"):  # numbers that overflow become infinite and are reported below
            inputs = inputs.astype(np.float32)
        if not np.isfinite(inputs).all():
            rows = np.unique(np.nonzero(~np.isfinite(inputs))[0])[:5].tolist()
            raise ValueError(f"{path}: inputs hold NaN or infinite values, in rows {rows}")
    return by_class(inputs, labels)


def by_class(inputs: np.ndarray, labels: Sequence[object] | np.ndarray) -> ClassItems:
    """Number the classes in the order of their sorted labels, each a family and a group by itself.

    Raises:
        ValueError: missing labels.
    """
    codes, names = pd.factorize(np.asarray(labels), sort=True)
    if (codes < 0).any():
        raise ValueError(
            f"{int((codes < 0).sum())} items have no label, in rows "
            f"{np.flatnonzero(codes < 0)[:5].tolist()}: "
            "leave them out"
        )
    return ClassItems(
        torch.from_numpy(np.ascontiguousarray(inputs)),
        torch.from_numpy(codes),
        torch.arange(len(names)),
        torch.arange(len(names)),
        tuple(map(str, names)),
    )


def _warp(pixels: Float[Tensor, "n c h w"], generator: torch.Generator) -> Shaped[Tensor, "n c h w"]:
    angle = 2 * math.pi * float(torch.rand((), generator=generator))
    mirror = 1.0 if float(torch.rand((), generator=generator)) < 0.5 else -1.0
    turn = torch.tensor(
        [[math.cos(angle), -mirror * math.sin(angle)], [math.sin(angle), mirror * math.cos(angle)]]
    )
    matrix = turn @ (torch.eye(2) + 0.25 * torch.randn(2, 2, generator=generator))
    shift = 0.1 * torch.randn(2, 1, generator=generator)
    size = [1, 1, *pixels.shape[2:]]
    grid = affine_grid(torch.cat([matrix, shift], 1)[None], size, align_corners=False)
    bend = 0.15 * torch.randn(1, 2, 3, 3, generator=generator)
    grid = grid + interpolate(bend, size=size[2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    warped = grid_sample(pixels, grid.expand(len(pixels), -1, -1, -1), mode="bicubic", align_corners=False)
    return warped.clamp(0, 255).round().to(torch.uint8)

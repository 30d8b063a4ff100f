"""Images by class, for episodes: scikit-learn's digits, which are always there, or a folder of few-shot data sets.

The folder is named by the environment variable PROBCROWD_DATA; it holds `omniglot28`, `olivetti_faces` and `tiny_imagenet_fewshot`,
each with the files that the readers below open. Images stay uint8 until an episode draws them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ImageClasses:
    """Images with their classes, numbered 0..g-1.

    Classes of one family never meet in an episode (one digit and the same digit rotated). Classes of one kin are never parted by a split.
    """

    images: UInt8[Tensor, "n c h w"]
    label: Int[Tensor, " n"]
    family: Int[Tensor, " g"]
    kin: Int[Tensor, " g"]
    names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]


def load(name: str) -> ImageClasses:
    """The named data set.

    Raises:
        ValueError: an unknown name, or a set that needs PROBCROWD_DATA while that is not set or lacks the files.
    """
    if name not in READERS:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(sorted(READERS))}")
    return READERS[name]()


def select(source: ImageClasses, classes: Sequence[int]) -> ImageClasses:
    """The given classes only, renumbered in the given order."""
    position = torch.full((len(source.names),), -1)
    position[torch.tensor(classes)] = torch.arange(len(classes))
    kept = position[source.label] >= 0
    family, kin = (torch.unique(groups[torch.tensor(classes)], return_inverse=True)[1] for groups in (source.family, source.kin))
    return ImageClasses(source.images[kept], position[source.label[kept]], family, kin, tuple(source.names[index] for index in classes))


def split(source: ImageClasses, sizes: Sequence[int], generator: torch.Generator) -> list[ImageClasses]:
    """Disjoint random sets of classes of the given sizes; classes of one kin stay together.

    Raises:
        ValueError: the kins cannot be dealt out to these sizes.
    """
    kins = [torch.nonzero(source.kin == kin).flatten().tolist() for kin in range(int(source.kin.max()) + 1)]
    order = torch.randperm(len(kins), generator=generator).tolist()
    order.sort(key=lambda index: -len(kins[index]))  # large kins first, while there is room; the random order stands within a size
    parts: list[list[int]] = [[] for _ in sizes]
    for index in order:
        room = torch.tensor([size - len(part) for size, part in zip(sizes, parts, strict=True)])
        room = torch.where(room >= len(kins[index]), room, 0)
        if int(room.sum()) > 0:  # chance decides, in proportion to the room that is left
            parts[int(torch.multinomial(room.double(), 1, generator=generator))] += kins[index]
    if [len(part) for part in parts] != list(sizes):
        raise ValueError(f"{len(source.names)} classes in {len(kins)} inseparable groups cannot be split into {list(sizes)} classes")
    return [select(source, part) for part in parts]


def with_symmetries(source: ImageClasses) -> ImageClasses:
    """Each class in its eight rotations and reflections, as classes of one family: more variety where classes are few."""
    images = [torch.rot90(flipped, turns, (2, 3)) for flipped in (source.images, source.images.flip(3)) for turns in range(4)]
    size = len(source.names)
    return ImageClasses(
        torch.cat(images),
        torch.cat([source.label + size * index for index in range(8)]),
        source.kin.repeat(8),
        source.kin.repeat(8),
        tuple(f"{name}/{index}" for index in range(8) for name in source.names),
    )


def _by_class(images: np.ndarray, labels: Sequence[object] | np.ndarray) -> ImageClasses:
    codes, names = pd.factorize(np.asarray(labels), sort=True)
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8))
    return ImageClasses(
        tensor if tensor.dim() == 4 else tensor[:, None],
        torch.from_numpy(codes),
        torch.arange(len(names)),
        torch.arange(len(names)),
        tuple(map(str, names)),
    )


def _digits() -> ImageClasses:
    from sklearn.datasets import load_digits

    pixels, truth = (np.asarray(array) for array in load_digits(return_X_y=True))
    digits = _by_class(pixels.reshape(-1, 8, 8) * (255 / 16), truth)
    # 6 and 9 are one shape turned round
    return replace(digits, kin=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 6]))


def _folder(name: str) -> Path:
    root = os.environ.get("PROBCROWD_DATA")
    if not root:
        raise ValueError(f"the data set {name!r} is read from a folder: set PROBCROWD_DATA to it")
    if not (Path(root) / name).is_dir():
        raise ValueError(f"PROBCROWD_DATA has no folder {name!r}: the data set is not there")
    return Path(root) / name


def _omniglot() -> ImageClasses:
    """The 964 background characters."""
    folder = _folder("omniglot28")
    labels = pd.read_parquet(folder / "labels.parquet")
    background = (labels["set"] == "background").to_numpy()
    with np.load(folder / "images.npz") as arrays:
        return _by_class(arrays["X"][background], labels["class_id"].to_numpy()[background])


def _olivetti() -> ImageClasses:
    with np.load(_folder("olivetti_faces") / "images.npz") as arrays:
        return _by_class(arrays["X"], arrays["subject"])


def _tiny_imagenet() -> ImageClasses:
    from PIL import Image

    frame = pd.read_parquet(_folder("tiny_imagenet_fewshot") / "images.parquet")
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in frame["jpeg"]])
    return _by_class(images.transpose(0, 3, 1, 2), frame["wnid"].to_numpy())


READERS: dict[str, Callable[[], ImageClasses]] = {
    "digits": _digits,
    "omniglot": _omniglot,
    "olivetti": _olivetti,
    "tiny-imagenet": _tiny_imagenet,
}

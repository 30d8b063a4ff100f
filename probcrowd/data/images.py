"""Items by class, for episodes: scikit-learn's digits, which are always there, a folder of few-shot image sets, or the user's file.

The folder is named by the environment variable PROBCROWD_DATA; it holds `omniglot28`, `olivetti_faces`, `tiny_imagenet_fewshot` and `labelme`,
each with the files that the readers below open. A file is .npz with the arrays `inputs` (n, ...) and `labels` (n,). Images are uint8 (n,
channels, height, width) and stay so until an episode draws them; anything else is float32, used as it is.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

CLUSTERS, SMALLEST_CLUSTER = 48, 16


@dataclass(frozen=True)
class ClassItems:
    """Items with their classes, numbered 0..g-1. Inputs of dtype uint8 are pixel values 0..255; others are floats.

    Classes of one family never meet in an episode (one digit and the same digit rotated). Classes of one kin are never parted by a split.
    """

    inputs: Shaped[Tensor, "n ..."]
    label: Int[Tensor, " n"]
    family: Int[Tensor, " g"]
    kin: Int[Tensor, " g"]
    names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one item: channels, height, width for images."""
        return tuple(self.inputs.shape[1:])

    @property
    def scale(self) -> float:
        """What inputs are divided by before a network sees them: 255 for pixels."""
        return 255.0 if self.inputs.dtype == torch.uint8 else 1.0


def load(name: str) -> ClassItems:
    """The named data set, or that in a .npz file.

    Raises:
        ValueError: an unknown name, a set that needs PROBCROWD_DATA while that is not set or lacks the files, or an unsuitable file.
    """
    if name.endswith(".npz"):
        return _file(Path(name))
    if name not in READERS:
        raise ValueError(
            f"unknown data set {name!r}: choose one of {', '.join(sorted(READERS))}, or give the path of a .npz file"
        )
    return READERS[name]()


def select(source: ClassItems, classes: Sequence[int]) -> ClassItems:
    """The given classes only, renumbered in the given order."""
    chosen = torch.tensor(classes, dtype=torch.long)
    position = torch.full((len(source.names),), -1)
    position[chosen] = torch.arange(len(classes))
    kept = position[source.label] >= 0
    family, kin = (
        torch.unique(groups[chosen], return_inverse=True)[1] for groups in (source.family, source.kin)
    )
    return ClassItems(
        source.inputs[kept],
        position[source.label[kept]],
        family,
        kin,
        tuple(source.names[index] for index in classes),
    )


def split(source: ClassItems, sizes: Sequence[int], generator: torch.Generator) -> list[ClassItems]:
    """Disjoint random sets of classes of the given sizes, which may leave some out; classes of one kin stay together.

    Every way to deal the kins out is as likely as its order of drawing: one that does not fit is drawn anew.

    Raises:
        ValueError: more classes are asked for than there are, or a thousand draws did not fit.
    """
    total, kins = (
        len(source.names),
        [torch.nonzero(source.kin == kin).flatten().tolist() for kin in range(int(source.kin.max()) + 1)],
    )
    bounds = torch.tensor([0, *sizes, total - sum(sizes)]).cumsum(0).tolist()
    for _ in range(1000 if sum(sizes) <= total else 0):
        order = [
            member for kin in torch.randperm(len(kins), generator=generator).tolist() for member in kins[kin]
        ]
        parts = [order[low:high] for low, high in pairwise(bounds)]
        held = [set(source.kin[torch.tensor(part, dtype=torch.long)].tolist()) for part in parts]
        if sum(len(kin) for kin in held) == len(kins):  # no kin is cut by a bound
            return [select(source, part) for part in parts[:-1]]
    raise ValueError(
        f"{total} classes in {len(kins)} inseparable groups cannot be split into {list(sizes)} classes"
    )


def augmented(source: ClassItems, warps: int, generator: torch.Generator) -> ClassItems:
    """The classes of images, and each of them `warps` times more under a warp that is drawn once per class: more variety where
    classes are few. A warp turns by any angle, may mirror, shears, and bends smoothly.

    Raises:
        ValueError: the inputs are not images.
    """
    if len(source.input_shape) != 3 or source.inputs.dtype != torch.uint8:
        raise ValueError(
            f"only images (channels, height, width) can be warped, the inputs have shape {source.input_shape}: set augment = 0"
        )
    pixels = source.inputs.float()
    images = [source.inputs, *(_warp(pixels, generator) for _ in range(warps))]
    copies, size = warps + 1, len(source.names)
    return ClassItems(
        torch.cat(images),
        torch.cat([source.label + size * copy for copy in range(copies)]),
        torch.arange(size * copies),
        source.kin.repeat(copies),
        tuple(f"{name}~{copy}" if copy else name for copy in range(copies) for name in source.names),
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


def _file(path: Path) -> ClassItems:
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
            f"{path}: inputs have shape {inputs.shape} and labels {labels.shape}; needs (n, ...) and (n,), n > 0"
        )
    if inputs.dtype != np.uint8:
        if inputs.dtype.kind not in "biuf":
            raise ValueError(f"{path}: inputs are {inputs.dtype}, needs uint8 pixels or real numbers")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is named below
            inputs = inputs.astype(np.float32)
        if not np.isfinite(inputs).all():
            raise ValueError(
                f"{path}: inputs hold NaN or infinite values, in rows {np.unique(np.nonzero(~np.isfinite(inputs))[0])[:5].tolist()}"
            )
    return _by_class(inputs, labels)


def _by_class(inputs: np.ndarray, labels: Sequence[object] | np.ndarray) -> ClassItems:
    codes, names = pd.factorize(np.asarray(labels), sort=True)
    if (codes < 0).any():
        raise ValueError(
            f"{int((codes < 0).sum())} items have no label, in rows {np.flatnonzero(codes < 0)[:5].tolist()}: leave them out"
        )
    return ClassItems(
        torch.from_numpy(np.ascontiguousarray(inputs)),
        torch.from_numpy(codes),
        torch.arange(len(names)),
        torch.arange(len(names)),
        tuple(map(str, names)),
    )


def _digits() -> ClassItems:
    from sklearn.datasets import load_digits

    pixels, truth = (np.asarray(array) for array in load_digits(return_X_y=True))
    digits = _by_class((pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8), truth)
    # 6 and 9 are one shape turned round
    return replace(digits, kin=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 6]))


def _folder(name: str) -> Path:
    root = os.environ.get("PROBCROWD_DATA")
    if not root:
        raise ValueError(
            f"this data set is read from a folder {name!r}: set PROBCROWD_DATA to the folder above it"
        )
    if not (Path(root) / name).is_dir():
        raise ValueError(f"PROBCROWD_DATA has no folder {name!r}: the data set is not there")
    return Path(root) / name


def _omniglot() -> ClassItems:
    """The 964 background characters."""
    folder = _folder("omniglot28")
    labels = pd.read_parquet(folder / "labels.parquet")
    background = (labels["set"] == "background").to_numpy()
    with np.load(folder / "images.npz") as arrays:
        return _by_class(arrays["X"][background][:, None], labels["class_id"].to_numpy()[background])


def _olivetti() -> ClassItems:
    with np.load(_folder("olivetti_faces") / "images.npz") as arrays:
        return _by_class(arrays["X"][:, None], arrays["subject"])


def _tiny_imagenet() -> ClassItems:
    from PIL import Image

    frame = pd.read_parquet(_folder("tiny_imagenet_fewshot") / "images.parquet")
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in frame["jpeg"]])
    return _by_class(images.transpose(0, 3, 1, 2), frame["wnid"].to_numpy())


@dataclass(frozen=True)
class LabelMe:
    """Features of all images, their true classes, what 59 annotators said of some (-1: nothing), and what an image is for.

    part: "support" for the annotated images, "source" for the 500 that are for validation and half of those for testing, "query" for the other half.
    """

    features: Float[np.ndarray, "n d"]
    truth: Int[np.ndarray, " n"]
    said: Int[np.ndarray, "n j"]
    part: Shaped[np.ndarray, " n"]


@cache
def label_me() -> LabelMe:
    """The LabelMe images of Rodrigues & Pereira (2018); features are centred on the source images, with a mean variance of 1."""
    folder = _folder("labelme")
    labels, gold, order = (
        *(pd.read_parquet(folder / f"{name}.parquet") for name in ("annotations", "gold")),
        pd.read_csv(folder / "tasks.csv"),
    )
    tasks = pd.Index(order["task"])
    annotator, names = pd.factorize(labels["worker"], sort=True)
    said = np.full((len(tasks), len(names)), -1)
    said[tasks.get_indexer(pd.Index(labels["task"])), annotator] = labels["label"].to_numpy()
    truth = gold["label"].to_numpy()[pd.Index(gold["task"]).get_indexer(tasks)]
    part = np.array(
        [{"train": "support", "valid": "source", "test": "query"}[name] for name in order["split"]], object
    )
    tests = np.flatnonzero(part == "query")
    part[np.random.default_rng(0).permutation(tests)[: len(tests) // 2]] = "source"
    features = np.load(folder / "features.npy").astype(np.float32)
    source = features[part == "source"]
    return LabelMe(
        (features - source.mean(0)) / np.sqrt(source.var(0).mean()), truth.astype(np.int64), said, part
    )


def _label_me_clusters() -> ClassItems:
    """Clusters of LabelMe's source images, for want of classes that anybody named: `CLUSTERS` by k-means, less those that are too small."""
    from sklearn.cluster import KMeans

    images = label_me()
    source = images.features[images.part == "source"]
    model: Any = KMeans(CLUSTERS, random_state=0).set_params(n_init=4)
    cluster = model.fit_predict(source)
    large = np.flatnonzero(np.bincount(cluster) >= SMALLEST_CLUSTER)
    kept = np.isin(cluster, large)
    return _by_class(source[kept], cluster[kept])


READERS: dict[str, Callable[[], ClassItems]] = {
    "digits": _digits,
    "omniglot": _omniglot,
    "olivetti": _olivetti,
    "tiny-imagenet": _tiny_imagenet,
    "labelme": _label_me_clusters,
}

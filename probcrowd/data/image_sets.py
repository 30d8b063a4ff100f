"""Data sets of items by class: scikit-learn's digits, few-shot image sets in a folder, or the user's file.

The environment variable PROBCROWD_DATA names the folder. It holds `omniglot28`, `olivetti_faces`,
`tiny_imagenet_fewshot` and `labelme`, each with the files that the readers below open. The digits come with
scikit-learn.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped

from probcrowd.data.images import ClassItems, by_class, read_class_items
from probcrowd.data.validation import find_name

CLUSTERS, SMALLEST_CLUSTER = 48, 16  # of LabelMe's source images, which have no other classes


def load_classes(name: str) -> ClassItems:
    """Load a data set by name, or from a .npz file.

    Raises:
        ValueError: an unknown name, PROBCROWD_DATA not set or without the files of the set, or an unsuitable
            file.
    """
    if name.endswith(".npz"):
        return read_class_items(Path(name))
    return READERS[find_name("data set (or path of a .npz file)", name, sorted(READERS))]()


def _digits() -> ClassItems:
    from sklearn.datasets import load_digits

    pixels, truth = (np.asarray(array) for array in load_digits(return_X_y=True))
    digits = by_class((pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8), truth)
    # 6 and 9 are rotations of each other
    return replace(digits, group=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 6]))


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
    """Read the 964 background characters."""
    folder = _folder("omniglot28")
    labels = pd.read_parquet(folder / "labels.parquet")
    background = (labels["set"] == "background").to_numpy()
    with np.load(folder / "images.npz") as arrays:
        return by_class(arrays["X"][background][:, None], labels["class_id"].to_numpy()[background])


def _olivetti() -> ClassItems:
    with np.load(_folder("olivetti_faces") / "images.npz") as arrays:
        return by_class(arrays["X"][:, None], arrays["subject"])


def _tiny_imagenet() -> ClassItems:
    from PIL import Image

    frame = pd.read_parquet(_folder("tiny_imagenet_fewshot") / "images.parquet")
    images = np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in frame["jpeg"]])
    return by_class(images.transpose(0, 3, 1, 2), frame["wnid"].to_numpy())


@dataclass(frozen=True)
class LabelMe:
    """Features of all images, true classes, labels of 59 annotators (-1: none), and each image's part.

    part: "support" for the annotated images, "source" for the 500 validation images and half of the test
    images, "query" for the other half.
    """

    features: Float[np.ndarray, "n d"]
    truth: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, "n j"]
    part: Shaped[np.ndarray, " n"]


@cache
def label_me() -> LabelMe:
    """Read the LabelMe images of Rodrigues & Pereira (2018).

    Features are centred on the source images, where their mean variance is 1.
    """
    folder = _folder("labelme")
    annotations, gold = (pd.read_parquet(folder / f"{name}.parquet") for name in ("annotations", "gold"))
    order = pd.read_csv(folder / "tasks.csv")
    tasks = pd.Index(order["task"])
    annotator, names = pd.factorize(annotations["worker"], sort=True)
    labels = np.full((len(tasks), len(names)), -1)
    labels[tasks.get_indexer(pd.Index(annotations["task"])), annotator] = annotations["label"].to_numpy()
    truth = gold["label"].to_numpy()[pd.Index(gold["task"]).get_indexer(tasks)]
    part = np.array(
        [{"train": "support", "valid": "source", "test": "query"}[name] for name in order["split"]], object
    )
    tests = np.flatnonzero(part == "query")
    part[np.random.default_rng(0).permutation(tests)[: len(tests) // 2]] = "source"
    features = np.load(folder / "features.npy").astype(np.float32)
    source = features[part == "source"]
    return LabelMe(
        (features - source.mean(0)) / np.sqrt(source.var(0).mean()), truth.astype(np.int64), labels, part
    )


def _label_me_clusters() -> ClassItems:
    """Return k-means clusters of LabelMe's source images as classes; small clusters are left out."""
    from sklearn.cluster import KMeans

    images = label_me()
    source = images.features[images.part == "source"]
    model: Any = KMeans(CLUSTERS, random_state=0).set_params(n_init=4)
    cluster = model.fit_predict(source)
    large = np.flatnonzero(np.bincount(cluster) >= SMALLEST_CLUSTER)
    retained = np.isin(cluster, large)
    return by_class(source[retained], cluster[retained])


READERS: dict[str, Callable[[], ClassItems]] = {
    "digits": _digits,
    "omniglot": _omniglot,
    "olivetti": _olivetti,
    "tiny-imagenet": _tiny_imagenet,
    "labelme": _label_me_clusters,
}

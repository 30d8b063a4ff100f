"""Annotators' confusion matrices, from a short description, and labels drawn from them.

confusion[j, k, l] = P(annotator j gives label l | the true class is k); rows sum to 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64

_MAX_CELLS, _CHUNK = 5 * 10**7, 100_000

Description = int | Sequence[Any] | np.ndarray | Mapping[Any, Any] | pd.DataFrame


def uniform_errors(accuracy: Float[np.ndarray, "..."], num_classes: int) -> Float64[np.ndarray, "... k l"]:
    """Confusion matrices with `accuracy` on the diagonal and errors spread evenly over the other classes.

    >>> uniform_errors(np.array(0.8), 3).round(2)
    array([[0.8, 0.1, 0.1],
           [0.1, 0.8, 0.1],
           [0.1, 0.1, 0.8]])
    """
    correct = np.asarray(accuracy, float)[..., None, None]
    elsewhere = (1 - correct) / max(num_classes - 1, 1)
    return np.where(np.eye(num_classes, dtype=bool), correct if num_classes > 1 else 1.0, elsewhere)


def read_annotators(
    annotators: Description, num_classes: int, rng: np.random.Generator
) -> tuple[pd.Index, Float64[np.ndarray, "j k l"]]:
    """Ids and confusion matrices of the annotators that `simulate_annotations` describes.

    Raises:
        ValueError: no annotators, an accuracy outside 0 .. 1, a matrix of the wrong shape or whose rows are
            no probabilities, or matrices too large to hold.
    """
    if isinstance(annotators, int | np.integer):
        annotators = rng.uniform(0.6, 0.95, max(int(annotators), 0))
    if isinstance(annotators, pd.DataFrame):
        if "accuracy" not in annotators:
            raise ValueError(f"a frame of annotators needs a column 'accuracy', it has {list(annotators)}")
        annotators = annotators["accuracy"].to_dict()
    if isinstance(annotators, Mapping):
        ids, values = pd.Index(list(annotators)), list(annotators.values())
    else:
        values = annotators if isinstance(annotators, np.ndarray) else list(annotators)
        ids = pd.Index([f"a{j}" for j in range(len(values))])
    if not len(values):
        raise ValueError("there must be at least one annotator")
    check_cells(len(values), num_classes)
    if all(np.ndim(value) == 0 for value in values):
        accuracy = np.asarray(values, float)
        confusion = uniform_errors(accuracy, num_classes)
        wrong = ~((accuracy >= 0) & (accuracy <= 1))
    else:
        shape = (num_classes, num_classes)
        shapes = {np.shape(value) for value in values} - {(), shape}
        if shapes:
            raise ValueError(
                f"confusion matrices must have shape {shape}, true classes x labels, not {shapes.pop()}"
            )
        confusion = np.stack(
            [
                uniform_errors(np.asarray(v), num_classes) if np.ndim(v) == 0 else np.asarray(v, float)
                for v in values
            ]
        )
        wrong = ~((confusion >= 0).all((1, 2)) & (np.abs(confusion.sum(2) - 1) < 1e-6).all(1))
    if wrong.any():
        names = ", ".join(map(repr, ids[wrong][:5]))
        raise ValueError(
            f"annotators {names}: accuracies must be between 0 and 1, rows of matrices >= 0 with sum 1"
        )
    return ids, confusion


def check_cells(num_annotators: int, num_classes: int) -> None:
    """Raise ValueError where confusion matrices would be too large to hold."""
    cells = num_annotators * num_classes**2
    if cells > _MAX_CELLS:
        sizes = f"{num_annotators} annotators x {num_classes} x {num_classes} classes = {cells} cells"
        raise ValueError(
            f"confusion matrices of {sizes}, more than {_MAX_CELLS}: simulate fewer annotators or classes"
        )


def draw_labels(
    rng: np.random.Generator,
    confusion: Float64[np.ndarray, "j k l"],
    annotator: Int64[np.ndarray, " n"],
    truth: Int64[np.ndarray, " n"],
) -> Int64[np.ndarray, " n"]:
    """Draw a label for each row from its annotator's probabilities given its true class."""
    cumulative = confusion.cumsum(2)[:, :, :-1]
    label = np.empty(len(annotator), np.int64)
    for begin in range(0, len(label), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        reached = rng.random(len(label[part]))[:, None] >= cumulative[annotator[part], truth[part]]
        label[part] = reached.sum(1)
    return label

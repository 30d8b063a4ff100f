"""Where channels start: confusion matrices with a diagonal, as logits."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def diagonal(accuracy: float, num_classes: int) -> float:
    """The logit above the others at which a softmax over K labels has this probability.

    A logit of 1 (identity logits, the published start of several methods) is .73 at K = 2, .23 at K = 10 and .03 at K = 100; this start
    does not depend on K.

    Raises:
        ValueError: a probability that is not between 0 and 1.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"initial_accuracy={accuracy}: choose a number between 0 and 1")
    return math.log(accuracy * (num_classes - 1) / (1 - accuracy))


def start_logits(size: float, num_annotators: int, num_classes: int) -> Float[Tensor, "j k l"]:
    """`size` on the diagonal of every annotator, 0 elsewhere."""
    return (size * torch.eye(num_classes)).repeat(num_annotators, 1, 1)

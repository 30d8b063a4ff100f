r"""A truth network, and confusion matrices shrunk to a common one: a prior instead of soft labels.

    P(j gives l | x) = sum_k f_k(x) softmax_l( common[k, l] + offset[j, k, l] )        offset ~ N(0, scale^2)
    loss             = mean over labels of -log P  +  sum offset^2 / (2 scale^2 labels)

Missing labels need no substitute: the prior covers annotators with few labels. This is coupled cross-entropy
with a hierarchical prior, and without one if the scale is infinite.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.crowd.base import diagonal_logit, diagonal_logits, safe_log
from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor, mean_pool


class PooledConfusions(Predictor):
    """scale: standard deviation of an annotator's logits around the common ones; infinite: no prior.

    initial_accuracy: initial diagonal of the common matrix.

    Raises:
        ValueError: a scale that is not positive.
    """

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
        initial_accuracy: float = 0.8,
    ) -> None:
        super().__init__(num_annotators, num_classes)
        if not scale > 0:
            raise ValueError(f"scale={scale}: choose a number above 0, or math.inf")
        self.scale = scale
        self.truth = nn.Linear(shape[0], num_classes)
        logit = diagonal_logit(initial_accuracy, num_classes)
        self.common = nn.Parameter(diagonal_logits(logit, 1, num_classes)[0])
        self.offset = nn.Parameter(torch.zeros(num_annotators, num_classes, num_classes))

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """Predictions of the annotators, and of the truth, which is their common part."""
        log_truth = torch.log_softmax(self.truth(mean_pool(embedding)), -1)
        probabilities = torch.einsum("bk,akl->bal", log_truth.exp(), self.confusion(annotators))
        return Prediction(safe_log(probabilities), log_truth)

    def confusion(self, annotators: AnnotatorSelection) -> Float[Tensor, "a k l"]:
        """P(the annotator gives l | the item is of class k)."""
        return torch.softmax(self.common + self.offset[annotators], -1)

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """The annotator's confusion matrix, the same for every item."""
        return self.confusion(annotators).flatten(1).expand(len(embedding), -1, -1)

    def penalty(self, total: float) -> Float[Tensor, ""] | None:
        """Minus the log prior density of the offsets, per label."""
        if math.isinf(self.scale):
            return None
        return self.offset.square().sum() / (2 * self.scale**2 * total)

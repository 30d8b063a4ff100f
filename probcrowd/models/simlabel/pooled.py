r"""A truth network and confusion matrices with a common one behind them: partial pooling by a prior instead of by soft labels.

    P(j says l | x) = sum_k f_k(x) softmax_l( common[k, l] + own[j, k, l] )           own ~ N(0, spread^2)
    loss            = mean over labels of -log P  +  sum own^2 / (2 spread^2 labels)

Missing labels need no stand-in: the prior says what an annotator who is little known does. This is coupled cross-entropy with a hierarchical
prior, and without one where the spread is infinite.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.crowd.base import diagonal_logit, diagonal_logits, safe_log
from probcrowd.models.simlabel.base import AnnotatorSelection, Pooled, Prediction, Predictor


class PooledConfusions(Predictor):
    """spread: of logits of an annotator's own, in nats; infinite: no prior. initial_accuracy: where the common matrix starts on its diagonal."""

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        shape: tuple[int, ...],
        *,
        spread: float = 1.0,
        initial_accuracy: float = 0.8,
    ) -> None:
        super().__init__(num_annotators, num_classes)
        if not spread > 0:
            raise ValueError(f"spread={spread}: choose a number above 0, or math.inf")
        self.spread, self.pooled = spread, Pooled()
        self.truth = nn.Linear(shape[0], num_classes)
        self.common = nn.Parameter(
            diagonal_logits(diagonal_logit(initial_accuracy, num_classes), 1, num_classes)[0]
        )
        self.own = nn.Parameter(torch.zeros(num_annotators, num_classes, num_classes))

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """What the annotators say, and the truth that they have in common."""
        log_truth = torch.log_softmax(self.truth(self.pooled(embedding)), -1)
        confusion = torch.softmax(self.common + self.own[annotators], -1)
        return Prediction(safe_log(torch.einsum("bk,akl->bal", log_truth.exp(), confusion)), log_truth)

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """The annotator's confusion matrix, the same for every item."""
        confusion = torch.softmax(self.common + self.own[annotators], -1).flatten(1)
        return confusion.expand(len(embedding), -1, -1)

    def penalty(self, total: float) -> Float[Tensor, ""] | None:
        """Minus the log density of what is the annotators' own, by label."""
        return None if math.isinf(self.spread) else self.own.square().sum() / (2 * self.spread**2 * total)

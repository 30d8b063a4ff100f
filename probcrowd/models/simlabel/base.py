"""The interface of a predictor: from embeddings of items to the label probabilities of every annotator."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

AnnotatorSelection = (
    Int[Tensor, " a"] | slice
)  # positions of annotators; slice(None) selects all without a copy


@dataclass(frozen=True)
class Prediction:
    """Log probabilities of labels.

    log_label: log P(annotator a gives item b label l), for the selected annotators. log_common: those of the
    part that annotators have in common, for predictors that have one.
    """

    log_label: Float[Tensor, "b a l"]
    log_common: Float[Tensor, "b l"] | None = None


class Predictor(nn.Module, abc.ABC):
    """Predicts the labels of every annotator. trains_common: labels train `log_common` as well."""

    trains_common = False

    def __init__(self, num_annotators: int, num_classes: int) -> None:
        super().__init__()
        self.num_annotators, self.num_classes = num_annotators, num_classes

    @abc.abstractmethod
    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """Predict labels for items with these embeddings: (b, d), or feature maps (b, channels, ...)."""

    @abc.abstractmethod
    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """A vector per item and annotator, for comparing annotators with each other."""

    def annotator_weight(self) -> Float[Tensor, " j"] | None:
        """The weight of an annotator's labels in training, 1 on average; None: all 1."""
        return None

    def penalty(self, total: float) -> Float[Tensor, ""] | None:
        """A term to add to the mean loss over `total` labels; None: nothing."""
        return None


def mean_pool(embedding: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
    """One vector per embedding: the mean over the places of a feature map."""
    return embedding if embedding.ndim == 2 else embedding.flatten(2).mean(2)

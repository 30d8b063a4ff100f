"""What every predictor is: a module that makes, of the embeddings of items, the label probabilities of each annotator."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

AnnotatorSelection = (
    Int[Tensor, " a"] | slice
)  # places of annotators; slice(None): all, of which no copy is made


@dataclass(frozen=True)
class Prediction:
    """log_label: log P(annotator a says l of item b), of the annotators asked about. log_common: of what they have in common, where a predictor has that."""

    log_label: Float[Tensor, "b a l"]
    log_common: Float[Tensor, "b l"] | None = None


class Predictor(nn.Module, abc.ABC):
    """Predictions for every annotator. trains_common: the labels train `log_common` as well as `log_label`."""

    trains_common = False

    def __init__(self, num_annotators: int, num_classes: int) -> None:
        super().__init__()
        self.num_annotators, self.num_classes = num_annotators, num_classes

    @abc.abstractmethod
    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """What those annotators say of items with those embeddings: (b, d), or (b, channels, ...) of a feature map."""

    @abc.abstractmethod
    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """What stands for an annotator who looks at an item, for comparing annotators with each other."""

    def annotator_weight(self) -> Float[Tensor, " j"] | None:
        """How much a label of an annotator counts in training, 1 on average; None: 1."""
        return None

    def penalty(self, total: float) -> Float[Tensor, ""] | None:
        """What training adds to the mean loss over labels, of which there are `total`; None: nothing."""
        return None


class Pooled(nn.Module):
    """One vector of an embedding: the mean over the places of a feature map."""

    def forward(self, embedding: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        return embedding if embedding.ndim == 2 else embedding.flatten(2).mean(2)


class Tokens(nn.Module):
    """Several vectors of an embedding, for attention: the places of a feature map, each with a learned mark, or linear looks at a vector."""

    def __init__(self, shape: tuple[int, ...], width: int, looks: int = 8) -> None:
        super().__init__()
        channels, *places = shape
        self.places = math.prod(places) if places else 0
        self.width = width
        self.project = nn.Linear(channels, width if self.places else looks * width)
        self.mark = nn.Parameter(0.02 * torch.randn(self.places or looks, width))

    def forward(self, embedding: Float[Tensor, "b ..."]) -> Float[Tensor, "b t d"]:
        found = self.project(embedding.flatten(2).transpose(1, 2) if self.places else embedding)
        return found.reshape(len(embedding), -1, self.width) + self.mark

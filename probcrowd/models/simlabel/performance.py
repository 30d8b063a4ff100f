r"""A truth network, and a confusion matrix per annotator and item.

MaDL (Herde, Huseljic & Sick 2023, arXiv:2304.02539), sized for vectors:

    P(j gives l | x) = sum_k f_k(x) confusion[i, j, k, l]
    confusion        = softmax_l( outputs of a network of e_j, d(x) and e_j * d(x) )
    loss             = mean over labels of w_j (-log P)  -  log Gamma(gamma; 1.25, .25) equations 25, 26
    w_j              ~ 1 / sum_j' exp(-gamma |e_j - e_j'|^2),  mean 1                   equations 21 to 23

e embeds the annotator, d the detached item. The weights w, used in training alone, let similar
annotators share one.

The last layer starts with weights 0 and a bias that puts `initial_accuracy` on the diagonal (equation 19).
LayerNorm replaces batch normalisation, whose statistics would depend on how many annotators are selected.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.crowd.base import diagonal_logit, diagonal_logits, safe_log
from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor, mean_pool

ALPHA, BETA = 1.25, 0.25  # gamma prior of the kernel's gamma, with mode 1


class Performance(Predictor):
    """width: of embeddings. hidden: units. kernel: whether similar annotators share a weight."""

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        shape: tuple[int, ...],
        *,
        width: int = 16,
        hidden: int = 64,
        initial_accuracy: float = 0.8,
        kernel: bool = True,
    ) -> None:
        super().__init__(num_annotators, num_classes)
        self.kernel = kernel
        self.truth = nn.Linear(shape[0], num_classes)
        self.annotators = nn.Parameter(torch.randn(num_annotators, width) * width**-0.5)
        self.item = nn.Linear(shape[0], width)
        self.first = nn.Linear(3 * width, hidden)
        self.second = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.last = nn.Linear(hidden, num_classes**2)
        self.log_gamma = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.last.weight)
        logit = diagonal_logit(initial_accuracy, num_classes)
        with torch.no_grad():
            self.last.bias.copy_(diagonal_logits(logit, 1, num_classes).flatten())

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """Predictions of the annotators, and of the truth, which is their common part."""
        log_truth = torch.log_softmax(self.truth(mean_pool(embedding)), -1)
        probabilities = torch.einsum("bk,bakl->bal", log_truth.exp(), self.confusion(embedding, annotators))
        return Prediction(safe_log(probabilities), log_truth)

    def confusion(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a k l"]:
        """P(the annotator gives l | the item is of class k), for every item."""
        logits = self.last(self.annotator_features(embedding, annotators))
        # A softmax over the last of several short axes is four times slower than one over the last but one
        return torch.softmax(logits.unflatten(-1, (self.num_classes, self.num_classes)), -2).mT

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """The input of the performance network's last layer."""
        item = self.item(mean_pool(embedding).detach())[:, None]
        annotator = self.annotators[annotators].expand(len(item), -1, -1)
        first = self.first(torch.cat([annotator, item.expand_as(annotator), annotator * item], -1))
        return first + self.second(first)

    def annotator_weight(self) -> Float[Tensor, " j"] | None:
        """w."""
        if not self.kernel or not self.training:
            return None
        distance = torch.cdist(self.annotators.detach(), self.annotators.detach()).square()
        weight = 1 / torch.exp(-self.log_gamma.exp() * distance).sum(1)
        return weight / weight.mean()

    def penalty(self, total: float) -> Float[Tensor, ""] | None:
        """Minus the log prior density of gamma."""
        if not self.kernel:
            return None
        constant = math.lgamma(ALPHA) - ALPHA * math.log(BETA)
        return constant - (ALPHA - 1) * self.log_gamma + BETA * self.log_gamma.exp()

r"""DoctorNet (Guan et al. 2018): learn to answer like every annotator, then learn how to average them.

    P(l | j, x) = softmax_l( heads[j] . features(x) )                                     first epochs: cross-entropy, mean over labels
    f(x)        = sum_j w_j P(. | j, x) / sum_j w_j,        w = exp(averaging weights)    last epochs: cross-entropy against the majority

In the last epochs the network and its heads stay as they are, and w is learnt: over the annotators who labelled the item, against the class
with most of their votes. Running statistics of batches still move. w starts at 1. An annotator without labels has a head that nobody trained
and the weight 1.

The answer for an item is f; the network's own last layer has no part in it and is not trained. There is no confusion matrix in the model: one
is counted from f, with one label more in each row. The heads have seen these items, so w favours those that have learnt them by heart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import majority, soft_cross_entropy
from probcrowd.models.crowd.base import (
    Channel,
    LabelBuffers,
    NetworkOutput,
    normalise_rows,
    smoothed_confusion,
)

AT_ONCE = 256  # items whose heads are averaged


class DoctorNet(Channel):
    """labels: all that the fit has, whose items are those that `begin` evaluates.

    averaging: the share of the epochs that averaging takes, at the end: one at least if there are two, none if it is 0.
    """

    needs_features = True
    matrices: Tensor

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        num_features: int,
        labels: AnnotationTensors,
        *,
        averaging: float = 0.2,
    ) -> None:
        super().__init__()
        if not 0 <= averaging <= 1:
            raise ValueError(f"averaging={averaging}: it is a share of the epochs, from 0 to 1")
        self.num_classes, self.averaging, self.averages, self.training_labels = (
            num_classes,
            averaging,
            False,
            LabelBuffers(labels),
        )
        self.heads = nn.Linear(num_features, num_annotators * num_classes)
        self.log_weight = nn.Parameter(torch.zeros(num_annotators))
        self.register_buffer(
            "matrices",
            smoothed_confusion(labels.counts(normalise_rows(labels.votes(num_classes)), num_annotators)),
        )

    def confusion(self) -> Float[Tensor, "j k l"]:
        """Counted from f at the start of the epoch; from the share of votes before the second one."""
        return self.matrices

    def log_label(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """The annotator's head."""
        return self._log_heads(seen.require_features())[labels.item, labels.annotator]

    def log_truth(self, seen: NetworkOutput) -> Float[Tensor, "b k"]:
        """The mean of all heads."""
        parts = seen.require_features().split(AT_ONCE)
        return torch.cat(
            [
                self._averaged(self._log_heads(part), torch.ones_like(self.log_weight, dtype=torch.bool))
                for part in parts
            ]
        )

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Of the heads, or of their average."""
        if not self.averages:
            return labels.cross_entropy(self.log_label(seen, labels))
        log_heads = self._log_heads(seen.require_features()).detach()
        asked = torch.zeros(log_heads.shape[:2], dtype=torch.bool, device=log_heads.device)
        asked[labels.item, labels.annotator] = True
        nobody = ~asked.any(1, keepdim=True)
        return soft_cross_entropy(
            self._averaged(log_heads, asked | nobody), majority(labels.votes(self.num_classes)) * ~nobody
        )

    @torch.no_grad()
    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Which of the two is learnt now, and what f makes of the annotators."""
        last = min(max(round(self.averaging * epochs), 1), epochs - 1) if self.averaging else 0
        self.averages = epoch >= epochs - last
        self.selectable = self.averages or not last
        if epoch:
            self.matrices = smoothed_confusion(
                self.training_labels.labels().counts(self.log_truth(evaluate()).exp(), len(self.log_weight))
            )

    def _log_heads(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b j l"]:
        return torch.log_softmax(self.heads(features).unflatten(1, (-1, self.num_classes)), -1)

    def _averaged(
        self, log_heads: Float[Tensor, "b j l"], asked: Bool[Tensor, "*#b j"]
    ) -> Float[Tensor, "b l"]:
        log_weight = torch.log_softmax(self.log_weight.masked_fill(~asked, -torch.inf), -1)
        return torch.logsumexp(log_heads + log_weight[..., None], 1)

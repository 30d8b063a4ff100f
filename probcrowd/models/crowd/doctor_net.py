r"""DoctorNet (Guan et al. 2018): learn to answer like every annotator, then learn how to average them.

    first epochs    P(l | j, x) = softmax_l( heads[j] . features(x) )    cross-entropy, mean over labels
    last epochs     f(x)        = sum_j w_j P(. | j, x) / sum_j w_j      cross-entropy against the majority
                    w           = exp(averaging weights)

In the last epochs the network and its heads are fixed and w is learned: over the annotators who labelled the
item, against the class with most of their votes. Running batch statistics still change. w starts at 1. An
annotator without labels keeps an untrained head and the weight 1.

Predictions are f; the network's own last layer is neither used nor trained. The model has no confusion
matrix: one is counted from f, with one label added per row. The heads have been trained on these items, so w
favours the heads that memorised them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import majority, soft_cross_entropy
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, normalise_rows, smoothed_confusion

CHUNK_ITEMS = 256  # items whose heads are averaged at a time


class DoctorNet(ConfusionChannel):
    """DoctorNet over all labels of the fit; their items are those that `evaluate` in `start_epoch` returns.

    averaging: the share of the epochs, at the end, in which w is learned: at least one if there are two, none
    if 0.
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
            raise ValueError(f"averaging={averaging}: choose a share of the epochs, from 0 to 1")
        self.num_classes, self.averaging, self.training_labels = num_classes, averaging, labels
        self.averages = False
        self.heads = nn.Linear(num_features, num_annotators * num_classes)
        self.log_weight = nn.Parameter(torch.zeros(num_annotators))
        counts = labels.counts(normalise_rows(labels.votes(num_classes)), num_annotators)
        self.register_buffer("matrices", smoothed_confusion(counts))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """Counted from f at the start of the epoch; from vote shares before the second one."""
        return self.matrices

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """The prediction of the annotator's head."""
        return self._log_heads(output.require_features())[labels.item, labels.annotator]

    def log_truth(self, output: NetworkOutput) -> Float[Tensor, "b k"]:
        """The weighted mean of all heads."""
        everyone = torch.ones_like(self.log_weight, dtype=torch.bool)
        parts = output.require_features().split(CHUNK_ITEMS)
        return torch.cat([self._average(self._log_heads(part), everyone) for part in parts])

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """The cross-entropy of the heads, or of their average."""
        if not self.averages:
            return labels.cross_entropy(self.log_label(output, labels))
        log_heads = self._log_heads(output.require_features()).detach()
        labelled = torch.zeros(log_heads.shape[:2], dtype=torch.bool, device=log_heads.device)
        labelled[labels.item, labels.annotator] = True
        unlabelled_item = ~labelled.any(1, keepdim=True)
        average = self._average(log_heads, labelled | unlabelled_item)
        return soft_cross_entropy(average, majority(labels.votes(self.num_classes)) * ~unlabelled_item)

    @torch.no_grad()
    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """Set the phase, heads or averaging, and count confusion matrices from f."""
        last = min(max(round(self.averaging * epochs), 1), epochs - 1) if self.averaging else 0
        self.averages = epoch >= epochs - last
        self.selectable = self.averages or not last
        if epoch:
            counts = self.training_labels.counts(self.log_truth(evaluate()).exp(), len(self.log_weight))
            self.matrices = smoothed_confusion(counts)

    def _log_heads(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b j l"]:
        return torch.log_softmax(self.heads(features).unflatten(1, (-1, self.num_classes)), -1)

    def _average(
        self, log_heads: Float[Tensor, "b j l"], annotators: Bool[Tensor, "*#b j"]
    ) -> Float[Tensor, "b l"]:
        log_weight = torch.log_softmax(self.log_weight.masked_fill(~annotators, -torch.inf), -1)
        return torch.logsumexp(log_heads + log_weight[..., None], 1)

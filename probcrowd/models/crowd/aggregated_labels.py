"""Training on labels that something else made of the annotators': votes, or the posteriors of an aggregator."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.metrics.tensors import highest
from probcrowd.models.crowd.base import Channel, NetworkOutput, smoothed_confusion


class Targets(Channel):
    """Cross-entropy of f against class probabilities of the items. Confusion matrices are counted with these probabilities as the truth."""

    targets: Tensor
    matrices: Tensor

    def __init__(self, targets: Float[Tensor, "i k"], labels: AnnotationTensors, num_annotators: int) -> None:
        super().__init__()
        self.register_buffer("targets", targets.clone())
        self.register_buffer("matrices", smoothed_confusion(labels.counts(targets, num_annotators)))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """Counted, each row with one label more, drawn as all annotators together say."""
        return self.matrices

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Mean over items."""
        return soft_cross_entropy(seen.log_truth, self.targets[labels.items])


def soft_cross_entropy(log_truth: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """-sum_k target_k log f_k, mean over items."""
    return -(targets * log_truth).sum(1).mean()


def majority(votes: Float[Tensor, "i k"]) -> Float[Tensor, "i k"]:
    """1 for the class with most votes, shared among classes in a tie; all classes alike without votes."""
    most = highest(votes).to(votes.dtype)
    return most / most.sum(1, keepdim=True)

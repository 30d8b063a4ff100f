"""Train on labels aggregated beforehand: majority votes, vote shares or an aggregator's posteriors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.metrics.tensors import highest
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, smoothed_confusion


class Targets(ConfusionChannel):
    """Cross-entropy of f against class probabilities, the truth for confusion matrices as well."""

    targets: Tensor
    matrices: Tensor

    def __init__(self, targets: Float[Tensor, "i k"], labels: AnnotationTensors, num_annotators: int) -> None:
        super().__init__()
        self.register_buffer("targets", targets.clone())
        self.register_buffer("matrices", smoothed_confusion(labels.counts(targets, num_annotators)))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """Counted, each row with one more label distributed like those of all annotators together."""
        return self.matrices

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Mean over items."""
        return soft_cross_entropy(output.log_truth, self.targets[labels.items])


def soft_cross_entropy(log_truth: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """-sum_k target_k log f_k, mean over items."""
    return -(targets * log_truth).sum(1).mean()


def majority(votes: Float[Tensor, "i k"]) -> Float[Tensor, "i k"]:
    """Probability 1 for the class with most votes, shared equally in a tie; uniform without votes."""
    most = highest(votes).to(votes.dtype)
    return most / most.sum(1, keepdim=True)

r"""Model bootstrapped EM (Khetan, Lipton & Anandkumar 2018).

Train, count confusion matrices from f, and train again on the posteriors that they give for the labels:

    first round      targets: the vote shares
    further rounds   confusion[j, k, l] prop. to the sum of f_k(x_i) over labels l of j
                     targets: q_i[k] prop. to prod_n confusion[j_n, k, l_n]

Confusion matrices come from f alone and q from the confusion matrices alone: it includes neither f nor a
class prior. A row without counts is uniform, and a cell without counts counts as `FLOOR` in q. The epochs are
divided evenly among the rounds. Each round continues with the current network, where the paper trains a fresh
one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import soft_cross_entropy
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, normalise_rows

FLOOR = 1e-10


class MBEM(ConfusionChannel):
    """MBEM over all labels of the fit; their items are those that `evaluate` in `start_epoch` returns.

    rounds: at least 1, which is training on vote shares.
    """

    targets: Tensor
    matrices: Tensor

    def __init__(
        self, num_annotators: int, num_classes: int, labels: AnnotationTensors, *, rounds: int = 2
    ) -> None:
        super().__init__()
        if rounds < 1:
            raise ValueError(f"rounds={rounds}: choose at least 1")
        self.num_annotators, self.rounds, self.training_labels = num_annotators, rounds, labels
        shares = normalise_rows(labels.votes(num_classes))
        self.register_buffer("targets", shares)
        self.register_buffer("matrices", normalise_rows(labels.counts(shares, num_annotators)))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """Counted at the start of the round: from vote shares in the first one, from f later."""
        return self.matrices

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy of f against the round's targets, mean over items."""
        return soft_cross_entropy(output.log_truth, self.targets[labels.items])

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """New confusion matrices and targets at the start of every round but the first."""
        if epoch == 0 or epoch not in {number * epochs // self.rounds for number in range(1, self.rounds)}:
            return
        labels = self.training_labels
        self.matrices = normalise_rows(labels.counts(evaluate().log_truth.exp(), self.num_annotators))
        self.targets = torch.softmax(labels.log_likelihood(self.matrices.clamp_min(FLOOR).log()), 1)

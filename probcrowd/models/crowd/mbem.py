r"""Model bootstrapped EM (Khetan, Lipton & Anandkumar 2018): train, count confusions from what was learnt, train on what they make of the labels.

    first round      targets: the share of votes
    further rounds   confusion[j, k, l] prop. to the sum of f_k(x_i) over labels l of j        q_i[k] prop. to prod_n confusion[j_n, k, l_n]
                     targets: q

The confusions come from f alone and q from the confusions alone: neither f nor a class prior is in it. A row without counts is flat, and a
cell without counts has 1e-10 in q. The epochs are shared among the rounds. The network goes on from where it is at the start of a round,
where the paper trains a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import soft_cross_entropy
from probcrowd.models.crowd.base import Channel, LabelBuffers, NetworkOutput, normalise_rows

LEAST = 1e-10


class MBEM(Channel):
    """labels: all that the fit has, whose items are those that `begin` evaluates. rounds: at least 1, which is training on vote shares."""

    targets: Tensor
    matrices: Tensor

    def __init__(
        self, num_annotators: int, num_classes: int, labels: AnnotationTensors, *, rounds: int = 2
    ) -> None:
        super().__init__()
        if rounds < 1:
            raise ValueError(f"rounds={rounds}: there must be one at least")
        self.num_annotators, self.rounds, self.training_labels = num_annotators, rounds, LabelBuffers(labels)
        shares = normalise_rows(labels.votes(num_classes))
        self.register_buffer("targets", shares)
        self.register_buffer("matrices", normalise_rows(labels.counts(shares, num_annotators)))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """As counted at the start of this round: from the share of votes in the first one, from f later."""
        return self.matrices

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy of f against the round's targets, mean over items."""
        return soft_cross_entropy(seen.log_truth, self.targets[labels.items])

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """New confusions and targets where a round starts."""
        if epoch == 0 or epoch not in {number * epochs // self.rounds for number in range(1, self.rounds)}:
            return
        labels = self.training_labels.labels()
        self.matrices = normalise_rows(labels.counts(evaluate().log_truth.exp(), self.num_annotators))
        self.targets = self._said(labels)

    def _said(self, labels: AnnotationTensors) -> Float[Tensor, "i k"]:
        return torch.softmax(labels.log_likelihood(self.matrices.clamp_min(LEAST).log()), 1)

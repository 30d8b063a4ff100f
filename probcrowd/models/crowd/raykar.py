r"""Learning from crowds (Raykar et al. 2010) with a network: EM, of which training is the M step of the classifier.

    E    q_i[k]          prop. to f_k(x_i) prod_n confusion[j_n, k, l_n]        over the labels n of item i
    M    confusion[j, k] = the mode of Dirichlet(prior[k] + counts[j, k]),      counts[j, k, l] = sum of q_i[k] over labels l of j
         f               lowers the cross-entropy against q

Every epoch begins with E, M of the confusions, and E again, each with all that came before, so the likelihood of the labels, times the prior,
never falls in them; the epoch is then a step of f. f means nothing before it is trained: q is the share of votes in the first epoch.

The prior is in the counts and in the divisor, the confusions are counted from q and not from f, and q sums to 1 however many labels an item
has. A published implementation has none of the three.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import soft_cross_entropy
from probcrowd.models.crowd.base import Channel, LabelBuffers, NetworkOutput, normalise_rows, safe_log


class Raykar(Channel):
    """labels: all that the fit has, whose items are those that `begin` evaluates.

    concentration, diagonal: prior[k, l] is `concentration`, and `diagonal` more where k = l. 2 is one label of each kind; with 1 and 0
    confusions are those of maximum likelihood, and a row without counts is flat.
    """

    posterior: Tensor
    matrices: Tensor
    more: Tensor

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        labels: AnnotationTensors,
        *,
        concentration: float = 2.0,
        diagonal: float = 0.0,
    ) -> None:
        super().__init__()
        if min(concentration, concentration + diagonal) < 1:
            raise ValueError(
                f"concentration={concentration}, diagonal={diagonal}: a mode needs a prior of at least 1 in every cell"
            )
        self.num_annotators, self.training_labels = num_annotators, LabelBuffers(labels)
        self.register_buffer(
            "more", (diagonal * torch.eye(num_classes) + (concentration - 1)).to(labels.weight)
        )
        self.register_buffer("posterior", normalise_rows(labels.votes(num_classes)))
        self.register_buffer("matrices", self._mode(labels))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """As the M step left them."""
        return self.matrices

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy of f against q, mean over items."""
        return soft_cross_entropy(seen.log_truth, self.posterior[labels.items])

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """E, M, E, from the second epoch on."""
        if epoch == 0:
            return
        labels, log_truth = self.training_labels.labels(), evaluate().log_truth
        self.posterior = self._expected(labels, log_truth)
        self.matrices = self._mode(labels)
        self.posterior = self._expected(labels, log_truth)

    def _expected(self, labels: AnnotationTensors, log_truth: Float[Tensor, "i k"]) -> Float[Tensor, "i k"]:
        return torch.softmax(log_truth + labels.log_likelihood(safe_log(self.matrices)), 1)

    def _mode(self, labels: AnnotationTensors) -> Float[Tensor, "j k l"]:
        return normalise_rows(labels.counts(self.posterior, self.num_annotators) + self.more)

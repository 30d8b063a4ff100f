r"""Learning from crowds (Raykar et al. 2010) with a network: EM in which training is the classifier's M step.

    E    q_i[k]          prop. to f_k(x_i) prod_n confusion[j_n, k, l_n]        over the labels n of item i
    M    confusion[j, k] = the mode of Dirichlet(prior[k] + counts[j, k])
         counts[j, k, l] = sum of q_i[k] over labels l of j
         f               lowers the cross-entropy against q

Every epoch starts with E, M of the confusion matrices, and E again, each given everything before it, so these
steps never lower the likelihood of the labels times the prior; training f for the epoch then is one more
step. Before its first epoch f is untrained, so q is the vote shares there.

The prior is in the counts and in the divisor, confusion matrices are counted from q and not from f, and q
sums to 1 however many labels an item has. A published implementation gets all three wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import soft_cross_entropy
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, normalise_rows, safe_log


class Raykar(ConfusionChannel):
    """EM over all labels of the fit; their items are those that `evaluate` in `start_epoch` returns.

    concentration, diagonal: prior[k, l] is `concentration`, plus `diagonal` where k = l. A concentration of 2
    adds one label to every cell; 1 and 0 give maximum likelihood, with uniform rows where there are no
    labels.

    Raises:
        ValueError: a prior below 1, which has no mode.
    """

    posterior: Tensor
    matrices: Tensor
    prior_counts: Tensor

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
                f"concentration={concentration}, diagonal={diagonal}: the prior must be at least 1 in every "
                "cell to have a mode"
            )
        self.num_annotators, self.training_labels = num_annotators, labels
        prior_counts = diagonal * torch.eye(num_classes) + (concentration - 1)
        self.register_buffer("prior_counts", prior_counts.to(labels.weight))
        self.register_buffer("posterior", normalise_rows(labels.votes(num_classes)))
        self.register_buffer("matrices", self._m_step())

    def confusion(self) -> Float[Tensor, "j k l"]:
        """From the last M step."""
        return self.matrices

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy of f against q, mean over items."""
        return soft_cross_entropy(output.log_truth, self.posterior[labels.items])

    def start_epoch(self, epoch: int, epochs: int, evaluate: Callable[[], NetworkOutput]) -> None:
        """E, M, E, from the second epoch on."""
        if epoch == 0:
            return
        log_truth = evaluate().log_truth
        self.posterior = self._e_step(log_truth)
        self.matrices = self._m_step()
        self.posterior = self._e_step(log_truth)

    def _e_step(self, log_truth: Float[Tensor, "i k"]) -> Float[Tensor, "i k"]:
        return torch.softmax(log_truth + self.training_labels.log_likelihood(safe_log(self.matrices)), 1)

    def _m_step(self) -> Float[Tensor, "j k l"]:
        counts = self.training_labels.counts(self.posterior, self.num_annotators)
        return normalise_rows(counts + self.prior_counts)

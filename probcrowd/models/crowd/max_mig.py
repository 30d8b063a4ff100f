r"""Max-MIG (Cao, Xu, Kong & Wang 2019): maximise the mutual information of a classifier and an aggregator.

    h_i  = softmax_k( sum_n weight[j_n, k, l_n] + log prior_k )        over the labels n of item i
    m_ij = sum_k f_k(x_i) h_j[k] / prior_k
    loss = - mean_i log m_ii - 1 + mean_{i != j} m_ij

The loss is minus a lower bound of the mutual information of f and h when annotators err independently given
the class. The pairs i != j are those of the batch; a batch of one item has none.

weight starts at the log confusion, which makes h the posterior of Dawid and Skene with that prior.
softmax_l(weight[j, k, l]) stays that confusion only as far as training leaves it so: adding a number that
depends on (j, l) alone to weight does not change the loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, normalise_rows


class MaxMIG(ConfusionChannel):
    """labels: all labels of the fit; weight starts at log(confusion + eps), counted with vote shares.

    class_prior: uniform by default.
    """

    log_prior: Tensor

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        labels: AnnotationTensors,
        *,
        eps: float = 0.01,
        class_prior: Float[Tensor, " k"] | None = None,
    ) -> None:
        super().__init__()
        shares = normalise_rows(labels.votes(num_classes))
        confusion = normalise_rows(labels.counts(shares, num_annotators))
        self.weight = nn.Parameter((confusion + eps).log().contiguous())
        if class_prior is None:
            class_prior = labels.weight.new_full((num_classes,), 1 / num_classes)
        self.register_buffer("log_prior", class_prior.to(labels.weight).log())

    def confusion(self) -> Float[Tensor, "j k l"]:
        """softmax over labels of the weights."""
        return torch.softmax(self.weight, -1)

    def log_aggregated(self, labels: AnnotationTensors) -> Float[Tensor, "b k"]:
        """log h: log class probabilities given the labels alone; the prior for items without labels."""
        return torch.log_softmax(labels.log_likelihood(self.weight) + self.log_prior, 1)

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Minus the bound on the mutual information, up to a constant."""
        log_ratio, log_h = output.log_truth - self.log_prior, self.log_aggregated(labels)
        same = torch.logsumexp(log_ratio + log_h, 1)
        pairs = log_ratio.exp() @ log_h.exp().T
        others = (pairs - pairs.diagonal().diag()).sum() / max(len(pairs) * (len(pairs) - 1), 1)
        return others - same.mean() - 1

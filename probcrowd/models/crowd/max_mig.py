r"""Max-MIG (Cao, Xu, Kong & Wang 2019): a classifier and an aggregator that should tell as much as possible of each other.

    h_i  = softmax_k( sum_n weight[j_n, k, l_n] + log prior_k )        over the labels n of item i
    m_ij = sum_k f_k(x_i) h_j[k] / prior_k
    loss = - mean_i log m_ii - 1 + mean_{i != j} m_ij

The loss is minus a lower bound of the mutual information of f and h under annotators who err independently given the class. The pairs i != j
are those of the batch; a batch of one item has none.

weight starts at the log confusion, which makes h the posterior of Dawid and Skene with that prior. softmax_l(weight[j, k, l]) is that
confusion, in so far as training leaves it one: the loss is the same when a number that depends on (j, l) alone is added to weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import Channel, NetworkOutput, normalise_rows


class MaxMIG(Channel):
    """labels: all that the fit has; weight starts at log(confusion + eps), counted with the share of votes as the truth.

    class_prior: all classes alike by default.
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
        self.weight = nn.Parameter(
            (normalise_rows(labels.counts(shares, num_annotators)) + eps).log().contiguous()
        )
        prior = (
            labels.weight.new_full((num_classes,), 1 / num_classes) if class_prior is None else class_prior
        )
        self.register_buffer("log_prior", prior.to(labels.weight).log())

    def confusion(self) -> Float[Tensor, "j k l"]:
        """softmax over labels of the weights."""
        return torch.softmax(self.weight, -1)

    def log_aggregated(self, labels: AnnotationTensors) -> Float[Tensor, "b k"]:
        """log h: what the labels alone say of the items; the prior where there are none."""
        return torch.log_softmax(labels.log_likelihood(self.weight) + self.log_prior, 1)

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Minus the information, up to a constant."""
        left, log_h = seen.log_truth - self.log_prior, self.log_aggregated(labels)
        same = torch.logsumexp(left + log_h, 1)
        pairs = left.exp() @ log_h.exp().T
        others = (pairs - pairs.diagonal().diag()).sum() / max(len(pairs) * (len(pairs) - 1), 1)
        return others - same.mean() - 1

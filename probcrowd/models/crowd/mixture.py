r"""Coupled cross-entropy and its relatives: p(l | x, j) = sum_k f_k(x) confusion[j, k, l].

    CCEM               mean over labels of -log p               Ibrahim, Nguyen & Fu 2023, equation 6
    GeoCrowdNet(F)     CCEM - truth_volume * log det F F'       equation 8: spreads the items' probabilities
    GeoCrowdNet(W)     CCEM - confusion_volume * log det W' W   equation 9: spreads the confusion matrices
    TraceReg           CCEM + trace * mean_j trace(confusion[j])Tanno et al. 2019, equation 4

Both volumes are maximised. Along the matrices Q that leave every p unchanged (confusion -> Q^-1 confusion, f
-> f Q) one rises by as much as the other falls, so they are not meant to be combined. "Identified" means up
to a permutation of the classes: only the initial values tie class k to label k.

With `running`, the items' Gram matrix is a mean over about one epoch instead of one batch: the published term
depends on the batch size, and is singular if a batch has fewer items than there are classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput
from probcrowd.models.crowd.kernels import coupled_log_likelihood, gram
from probcrowd.models.crowd.volume import add_log_volume, by_class


class Mixture(ConfusionChannel):
    """logits: initial confusion matrices, (j, k, l). The terms' strengths are as above; all 0: CCEM."""

    gram: Tensor
    gram_weight: Tensor

    def __init__(
        self,
        logits: Float[Tensor, "j k l"],
        *,
        truth_volume: float = 0.0,
        confusion_volume: float = 0.0,
        trace: float = 0.0,
        running: bool = False,
        num_items: int = 0,
    ) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.truth_volume, self.confusion_volume, self.trace = truth_volume, confusion_volume, trace
        self.running, self.num_items = running, num_items
        self.register_buffer("gram", torch.zeros(logits.shape[1], logits.shape[1], dtype=torch.float64))
        self.register_buffer("gram_weight", torch.zeros((), dtype=torch.float64))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """softmax over labels."""
        return torch.softmax(self.logits, -1)

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """In the log domain throughout."""
        log_truth, log_confusion = output.log_truth[labels.item], torch.log_softmax(self.logits, -1)
        return torch.logsumexp(log_truth[:, :, None] + log_confusion[labels.annotator], 1)

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """The coupled cross-entropy plus the terms whose strength is not 0."""
        loss = _CoupledLoss.apply(output.log_truth, self.logits, self, labels)
        if self.trace:
            loss = loss + self.trace * self.confusion().diagonal(dim1=1, dim2=2).sum(1).mean()
        return loss

    def add_volumes(
        self,
        log_truth: Float[Tensor, "b k"],
        table: Float[Tensor, "n k"],
        truth_gradient: Float[Tensor, "b k"],
        table_gradient: Float[Tensor, "n k"],
    ) -> float:
        """Minus the volumes times their strengths; adds their gradients in place and counts singular ones."""
        total = 0.0
        if self.truth_volume:
            at = self._running_gram(log_truth) if self.running else None
            value, singular = add_log_volume(log_truth, -self.truth_volume, truth_gradient, at)
            total += value
            self.degenerate += int(singular)
        if self.confusion_volume:
            value, singular = add_log_volume(table, -self.confusion_volume, table_gradient)
            total += value
            self.degenerate += int(singular)
        return total

    def _running_gram(self, log_truth: Float[Tensor, "b k"]) -> Float64[np.ndarray, "k k"]:
        """The running mean of the items' Gram matrices, updated with this batch and scaled to its size."""
        share = len(log_truth) / max(self.num_items, len(log_truth))
        batch = torch.from_numpy(gram(log_truth.detach().cpu().numpy())[1]).to(self.gram)
        self.gram.mul_(1 - share).add_(batch, alpha=share / len(log_truth))
        self.gram_weight.mul_(1 - share).add_(share)
        return (self.gram * (len(log_truth) / self.gram_weight)).cpu().numpy()


class _CoupledLoss(torch.autograd.Function):
    """Mean over labels of -log sum_k f[i_n, k] confusion[j_n, k, l_n], plus the volumes, with gradients.

    The gradients of the first in log f and log confusion are minus the posterior class probabilities given
    each label.
    """

    @staticmethod
    def forward(
        ctx: Any, log_truth: Tensor, logits: Tensor, channel: Mixture, labels: AnnotationTensors
    ) -> Tensor:
        table, cell = by_class(logits), labels.label * len(logits) + labels.annotator
        truth_gradient, table_gradient = torch.zeros_like(log_truth), torch.zeros_like(table)
        weight = labels.weight * (-1 / (len(labels.items) * labels.weight_per_item))
        if log_truth.device.type == "cpu":
            arrays = (log_truth, table, labels.item, cell, weight, truth_gradient, table_gradient)
            loss = coupled_log_likelihood(*(array.numpy() for array in arrays))
        else:
            joint = log_truth.index_select(0, labels.item) + table.index_select(0, cell)
            loss = float(torch.logsumexp(joint, 1).dot(weight))
            shares = torch.softmax(joint, 1) * weight[:, None]
            truth_gradient.index_add_(0, labels.item, shares)
            table_gradient.index_add_(0, cell, shares)
        loss += channel.add_volumes(log_truth, table, truth_gradient, table_gradient)
        by_label = table_gradient.view(logits.shape[2], len(logits), -1)  # (l, j, k)
        logit_gradient = by_label - table.exp().view_as(by_label) * by_label.sum(0)
        ctx.save_for_backward(truth_gradient, logit_gradient.permute(1, 2, 0).contiguous())
        return log_truth.new_tensor(loss)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        truth_gradient, logit_gradient = ctx.saved_tensors
        return truth_gradient * grads[0], logit_gradient * grads[0], None, None

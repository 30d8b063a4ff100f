r"""Coupled cross-entropy and its relatives: p(l | x, j) = sum_k f_k(x) confusion[j, k, l].

    CCEM               mean over labels of -log p                                      Ibrahim, Nguyen & Fu 2023, equation 6
    GeoCrowdNet(F)     CCEM - truth_volume * log det F F'                              equation 8: a prior that spreads the items' probabilities
    GeoCrowdNet(W)     CCEM - confusion_volume * log det W' W                          equation 9: one that spreads the confusion matrices
    TraceReg           CCEM + trace * mean_j trace(confusion[j])                       Tanno et al. 2019, equation 4

Both volumes grow. Along the matrices Q that leave every p as it is (confusion -> Q^-1 confusion, f -> f Q) one rises by what the other falls, so
they are not for use together. "Identified" means up to a permutation of the classes: the start alone ties class k to label k.

With `running`, the items' Gram matrix is a mean over about one epoch instead of a batch: the published term depends on the size of the
batch, and is singular where a batch has fewer items than there are classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import Channel, NetworkOutput
from probcrowd.models.crowd.kernels import coupled, gram
from probcrowd.models.crowd.volume import add_log_volume, by_class


class Mixture(Channel):
    """logits: where confusions start, (j, k, l). Strengths of terms: see above; 0: CCEM."""

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

    def log_label(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """In the log domain throughout."""
        return torch.logsumexp(
            seen.log_truth[labels.item][:, :, None] + torch.log_softmax(self.logits, -1)[labels.annotator], 1
        )

    def loss(self, seen: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """The coupled cross-entropy and those terms whose strength is not 0."""
        loss = _Coupled.apply(seen.log_truth, self.logits, self, labels)
        if self.trace:
            loss = loss + self.trace * self.confusion().diagonal(dim1=1, dim2=2).sum(1).mean()
        return loss

    def add_volumes(
        self,
        log_truth: Float[Tensor, "b k"],
        table: Float[Tensor, "n k"],
        of_truth: Float[Tensor, "b k"],
        of_table: Float[Tensor, "n k"],
    ) -> float:
        """Minus the volumes in force, times their strengths; the gradients of that are added to those of both arguments."""
        total = 0.0
        if self.truth_volume:
            at = self._running(log_truth) if self.running else None
            value, singular = add_log_volume(log_truth, -self.truth_volume, of_truth, at)
            total += self._told(value, singular)
        if self.confusion_volume:
            value, singular = add_log_volume(table, -self.confusion_volume, of_table)
            total += self._told(value, singular)
        return total

    def _told(self, value: float, singular: bool) -> float:
        if singular:
            self.degenerate += 1
        return value

    def _running(self, log_truth: Float[Tensor, "b k"]) -> Float64[np.ndarray, "k k"]:
        """The running mean of the items' Gram matrices, this batch's included, for as many items as it has."""
        share = len(log_truth) / max(self.num_items, len(log_truth))
        self.gram.mul_(1 - share).add_(
            torch.from_numpy(gram(log_truth.detach().cpu().numpy())[1]).to(self.gram),
            alpha=share / len(log_truth),
        )
        self.gram_weight.mul_(1 - share).add_(share)
        return (self.gram * (len(log_truth) / self.gram_weight)).cpu().numpy()


class _Coupled(torch.autograd.Function):
    """Mean over labels of -log sum_k f[i_n, k] confusion[j_n, k, l_n], and the volumes, with their gradients in one step.

    The gradients of the first in log f and in log confusion are minus the shares of the classes in each label.
    """

    @staticmethod
    def forward(
        ctx: Any, log_truth: Tensor, logits: Tensor, channel: Mixture, labels: AnnotationTensors
    ) -> Tensor:
        table, cell = by_class(logits), labels.label * len(logits) + labels.annotator
        of_truth, of_table = torch.zeros_like(log_truth), torch.zeros_like(table)
        weight = labels.weight * (-1 / (len(labels.items) * labels.weight_per_item))
        if log_truth.device.type == "cpu":
            arrays = (log_truth, table, labels.item, cell, weight, of_truth, of_table)
            loss = coupled(*(array.numpy() for array in arrays))
        else:
            joint = log_truth.index_select(0, labels.item) + table.index_select(0, cell)
            loss = float(torch.logsumexp(joint, 1).dot(weight))
            shares = torch.softmax(joint, 1) * weight[:, None]
            of_truth.index_add_(0, labels.item, shares)
            of_table.index_add_(0, cell, shares)
        loss = log_truth.new_tensor(loss + channel.add_volumes(log_truth, table, of_truth, of_table))
        by_label = of_table.view(logits.shape[2], len(logits), -1)  # (l, j, k)
        of_logits = by_label - table.exp().view_as(by_label) * by_label.sum(0)
        ctx.save_for_backward(of_truth, of_logits.permute(1, 2, 0).contiguous())
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_truth, of_logits = ctx.saved_tensors
        return of_truth * grads[0], of_logits * grads[0], None, None

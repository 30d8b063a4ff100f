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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.channels.base import Channel, Labels, Seen
from probcrowd.models.channels.volume import confusion_gram, log_volume, truth_gram


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

    def log_said(self, seen: Seen, labels: Labels) -> Float[Tensor, "n l"]:
        """In the log domain throughout."""
        return torch.logsumexp(seen.log_truth[labels.item][:, :, None] + torch.log_softmax(self.logits, -1)[labels.annotator], 1)

    def loss(self, seen: Seen, labels: Labels) -> Float[Tensor, ""]:
        """The coupled cross-entropy and those terms whose strength is not 0."""
        log_confusion = torch.log_softmax(self.logits, -1)
        said = log_confusion[labels.annotator, :, labels.label]  # (n, k)
        loss = labels.mean(-torch.logsumexp(seen.log_truth[labels.item] + said, 1))
        if self.truth_volume:
            loss = loss - self.truth_volume * self._truth_volume(seen.log_truth.exp())
        if self.confusion_volume:
            value, singular = log_volume(confusion_gram(log_confusion.exp()))
            self.degenerate += singular
            loss = loss - self.confusion_volume * value.to(loss.dtype)
        if self.trace:
            loss = loss + self.trace * log_confusion.diagonal(dim1=1, dim2=2).exp().sum(1).mean()
        return loss

    def _truth_volume(self, truth: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        gram, at = truth_gram(truth), None
        if self.running:
            gram = gram / len(truth)
            if torch.is_grad_enabled():
                share = len(truth) / max(self.num_items, len(truth))
                self.gram.mul_(1 - share).add_(gram.detach(), alpha=share)
                self.gram_weight.mul_(1 - share).add_(share)
            at = self.gram / self.gram_weight if self.gram_weight > 0 else None
        value, singular = log_volume(gram, at)
        self.degenerate += singular
        return value.to(truth.dtype)

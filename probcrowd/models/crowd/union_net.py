r"""UnionNet (Wei et al. 2022): all annotators as one source with J K outcomes, "annotator j: label l".

    B    union[j, k, l] = softmax_(j,l)( logits[j, k, l] )        p(j, l | x) = sum_k f_k union[j, k, l]
    A    p(j, l | x)    = softmax_(j,l)( sum_k f_k logits[j, k, l] )

    loss: mean over items of - sum_n target_n log p(j_n, l_n | x)
    target: the item's weights, for B divided by their sum

Given the annotator, labels are distributed as in the other channels; who answers is modelled too:

    P(l | j, x) = p(j, l | x) / sum_l p(j, l | x)        share[k, j] = sum_l union[j, k, l]

Both forms agree where x is certainly of one class. Training lowers the share of an annotator without labels,
so adding one changes the loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.data.validation import check_option
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, diagonal_logits

KINDS = ("A", "B")


class UnionNet(ConfusionChannel):
    """kind: see above. size: initial diagonal of the logits."""

    shared_truth = False

    def __init__(self, num_annotators: int, num_classes: int, kind: str = "B", size: float = 1.0) -> None:
        super().__init__()
        check_option("kind", kind, KINDS)
        self.kind = kind
        self.logits = nn.Parameter(diagonal_logits(size, num_annotators, num_classes))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """union[j, k, l] given j."""
        return torch.softmax(self.logits, -1)

    def share(self) -> Float[Tensor, "k j"]:
        """P(annotator j answers | true class k); rows sum to 1."""
        return torch.softmax(torch.logsumexp(self.logits, -1), 0).T

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(l | j, x)."""
        log_truth = output.log_truth[labels.item]
        if self.kind == "A":
            scores = torch.einsum("nk,nkl->nl", log_truth.exp(), self.logits[labels.annotator])
        else:
            scores = torch.logsumexp(log_truth[:, :, None] + self._log_union()[labels.annotator], 1)
        return torch.log_softmax(scores, -1)

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy of p(j, l | x), mean over items; an item without labels adds 0."""
        if self.kind == "A":
            target = labels.weight
            scores = torch.einsum("bk,jkl->bjl", output.log_truth.exp(), self.logits)
            total = torch.logsumexp(scores, (1, 2))
            log_joint = scores[labels.item, labels.annotator, labels.label] - total[labels.item]
        else:
            item_weight = labels.weight.new_zeros(len(labels.items)).index_add(0, labels.item, labels.weight)
            target = labels.weight / item_weight[labels.item].clamp_min(torch.finfo(item_weight.dtype).tiny)
            rows = self._log_union()[labels.annotator, :, labels.label]
            log_joint = torch.logsumexp(output.log_truth[labels.item] + rows, 1)
        return -(target * log_joint).sum() / len(labels.items)

    def _log_union(self) -> Float[Tensor, "j k l"]:
        return self.logits - torch.logsumexp(self.logits, (0, 2), keepdim=True)

r"""The crowd layer (Rodrigues & Pereira 2018): a linear layer per annotator on the class probabilities.

    P(l | j, x) = softmax_l( z_l )        loss: mean over labels of -log P

    MW      z_l = sum_k f_k weight[j, k, l]
    VW      z_l = scale[j, l] f_l
    VB      z_l = f_l + bias[j, l]
    VW+B    z_l = scale[j, l] f_l + bias[j, l]
    SW      z_l = scale[j] f_l

f are probabilities, not logits, so z is bounded by the weights. An item that is certainly of class k has z =
weight[j, k], hence the confusion softmax_l(weight[j, k, l]); for other items the channel is the normalised
geometric mean of these rows, and the weights are not confusion matrices. Only the initial values tie class k
to label k.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.data.validation import check_option
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, diagonal_logits

KINDS = ("MW", "VW", "VB", "VW+B", "SW")


class CrowdLayer(ConfusionChannel):
    """kind: see above. size: initial diagonal of `weight`, or `scale`; 1 as published. Biases start at 0."""

    shared_truth = False
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_annotators: int, num_classes: int, kind: str = "MW", size: float = 1.0) -> None:
        super().__init__()
        check_option("kind", kind, KINDS)
        self.kind, self.sizes = kind, (num_annotators, num_classes)
        initial = {
            "MW": diagonal_logits(size, num_annotators, num_classes),
            "SW": size * torch.ones(num_annotators, 1),
            "VB": None,
        }
        weight = initial.get(kind, size * torch.ones(self.sizes))
        self.register_parameter("weight", None if weight is None else nn.Parameter(weight))
        self.register_parameter("bias", nn.Parameter(torch.zeros(self.sizes)) if "B" in kind else None)

    def confusion(self) -> Float[Tensor, "j k l"]:
        """softmax over labels of z for items certainly of each class."""
        if self.kind == "MW" and self.weight is not None:
            return torch.softmax(self.weight, -1)
        num_annotators, num_classes = self.sizes
        like = next(self.parameters())
        annotator = torch.arange(num_annotators, device=like.device)
        return torch.softmax(self._linear(torch.eye(num_classes).to(like), annotator[:, None]), -1)

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(l | j, x), log-linear in f."""
        truth = output.log_truth.exp()[labels.item]
        if self.kind == "MW" and self.weight is not None:
            return torch.log_softmax(torch.einsum("nk,nkl->nl", truth, self.weight[labels.annotator]), -1)
        return torch.log_softmax(self._linear(truth, labels.annotator), -1)

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy, mean over labels."""
        return labels.cross_entropy(self.log_label(output, labels))

    def _linear(self, truth: Float[Tensor, "n l"], annotator: Int[Tensor, "*j"]) -> Float[Tensor, "*m l"]:
        """scale f + bias, for the kinds that do not mix classes."""
        scaled = truth if self.weight is None else self.weight[annotator] * truth
        return scaled if self.bias is None else scaled + self.bias[annotator]

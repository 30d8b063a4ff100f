r"""CoNAL (Chu, Ma & Wang 2021): part of the confusion is common to all annotators, more or less by item.

    w_ij        = sigmoid( cosine( embedding(x_i), annotator_j ) )                   in [.2689, .7311]
    z_l         = sum_k f_k ( w_ij common[k, l] + (1 - w_ij) individual[j, k, l] )
    P(l | j, x) = softmax_l( z_l )
    loss        = mean over labels of -log P - strength * sum_j || individual[j] - common ||_2

The term pushes annotators *away* from the common part. Both parts start at `size` times the identity, where
the norm has no gradient; 0 is used, so that the labels alone decide the direction. A cosine is between -1 and
1, so w never switches either part off.

embedding(x) is a linear map of the input of the network's last linear layer; the paper maps the items' raw
features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, diagonal_logits


class CoNAL(ConfusionChannel):
    """width: of embeddings. size: initial diagonals. strength: weight of the distance term; 0: none."""

    shared_truth = False
    needs_features = True

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        num_features: int,
        width: int = 20,
        size: float = 2.0,
        strength: float = 1e-5,
    ) -> None:
        super().__init__()
        self.strength = strength
        self.embedding = nn.Linear(num_features, width)
        self.annotators = nn.Parameter(torch.randn(num_annotators, width))
        self.common = nn.Parameter(diagonal_logits(size, 1, num_classes)[0])
        self.individual = nn.Parameter(diagonal_logits(size, num_annotators, num_classes))

    def confusion(self) -> Float[Tensor, "j k l"]:
        """At w = 1/2: for an item whose embedding is orthogonal to the annotator's."""
        return torch.softmax((self.common + self.individual) / 2, -1)

    def common_share(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, " n"]:
        """w of every row."""
        items = nn.functional.normalize(self.embedding(output.require_features()), dim=1)
        annotators = nn.functional.normalize(self.annotators, dim=1)
        return torch.sigmoid((items[labels.item] * annotators[labels.annotator]).sum(1))

    def log_label(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, "n l"]:
        """log P(l | j, x), with the item's own w."""
        share, truth = self.common_share(output, labels)[:, None], output.log_truth.exp()
        common = (truth @ self.common)[labels.item]
        individual = torch.einsum("nk,nkl->nl", truth[labels.item], self.individual[labels.annotator])
        return torch.log_softmax(share * common + (1 - share) * individual, -1)

    def loss(self, output: NetworkOutput, labels: AnnotationTensors) -> Float[Tensor, ""]:
        """Cross-entropy, mean over labels, minus the weighted distance."""
        distance = torch.linalg.vector_norm((self.individual - self.common).flatten(1), dim=1)
        return labels.cross_entropy(self.log_label(output, labels)) - self.strength * distance.sum()

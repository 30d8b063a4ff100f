r"""A learned query per annotator that attends to the other annotators and to the item (after QuMATL, Zhang et al. 2025, arXiv:2503.15237).

    q        = query + attention(query among the queries of all annotators)        (j, d)      who is like whom; the same for every item
    u[i, j]  = q_j + attention(q_j to the vectors of item i)                        (i, j, d)   what j looks at
    h[i, j]  = u + mlp(u)                                                           shared
    logits   = h (common + own[j]) + bias + own bias[j]                             own starts at 0

Queries, `own` and own bias are an annotator's; everything else is shared. Normalised before each part. The paper's Q-Formers have many layers, a frozen
encoder of images below, and one MLP per annotator above; here it is one layer, and a classifier per annotator that starts where all others do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor, Tokens


class Queries(Predictor):
    """width: of queries. heads: of attention. looks: vectors that an embedding without places is turned into."""

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        heads: int = 4,
        looks: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_annotators, num_classes)
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads = heads
        self.tokens = Tokens(shape, width, looks)
        self.query = nn.Parameter(torch.randn(num_annotators, width) * width**-0.5)
        self.among, self.to_item = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.common = nn.Linear(width, num_classes)
        self.own = nn.Parameter(torch.zeros(num_annotators, width, num_classes))
        self.own_bias = nn.Parameter(torch.zeros(num_annotators, num_classes))

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """What the annotators say; they have no answer in common but the mean of these."""
        found = self.annotator_features(embedding, annotators)
        own = torch.einsum("bad,adl->bal", found, self.own[annotators])
        return Prediction(torch.log_softmax(self.common(found) + own + self.own_bias[annotators], -1))

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """h."""
        seen = self.norms[2](self.tokens(embedding))  # (b, t, d)
        everyone = self.norms[0](self.query)[None]
        query = self.query[annotators] + self._attended(self.among, everyone[:, annotators], everyone)[0]
        asking = self.norms[1](query)[None].expand(len(seen), -1, -1)
        found = query + self._attended(self.to_item, asking, seen)  # (b, a, d)
        return self.norms[4](found + self.mlp(self.norms[3](found)))

    def _attended(
        self, maps: nn.ModuleList, asking: Float[Tensor, "b a d"], seen: Float[Tensor, "b t d"]
    ) -> Float[Tensor, "b a d"]:
        query, key, value = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in zip(maps, (asking, seen, seen), strict=False)
        )
        return maps[3](scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

r"""A learned query per annotator that attends to the other annotators and to the item.

After QuMATL (Zhang et al. 2025, arXiv:2503.15237):

    q        = query + attention(query among the queries of all annotators)    (j, d), the same for every item
    u[i, j]  = q_j + attention(q_j to the tokens of item i)                     (i, j, d)
    h[i, j]  = u + mlp(u)                                                       shared
    logits   = h (common + offset[j]) + bias + offset_bias[j]                   offsets start at 0

Queries and offsets belong to an annotator; everything else is shared. Each part is preceded by a layer norm.
The paper's Q-Formers have many layers, with a frozen image encoder below and an MLP per annotator above; here
it is one layer, and a classifier per annotator that starts equal to all others.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor


class Tokens(nn.Module):
    """Tokens of an embedding for attention: the places of a feature map, or linear maps of a vector.

    A learned position embedding is added to each.
    """

    def __init__(self, shape: tuple[int, ...], width: int, tokens: int = 8) -> None:
        super().__init__()
        channels, *places = shape
        self.places = math.prod(places) if places else 0
        self.width = width
        self.project = nn.Linear(channels, width if self.places else tokens * width)
        self.position = nn.Parameter(0.02 * torch.randn(self.places or tokens, width))

    def forward(self, embedding: Float[Tensor, "b ..."]) -> Float[Tensor, "b t d"]:
        tokens = self.project(embedding.flatten(2).transpose(1, 2) if self.places else embedding)
        return tokens.reshape(len(embedding), -1, self.width) + self.position


class Queries(Predictor):
    """width: of queries. heads: of attention. tokens: number of tokens for an embedding without places."""

    def __init__(
        self,
        num_annotators: int,
        num_classes: int,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        heads: int = 4,
        tokens: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_annotators, num_classes)
        if width % heads:
            raise ValueError(f"width={width} must be a multiple of heads={heads}")
        self.heads = heads
        self.tokens = Tokens(shape, width, tokens)
        self.query = nn.Parameter(torch.randn(num_annotators, width) * width**-0.5)
        self.among, self.to_item = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(4)) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.common = nn.Linear(width, num_classes)
        self.offset = nn.Parameter(torch.zeros(num_annotators, width, num_classes))
        self.offset_bias = nn.Parameter(torch.zeros(num_annotators, num_classes))

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """Predictions of the annotators; there is no common part."""
        hidden = self.annotator_features(embedding, annotators)
        offset = torch.einsum("bad,adl->bal", hidden, self.offset[annotators])
        logits = self.common(hidden) + offset + self.offset_bias[annotators]
        return Prediction(torch.log_softmax(logits, -1))

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """h."""
        tokens = self.norms[2](self.tokens(embedding))  # (b, t, d)
        everyone = self.norms[0](self.query)[None]
        query = self.query[annotators] + self._attention(self.among, everyone[:, annotators], everyone)[0]
        item_query = self.norms[1](query)[None].expand(len(tokens), -1, -1)
        attended = query + self._attention(self.to_item, item_query, tokens)  # (b, a, d)
        return self.norms[4](attended + self.mlp(self.norms[3](attended)))

    def _attention(
        self, maps: nn.ModuleList, queries: Float[Tensor, "b a d"], tokens: Float[Tensor, "b t d"]
    ) -> Float[Tensor, "b a d"]:
        query, key, value = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in zip(maps, (queries, tokens, tokens), strict=False)
        )
        return maps[3](scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

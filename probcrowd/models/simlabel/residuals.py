r"""A common mean and spread of logits, and what every annotator adds to both (after PADL, Liao et al. 2024, arXiv:2111.13410).

    m, E, s         = mean(x),  entropy of softmax(m) in shares of log L (no gradient),  |spread((1 + E) x)|
    m_j, s_j        = m + own_j(m, low(x)),  |s + own spread_j(m, low(x))|                                low: of a few units, shared
    z_j ~ N(m_j, s_j^2),    P(j says l | x) = E softmax_l(z_j),    the same of N(m, s^2) in common
    loss            = cross-entropy of a draw of the common logits + cross-entropy of a draw of the annotator's, mean over labels

In training there is one draw; answers average over the same `DRAWS` draws, whatever the item. An annotator's own starts at 0. PADL segments
images with maps of one logit, and how others made a classifier of it is not published: this is our reading of its idea.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.simlabel.base import AnnotatorSelection, Pooled, Prediction, Predictor

DRAWS = 16


class Residuals(Predictor):
    """width: of the few units that an annotator's own part sees, besides the common mean."""

    trains_common = True
    draws: Tensor

    def __init__(
        self, num_annotators: int, num_classes: int, shape: tuple[int, ...], *, width: int = 16
    ) -> None:
        super().__init__(num_annotators, num_classes)
        self.pooled = Pooled()
        self.mean, self.spread = (nn.Linear(shape[0], num_classes) for _ in range(2))
        self.low = nn.Linear(shape[0], width)
        self.own = nn.Parameter(torch.zeros(num_annotators, num_classes + width + 1, 2 * num_classes))
        points = (
            torch.quasirandom.SobolEngine(num_classes, scramble=True, seed=0)
            .draw(DRAWS)
            .clamp(1e-4, 1 - 1e-4)
        )
        self.register_buffer("draws", torch.special.ndtri(points), persistent=False)  # (s, l)

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """What the annotators say, and what they have in common."""
        (mean, spread), features = self._common(embedding)
        own_mean, own_spread = self._own(features, annotators)
        return Prediction(
            self._averaged(mean[:, None] + own_mean, (spread[:, None] + own_spread).abs()),
            self._averaged(mean[:, None], spread[:, None])[:, 0],
        )

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """The annotator's mean logits, of which those of all classes sum to 0."""
        (mean, _), features = self._common(embedding)
        found = mean[:, None] + self._own(features, annotators)[0]
        return found - found.mean(-1, keepdim=True)

    def _common(
        self, embedding: Float[Tensor, "b ..."]
    ) -> tuple[tuple[Float[Tensor, "b l"], Float[Tensor, "b l"]], Float[Tensor, "b d"]]:
        vector = self.pooled(embedding)
        mean = self.mean(vector)
        with torch.no_grad():
            log_p = torch.log_softmax(mean, -1)
            doubt = -(log_p.exp() * log_p).sum(-1, keepdim=True) / math.log(self.num_classes)
        spread = self.spread(vector * (1 + doubt)).abs()
        return (mean, spread), torch.cat([mean, self.low(vector), mean.new_ones(len(mean), 1)], -1)

    def _own(
        self, features: Float[Tensor, "b d"], annotators: AnnotatorSelection
    ) -> tuple[Float[Tensor, "b a l"], Float[Tensor, "b a l"]]:
        mean, spread = torch.einsum("bd,adl->bal", features, self.own[annotators]).chunk(2, -1)
        return mean, spread

    def _averaged(
        self, mean: Float[Tensor, "b a l"], spread: Float[Tensor, "b a l"]
    ) -> Float[Tensor, "b a l"]:
        """log E softmax(z)."""
        if self.training:
            return torch.log_softmax(mean + spread * torch.randn_like(mean), -1)
        drawn = torch.log_softmax(mean + spread * self.draws[:, None, None], -1)  # (s, b, a, l)
        return torch.logsumexp(drawn, 0) - math.log(DRAWS)

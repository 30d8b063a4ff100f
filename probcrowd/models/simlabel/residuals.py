r"""Common mean and standard deviation of logits, plus an annotator's offsets to both.

After PADL (Liao et al. 2024, arXiv:2111.13410):

    m, E, s         = mean(x),  entropy of softmax(m) in units of log L (no gradient),  |scale((1 + E) x)|
    m_j, s_j        = m + offset_j(m, low(x)),  |s + scale offset_j(m, low(x))|    low: a few shared units
    z_j ~ N(m_j, s_j^2),    P(j gives l | x) = E softmax_l(z_j),    likewise N(m, s^2) for the common part
    loss            = cross-entropy of a draw of the common logits + that of a draw of the annotator's

Training uses one draw; predictions average over the same `DRAWS` quasi-random draws for every item. Offsets
start at 0. PADL segments images with maps of one logit, and how others turned it into a classifier is not
published: this is our reading of its idea.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.models.simlabel.base import AnnotatorSelection, Prediction, Predictor, mean_pool

DRAWS = 16


class Residuals(Predictor):
    """width: number of units that an annotator's offsets depend on, besides the common mean."""

    trains_common = True
    draws: Tensor

    def __init__(
        self, num_annotators: int, num_classes: int, shape: tuple[int, ...], *, width: int = 16
    ) -> None:
        super().__init__(num_annotators, num_classes)
        self.mean, self.scale = (nn.Linear(shape[0], num_classes) for _ in range(2))
        self.low = nn.Linear(shape[0], width)
        self.offset = nn.Parameter(torch.zeros(num_annotators, num_classes + width + 1, 2 * num_classes))
        sobol = torch.quasirandom.SobolEngine(num_classes, scramble=True, seed=0)
        points = sobol.draw(DRAWS).clamp(1e-4, 1 - 1e-4)
        self.register_buffer("draws", torch.special.ndtri(points), persistent=False)  # (s, l)

    def forward(self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection) -> Prediction:
        """Predictions of the annotators, and of the common part."""
        (mean, scale), features = self._common(embedding)
        mean_offset, scale_offset = self._offsets(features, annotators)
        return Prediction(
            self._expected(mean[:, None] + mean_offset, (scale[:, None] + scale_offset).abs()),
            self._expected(mean[:, None], scale[:, None])[:, 0],
        )

    def annotator_features(
        self, embedding: Float[Tensor, "b ..."], annotators: AnnotatorSelection
    ) -> Float[Tensor, "b a d"]:
        """The annotator's mean logits, centred over classes."""
        (mean, _), features = self._common(embedding)
        logits = mean[:, None] + self._offsets(features, annotators)[0]
        return logits - logits.mean(-1, keepdim=True)

    def _common(
        self, embedding: Float[Tensor, "b ..."]
    ) -> tuple[tuple[Float[Tensor, "b l"], Float[Tensor, "b l"]], Float[Tensor, "b d"]]:
        vector = mean_pool(embedding)
        mean = self.mean(vector)
        with torch.no_grad():
            log_p = torch.log_softmax(mean, -1)
            entropy = -(log_p.exp() * log_p).sum(-1, keepdim=True) / math.log(self.num_classes)
        scale = self.scale(vector * (1 + entropy)).abs()
        return (mean, scale), torch.cat([mean, self.low(vector), mean.new_ones(len(mean), 1)], -1)

    def _offsets(
        self, features: Float[Tensor, "b d"], annotators: AnnotatorSelection
    ) -> tuple[Float[Tensor, "b a l"], Float[Tensor, "b a l"]]:
        mean, scale = torch.einsum("bd,adl->bal", features, self.offset[annotators]).chunk(2, -1)
        return mean, scale

    def _expected(
        self, mean: Float[Tensor, "b a l"], scale: Float[Tensor, "b a l"]
    ) -> Float[Tensor, "b a l"]:
        """log E softmax(z)."""
        if self.training:
            return torch.log_softmax(mean + scale * torch.randn_like(mean), -1)
        drawn = torch.log_softmax(mean + scale * self.draws[:, None, None], -1)  # (s, b, a, l)
        return torch.logsumexp(drawn, 0) - math.log(DRAWS)

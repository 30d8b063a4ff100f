"""Options for missing labels, and the labels imputed from soft labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Missing = Literal["skip", "similarity", "uniform", "consensus"]
Divergence = Literal["paper", "released"]


@dataclass(frozen=True)
class ImputedLabels:
    """Labels imputed for pairs of item and annotator."""

    item: Int[Tensor, " n"]
    annotator: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]

    def select(self, rows: Bool[Tensor, " n"]) -> ImputedLabels:
        """The labels in these rows."""
        return ImputedLabels(self.item[rows], self.annotator[rows], self.label[rows], self.confidence[rows])

    @staticmethod
    def concatenate(parts: Sequence[ImputedLabels]) -> ImputedLabels:
        """All labels of several records."""
        names = ("item", "annotator", "label", "confidence")
        return ImputedLabels(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @staticmethod
    def empty(device: torch.device) -> ImputedLabels:
        """No labels."""
        codes = torch.zeros(0, dtype=torch.int64, device=device)
        return ImputedLabels(codes, codes, codes, torch.zeros(0, device=device))


@dataclass(frozen=True)
class SoftLabelOptions:
    """How missing labels are treated; see `probcrowd.models.simlabel.soft_labels`.

    kind, shrink: of the similarity. threshold: the confidence from which labels are imputed; None: never.
    warm_up: number of first epochs in which missing labels are skipped.
    """

    missing: Missing = "similarity"
    kind: str = "kappa"
    shrink: bool = True
    divergence: Divergence = "paper"
    kl_weight: float = 1.0
    threshold: float | None = None
    imputed: Literal["similarity", "loss"] = "similarity"
    warm_up: int = 0


def confidence(soft: Float[Tensor, "*b l"]) -> Float[Tensor, "*b"]:
    """The highest probability times one minus the entropy in units of log L: 1 if certain, 0 if uniform."""
    entropy = torch.special.entr(soft).sum(-1) / math.log(soft.shape[-1])
    return soft.amax(-1) * (1 - entropy)


def min_probability(threshold: float, num_classes: int) -> float:
    """A lower bound on the highest probability of soft labels whose confidence reaches the threshold.

    For a given highest probability, confidence is largest with all the rest on one other class; the bound is
    where that confidence equals the threshold.
    """
    bound = lambda p: p * (1 + (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(num_classes))
    low, high = 0.5, 1 - 1e-9
    if not bound(low) < threshold < bound(high):
        return threshold  # confidence never exceeds the highest probability
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if bound(middle) < threshold else (low, middle)
    return low - 1e-6

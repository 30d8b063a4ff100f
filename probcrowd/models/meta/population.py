r"""A population of annotators: a few types, each with a share of them and a Dirichlet for the rows of its confusion matrices.

    type[j]              ~ Categorical(share)
    confusion[j, k, :]   ~ Dirichlet(strength[t] * row[t, k, :])       t = type[j]
    row[t, k, k] = 1/K + (1 - 1/K) skill[t]      row[t, k, l] = (1 - row[t, k, k]) / (K - 1)

A skill of 0 is guessing whatever the number of classes K, 1 is never wrong. What one task says of an annotator is little: the population says what
annotators there are, so three labels can tell a spammer from an expert. One type with strength K (c + 1) and skill 0 is the paper's prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Those of the paper's simulated annotators: experts, hammers in two halves, spammers
SHARES, SKILLS, STRENGTHS = (0.1, 0.35, 0.35, 0.2), (0.87, 0.63, 0.43, 0.01), (20.0, 20.0, 20.0, 20.0)


@dataclass(frozen=True)
class Population:
    """Types of annotators, t of them: logarithms of shares (normalised when used), skills below 1, strengths in pseudo-counts a row."""

    log_share: Float[Tensor, " t"]
    skill: Float[Tensor, " t"]
    strength: Float[Tensor, " t"]

    @staticmethod
    def usual() -> Population:
        """The kinds that pseudo-annotators are drawn from, in their shares."""
        return Population(torch.tensor(SHARES).log(), torch.tensor(SKILLS), torch.tensor(STRENGTHS))

    def concentrations(
        self, num_classes: int, classes: Bool[Tensor, "b k"] | None, like: Tensor
    ) -> Float[Tensor, "#b t k l"]:
        """Dirichlet concentrations of each type's rows; 1 where `classes` says that a class or label is not part of the task."""
        skill, strength = (values.to(like)[:, None, None] for values in (self.skill, self.strength))
        sizes = like.new_full((1,), num_classes) if classes is None else classes.sum(-1).to(like.dtype)
        size = sizes[:, None, None, None]
        correct = 1 / size + (1 - 1 / size) * skill
        wrong = (1 - correct) / (size - 1).clamp(min=1)
        identity = torch.eye(num_classes, dtype=like.dtype, device=like.device)
        found = strength * (wrong + (correct - wrong) * identity)
        return (
            found
            if classes is None
            else torch.where((classes[:, :, None] & classes[:, None, :])[:, None], found, 1.0)
        )

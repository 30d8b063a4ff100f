r"""A population of annotators: a few types, each with a share and a Dirichlet prior for its confusion rows.

    type[j]              ~ Categorical(share)
    confusion[j, k, :]   ~ Dirichlet(strength[t] * row[t, k, :])       t = type[j]
    row[t, k, k] = 1/K + (1 - 1/K) skill[t]      row[t, k, l] = (1 - row[t, k, k]) / (K - 1)

A skill of 0 means guessing and 1 means never wrong, for every number of classes K. One task has few labels
per annotator; with the population as prior, three labels can tell a spammer from an expert. One type with
strength K (c + 1) and skill 0 is the paper's prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probcrowd.models.meta.prototype import class_pairs, classes_per_task, fill_absent

# The types that simulated annotators are drawn from in the paper: experts, hammers in two halves, spammers
SHARES, SKILLS, STRENGTHS = (0.1, 0.35, 0.35, 0.2), (0.87, 0.63, 0.43, 0.01), (20.0, 20.0, 20.0, 20.0)


@dataclass(frozen=True)
class Population:
    """Types of annotators: log shares (normalised in use), skills below 1, strengths in counts per row."""

    log_share: Float[Tensor, " t"]
    skill: Float[Tensor, " t"]
    strength: Float[Tensor, " t"]

    @staticmethod
    def default() -> Population:
        """Return the types of the paper's pseudo-annotators, in their shares."""
        return Population(torch.tensor(SHARES).log(), torch.tensor(SKILLS), torch.tensor(STRENGTHS))

    def concentrations(
        self, num_classes: int, classes: Bool[Tensor, "b k"] | None, like: Tensor
    ) -> Float[Tensor, "#b t k l"]:
        """Return the Dirichlet concentrations of each type's rows; 1 outside the task's `classes`."""
        skill, strength = (values.to(like)[:, None, None] for values in (self.skill, self.strength))
        size = classes_per_task(num_classes, classes, like)[:, None, None, None]
        correct = 1 / size + (1 - 1 / size) * skill
        wrong = (1 - correct) / (size - 1).clamp(min=1)
        identity = torch.eye(num_classes, dtype=like.dtype, device=like.device)
        pairs = class_pairs(classes)
        concentrations = strength * (wrong + (correct - wrong) * identity)
        return fill_absent(concentrations, None if pairs is None else pairs[:, None], 1.0)

r"""Simulated annotators: draw their confusion matrices, then their labels.

    expert                q ~ U(0.8, 1],   q on the diagonal, (1 - q) / (K - 1) elsewhere
    hammer                q ~ U(0.5, 0.8], the same form
    spammer               1 / K everywhere
    flipper               the next class (k + 1 mod K) with probability e ~ U(0.1, 0.5], otherwise the truth
    class-wise spammer    for each class, with probability 1/2: uniform; otherwise as an expert for that class

The first three and their default shares are the pseudo-annotators p(B) of Kumagai et al. 2025, section 4;
their meta-training never sees the other types, whose ranges are ours. All randomness comes from the caller's
`torch.Generator`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLIPPER, CLASS_SPAMMER = 3, 4  # positions among the types


@dataclass(frozen=True)
class Mixture:
    """Shares of the types of annotators; non-negative, normalised to sum to 1."""

    expert: float = 0.1
    hammer: float = 0.7
    spammer: float = 0.2
    flipper: float = 0.0
    class_spammer: float = 0.0

    def __post_init__(self) -> None:
        shares = astuple(self)
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise ValueError(
                f"shares of annotator types must be >= 0 with a positive, finite sum, got {self}"
            )

    def tensor(self, device: torch.device) -> Float[Tensor, " types"]:
        """Return the shares as a tensor, not normalised."""
        return torch.tensor([float(share) for share in astuple(self)], device=device)


@dataclass(frozen=True)
class RandomMixture:
    """Shares that vary between tasks: those of `mixture`, each times a standard exponential, normalised.

    A share of 0 stays 0. The probability that an annotator labels an item is drawn per task, uniformly
    between `least_observed` and 1.
    """

    mixture: Mixture = field(default_factory=lambda: Mixture(0.1, 0.5, 0.2, 0.1, 0.1))
    least_observed: float = 0.4

    def shares(self, num_tasks: int, generator: torch.Generator) -> Float[Tensor, "b types"]:
        """Draw the shares of each task."""
        weights = self.mixture.tensor(generator.device)
        uniform = torch.rand(num_tasks, len(weights), generator=generator, device=generator.device)
        weights = -torch.log1p(-uniform) * weights
        return weights / weights.sum(-1, keepdim=True)

    def observed(self, num_tasks: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """Draw the probability of a label for each task."""
        uniform = torch.rand(num_tasks, generator=generator, device=generator.device)
        return 1 - (1 - self.least_observed) * uniform


def draw_confusion(
    mixture: Mixture | RandomMixture,
    num_tasks: int,
    num_annotators: int,
    num_classes: int,
    generator: torch.Generator,
) -> Float[Tensor, "b j k l"]:
    """Draw new annotators for every task and return their confusion matrices; rows sum to 1."""
    shape, device = (num_tasks, num_annotators), generator.device
    if isinstance(mixture, RandomMixture):
        shares = mixture.shares(num_tasks, generator)
        kind = torch.multinomial(shares, num_annotators, replacement=True, generator=generator)
        mixture = mixture.mixture
    else:
        count = num_tasks * num_annotators
        kind = torch.multinomial(mixture.tensor(device), count, replacement=True, generator=generator)
    kind = kind.view(*shape, 1)  # (b, j, 1)
    skill = 1 - torch.rand(*shape, 1, generator=generator, device=device)  # in (0, 1], one per annotator
    lowest = torch.tensor([0.8, 0.5, 1 / num_classes, 0.0, 0.0], device=device)[kind]
    width = torch.tensor([0.2, 0.3, 0.0, 0.0, 0.0], device=device)[kind]
    correct = (lowest + width * skill).expand(*shape, num_classes)
    if mixture.class_spammer:
        spams, class_skill = torch.rand(2, *shape, num_classes, generator=generator, device=device)
        by_class = torch.where(spams < 0.5, 1 / num_classes, 1 - 0.2 * class_skill)
        correct = torch.where(kind == CLASS_SPAMMER, by_class, correct)

    identity = torch.eye(num_classes, device=device)
    elsewhere = ((1 - correct) / max(num_classes - 1, 1))[..., None]
    confusion = elsewhere + (correct[..., None] - elsewhere) * identity
    if mixture.flipper:
        flip = (0.1 + 0.4 * skill)[..., None]
        flipper = (1 - flip) * identity + flip * identity.roll(1, dims=1)
        confusion = torch.where(kind[..., None] == FLIPPER, flipper, confusion)
    return confusion


def annotate(
    truth: Int[Tensor, "b i"],
    confusion: Float[Tensor, "b j k l"],
    generator: torch.Generator,
    *,
    observed: float | Float[Tensor, " b"] = 1.0,
) -> Int[Tensor, "b i j"]:
    """Draw every annotator's label of every item; -1 where there is none.

    observed: the probability that an annotator labels an item, for all tasks or for each. Every item has at
    least one label: one annotator, drawn at random, always labels it.
    """
    tasks, items = truth.shape
    num_annotators, num_classes = confusion.shape[1:3]
    # Inverse CDF: the label is the number of cumulative probabilities, without the last, below a uniform draw
    cumulative = confusion.cumsum(-1)[..., :-1]
    bounds = cumulative.gather(
        2, truth[:, None, :, None].expand(tasks, num_annotators, items, num_classes - 1)
    )  # (b, j, i, l)
    draw = torch.rand(tasks, num_annotators, items, 1, generator=generator, device=generator.device)
    labels = (draw >= bounds).sum(-1).transpose(1, 2)  # (b, i, j)
    if isinstance(observed, Tensor) or observed < 1:
        probability = observed[:, None, None] if isinstance(observed, Tensor) else observed
        shown = torch.rand(labels.shape, generator=generator, device=generator.device) < probability
        always = torch.randint(
            num_annotators, (tasks, items, 1), generator=generator, device=generator.device
        )
        labels = torch.where(shown.scatter_(2, always, True), labels, -1)
    return labels

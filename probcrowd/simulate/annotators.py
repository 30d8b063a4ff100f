r"""Simulated annotators: what they are like (a confusion matrix each) and what they say.

    expert                q ~ U(0.8, 1],   q on the diagonal, (1 - q) / (K - 1) elsewhere
    hammer                q ~ U(0.5, 0.8], the same form
    spammer               1 / K everywhere
    flipper               says the next class (k + 1 mod K) with probability e ~ U(0.1, 0.5], else the truth
    class-wise spammer    for each class, with probability 1/2: uniform; otherwise as an expert for that class

The first three and their default shares are the pseudo-annotators p(B) of Kumagai et al. 2025, section 4; the others are kinds that
their meta-training never sees. Ranges of the last two are ours. Randomness is always the caller's `torch.Generator`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of annotators; they must not be negative and are normalised to sum to 1."""

    expert: float = 0.1
    hammer: float = 0.7
    spammer: float = 0.2
    flipper: float = 0.0
    class_spammer: float = 0.0

    def __post_init__(self) -> None:
        shares = astuple(self)
        if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise ValueError(
                f"shares of annotator kinds must be >= 0 with a positive, finite sum, got {self}"
            )


@dataclass(frozen=True)
class RandomMixture:
    """Other shares in every task: those of `mixture`, each times a standard exponential, normalised; a share of 0 stays 0.

    In every task each annotator is asked about an item with the same probability, uniform between `least_observed` and 1.
    """

    mixture: Mixture = field(default_factory=lambda: Mixture(0.1, 0.5, 0.2, 0.1, 0.1))
    least_observed: float = 0.4

    def shares(self, num_tasks: int, generator: torch.Generator) -> Float[Tensor, "b kinds"]:
        """Shares of the kinds in each task."""
        uniform = torch.rand(
            num_tasks, len(astuple(self.mixture)), generator=generator, device=generator.device
        )
        drawn = -torch.log1p(-uniform) * torch.tensor(
            [float(share) for share in astuple(self.mixture)], device=generator.device
        )
        return drawn / drawn.sum(-1, keepdim=True)

    def observed(self, num_tasks: int, generator: torch.Generator) -> Float[Tensor, " b"]:
        """The probability of being asked in each task."""
        return 1 - (1 - self.least_observed) * torch.rand(
            num_tasks, generator=generator, device=generator.device
        )


def draw_confusion(
    mixture: Mixture | RandomMixture,
    num_tasks: int,
    num_annotators: int,
    num_classes: int,
    generator: torch.Generator,
) -> Float[Tensor, "b j k l"]:
    """Confusion matrices of fresh annotators; rows sum to 1."""
    shape, device = (num_tasks, num_annotators), generator.device
    if isinstance(mixture, RandomMixture):
        kind = torch.multinomial(
            mixture.shares(num_tasks, generator), num_annotators, replacement=True, generator=generator
        )[..., None]
        mixture = mixture.mixture
    else:
        shares = torch.tensor([float(share) for share in astuple(mixture)], device=device)
        kind = torch.multinomial(
            shares, num_tasks * num_annotators, replacement=True, generator=generator
        ).view(*shape, 1)  # (b, j, 1)
    skill = 1 - torch.rand(*shape, 1, generator=generator, device=device)  # in (0, 1], one per annotator
    # Accuracy is lowest + width * skill; a spammer has no width
    lowest = torch.tensor([0.8, 0.5, 1 / num_classes, 0.0, 0.0], device=device)[kind]
    width = torch.tensor([0.2, 0.3, 0.0, 0.0, 0.0], device=device)[kind]
    correct = (lowest + width * skill).expand(*shape, num_classes)
    if mixture.class_spammer:
        spams, class_skill = torch.rand(2, *shape, num_classes, generator=generator, device=device)
        correct = torch.where(
            kind == 4, torch.where(spams < 0.5, 1 / num_classes, 1 - 0.2 * class_skill), correct
        )

    identity = torch.eye(num_classes, device=device)
    elsewhere = ((1 - correct) / max(num_classes - 1, 1))[..., None]
    confusion = elsewhere + (correct[..., None] - elsewhere) * identity
    if mixture.flipper:
        flip = (0.1 + 0.4 * skill)[..., None]
        flipper = (1 - flip) * identity + flip * identity.roll(1, dims=1)
        confusion = torch.where(kind[..., None] == 3, flipper, confusion)
    return confusion


def annotate(
    truth: Int[Tensor, "b i"],
    confusion: Float[Tensor, "b j k l"],
    generator: torch.Generator,
    *,
    observed: float | Float[Tensor, " b"] = 1.0,
) -> Int[Tensor, "b i j"]:
    """What each annotator says of each item; -1 where not asked.

    observed: the probability that an annotator is asked about an item, of all tasks or of each. Every item keeps at least one label: one annotator, drawn at
    random, is always asked.
    """
    tasks, items = truth.shape
    num_annotators, num_classes = confusion.shape[1:3]
    # Inverse CDF: the label is the number of cumulative probabilities, the last one (1) aside, that a uniform draw reaches
    cumulative = confusion.cumsum(-1)[..., :-1]
    bounds = cumulative.gather(
        2, truth[:, None, :, None].expand(tasks, num_annotators, items, num_classes - 1)
    )  # (b, j, i, l)
    draw = torch.rand(tasks, num_annotators, items, 1, generator=generator, device=generator.device)
    labels = (draw >= bounds).sum(-1).transpose(1, 2)  # (b, i, j)
    if isinstance(observed, Tensor) or observed < 1:
        bound = observed[:, None, None] if isinstance(observed, Tensor) else observed
        asked = torch.rand(labels.shape, generator=generator, device=generator.device) < bound
        always = torch.randint(
            num_annotators, (tasks, items, 1), generator=generator, device=generator.device
        )
        asked.scatter_(2, always, True)
        labels = torch.where(asked, labels, -1)
    return labels


def oracle_scores(
    labels: Int[Tensor, "b i j"], confusion: Float[Tensor, "b j k l"]
) -> Float[Tensor, "b i k"]:
    """Log likelihood of each class given an item's labels, by Bayes' rule with known confusion matrices and a uniform class prior."""
    logs = confusion.clamp(min=1e-12).log()  # a perfect expert has zeros
    tasks, _, annotators = labels.shape
    picked = logs.transpose(2, 3)[
        torch.arange(tasks, device=labels.device)[:, None, None],
        torch.arange(annotators, device=labels.device),
        labels.clamp(min=0),
    ]  # (b, i, j, k)
    return (picked * (labels >= 0)[..., None]).sum(2)

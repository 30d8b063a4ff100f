r"""Episodes: small tasks drawn from many classes, with disjoint support and query items and fresh simulated annotators.

An episode has K classes ("ways"), `shots` support items and `queries` query items of each, and R annotators who label the support
items. Everything is drawn from one `torch.Generator`, as indices into the inputs, which are gathered when they are asked for, so a
part of a batch costs only its own share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcrowd.data.images import ClassItems
from probcrowd.simulate.annotators import Mixture, RandomMixture, annotate, draw_confusion


@dataclass(frozen=True)
class EpisodeShape:
    """The size of every episode of a batch. `observed` is the probability that an annotator is asked about a support item.

    imbalanced: half of the classes have two fifths of `shots` support items, rounded, and at least one, another half as many more; an odd one
    has `shots`. Queries are balanced always.
    """

    ways: int
    shots: int
    queries: int
    annotators: int
    observed: float = 1.0
    imbalanced: bool = False

    @property
    def support_sizes(self) -> tuple[int, ...]:
        """Support items of each class."""
        few = max(1, round(0.4 * self.shots)) if self.imbalanced else self.shots
        half = self.ways // 2
        return (few,) * half + (self.shots,) * (self.ways - 2 * half) + (2 * self.shots - few,) * half


@dataclass(frozen=True)
class Episodes:
    """A batch of episodes, b of them. `labels` (b, i, j) are the annotators' (-1: not asked); the truths are coded 0..K-1."""

    support: Int[Tensor, "b i"]
    support_truth: Int[Tensor, "b i"]
    labels: Int[Tensor, "b i j"]
    query: Int[Tensor, "b q"]
    query_truth: Int[Tensor, "b q"]
    confusion: Float[Tensor, "b j k l"]

    @property
    def ways(self) -> int:
        """Classes per episode."""
        return self.confusion.shape[2]

    def part(self, index: int, of: int) -> Episodes:
        """Every `of`-th episode from the `index`-th on."""
        return Episodes(*(getattr(self, field.name)[index::of] for field in fields(self)))


@dataclass(frozen=True)
class EpisodeSource:
    """Tables that make drawing episodes a few tensor operations: `items[g, slot]` lists the items of class g, `families` its kin."""

    pool: Tensor
    scale: float
    items: Int[Tensor, "g slots"]
    sizes: Int[Tensor, " g"]
    families: Int[Tensor, "f members"]
    family_sizes: Int[Tensor, " f"]

    @staticmethod
    def of(classes: ClassItems, device: torch.device | str = "cpu") -> EpisodeSource:
        """The source of episodes over these classes."""
        items, sizes = _members(classes.label, len(classes.names))
        families, family_sizes = _members(classes.family, int(classes.family.max()) + 1)
        tables = (table.to(device) for table in (items, sizes, families, family_sizes))
        return EpisodeSource(classes.inputs.to(device), classes.scale, *tables)

    def inputs(self, index: Int[Tensor, "b i"]) -> Float[Tensor, "b i *shape"]:
        """Inputs by index, as float32; pixels in 0..1."""
        return self.pool[index].float() / self.scale


def draw_episodes(
    source: EpisodeSource,
    shape: EpisodeShape,
    mixture: Mixture | RandomMixture,
    num_tasks: int,
    generator: torch.Generator,
) -> Episodes:
    """A batch of episodes. The order of classes and of items within an episode carries no information.

    Raises:
        ValueError: fewer families than ways, or a class with fewer items than shots + queries.
    """
    index = draw_items(source, shape, num_tasks, generator)
    truth = torch.arange(shape.ways, device=index.device)[:, None].expand_as(index)
    most = max(shape.support_sizes)
    sizes = torch.tensor(shape.support_sizes, device=index.device)
    shown = (
        torch.arange(most, device=index.device) < sizes[:, None]
    ).flatten()  # of the first items of each class
    support, support_truth = (part[..., :most].flatten(1)[:, shown] for part in (index, truth))
    query, query_truth = index[..., most:].flatten(1), truth[..., most:].flatten(1)
    confusion = draw_confusion(mixture, num_tasks, shape.annotators, shape.ways, generator)
    observed = (
        mixture.observed(num_tasks, generator) if isinstance(mixture, RandomMixture) else shape.observed
    )
    labels = annotate(support_truth, confusion, generator, observed=observed)
    return Episodes(support, support_truth, labels, query, query_truth, confusion)


def draw_items(
    source: EpisodeSource, shape: EpisodeShape, num_tasks: int, generator: torch.Generator
) -> Int[Tensor, "b k n"]:
    """Which items each class of each episode shows, without annotators: first its support items, as many as the
    largest class has, then its queries.

    Raises:
        ValueError: see `draw_episodes`.
    """
    shots = max(shape.support_sizes)
    per_class = shots + shape.queries
    if shape.ways > len(source.families):
        raise ValueError(
            f"episodes of {shape.ways} classes need as many kinds of classes, the source has {len(source.families)}"
        )
    if per_class > int(source.sizes.min()):
        raise ValueError(
            f"{shots} shots + {shape.queries} queries need {per_class} items a class, one has {int(source.sizes.min())}"
        )
    device = source.items.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    family = uniform(num_tasks, len(source.families)).topk(shape.ways).indices  # (b, k)
    member = (uniform(num_tasks, shape.ways) * source.family_sizes[family]).long()
    chosen = source.families[family, member]  # (b, k)
    room: Bool[Tensor, "b k slots"] = (
        torch.arange(source.items.shape[1], device=device) < source.sizes[chosen][..., None]
    )
    slots = uniform(*room.shape).masked_fill(~room, -1.0).topk(per_class).indices
    return source.items[chosen].gather(2, slots)


def _members(group: Int[Tensor, " n"], num_groups: int) -> tuple[Int[Tensor, "g slots"], Int[Tensor, " g"]]:
    """Which rows belong to each group, padded with row 0, and how many."""
    sizes = torch.bincount(group, minlength=num_groups)
    order = torch.argsort(group, stable=True)
    slot = torch.arange(len(group)) - (torch.cumsum(sizes, 0) - sizes)[group[order]]
    table = torch.zeros(num_groups, int(sizes.max()), dtype=torch.long)
    table[group[order], slot] = order
    return table, sizes

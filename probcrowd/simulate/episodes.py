r"""Episodes: small tasks with disjoint support and query items and simulated annotators.

An episode has K classes ("ways"), `shots` support items and `queries` query items of each, and R annotators
who label the support items. Everything is drawn from one `torch.Generator`, as indices into the inputs.
Inputs are gathered on demand, so a part of a batch costs only its own share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcrowd.data.images import ClassItems
from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.simulate.annotators import Mixture, RandomMixture, annotate, draw_confusion


@dataclass(frozen=True)
class EpisodeShape:
    """The size of episodes; `observed` is the probability that an annotator labels a support item.

    imbalanced: half of the classes have two fifths of `shots` support items, rounded and at least one, the
    other half as many more; with an odd number of classes, one has `shots`. Queries are always balanced.
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
    """A batch of episodes: indices of items, true classes 0..K-1, and annotators' labels (-1: missing)."""

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
        """Return every `of`-th episode from the `index`-th on."""
        return Episodes(*(getattr(self, field.name)[index::of] for field in fields(self)))

    def chunks(self, size: int) -> list[Episodes]:
        """Split into batches of at most `size` consecutive episodes."""
        columns = (getattr(self, field.name).split(size) for field in fields(self))
        return [Episodes(*column) for column in zip(*columns, strict=True)]

    def noisy_support(self, embeddings: Float[Tensor, "b i d"]) -> Support:
        """Return the support sets with the annotators' labels; the truth stays hidden."""
        return Support(embeddings, DenseVotes.from_labels(self.labels, self.ways, embeddings.dtype))

    def clean_support(self, embeddings: Float[Tensor, "b i d"]) -> Support:
        """Return the support sets with the truth, as the labels of one annotator who is always right."""
        labels = self.support_truth[..., None]
        return Support(embeddings, DenseVotes.from_labels(labels, self.ways, embeddings.dtype))


@dataclass(frozen=True)
class EpisodeSource:
    """Tables that make drawing episodes a few tensor operations.

    `items[g, slot]` lists the items of class g, `families[f, member]` the classes of family f; `sizes` and
    `family_sizes` count the slots that are not padding.
    """

    pool: Tensor
    scale: float
    items: Int[Tensor, "g slots"]
    sizes: Int[Tensor, " g"]
    families: Int[Tensor, "f members"]
    family_sizes: Int[Tensor, " f"]

    @staticmethod
    def of(classes: ClassItems, device: torch.device | str = "cpu") -> EpisodeSource:
        """Build the source of episodes over these classes."""
        items, sizes = _members(classes.label, len(classes.names))
        families, family_sizes = _members(classes.family, int(classes.family.max()) + 1)
        tables = (table.to(device) for table in (items, sizes, families, family_sizes))
        return EpisodeSource(classes.inputs.to(device), classes.scale, *tables)

    def inputs(self, index: Int[Tensor, "b i"]) -> Float[Tensor, "b i *shape"]:
        """Return inputs by index as float32, pixels in 0..1."""
        return self.pool[index].float() / self.scale


def draw_episodes(
    source: EpisodeSource,
    shape: EpisodeShape,
    mixture: Mixture | RandomMixture,
    num_tasks: int,
    generator: torch.Generator,
) -> Episodes:
    """Draw a batch of episodes. The order of classes and of items within an episode carries no information.

    Raises:
        ValueError: fewer families than ways, or a class with fewer items than shots + queries.
    """
    index = draw_items(source, shape, num_tasks, generator)
    truth = torch.arange(shape.ways, device=index.device)[:, None].expand_as(index)
    most = max(shape.support_sizes)
    sizes = torch.tensor(shape.support_sizes, device=index.device)
    used = (
        torch.arange(most, device=index.device) < sizes[:, None]
    ).flatten()  # of each class's support items
    support, support_truth = (part[..., :most].flatten(1)[:, used] for part in (index, truth))
    query, query_truth = index[..., most:].flatten(1), truth[..., most:].flatten(1)
    confusion = draw_confusion(mixture, num_tasks, shape.annotators, shape.ways, generator)
    random = isinstance(mixture, RandomMixture)
    observed = mixture.observed(num_tasks, generator) if random else shape.observed
    labels = annotate(support_truth, confusion, generator, observed=observed)
    return Episodes(support, support_truth, labels, query, query_truth, confusion)


def draw_items(
    source: EpisodeSource, shape: EpisodeShape, num_tasks: int, generator: torch.Generator
) -> Int[Tensor, "b k n"]:
    """Draw the items of each class of each episode, without annotators.

    First come the support items, as many as the largest class has, then the queries.

    Raises:
        ValueError: see `draw_episodes`.
    """
    shots = max(shape.support_sizes)
    per_class = shots + shape.queries
    if shape.ways > len(source.families):
        raise ValueError(
            f"episodes of {shape.ways} classes need as many families of classes, "
            f"the source has {len(source.families)}"
        )
    if per_class > int(source.sizes.min()):
        raise ValueError(
            f"{shots} shots + {shape.queries} queries need {per_class} items per class, "
            f"one has {int(source.sizes.min())}"
        )
    device = source.items.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    family = uniform(num_tasks, len(source.families)).topk(shape.ways).indices  # (b, k)
    member = (uniform(num_tasks, shape.ways) * source.family_sizes[family]).long()
    chosen = source.families[family, member]  # (b, k)
    real: Bool[Tensor, "b k slots"] = (
        torch.arange(source.items.shape[1], device=device) < source.sizes[chosen][..., None]
    )
    slots = uniform(*real.shape).masked_fill(~real, -1.0).topk(per_class).indices
    return source.items[chosen].gather(2, slots)


def _members(group: Int[Tensor, " n"], num_groups: int) -> tuple[Int[Tensor, "g slots"], Int[Tensor, " g"]]:
    """Return the rows of each group, padded with row 0, and their numbers."""
    sizes = torch.bincount(group, minlength=num_groups)
    order = torch.argsort(group, stable=True)
    slot = torch.arange(len(group)) - (torch.cumsum(sizes, 0) - sizes)[group[order]]
    table = torch.zeros(num_groups, int(sizes.max()), dtype=torch.long)
    table[group[order], slot] = order
    return table, sizes

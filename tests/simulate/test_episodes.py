"""Episodes: disjoint support and queries of the right classes, even use of items, one generator."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from probcrowd.data.image_sets import load_classes
from probcrowd.data.images import ClassItems
from probcrowd.simulate.annotators import Mixture, RandomMixture
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource, draw_episodes

SHAPE = EpisodeShape(ways=3, shots=2, queries=4, annotators=5)
TASKS = 4000


def crowded(more: int = 0) -> ClassItems:
    """11 classes of 6..9 items, or `more`, in shuffled rows; classes 0-2 are one family, 3 and 4 another."""
    sizes = torch.tensor([6, 7, 8, 9, 6, 7, 8, 9, 6, 7, 8]) + more
    label = torch.repeat_interleave(torch.arange(11), sizes)[
        torch.randperm(int(sizes.sum()), generator=seeded(9))
    ]
    inputs = torch.stack([label.float(), torch.arange(len(label)).float()], 1)  # its class and its own number
    family = torch.tensor([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    return ClassItems(inputs, label, family, torch.arange(11), tuple(map(str, range(11))))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch() -> tuple[ClassItems, EpisodeSource, Episodes]:
    classes = crowded()
    source = EpisodeSource.of(classes)
    return classes, source, draw_episodes(source, SHAPE, Mixture(), TASKS, seeded())


def chosen_classes(classes: ClassItems, episodes: Episodes) -> Tensor:
    """The true class behind each way of each episode (b, k), read off its first support item."""
    first = torch.stack([(episodes.support_truth == way).long().argmax(1) for way in range(episodes.ways)], 1)
    return classes.label[episodes.support.gather(1, first)]


def test_tables_list_every_item_of_every_class_once(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    classes, source, _ = batch
    for label in range(11):
        listed = source.items[label, : source.sizes[label]].tolist()
        assert listed == torch.nonzero(classes.label == label).flatten().tolist()
    members = [source.families[family, : source.family_sizes[family]].tolist() for family in range(8)]
    assert members == [[0, 1, 2], [3, 4], [5], [6], [7], [8], [9], [10]]


def test_support_and_queries_share_no_item_and_repeat_none(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    together = torch.cat([batch[2].support, batch[2].query], 1).sort(1).values
    assert together.shape == (TASKS, 3 * (2 + 4))
    assert bool((together.diff(dim=1) > 0).all())


def test_items_belong_to_the_class_of_their_truth(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    classes, _, episodes = batch
    ways = chosen_classes(classes, episodes)
    assert torch.equal(classes.label[episodes.support], ways.gather(1, episodes.support_truth))
    assert torch.equal(classes.label[episodes.query], ways.gather(1, episodes.query_truth))


def test_episodes_are_balanced(batch: tuple[ClassItems, EpisodeSource, Episodes]) -> None:
    episodes = batch[2]
    assert episodes.ways == 3
    assert bool((one_hot(episodes.support_truth, 3).sum(1) == 2).all())
    assert bool((one_hot(episodes.query_truth, 3).sum(1) == 4).all())


def test_classes_of_an_episode_are_of_distinct_families(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    classes, _, episodes = batch
    families = classes.family[chosen_classes(classes, episodes)].sort(1).values
    assert bool((families.diff(dim=1) > 0).all())


def test_families_classes_ways_and_items_are_drawn_evenly(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    classes, source, episodes = batch
    ways = chosen_classes(classes, episodes)
    members = source.family_sizes[classes.family].double()
    expected = 3 / 8 / members  # 3 of 8 families, then one of its members
    share = torch.bincount(ways.flatten(), minlength=11) / TASKS
    assert bool(((share - expected).abs() < 4 * (expected * (1 - expected) / TASKS).sqrt()).all())
    for way in range(3):  # the position within an episode says nothing
        share = torch.bincount(ways[:, way], minlength=11) / TASKS
        assert bool(((share - expected / 3).abs() < 4 * (expected / 3 / TASKS).sqrt()).all())
    for index, per_class in ((episodes.support, 2), (episodes.query, 4)):
        used = torch.bincount(index.flatten(), minlength=len(classes.label)).double()
        mean = TASKS * expected[classes.label] * per_class / source.sizes[classes.label]
        assert bool(((used - mean).abs() < 4.5 * mean.sqrt()).all())  # 81 items


def test_parts_partition_a_batch_exactly(batch: tuple[ClassItems, EpisodeSource, Episodes]) -> None:
    episodes = batch[2]
    for of in (1, 3, 7):
        parts = [episodes.part(index, of) for index in range(of)]
        for field in fields(Episodes):
            whole = torch.empty_like(getattr(episodes, field.name))
            for index, part in enumerate(parts):
                whole[index::of] = getattr(part, field.name)
            assert torch.equal(whole, getattr(episodes, field.name))
        assert sum(len(part.support) for part in parts) == TASKS


def test_chunks_are_consecutive_episodes(batch: tuple[ClassItems, EpisodeSource, Episodes]) -> None:
    chunks = batch[2].chunks(1500)
    assert [len(chunk.support) for chunk in chunks] == [1500, 1500, 1000]
    for field in fields(Episodes):
        joined = torch.cat([getattr(chunk, field.name) for chunk in chunks])
        assert torch.equal(joined, getattr(batch[2], field.name))


def test_labels_follow_the_confusion_matrices(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    episodes = batch[2]
    assert episodes.labels.shape == (TASKS, 6, 5) and episodes.confusion.shape == (TASKS, 5, 3, 3)
    assert int(episodes.labels.min()) >= 0 and int(episodes.labels.max()) <= 2
    # E[one-hot label] is the row of the annotator's matrix: sum differences by annotator and class over tasks
    truth = one_hot(episodes.support_truth, 3).double()
    counts = torch.einsum("bijl,bik->bjkl", one_hot(episodes.labels, 3).double(), truth)
    rows = 2 * episodes.confusion.double()
    excess = (counts - rows).mean(0)
    assert bool((excess.abs() < 4.5 * (counts - rows).std(0) / math.sqrt(TASKS)).all())
    # task by task as well: the matrices that go with a task explain its labels, those of another do not
    quality = episodes.confusion.diagonal(dim1=2, dim2=3).mean(-1).double()
    right = (episodes.labels == episodes.support_truth[..., None]).double().mean(1)
    slope = float(((quality - quality.mean()) * (right - right.mean())).mean() / quality.var())
    other = quality.roll(1, 0)
    other_slope = float(((other - other.mean()) * (right - right.mean())).mean() / other.var())
    error = float(right.std() / quality.std()) / math.sqrt(right.numel())
    assert abs(slope - 1) < 4 * error and abs(other_slope) < 4 * error


def test_labels_are_observed_with_the_given_probability() -> None:
    source = EpisodeSource.of(crowded())
    episodes = draw_episodes(source, replace(SHAPE, observed=0.4), Mixture(), TASKS, seeded(1))
    given = (episodes.labels >= 0).double()
    assert bool((given.sum(-1) >= 1).all())
    share = 0.4 + 0.6 / 5
    assert abs(float(given.mean()) - share) < 4 * math.sqrt(share * (1 - share) / given.numel())


def test_items_of_a_seed_do_not_depend_on_the_annotators() -> None:
    source = EpisodeSource.of(crowded())
    one = draw_episodes(source, replace(SHAPE, annotators=1), Mixture(), 10, seeded(5))
    many = draw_episodes(source, SHAPE, Mixture(0.0, 0.0, 1.0), 10, seeded(5))
    assert torch.equal(one.support, many.support) and torch.equal(one.query, many.query)
    assert float((many.confusion - 1 / 3).abs().max()) < 1e-6
    assert float((one.confusion - 1 / 3).abs().max()) > 0.1


def test_draws_depend_on_the_generator_alone() -> None:
    source = EpisodeSource.of(crowded())
    first, again, other = (draw_episodes(source, SHAPE, Mixture(), 50, seeded(seed)) for seed in (1, 1, 2))
    for field in fields(Episodes):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name))
    for name in ("support", "query", "labels", "confusion"):
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_too_many_ways_are_refused_with_the_number_of_families() -> None:
    source = EpisodeSource.of(crowded())
    draw_episodes(source, replace(SHAPE, ways=8), Mixture(), 2, seeded())
    with pytest.raises(
        ValueError, match="episodes of 9 classes need as many families of classes, the source has 8"
    ):
        draw_episodes(source, replace(SHAPE, ways=9), Mixture(), 2, seeded())


def test_too_many_items_are_refused_with_the_smallest_class() -> None:
    source = EpisodeSource.of(crowded())
    full = draw_episodes(
        source, replace(SHAPE, shots=1, queries=5), Mixture(), 200, seeded()
    )  # the whole of the smallest class
    assert full.query.shape == (200, 15)
    with pytest.raises(ValueError, match="3 shots \\+ 4 queries need 7 items per class, one has 6"):
        draw_episodes(source, replace(SHAPE, shots=3), Mixture(), 2, seeded())


def test_pixels_are_scaled_to_one_and_other_numbers_are_not(
    batch: tuple[ClassItems, EpisodeSource, Episodes],
) -> None:
    digits = load_classes("digits")
    source = EpisodeSource.of(digits)
    index = torch.tensor([[0, 5, 9], [1796, 3, 3]])
    pixels = source.inputs(index)
    assert pixels.shape == (2, 3, 1, 8, 8) and pixels.dtype == torch.float32
    assert torch.equal(pixels, digits.inputs[index].float() / 255)
    assert float(source.inputs(torch.arange(1797)[None]).max()) == 1.0
    classes, numbers, episodes = batch
    assert torch.equal(numbers.inputs(episodes.query), classes.inputs[episodes.query])


@pytest.mark.parametrize(
    ("ways", "shots", "sizes"), [(4, 5, (2, 2, 8, 8)), (3, 3, (1, 3, 5)), (4, 1, (1, 1, 1, 1))]
)
def test_imbalanced_episodes_have_the_same_number_of_items(
    ways: int, shots: int, sizes: tuple[int, ...]
) -> None:
    source = EpisodeSource.of(crowded(15))
    shape = EpisodeShape(ways, shots, 4, 3, imbalanced=True)
    drawn = draw_episodes(source, shape, Mixture(), 10, torch.Generator().manual_seed(0))
    assert shape.support_sizes == sizes and sum(sizes) == ways * shots
    for truth, support, query, query_truth in zip(
        drawn.support_truth, drawn.support, drawn.query, drawn.query_truth, strict=True
    ):
        assert torch.bincount(truth, minlength=ways).tolist() == list(sizes)
        assert torch.bincount(query_truth, minlength=ways).tolist() == [4] * ways
        assert not set(support.tolist()) & set(query.tolist()) and len(set(support.tolist())) == len(support)


def test_random_mixtures_differ_by_task_within_their_bounds() -> None:
    mixture, generator = (
        RandomMixture(Mixture(0.1, 0.5, 0.2, 0.0, 0.2), 0.4),
        torch.Generator().manual_seed(0),
    )
    shares = mixture.shares(20_000, generator)
    torch.testing.assert_close(shares.sum(-1), torch.ones(20_000))
    assert float(shares[:, 3].max()) == 0 and float(shares[:, 1].std()) > 0.1
    first, second = shares[:, 1] / 0.5, shares[:, 4] / 0.2
    part = first / (first + second)  # of two standard exponentials: uniform
    for bound in (0.1, 0.25, 0.5, 0.9):
        assert abs(float((part < bound).double().mean()) - bound) < 4 * math.sqrt(
            bound * (1 - bound) / 20_000
        )
    observed = mixture.observed(20_000, generator)
    assert 0.4 <= float(observed.min()) < 0.401 and 0.999 < float(observed.max()) <= 1
    source = EpisodeSource.of(crowded(15))
    drawn = draw_episodes(source, EpisodeShape(3, 5, 1, 6), mixture, 400, generator)
    by_task = (drawn.labels >= 0).float().mean((1, 2))
    assert float(by_task.std()) > 0.1 and bool((drawn.labels >= 0).any(-1).all())

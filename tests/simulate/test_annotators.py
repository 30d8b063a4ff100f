"""Simulated annotators: published decoding accuracies, each type's matrix, labels that follow the matrix."""

from __future__ import annotations

import math

import pytest
import torch
from references import oracle_scores
from torch import Tensor
from torch.nn.functional import one_hot

from probcrowd.metrics.tensors import accuracy
from probcrowd.simulate.annotators import Mixture, annotate, draw_confusion

# Section 9.3 of the specification, 4 classes: one annotator, then majority vote and oracle for 3, 5 and 7
DECODING = {
    (0.1, 0.8, 0.1): (0.635, {3: (0.753, 0.802), 5: (0.850, 0.897), 7: (0.912, 0.945)}),
    (0.1, 0.7, 0.2): (0.595, {3: (0.706, 0.781), 5: (0.805, 0.877), 7: (0.872, 0.929)}),
    (0.1, 0.6, 0.3): (0.555, {3: (0.656, 0.756), 5: (0.752, 0.856), 7: (0.825, 0.912)}),
    (0.1, 0.5, 0.4): (0.515, {3: (0.604, 0.728), 5: (0.696, 0.829), 7: (0.767, 0.891)}),
}
# Section 6.3, percent of one-shot tasks with two equal non-empty vote columns, and with a class without votes
DEGENERATE = {3: (2.67, 5.15), 5: (0.60, 0.24), 7: (0.20, 0.01)}

KINDS = {
    "expert": Mixture(1.0, 0.0, 0.0),
    "hammer": Mixture(0.0, 1.0, 0.0),
    "spammer": Mixture(0.0, 0.0, 1.0),
    "flipper": Mixture(0.0, 0.0, 0.0, flipper=1.0),
    "class_spammer": Mixture(0.0, 0.0, 0.0, class_spammer=1.0),
}
DRAWS = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vote_totals(labels: Tensor, num_classes: int) -> Tensor:
    """How many annotators gave an item each label (b, i, k)."""
    return one_hot(labels + 1, num_classes + 1)[..., 1:].sum(2).float()


def standard_error(probability: float, count: int) -> float:
    return math.sqrt(probability * (1 - probability) / count)


@pytest.mark.parametrize("shares", DECODING)
def test_majority_and_oracle_decoding_reach_the_published_accuracies(
    shares: tuple[float, float, float],
) -> None:
    single, by_size = DECODING[shares]
    generator = seeded()
    confusion = draw_confusion(Mixture(*shares), DRAWS, 7, 4, generator)
    truth = torch.randint(4, (DRAWS, 1), generator=generator)
    labels = annotate(truth, confusion, generator)
    expert, hammer, spammer = shares
    assert abs(0.9 * expert + 0.65 * hammer + spammer / 4 - single) < 1e-9
    for annotator in range(7):
        assert abs(float((labels[..., annotator] == truth).float().mean()) - single) < 4 * standard_error(
            single, DRAWS
        )
    for size, (majority, oracle) in by_size.items():
        some = labels[..., :size]
        assert abs(float(accuracy(vote_totals(some, 4), truth).mean()) - majority) < 0.005
        assert abs(float(accuracy(oracle_scores(some, confusion[:, :size]), truth).mean()) - oracle) < 0.005


@pytest.mark.parametrize("size", DEGENERATE)
def test_ties_and_classes_without_votes_are_as_frequent_as_published(size: int) -> None:
    ties, unnamed = DEGENERATE[size]
    generator, tasks = seeded(), 20_000
    truth = torch.arange(4).expand(tasks, 4)
    totals = vote_totals(annotate(truth, draw_confusion(Mixture(), tasks, size, 4, generator), generator), 4)
    named = totals.sum(1) > 0  # (b, k)
    first, second = torch.triu_indices(4, 4, 1)
    equal = (totals[..., first] == totals[..., second]).all(1) & named[:, first]
    assert abs(100 * float(equal.any(1).float().mean()) - ties) < 0.4
    assert abs(100 * float((~named).any(1).float().mean()) - unnamed) < 0.4


@pytest.mark.parametrize("num_classes", [2, 4, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_probabilities(kind: str, num_classes: int) -> None:
    confusion = draw_confusion(KINDS[kind], 50, 40, num_classes, seeded())
    assert confusion.shape == (50, 40, num_classes, num_classes)
    assert float(confusion.min()) >= 0 and float(confusion.max()) <= 1
    assert float((confusion.double().sum(-1) - 1).abs().max()) < 1e-6  # single precision


@pytest.mark.parametrize(("kind", "low", "high"), [("expert", 0.8, 1.0), ("hammer", 0.5, 0.8)])
def test_experts_and_hammers_have_one_uniform_accuracy_each_and_share_errors_evenly(
    kind: str, low: float, high: float
) -> None:
    confusion = draw_confusion(KINDS[kind], 2000, 50, 4, seeded()).double()
    quality = confusion[..., 0, 0]
    identity = torch.eye(4, dtype=torch.float64)
    expected = ((1 - quality) / 3)[..., None, None] * (1 - identity) + quality[..., None, None] * identity
    assert float((confusion - expected).abs().max()) < 1e-6  # one number makes the matrix
    # 100,000 uniform draws: the extremes come within 1e-3 of the ends, the quartiles are where they belong
    assert low < float(quality.min()) < low + 1e-3 and high - 1e-3 < float(quality.max()) <= high + 1e-7
    for share in (0.25, 0.5, 0.75):
        below = float((quality < low + share * (high - low)).double().mean())
        assert abs(below - share) < 4 * standard_error(share, quality.numel())


def test_spammers_ignore_the_truth() -> None:
    assert torch.equal(draw_confusion(KINDS["spammer"], 3, 5, 4, seeded()), torch.full((3, 5, 4, 4), 0.25))


def test_flippers_say_the_truth_or_the_next_class() -> None:
    confusion = draw_confusion(KINDS["flipper"], 200, 50, 5, seeded())
    flip = confusion[..., 0, 1]
    identity = torch.eye(5)
    expected = (1 - flip)[..., None, None] * identity + flip[..., None, None] * identity[:, [4, 0, 1, 2, 3]]
    assert float((confusion - expected).abs().max()) < 1e-6
    assert float(confusion[..., 4, 0].min()) > 0  # the last class flips to the first
    assert (
        0.1 < float(flip.min()) < 0.102 and 0.498 < float(flip.max()) <= 0.5 + 1e-7
    )  # uniform: 10,000 draws reach the ends


def test_class_wise_spammers_are_uniform_for_half_of_the_classes_and_experts_for_the_others() -> None:
    confusion = draw_confusion(KINDS["class_spammer"], 500, 20, 4, seeded())
    correct = confusion.diagonal(dim1=2, dim2=3)  # (b, j, k)
    guessed = (confusion == 0.25).all(-1)
    assert bool((guessed | (correct > 0.8)).all())
    others = ((1 - correct) / 3)[..., None] * (1 - torch.eye(4)) + torch.diag_embed(correct)
    assert float((confusion - others).abs().max()) < 1e-6
    # 40,000 classes, each with probability 1/2 and independent of the annotator's other classes
    assert abs(float(guessed.float().mean()) - 0.5) < 4 * standard_error(0.5, guessed.numel())
    both = (guessed[..., 0] & guessed[..., 1]).float().mean()
    assert abs(float(both) - 0.25) < 4 * standard_error(0.25, guessed[..., 0].numel())
    skills = correct[~guessed]
    assert abs(float(skills.mean()) - 0.9) < 4 * 0.2 / math.sqrt(12 * len(skills))


def test_types_are_drawn_for_every_annotator_of_every_task_in_the_given_shares() -> None:
    shares = {"expert": 2.0, "hammer": 3.0, "spammer": 1.0, "flipper": 3.0, "class_spammer": 1.0}
    confusion = draw_confusion(Mixture(**shares), 20_000, 2, 5, seeded())
    rows = confusion.diagonal(dim1=2, dim2=3)
    spammer = ((confusion - 0.2).abs() < 1e-6).all(-1).all(-1)
    flipper = (confusion[..., 0, 2] == 0) & ((rows - rows[..., :1]).abs() < 1e-6).all(
        -1
    )  # an expert errs to every class
    counts = {
        "spammer": (0.1 + 0.1 * 0.5**5, spammer),
        "flipper": (0.3, flipper),
    }  # some class-wise spammers guess every class
    for share, drawn in counts.values():
        for annotator in range(2):
            assert abs(float(drawn[:, annotator].float().mean()) - share) < 4 * standard_error(share, 20_000)
        both = float((drawn[:, 0] & drawn[:, 1]).float().mean())
        assert abs(both - share**2) < 4 * standard_error(share**2, 20_000)
    assert len(torch.unique(rows[..., 0][flipper])) > 0.99 * int(flipper.sum())  # and the numbers too


def test_labels_follow_the_confusion_matrix_of_their_annotator() -> None:
    confusion = draw_confusion(Mixture(1.0, 1.0, 0.0, 1.0, 1.0), 2, 4, 3, seeded(1))
    truth = (torch.arange(60_000) % 3).expand(2, -1)
    labels = annotate(truth, confusion, seeded(2))
    votes = one_hot(labels, 3).double()  # (b, i, j, l)
    counts = torch.einsum("bijl,bik->bjkl", votes, one_hot(truth, 3).double())
    expected = 20_000 * confusion.double()
    possible = expected > 1e-3
    assert bool((counts[~possible] == 0).all())
    squares = torch.where(possible, (counts - expected) ** 2 / expected.clamp(min=1e-3), 0.0).sum(
        -1
    )  # chi square with at most 2 freedoms
    assert float(squares.max()) < 20.0  # 24 rows; exceeded by one with probability 24 exp(-10) = 1e-3
    right = (labels == truth[..., None]).double()
    both = (right[..., 0] * right[..., 1]).mean()  # given the truth, annotators err independently
    accuracies = confusion.double().diagonal(dim1=2, dim2=3)
    assert abs(float(both) - float((accuracies[:, 0] * accuracies[:, 1]).mean())) < 4 * 0.5 / math.sqrt(
        120_000
    )


def test_a_perfect_annotator_is_never_wrong() -> None:
    truth = torch.randint(4, (50, 200), generator=seeded())
    labels = annotate(truth, torch.eye(4).expand(50, 2, 4, 4), seeded(1))
    assert torch.equal(labels, truth[..., None].expand_as(labels))


@pytest.mark.parametrize("observed", [0.0, 0.3, 0.8, 1.0])
def test_every_item_keeps_a_label_and_the_observed_share_is_as_computed(observed: float) -> None:
    tasks, items, annotators = 200, 50, 4
    confusion = draw_confusion(Mixture(), tasks, annotators, 3, seeded())
    labels = annotate(
        torch.randint(3, (tasks, items), generator=seeded(1)), confusion, seeded(2), observed=observed
    )
    given = (labels >= 0).double()
    assert int(labels.min()) >= -1 and int(labels.max()) <= 2
    assert bool((given.sum(-1) >= 1).all())
    share = observed + (1 - observed) / annotators
    error = float(given.mean(-1).std()) / math.sqrt(tasks * items)  # over items, which are independent
    assert abs(float(given.mean()) - share) <= 4 * error + 1e-12
    for annotator in range(annotators):  # the one who always labels is drawn at random
        assert (
            abs(float(given[..., annotator].mean()) - share)
            <= 4 * standard_error(share, tasks * items) + 1e-12
        )


def test_draws_depend_on_the_generator_alone() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = seeded(seed)
        confusion = draw_confusion(Mixture(), 4, 5, 3, generator)
        return confusion, annotate(torch.zeros(4, 30, dtype=torch.long), confusion, generator, observed=0.5)

    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    generator = seeded(1)
    assert not torch.equal(
        draw_confusion(Mixture(), 4, 5, 3, generator), draw_confusion(Mixture(), 4, 5, 3, generator)
    )


@pytest.mark.parametrize(
    ("shares", "shown"),
    [
        ((-0.1, 0.8, 0.3), r"expert=-0\.1"),
        ((0.0, 0.0, 0.0), r"hammer=0\.0"),
        ((math.nan, 0.5, 0.5), "expert=nan"),
        ((0.5, math.nan, 0.5), "hammer=nan"),
        ((0.5, 0.5, math.inf), "spammer=inf"),
    ],
)
def test_invalid_shares_are_refused_and_shown(shares: tuple[float, float, float], shown: str) -> None:
    with pytest.raises(ValueError, match=rf"must be >= 0 with a positive, finite sum, got .*{shown}"):
        Mixture(*shares)

"""Scores of log probabilities against hand computation."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch.nn.functional import one_hot

from probcrowd.metrics.scores import TIE
from probcrowd.metrics.tensors import accuracy, aligned_confusion_error, confusion_error, log_loss


def test_accuracy_is_one_zero_or_the_share_of_a_tie() -> None:
    scores = torch.tensor(
        [[0.1, 0.7, 0.2], [0.1, 0.7, 0.2], [0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [1.0, 1.0, 1.0]],
        dtype=torch.float64,
    )
    truth = torch.tensor([1, 0, 1, 2, 2])
    expected = torch.tensor([1, 0, 1 / 2, 0, 1 / 3], dtype=torch.float64)
    torch.testing.assert_close(accuracy(scores, truth), expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        accuracy(scores.view(5, 1, 3), truth.view(5, 1)), expected.view(5, 1), rtol=0, atol=1e-15
    )


def test_accuracy_in_ties_is_that_of_a_random_pick() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(3, (200, 5), generator=generator).float()  # few values: most rows have ties
    truth = torch.randint(5, (200,), generator=generator)
    picks = (scores + 0.5 * torch.rand(4000, 200, 5, generator=generator)).argmax(-1)  # ties broken at random
    assert float(((scores == scores.amax(-1, keepdim=True)).sum(-1) > 1).float().mean()) > 0.3
    hits = (picks == truth).float().mean(1)
    error = float(hits.std()) / math.sqrt(len(hits))
    assert abs(float(hits.mean()) - float(accuracy(scores, truth).mean())) < 4 * error


@pytest.mark.parametrize(("gap", "share"), [(0.5, 1 / 2), (2.0, 1.0)])
def test_scores_within_the_tolerance_tie(gap: float, share: float) -> None:
    scores = torch.tensor([[0.0, -gap * TIE, -1.0]], dtype=torch.float64)
    assert accuracy(scores, torch.tensor([0])).tolist() == [share]


def test_accuracy_does_not_depend_on_the_order_of_classes() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    truth = torch.tensor([0, 2])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(accuracy(scores, truth), accuracy(scores[:, order], torch.argsort(order)[truth]))


def test_log_loss_is_the_negative_log_probability_of_the_truth() -> None:
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]], dtype=torch.float64)
    expected = torch.tensor([[math.log(4), -math.log(0.8)]], dtype=torch.float64)
    torch.testing.assert_close(
        log_loss(probabilities.log(), torch.tensor([[1, 2]])), expected, rtol=0, atol=1e-15
    )
    certain = torch.tensor([[0.0, -math.inf]])
    assert log_loss(certain, torch.tensor([0])).tolist() == [0.0]
    assert log_loss(certain, torch.tensor([1])).tolist() == [math.inf]


def test_confusion_error_is_the_mean_total_variation_of_rows() -> None:
    left = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    right = torch.tensor([[0.6, 0.2, 0.2], [0.2, 0.5, 0.3], [0.5, 0.5, 0.0]], dtype=torch.float64)
    assert float(confusion_error(left, right)) == pytest.approx((0.3 + 0.0 + 1.0) / 3, abs=1e-15)
    batch = confusion_error(torch.stack([left, left]), torch.stack([right, left]))
    assert batch.tolist() == pytest.approx([1.3 / 3, 0.0], abs=1e-15)
    disjoint = one_hot(torch.arange(3)).double()
    assert float(confusion_error(disjoint, disjoint.roll(1, 0))) == 1.0


def test_errors_of_confusion_matrices_up_to_the_names_of_classes() -> None:
    """Against all permutations, one for all annotators."""
    generator = torch.Generator().manual_seed(0)
    estimated, true = (
        torch.softmax(2 * torch.randn(5, 4, 4, generator=generator, dtype=torch.float64), -1)
        for _ in range(2)
    )
    found = aligned_confusion_error(estimated, true)
    every = [confusion_error(estimated[:, list(order)], true) for order in permutations(range(4))]
    torch.testing.assert_close(found, min(every, key=lambda errors: float(errors.sum())))
    torch.testing.assert_close(
        aligned_confusion_error(true[:, [2, 0, 3, 1]], true), torch.zeros(5, dtype=torch.float64)
    )

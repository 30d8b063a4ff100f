"""Scores against hand computation, and the coverage of the interval."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch.nn.functional import one_hot

from probcrowd.metrics.tensors import (
    Interval,
    accuracy,
    aligned_confusion_error,
    confusion_error,
    interval,
    log_loss,
)


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


def test_interval_equals_the_hand_computation() -> None:
    # 1, 2, 3, 6: mean 3, sum of squares 14, standard deviation sqrt(14 / 3)
    found = interval(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64))
    assert found.mean == 3.0 and found.count == 4
    assert found.half_width == pytest.approx(1.96 * math.sqrt(14 / 3) / 2, abs=1e-14)
    assert str(Interval(0.12345, 0.0106, 9)) == "0.123 ± 0.011"


def test_interval_of_one_value_is_unknown() -> None:
    found = interval(torch.tensor([0.25]))
    assert found.mean == 0.25 and found.count == 1 and math.isnan(found.half_width)


def test_interval_covers_the_mean_in_95_of_100_cases() -> None:
    values = torch.rand(2000, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [interval(row) for row in values]
    covered = sum(abs(one.mean - 0.5) <= one.half_width for one in found) / len(found)
    # With 100 values the spread is estimated: Student's t with 99 freedoms covers .947; four binomial errors of 2,000 cases
    assert abs(covered - 0.947) < 4 * math.sqrt(0.947 * 0.053 / 2000)
    narrower = sum(abs(one.mean - 0.5) <= one.half_width * 1.645 / 1.96 for one in found) / len(found)
    assert abs(narrower - 0.947) > 4 * math.sqrt(0.947 * 0.053 / 2000)  # the bound tells 95 % from 90 %


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

"""Intervals against hand computation and scipy, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta
from scipy.stats import t as student

from probcrowd.metrics.intervals import Interval, interval, share_interval


def test_interval_equals_the_hand_computation() -> None:
    # 1, 2, 3, 6: mean 3, sum of squares 14, standard deviation sqrt(14 / 3)
    found = interval(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found.mean == 3.0 and found.count == 4
    assert found.half_width == pytest.approx(1.96 * math.sqrt(14 / 3) / 2, abs=1e-14)
    assert str(Interval(0.12345, 0.0106, 9)) == "0.123 ± 0.011"


def test_interval_of_one_value_is_unknown() -> None:
    found = interval(np.array([0.25]))
    assert found.mean == 0.25 and found.count == 1 and math.isnan(found.half_width)


def test_interval_covers_the_mean_in_95_of_100_cases() -> None:
    values = np.random.default_rng(0).random((2000, 100))
    found = [interval(row) for row in values]
    covered = sum(abs(one.mean - 0.5) <= one.half_width for one in found) / len(found)
    # The deviation is estimated: Student's t with 99 degrees of freedom covers .947, within four errors
    assert abs(covered - 0.947) < 4 * math.sqrt(0.947 * 0.053 / 2000)
    narrower = sum(abs(one.mean - 0.5) <= one.half_width * 1.645 / 1.96 for one in found) / len(found)
    assert abs(narrower - 0.947) > 4 * math.sqrt(0.947 * 0.053 / 2000)  # the bound tells 95 % from 90 %


def test_student_intervals_cover_the_mean_of_three_normal_values_in_95_of_100_cases() -> None:
    values = np.random.default_rng(0).normal(size=(4000, 3))
    result = [interval(row, t=True) for row in values]
    assert result[0].half_width == pytest.approx(
        student.ppf(0.975, 2) * values[0].std(ddof=1) / math.sqrt(3), rel=1e-14
    )
    error = math.sqrt(0.95 * 0.05 / len(values))
    assert abs(np.mean([abs(one.mean) <= one.half_width for one in result]) - 0.95) < 4 * error
    normal = np.mean([abs(row.mean()) <= interval(row).half_width for row in values])
    assert normal < 0.95 - 4 * error  # three values are too few for 1.96 standard errors


def test_share_intervals_hold_95_per_cent_of_the_jeffreys_posterior() -> None:
    lower, upper = share_interval(np.array([0, 7]), np.array([4, 10]))
    posterior = beta([0.5, 7.5], [4.5, 3.5])
    np.testing.assert_allclose(posterior.cdf(lower), 0.025, rtol=1e-9)
    np.testing.assert_allclose(posterior.sf(upper), 0.025, rtol=1e-9)

"""Levels of all intervals, and intervals of means and shares.

Intervals hold 95 % unless their name says otherwise: central 95 % of draws, mean +- 1.96 standard errors, or
Student's t where there are few values. Tables of annotators give central 90 % intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import beta
from scipy.stats import t as student

LEVEL, ANNOTATOR_LEVEL = 0.95, 0.9
LEVELS = (0.5, 0.8, 0.9, 0.95)  # nominal levels whose coverage is checked
CENTRAL, CENTRAL_HALF = (0.025, 0.975), (0.25, 0.75)  # quantiles that bound a central 95 and 50 %
_NORMAL = 1.96


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, mean +- half_width, over `count` independent values."""

    mean: float
    half_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def interval(values: Float[np.ndarray, " n"], *, t: bool = False) -> Interval:
    """Mean of independent values with its 95 % interval, normal or Student's t; nan for a single value."""
    count = len(values)
    if count < 2:
        return Interval(float(values.mean()), math.nan, count)
    factor = student.ppf(CENTRAL[1], count - 1) if t else _NORMAL
    return Interval(float(values.mean()), float(factor * values.std(ddof=1) / math.sqrt(count)), count)


def share_interval(hits: Any, count: Any) -> tuple[np.ndarray, np.ndarray]:
    """Central 95 % interval of a share, given the numbers of hits and of trials (Jeffreys)."""
    lower, upper = (beta.ppf(p, hits + 0.5, count - hits + 0.5) for p in CENTRAL)
    return lower, upper


def central(level: float) -> tuple[float, float]:
    """Quantiles that bound a central interval of that level."""
    return (1 - level) / 2, (1 + level) / 2

"""The result of GLAD, KOS, minimax entropy and Snorkel's label model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Result:
    """Label probabilities of every item, and the course of the fit.

    probabilities: p(truth = k | annotations), rows sum to 1. objective: its value after each iteration (the
    log posterior, or a bound on the log evidence, which never falls); empty for methods without one.
    converged: whether the stopping rule was met within the iterations allowed. parameters: the method's own,
    by name; axes i item, j annotator, k true class, l label.
    """

    probabilities: Float64[np.ndarray, "i k"]
    objective: Float64[np.ndarray, " t"]
    converged: bool
    parameters: dict[str, np.ndarray] = field(default_factory=dict)

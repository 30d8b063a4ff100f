"""What an aggregator of labels answers, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Result:
    """Label probabilities of every item, and how they were reached.

    probabilities: p(truth = k | annotations), rows sum to 1. objective: what the method raises, after every
    iteration, so that it never falls where the method promises that (the log posterior, or a bound on the log
    evidence); empty where there is none. converged: whether the stopping rule was met before the iterations
    ran out. parameters: the method's own, by name; axes i item, j annotator, k true class, l label.
    """

    probabilities: Float64[np.ndarray, "i k"]
    objective: Float64[np.ndarray, " t"]
    converged: bool
    parameters: dict[str, np.ndarray] = field(default_factory=dict)

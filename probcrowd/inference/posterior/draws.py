"""The record that every sampler returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True)
class Draws:
    """Draws of a model's sites, c chains of s draws each.

    samples: by site, derived sites (`confusion`) included; the axes after (chain, draw) are `Model.dims`.
    stats: by name, one value per draw: `lp`, the log posterior density of the sites as declared (true classes
    summed out, no Jacobian, every constant included), and statistics of the sampler.
    responsibilities: p(truth = k | rows of item i, parameters), averaged over the draws of each chain.
    agreement: sum over items of p(truth = k | rows of i, parameters) times the share of i's votes for label
        m, for each draw.
    """

    samples: dict[str, Shaped[np.ndarray, "c s ..."]]
    stats: dict[str, Shaped[np.ndarray, "c s"]]
    responsibilities: Float[np.ndarray, "c i k"]
    agreement: Float[np.ndarray, "c s k m"]

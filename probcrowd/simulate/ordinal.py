r"""Annotators who see a latent score and cut it into ordered classes.

score[i] ~ N(0, 1)     truth[i] = the class k with  cut[k - 1] <= score[i] < cut[k],
                       cut[k] = the standard normal quantile of the class prior's cumulative sum
y ~ N(score[i] + bias[j], noise[j]^2)
label = the class that y falls into between annotator j's own cuts, by default the same
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy.special import ndtr, ndtri

from probcrowd.simulate.skill import check_cells

_NODES = 1000


@dataclass(frozen=True)
class OrdinalAnnotators:
    """Annotators of an ordinal scale, for `simulate_annotations(annotators=OrdinalAnnotators(...))`.

    number: of annotators. bias: of each, or the standard deviation from which biases are drawn. noise:
    standard deviation of an annotator's error, one for all or one each. cuts: cut points of each annotator
    (j, k - 1), increasing; None: those of the truth. Scores have standard deviation 1.

    >>> from probcrowd.simulate import simulate_annotations
    >>> simulate_annotations(50, OrdinalAnnotators(4), classes=["poor", "fair", "good"], seed=0).annotations
    Annotations(200 rows, num_items=50, num_annotators=4, num_classes=3)
    """

    number: int = 8
    bias: float | Sequence[float] | np.ndarray = 0.3
    noise: float | Sequence[float] | np.ndarray = 0.5
    cuts: np.ndarray | None = None

    def draw(self, rng: np.random.Generator, class_prior: Float64[np.ndarray, " k"]) -> "OrdinalScale":
        """The scale with the biases drawn.

        Raises:
            ValueError: no annotators, numbers of the wrong shape, negative noise, or cut points that do not
                increase.
        """
        if self.number < 1:
            raise ValueError("there must be at least one annotator")
        check_cells(self.number, len(class_prior))
        for name in ("bias", "noise"):
            value = np.asarray(getattr(self, name), float)
            if value.shape not in ((), (self.number,)) or not np.isfinite(value).all():
                raise ValueError(f"{name} must be one finite number or {self.number}, one for each annotator")
        if np.min(self.noise) < 0 or (np.ndim(self.bias) == 0 and np.min(self.bias) < 0):
            raise ValueError("noise, and bias where it is a standard deviation, must be >= 0")
        truth_cuts = ndtri(class_prior.cumsum()[:-1].clip(0, 1))
        shape = (self.number, len(truth_cuts))
        cuts = np.broadcast_to(truth_cuts, shape) if self.cuts is None else np.asarray(self.cuts, float)
        if cuts.shape != shape or (np.diff(cuts, axis=1) < 0).any():
            raise ValueError(f"cuts must be increasing numbers of shape {shape}, annotators x (classes - 1)")
        bias = rng.normal(size=self.number) * self.bias if np.ndim(self.bias) == 0 else self.bias
        noise = np.broadcast_to(np.asarray(self.noise, float), (self.number,))
        ids = pd.Index([f"a{j}" for j in range(self.number)])
        return OrdinalScale(ids, np.asarray(bias, float), noise, cuts, class_prior)


@dataclass(frozen=True)
class OrdinalScale:
    """Annotators with biases, noises and cut points."""

    ids: pd.Index
    bias: Float64[np.ndarray, " j"]
    noise: Float64[np.ndarray, " j"]
    cuts: Float64[np.ndarray, "j cuts"]
    class_prior: Float64[np.ndarray, " k"]

    def draw_scores(
        self, rng: np.random.Generator, truth: Int64[np.ndarray, " i"]
    ) -> Float64[np.ndarray, " i"]:
        """Scores of items given their true classes: normal, truncated to the class."""
        upper = self.class_prior.cumsum().clip(0, 1)
        lower = np.append(0.0, upper[:-1])
        uniform = lower[truth] + (upper - lower)[truth] * rng.random(len(truth))
        return ndtri(uniform.clip(1e-300, 1 - 1e-16))

    def draw_labels(
        self,
        rng: np.random.Generator,
        annotator: Int64[np.ndarray, " n"],
        score: Float64[np.ndarray, " n"],
    ) -> Int64[np.ndarray, " n"]:
        """A label for each row, given the score of its item."""
        perceived = score + self.bias[annotator] + self.noise[annotator] * rng.normal(size=len(score))
        label = np.zeros(len(score), np.int64)
        for cut in self.cuts.T:
            label += perceived >= cut[annotator]
        return label

    @property
    def confusion(self) -> Float64[np.ndarray, "j k l"]:
        """P(label | true class) over the scores of the class, by the midpoint rule: exact to 1e-3."""
        upper = self.class_prior.cumsum().clip(0, 1)
        lower = np.append(0.0, upper[:-1])
        middle = (np.arange(_NODES) + 0.5) / _NODES
        score = ndtri(lower[:, None] + (upper - lower)[:, None] * middle)  # (k, nodes)
        confusion = np.empty((len(self.ids), len(upper), len(upper)))
        for j, (bias, noise, cuts) in enumerate(zip(self.bias, self.noise, self.cuts, strict=True)):
            gap = cuts - score[..., None] - bias
            below = ndtr(gap / noise) if noise > 0 else (gap > 0).astype(float)  # P(label <= l)
            edge = np.zeros((*score.shape, 1))
            confusion[j] = np.diff(np.concatenate([edge, below, edge + 1], axis=2), axis=2).mean(1)
        return confusion

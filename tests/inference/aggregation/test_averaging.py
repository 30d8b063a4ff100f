"""Probabilities averaged in closed form against those of sampling, which they approximate."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.inference.posterior.sample import sample_posterior
from probcrowd.inference.posterior.tree import array


def sparse_crowd(seed: int) -> Annotations:
    """200 items of three classes, four labels each by 40 annotators of any accuracy: about 20 labels each."""
    rng = np.random.default_rng(seed)
    truth, accuracy = rng.integers(3, size=200), rng.beta(6, 3, size=40)
    rows = []
    for item, is_a in enumerate(truth):
        for annotator in rng.choice(40, 4, replace=False):
            label = is_a if rng.random() < accuracy[annotator] else (is_a + rng.integers(1, 3)) % 3
            rows.append((item, annotator, label))
    return Annotations.from_frame(pd.DataFrame(rows, columns=["item", "annotator", "label"]))


def test_averaging_comes_close_to_the_sampled_posterior_where_the_mode_does_not() -> None:
    gaps = {"averaged": [], "variational": [], "plug-in": []}
    for seed in range(2):
        annotations = sparse_crowd(seed)
        sampled = array(
            sample_posterior(annotations, seed=seed, warmup=300, draws=500, progress=False),
            "responsibilities",
            "mean",
        )
        for confidence, gap in gaps.items():
            fitted = (
                DawidSkene(confidence=confidence, dependence="ignore")
                .fit(annotations)
                .probabilities_.to_numpy()
            )
            gap.append(np.abs(fitted - sampled).sum(1).mean() / 2)
    averaged, variational, plug_in = (np.array(gap) for gap in gaps.values())
    assert (averaged < 0.5 * plug_in).all() and (averaged < variational).all() and averaged.max() < 0.05

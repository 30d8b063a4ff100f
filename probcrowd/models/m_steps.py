"""M steps of MAP-EM in closed form: the sites that maximise the expected log joint density, given expected
counts.

    class_prior[k]     proportional to a[k] - 1 + class_counts[k]
    confusion[k, :]    proportional to c[k, :] - 1 + counts[k, :]
    accuracy[j]        Beta(right, wrong) likewise, with counts on and off the diagonal
    competence, spam   MACE; which matching labels were guesses is latent too, so the current sites matter
    prototype[k]       sum over items of q[i, k] x[i] / (tau + class_counts[k])

Concentrations below 1 have no interior maximum; counts below 0 are then taken as 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.priors import CoinPrior, Counts, DirichletPrior, SpamPrior

Sites = dict[str, Any]


def confusion_step(expected: ExpectedCounts, prior: DirichletPrior, sites: Sites) -> Sites:
    """A confusion matrix per annotator."""
    confusion = _mode(prior.confusion - 1 + expected.counts)
    return {"class_prior": _class_prior(expected, prior.class_prior), "confusion": confusion}


def shared_confusion_step(expected: ExpectedCounts, prior: DirichletPrior, sites: Sites) -> Sites:
    """One confusion matrix that all annotators share."""
    confusion = _mode(prior.confusion - 1 + expected.counts.sum(0))
    return {"class_prior": _class_prior(expected, prior.class_prior), "confusion": confusion}


def coin_step(expected: ExpectedCounts, prior: CoinPrior, sites: Sites) -> Sites:
    """One accuracy per annotator."""
    right, total = expected.right, expected.counts.sum((1, 2))
    pairs = np.stack([prior.right - 1 + right, prior.wrong - 1 + total - right], -1)
    return {"class_prior": _class_prior(expected, prior.class_prior), "accuracy": _mode(pairs)[:, 0]}


def spam_step(expected: ExpectedCounts, prior: SpamPrior, sites: Sites) -> Sites:
    """A competence and spamming habits per annotator."""
    competence, spam = np.asarray(sites["competence"])[:, None], np.asarray(sites["spam"])
    match = expected.counts.diagonal(axis1=1, axis2=2)  # (j, l)
    honest = match * competence / (competence + (1 - competence) * spam)
    guessed = expected.counts.sum(1) - honest  # (j, l)
    pairs = np.stack([prior.honest - 1 + honest.sum(1), prior.spamming - 1 + guessed.sum(1)], -1)
    return {"competence": _mode(pairs)[:, 0], "spam": _mode(prior.answers - 1 + guessed)}


def prototype_step(expected: ExpectedCounts, prior: Counts, sites: Sites) -> Sites:
    """Prototypes of the classes, and a confusion matrix per annotator."""
    concentrations = DirichletPrior.of_counts(prior, expected.rows.num_classes)
    return confusion_step(expected, concentrations, sites) | {"prototype": prototypes(expected, prior)}


def prototypes(expected: ExpectedCounts, prior: Counts) -> Float[np.ndarray, "k d"]:
    """Means of the features by class, shrunk towards 0."""
    total = expected.class_counts + float(prior.precision)
    return expected.responsibilities.T @ expected.features / total[:, None]


def _class_prior(expected: ExpectedCounts, concentrations: np.ndarray) -> Float[np.ndarray, " k"]:
    return _mode(concentrations - 1 + expected.class_counts)


def _mode(counts: Float[np.ndarray, "*j k"]) -> Float[np.ndarray, "*j k"]:
    counts = np.maximum(counts, 0)
    total = counts.sum(-1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, 1 / counts.shape[-1]), where=total > 0)

"""Blocks of the compiled Gibbs sampler: what a model's parameters are conjugate to, as concentrations.

    kind        parameters given the true classes
    CONFUSION   class_prior and confusion rows ~ Dirichlet; prototype[k] ~ Normal where there are features
    COIN        class_prior ~ Dirichlet, accuracy[j] ~ Beta
    SPAM        competence[j] ~ Beta, spam[j] ~ Dirichlet; classes equally likely

A `Model` whose parameters are of one of these kinds returns its blocks from `Model.gibbs`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from probcrowd.data.rows import Rows
from probcrowd.models.priors import CoinPrior, Counts, DirichletPrior, SpamPrior

CONFUSION, COIN, SPAM = 0, 1, 2


class GibbsBlocks(NamedTuple):
    """kind: see above; rows: concentrations of confusion rows; coin: of right and wrong, or honest and
    spamming; precision: of prototypes.

    Arrays that a kind does not use are empty or 1.
    """

    kind: int
    class_prior: Float64[np.ndarray, " k"]
    rows: Float64[np.ndarray, "j k l"]
    coin: Float64[np.ndarray, " 2"]
    answers: float
    precision: float


def confusion_blocks(
    prior: DirichletPrior, rows: Rows, *, shared: bool = False, precision: float = 1.0
) -> GibbsBlocks:
    """A confusion matrix per annotator, or one that all share.

    Raises:
        ValueError: a prior of another number of classes or annotators, or a precision that is not positive.
    """
    _check_positive(precision)
    class_prior = _class_prior(prior.class_prior, rows)
    classes, tables, given = (
        rows.num_classes,
        1 if shared else rows.num_annotators,
        prior.confusion.shape[:-2],
    )
    if given not in ((), (tables,)) or (given and shared):
        raise ValueError(
            f"concentrations of shape {prior.confusion.shape} do not fit {tables} confusion matrices "
            f"for {rows.num_annotators} annotators"
        )
    confusion = np.array(np.broadcast_to(prior.confusion, (tables, classes, classes)), float, order="C")
    return GibbsBlocks(CONFUSION, class_prior, confusion, np.ones(2), 1.0, precision)


def shared_confusion_blocks(prior: DirichletPrior, rows: Rows) -> GibbsBlocks:
    """One confusion matrix that all annotators share."""
    return confusion_blocks(prior, rows, shared=True)


def prototype_blocks(prior: Counts, rows: Rows) -> GibbsBlocks:
    """A confusion matrix per annotator and a prototype per class."""
    concentrations = DirichletPrior.of_counts(prior, rows.num_classes)
    return confusion_blocks(concentrations, rows, precision=float(prior.precision))


def coin_blocks(prior: CoinPrior, rows: Rows) -> GibbsBlocks:
    """One accuracy per annotator."""
    class_prior = _class_prior(prior.class_prior, rows)
    _check_positive(prior.right, prior.wrong, *class_prior)
    return GibbsBlocks(
        COIN, class_prior, _no_rows(rows), np.array([prior.right, prior.wrong], float), 1.0, 1.0
    )


def spam_blocks(prior: SpamPrior, rows: Rows) -> GibbsBlocks:
    """A competence and spamming habits per annotator."""
    _check_positive(prior.honest, prior.spamming, prior.answers)
    coin = np.array([prior.honest, prior.spamming], float)
    return GibbsBlocks(SPAM, np.ones(rows.num_classes), _no_rows(rows), coin, float(prior.answers), 1.0)


def _no_rows(rows: Rows) -> Float64[np.ndarray, "0 k k"]:
    return np.empty((0, rows.num_classes, rows.num_classes))


def _class_prior(concentrations: Any, rows: Rows) -> Float64[np.ndarray, " k"]:
    if len(concentrations) != rows.num_classes:
        raise ValueError(f"the prior is for {len(concentrations)} classes, the rows have {rows.num_classes}")
    return np.array(concentrations, float)


def _check_positive(*numbers: float) -> None:
    if not all(np.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"concentrations and precisions must be finite and > 0, got {min(numbers)}")

"""Annotators with few numbers each: one coin, ZenCrowd, MACE."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.options import check_number, check_option
from probcrowd.data.packed import occurring
from probcrowd.estimators.aggregation.incremental import Incremental
from probcrowd.estimators.aggregation.table_aggregator import Confidence, Design, TableAggregator
from probcrowd.inference.aggregation.e_step import Scores
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table
from probcrowd.inference.aggregation.m_step import (
    AnnotatorModel,
    ClassPrior,
    OneCoinModel,
    coin_table,
    right_counts,
    row_totals,
)
from probcrowd.inference.aggregation.mace import MaceModel, MacePosterior
from probcrowd.models.priors import CoinPrior, SpamPrior, rows_base


class _CoinAggregator(Incremental):
    """One accuracy per annotator."""

    prior: str | CoinPrior
    class_prior: str
    _takes_history = True
    _prior_kind = CoinPrior

    def _check(self) -> None:
        super()._check()
        check_option("class_prior", self.class_prior, ("uniform", "learned"))

    def _channel(self, design: Design, *, averaged: bool) -> AnnotatorModel:
        prior = self._coin(design.cells.num_classes)
        right, wrong = (np.full(design.cells.num_annotators, value) for value in (prior.right, prior.wrong))
        if design.history is not None:
            hits, total = (
                right_counts(design.history, design.cells),
                row_totals(design.history, design.cells).sum(1),
            )
            right, wrong = right + hits, wrong + total - hits
        concentration = prior.class_prior if self.class_prior == "learned" else None
        return OneCoinModel(design.cells, right, wrong, ClassPrior(concentration, averaged), averaged)

    def _coin(self, num_classes: int) -> CoinPrior:
        if isinstance(self.prior, CoinPrior):
            if self.class_prior == "learned" and len(self.prior.class_prior) != num_classes:
                raise ValueError(
                    f"the prior is for {len(self.prior.class_prior)} classes, the table has {num_classes}"
                )
            return self.prior
        named = CoinPrior.named(self.prior, num_classes)  # pyright: ignore[reportArgumentType]
        # Maximum likelihood of the coin, where flat rows would make it wrong K - 1 times as often
        return replace(named, right=1.0, wrong=1.0) if self.prior == "flat" else named

    def _base(self, num_classes: int, num_labels: int) -> Float64[np.ndarray, "k l"]:
        prior, others = self._coin(num_classes), max(num_classes - 1, 1)
        return np.where(np.eye(num_classes) > 0, prior.right, prior.wrong / others)

    def _confusion_array(self) -> Float64[np.ndarray, "j k l"]:
        cells, num_classes = self._design.cells, len(self.classes_)
        everything = occurring(
            np.arange(cells.num_annotators * num_classes), cells.num_annotators, num_classes, num_classes
        )
        accuracy = self.accuracy_.to_numpy()
        with np.errstate(divide="ignore"):
            table = coin_table(np.log(np.stack([accuracy, 1 - accuracy], 1)), everything)
        made = np.exp(table).reshape(cells.num_annotators, num_classes, num_classes).transpose(0, 2, 1)
        return np.ones_like(made) if num_classes == 1 else made

    @property
    def accuracy_(self) -> pd.Series:
        """P(label is right) by annotator, at the mode."""
        check_is_fitted(self, "classes_")
        cells, channel = self._design.cells, self._channel(self._design, averaged=False)
        assert isinstance(channel, OneCoinModel)
        counts = self._mode.statistics.counts
        hits, total = right_counts(counts, cells), row_totals(counts, cells).sum(1)
        above, below = hits + channel.right - 1, total + channel.right + channel.wrong - 2
        accuracy = np.divide(above, below, out=np.full(len(above), 0.5), where=below > 0)
        return pd.Series(accuracy, pd.Index(self._annotator_ids, name="annotator"), name="accuracy")


class OneCoin(_CoinAggregator):
    """An accuracy per annotator, the same for all classes; wrong labels are equally likely. Fitted by EM from the vote shares.

    Args:
        prior: Beta prior of the accuracy: "accurate" (mean .7), "flat" (maximum likelihood), "stan", "rater", or a `CoinPrior`.
        class_prior: "uniform" (known), or "learned", which is fragile: a class can take over where annotators are weak.

    The others are as for `DawidSkene`.
    """

    def __init__(
        self,
        *,
        prior: str | CoinPrior = "accurate",
        class_prior: Literal["uniform", "learned"] = "uniform",
        confidence: Confidence = "averaged",
        max_iter: int = 1000,
        tolerance: float = 1e-8,
        accelerate: bool = True,
        dependence: str = "warn",
        abstention: Any = None,
        progress: bool = False,
    ) -> None:
        self.prior = prior
        self.class_prior = class_prior
        self.confidence: Confidence = confidence
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.accelerate = accelerate
        self.dependence = dependence
        self.abstention = abstention
        self.progress = progress


class ZenCrowd(_CoinAggregator):
    """One coin as ZenCrowd has it (Demartini, Difallah and Cudre-Mauroux 2012): flat priors, equally likely classes, all annotators start at an
    accuracy of `start`, 20 passes. Arguments as for `OneCoin`."""

    prior: str | CoinPrior = "flat"
    class_prior = "uniform"

    def __init__(
        self,
        *,
        start: float = 0.8,
        confidence: Confidence = "averaged",
        max_iter: int = 20,
        tolerance: float = 1e-8,
        dependence: str = "warn",
        abstention: Any = None,
        progress: bool = False,
    ) -> None:
        self.start = start
        self.confidence: Confidence = confidence
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.dependence = dependence
        self.abstention = abstention
        self.progress = progress

    def _check(self) -> None:
        super()._check()
        check_number("start", self.start, above=0, below=1)

    def _find(self, source: InMemory, design: Design) -> Fit:
        cells = design.cells
        logs = np.log(np.tile([self.start, 1 - self.start], (cells.num_annotators, 1)))
        uniform = np.full(cells.num_classes, -math.log(cells.num_classes))
        first = source.e_step(Scores(coin_table(logs, cells), uniform)).statistics
        return fit_table(
            source, self._channel(design, averaged=False), first, accelerate=False, **self._passes
        )


class MACE(TableAggregator):
    """Annotators who know, or spam (Hovy et al. 2013), by variational EM: always averaged. The best of several starts by its bound, which is
    `log_posterior_`: the first from the vote shares, the others from competences and habits drawn at random.

    Args:
        competence: Beta concentrations of knowing and of spamming. habits: Dirichlet concentration of what a spammer says.
        restarts: the number of starts. random_state: seed of those drawn.

    The others are as for `DawidSkene`.
    """

    def __init__(
        self,
        *,
        competence: tuple[float, float] = (0.5, 0.5),
        habits: float = 10.0,
        restarts: int = 5,
        random_state: int = 0,
        max_iter: int = 1000,
        tolerance: float = 1e-8,
        dependence: str = "warn",
        abstention: Any = None,
        progress: bool = False,
    ) -> None:
        self.competence = competence
        self.habits = habits
        self.restarts = restarts
        self.random_state = random_state
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.dependence = dependence
        self.abstention = abstention
        self.progress = progress

    def _check(self) -> None:
        super()._check()
        concentrations = np.array([*self.competence, self.habits], np.float64)
        if len(self.competence) != 2 or not (np.isfinite(concentrations) & (concentrations > 0)).all():
            raise ValueError(
                f"competence={self.competence!r}, habits={self.habits!r}: choose two numbers > 0, and one"
            )

    def _channel(self, design: Design, *, averaged: bool) -> MaceModel:
        return MaceModel(
            design.cells, SpamPrior(float(self.competence[0]), float(self.competence[1]), float(self.habits))
        )

    def _find(self, source: InMemory, design: Design) -> Fit:
        channel, cells = self._channel(design, averaged=True), design.cells
        generator = np.random.default_rng(self.random_state)
        starts = [source.start()]
        for _ in range(self.restarts - 1):
            knows = generator.uniform(1, 1.5, (2, cells.num_annotators)) * 10
            answers = generator.uniform(1, 1.5, len(cells)) * self.habits
            starts.append(source.e_step(channel.table(MacePosterior(knows[0], knows[1], answers))).statistics)
        fits = [fit_table(source, channel, start, accelerate=False, **self._passes) for start in starts]
        return max(fits, key=lambda fit: float(fit.objective[-1]))

    def _scores(self, design: Design) -> Scores:
        habits, new = self._last.scores.state, design.cells
        more, cells = new.num_annotators - len(habits.knows), len(new) - len(habits.answers)
        grown = MacePosterior(
            np.pad(habits.knows, (0, more), constant_values=float(self.competence[0])),
            np.pad(habits.spams, (0, more), constant_values=float(self.competence[1])),
            np.pad(habits.answers, (0, cells), constant_values=float(self.habits)),
        )
        return self._channel(design, averaged=True).table(grown)

    def _base(self, num_classes: int, num_labels: int) -> Float64[np.ndarray, "k l"]:
        return rows_base("accurate", num_classes, num_labels)[1]

    @property
    def competence_(self) -> pd.Series:
        """Posterior mean of knowing, not spamming, by annotator."""
        check_is_fitted(self, "classes_")
        habits = self._last.scores.state
        return pd.Series(
            habits.knows / (habits.knows + habits.spams),
            pd.Index(self._annotator_ids, name="annotator"),
            name="competence",
        )

    def _confusion_array(self) -> Float64[np.ndarray, "j k l"]:
        cells, habits = self._design.cells, self._last.scores.state
        answers = np.full((cells.num_annotators, cells.num_labels), float(self.habits))
        answers[cells.annotator, cells.label] = habits.answers
        spam = answers / answers.sum(1, keepdims=True)
        knows = self.competence_.to_numpy()[:, None, None]
        return knows * np.eye(cells.num_classes) + (1 - knows) * spam[:, None, :]

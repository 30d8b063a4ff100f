"""Aggregators with few parameters per annotator: one coin, ZenCrowd, MACE."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probcrowd.data.table import Cells, occurring
from probcrowd.data.validation import check_number, check_option
from probcrowd.estimators.aggregation.table_aggregator import Confidence, TableAggregator, TableFit
from probcrowd.estimators.results import Fitted
from probcrowd.inference.aggregation.e_step import Scores
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table
from probcrowd.inference.aggregation.m_step import AnnotatorModel, ClassPrior, row_totals
from probcrowd.inference.aggregation.mace import MaceModel, MacePosterior
from probcrowd.inference.aggregation.one_coin import OneCoinModel, coin_table, right_counts
from probcrowd.models.priors import CoinPrior, SpamPrior

History = Float64[np.ndarray, "p k"] | None


@dataclass(kw_only=True, eq=False, repr=False)
class OneCoin(TableAggregator):
    """An accuracy per annotator, the same for all classes; wrong labels are equally likely. Fitted by EM
    from the vote shares.

    Args:
        prior: Beta prior of the accuracy: "accurate" (mean .7), "flat" (maximum likelihood), "stan", "rater",
            or a `CoinPrior`.
        class_prior: "uniform" (known), or "learned", which is fragile: one class can absorb all items
            where annotators are weak.

    The others are as for `DawidSkene`.
    """

    prior: str | CoinPrior = "accurate"
    class_prior: Literal["uniform", "learned"] = "uniform"
    confidence: Confidence = "averaged"
    tolerance: float = 1e-8
    accelerate: bool = True

    supports = frozenset({"history", "discount"})
    incremental = True
    prior_kind = CoinPrior

    def annotator_model(
        self, cells: Cells, history: History = None, *, averaged: bool = False
    ) -> AnnotatorModel:
        """Return the model of one accuracy per annotator."""
        learned = self.class_prior == "learned"
        return _coins(_coin_prior(self.prior, learned, cells.num_classes), learned, cells, history, averaged)

    @property
    def accuracy_(self) -> pd.Series:
        """P(label is right) by annotator, at the mode."""
        return _accuracy(self._record, self.annotator_model)

    def _check(self) -> None:
        super()._check()
        check_option("class_prior", self.class_prior, ("uniform", "learned"))

    def _base(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, "k l"]:
        return _coin_rows(_coin_prior(self.prior, self.class_prior == "learned", cells.num_classes), cells)

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        return _coin_confusion(self.accuracy_.to_numpy(), len(self.classes_))


@dataclass(kw_only=True, eq=False, repr=False)
class ZenCrowd(TableAggregator):
    """One coin as in ZenCrowd (Demartini, Difallah and Cudre-Mauroux 2012): flat priors, equally likely
    classes, 20 passes.

    All annotators start at an accuracy of `start`. The other arguments are as for `OneCoin`.
    """

    start: float = 0.8
    confidence: Confidence = "averaged"
    max_iter: int = 20
    tolerance: float = 1e-8

    supports = frozenset({"history", "discount"})
    incremental = True
    prior_kind = CoinPrior

    def annotator_model(
        self, cells: Cells, history: History = None, *, averaged: bool = False
    ) -> AnnotatorModel:
        """Return the model of one accuracy per annotator."""
        return _coins(_coin_prior("flat", False, cells.num_classes), False, cells, history, averaged)

    @property
    def accuracy_(self) -> pd.Series:
        """P(label is right) by annotator, at the mode."""
        return _accuracy(self._record, self.annotator_model)

    def _check(self) -> None:
        super()._check()
        check_number("start", self.start, above=0, below=1)

    def _fit_mode(self, source: InMemory, history: History) -> Fit:
        cells = source.cells
        logs = np.log(np.tile([self.start, 1 - self.start], (cells.num_annotators, 1)))
        uniform = np.full(cells.num_classes, -math.log(cells.num_classes))
        first = source.e_step(Scores(coin_table(logs, cells), uniform)).statistics
        return fit_table(source, self.annotator_model(cells, history), first, **self._options)

    def _base(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, "k l"]:
        return _coin_rows(_coin_prior("flat", False, cells.num_classes), cells)

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        return _coin_confusion(self.accuracy_.to_numpy(), len(self.classes_))


def _coin_prior(prior: str | CoinPrior, learned: bool, num_classes: int) -> CoinPrior:
    """Return the prior for that many classes. learned: whether the class prior is learned."""
    if isinstance(prior, CoinPrior):
        if learned and len(prior.class_prior) != num_classes:
            raise ValueError(
                f"the prior is for {len(prior.class_prior)} classes, the table has {num_classes}"
            )
        return prior
    named = CoinPrior.named(prior, num_classes)  # pyright: ignore[reportArgumentType]
    # Maximum likelihood of the coin; flat rows would make it wrong K - 1 times as often
    return replace(named, right=1.0, wrong=1.0) if prior == "flat" else named


def _coins(prior: CoinPrior, learned: bool, cells: Cells, history: History, averaged: bool) -> OneCoinModel:
    right, wrong = (np.full(cells.num_annotators, value) for value in (prior.right, prior.wrong))
    if history is not None:
        hits, total = right_counts(history, cells), row_totals(history, cells).sum(1)
        right, wrong = right + hits, wrong + total - hits
    concentration = prior.class_prior if learned else None
    return OneCoinModel(cells, right, wrong, ClassPrior(concentration, averaged), averaged)


def _coin_rows(prior: CoinPrior, cells: Cells) -> Float64[np.ndarray, "k l"]:
    """Return concentrations of Dirichlet rows with the coin's mean accuracy."""
    others = max(cells.num_classes - 1, 1)
    return np.where(np.eye(cells.num_classes) > 0, prior.right, prior.wrong / others)


def _accuracy(fitted: Fitted, annotator_model: Any) -> pd.Series:
    cells, counts = fitted.rows.cells, fitted.model.mode.statistics.counts
    coins = annotator_model(cells, fitted.rows.history)
    hits, total = right_counts(counts, cells), row_totals(counts, cells).sum(1)
    above, below = hits + coins.right - 1, total + coins.right + coins.wrong - 2
    accuracy = np.divide(above, below, out=np.full(len(above), 0.5), where=below > 0)
    return pd.Series(accuracy, pd.Index(fitted.annotators, name="annotator"), name="accuracy")


def _coin_confusion(accuracy: Float64[np.ndarray, " j"], num_classes: int) -> Float64[np.ndarray, "j k k"]:
    if num_classes == 1:
        return np.ones((len(accuracy), 1, 1))
    everything = occurring(np.arange(len(accuracy) * num_classes), len(accuracy), num_classes, num_classes)
    with np.errstate(divide="ignore"):
        table = coin_table(np.log(np.stack([accuracy, 1 - accuracy], 1)), everything)
    return np.exp(table).reshape(len(accuracy), num_classes, num_classes).transpose(0, 2, 1)


@dataclass(kw_only=True, eq=False, repr=False)
class MACE(TableAggregator):
    """Annotators who know the class or spam (Hovy et al. 2013), fitted by variational EM: always averaged.

    Of several starts, the one with the highest bound, which is `log_posterior_`, is retained. The first start
    is the vote shares, the others have competences and spam drawn at random.

    Args:
        competence: Beta concentrations of knowing and of spamming. habits: Dirichlet concentration of a
            spammer's labels.
        restarts: the number of starts. random_state: the seed of those drawn.

    The others are as for `DawidSkene`.
    """

    competence: tuple[float, float] = (0.5, 0.5)
    habits: float = 10.0
    restarts: int = 5
    random_state: int = 0
    tolerance: float = 1e-8

    def annotator_model(self, cells: Cells, history: History = None, *, averaged: bool = False) -> MaceModel:
        """Return the model of knowing and spamming."""
        knows, spams = self.competence
        return MaceModel(cells, SpamPrior(float(knows), float(spams), float(self.habits)))

    @property
    def competence_(self) -> pd.Series:
        """Posterior mean of knowing, not spamming, by annotator."""
        fitted = self._record
        posterior = fitted.model.last.scores.state
        competence = posterior.knows / (posterior.knows + posterior.spams)
        return pd.Series(competence, pd.Index(fitted.annotators, name="annotator"), name="competence")

    def new_scores(self, fitted: Fitted, cells: Cells) -> Scores:
        """Return scores of items outside the counts; new annotators have their prior."""
        posterior = fitted.model.last.scores.state
        annotators = cells.num_annotators - len(posterior.knows)
        grown = MacePosterior(
            np.pad(posterior.knows, (0, annotators), constant_values=float(self.competence[0])),
            np.pad(posterior.spams, (0, annotators), constant_values=float(self.competence[1])),
            np.pad(
                posterior.answers,
                (0, len(cells) - len(posterior.answers)),
                constant_values=float(self.habits),
            ),
        )
        return self.annotator_model(cells).table(grown)

    def _check(self) -> None:
        super()._check()
        concentrations = np.array([*self.competence, self.habits], np.float64)
        if len(self.competence) != 2 or not (np.isfinite(concentrations) & (concentrations > 0)).all():
            raise ValueError(
                f"competence={self.competence!r}, habits={self.habits!r}: choose two numbers > 0, and one"
            )

    def _fit_mode(self, source: InMemory, history: History) -> Fit:
        model, cells = self.annotator_model(source.cells), source.cells
        generator = np.random.default_rng(self.random_state)
        starts = [source.start()]
        for _ in range(self.restarts - 1):
            knows = generator.uniform(1, 1.5, (2, cells.num_annotators)) * 10
            answers = generator.uniform(1, 1.5, len(cells)) * self.habits
            starts.append(source.e_step(model.table(MacePosterior(knows[0], knows[1], answers))).statistics)
        fits = [fit_table(source, model, start, **self._options) for start in starts]
        return max(fits, key=lambda fit: float(fit.objective[-1]))

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        cells, posterior = self._fitted.rows.cells, self._fitted.model.last.scores.state
        answers = np.full((cells.num_annotators, cells.num_labels), float(self.habits))
        answers[cells.annotator, cells.label] = posterior.answers
        spam = answers / answers.sum(1, keepdims=True)
        knows = self.competence_.to_numpy()[:, None, None]
        return knows * np.eye(cells.num_classes) + (1 - knows) * spam[:, None, :]

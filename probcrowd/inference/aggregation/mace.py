r"""MACE from expected counts (Hovy et al. 2013): an annotator knows the class or spams, and which rows are
spam is summed out.

    table[(j, l), k] = t_j [l = k] + (1 - t_j) e_jl    t, 1 - t, e = exp of expected logs under the posteriors
    knows[j, l] = counts[(j, l), l] t_j / (t_j + (1 - t_j) e_jl)     expected rows without spam, last pass
    competence_j ~ Beta(honest + sum_l knows, spamming + the rest)
    spam_j ~ Dirichlet(answers + rows - knows)

With truth and spam in one factor of the variational posterior this is coordinate ascent, so the bound never
falls. Classes are equally likely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import digamma, gammaln

from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.e_step import Scores, Statistics, sums_by_owner
from probcrowd.models.priors import SpamPrior


@dataclass(frozen=True)
class MacePosterior:
    """Posteriors: competence Beta(knows, spams) of every annotator, and Dirichlet concentrations of spam
    labels by cell; labels without a cell have the prior's concentration.
    """

    knows: Float64[np.ndarray, " j"]
    spams: Float64[np.ndarray, " j"]
    answers: Float64[np.ndarray, " p"]


@dataclass(frozen=True)
class MaceModel:
    """MACE as a model of annotators for `em.fit_table`."""

    cells: Cells
    prior: SpamPrior

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Update the posteriors from the counts and return their scores. The previous scores give the share
        of spam in each cell; it is one half at first.
        """
        cells, prior = self.cells, self.prior
        named = cells.label < cells.num_classes
        right = np.zeros(len(cells))
        right[named] = statistics.counts[np.flatnonzero(named), cells.label[named]]
        rows = statistics.counts.sum(1)
        knows = right * (0.5 if previous is None else self._not_spam(previous.state))
        spam = np.maximum(rows - knows, 0)
        sums = sums_by_owner(np.stack([knows, spam], 1), cells.annotator, cells.num_annotators)
        habits = MacePosterior(prior.honest + sums[:, 0], prior.spamming + sums[:, 1], prior.answers + spam)
        return self.table(habits, float(self._bound(habits, sums, spam)))

    def table(self, habits: MacePosterior, penalty: float = 0.0) -> Scores:
        """Return the scores of given posteriors."""
        log_knows, log_spam = self._logs(habits)
        table = np.repeat(log_spam[:, None], self.cells.num_classes, 1)
        named = np.flatnonzero(self.cells.label < self.cells.num_classes)
        label = self.cells.label[named]
        table[named, label] = np.logaddexp(log_spam[named], log_knows[named])
        return Scores(
            table, np.full(self.cells.num_classes, -math.log(self.cells.num_classes)), penalty, habits
        )

    def _logs(self, habits: MacePosterior) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
        owner, both = self.cells.annotator, digamma(habits.knows + habits.spams)
        return (digamma(habits.knows) - both)[owner], (digamma(habits.spams) - both)[owner] + self._answers(
            habits
        )

    def _answers(self, habits: MacePosterior) -> Float64[np.ndarray, " p"]:
        return digamma(habits.answers) - digamma(self._total(habits))[self.cells.annotator]

    def _total(self, habits: MacePosterior) -> Float64[np.ndarray, " j"]:
        given = np.bincount(
            self.cells.annotator, habits.answers - self.prior.answers, self.cells.num_annotators
        )
        return given + self.prior.answers * self.cells.num_labels

    def _not_spam(self, habits: MacePosterior) -> Float64[np.ndarray, " p"]:
        log_knows, log_spam = self._logs(habits)
        return np.exp(log_knows - np.logaddexp(log_knows, log_spam))

    def _bound(
        self, habits: MacePosterior, sums: Float64[np.ndarray, "j 2"], spam: Float64[np.ndarray, " p"]
    ) -> float:
        """Return minus the divergences of the posteriors from the priors."""
        prior, both = self.prior, habits.knows + habits.spams
        beta = gammaln(prior.honest + prior.spamming) - gammaln(prior.honest) - gammaln(prior.spamming)
        coins = beta - gammaln(both) + gammaln(habits.knows) + gammaln(habits.spams)
        coins -= sums[:, 0] * (digamma(habits.knows) - digamma(both)) + sums[:, 1] * (
            digamma(habits.spams) - digamma(both)
        )
        total, most = self._total(habits), prior.answers * self.cells.num_labels
        rows = gammaln(habits.answers) - gammaln(prior.answers) - spam * self._answers(habits)
        return float(coins.sum() + (gammaln(most) - gammaln(total)).sum() + rows.sum())

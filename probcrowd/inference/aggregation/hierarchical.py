r"""Dawid-Skene with a population of annotators: rows of class k come from one Dirichlet, whose concentrations
are learned from the counts.

    confusion[j, k, :] ~ Dirichlet(c[k, :])
    c maximises  sum_jk log B(c_k + n_jk) / B(c_k)  +  sum_k log Dirichlet(pseudo-annotator's row; c_k)

B is the multivariate Beta function, n the expected counts. The pseudo-annotator is one typical draw from
Dirichlet(base): without annotators c = base, with many it does not matter, and it keeps c finite where all
annotators are alike. Given c, rows have the averaged scores of `channels.DirichletRows`; log likelihood +
penalty bounds the log evidence of c and the pseudo-annotator, and never falls, since c is improved by
minorisation (Minka 2000): bounding log B and log Gamma(C), C = sum_l c_l, by what touches them at the present
c leaves, for each c_l alone,

    A_l / c_l - D + psi(C) - psi(c_l) + g_l = 0
    A_l = c_l sum_j psi(c_l + n_jl) - psi(c_l),     D = sum_j psi(C + N_j) - psi(C),     g = E log row

Where a count n is below 1, A_l log c_l does not bound log Gamma(c_l + n) / Gamma(c_l), but - A_l c / c_l
does, c being the present one, as c^2 (psi(c + n) - psi(c)) increases; the step is no longer the highest point
of a bound, but its end is not below its start.

An annotator with few labels leans on the population, one with many on itself; how much, is learned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.special import digamma, gammaln, polygamma

from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.e_step import Scores, Statistics, sums_by_owner
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows, row_totals

_IMPROVEMENTS, _NEWTON = 3, 20


@dataclass(frozen=True)
class PooledRows:
    """Dirichlet rows whose concentrations (k, l) are learned; base: those of the pseudo-annotator."""

    cells: Cells
    base: Float64[np.ndarray, "k l"]
    class_prior: ClassPrior

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Averaged scores under improved concentrations, which the next call starts from."""
        population = self.base if previous is None else previous.state
        for _ in range(_IMPROVEMENTS):
            population = self.improved(population, statistics)
        rows = self.rows(population).scores(statistics)
        return Scores(
            rows.log_table, rows.log_prior, rows.penalty + self._pseudo_annotator(population), population
        )

    def rows(self, population: Float64[np.ndarray, "k l"]) -> DirichletRows:
        """The model with those concentrations known."""
        return DirichletRows(self.cells, population, self.class_prior, None, averaged=True)

    def improved(
        self, population: Float64[np.ndarray, "k l"], statistics: Statistics
    ) -> Float64[np.ndarray, "k l"]:
        """Concentrations with a higher objective, or the same at the maximum."""
        cells, own, total = self.cells, population.T, population.sum(1)  # own: (l, k)
        more = digamma(own[cells.label] + statistics.counts) - digamma(own[cells.label])
        above = own * sums_by_owner(more, cells.label, cells.num_labels)
        below = (digamma(total + row_totals(statistics.counts, cells)) - digamma(total)).sum(0)
        # Each equation falls in c, and Newton's steps on log c stay positive
        slope = below - digamma(total) - self._expected_logs.T
        found = own.copy()
        for _ in range(_NEWTON):
            value = above / found - slope - digamma(found)
            change = found * (above / found**2 + polygamma(1, found))
            step = np.clip(value / change, -2, 2)
            found = found * np.exp(step)
            if np.abs(step).max() < 1e-10:
                break
        return np.maximum(found.T, 1e-6)

    @property
    def _expected_logs(self) -> Float64[np.ndarray, "k l"]:
        return digamma(self.base) - digamma(self.base.sum(1, keepdims=True))

    def _pseudo_annotator(self, population: Float64[np.ndarray, "k l"]) -> float:
        rows = (
            gammaln(population.sum(1))
            - gammaln(population).sum(1)
            + ((population - 1) * self._expected_logs).sum(1)
        )
        return float(rows.sum())

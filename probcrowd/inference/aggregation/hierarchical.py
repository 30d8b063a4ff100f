r"""Dawid-Skene with a population of annotators: rows of class k come from one Dirichlet, whose concentrations
are learned from the counts.

    confusion[j, k, :] ~ Dirichlet(c[k, :])
    c maximises  sum_jk log B(c_k + n_jk) / B(c_k)  +  sum_k log Dirichlet(pseudo-annotator's row; c_k)

B is the multivariate Beta function, n the expected counts. The pseudo-annotator is one typical draw from
Dirichlet(base). Without annotators c = base, with many it does not matter, and it bounds c where all
annotators are alike. Given c, rows have the averaged scores of `m_step.DirichletRows`. Log likelihood +
penalty bounds the log evidence of c and the pseudo-annotator. It never falls, since c is improved by
minorisation (Minka 2000): lower bounds of log B and log Gamma(C), C = sum_l c_l, that touch them at the
present c give an equation for each c_l alone,

    A_l / c_l - D + psi(C) - psi(c_l) + g_l = 0
    A_l = c_l sum_j psi(c_l + n_jl) - psi(c_l),     D = sum_j psi(C + N_j) - psi(C),     g = E log row

Where a count n is below 1, A_l log c_l does not bound log Gamma(c_l + n) / Gamma(c_l), but - A_l c / c_l
does, with c the present value, as c^2 (psi(c + n) - psi(c)) increases. The step is then not the maximum of a
bound, but it never lowers the objective.

Annotators with few labels are shrunk towards the population, those with many labels less; the amount is
learned.
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
    """Dirichlet rows with learned concentrations (k, l). base: concentrations of the pseudo-annotator."""

    cells: Cells
    base: Float64[np.ndarray, "k l"]
    class_prior: ClassPrior

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        """Improve the concentrations, from those of the previous call, and return the averaged scores."""
        population = self.base if previous is None else previous.state
        for _ in range(_IMPROVEMENTS):
            population = self.improved(population, statistics)
        rows = self.rows(population).scores(statistics)
        return Scores(
            rows.log_table, rows.log_prior, rows.penalty + self._pseudo_annotator(population), population
        )

    def rows(self, population: Float64[np.ndarray, "k l"]) -> DirichletRows:
        """Return the model with known concentrations."""
        return DirichletRows(self.cells, population, self.class_prior, None, averaged=True)

    def improved(
        self, population: Float64[np.ndarray, "k l"], statistics: Statistics
    ) -> Float64[np.ndarray, "k l"]:
        """Return concentrations with a higher objective, or the same ones at the maximum."""
        cells, own, total = self.cells, population.T, population.sum(1)  # own: (l, k)
        more = digamma(own[cells.label] + statistics.counts) - digamma(own[cells.label])
        above = own * sums_by_owner(more, cells.label, cells.num_labels)
        below = (digamma(total + row_totals(statistics.counts, cells)) - digamma(total)).sum(0)
        # Each left side decreases in c; Newton steps on log c stay positive
        slope = below - digamma(total) - self._expected_logs.T
        root = own.copy()
        for _ in range(_NEWTON):
            value = above / root - slope - digamma(root)
            change = root * (above / root**2 + polygamma(1, root))
            step = np.clip(value / change, -2, 2)
            root = root * np.exp(step)
            if np.abs(step).max() < 1e-10:
                break
        return np.maximum(root.T, 1e-6)

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

"""Dawid-Skene (1979) with priors, and its hard and hierarchical variants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probcrowd.data.table import Abstentions, Cells
from probcrowd.estimators.aggregation.table_aggregator import Confidence, TableAggregator, TableFit
from probcrowd.inference.aggregation.hierarchical import PooledRows
from probcrowd.inference.aggregation.m_step import AnnotatorModel, Averaging, ClassPrior, DirichletRows
from probcrowd.models.priors import DirichletPrior, rows_base


@dataclass(kw_only=True, eq=False, repr=False)
class DawidSkene(TableAggregator):
    """A confusion matrix per annotator, fitted by EM from the vote shares.

    `confusion_`, `class_prior_` and `log_posterior_` are those of the posterior mode. Label probabilities are
    by default averaged over the uncertainty about the parameters, in closed form
    (`probcrowd.inference.aggregation.m_step`): at the mode alone they are overconfident.

    Args:
        prior: concentrations of the Dirichlet priors. "accurate": mean accuracy .7 whatever the number of
            classes; "flat": maximum likelihood; "stan", "rater": see `probcrowd.models.priors`; or a
            `DirichletPrior`.
        confidence: "averaged" label probabilities; "variational": those of variational Bayes, started at the
            mode; or "plug-in": at the mode.
        max_iter: the largest number of passes over the annotations. tolerance: the gain per annotation at
            which a fit has converged.
        accelerate: whether to try extrapolated steps; the log posterior still never falls.
        dependence: "warn" if annotators err together; "discount": reduce the weight of the labels of an item
            in that case; or "ignore".
        abstention: the label that stands for an abstention. abstentions: "ignore" these rows, or use them as
            an "event" with information.
        progress: whether to show a bar.

    Memory beside the table: 4 bytes per annotation (12 with weights), 8 + 16 K per item of K classes, some
    150 K per (annotator, label) pair.
    """

    prior: str | DirichletPrior = "accurate"
    confidence: Confidence = "averaged"
    tolerance: float = 1e-8
    accelerate: bool = True
    abstentions: Abstentions = "ignore"

    supports = frozenset({"history", "events", "discount"})
    incremental = True


@dataclass(kw_only=True, eq=False, repr=False)
class FastDawidSkene(TableAggregator):
    """Dawid-Skene with hard labels (Sinha, Rao and Balasubramanian 2018): each item counts for its most
    probable class alone.

    Passes end when no item changes. There are few passes, and a lower log posterior than with EM; where
    classes tie, the first counts. Arguments as for `DawidSkene`; the original has prior="flat".
    """

    max_iter: int = 100
    prior: str | DirichletPrior = "accurate"
    confidence: Confidence = "averaged"
    abstentions: Abstentions = "ignore"

    supports = frozenset({"history", "events", "discount"})
    hard = True


@dataclass(kw_only=True, eq=False, repr=False)
class HierarchicalDawidSkene(TableAggregator):
    """Dawid-Skene with a population of annotators: rows of a class come from one Dirichlet, whose
    concentrations are learned.

    Annotators with few labels are shrunk towards the others (`probcrowd.inference.aggregation.hierarchical`).
    Label probabilities are averaged over confusion matrices, at the population that maximises the bound on
    the evidence. `log_posterior_` is that bound. Arguments as for `DawidSkene`; prior is that of a
    pseudo-annotator, which matters where annotators are few.
    """

    prior: str | DirichletPrior = "accurate"
    tolerance: float = 1e-8
    abstentions: Abstentions = "ignore"

    supports = frozenset({"events", "discount"})

    def annotator_model(
        self, cells: Cells, history: Float64[np.ndarray, "p k"] | None = None, *, averaged: bool = False
    ) -> AnnotatorModel:
        """Return the model with a population."""
        class_prior, base = rows_base(self.prior, cells.num_classes, cells.num_labels)
        return PooledRows(cells, base, ClassPrior(class_prior, True))

    @property
    def population_(self) -> pd.DataFrame:
        """Concentrations of the population's rows, by true class and label. Their proportions are the mean
        row; the larger their sum, the more similar the annotators.
        """
        fitted = self._record
        columns = fitted.labels.rename("label")
        return pd.DataFrame(fitted.model.last.scores.state, self.classes_.rename("true_class"), columns)

    def _averaging(
        self, tables: TableFit, cells: Cells, history: Float64[np.ndarray, "p k"] | None
    ) -> Averaging:
        prior = ClassPrior(rows_base(self.prior, cells.num_classes, cells.num_labels)[0], True)
        return DirichletRows(cells, tables.last.scores.state, prior, None, averaged=True)

    def _base(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, "k l"]:
        return tables.last.scores.state

    def _class_prior(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, " k"]:
        """Return the posterior mean of p(class)."""
        counts = tables.statistics.class_count + rows_base(self.prior, cells.num_classes, cells.num_labels)[0]
        return counts / counts.sum()

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        return self._fitted.mean_confusion()

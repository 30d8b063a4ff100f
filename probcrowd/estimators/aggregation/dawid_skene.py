"""Dawid-Skene (1979) with priors, its hard and its hierarchical relative."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.table import Abstentions
from probcrowd.estimators.aggregation.incremental import Incremental
from probcrowd.estimators.aggregation.table_aggregator import Confidence, Design, TableAggregator
from probcrowd.inference.aggregation.annotator_summary import confusion_table
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table
from probcrowd.inference.aggregation.hierarchical import PooledRows
from probcrowd.inference.aggregation.m_step import AnnotatorModel, Averaging, ClassPrior, DirichletRows
from probcrowd.models.priors import DirichletPrior, rows_base


class _DirichletAggregator(TableAggregator):
    """Independent Dirichlet rows."""

    prior: str | DirichletPrior
    _takes_history = True
    _takes_events = True

    def _channel(self, design: Design, *, averaged: bool) -> AnnotatorModel:
        class_prior, base = rows_base(self.prior, design.cells.num_classes, design.cells.num_labels)
        return DirichletRows(design.cells, base, ClassPrior(class_prior, averaged), design.history, averaged)

    def _base(self, num_classes: int, num_labels: int) -> Float64[np.ndarray, "k l"]:
        return rows_base(self.prior, num_classes, num_labels)[1]


class DawidSkene(Incremental, _DirichletAggregator):
    """A confusion matrix per annotator, fitted by EM from the vote shares.

    `confusion_`, `class_prior_` and `log_posterior_` are those of the posterior mode. Label probabilities are by default averaged over what is
    uncertain about the parameters, in closed form (`probcrowd.inference.aggregation.averaging`): at the mode alone they are far too sure.

    Args:
        prior: concentrations of the Dirichlet priors. "accurate": mean accuracy .7 whatever the number of classes; "flat": maximum likelihood;
            "stan", "rater": see `probcrowd.models.priors`; or a `DirichletPrior`.
        confidence: "averaged" label probabilities; "variational": those of variational Bayes, started at the mode; or "plug-in": at the mode.
        max_iter: passes over the annotations, at most. tolerance: the gain per annotation at which a fit has converged.
        accelerate: whether to try extrapolated steps; the log posterior still never falls.
        dependence: "warn" if annotators err together; "discount": let the labels of an item count for as many as they are worth if so; or "ignore".
        abstention: the label that stands for an abstention. abstentions: "ignore" these rows, or take them as an "event" that tells something.
        progress: whether to show a bar.

    Memory beside the table: 4 bytes per annotation (12 with weights), 8 + 16 K per item of K classes, some 150 K per (annotator, label) pair.
    """

    def __init__(
        self,
        *,
        prior: str | DirichletPrior = "accurate",
        confidence: Confidence = "averaged",
        max_iter: int = 1000,
        tolerance: float = 1e-8,
        accelerate: bool = True,
        dependence: str = "warn",
        abstention: Any = None,
        abstentions: Abstentions = "ignore",
        progress: bool = False,
    ) -> None:
        self.prior = prior
        self.confidence: Confidence = confidence
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.accelerate = accelerate
        self.dependence = dependence
        self.abstention = abstention
        self.abstentions: Abstentions = abstentions
        self.progress = progress


class FastDawidSkene(_DirichletAggregator):
    """Dawid-Skene with hard labels (Sinha, Rao and Balasubramanian 2018): each item counts for its most probable class alone; passes end when
    no item changes. Few passes, a lower log posterior than EM; where classes tie, the first counts.

    Arguments as for `DawidSkene`; the original has prior="flat".
    """

    _hard = True

    def __init__(
        self,
        *,
        prior: str | DirichletPrior = "accurate",
        confidence: Confidence = "averaged",
        max_iter: int = 100,
        dependence: str = "warn",
        abstention: Any = None,
        abstentions: Abstentions = "ignore",
        progress: bool = False,
    ) -> None:
        self.prior = prior
        self.confidence: Confidence = confidence
        self.max_iter = max_iter
        self.dependence = dependence
        self.abstention = abstention
        self.abstentions: Abstentions = abstentions
        self.progress = progress

    def _find(self, source: InMemory, design: Design) -> Fit:
        return fit_table(
            source,
            self._channel(design, averaged=False),
            max_iter=self.max_iter,
            hard=True,
            progress=self.progress,
        )


class HierarchicalDawidSkene(TableAggregator):
    """Dawid-Skene whose annotators come from a population that is learned: rows of a class are drawn from one Dirichlet, so an annotator with few
    labels leans on the others (`probcrowd.inference.aggregation.hierarchical`). Label probabilities are averaged over confusion matrices, at the population that
    raises the bound on the evidence most. `log_posterior_` is that bound.

    Arguments as for `DawidSkene`; prior is that of a pseudo-annotator, who matters where annotators are few.
    """

    _takes_events = True

    def __init__(
        self,
        *,
        prior: str | DirichletPrior = "accurate",
        max_iter: int = 1000,
        tolerance: float = 1e-8,
        dependence: str = "warn",
        abstention: Any = None,
        abstentions: Abstentions = "ignore",
        progress: bool = False,
    ) -> None:
        self.prior = prior
        self.max_iter = max_iter
        self.tolerance = tolerance
        self.dependence = dependence
        self.abstention = abstention
        self.abstentions: Abstentions = abstentions
        self.progress = progress

    @property
    def population_(self) -> pd.DataFrame:
        """Concentrations of the population's rows, by true class and label: a mean of rows each, and how alike annotators are."""
        check_is_fitted(self, "classes_")
        return pd.DataFrame(
            self._last.scores.state, self.classes_.rename("true_class"), self._label_ids.rename("label")
        )

    def _averaging(self, design: Design) -> Averaging:
        prior = ClassPrior(rows_base(self.prior, *self._sizes)[0], True)
        return DirichletRows(design.cells, self._last.scores.state, prior, None, averaged=True)

    def _channel(self, design: Design, *, averaged: bool) -> AnnotatorModel:
        class_prior, base = rows_base(self.prior, design.cells.num_classes, design.cells.num_labels)
        return PooledRows(design.cells, base, ClassPrior(class_prior, True))

    def _find(self, source: InMemory, design: Design) -> Fit:
        return fit_table(source, self._channel(design, averaged=True), accelerate=False, **self._passes)

    def _base(self, num_classes: int, num_labels: int) -> Float64[np.ndarray, "k l"]:
        return self._last.scores.state

    @property
    def class_prior_(self) -> pd.Series:
        """Posterior mean of p(class), by class."""
        check_is_fitted(self, "classes_")
        counts = self._statistics.class_count + rows_base(self.prior, *self._sizes)[0]
        return pd.Series(counts / counts.sum(), self.classes_.rename("class"), name="class_prior")

    @property
    def _sizes(self) -> tuple[int, int]:
        return self._design.cells.num_classes, self._design.cells.num_labels

    def _confusion_array(self) -> Float64[np.ndarray, "j k l"]:
        return confusion_table(self._of_annotators()[0])

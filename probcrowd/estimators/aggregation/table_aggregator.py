"""Aggregators that describe annotators by probability tables and are fitted by EM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.utils.metaestimators import available_if

from probcrowd.data.table import Cells, Packed, Table, occurring
from probcrowd.data.validation import check_option
from probcrowd.estimators.aggregation.history import read_history
from probcrowd.estimators.aggregation.incremental import (
    Additions,
    add_labels,
    packed_with_additions,
    refit_gap,
    results_with_additions,
)
from probcrowd.estimators.base import Aggregator, Self
from probcrowd.estimators.results import Fitted, ItemResults
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.e_step import Scores, Statistics, e_step
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table, group_patterns
from probcrowd.inference.aggregation.m_step import (
    AnnotatorModel,
    Averaging,
    ClassPrior,
    DirichletRows,
    averaged_probabilities,
    discounted,
)
from probcrowd.models.priors import DirichletPrior, PriorName, rows_base

Confidence = Literal["averaged", "variational", "plug-in"]
_CONFIDENCES, _PRIORS = get_args(Confidence), get_args(PriorName)
_PRIOR: Any = "accurate"
_CONFIDENCE: Any = "averaged"
_LEAST_COUNT = 1e-6  # of `counts_`


@dataclass(frozen=True)
class TableFit:
    """The results of EM.

    mode: the fit at the posterior mode. last: the fit whose scores the label probabilities come from.
    statistics: expected counts under `last`, and shares (m, k): the responsibilities of item patterns
    behind them. place: the pattern of each item; None: each item is its own pattern. additions: labels added
    after the fit.
    """

    mode: Fit
    last: Fit
    statistics: Statistics
    patterns: Packed
    place: np.ndarray | None
    shares: np.ndarray
    additions: Additions | None = None

    def by_item(self, values: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "i k"]:
        """Spread values of patterns over items."""
        return values if self.place is None else values[self.place]

    def with_labels(
        self, statistics: Statistics, scores: Scores, mode: Scores, additions: Additions
    ) -> TableFit:
        """Return the fit after labels were added."""
        return replace(
            self,
            mode=replace(self.mode, statistics=statistics, scores=mode),
            last=replace(self.last, statistics=statistics, scores=scores),
            statistics=statistics,
            additions=additions,
        )


@dataclass(kw_only=True, eq=False, repr=False)
class TableAggregator(Aggregator):
    """An aggregator fitted by `fit_table`, by default with independent Dirichlet rows under `prior`.

    A subclass with another model of annotators overrides `annotator_model`. hard: whether each item counts
    for its most probable class only. incremental: whether `partial_fit` adds labels. prior_kind: the record
    type that `prior` accepts.
    """

    max_iter: int = 1000
    progress: bool = False

    supports = frozenset({"discount"})
    prior, confidence = _PRIOR, _CONFIDENCE
    hard = incremental = False
    prior_kind = DirichletPrior

    def annotator_model(
        self, cells: Cells, history: Float64[np.ndarray, "p k"] | None = None, *, averaged: bool = False
    ) -> AnnotatorModel:
        """Return the model of annotators: for the posterior mode, or averaged over parameters. history:
        earlier counts by cell.
        """
        class_prior, base = rows_base(self.prior, cells.num_classes, cells.num_labels)
        return DirichletRows(cells, base, ClassPrior(class_prior, averaged), history, averaged)

    @available_if(lambda self: self.incremental)
    def partial_fit(self: Self, annotations: Any, gold: pd.Series | None = None) -> Self:
        """Add labels without refitting; the cost depends on the items touched, not on the size of the table.
        The first call is `fit`.

        Items and annotators may be old or new. gold: the known class of items old or new, with or without
        labels in `annotations`; those of other items are ignored. All results are updated except
        `log_posterior_`, `converged_` and `dependence_`, which stay those of the last full fit. `refit_gap_`
        estimates how far the results may be from a full fit.

        Raises:
            TypeError, ValueError: as `fit`; also for a class that is not in the fit, an (item, annotator)
                pair that already has a label, a known class that contradicts an earlier one, or ids of
                another type than earlier ones. The estimator is then unchanged.
        """
        if not hasattr(self, "classes_"):
            return self.fit(annotations, gold)
        self._fitted = add_labels(self, self._fitted, self._read(annotations, gold), gold)
        return self

    @property
    def refit_gap_(self) -> pd.Series:
        """Estimate how far the results may be from those of a full fit of all labels.

        labels_added; share_added: their share of all labels; mean_shift and largest_shift: the change in the
        log odds of an untouched item if its responsibilities were recomputed with the present tables (the
        mean over labels times the labels per item, and the maximum). A full fit goes further: expect a few
        times the mean shift where EM is slow.
        """
        if not self.incremental:
            raise AttributeError(f"{type(self).__name__} has no partial_fit, hence no refit_gap_")
        return refit_gap(self._record, lambda fitted: self.new_scores(fitted, fitted.rows.cells))

    @property
    def counts_(self) -> pd.DataFrame:
        """Expected counts above 1e-6 by annotator, true_class and label, for the argument `history` of a
        later fit.
        """
        fitted = self._record
        cells, counts = fitted.rows.cells, fitted.rows.counts
        counts = counts if fitted.rows.history is None else counts + fitted.rows.history
        p, k = np.nonzero(counts > _LEAST_COUNT)
        columns = {
            "annotator": fitted.annotators.take(cells.annotator[p]),
            "true_class": self.classes_.take(k),
            "label": fitted.labels.take(cells.label[p]),
            "count": counts[p, k],
        }
        return pd.DataFrame(columns)

    def _check(self) -> None:
        super()._check()
        check_option("confidence", self.confidence, _CONFIDENCES)
        if not isinstance(self.prior, self.prior_kind) and self.prior not in _PRIORS:
            names = ", ".join(map(repr, _PRIORS))
            raise ValueError(f"prior={self.prior!r}: choose {names}, or give a {self.prior_kind.__name__}")

    def _solve(self, table: Table, history: pd.DataFrame | None = None) -> Fitted:
        earlier, keys = None, table.key
        if history is not None:
            table, earlier = read_history(table, history, self.abstention)
            keys = np.concatenate([table.key, earlier.key])
        cells = occurring(keys, len(table.annotators), table.num_labels, len(table.classes))
        counts = None if earlier is None else earlier.by_cell(cells)
        packed = table.packed(cells)
        patterns, place = group_patterns(packed, cells)
        source = InMemory(patterns, cells)
        mode = last = self._fit_mode(source, counts)
        if self.confidence == "variational":
            model = self.annotator_model(cells, counts, averaged=True)
            last = fit_table(source, model, mode.statistics, **self._options)
        shares = np.zeros((patterns.num_items, cells.num_classes))
        statistics = e_step(patterns, last.scores, hard=self.hard, responsibilities=shares).statistics
        tables = TableFit(mode, last, statistics, patterns, place, shares)
        labels = table.classes
        if table.num_labels > len(labels):
            labels = labels.astype(object).append(pd.Index([self.abstention], dtype=object))
        results = self._described(table, tables.by_item(shares), len(table.annotators))
        rows = RowPosterior(cells, self._base(tables, cells), statistics.counts, counts)
        prior, converged = self._class_prior(tables, cells), mode.converged and last.converged
        ids = table.annotators, table.classes, labels
        return Fitted(results, *ids, packed, rows, prior, prior, mode.objective, converged, tables)

    def _finish(self, fitted: Fitted) -> Fitted:
        """Average label probabilities over parameters, given the responsibilities behind the counts."""
        tables: TableFit = fitted.model
        probabilities = self.item_probabilities(fitted, tables.patterns, tables.shares)
        return replace(fitted, items=replace(fitted.items, responsibilities=tables.by_item(probabilities)))

    def item_probabilities(
        self, fitted: Fitted, packed: Packed, shares: Float64[np.ndarray, "i k"]
    ) -> Float64[np.ndarray, "i k"]:
        """Return label probabilities of items that are in the counts with the responsibilities `shares`."""
        tables, cells = fitted.model, fitted.rows.cells
        averaging = self._averaging(tables, cells, fitted.rows.history)
        if averaging is not None:
            return averaged_probabilities(
                packed, cells, shares, averaging.means(tables.statistics), fitted.copying
            )
        if not fitted.copying and not self.hard:
            return shares
        probabilities = np.zeros_like(shares)
        e_step(discounted(packed, fitted.copying), tables.last.scores, responsibilities=probabilities)
        return probabilities

    def new_scores(self, fitted: Fitted, cells: Cells) -> Scores:
        """Return scores of items outside the counts; `cells`: those of the fit, then new ones."""
        tables, history = fitted.model, fitted.rows.history
        if history is not None:
            history = np.pad(history, ((0, len(cells) - len(history)), (0, 0)))
        averaging = self._averaging(tables, cells, history)
        if averaging is not None:
            return averaging.means(tables.statistics.extended(len(cells))).scores
        model = self.annotator_model(cells, history, averaged=self.confidence == "variational")
        return model.scores(tables.last.statistics.extended(len(cells)))

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        fitted = self._fitted
        cells = fitted.rows.cells.joined(table.key, len(table.annotators))
        packed = discounted(table.packed(cells), fitted.copying)
        probabilities = np.zeros((len(table.items), cells.num_classes))
        e_step(packed, self.new_scores(fitted, cells), responsibilities=probabilities)
        return probabilities

    @property
    def _options(self) -> dict[str, Any]:
        names = ("max_iter", "tolerance", "progress")
        given = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return given | {"accelerate": getattr(self, "accelerate", False)}

    def _fit_mode(self, source: InMemory, history: Float64[np.ndarray, "p k"] | None) -> Fit:
        """Run EM from the vote shares to the posterior mode."""
        return fit_table(source, self.annotator_model(source.cells, history), hard=self.hard, **self._options)

    def _averaging(
        self, tables: TableFit, cells: Cells, history: Float64[np.ndarray, "p k"] | None
    ) -> Averaging | None:
        """Return the model whose posterior means give label probabilities, or None if the E step gives
        them.
        """
        model = self.annotator_model(cells, history)
        return model if isinstance(model, Averaging) and self.confidence == "averaged" else None

    def _base(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, "k l"]:
        """Return concentrations of the Dirichlet rows in summaries of annotators."""
        return rows_base(self.prior, cells.num_classes, cells.num_labels)[1]

    def _class_prior(self, tables: TableFit, cells: Cells) -> Float64[np.ndarray, " k"]:
        """Return p(class), at the mode."""
        return np.exp(tables.mode.scores.log_prior)

    def _item_results(self) -> ItemResults:
        return results_with_additions(self._fitted)

    def _packed_annotations(self) -> Packed:
        return packed_with_additions(self._fitted)

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        return self._fitted.mode_confusion(np.exp(self._fitted.model.mode.scores.log_table))

"""Aggregators whose annotators are tables: what Dawid-Skene, its relatives, coins and MACE share."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.columns import declare, reject
from probcrowd.data.options import check_option
from probcrowd.data.packed import Cells, Packed, occurring
from probcrowd.data.table import Table
from probcrowd.estimators.base import Aggregator
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.averaging import averaged_probabilities, discounted
from probcrowd.inference.aggregation.e_step import Scores, e_step
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table
from probcrowd.inference.aggregation.m_step import AnnotatorModel, Averaging
from probcrowd.inference.aggregation.patterns import collapsed
from probcrowd.models.priors import DirichletPrior, PriorName

Confidence = Literal["averaged", "variational", "plug-in"]
_CONFIDENCES, _PRIORS = get_args(Confidence), get_args(PriorName)


@dataclass(frozen=True)
class Design:
    """What a channel is made of: the pairs that occur, and earlier counts by cell."""

    cells: Cells
    history: Float64[np.ndarray, "p k"] | None = None

    def joined(self, key: Int64[np.ndarray, " n"], num_annotators: int) -> Design:
        """With the pairs of `key` that are new."""
        cells = self.cells.joined(key, num_annotators)
        grown = len(cells) - len(self.cells)
        return Design(cells, None if self.history is None else np.pad(self.history, ((0, grown), (0, 0))))


class TableAggregator(Aggregator):
    """An aggregator fitted by `fit_table`; what a subclass declares are its channels."""

    max_iter: int
    tolerance: float
    confidence: Confidence = "averaged"
    progress: bool
    _hard = False
    _prior_kind: type = DirichletPrior
    _takes_discount = True

    @abc.abstractmethod
    def _channel(self, design: Design, *, averaged: bool) -> AnnotatorModel:
        """The model of confusion: for the mode, or averaged over parameters."""

    @abc.abstractmethod
    def _base(self, num_classes: int, num_labels: int) -> Float64[np.ndarray, "k l"]:
        """Concentrations of the Dirichlet rows that the annotators' table is made of."""

    def _find(self, source: InMemory, design: Design) -> Fit:
        """The mode, from the vote shares."""
        return fit_table(source, self._channel(design, averaged=False), **self._passes)

    def _averaging(self, design: Design) -> Averaging | None:
        """The channel whose posterior means label probabilities come from; None where the fit's own scores are the answer."""
        made = self._channel(design, averaged=False)
        return made if isinstance(made, Averaging) and self.confidence == "averaged" else None

    def _scores(self, design: Design) -> Scores:
        """Scores of items that are new, by cells of the fit and new ones."""
        averaging, size = self._averaging(design), len(design.cells)
        if averaging is not None:
            return averaging.means(self._statistics.extended(size)).scores
        return self._channel(design, averaged=self.confidence == "variational").scores(
            self._last.statistics.extended(size)
        )

    @property
    def _passes(self) -> dict[str, Any]:
        return {
            name: getattr(self, name)
            for name in ("max_iter", "tolerance", "accelerate", "progress")
            if hasattr(self, name)
        }

    def _check(self) -> None:
        super()._check()
        check_option("confidence", self.confidence, _CONFIDENCES)
        prior = getattr(self, "prior", "flat")
        if not isinstance(prior, self._prior_kind) and not (isinstance(prior, str) and prior in _PRIORS):
            names = ", ".join(map(repr, _PRIORS))
            raise ValueError(f"prior={prior!r}: choose {names}, or give a {self._prior_kind.__name__}")

    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        table, earlier = _read_history(table, history, self.abstention)
        keys = table.key if earlier is None else np.concatenate([table.key, earlier[0]])
        cells = occurring(keys, len(table.annotators), table.num_labels, len(table.classes))
        design = Design(cells, None if earlier is None else _at_cells(cells, *earlier))
        packed = table.packed(cells)
        patterns, place = collapsed(packed, cells)
        source = InMemory(patterns, cells)
        mode = fit = self._find(source, design)
        if self.confidence == "variational":
            fit = fit_table(source, self._channel(design, averaged=True), mode.statistics, **self._passes)
        found = np.zeros((patterns.num_items, cells.num_classes))
        expectation = e_step(patterns, fit.scores, hard=self._hard, responsibilities=found)
        self._design, self._cells, self._packed, self._patterns, self._place = (
            design,
            cells,
            packed,
            patterns,
            place,
        )
        self._mode, self._last, self._statistics, self._shares = mode, fit, expectation.statistics, found
        self._answer(
            table, found if place is None else found[place], mode.objective, mode.converged and fit.converged
        )

    def _finish(self) -> None:
        """Label probabilities from the shares that the items have in the counts, once dependence is known."""
        found = self._averaged(self._patterns, self._shares)
        probabilities = found if self._place is None else found[self._place]
        self._answered = replace(self._answered, responsibilities=probabilities)

    def _averaged(self, packed: Packed, shares: Float64[np.ndarray, "i k"]) -> Float64[np.ndarray, "i k"]:
        averaging = self._averaging(self._design)
        if averaging is not None:
            return averaged_probabilities(
                packed, self._design.cells, shares, averaging.means(self._statistics), self._copying
            )
        if not self._copying and not self._hard:
            return shares
        found = np.zeros_like(shares)
        e_step(discounted(packed, self._copying), self._last.scores, responsibilities=found)
        return found

    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        design = self._design.joined(table.key, len(table.annotators))
        packed = table.packed(design.cells)
        found = np.zeros((len(table.items), design.cells.num_classes))
        e_step(discounted(packed, self._copying), self._scores(design), responsibilities=found)
        return found

    def _of_annotators(self) -> tuple[RowPosterior, Float64[np.ndarray, " k"], Packed | None]:
        cells = self._design.cells
        rows = RowPosterior(
            cells,
            self._base(cells.num_classes, cells.num_labels),
            self._statistics.counts,
            self._design.history,
        )
        return rows, self.class_prior_.to_numpy(), self._patterns

    @property
    def class_prior_(self) -> pd.Series:
        """p(class) by class, at the mode."""
        check_is_fitted(self, "classes_")
        return pd.Series(
            np.exp(self._mode.scores.log_prior), self.classes_.rename("class"), name="class_prior"
        )

    def _confusion_array(self) -> Float64[np.ndarray, "j k l"]:
        cells = self._design.cells
        rows = RowPosterior(
            cells, self._base(cells.num_classes, cells.num_labels), np.exp(self._mode.scores.log_table)
        )
        made = np.zeros((cells.num_annotators, cells.num_classes, cells.num_labels))
        for where, (dense,) in rows.chunks(rows.counts):
            made[where] = dense
        # A label that an annotator never used has what the others leave, in the proportions of the prior's mode
        seen = np.zeros((cells.num_annotators, cells.num_labels), bool)
        seen[cells.annotator, cells.label] = True
        shares = np.where(seen[:, None], 0.0, np.maximum(rows.base - 1, 0)[None])
        shares += np.where(~seen[:, None] & (shares.sum(2, keepdims=True) == 0), 1.0, 0.0)
        total = shares.sum(2, keepdims=True)
        left = np.maximum(1 - made.sum(2, keepdims=True), 0)
        return made + left * np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)

    @property
    def counts_(self) -> pd.DataFrame:
        """Expected counts by annotator, true_class and label, those above 1e-6: what a later fit takes as `history`."""
        cells, counts = self._design.cells, self._statistics.counts
        counts = counts if self._design.history is None else counts + self._design.history
        p, k = np.nonzero(counts > 1e-6)
        columns = {
            "annotator": self._annotator_ids.take(cells.annotator[p]),
            "true_class": self.classes_.take(k),
            "label": self._label_ids.take(cells.label[p]),
            "count": counts[p, k],
        }
        return pd.DataFrame(columns)


def _read_history(
    table: Table, history: pd.DataFrame | None, abstention: Any
) -> tuple[Table, tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
    """The table with the annotators of the history, and the history as keys, classes and counts."""
    if history is None:
        return table, None
    if not isinstance(history, pd.DataFrame):
        raise TypeError(f"the history must be a data frame, as `counts_` is, not {type(history).__name__}")
    missing = {"annotator", "true_class", "label", "count"} - set(history.columns)
    if missing:
        raise ValueError(
            f"the history needs the columns annotator, true_class, label and count; {', '.join(sorted(missing))} is missing"
        )
    column: dict[str, pd.Series] = {
        name: history.loc[:, name] for name in ("annotator", "true_class", "label", "count")
    }
    reject(
        column["annotator"].isna().to_numpy(bool), column["annotator"], "missing annotator ids in the history"
    )
    count = pd.Series(pd.to_numeric(column["count"], errors="coerce")).to_numpy(np.float64, na_value=np.nan)
    reject(
        ~(np.isfinite(count) & (count >= 0)), column["count"], "counts of the history must be finite and >= 0"
    )
    new = pd.Index(column["annotator"].unique())
    new = new[table.annotators.get_indexer(new) < 0]
    # Ids of another kind ("1" and 1) would be other annotators, and their history lost
    table = (
        replace(table, annotators=declare(table.annotators.append(new), "annotators")) if len(new) else table
    )
    known = table.classes.get_indexer(pd.Index(column["true_class"]))
    reject(
        known < 0, column["true_class"], f"classes of the history that are none of {list(table.classes[:10])}"
    )
    label = table.classes.get_indexer(pd.Index(column["label"]))
    if table.num_labels > len(table.classes):
        label = np.where(np.asarray(column["label"] == abstention, dtype=bool), len(table.classes), label)
    reject(label < 0, column["label"], f"labels of the history that are none of {list(table.classes[:10])}")
    key = table.annotators.get_indexer(pd.Index(column["annotator"])) * table.num_labels + label
    return table, (key.astype(np.int64), known.astype(np.int64), count)


def _at_cells(
    cells: Cells, key: np.ndarray, true_class: np.ndarray, counts: np.ndarray
) -> Float64[np.ndarray, "p k"]:
    made = np.zeros((len(cells), cells.num_classes))
    np.add.at(made, (cells.locate(key), true_class), counts)
    return made

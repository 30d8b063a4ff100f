"""The base of all aggregators: reading tables, results under the user's ids, ties, scores, the check of
dependence.
"""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.recode import recode, warn_of_unknown
from probcrowd.data.table import Packed, Table, read_table
from probcrowd.data.validation import check_number, check_option, check_whole
from probcrowd.estimators.results import Fitted, ItemResults, known_labels
from probcrowd.inference.aggregation.annotator_summary import RowPosterior
from probcrowd.inference.aggregation.e_step import count
from probcrowd.inference.dependence.dependence import Dependence, check_fit
from probcrowd.inference.dependence.report import sentences
from probcrowd.metrics.scores import hits
from probcrowd.models.priors import rows_base

Self = TypeVar("Self", bound="Aggregator")  # beartype takes typing.Self only in classes that it decorates
_SKLEARN = ("_metadata_request", "_sklearn_output_config")  # attributes of scikit-learn that no fit sets


class DependenceWarning(UserWarning):
    """Annotators agree beyond what the truth explains, so label probabilities are overconfident."""


@dataclass(kw_only=True, eq=False, repr=False)
class Aggregator(BaseEstimator, abc.ABC):
    """Labels from annotations. `annotations` is an `Annotations` or a data frame in long form with item,
    annotator and label.

    After `fit`: `labels_`, `probabilities_`, `items_`, `class_prior_`, `confusion_`, `annotators_` (pandas
    objects under the user's ids), `log_posterior_` (the objective after each iteration), `n_iter_`,
    `converged_`, `classes_`, `dependence_`.

    A subclass defines `_solve` and `_predict`. Class attributes: supports: which of "history" (of `fit`),
    "discount" (a value of `dependence`) and "events" (a value of `abstentions`) it takes. unknown: how labels
    by annotators that the fit has not seen are treated.
    """

    dependence: str = "warn"
    abstention: Any = None

    supports = frozenset[str]()
    unknown = "are taken as the prior has them"

    def fit(
        self: Self, annotations: Any, gold: pd.Series | None = None, *, history: pd.DataFrame | None = None
    ) -> Self:
        """Fit to a table.

        Args:
            annotations: see above.
            gold: the known class of some items, by item id; these items are that class for certain.
            history: counts from earlier work, as `counts_` of an earlier fit has them: columns annotator,
                true_class, label and count. They enter every M step as prior counts.

        Raises:
            TypeError, ValueError: tables that cannot be read; the message names the rows.
        """
        if history is None:
            return self._fit(annotations, gold, self._solve)
        self._require("history", "takes no history", "do")
        return self._fit(annotations, gold, lambda table: self._solve(table, history=history))

    def fit_predict(self, annotations: Any, gold: pd.Series | None = None, **options: Any) -> pd.Series:
        """Fit to a table and return the labels of its items."""
        return self.fit(annotations, gold, **options).predict()

    def fit_predict_proba(
        self, annotations: Any, gold: pd.Series | None = None, **options: Any
    ) -> pd.DataFrame:
        """Fit to a table and return the label probabilities of its items."""
        return self.fit(annotations, gold, **options).predict_proba()

    def predict(self, annotations: Any = None) -> pd.Series:
        """Return the most probable class by item, of the fitted table or of another one; the first of equals
        (see `items_`).
        """
        return self.describe(annotations).loc[:, "label"]

    def predict_proba(self, annotations: Any = None) -> pd.DataFrame:
        """Return p(class | annotations) by item (rows) and class (columns), of the fitted table or of
        another one by annotators of the fit.
        """
        check_is_fitted(self, "classes_")
        return (
            self.probabilities_
            if annotations is None
            else self._results(annotations).probability_frame(self.classes_)
        )

    def describe(self, annotations: Any = None) -> pd.DataFrame:
        """Describe items: label, its probability, number of labels, whether classes tie, whether the class
        was known, and a flag.

        flag: "no labels" (the answer is the class prior), "unknown annotators only", or empty.
        """
        check_is_fitted(self, "classes_")
        return self.items_ if annotations is None else self._item_frame(self._results(annotations))

    def score(self, annotations: Any, gold: pd.Series) -> float:
        """Return the share of items with gold whose label is right; in a tie of m classes, 1/m.
        `annotations` None: of the fitted table.
        """
        probabilities = self.predict_proba(annotations)
        known = known_labels(gold, probabilities.index)
        truth = self.classes_.get_indexer(pd.Index(known))
        # A class that no annotator used is never right
        right = hits(probabilities.loc[known.index].to_numpy(), np.maximum(truth, 0)) * (truth >= 0)
        return float(right.mean())

    @property
    def probabilities_(self) -> pd.DataFrame:
        """p(class | annotations) by item (rows) and class (columns)."""
        return self._record.frame(
            "probabilities", lambda: self._item_results().probability_frame(self.classes_)
        )

    @property
    def items_(self) -> pd.DataFrame:
        """The fitted items, as `describe` has them."""
        return self._record.frame("items", lambda: self._item_frame(self._item_results()))

    @property
    def labels_(self) -> pd.Series:
        """The most probable class by item."""
        return self.items_.loc[:, "label"]

    @property
    def confusion_(self) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label; rows sum to 1."""
        return self._record.frame("confusion", lambda: self._fitted.confusion_frame(self._confusion))

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: number of labels; accuracy, information in bits with central 90 % intervals;
        probability of spamming.
        """
        return self._record.frame(
            "annotators", lambda: self._fitted.annotator_frame(self._packed_annotations())
        )

    @property
    def class_prior_(self) -> pd.Series:
        """p(class) by class."""
        prior = self._record.class_prior
        return pd.Series(prior, self.classes_.rename("class"), name="class_prior")

    @property
    def dependent_pairs_(self) -> pd.DataFrame:
        """The pairs of annotators that `dependence_` compared, under their ids."""
        ids = self._record.annotators
        if self.dependence_ is None:
            raise ValueError("dependence was not checked: fit with dependence='warn'")
        pairs = self.dependence_.pairs
        return pairs.assign(**{side: ids.take(np.asarray(pairs[side])) for side in ("annotator", "other")})

    @abc.abstractmethod
    def _solve(self, table: Table, *args: Any, **kwargs: Any) -> Fitted:
        """Fit to a table."""

    @abc.abstractmethod
    def _predict(self, table: Table, *args: Any, **kwargs: Any) -> Float64[np.ndarray, "i k"]:
        """Return label probabilities of a new table, in the fit's codes."""

    def _fit(self: Self, annotations: Any, gold: pd.Series | None, solve: Callable[[Table], Fitted]) -> Self:
        """Check the parameters, read the table, fit by `solve` and check dependence."""
        self._check()
        table = read_table(annotations, gold, abstention=self.abstention, abstentions=self._abstentions)
        for name in [name for name in vars(self) if name.endswith("_") or name.startswith("_")]:
            if not name.startswith("__") and name not in _SKLEARN:
                delattr(self, name)
        return self._set(solve(table))

    def _set(self: Self, fitted: Fitted) -> Self:
        """Set everything that a fitted aggregator has; warn if annotators err together."""
        self.classes_, self.log_posterior_ = fitted.classes, fitted.objective
        self.n_iter_, self.converged_ = len(fitted.objective), fitted.converged
        self.dependence_: Dependence | None = None
        if self.dependence != "ignore":
            self.dependence_ = check_fit(fitted.packed, fitted.rows, fitted.class_shares)
            near = bool(self.dependence_.pairs["near_duplicate"].any())
            if self.dependence == "warn" and (near or self.dependence_.correlated):
                for sentence in sentences(self.dependence_, fitted.annotators):
                    warnings.warn(sentence, DependenceWarning, stacklevel=4)
        rate = self.dependence_.residual if self.dependence_ and self.dependence == "discount" else 0.0
        self._fitted = self._finish(replace(fitted, copying=0.0 if math.isnan(rate) else max(rate, 0.0)))
        return self

    def _finish(self, fitted: Fitted) -> Fitted:
        """Return the fit with what depends on `copying`."""
        return fitted

    def _check(self) -> None:
        """Raise ValueError for invalid parameters; subclasses check their own as well."""
        check_option("abstentions", self._abstentions, ("ignore", "event"))
        if self._abstentions == "event":
            self._require("events", "cannot take abstentions as events", "can")
        check_option("dependence", self.dependence, ("warn", "discount", "ignore"))
        if self.dependence == "discount":
            self._require("discount", "cannot discount dependent labels", "can")
        for name in ("max_iter", "restarts"):
            check_whole(name, getattr(self, name, 1))
        check_number("tolerance", getattr(self, "tolerance", 0.0), least=0)

    def _require(self, ability: str, refusal: str, verb: str) -> None:
        """Raise ValueError if this aggregator lacks an ability, with the names of those that have it."""
        if ability not in self.supports:
            from probcrowd.estimators.catalogue import AGGREGATORS

            able = [kind.__name__ for kind in AGGREGATORS.values() if ability in kind.supports]
            names = f"{', '.join(able[:-1])} and {able[-1]}"
            raise ValueError(f"{type(self).__name__} {refusal}; {names} {verb}")

    @property
    def _abstentions(self) -> Any:
        return getattr(self, "abstentions", "ignore")

    @property
    def _record(self) -> Fitted:
        check_is_fitted(self, "classes_")
        return self._fitted

    def _summarise(
        self,
        table: Table,
        probabilities: Float64[np.ndarray, "i k"],
        objective: Float64[np.ndarray, " t"],
        converged: bool,
        class_prior: Float64[np.ndarray, " k"] | None = None,
        model: Any = None,
    ) -> Fitted:
        """Return the record of a method without tables of annotators: they are counted given the label
        probabilities.
        """
        cells = table.cells
        packed = table.packed(cells)
        statistics = count(packed, probabilities, len(cells))
        base = rows_base("accurate", cells.num_classes, cells.num_labels)[1]
        rows = RowPosterior(cells, base, statistics.counts)
        shares = statistics.class_count / max(statistics.class_count.sum(), 1e-300)
        prior = shares if class_prior is None else class_prior
        results = self._described(table, probabilities, len(table.annotators))
        ids = table.annotators, table.classes, table.classes
        return Fitted(results, *ids, packed, rows, prior, shares, objective, converged, model)

    def _described(
        self, table: Table, probabilities: Float64[np.ndarray, "i k"], num_known: int
    ) -> ItemResults:
        number = len(table.items)
        size = np.bincount(table.item, minlength=number)
        size_known = np.bincount(table.item[table.annotator < num_known], minlength=number)
        return ItemResults(table.items, probabilities, size, size_known, table.gold >= 0)

    def _results(self, annotations: Any, warn: bool = True, **options: Any) -> ItemResults:
        """Predict the items of another table. options: of `_predict`."""
        table = self._read(annotations)
        if warn:
            warn_of_unknown(table, len(self._fitted.annotators), self.unknown)
        probabilities = self._fitted.keep_answers(table, self._predict(table, **options))
        return self._described(table, probabilities, len(self._fitted.annotators))

    def _read(self, annotations: Any, gold: pd.Series | None = None) -> Table:
        """Read a table into the codes of the fit; it may have no abstentions, or nothing else."""
        options = {"abstention": self.abstention, "abstentions": self._abstentions, "classes": self.classes_}
        table = read_table(annotations, gold, **options)
        return recode(table, self._fitted.annotators, self.classes_, len(self._fitted.labels))

    def _item_frame(self, results: ItemResults) -> pd.DataFrame:
        return results.frame(self.classes_)

    def _item_results(self) -> ItemResults:
        return self._fitted.items

    def _packed_annotations(self) -> Packed:
        return self._fitted.packed

    def _confusion(self) -> Float64[np.ndarray, "j k l"]:
        return self._fitted.mean_confusion()

"""What all aggregators share: reading tables, answers under the user's ids, ties, scores."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.options import check_number, check_option, check_whole
from probcrowd.data.packed import Cells, Packed
from probcrowd.data.table import Abstentions, Table, read_table, recode, warn_of_unknown
from probcrowd.estimators.item_answers import DependenceWarning, ItemResults, dependence_of, known_of
from probcrowd.inference.aggregation.annotator_summary import RowPosterior, annotator_table, confusion_table
from probcrowd.inference.aggregation.e_step import Scores, Statistics, count, held_out
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.inference.dependence.dependence import Dependence
from probcrowd.metrics.scores import hits
from probcrowd.models.priors import rows_base

MOST_CONFUSION = 2 * 10**8
_KEPT = ("_metadata_request", "_sklearn_output_config")  # what scikit-learn notes, not a fit


class Aggregator(BaseEstimator, abc.ABC):
    """Labels from annotations. `annotations` is an `Annotations` or a data frame in long form with item, annotator and label.

    After `fit`: `labels_`, `probabilities_`, `items_`, `class_prior_`, `confusion_`, `annotators_` (pandas objects under the user's ids),
    `log_posterior_` (what the method raises, after every iteration), `n_iter_`, `converged_`, `classes_`, `dependence_`.
    """

    _takes_history = False
    _takes_events = False
    _takes_discount = False
    _unknown = "are taken as the prior has them"
    abstention: Any
    abstentions: Abstentions = "ignore"
    dependence: str
    _packed: Packed
    _cells: Cells
    _counts: Statistics

    def fit(
        self, annotations: Any, gold: pd.Series | None = None, *, history: pd.DataFrame | None = None
    ) -> Aggregator:
        """This estimator, fitted.

        Args:
            annotations: see above.
            gold: the known class of some items, by item id; these items are that class for certain.
            history: counts from earlier work, as `counts_` of an earlier fit has them: columns annotator, true_class, label and count. They
                enter every M step as prior counts.

        Raises:
            TypeError, ValueError: tables that cannot be read; the message names the rows.
        """
        if history is not None and not self._takes_history:
            raise ValueError(
                f"{type(self).__name__} takes no history; DawidSkene, FastDawidSkene, OneCoin and ZenCrowd do"
            )
        return self._fitted(annotations, gold, lambda table: self._fit(table, history))

    def _fitted(self, annotations: Any, gold: pd.Series | None, fit: Callable[[Table], None]) -> Aggregator:
        """This estimator after `fit` has seen the table."""
        check_option("abstentions", self.abstentions, ("ignore", "event"))
        if self.abstentions == "event" and not self._takes_events:
            raise ValueError(
                f"{type(self).__name__} cannot take abstentions as events; DawidSkene and HierarchicalDawidSkene can"
            )
        check_option("dependence", self.dependence, ("warn", "discount", "ignore"))
        if self.dependence == "discount" and not self._takes_discount:
            raise ValueError(
                f"{type(self).__name__} cannot discount dependent labels; DawidSkene, its relatives, OneCoin and MACE can"
            )
        self._check()
        table = read_table(annotations, gold, abstention=self.abstention, abstentions=self.abstentions)
        self._forget()
        fit(table)
        self._look_for_dependence()
        self._finish()
        self._made = {}
        return self

    def fit_predict(self, annotations: Any, gold: pd.Series | None = None, **options: Any) -> pd.Series:
        """The labels of the items of a table, after fitting it."""
        return self.fit(annotations, gold, **options).predict()

    def fit_predict_proba(
        self, annotations: Any, gold: pd.Series | None = None, **options: Any
    ) -> pd.DataFrame:
        """The label probabilities of the items of a table, after fitting it."""
        return self.fit(annotations, gold, **options).predict_proba()

    def predict(self, annotations: Any = None) -> pd.Series:
        """The most probable class by item, of the fitted table or of another one. Where several tie, the first (see `items_`)."""
        return self.describe(annotations).loc[:, "label"]

    def predict_proba(self, annotations: Any = None) -> pd.DataFrame:
        """p(class | annotations) by item (rows) and class (columns), of the fitted table or of another one by annotators of the fit."""
        check_is_fitted(self, "classes_")
        if annotations is None:
            return self.probabilities_
        table = self._new(annotations)
        return self._describe(table, self._answers(table)).probability_frame(self.classes_)

    def describe(self, annotations: Any = None) -> pd.DataFrame:
        """By item: label, its probability, how many labels it has, whether classes tie, whether the class was known, and a flag.

        flag: "no labels" (the answer is the class prior), "unknown annotators only", or empty.
        """
        check_is_fitted(self, "classes_")
        if annotations is None:
            return self.items_
        table = self._new(annotations)
        return self._frame(self._describe(table, self._answers(table)))

    def score(self, annotations: Any, gold: pd.Series) -> float:
        """The share of items with gold whose label is right; in a tie of m classes, 1/m. `annotations` None: of the fitted table."""
        probabilities = self.predict_proba(annotations)
        known = known_of(gold, probabilities.index)
        truth = self.classes_.get_indexer(pd.Index(known))
        # A class that nobody named is never hit
        found = hits(probabilities.loc[known.index].to_numpy(), np.maximum(truth, 0)) * (truth >= 0)
        return float(found.mean())

    @property
    def probabilities_(self) -> pd.DataFrame:
        """p(class | annotations) by item (rows) and class (columns)."""
        return self._cached("probabilities", lambda: self._latest().probability_frame(self.classes_))

    @property
    def items_(self) -> pd.DataFrame:
        """What `describe` says of the fitted items."""
        return self._cached("items", lambda: self._frame(self._latest()))

    @property
    def labels_(self) -> pd.Series:
        """The most probable class by item."""
        return self.items_.loc[:, "label"]

    @property
    def confusion_(self) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label; rows sum to 1."""
        return self._cached("confusion", self._confusion_frame)

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: number of labels; accuracy, information in bits with central 90 % intervals; probability of spamming."""
        return self._cached("annotators", self._annotator_frame)

    @property
    @abc.abstractmethod
    def class_prior_(self) -> pd.Series:
        """p(class) by class."""

    @abc.abstractmethod
    def _fit(self, table: Table, history: pd.DataFrame | None) -> None:
        """Fits and calls `_answer`."""

    @abc.abstractmethod
    def _predict(self, table: Table) -> Float64[np.ndarray, "i k"]:
        """Label probabilities of a new table, in the fit's codes."""

    def _check(self) -> None:
        """Refuses parameters without a meaning; subclasses with others add theirs."""
        for name in ("max_iter", "restarts"):
            check_whole(name, getattr(self, name, 1))
        check_number("tolerance", getattr(self, "tolerance", 0.0), least=0)

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_") or name.startswith("_")]:
            if not name.startswith("__") and name not in _KEPT:
                delattr(self, name)

    def _answers(self, table: Table) -> Float64[np.ndarray, "i k"]:
        """Label probabilities of a table; an item of the fit with the labels that it had there keeps its answer."""
        found = self._predict(table)
        place = self._answered.items.get_indexer(table.items)
        size = np.bincount(table.item, minlength=len(place))
        items = np.flatnonzero((place >= 0) & (size == self._packed.size[place]))
        if len(items):
            position = np.full(len(place), -1)
            position[items] = np.arange(len(items))
            asked = table.kept(position[table.item] >= 0)
            fitted = self._packed.take(place[items])
            pairs = position[asked.item], np.repeat(np.arange(len(items)), fitted.size)
            keys = asked.key, self._cells.key[fitted.cell]
            weights = asked.weights, fitted.weights
            orders = [
                np.lexsort((weight, key, pair))
                for weight, key, pair in zip(weights, keys, pairs, strict=True)
            ]
            differ = (keys[0][orders[0]] != keys[1][orders[1]]) | (
                weights[0][orders[0]] != weights[1][orders[1]]
            )
            same = np.bincount(pairs[0][orders[0]], differ, minlength=len(items)) == 0
            found[items[same]] = self._answered.responsibilities[place[items[same]]]
        return found

    def _new(self, annotations: Any) -> Table:
        table = self._read(annotations)
        warn_of_unknown(table, len(self._annotator_ids), self._unknown)
        return table

    def _read(self, annotations: Any, gold: pd.Series | None = None) -> Table:
        """A table in the codes of the fit; it need not have abstentions, and may have nothing else."""
        table = read_table(
            annotations, gold, abstention=self.abstention, abstentions=self.abstentions, classes=self.classes_
        )
        return recode(table, self._annotator_ids, self.classes_, self._num_labels)

    def _describe(self, table: Table, probabilities: Float64[np.ndarray, "i k"]) -> ItemResults:
        size = np.bincount(table.item, minlength=len(table.items))
        heard = size
        if hasattr(self, "_annotator_ids"):
            heard = np.bincount(
                table.item[table.annotator < len(self._annotator_ids)], minlength=len(table.items)
            )
        return ItemResults(table.items, probabilities, size, heard, table.gold >= 0)

    def _answer(
        self,
        table: Table,
        probabilities: Float64[np.ndarray, "i k"],
        objective: Float64[np.ndarray, " t"],
        converged: bool,
    ) -> None:
        """Sets what every fit has."""
        self.classes_ = table.classes
        self._answered = self._describe(table, probabilities)
        self._annotator_ids, self._num_labels = table.annotators, table.num_labels
        self._label_ids = table.classes
        if table.num_labels > len(table.classes):
            self._label_ids = table.classes.astype(object).append(pd.Index([self.abstention], dtype=object))
        self.log_posterior_ = objective
        self.n_iter_, self.converged_ = len(objective), converged

    def _frame(self, answered: ItemResults) -> pd.DataFrame:
        return answered.frame(self.classes_)

    def _finish(self) -> None:
        """What is left to do once dependence is known."""

    @property
    def _copying(self) -> float:
        """The rate at which labels count as copies of others of their item."""
        rate = (
            self.dependence_.residual
            if self.dependence == "discount" and self.dependence_ is not None
            else 0.0
        )
        return 0.0 if math.isnan(rate) else max(rate, 0.0)

    def _look_for_dependence(self) -> None:
        """Tells if annotators err together."""
        self.dependence_: Dependence | None = None
        if self.dependence == "ignore":
            return
        posterior, class_prior, _ = self._of_annotators()
        self.dependence_ = dependence_of(self._packed, posterior, class_prior)
        for sentence in self.dependence_.warnings(self._annotator_ids) if self.dependence == "warn" else []:
            warnings.warn(sentence, DependenceWarning, stacklevel=3)

    @property
    def dependent_pairs_(self) -> pd.DataFrame:
        """The pairs of annotators that `dependence_` compared, under their ids."""
        check_is_fitted(self, "classes_")
        if self.dependence_ is None:
            raise ValueError("dependence was not checked: fit with dependence='warn'")
        pairs = self.dependence_.pairs
        return pairs.assign(
            **{side: self._annotator_ids.take(np.asarray(pairs[side])) for side in ("annotator", "other")}
        )

    def _latest(self) -> ItemResults:
        return self._answered

    def _of_annotators(self) -> tuple[RowPosterior, Float64[np.ndarray, " k"], Packed | None]:
        """What the annotators' tables are made of: rows, class prior, and the annotations for leaving each one's own label out."""
        base = rows_base("accurate", len(self.classes_), self._num_labels)[1]
        shares = self._counts.class_count / max(self._counts.class_count.sum(), 1e-300)
        return RowPosterior(self._cells, base, self._counts.counts), shares, self._packed

    def _count(self, packed: Packed, cells: Cells, probabilities: Float64[np.ndarray, "i k"]) -> None:
        """Sets what the annotators' tables are made of, where the method has no tables of its own: counts given the label probabilities."""
        self._packed, self._cells, self._counts = packed, cells, count(packed, probabilities, len(cells))

    def _cached(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        check_is_fitted(self, "classes_")
        if not hasattr(self, "_made"):
            self._made: dict[str, pd.DataFrame] = {}
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _annotator_frame(self) -> pd.DataFrame:
        posterior, class_prior, packed = self._of_annotators()
        held = None
        if packed is not None:
            rows = DirichletRows(
                posterior.cells, posterior.base, ClassPrior(None, True), posterior.history, averaged=True
            )
            uniform = rows.scores(Statistics(posterior.counts, np.ones(len(class_prior))))
            scores = Scores(uniform.log_table, np.log(np.maximum(class_prior, 1e-12)))
            held = held_out(packed, scores).counts
        return annotator_table(posterior, class_prior, held).set_axis(
            pd.Index(self._annotator_ids, name="annotator"), axis=0
        )

    def _confusion_array(self) -> Float64[np.ndarray, "j k l"]:
        return confusion_table(self._of_annotators()[0])

    def _confusion_frame(self) -> pd.DataFrame:
        size = len(self._annotator_ids) * len(self.classes_) * self._num_labels
        if size > MOST_CONFUSION:
            raise ValueError(
                f"the confusion matrices have {size:,} numbers; `counts_` has those that are not zero"
            )
        rows = pd.MultiIndex.from_product(
            [self._annotator_ids, self.classes_], names=["annotator", "true_class"]
        )
        return pd.DataFrame(
            self._confusion_array().reshape(len(rows), -1), rows, self._label_ids.rename("label")
        )

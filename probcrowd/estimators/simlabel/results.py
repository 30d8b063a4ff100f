"""What a fit of every annotator's own voice answers, as pandas objects under the user's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.files import some
from probcrowd.data.rows import Rows
from probcrowd.data.table import read_table, recode
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd.inputs import Items, classes_of
from probcrowd.estimators.crowd.options import read_said
from probcrowd.estimators.crowd.results import Answers
from probcrowd.estimators.simlabel.options import pair_codes
from probcrowd.metrics.annotators import annotator_scores, overall_scores
from probcrowd.metrics.scores import predicted, scores
from probcrowd.models.simlabel.imputed_labels import ImputedLabels
from probcrowd.models.simlabel.similarity import Similarity
from probcrowd.models.simlabel.soft_labels import SoftLabels


@dataclass(frozen=True)
class Evaluation:
    """annotators: labels, accuracy with a 95 % interval and log loss, by annotator. overall: see `probcrowd.metrics.annotators.overall_scores`, and
    consensus_accuracy and consensus_log_loss where true classes were given."""

    annotators: pd.DataFrame
    overall: pd.Series

    def __str__(self) -> str:
        return f"{self.overall.to_string()}\n\n{self.annotators.to_string()}"


class SimLabelAnswers(Answers):
    """Answers of a fitted `SimLabel`. `predict_proba` and `predict` are what annotators have in common; each one's own are `annotator_proba` and
    `predict_annotators`."""

    _made: SoftLabels  # pyright: ignore[reportIncompatibleVariableOverride]
    _ids: pd.Index
    _place: np.ndarray
    _imputed: ImputedLabels
    _withdrawn: np.ndarray

    def predict_annotators(self, X: Any, annotators: Sequence[Any] | pd.Index | None = None) -> pd.DataFrame:
        """The label that each annotator would most probably give, by item and annotator."""
        items, chosen, found = self._of_annotators(X, annotators)
        best = self.classes_[predicted(found).ravel()].to_numpy().reshape(found.shape[:2])
        return pd.DataFrame(best, items.ids.rename("item"), chosen.rename("annotator"))

    def evaluate(
        self, X: Any, annotations: Any, gold: Any = None, *, missing_label: Any = None
    ) -> Evaluation:
        """How well the labels of annotators are foretold: labels that the fit has not seen, in any form that `fit` takes, each of which counts once.

        gold: true classes by item id, or in the order of X, for what annotators have in common.

        Raises:
            ValueError: annotators, labels or items that the fit or X does not know.
        """
        items, seen = self._seen(X)
        table = recode(
            read_table(read_said(annotations, missing_label, items)),
            self._annotators,
            self.classes_,
            len(self.classes_),
        )
        if len(unknown := table.annotators[len(self._annotators) :]):
            raise ValueError(
                f"annotators that the fit does not know: {some(unknown)}; leave their labels out"
            )
        item = items.place(table.items)[table.item]
        gold_of_nobody = np.full(len(items.ids), -1, np.int64)
        sizes = len(self._annotators), len(self.classes_)
        labels = AnnotationTensors.of(
            Rows(item, table.annotator, table.label, table.weights, gold_of_nobody, *sizes), self.device
        )
        with torch.no_grad():
            p = torch.softmax(self._made.log_label(seen, labels).double(), 1).cpu().numpy()
            features = self._made.annotator_features(seen).double().cpu().numpy()
        rows = item, table.annotator, table.label, p
        overall = overall_scores(*rows, num_annotators=len(self._annotators), features=features)
        if gold is not None:
            known = scores(
                self._probabilities(items, seen).to_numpy(), classes_of(gold, items, self.classes_)
            )
            overall |= {"consensus_accuracy": known["accuracy"], "consensus_log_loss": known["log_loss"]}
        return Evaluation(annotator_scores(*rows[1:], self._annotators), pd.Series(overall))

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: how many labels it was learned from, how many were imputed, and the mean similarity to all others by observed labels."""
        check_is_fitted(self, "classes_")
        matrix = self._made.similarity().matrix()
        others = max(len(matrix) - 1, 1)
        made = np.bincount(self._imputed.annotator.cpu().numpy(), minlength=len(matrix))
        columns = {"labels": self._labels, "imputed": made, "mean_similarity": (matrix.sum(1) - 1) / others}
        return pd.DataFrame(columns, self._annotators.rename("annotator"))

    @property
    def similarity_(self) -> pd.DataFrame:
        """A row per pair of annotators with items in common: items, agreement, coefficient and standard error, and the similarity that is made of these
        with its own; by the labels trained on alone. `attrs` has mean and spread of all pairs, where these are drawn to each other."""
        check_is_fitted(self, "classes_")
        return self._made.similarity().frame(self._annotators)

    @property
    def similarity_matrix_(self) -> pd.DataFrame:
        """The same as a matrix, annotators x annotators; pairs without items in common have the mean of all, or 0 where nothing is shrunk."""
        check_is_fitted(self, "classes_")
        return self._frame(self._made.similarity())

    @property
    def refreshed_similarity_matrix_(self) -> pd.DataFrame:
        """The same with the labels that stand imputed taken for labels: what soft labels are weighted by, and no evidence."""
        check_is_fitted(self, "classes_")
        return self._frame(self._made.similarity(self._imputed))

    @property
    def imputed_(self) -> pd.DataFrame:
        """The labels that stand imputed: item, annotator, label, confidence. Items held out have none."""
        check_is_fitted(self, "classes_")
        item, annotator, label, sure = (
            getattr(self._imputed, name).cpu().numpy()
            for name in ("item", "annotator", "label", "confidence")
        )
        columns = {
            "item": self._ids[self._place[item]],
            "annotator": self._annotators[annotator],
            "label": self.classes_[label],
        }
        return pd.DataFrame({**columns, "confidence": sure})

    @property
    def withdrawn_(self) -> pd.DataFrame:
        """Pairs of item and annotator that are never imputed."""
        check_is_fitted(self, "classes_")
        item, annotator = np.divmod(self._withdrawn, len(self._annotators))
        return pd.DataFrame({"item": self._ids[item], "annotator": self._annotators[annotator]})

    def completed(self, annotations: Any, *, missing_label: Any = None) -> pd.DataFrame:
        """A table of labels, in any form that `fit` takes, with those imputed below, of pairs that it has not: item, annotator, label, whether it was
        observed, and confidence, which is missing where it was."""
        check_is_fitted(self, "classes_")
        known = Items(self._ids, None, (), self.device, True)
        table = read_table(read_said(annotations, missing_label, known))
        columns = {
            "item": table.items[table.item],
            "annotator": table.annotators[table.annotator],
            "label": table.classes[table.label],
        }
        observed = pd.DataFrame(columns).assign(observed=True, confidence=np.nan)
        pairs = ["item", "annotator"]
        whole = pd.concat([observed, self.imputed_.assign(observed=False)], ignore_index=True)
        return whole.loc[whole["observed"] | ~whole.duplicated(pairs)].reset_index(drop=True)

    def withdraw(self, pairs: pd.DataFrame | None = None) -> SimLabelAnswers:
        """This fit without the labels imputed for some pairs (columns item and annotator, such as rows of `imputed_`), or without any.

        `imputed_` and `refreshed_similarity_matrix_` are as if these had never been imputed; the network, and a folder, are as they were. A fit with
        withdrawn=`withdrawn_` never imputes them; their soft labels stay in its loss.

        Raises:
            ValueError: pairs that were not imputed.
        """
        check_is_fitted(self, "classes_")
        here = (
            self._place[self._imputed.item.cpu().numpy()] * len(self._annotators)
            + self._imputed.annotator.cpu().numpy()
        )
        gone = here if pairs is None else pair_codes(pairs, self._ids, self._annotators)
        if not np.isin(gone, here).all():
            raise ValueError(
                "some of these pairs of item and annotator were not imputed; `imputed_` lists those that were"
            )
        self._imputed = self._imputed.select(
            torch.from_numpy(~np.isin(here, gone)).to(self._imputed.item.device)
        )
        self._withdrawn = np.union1d(self._withdrawn, gone)
        return self

    def _frame(self, found: Similarity) -> pd.DataFrame:
        return pd.DataFrame(
            found.matrix(), self._annotators.rename("annotator"), self._annotators.rename("other")
        )

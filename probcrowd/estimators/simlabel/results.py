"""Answers of a fitted `SimLabel` about single annotators, as pandas objects under the user's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from sklearn.utils.validation import check_is_fitted

from probcrowd.data.files import some
from probcrowd.data.recode import recode
from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.network.estimator import NetworkEstimator
from probcrowd.estimators.network.fit import FittedNetwork
from probcrowd.estimators.network.inputs import Items, class_codes, read_labels
from probcrowd.estimators.simlabel.options import pair_codes
from probcrowd.metrics.annotators import annotator_scores, overall_scores
from probcrowd.metrics.scores import predicted, scores
from probcrowd.models.simlabel.imputed_labels import ImputedLabels
from probcrowd.models.simlabel.similarity import Similarity
from probcrowd.models.simlabel.soft_labels import SoftLabels


@dataclass(frozen=True)
class FittedSimLabel(FittedNetwork):
    """A fit of `SimLabel`.

    place: positions in X of the items trained on. withdrawn: pairs never imputed, as item * annotators +
    annotator.
    """

    channel: SoftLabels
    place: Int[np.ndarray, " i"]
    imputed: ImputedLabels
    withdrawn: Int[np.ndarray, " w"]

    @property
    def imputed_codes(self) -> Int[np.ndarray, " n"]:
        """The imputed pairs, as item * annotators + annotator, where items are positions in X."""
        item, annotator = (part.cpu().numpy() for part in (self.imputed.item, self.imputed.annotator))
        return self.place[item] * len(self.ids["annotators"]) + annotator

    def pairs(self, codes: Int[np.ndarray, " n"]) -> dict[str, pd.Index]:
        """The ids of pairs."""
        item, annotator = np.divmod(codes, len(self.ids["annotators"]))
        return {"item": self.ids["items"][item], "annotator": self.ids["annotators"][annotator]}


@dataclass(frozen=True)
class Evaluation:
    """How well annotators' labels are predicted.

    annotators: labels, accuracy with a 95 % interval, and log loss, by annotator.
    overall: see `probcrowd.metrics.annotators.overall_scores`; with true classes also consensus_accuracy and
    consensus_log_loss.
    """

    annotators: pd.DataFrame
    overall: pd.Series

    def __str__(self) -> str:
        return f"{self.overall.to_string()}\n\n{self.annotators.to_string()}"


class SimLabelResults(NetworkEstimator):
    """Predictions of `SimLabel`.

    `predict_proba` and `predict` are about what annotators have in common; `annotator_proba` and
    `predict_annotators` about each one.
    """

    _fitted: FittedSimLabel  # pyright: ignore[reportIncompatibleVariableOverride]

    def predict_annotators(self, X: Any, annotators: Sequence[Any] | pd.Index | None = None) -> pd.DataFrame:
        """The label that each annotator would most probably give, by item and annotator."""
        items, chosen, probabilities = self._label_probabilities(X, annotators)
        best = self.classes_[predicted(probabilities).ravel()].to_numpy().reshape(probabilities.shape[:2])
        return pd.DataFrame(best, items.ids.rename("item"), chosen.rename("annotator"))

    def evaluate(
        self, X: Any, annotations: Any, gold: Any = None, *, missing_label: Any = None
    ) -> Evaluation:
        """Score predictions of annotators' labels, each of which counts once.

        Args:
            annotations: labels that the fit has not seen, in any form that `fit` takes.
            gold: true classes by item id, or in the order of X, to score what annotators have in common.

        Raises:
            ValueError: annotators, labels or items that the fit or X lacks.
        """
        items, seen = self._look(X)
        annotators, channel = self._fitted.ids["annotators"], self._fitted.channel
        table = recode(
            read_labels(annotations, missing_label, items), annotators, self.classes_, len(self.classes_)
        )
        if len(unknown := table.annotators[len(annotators) :]):
            raise ValueError(f"annotators that are not in the fit: {some(unknown)}: leave their labels out")
        item, no_gold = items.place(table.items)[table.item], np.full(len(items.ids), -1, np.int64)
        sizes = len(annotators), len(self.classes_)
        rows = Rows(item, table.annotator, table.label, table.weights, no_gold, *sizes)
        with torch.no_grad():
            p = (
                torch.softmax(channel.log_label(seen, AnnotationTensors.of(rows, self.device)).double(), 1)
                .cpu()
                .numpy()
            )
            features = channel.annotator_features(seen).double().cpu().numpy()
        labelled = item, table.annotator, table.label, p
        overall = overall_scores(*labelled, num_annotators=len(annotators), features=features)
        if gold is not None:
            common, truth = self._probabilities(items, seen), class_codes(gold, items, self.classes_)
            consensus = scores(common.to_numpy(), truth)
            overall |= {f"consensus_{name}": consensus[name] for name in ("accuracy", "log_loss")}
        return Evaluation(annotator_scores(*labelled[1:], annotators), pd.Series(overall))

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: number of labels trained on, number imputed, mean similarity to all others."""
        check_is_fitted(self, "classes_")
        rows, matrix = self._fitted.rows, self._fitted.channel.similarity().matrix()
        size, imputed = len(matrix), self._fitted.imputed.annotator.cpu().numpy()
        columns = {
            "labels": np.bincount(rows.annotator, minlength=size),
            "imputed": np.bincount(imputed, minlength=size),
            "mean_similarity": (matrix.sum(1) - 1) / max(size - 1, 1),
        }
        return pd.DataFrame(columns, self._fitted.ids["annotators"].rename("annotator"))

    @property
    def similarity_(self) -> pd.DataFrame:
        """By pair of annotators with items in common, from the labels trained on alone.

        Columns: items, agreement, coefficient with its standard error, and the similarity computed from these
        with its own. `attrs` has mean and spread of all pairs if similarities are shrunk.
        """
        check_is_fitted(self, "classes_")
        return self._fitted.channel.similarity().frame(self._fitted.ids["annotators"])

    @property
    def similarity_matrix_(self) -> pd.DataFrame:
        """The similarities as a matrix; without common items, the mean of all (0 without shrinkage)."""
        check_is_fitted(self, "classes_")
        return self._matrix(self._fitted.channel.similarity())

    @property
    def refreshed_similarity_matrix_(self) -> pd.DataFrame:
        """Similarities that count imputed labels as labels: weights of soft labels, not evidence."""
        check_is_fitted(self, "classes_")
        return self._matrix(self._fitted.channel.similarity(self._fitted.imputed))

    @property
    def imputed_(self) -> pd.DataFrame:
        """The imputed labels: item, annotator, label, confidence. Held-out items have none."""
        check_is_fitted(self, "classes_")
        fitted = self._fitted
        label, confidence = (part.cpu().numpy() for part in (fitted.imputed.label, fitted.imputed.confidence))
        columns = {**fitted.pairs(fitted.imputed_codes), "label": self.classes_[label]}
        return pd.DataFrame({**columns, "confidence": confidence})

    @property
    def withdrawn_(self) -> pd.DataFrame:
        """Pairs of item and annotator that are never imputed."""
        check_is_fitted(self, "classes_")
        return pd.DataFrame(self._fitted.pairs(self._fitted.withdrawn))

    def completed(self, annotations: Any, *, missing_label: Any = None) -> pd.DataFrame:
        """Append the imputed labels of missing pairs to a table of labels, in any form that `fit` takes.

        Columns: item, annotator, label, observed, and confidence, which is missing for observed labels.
        """
        check_is_fitted(self, "classes_")
        items = Items(self._fitted.ids["items"], None, (), self.device, True)
        table = read_labels(annotations, missing_label, items)
        columns = {
            "item": table.items[table.item],
            "annotator": table.annotators[table.annotator],
            "label": table.classes[table.label],
        }
        observed = pd.DataFrame(columns).assign(observed=True, confidence=np.nan)
        whole = pd.concat([observed, self.imputed_.assign(observed=False)], ignore_index=True)
        repeated = whole.duplicated(["item", "annotator"])
        return whole.loc[whole["observed"] | ~repeated].reset_index(drop=True)

    def withdraw(self, pairs: pd.DataFrame | None = None) -> SimLabelResults:
        """Remove the labels imputed for some pairs, or all of them.

        pairs: columns item and annotator, such as rows of `imputed_`.

        `imputed_` and `refreshed_similarity_matrix_` become as if these had never been imputed; the network
        and a folder do not change. A fit with withdrawn=`withdrawn_` never imputes them; their soft labels
        stay in its loss.

        Raises:
            ValueError: pairs that were not imputed.
        """
        check_is_fitted(self, "classes_")
        fitted, codes = self._fitted, self._fitted.imputed_codes
        gone = codes if pairs is None else pair_codes(pairs, fitted.ids["items"], fitted.ids["annotators"])
        if not np.isin(gone, codes).all():
            raise ValueError("some of these pairs were not imputed: choose pairs from `imputed_`")
        left = torch.from_numpy(~np.isin(codes, gone)).to(fitted.imputed.item.device)
        withdrawn = np.union1d(fitted.withdrawn, gone)
        self._fitted = replace(fitted, imputed=fitted.imputed.select(left), withdrawn=withdrawn)
        return self

    def _matrix(self, similarity: Similarity) -> pd.DataFrame:
        annotators = self._fitted.ids["annotators"]
        return pd.DataFrame(similarity.matrix(), annotators.rename("annotator"), annotators.rename("other"))

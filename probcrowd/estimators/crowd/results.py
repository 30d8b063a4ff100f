"""What a classifier learned from annotators answers, as pandas objects under the user's ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.utils.validation import check_is_fitted
from torch import nn

from probcrowd.data.columns import reject
from probcrowd.data.files import some
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd.inputs import Items, classes_of, read_items
from probcrowd.inference.crowd.network_output import apply_network_to_all
from probcrowd.metrics.scores import hits, predicted
from probcrowd.models.crowd.base import Channel, ConfusionChannel, NetworkOutput

ROWS = 2**22  # numbers of an item, an annotator, a class and a label that are held at once


class Answers:
    """What every fit of a network to annotators answers."""

    network_: nn.Module
    classes_: pd.Index
    device: str
    _made: Channel
    _annotators: pd.Index
    _labels: np.ndarray
    _columns: tuple[str, ...]
    _shape: tuple[int, ...]

    def predict_proba(self, X: Any) -> pd.DataFrame:
        """p(class | x) by item and class."""
        return self._probabilities(*self._seen(X))

    def _probabilities(self, items: Items, seen: NetworkOutput) -> pd.DataFrame:
        with torch.no_grad():
            found = torch.softmax(self._made.log_truth(seen).double(), 1).cpu().numpy()
        reject(
            np.asarray(np.isnan(found).any(1), dtype=bool),
            pd.Series(list(items.ids)),
            "items for which the network gives no number",
        )
        return pd.DataFrame(found, items.ids.rename("item"), self.classes_.rename("class"))

    def predict(self, X: Any) -> pd.Series:
        """The most probable class by item."""
        found = self.predict_proba(X)
        return pd.Series(self.classes_[predicted(found.to_numpy())], found.index, name="label")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of items whose class is predicted; y: true classes by item id, or in the order of X. In a tie of m classes, 1/m."""
        items, seen = self._seen(X)
        found, codes = self._probabilities(items, seen), classes_of(y, items, self.classes_)
        if isinstance(sample_weight, pd.Series):
            sample_weight = sample_weight.reindex(found.index)
        weights = None if sample_weight is None else np.asarray(sample_weight)[codes >= 0]
        return float(np.average(hits(found.to_numpy()[codes >= 0], codes[codes >= 0]), weights=weights))

    def annotator_proba(self, X: Any, annotators: Sequence[Any] | pd.Index | None = None) -> pd.DataFrame:
        """P(annotator says label | x) by (item, annotator) and label, for all annotators or for some."""
        items, chosen, found = self._of_annotators(X, annotators)
        index = pd.MultiIndex.from_product([items.ids.rename("item"), chosen.rename("annotator")])
        return pd.DataFrame(found.reshape(-1, len(self.classes_)), index, self.classes_.rename("label"))

    def _of_annotators(
        self, X: Any, annotators: Sequence[Any] | pd.Index | None
    ) -> tuple[Items, pd.Index, Float[np.ndarray, "b j l"]]:
        """Items, annotators, and what each would say of each."""
        items, seen = self._seen(X)
        chosen = self._annotators if annotators is None else pd.Index(annotators)
        code = self._annotators.get_indexer(chosen)
        if (code < 0).any():
            raise ValueError(f"annotators that the fit does not know: {some(chosen[code < 0])}")
        found = np.empty((len(items.ids), len(code), len(self.classes_)))
        step = max(ROWS // max(len(code) * len(self.classes_) ** 2, 1), 1)
        for low in range(0, len(items.ids) if len(code) else 0, step):
            high = min(low + step, len(items.ids))
            found[low:high] = self._said(seen, low, high, code).reshape(high - low, len(code), -1)
        return items, chosen, found

    def _said(self, seen: NetworkOutput, low: int, high: int, code: np.ndarray) -> Float[np.ndarray, "n l"]:
        device = seen.log_truth.device
        part = NetworkOutput(
            seen.log_truth[low:high], None if seen.features is None else seen.features[low:high]
        )
        item = torch.arange(high - low, device=device)
        annotator = torch.from_numpy(code.astype(np.int64)).to(device).repeat(high - low)
        pairs = len(annotator)
        nothing = torch.zeros(pairs, dtype=torch.int64, device=device)
        labels = AnnotationTensors(
            item.repeat_interleave(len(code)),
            annotator,
            nothing,
            torch.ones(pairs, device=device),
            item,
            float(len(code)),
        )
        with torch.no_grad():
            return torch.softmax(self._made.log_label(part, labels).double(), 1).cpu().numpy()

    def _seen(self, X: Any) -> tuple[Items, NetworkOutput]:
        check_is_fitted(self, "classes_")
        items = read_items(X, self.device, self._columns or None)
        if items.shape != self._shape:
            raise ValueError(f"X: inputs of shape {items.shape}, those of the fit had {self._shape}")
        return items, apply_network_to_all(
            self.network_, self._made, items, torch.arange(len(items.ids), device=self.device)
        )


class CrowdAnswers(Answers):
    """Answers of a fitted `CrowdClassifier`."""

    _made: ConfusionChannel

    @property
    def confusion_(self) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label, for items that are surely of that class; up to a permutation of classes."""
        check_is_fitted(self, "classes_")
        with torch.no_grad():
            matrices = self._made.confusion().double().cpu().numpy()
        index = pd.MultiIndex.from_product(
            [self._annotators.rename("annotator"), self.classes_.rename("true_class")]
        )
        return pd.DataFrame(matrices.reshape(-1, len(self.classes_)), index, self.classes_.rename("label"))

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: accuracy, the mean of the diagonal of the confusion matrix, and how many labels it was learned from."""
        check_is_fitted(self, "classes_")
        with torch.no_grad():
            accuracy = self._made.confusion().double().diagonal(dim1=1, dim2=2).mean(1).cpu().numpy()
        return pd.DataFrame(
            {"accuracy": accuracy, "labels": self._labels}, self._annotators.rename("annotator")
        )

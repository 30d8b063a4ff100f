"""The base of estimators that train a network on labels: parameters, training and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from probcrowd.data.files import some
from probcrowd.data.recode import recode
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.data.validation import reject
from probcrowd.estimators.network.fit import FittedNetwork, numbers_of
from probcrowd.estimators.network.inputs import Items, class_codes, read_items, read_labels, sorted_ids
from probcrowd.estimators.network.split import ItemScores, TrainingData, split_items
from probcrowd.inference.crowd.network_output import apply_network_to_all
from probcrowd.inference.crowd.training import TrainingOptions, TrainingState, train
from probcrowd.metrics.scores import hits, predicted
from probcrowd.models.crowd.base import Channel, NetworkOutput
from probcrowd.storage.checkpoint import module_tensors
from probcrowd.storage.fit import FitFolder, open_fit

MAX_CELLS = 2**22  # numbers (item, annotator, class, label) in memory at once
_NO_EFFECT = (
    "network",
    "encoder",
    "progress",
    "device",
)  # on the result; networks are compared by their tensors


@dataclass(kw_only=True, eq=False, repr=False)
class NetworkEstimator(ClassifierMixin, BaseEstimator):
    """A network and a channel that are trained together: shared parameters and predictions."""

    epochs: int = 100
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    patience: int | None = None
    validation_fraction: float = 0.1
    options: Mapping[str, Any] | None = None
    random_state: int = 0
    progress: bool = False
    device: str = "cpu"

    def predict_proba(self, X: Any) -> pd.DataFrame:
        """p(class | x) by item and class."""
        return self._probabilities(*self._look(X))

    def predict(self, X: Any) -> pd.Series:
        """The most probable class by item."""
        probabilities = self.predict_proba(X)
        best = self.classes_[predicted(probabilities.to_numpy())]
        return pd.Series(best, probabilities.index, name="label")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of items whose class is predicted; in a tie of m classes, 1/m.

        y: true classes by item id, or in the order of X.
        """
        items, seen = self._look(X)
        probabilities, codes = self._probabilities(items, seen), class_codes(y, items, self.classes_)
        if isinstance(sample_weight, pd.Series):
            sample_weight = sample_weight.reindex(probabilities.index)
        known = codes >= 0
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        return float(np.average(hits(probabilities.to_numpy()[known], codes[known]), weights=weights))

    def annotator_proba(self, X: Any, annotators: Sequence[Any] | pd.Index | None = None) -> pd.DataFrame:
        """P(annotator gives label | x) by (item, annotator) and label, for all annotators or for some."""
        items, chosen, probabilities = self._label_probabilities(X, annotators)
        index = pd.MultiIndex.from_product([items.ids.rename("item"), chosen.rename("annotator")])
        flat = probabilities.reshape(-1, len(self.classes_))
        return pd.DataFrame(flat, index, self.classes_.rename("label"))

    def _probabilities(self, items: Items, seen: NetworkOutput) -> pd.DataFrame:
        with torch.no_grad():
            probabilities = torch.softmax(self._fitted.channel.log_truth(seen).double(), 1).cpu().numpy()
        bad = np.asarray(np.isnan(probabilities).any(1), dtype=bool)
        reject(bad, pd.Series(list(items.ids)), "items for which the network's output is not a number")
        return pd.DataFrame(probabilities, items.ids.rename("item"), self.classes_.rename("class"))

    def _label_probabilities(
        self, X: Any, annotators: Sequence[Any] | pd.Index | None
    ) -> tuple[Items, pd.Index, Float[np.ndarray, "b j l"]]:
        items, seen = self._look(X)
        known = self._fitted.ids["annotators"]
        chosen = known if annotators is None else pd.Index(annotators)
        code = known.get_indexer(chosen)
        if (code < 0).any():
            raise ValueError(f"annotators that are not in the fit: {some(chosen[code < 0])}")
        probabilities = np.empty((len(items.ids), len(code), len(self.classes_)))
        step = max(MAX_CELLS // max(len(code) * len(self.classes_) ** 2, 1), 1)
        for low in range(0, len(items.ids) if len(code) else 0, step):
            block = slice(low, min(low + step, len(items.ids)))
            features = None if seen.features is None else seen.features[block]
            probabilities[block] = self._block(NetworkOutput(seen.log_truth[block], features), code)
        return items, chosen, probabilities

    def _block(self, seen: NetworkOutput, code: Int[np.ndarray, " j"]) -> Float[np.ndarray, "b j l"]:
        """Label probabilities of some items by the annotators of those codes."""
        device, size = seen.log_truth.device, len(seen.log_truth)
        item, annotator = (
            torch.arange(size, device=device),
            torch.from_numpy(code.astype(np.int64)).to(device),
        )
        pairs = size * len(code)
        labels = AnnotationTensors(
            item.repeat_interleave(len(code)),
            annotator.repeat(size),
            torch.zeros(pairs, dtype=torch.int64, device=device),  # not read
            torch.ones(pairs, device=device),
            item,
            float(len(code)),
        )
        with torch.no_grad():
            log_probabilities = self._fitted.channel.log_label(seen, labels).double()
        return torch.softmax(log_probabilities, 1).cpu().numpy().reshape(size, len(code), -1)

    def _look(self, X: Any) -> tuple[Items, NetworkOutput]:
        """The items of X, and what the network makes of them."""
        check_is_fitted(self, "classes_")
        fitted = self._fitted
        items = read_items(X, self.device, fitted.columns)
        if items.shape != fitted.shape:
            raise ValueError(f"X: inputs of shape {items.shape}, those of the fit had {fitted.shape}")
        places = torch.arange(len(items.ids), device=self.device)
        return items, apply_network_to_all(fitted.network, fitted.channel, items, places)

    def _read(
        self, X: Any, annotations: Any, missing_label: Any, selection: str, sort: bool = False
    ) -> TrainingData:
        """Read inputs and annotations and split the items. sort: order annotators by id."""
        items = read_items(X, self.device)
        table = read_labels(annotations, missing_label, items)
        if len(table.classes) < 2:
            raise ValueError(
                f"all labels are the same, {some(table.classes)}, so there is nothing to learn: "
                "declare the other classes in Annotations.from_frame"
            )
        if sort:
            table = recode(table, sorted_ids(table.annotators), table.classes, len(table.classes))
        share = float(self.validation_fraction) if selection == "held-out" else 0.0
        parts = split_items(table, items, share, int(self.random_state), self.device)
        return TrainingData(items, table, *parts)

    def _open(
        self,
        folder: Path | str | None,
        resume: bool,
        network: nn.Module,
        data: TrainingData,
        more: Iterable[np.ndarray] = (),
    ) -> AbstractContextManager[FitFolder | None]:
        """Open the folder of the fit. more: arrays that the fit depends on, besides network and data."""
        given, table, tensors = self.get_params(deep=False), data.table, module_tensors(network, "network")
        parameters = {name: value for name, value in given.items() if name not in _NO_EFFECT}
        parameters |= {"options": dict(self.options or {}), "printed": repr(network)}
        parameters["own_network"] = given.get("network", given.get("encoder")) is not None
        arrays = [
            table.item,
            table.annotator,
            table.label,
            table.weight,
            numbers_of(data.items.values),
            *more,
        ]
        return open_fit(
            folder,
            resume=resume,
            estimator=type(self).__name__,
            parameters=parameters,
            arrays=[*arrays, *(value.numpy() for _, value in sorted(tensors.items()))],
            ids={"table": table.items, **data.ids},
        )

    def _train(
        self,
        network: nn.Module,
        channel: Channel,
        data: TrainingData,
        scores: ItemScores | None,
        folder: FitFolder | None = None,
    ) -> TrainingState:
        """Train both modules in place. scores: of the items that select the epoch; None: select the last."""
        rate = getattr(self, "channel_learning_rate", None)
        training = TrainingOptions(
            int(self.epochs),
            int(self.batch),
            float(self.learning_rate),
            float(self.weight_decay),
            None if rate is None else float(rate),
            None if self.patience is None else int(self.patience),
        )

        def keep(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
            metrics = {name: value for name, value in state["history"][-1].items() if name != "epoch"}
            assert folder is not None
            folder.save_checkpoint(state["epoch"], metrics, tensors, state)

        return train(
            network,
            channel,
            data.train.inputs,
            data.train.labels,
            training,
            seed=int(self.random_state),
            score=None if scores is None else lambda *both: float(scores(*both).mean()),
            resume=None if folder is None else folder.checkpoint,
            keep=None if folder is None else keep,
            progress=self.progress,
        )

    def _set_fitted(self, fitted: FittedNetwork) -> None:
        self._fitted = fitted
        self.network_, self.classes_ = fitted.network, fitted.ids["classes"]
        history = pd.DataFrame(fitted.trained.history).astype({"epoch": int, "degenerate": int})
        self.history_, self.epoch_ = history.set_index("epoch"), fitted.trained.selected

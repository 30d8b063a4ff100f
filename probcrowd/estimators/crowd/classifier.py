"""Train any torch network as a classifier on the labels of several imperfect annotators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.data.validation import check_number, check_option
from probcrowd.estimators.crowd.methods import Start, Task, find_method, make_channel
from probcrowd.estimators.crowd.strength import compare_strengths, select_strength
from probcrowd.estimators.network.estimator import NetworkEstimator
from probcrowd.estimators.network.fit import (
    FittedNetwork,
    build_network,
    example,
    numbers_of,
    restore_network,
    restore_summary,
    restore_training,
    save_network,
)
from probcrowd.estimators.network.inputs import class_codes, read_items
from probcrowd.estimators.network.options import check_training
from probcrowd.estimators.network.split import (
    ItemScores,
    TrainingData,
    classes_permuted,
    gold_scores,
    held_out_scores,
)
from probcrowd.inference.crowd.network_output import output_layer
from probcrowd.models.crowd.base import ConfusionChannel
from probcrowd.models.encoders import small_network
from probcrowd.storage.fit import load_fit, load_table, stored_table

Network = nn.Module | Callable[[tuple[int, ...], int], nn.Module]
MIN_BATCH_PER_CLASS = 4  # items of a batch per class, below which a volume over the batch is too noisy


@dataclass(kw_only=True, eq=False, repr=False)
class CrowdClassifier(NetworkEstimator):
    """A classifier learned from several imperfect annotators, together with their confusion matrices.

    Args:
        network: a module from inputs (b, ...) to logits (b, classes), which is copied and trained further
            from its weights; or a function of the shape of an input and the number of classes that returns
            one, with random weights drawn from `random_state`. None: one hidden layer of 128 units, for
            tables.
        method: one of `probcrowd.estimators.crowd.methods.METHODS`.
        strength: of the method's term (the volumes of GeoCrowdNet, the trace of TraceReg). None: the method's
            default. "selected": chosen from `probcrowd.estimators.crowd.strength.STRENGTHS` by the items that
            select the epoch, with one fit each (`strengths_`, `strength_`).
        initial_accuracy: the initial diagonal of the confusion matrices, whatever the number of classes, or
            "published": the method's own. Methods that count labels (raykar, mbem, max-mig, doctor-net,
            majority-vote, dawid-skene) start at the votes instead.
        epochs, batch, learning_rate, channel_learning_rate, weight_decay, patience: of Adam, see
            `probcrowd.inference.crowd.training.TrainingOptions`. By default confusion matrices learn faster
            than the network; otherwise they would stay near their initial values.
        selection: which epoch is the result. "held-out": the best by the log score of the labels of held-out
            items; "last": the last; "gold": the best by accuracy on the `validation` passed to `fit`.
        validation_fraction: the share of labelled items to hold out for selection="held-out".
        options: of the method: {"running": True} takes the volume of GeoCrowdNet(F) over an epoch, not a
            batch.
        random_state: the seed of new networks, held-out items, batches and dropout. progress: show a progress
            bar.
        device: of torch.

    After `fit`: `classes_`, `network_`, `history_`, `epoch_` (the one selected), `degenerate_` (steps in
    which a volume was almost singular), `confusion_`, `annotators_`.
    """

    network: Network | None = None
    method: str = "geocrowdnet-f"
    strength: float | Literal["selected"] | None = None
    initial_accuracy: Start = 0.8
    channel_learning_rate: float | None = 1e-2
    selection: Literal["held-out", "last", "gold"] = "held-out"

    def fit(
        self,
        X: Any,
        annotations: Any,
        *,
        missing_label: Any = None,
        validation: tuple[Any, Any] | None = None,
        folder: Path | str | None = None,
        resume: bool = False,
    ) -> CrowdClassifier:
        """Train the network and the channel; returns this estimator.

        Args:
            X: inputs by item: a data frame (ids are its index), an array or a tensor of any shape, or a torch
                Dataset, read as needed. Items without labels are ignored.
            annotations: a long table of item, annotator and label, an `Annotations`, or a matrix of labels,
                items x annotators, in which NaN, None or `missing_label` marks missing labels.
            validation: inputs and true classes for selection="gold".
            folder: where to save a checkpoint after every epoch and, at the end, the fit
                (`load_crowd_classifier`).
            resume: continue the fit in the folder.

        Raises:
            TypeError, ValueError: invalid tables or parameters, labelled items that X lacks, a network with
                another number of logits than classes.
            FloatingPointError: the loss is no longer finite.
        """
        self._check(validation)
        data = self._read(X, annotations, missing_label, self.selection)
        for name in ("strengths_", "strength_"):
            vars(self).pop(name, None)
        network, train = self._network(data), data.train
        scores, more = self._scores(data, validation)
        with self._open(folder, resume, network, data, more) as saved:
            strength = self.strength
            if strength == "selected":
                assert scores is not None
                search = partial(self._compare_strengths, data, scores)
                self.strengths_ = stored_table(saved, "strengths", search)
                identifies = self.selection == "held-out" and find_method(self.method).volume is not None
                strength = self.strength_ = select_strength(self.strengths_, strongest=identifies)
            channel = self._channel(network, train.rows, train.labels, data.items.shape, strength)
            trained = self._train(network, channel, data, scores, saved)
            if classes_permuted(network, channel, train):
                warnings.warn(
                    "the network's classes seem to be permuted: it calls one class what annotators call "
                    "another; a smaller strength, a lower learning rate or a larger initial_accuracy may "
                    "prevent this",
                    stacklevel=2,
                )
            self._set_fitted(FittedNetwork(network, channel, trained, *data.summary))
            if saved is not None:
                save_network(saved, self._fitted, {"strength": strength})
        return self

    @property
    def confusion_(self) -> pd.DataFrame:
        """P(label | true class) by (annotator, true class) and label, for items certain to be of that class.

        Identified up to a permutation of the classes.
        """
        matrices = self._confusion()
        rows = pd.MultiIndex.from_product(
            [self._fitted.ids["annotators"].rename("annotator"), self.classes_.rename("true_class")]
        )
        return pd.DataFrame(matrices.reshape(len(rows), -1), rows, self.classes_.rename("label"))

    @property
    def annotators_(self) -> pd.DataFrame:
        """By annotator: accuracy (mean diagonal of the confusion matrix) and number of labels trained on."""
        accuracy = self._confusion().diagonal(axis1=1, axis2=2).mean(1)
        rows = self._fitted.rows
        labels = np.bincount(rows.annotator, minlength=rows.num_annotators)
        index = self._fitted.ids["annotators"].rename("annotator")
        return pd.DataFrame({"accuracy": accuracy, "labels": labels}, index)

    def _confusion(self) -> np.ndarray:
        check_is_fitted(self, "classes_")
        channel = self._fitted.channel
        assert isinstance(channel, ConfusionChannel)
        with torch.no_grad():
            return channel.confusion().double().cpu().numpy()

    def _check(self, validation: Any) -> None:
        """Raise a ValueError for parameters that are out of range or do not fit each other."""
        method = find_method(self.method)
        check_number("initial_accuracy", self.initial_accuracy, above=0, below=1, others=("published",))
        check_training(self)
        check_number("channel_learning_rate", self.channel_learning_rate, above=0, others=(None,))
        check_number("strength", self.strength, least=0, others=(None, "selected"))
        check_option("selection", self.selection, ("held-out", "last", "gold"))
        if self.strength == "selected" and self.selection == "last":
            raise ValueError(
                "strength='selected' needs a score to select by: set selection='held-out' or 'gold'"
            )
        if self.strength == "selected" and method.strength is None:
            raise ValueError(f"strength='selected': the method {self.method!r} has no term to weight")
        if (self.selection == "gold") != (validation is not None):
            raise ValueError("selection='gold' and validation=(X, classes) go together: give both or neither")

    def _network(self, data: TrainingData) -> nn.Module:
        network, num_classes = (
            small_network if self.network is None else self.network,
            len(data.table.classes),
        )
        arguments = data.items.shape, num_classes
        module = build_network(network, arguments, int(self.random_state), self.device)
        with torch.no_grad():
            logits = module(example(data.items))
        if logits.ndim != 2 or logits.shape[1] != num_classes:
            raise ValueError(
                f"the network returns {tuple(logits.shape)} for a batch of {len(logits)}; "
                f"it must return a logit for each of {num_classes} classes"
            )
        return module

    def _channel(
        self,
        network: nn.Module,
        rows: Rows,
        labels: AnnotationTensors,
        shape: tuple[int, ...],
        strength: float | None,
    ) -> ConfusionChannel:
        with torch.no_grad():
            head = output_layer(network.eval(), torch.zeros(2, *shape, device=self.device))
        layer = None if head is None else network.get_submodule(head)
        width = layer.in_features if isinstance(layer, nn.Linear) else 1
        options = dict(self.options or {})
        with torch.random.fork_rng():
            torch.manual_seed(int(self.random_state) + 1)
            channel = make_channel(
                self.method, Task(rows, labels, width), self.initial_accuracy, strength, options
            )
        channel.head = head or ""
        if channel.needs_features and head is None:
            raise ValueError(
                f"{self.method} needs a network whose last layer is a torch.nn.Linear that returns the "
                f"logits; {type(network).__name__} has none"
            )
        least = MIN_BATCH_PER_CLASS * rows.num_classes
        volume = find_method(self.method).volume == "truth" and not options.get("running")
        if volume and self.batch < least:
            warnings.warn(
                f"batches of {self.batch} items determine a volume over {rows.num_classes} classes poorly: "
                f"set batch to at least {least}, or options={{'running': True}}",
                stacklevel=3,
            )
        return channel.to(self.device)

    def _scores(
        self, data: TrainingData, validation: tuple[Any, Any] | None
    ) -> tuple[ItemScores | None, list[np.ndarray]]:
        """Scores of the items that select the epoch (None: the last epoch is the result), and their data."""
        if self.selection == "held-out":
            return partial(held_out_scores, part=data.held_out), []
        if validation is None:
            return None, []
        known, shape = read_items(validation[0], self.device, data.items.columns), data.items.shape
        if known.shape != shape:
            raise ValueError(f"validation: inputs of shape {known.shape}, those of X have {shape}")
        codes = class_codes(validation[1], known, data.table.classes)
        return partial(gold_scores, items=known, truth=codes), [numbers_of(validation[0]), codes]

    def _compare_strengths(self, data: TrainingData, scores: ItemScores) -> pd.DataFrame:
        def fit_scores(strength: float) -> tuple[np.ndarray, bool] | None:
            network, train = self._network(data), data.train
            channel = self._channel(network, train.rows, train.labels, data.items.shape, strength)
            try:
                self._train(network, channel, data, scores)
            except FloatingPointError:
                return None
            return scores(network, channel), classes_permuted(network, channel, train)

        return compare_strengths(fit_scores)

    def _set_fitted(self, fitted: FittedNetwork) -> None:
        super()._set_fitted(fitted)
        self.degenerate_ = int(self.history_["degenerate"].iloc[-1])
        if self.degenerate_:
            advice = (
                "a larger batch, options={'running': True} or a smaller strength helps"
                if find_method(self.method).volume == "truth"
                else "lower the strength"
            )
            warnings.warn(
                f"in {self.degenerate_} steps the volume was almost singular, and a ridge was added: "
                f"{advice}",
                stacklevel=3,
            )


def load_crowd_classifier(folder: Path | str, network: Network | None = None) -> CrowdClassifier:
    """Load the finished fit that `CrowdClassifier.fit` saved in a folder.

    network: the one that the fit was given, if it was not the default.

    Raises:
        ValueError: no finished fit, damaged files, or another network.
    """
    saved = load_fit(folder, "CrowdClassifier")
    rows, _, _, shape = summary = restore_summary(saved)
    restored = restore_network(saved, network, small_network, (shape, rows.num_classes))
    loaded, strength = CrowdClassifier(network=network, **saved.parameters), saved.state["strength"]
    channel = loaded._channel(restored, rows, AnnotationTensors.of(rows), shape, strength)
    loaded._set_fitted(FittedNetwork(restored, *restore_training(saved, channel), *summary))
    if loaded.strength == "selected":
        loaded.strengths_, loaded.strength_ = load_table(folder, "strengths"), strength
    return loaded

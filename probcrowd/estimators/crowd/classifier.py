"""The front door to learning a classifier from annotators: any torch network, any method of `probcrowd.estimators.crowd.methods`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from probcrowd.data.files import some
from probcrowd.data.rows import Rows
from probcrowd.data.table import Table, read_table
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.crowd.fit import (
    fitted,
    held_out_from,
    kept_in,
    made,
    remade,
    same_network,
    some_of,
    trained_on,
)
from probcrowd.estimators.crowd.inputs import Items, classes_of, read_items
from probcrowd.estimators.crowd.methods import Start, Task, make_channel
from probcrowd.estimators.crowd.options import check, read_said
from probcrowd.estimators.crowd.results import CrowdAnswers
from probcrowd.estimators.crowd.saved import load_result, rows_of, save_result, settings_of
from probcrowd.estimators.crowd.split import Judge, Split, held_out_scores, known_scores, renamed, split_of
from probcrowd.estimators.crowd.strength import chosen_strength, compared_strengths, load_strengths
from probcrowd.inference.crowd.network_output import output_layer
from probcrowd.inference.crowd.training import TrainingState
from probcrowd.models.crowd.base import ConfusionChannel
from probcrowd.models.encoders import small_network
from probcrowd.storage.checkpoint import load_module

Network = nn.Module | Callable[[tuple[int, ...], int], nn.Module]
Selection = Literal["held-out", "last", "gold"]


class CrowdClassifier(CrowdAnswers, ClassifierMixin, BaseEstimator):
    """A classifier learned from what several imperfect annotators said, together with what each of them makes of the truth.

    Args:
        network: a module from inputs (b, ...) to logits (b, classes), which is copied and trained on from its weights; or a function of the
            shape of an input and the number of classes that makes one, under the seed. None: one hidden layer of 128 units for tables.
        method: see `probcrowd.estimators.crowd.methods.METHODS`.
        strength: of the method's term (the volumes of GeoCrowdNet, the trace of TraceReg). None: the method's own. "selected": of
            `probcrowd.estimators.crowd.strength.STRENGTHS`, by the items that select the epoch, one fit each (`strengths_`, `strength_`).
        initial_accuracy: where confusion matrices start on their diagonal, for any number of classes, or "published": the method's start. Methods that
            count (raykar, mbem, max-mig, doctor-net, majority-vote, dawid-skene) start at the votes instead.
        epochs, batch, learning_rate, channel_learning_rate, weight_decay, patience: of Adam, see
            `probcrowd.inference.crowd.training.Training`. Confusion matrices learn faster than the network by default, or would stay near their start.
        selection: which epoch is the result. "held-out": the best by the log score of the labels of items that are held out; "last": the
            last; "gold": the best by accuracy on the `validation` that `fit` is given.
        validation_fraction: of the items with labels, held out where they select.
        options: of the method: {"running": True} takes the volume of GeoCrowdNet(F) over an epoch instead of a batch.
        random_state: the seed of new networks, of what is held out, of batches and of dropout. progress: shows a bar.
        device: of torch.

    After `fit`: `classes_`, `network_`, `history_`, `epoch_` (the one selected), `degenerate_` (steps in which a volume was next to singular).
    """

    def __init__(
        self,
        network: Network | None = None,
        method: str = "geocrowdnet-f",
        *,
        strength: float | Literal["selected"] | None = None,
        initial_accuracy: Start = 0.8,
        epochs: int = 100,
        batch: int = 64,
        learning_rate: float = 1e-3,
        channel_learning_rate: float | None = 1e-2,
        weight_decay: float = 0.0,
        patience: int | None = None,
        selection: Selection = "held-out",
        validation_fraction: float = 0.1,
        options: Mapping[str, Any] | None = None,
        random_state: int = 0,
        progress: bool = False,
        device: str = "cpu",
    ) -> None:
        self.network: Network | None = network
        self.method = method
        self.strength: float | Literal["selected"] | None = strength
        self.initial_accuracy: Start = initial_accuracy
        self.epochs = epochs
        self.batch = batch
        self.learning_rate = learning_rate
        self.channel_learning_rate = channel_learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.selection: Selection = selection
        self.validation_fraction = validation_fraction
        self.options = options
        self.random_state = random_state
        self.progress = progress
        self.device = device

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
        """This estimator, fitted.

        Args:
            X: inputs by item: a data frame (ids are its index), an array or a tensor of any shape, or a torch Dataset, read as it is needed.
                Items without labels are left out.
            annotations: a long table of item, annotator and label, an `Annotations`, or a matrix of labels, items x annotators, in which
                NaN, None or `missing_label` marks what nobody said.
            validation: inputs and true classes for selection="gold".
            folder: where a checkpoint is kept after every epoch, and in the end the fit (`load_crowd_classifier`). resume: go on from there.

        Raises:
            TypeError, ValueError: tables that cannot be read, items that X has not, a network that gives other numbers of logits.
            FloatingPointError: the loss is not a number any more.
        """
        check(self, validation, folder, resume)
        items = read_items(X, self.device)
        table = read_table(read_said(annotations, missing_label, items))
        if len(table.classes) < 2:
            raise ValueError(
                f"all labels are alike, {some(table.classes)}: there is nothing to tell apart; declare classes in Annotations.from_frame"
            )
        self.__dict__.pop("strengths_", None)
        self.__dict__.pop("strength_", None)
        split = split_of(table, items, self._held_share, int(self.random_state), self.device)
        network = self._network(items, len(table.classes))
        judge = self._score(items, table, split, validation)
        settings = lambda path: settings_of(path, self._asked_for, network, table, items, validation)
        with kept_in(folder, resume, settings) as (kept, options):
            strength = self.strength
            if strength == "selected":
                self.strengths_ = self._strengths(items, split, judge, None if kept is None else kept.path)
                strongest = self.selection == "held-out" and self._name.startswith("geocrowdnet")
                strength = self.strength_ = chosen_strength(self.strengths_, strongest=strongest)
            channel = self._channel(network, split, items.shape, strength)
            stands = fitted(self, network, channel, items, split, judge, **options)
            if self._renamed(network, channel, items, split):
                words = "a smaller strength, a lower learning rate or a larger initial_accuracy may keep them"
                warnings.warn(
                    f"classes seem to have changed their names: what annotators call one, the network calls another: {words}",
                    stacklevel=2,
                )
            ids = {"annotators": table.annotators, "classes": table.classes}
            self._install(network, channel, stands, split.rows, ids, items.columns, items.shape)
            if kept is not None:
                own = self.network is not None
                save_result(
                    kept,
                    network,
                    channel,
                    stands,
                    ids,
                    items,
                    split.rows,
                    {"own_network": own, "strength": strength},
                )
        return self

    def _install(
        self,
        network: nn.Module,
        channel: ConfusionChannel,
        stands: TrainingState,
        rows: Rows,
        ids: Mapping[str, pd.Index],
        columns: tuple[str, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.network_, self._made = network, channel
        self.classes_, self._annotators = ids["classes"], ids["annotators"]
        self._columns, self._shape = columns, shape
        self._labels = np.bincount(rows.annotator, minlength=rows.num_annotators)
        self.history_ = (
            pd.DataFrame(stands.history).astype({"epoch": int, "degenerate": int}).set_index("epoch")
        )
        self.epoch_ = stands.selected
        self.degenerate_ = int(stands.history[-1]["degenerate"])
        if self.degenerate_:
            words = (
                "a larger batch, options={'running': True} or a smaller strength helps"
                if self._name == "geocrowdnet-f"
                else "lower the strength"
            )
            warnings.warn(
                f"in {self.degenerate_} steps the volume was next to singular, and was taken with a ridge: {words}",
                stacklevel=3,
            )

    @property
    def _name(self) -> str:
        return self.method.replace("_", "-").lower()

    @property
    def _held_share(self) -> float:
        return float(self.validation_fraction) if self.selection == "held-out" else 0.0

    @property
    def _asked_for(self) -> dict[str, Any]:
        """What the result depends on, besides the network."""
        left_out = ("network", "progress", "device")
        parameters = {
            name: value for name, value in self.get_params(deep=False).items() if name not in left_out
        }
        return parameters | {"options": dict(self.options or {})}

    def _network(self, items: Items, classes: int) -> nn.Module:
        network = made(
            small_network if self.network is None else self.network,
            (items.shape, classes),
            int(self.random_state),
            self.device,
        )
        network.eval()
        with torch.no_grad():
            found = network(some_of(items))
        if found.ndim != 2 or found.shape[1] != classes:
            raise ValueError(
                f"the network gives {tuple(found.shape)} for a batch of {len(found)}; it must give a logit for each of {classes} classes"
            )
        return network

    def _strengths(self, items: Items, split: Split, judge: Judge | None, out: Path | None) -> pd.DataFrame:
        """What the items that select the epoch say of every strength."""
        assert judge is not None

        def scores(strength: float) -> tuple[np.ndarray, bool] | None:
            network = self._network(items, split.rows.num_classes)
            channel = self._channel(network, split, items.shape, strength)
            try:
                fitted(self, network, channel, items, split, judge)
            except FloatingPointError:
                return None
            return judge(network, channel), self._renamed(network, channel, items, split)

        return compared_strengths(scores, out)

    def _renamed(self, network: nn.Module, channel: ConfusionChannel, items: Items, split: Split) -> bool:
        return renamed(network, channel, trained_on(items, split), split.labels, split.rows.num_classes)

    def _channel(
        self, network: nn.Module, split: Split, shape: tuple[int, ...], strength: float | None
    ) -> ConfusionChannel:
        with torch.no_grad():
            head = output_layer(network.eval(), torch.zeros(2, *shape, device=self.device))
        layer = None if head is None else network.get_submodule(head)
        width = layer.in_features if isinstance(layer, nn.Linear) else 1
        with torch.random.fork_rng():
            torch.manual_seed(int(self.random_state) + 1)
            task = Task(split.rows, split.labels, width)
            channel = make_channel(self.method, task, self.initial_accuracy, strength, self.options or {})
        channel.head = head or ""
        if channel.needs_features and head is None:
            raise ValueError(
                f"{self.method} needs a network whose logits are those of a torch.nn.Linear, and {type(network).__name__} has none"
            )
        if (
            self._name == "geocrowdnet-f"
            and self.batch < 4 * task.num_classes
            and not (self.options or {}).get("running")
        ):
            words = f"batches of {self.batch} items say little of a volume over {task.num_classes} classes"
            warnings.warn(
                f"{words}: take at least {4 * task.num_classes}, or options={{'running': True}}", stacklevel=3
            )
        return channel.to(self.device)

    def _score(
        self, items: Items, table: Table, split: Split, validation: tuple[Any, Any] | None
    ) -> Judge | None:
        """How well the items that select the epoch are foretold, each of them; None where the last epoch is selected."""
        if self.selection == "held-out":
            return partial(held_out_scores, inputs=held_out_from(items, split), labels=split.held)
        if validation is None:
            return None
        known = read_items(validation[0], self.device, items.columns or None)
        if known.shape != items.shape:
            raise ValueError(f"validation: inputs of shape {known.shape}, those of X have {items.shape}")
        return partial(known_scores, inputs=known, truth=classes_of(validation[1], known, table.classes))


def load_crowd_classifier(folder: Path | str, network: Network | None = None) -> CrowdClassifier:
    """The finished fit that `CrowdClassifier.fit` kept in a folder; `network`: the same as there, where it was not the default one.

    Raises:
        ValueError: there is none, files of it are damaged, or the network is another.
    """
    path = Path(folder)
    parameters, ids, saved = load_result(path)
    state = dict(saved.state)
    again = remade(CrowdClassifier, network, parameters, folder)
    shape, classes = tuple(state["shape"]), len(ids["classes"])
    learned = same_network(
        network, small_network, (shape, classes), state["own_network"], parameters["network"], folder
    )
    load_module(learned, saved.tensors, "network")
    rows = rows_of(saved, len(ids["annotators"]), classes)
    empty = torch.zeros(0, dtype=torch.int64)
    channel = again._channel(
        learned,
        Split(rows, AnnotationTensors.of(rows), empty, AnnotationTensors.of(rows), empty),
        shape,
        state["strength"],
    )
    load_module(channel, saved.tensors, "channel")
    stands = TrainingState(**{name: state[name] for name in ("epoch", "best_epoch", "best_score", "history")})
    learned.eval()
    channel.eval()
    again._install(learned, channel, stands, rows, ids, tuple(state["columns"]), shape)
    if again.strength == "selected":
        again.strengths_, again.strength_ = load_strengths(path), state["strength"]
    return again

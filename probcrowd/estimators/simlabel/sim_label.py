"""The front door to predicting every annotator's own label, with most labels missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pandas.api.types import is_numeric_dtype
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn

from probcrowd.data.files import some
from probcrowd.data.rows import Rows
from probcrowd.data.table import read_table, recode
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
from probcrowd.estimators.crowd.inputs import read_items
from probcrowd.estimators.crowd.options import read_said
from probcrowd.estimators.crowd.saved import load_result, rows_of, save_result, settings_of
from probcrowd.estimators.crowd.split import held_out_scores, split_of
from probcrowd.estimators.simlabel.options import (
    among,
    asked_how,
    check,
    embedding_shape,
    in_order,
    make_predictor,
    pair_codes,
)
from probcrowd.estimators.simlabel.results import SimLabelAnswers
from probcrowd.inference.crowd.network_output import apply_network_to_all
from probcrowd.inference.crowd.training import TrainingState
from probcrowd.models.encoders import small_encoder
from probcrowd.models.simlabel.imputed_labels import ImputedLabels, Missing
from probcrowd.models.simlabel.soft_labels import SoftLabels
from probcrowd.storage.checkpoint import load_module, under

Encoder = nn.Module | Callable[[tuple[int, ...]], nn.Module]
_IDS = ("items", "annotators", "classes")


class SimLabel(SimLabelAnswers, ClassifierMixin, BaseEstimator):
    """A predictor of every annotator's own label, with soft labels for what an annotator has not labelled (Zhang et al. 2025, arXiv:2504.09525).

    Args:
        encoder: a module from inputs (b, ...) to embeddings (b, d) or feature maps (b, channels, ...), which is copied and trained on from its
            weights (`torch.nn.Identity()` for features that are taken as they are; places of a map come last); or a function of the shape of an input that makes one, under the
            seed. None: one hidden layer of 128 units for tables.
        architecture: what is shared among annotators and what is their own: "qumatl" (a query each, with attention), "madl" (an annotator
            performance network), "padl" (common mean and spread, and residuals), see `probcrowd.models.simlabel`; "pooled": confusion matrices
            with a hierarchical prior, which shares by a prior and goes with missing="skip".
        missing: what stands in for missing labels. "similarity": soft labels of those who have labelled the item, weighted by how similar they are;
            "uniform": all alike; "consensus": the mean of all annotators' predictions; "skip": nothing.
        variant: "recommended": the published method with similarities drawn towards their mean where few items tell of them, nobody speaking for one who
            is known to disagree with everybody, and a weight that does not outweigh the labels; "paper": as written; "released": the released code, agreement beyond equal chances and the divergence the other way
            round, over the number of classes.
        similarity: of annotators: "kappa", "pearson", "krippendorff" or "bennett". None: the variant's.
        kl_weight: of missing pairs in the loss, labelled ones having 1. None: the variant's, .1 as recommended and 1 as written or released.
        threshold: of the confidence at which soft labels are imputed, after the first epoch (.6 in the paper). None: none are. imputed: what imputed
            labels are good for: the "similarity", or the "loss" as well.
        warm_up: epochs in which missing labels are skipped.
        epochs, batch, learning_rate, weight_decay, patience: of Adam, see `probcrowd.inference.crowd.training.Training`.
        selection: which epoch is the result. "held-out": the best by the log score of observed labels of items that are held out; "last".
        validation_fraction: of the items with labels, held out.
        options: of the architecture, such as {"width": 32}.
        random_state: the seed of new networks, of what is held out, of batches and of dropout. progress: shows a bar.
        device: of torch.

    Annotators are in the order of their ids, so that the order of a table does not matter.

    After `fit`: `classes_`, `network_` (the encoder), `history_`, `epoch_` (the one selected), `annotators_`, `similarity_`, `similarity_matrix_`,
    `imputed_`, `withdrawn_`.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        architecture: str = "madl",
        *,
        missing: Missing = "similarity",
        variant: Literal["recommended", "paper", "released"] = "recommended",
        similarity: str | None = None,
        kl_weight: float | None = None,
        threshold: float | None = None,
        imputed: Literal["similarity", "loss"] = "similarity",
        warm_up: int = 0,
        epochs: int = 100,
        batch: int = 64,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        patience: int | None = None,
        selection: Literal["held-out", "last"] = "held-out",
        validation_fraction: float = 0.1,
        options: Mapping[str, Any] | None = None,
        random_state: int = 0,
        progress: bool = False,
        device: str = "cpu",
    ) -> None:
        self.encoder: Encoder | None = encoder
        self.architecture = architecture
        self.missing: Missing = missing
        self.variant: Literal["recommended", "paper", "released"] = variant
        self.similarity = similarity
        self.kl_weight: float | None = kl_weight
        self.threshold = threshold
        self.imputed: Literal["similarity", "loss"] = imputed
        self.warm_up = warm_up
        self.epochs = epochs
        self.batch = batch
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.selection: Literal["held-out", "last"] = selection
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
        withdrawn: pd.DataFrame | None = None,
        folder: Path | str | None = None,
        resume: bool = False,
    ) -> SimLabel:
        """This estimator, fitted.

        Args:
            X: inputs by item: a data frame (ids are its index), an array or a tensor of any shape, or a torch Dataset, read as it is needed.
                Items without labels are left out.
            annotations: a long table of item, annotator and label, an `Annotations`, or a matrix of labels, items x annotators, in which
                NaN, None or `missing_label` marks what nobody said.
            withdrawn: columns item and annotator: pairs that are never imputed, such as `withdrawn_` of an earlier fit.
            folder: where a checkpoint is kept after every epoch, and in the end the fit (`load_sim_label`). resume: go on from there.

        Raises:
            TypeError, ValueError: tables that cannot be read, items that X has not, an encoder that gives no embeddings.
            FloatingPointError: the loss is not a number any more.
        """
        check(self, folder, resume)
        items = read_items(X, self.device)
        table = read_table(read_said(annotations, missing_label, items))
        if len(table.classes) < 2:
            raise ValueError(f"all labels are alike, {some(table.classes)}: there is nothing to foretell")
        annotators = in_order(table.annotators)
        table = recode(table, annotators, table.classes, len(table.classes))
        held_share = float(self.validation_fraction) if self.selection == "held-out" else 0.0
        split = split_of(table, items, held_share, int(self.random_state), self.device)
        ids = {"items": items.ids, "annotators": annotators, "classes": table.classes}
        pairs = pair_codes(withdrawn, items.ids, annotators)
        encoder = made(
            small_encoder if self.encoder is None else self.encoder,
            (items.shape,),
            int(self.random_state),
            self.device,
        ).eval()
        state = {
            "own_network": self.encoder is not None,
            "embedding": list(embedding_shape(encoder, some_of(items))),
        }
        settings = lambda path: settings_of(path, self._asked_for, encoder, table, items, more=[pairs])
        judge = (
            partial(held_out_scores, inputs=held_out_from(items, split), labels=split.held)
            if held_share
            else None
        )
        with kept_in(folder, resume, settings) as (kept, options):
            place = split.place.cpu().numpy()
            channel = self._channel(
                state["embedding"],
                split.rows,
                split.labels,
                ids["classes"],
                among(pairs, place, len(annotators)),
            )
            stands = fitted(self, encoder, channel, items, split, judge, **options)
            found, how = ImputedLabels.empty(split.place.device), channel.options
            if how.threshold is not None and stands.selected > how.warm_up:
                found = channel.impute(
                    apply_network_to_all(encoder, channel, trained_on(items, split), split.labels.items),
                    how.threshold,
                )
            self._install(encoder, channel, stands, ids, items.columns, items.shape, found, place, pairs)
            if kept is not None:
                tensors = {f"imputed/{name}": value for name, value in vars(found).items()}
                tensors |= {"place": split.place, "withdrawn": torch.from_numpy(pairs.copy())}
                save_result(kept, encoder, channel, stands, ids, items, split.rows, state, tensors)
        return self

    def _channel(
        self,
        embedding: Sequence[int],
        rows: Rows,
        labels: AnnotationTensors,
        classes: pd.Index,
        withdrawn: Int[np.ndarray, " v"],
    ) -> SoftLabels:
        with torch.random.fork_rng():
            torch.manual_seed(int(self.random_state) + 1)
            predictor = make_predictor(
                self.architecture, tuple(embedding), rows.num_annotators, rows.num_classes, self.options or {}
            )
        values = classes.to_numpy(np.float64) if is_numeric_dtype(classes.dtype) else None
        return SoftLabels(predictor.to(self.device), rows, labels, asked_how(self), values, withdrawn).to(
            self.device
        )

    def _install(
        self,
        encoder: nn.Module,
        channel: SoftLabels,
        stands: TrainingState,
        ids: Mapping[str, pd.Index],
        columns: tuple[str, ...],
        shape: tuple[int, ...],
        imputed: ImputedLabels,
        place: Int[np.ndarray, " i"],
        withdrawn: Int[np.ndarray, " w"],
    ) -> None:
        self.network_, self._made = encoder, channel
        self.classes_, self._annotators, self._ids = ids["classes"], ids["annotators"], ids["items"]
        self._columns, self._shape, self._imputed, self._place, self._withdrawn = (
            columns,
            shape,
            imputed,
            place,
            withdrawn,
        )
        self._labels = np.bincount(channel.rows.annotator, minlength=channel.rows.num_annotators)
        self.history_ = (
            pd.DataFrame(stands.history).astype({"epoch": int}).drop(columns="degenerate").set_index("epoch")
        )
        self.epoch_ = stands.selected

    @property
    def _asked_for(self) -> dict[str, Any]:
        """What the result depends on, besides the encoder."""
        left_out = ("encoder", "progress", "device")
        parameters = {
            name: value for name, value in self.get_params(deep=False).items() if name not in left_out
        }
        return parameters | {"options": dict(self.options or {})}


def load_sim_label(folder: Path | str, encoder: Encoder | None = None) -> SimLabel:
    """The finished fit that `SimLabel.fit` kept in a folder; `encoder`: the same as there, where it was not the default one.

    Raises:
        ValueError: there is none, files of it are damaged, or the encoder is another.
    """
    parameters, ids, saved = load_result(Path(folder), _IDS, "SimLabel")
    state = dict(saved.state)
    again = remade(SimLabel, encoder, parameters, folder)
    shape = tuple(state["shape"])
    learned = same_network(
        encoder, small_encoder, (shape,), state["own_network"], parameters["network"], folder
    )
    load_module(learned, saved.tensors, "network")
    rows = rows_of(saved, len(ids["annotators"]), len(ids["classes"]))
    place, pairs = (saved.tensors[name].numpy() for name in ("place", "withdrawn"))
    channel = again._channel(
        state["embedding"],
        rows,
        AnnotationTensors.of(rows),
        ids["classes"],
        among(pairs, place, len(ids["annotators"])),
    )
    load_module(channel, saved.tensors, "channel")
    stands = TrainingState(**{name: state[name] for name in ("epoch", "best_epoch", "best_score", "history")})
    learned.eval()
    channel.eval()
    again._install(
        learned,
        channel,
        stands,
        ids,
        tuple(state["columns"]),
        shape,
        ImputedLabels(**under("imputed", saved.tensors)),
        place,
        pairs,
    )
    return again

"""Predict every annotator's own labels, with soft labels for those that are missing (Zhang et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from pandas.api.types import is_numeric_dtype
from torch import nn

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.estimators.network.fit import (
    FittedNetwork,
    build_network,
    example,
    restore_network,
    restore_summary,
    restore_training,
    save_network,
)
from probcrowd.estimators.network.split import held_out_scores
from probcrowd.estimators.simlabel.options import (
    check,
    embedding_shape,
    make_predictor,
    pair_codes,
    renumbered,
    soft_labelling,
)
from probcrowd.estimators.simlabel.results import FittedSimLabel, SimLabelResults
from probcrowd.inference.crowd.network_output import apply_network_to_all
from probcrowd.models.encoders import small_encoder
from probcrowd.models.simlabel.imputed_labels import ImputedLabels, Missing
from probcrowd.models.simlabel.soft_labels import SoftLabels
from probcrowd.storage.checkpoint import under
from probcrowd.storage.fit import array_tensors, load_fit

Encoder = nn.Module | Callable[[tuple[int, ...]], nn.Module]


@dataclass(kw_only=True, eq=False, repr=False)
class SimLabel(SimLabelResults):
    """Predict every annotator's own labels, with soft labels for what an annotator has not labelled.

    After Zhang et al. 2025 (arXiv:2504.09525). Annotators are sorted by id, so the order of the table has no
    effect.

    Args:
        encoder: a module from inputs (b, ...) to embeddings (b, d) or feature maps (b, channels, ...), with
            positions last, which is copied and trained further from its weights (`torch.nn.Identity()` takes
            features as they are); or a function of the shape of an input that returns one, with random
            weights drawn from `random_state`. None: one hidden layer of 128 units, for tables.
        architecture: what annotators share and what is their own: "qumatl" (a query per annotator, with
            attention), "madl" (an annotator performance network), "padl" (common mean and spread, plus
            residuals), see `probcrowd.models.simlabel`; "pooled": confusion matrices with a hierarchical
            prior, which shares through the prior and is used with missing="skip".
        missing: what replaces missing labels. "similarity": soft labels from those who labelled the item,
            weighted by their similarity; "uniform": with equal weights; "consensus": the mean of all
            annotators' predictions; "skip": nothing.
        variant: "recommended": the published method with similarities shrunk towards their mean when few
            items support them, no soft labels for an annotator known to disagree with everyone, and a KL
            weight below that of real labels; "paper": as written; "released": as in the released code:
            agreement beyond uniform chance, and the reverse divergence divided by the number of classes.
        similarity: of annotators: "kappa", "pearson", "krippendorff" or "bennett". None: the variant's.
        kl_weight: of missing pairs in the loss, where labelled ones have 1. None: the variant's, .1 for
            "recommended", 1 for "paper" and "released".
        threshold: of the confidence at which soft labels are imputed, after the first epoch (.6 in the
            paper). None: no label is imputed. imputed: where imputed labels are used: in the "similarity", or
            in the "loss" too.
        warm_up: first epochs, in which missing labels are skipped.
        epochs, batch, learning_rate, weight_decay, patience: of Adam, see
            `probcrowd.inference.crowd.training.TrainingOptions`.
        selection: which epoch is the result. "held-out": the best by the log score of the labels of held-out
            items; "last": the last.
        validation_fraction: the share of labelled items to hold out.
        options: of the architecture, such as {"width": 32}.
        random_state: the seed of new networks, held-out items, batches and dropout. progress: show a progress
            bar.
        device: of torch.

    After `fit`: `classes_`, `network_` (the encoder), `history_`, `epoch_` (the one selected), `annotators_`,
    `similarity_`, `similarity_matrix_`, `imputed_`, `withdrawn_`.
    """

    encoder: Encoder | None = None
    architecture: str = "madl"
    missing: Missing = "similarity"
    variant: Literal["recommended", "paper", "released"] = "recommended"
    similarity: str | None = None
    kl_weight: float | None = None
    threshold: float | None = None
    imputed: Literal["similarity", "loss"] = "similarity"
    warm_up: int = 0
    weight_decay: float = 1e-4
    selection: Literal["held-out", "last"] = "held-out"

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
        """Train the encoder and the predictors of all annotators; returns this estimator.

        Args:
            X: inputs by item: a data frame (ids are its index), an array or a tensor of any shape, or a torch
                Dataset, read as needed. Items without labels are ignored.
            annotations: a long table of item, annotator and label, an `Annotations`, or a matrix of labels,
                items x annotators, in which NaN, None or `missing_label` marks missing labels.
            withdrawn: pairs that are never imputed (columns item and annotator), such as `withdrawn_` of
                another fit.
            folder: where to save a checkpoint after every epoch and, at the end, the fit (`load_sim_label`).
            resume: continue the fit in the folder.

        Raises:
            TypeError, ValueError: invalid tables or parameters, labelled items that X lacks, an encoder that
                does not return embeddings.
            FloatingPointError: the loss is no longer finite.
        """
        check(self)
        data = self._read(X, annotations, missing_label, self.selection, sort=True)
        items, train, ids = data.items, data.train, data.ids
        place = train.place.cpu().numpy()
        pairs = pair_codes(withdrawn, ids["items"], ids["annotators"])
        encoder = small_encoder if self.encoder is None else self.encoder
        network = build_network(encoder, (items.shape,), int(self.random_state), self.device)
        embedding = embedding_shape(network, example(items))
        with self._open(folder, resume, network, data, [pairs]) as saved:
            channel = self._channel(embedding, train.rows, train.labels, ids["classes"], pairs, place)
            scores = partial(held_out_scores, part=data.held_out) if self.selection == "held-out" else None
            trained = self._train(network, channel, data, scores, saved)
            imputed, threshold = ImputedLabels.empty(train.place.device), channel.options.threshold
            if threshold is not None and trained.selected > channel.options.warm_up:
                output = apply_network_to_all(network, channel, train.inputs, train.labels.items)
                imputed = channel.impute(output, threshold)
            self._set_fitted(FittedSimLabel(network, channel, trained, *data.summary, place, imputed, pairs))
            if saved is not None:
                tensors = array_tensors("imputed", imputed)
                tensors |= {"place": train.place, "withdrawn": torch.from_numpy(pairs.copy())}
                save_network(saved, self._fitted, {"embedding": list(embedding)}, tensors)
        return self

    def _channel(
        self,
        embedding: Sequence[int],
        rows: Rows,
        labels: AnnotationTensors,
        classes: pd.Index,
        withdrawn: Int[np.ndarray, " w"],
        place: Int[np.ndarray, " i"],
    ) -> SoftLabels:
        sizes = rows.num_annotators, rows.num_classes
        with torch.random.fork_rng():
            torch.manual_seed(int(self.random_state) + 1)
            predictor = make_predictor(self.architecture, tuple(embedding), *sizes, self.options or {})
        values = classes.to_numpy(np.float64) if is_numeric_dtype(classes.dtype) else None
        withdrawn = renumbered(withdrawn, place, rows.num_annotators)
        predictor = predictor.to(self.device)
        return SoftLabels(predictor, rows, labels, soft_labelling(self), values, withdrawn).to(self.device)

    def _set_fitted(self, fitted: FittedNetwork) -> None:
        super()._set_fitted(fitted)
        self.history_ = self.history_.drop(columns="degenerate")


def load_sim_label(folder: Path | str, encoder: Encoder | None = None) -> SimLabel:
    """Load the finished fit that `SimLabel.fit` saved in a folder.

    encoder: the one that the fit was given, if it was not the default.

    Raises:
        ValueError: no finished fit, damaged files, or another encoder.
    """
    saved = load_fit(folder, "SimLabel")
    rows, ids, _, shape = summary = restore_summary(saved)
    network = restore_network(saved, encoder, small_encoder, (shape,))
    loaded = SimLabel(encoder=encoder, **saved.parameters)
    place, pairs = (saved.tensors[name].numpy() for name in ("place", "withdrawn"))
    labels, classes = AnnotationTensors.of(rows), ids["classes"]
    channel = loaded._channel(saved.state["embedding"], rows, labels, classes, pairs, place)
    imputed = ImputedLabels(**under("imputed", saved.tensors))
    trained = restore_training(saved, channel)
    loaded._set_fitted(FittedSimLabel(network, *trained, *summary, place, imputed, pairs))
    return loaded

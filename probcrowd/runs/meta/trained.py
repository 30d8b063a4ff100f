"""A trained run, and what a user does with it: adapt to a new task that several annotators labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.data.annotations import Annotations
from probcrowd.data.files import by_item, some
from probcrowd.data.vote_tensors import SparseVotes, Support
from probcrowd.inference.meta.adaptation import Method, adapt, explained, log_classes
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.train import evaluating, new_encoder
from probcrowd.storage.checkpoint import load_checkpoint, load_module
from probcrowd.storage.files import write_atomically, write_table
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import read_written

CHUNK = 1024  # items that pass the network at a time


@dataclass(frozen=True)
class Adapted:
    """What was learned of one task, under the user's ids.

    probabilities:    query item x class, p(class | query); rows sum to 1
    responsibilities: support item x class, p(class | the item and what was said of it); rows sum to 1
    confusion:        (annotator, true class) x label, P(annotator says the label | true class); rows sum to 1
    annotators:       annotator x (accuracy, labels): the probability of a right label on an item drawn from the class prior, and how
                      many labels there were; with few labels it is mostly the prior
    class_prior:      p(class)
    """

    probabilities: pd.DataFrame
    responsibilities: pd.DataFrame
    confusion: pd.DataFrame
    annotators: pd.DataFrame
    class_prior: pd.Series

    def write(self, folder: Path) -> list[Path]:
        """Write every table as CSV and as Parquet, ids as columns, each replaced whole; returns the files.

        Parquet keeps the types of ids; in CSV, text that a spreadsheet would run as a formula is prefixed with an apostrophe.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, table in vars(self).items():
            # Class ids may be numbers, where Parquet wants names, and may be called like an index
            names = [
                f"class {name}" if str(name) in table.index.names else str(name)
                for name in getattr(table, "columns", ())
            ]
            frame = (table.set_axis(names, axis=1) if names else table).reset_index()
            path = folder / f"{name}.csv"
            write_table(path, frame)
            write_atomically(path.with_suffix(".parquet"), frame.to_parquet(index=False))
            written += [path, path.with_suffix(".parquet")]
        return written


@dataclass(frozen=True)
class TrainedRun:
    """A finished run. `scale` is what inputs are divided by: 255 where the network was trained on pixels."""

    settings: MetaTraining
    encoder: nn.Module
    input_shape: tuple[int, ...]
    scale: float

    def adapt(
        self,
        support: pd.DataFrame | np.ndarray,
        annotations: Annotations,
        query: pd.DataFrame | np.ndarray,
        *,
        method: Method | None = None,
    ) -> Adapted:
        """Fit the task that `annotations` describe and classify the query items.

        support, query: one row per item with the inputs that the network was trained on (pixels as 0..255), ids in the index of a frame;
        an array's rows are items 0, 1, ..., and it may have the shape of images. Columns are taken in the order of support's, which must be
        that of training; a run does not know their names.
        method: how to adapt, if not as in training.

        Raises:
            ValueError: a run of MAML; inputs of another size, missing, infinite or out of range; repeated ids; annotated items without inputs; support
                items without annotations.
        """
        if self.settings.adaptation.learner != "prototypes":
            raise ValueError(
                "this run trained MAML for comparison, which has no model of annotators: adapt a run of learner 'prototypes'"
            )
        support, query = by_item(support, "support"), by_item(query, "query")
        query = _same_columns(support, query)
        annotations = _labelled(annotations)
        _match(support.index, annotations)
        aligned = support.loc[annotations.items]
        with torch.no_grad(), evaluating(self.encoder):
            known, asked = self._embedded(aligned, "support"), self._embedded(query, "query")
            task = Support(known, SparseVotes.from_annotations(annotations, known.dtype))
            chosen = method or self.settings.adaptation.method.learned(self.encoder)
            parameters = adapt(task, chosen)
            responsibilities = explained(parameters, task, chosen)[0].double()
            log_probabilities = log_classes(asked.double(), parameters.double(), chosen)[0]
        classes, annotators = annotations.classes.rename("class"), annotations.annotators.rename("annotator")
        columns = classes.rename(None)
        confusion, prior = parameters.confusion[0].double(), parameters.class_prior[0].double()
        accuracy = (confusion.diagonal(dim1=1, dim2=2) * prior).sum(-1)
        return Adapted(
            pd.DataFrame(log_probabilities.exp().numpy(), index=query.index.rename("item"), columns=columns),
            pd.DataFrame(responsibilities.numpy(), index=annotations.items.rename("item"), columns=columns)
            .loc[support.index]
            .rename_axis("item"),
            pd.DataFrame(
                confusion.flatten(0, 1).numpy(),
                index=pd.MultiIndex.from_product([annotators, classes.rename("true_class")]),
                columns=columns,
            ),
            pd.DataFrame(
                {"accuracy": accuracy.numpy(), "labels": annotations.counts_per_annotator().to_numpy()},
                index=annotators,
            ),
            pd.Series(prior.numpy(), index=classes, name="probability"),
        )

    def _embedded(self, frame: pd.DataFrame, name: str) -> Tensor:
        """Embeddings (1, n, d) of checked inputs; a limited number of items passes the network at a time."""
        return torch.cat([self.encoder(part) for part in self._inputs(frame, name).split(CHUNK)])[None]

    def _inputs(self, frame: pd.DataFrame, name: str) -> Tensor:
        """Network inputs (n, *input_shape), checked."""
        size = int(np.prod(self.input_shape))
        text = [
            column
            for column in frame.columns
            if len(frame) and not pd.api.types.is_numeric_dtype(frame[column])
        ]
        if text:
            raise ValueError(
                f"{name}: columns {some(text)} are not numbers; is one of them the item ids? Name the id column 'item'"
            )
        if frame.shape[1] != size:
            first = f"the first are {some(frame.columns)}; ids belong in a column 'item'"
            raise ValueError(
                f"{name}: {frame.shape[1]} columns, the network was trained on {size} (shape {self.input_shape}); {first}"
            )
        values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
        faulty = np.flatnonzero(~np.isfinite(values).all(1))
        if len(faulty):
            raise ValueError(
                f"{name}: missing or infinite values in items {some(frame.index[faulty])}: fill them or leave these items out"
            )
        if self.scale == 255.0:
            outside = np.flatnonzero(((values < 0) | (values > 255)).any(1))
            if len(outside):
                raise ValueError(f"{name}: pixels outside 0..255 in items {some(frame.index[outside])}")
            if len(values) and 0 < values.max() <= 1:
                raise ValueError(
                    f"{name}: all pixels lie in 0..1; the network was trained on 0..255, so multiply them by 255"
                )
        return torch.from_numpy(values / np.float32(self.scale)).unflatten(1, self.input_shape)


def load_run(path: Path | str, *, encoder: nn.Module | None = None) -> TrainedRun:
    """The run in a folder; `encoder` is the network (of any weights) where the run trained one of the user's own.

    Raises:
        ValueError: no run there, or an unfinished one.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ValueError(f"{folder.path} holds no run: it has no {folder.config.name}")
    settings = read_written(MetaTraining, folder.config)
    if not folder.model.is_file():
        raise ValueError(
            f"the run in {folder.path} has not finished: resume it with `probcrowd meta-train CONFIG.toml --resume`"
        )
    saved = load_checkpoint(folder.model)
    input_shape = tuple(saved.state["input_shape"])
    network = new_encoder(settings, input_shape, encoder).to("cpu")
    load_module(network, saved.tensors, "best")
    network.eval()
    return TrainedRun(settings, network, input_shape, saved.state["scale"])


def _same_columns(support: pd.DataFrame, query: pd.DataFrame) -> pd.DataFrame:
    """The query with its columns in the order of the support's, where both name them."""
    named = [
        all(isinstance(column, str) for column in frame.columns) and len(frame.columns)
        for frame in (support, query)
    ]
    if (
        not all(named)
        or list(support.columns) == list(query.columns)
        or len(support.columns) != len(query.columns)
    ):
        return query
    other = query.columns.difference(support.columns)
    if len(other):
        raise ValueError(
            f"query: columns {some(other)} are not among the support's, which begin with {some(support.columns)}: name them alike"
        )
    return query.reindex(columns=support.columns)


def _labelled(annotations: Annotations) -> Annotations:
    """The table without the items that nobody labelled."""
    if (annotations.counts_per_item() > 0).all():
        return annotations
    return Annotations.from_frame(
        annotations.to_frame(),
        weight=None if annotations.weight is None else "weight",
        annotators=annotations.annotators,
        classes=annotations.classes,
        duplicates="count",
    )


def _match(items: pd.Index, annotations: Annotations) -> None:
    unknown = annotations.items.difference(items, sort=False)
    if len(unknown):
        hint = (
            f"; ids are {annotations.items.dtype} in the annotations and {items.dtype} in the features"
            if annotations.items.dtype != items.dtype
            else ""
        )
        raise ValueError(f"annotated items without features: {some(unknown)} ({len(unknown)} in all){hint}")
    silent = items.difference(annotations.items, sort=False)
    if len(silent):
        raise ValueError(
            f"support items without any annotation: {some(silent)} ({len(silent)} in all): give them as query items instead"
        )

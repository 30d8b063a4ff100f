"""A trained run and its use: adapt it to a new task that several annotators labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.data.annotations import Annotations
from probcrowd.data.features import in_order, matched, numeric
from probcrowd.data.files import by_item
from probcrowd.data.vote_tensors import SparseVotes, Support
from probcrowd.inference.meta.adaptation import (
    Method,
    adapt,
    query_log_probabilities,
    support_probabilities,
)
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.inputs import labelled_items, network_inputs
from probcrowd.runs.meta.network import evaluating, new_network
from probcrowd.storage.checkpoint import load_checkpoint, load_module
from probcrowd.storage.files import write_atomically, write_table
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import read_written

CHUNK = 1024  # items that pass through the network at a time


@dataclass(frozen=True)
class Adapted:
    """The parameters and predictions of one task, under the user's ids.

    probabilities:    query item x class, p(class | query); rows sum to 1
    responsibilities: support item x class, p(class | item and its annotations); rows sum to 1
    confusion:        (annotator, true class) x label, P(annotator says the label | true class); rows sum to 1
    annotators:       annotator x (accuracy, labels): the probability of a correct label on an item drawn from
                      the class prior, and the number of labels; with few labels it is mostly the prior's
    class_prior:      p(class)
    """

    probabilities: pd.DataFrame
    responsibilities: pd.DataFrame
    confusion: pd.DataFrame
    annotators: pd.DataFrame
    class_prior: pd.Series

    def write(self, folder: Path) -> list[Path]:
        """Write every table as CSV and Parquet, ids as columns; return the files.

        Parquet keeps the types of ids; in CSV, text that a spreadsheet would run as a formula gets an
        apostrophe in front.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, table in vars(self).items():
            # Class ids may be numbers, where Parquet needs text, or equal to the name of an index
            columns = [
                f"class {column}" if str(column) in table.index.names else str(column)
                for column in getattr(table, "columns", ())
            ]
            frame = (table.set_axis(columns, axis=1) if columns else table).reset_index()
            path = folder / f"{name}.csv"
            write_table(path, frame)
            write_atomically(path.with_suffix(".parquet"), frame.to_parquet(index=False))
            written += [path, path.with_suffix(".parquet")]
        return written


@dataclass(frozen=True)
class TrainedRun:
    """A finished run. `scale` is the divisor of the inputs: 255 where the network was trained on pixels."""

    settings: MetaTraining
    encoder: nn.Module
    input_shape: tuple[int, ...]
    scale: float

    @property
    def method(self) -> Method:
        """How the run adapts: as in training, with what was learned beside the network.

        Raises:
            ValueError: a run of MAML.
        """
        if self.settings.adaptation.learner != "prototypes":
            raise ValueError(
                "this run trained MAML, a baseline without a model of annotators: it serves comparisons "
                "only, by `probcrowd reproduce meta-learning`; use a run of learner 'prototypes'"
            )
        return self.settings.adaptation.method.with_learned(self.encoder)

    def adapt(
        self,
        support: pd.DataFrame | np.ndarray,
        annotations: Annotations,
        query: pd.DataFrame | np.ndarray,
        *,
        method: Method | None = None,
    ) -> Adapted:
        """Fit the task that `annotations` describe and classify the query items.

        support, query: one row per item with the inputs that the network was trained on (pixels as 0..255),
        ids in the index of a frame; an array's rows are items 0, 1, ..., and it may have the shape of images.
        Columns are in the order of the support, which must be that of training: a run does not know their
        names.
        method: how to adapt; default: as in training.

        Raises:
            ValueError: a run of MAML; inputs of another size, missing, infinite or out of range; repeated
                ids; annotated items without inputs; support items without annotations.
        """
        trained_method = self.method
        method = method or trained_method
        support, query = by_item(support, "support"), by_item(query, "query")
        annotations = labelled_items(annotations, support.index)
        labelled = matched(support, annotations.items, "support")
        with torch.no_grad(), evaluating(self.encoder):
            embeddings = self._embed(labelled, "support")
            query = in_order(numeric(query, "query"), tuple(map(str, support.columns)), "query")
            queries = self._embed(query, "query")
            task = Support(embeddings, SparseVotes.from_annotations(annotations, embeddings.dtype))
            parameters = adapt(task, method)
            responsibilities = support_probabilities(parameters, task, method)[0].double()
            log_probabilities = query_log_probabilities(queries.double(), parameters.double(), method)[0]
        items, annotators = annotations.items.rename("item"), annotations.annotators.rename("annotator")
        classes, columns = annotations.classes.rename("class"), annotations.classes.rename(None)
        confusion, prior = parameters.confusion[0].double(), parameters.class_prior[0].double()
        rows = pd.MultiIndex.from_product([annotators, classes.rename("true_class")])
        accuracy = (confusion.diagonal(dim1=1, dim2=2) * prior).sum(-1)
        return Adapted(
            probabilities=pd.DataFrame(log_probabilities.exp().numpy(), query.index.rename("item"), columns),
            responsibilities=pd.DataFrame(responsibilities.numpy(), items, columns)
            .loc[support.index]
            .rename_axis("item"),
            confusion=pd.DataFrame(confusion.flatten(0, 1).numpy(), rows, columns),
            annotators=pd.DataFrame(
                {"accuracy": accuracy.numpy(), "labels": annotations.counts_per_annotator().to_numpy()},
                index=annotators,
            ),
            class_prior=pd.Series(prior.numpy(), index=classes, name="probability"),
        )

    def _embed(self, frame: pd.DataFrame, name: str) -> Tensor:
        """Check inputs and return their embeddings (1, n, d)."""
        inputs = network_inputs(frame, name, self.input_shape, self.scale)
        return torch.cat([self.encoder(part) for part in inputs.split(CHUNK)])[None]


def load_run(path: Path | str, *, encoder: nn.Module | None = None) -> TrainedRun:
    """Load the run in a folder; `encoder`: the network, with any weights, if the run trained the user's own.

    Raises:
        ValueError: no run there, or an unfinished one.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ValueError(f"{folder.path} holds no run: it has no {folder.config.name}")
    settings = read_written(MetaTraining, folder.config)
    if not folder.model.is_file():
        raise ValueError(
            f"the run in {folder.path} has not finished: resume it with `probcrowd meta-train CONFIG.toml "
            "--resume`"
        )
    checkpoint = load_checkpoint(folder.model)
    input_shape = tuple(checkpoint.state["input_shape"])
    network = new_network(settings, input_shape, encoder).to("cpu")
    load_module(network, checkpoint.tensors, "best")
    network.eval()
    return TrainedRun(settings, network, input_shape, checkpoint.state["scale"])

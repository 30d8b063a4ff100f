"""What a fit of LIA learned, and predictions from it for items and annotators of the fit and for new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from probcrowd.data.features import Standardiser
from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.lia.em import Fitted, chunks
from probcrowd.models.lia.lia import (
    LIABatch,
    Parameters,
    competence_logits,
    difficulty_logits,
    label_log_likelihood,
    log_confusion,
    log_joint,
    log_truth,
)
from probcrowd.models.lia.prior import Inputs

Standards = tuple[Standardiser | None, Standardiser | None]  # of features of items and of annotators
MAX_CELLS = 2**22  # numbers in a block of confusion matrices


@dataclass(frozen=True)
class FittedLIA(Fitted):
    """A fit with parameters in double precision, and the standardised inputs that they were fitted to.

    standards: of features of items and of annotators. spreads: the search over prior scales, if there was
    one. A new item or annotator is at the centre of the prior: features or an embedding of 0, or the
    competence of a typical annotator.
    """

    inputs: Inputs
    standards: Standards
    spreads: pd.DataFrame | None = None

    @staticmethod
    def of(
        fitted: Fitted, inputs: Inputs, standards: Standards, spreads: pd.DataFrame | None = None
    ) -> FittedLIA:
        """A fit with its inputs."""
        double = {name: value.double() for name, value in fitted.parameters.items()}
        return FittedLIA(
            **vars(replace(fitted, parameters=double)), inputs=inputs, standards=standards, spreads=spreads
        )

    @property
    def num_annotators(self) -> int:
        """The number of annotators of the fit."""
        if self.inputs.annotator_features is not None:
            return len(self.inputs.annotator_features)
        return len(self.parameters[self._annotator_table])

    def truth_at(
        self,
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None = None,
        question: Int64[np.ndarray, " i"] | None = None,
    ) -> Float64[np.ndarray, "i k"]:
        """h(x) of items of the fit, by position, or of new ones (position -1) with or without features."""
        parameters, batch = self._batch(place, features, question)
        with torch.no_grad():
            return log_truth(parameters, batch).exp().numpy()

    def posterior_at(
        self,
        rows: Rows,
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        annotator_features: Float64[np.ndarray, "j f"] | None,
    ) -> Float64[np.ndarray, "i k"]:
        """p(class | rows) of items at those positions.

        annotator_features: of annotators beyond those of the fit; None: they are typical ones.
        """
        parameters, batch = self._batch(place, features)
        parameters, seen = self._with_new_annotators(parameters, rows.num_annotators, annotator_features)
        annotations = AnnotationTensors.of(rows, dtype=torch.float64)
        annotations = replace(annotations, items=batch.annotations.items)
        batch = replace(batch, annotations=annotations, annotator_features=seen)
        with torch.no_grad():
            joint = [
                log_joint(log_truth(parameters, part), label_log_likelihood(parameters, part), part)
                for part in chunks(batch)
            ]
            return torch.softmax(torch.cat(joint), -1).numpy()

    def competence(self, question: int | None = None) -> Float64[np.ndarray, "j k l"]:
        """Confusion matrices on an item at the centre, for a question; None: for an average one."""
        questions = None if question is None else np.array([question])
        parameters, batch = self._batch(np.array([-1]), None, questions)
        with torch.no_grad():
            return (
                log_confusion(difficulty_logits(parameters, batch) + competence_logits(parameters, batch))
                .exp()
                .numpy()
            )

    def difficulty(self) -> Float64[np.ndarray, " i"]:
        """The probability that a typical annotator is wrong, by item of the fit."""
        parameters, batch = self._batch(np.arange(len(self.posterior)), None)
        with torch.no_grad():
            rows = [
                log_confusion(difficulty_logits(parameters, part) + parameters["competence_mean"]).exp()
                for part in chunks(batch)
            ]
        return 1 - np.einsum("ik,ikk->i", self.posterior, torch.cat(rows).numpy())

    def probability_right(
        self,
        posterior: Float64[np.ndarray, "i k"],
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        annotators: Int64[np.ndarray, " j"],
    ) -> Float64[np.ndarray, "i j"]:
        """sum_k p(class k) Q[i,j,k,k]: the probability that an annotator is right about an item."""
        right = np.zeros((len(place), len(annotators)))
        parameters, batch = self._batch(place, features)
        with torch.no_grad():
            skills = competence_logits(parameters, batch)[torch.from_numpy(annotators)]
            for block in _blocks(len(place), max(MAX_CELLS // max(skills.numel(), 1), 1)):
                difficulty = difficulty_logits(
                    parameters, batch.select(torch.arange(block.start, block.stop))
                )
                rows = log_confusion(difficulty[:, None] + skills).exp().diagonal(dim1=2, dim2=3)  # (b, j, k)
                right[block] = np.einsum("ik,ijk->ij", posterior[block], rows.numpy())
        return right

    def annotator_map(self, annotators: pd.Index) -> pd.DataFrame:
        """Two principal components of log confusion matrices on an item at the centre, less row means.

        Signs make the largest weight of each component positive.
        """
        scores = np.log(self.competence())
        scores = scores - scores.mean(2, keepdims=True)
        flat = (scores - scores.mean(0)).reshape(len(scores), -1)
        left, size, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
        points = np.zeros((len(flat), 2))
        points[:, : min(2, len(size))] = (left * size * signs)[:, :2]
        return pd.DataFrame(points, pd.Index(annotators, name="annotator"), ["first", "second"])

    @property
    def _annotator_table(self) -> str:
        return "competence_offset" if "competence_offset" in self.parameters else "annotator_embedding"

    def _batch(
        self,
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        question: Int64[np.ndarray, " i"] | None = None,
    ) -> tuple[Parameters, LIABatch]:
        """Parameters, and items without labels: of the fit by position, or new ones at position -1.

        question: of all of these items, instead of their own.
        """
        parameters = dict(self.parameters)
        if self.inputs.question is not None:
            parameters["question_embedding"] = _with_centre(parameters["question_embedding"])
            if question is None:
                question = np.where(place >= 0, self.inputs.question[place], self.inputs.num_questions)
        if self.inputs.item_features is None:
            parameters["item_embedding"] = _with_centre(parameters["item_embedding"])
            return parameters, self._unlabelled(len(place), None, place, question)
        new = 0.0 if features is None else features
        seen = np.where(place[:, None] >= 0, self.inputs.item_features[place], new)
        return parameters, self._unlabelled(len(place), seen, question=question)

    def _with_new_annotators(
        self, parameters: Parameters, number: int, features: Float64[np.ndarray, "j f"] | None
    ) -> tuple[Parameters, Tensor | None]:
        known, new = self.inputs.annotator_features, number - self.num_annotators
        if known is not None:
            added = np.zeros((new, known.shape[1])) if features is None else features
            return parameters, torch.from_numpy(np.vstack([known, added]))
        name = self._annotator_table
        return parameters | {name: _with_centre(parameters[name], new)}, None

    def _unlabelled(
        self,
        number: int,
        features: Float64[np.ndarray, "i w"] | None,
        place: Int64[np.ndarray, " i"] | None = None,
        question: Int64[np.ndarray, " i"] | None = None,
    ) -> LIABatch:
        none = np.zeros(0, np.int64)
        rows = Rows(
            none, none, none, np.zeros(0), np.full(number, -1), self.num_annotators, self.truth.shape[1]
        )
        inputs = replace(self.inputs, item_features=features, question=question)
        batch = LIABatch.of(rows, inputs, torch.float64)
        if place is None:
            return batch
        centre = len(self.parameters["item_embedding"])
        items = torch.from_numpy(np.where(place < 0, centre, place))
        return replace(batch, annotations=replace(batch.annotations, items=items))


def _with_centre(table: Tensor, rows: int = 1) -> Tensor:
    """The table with last rows at the centre of its prior."""
    return torch.cat([table, table.new_zeros(rows, *table.shape[1:])])


def _blocks(number: int, size: int) -> Iterator[slice]:
    return (slice(low, min(low + size, number)) for low in range(0, number, size))

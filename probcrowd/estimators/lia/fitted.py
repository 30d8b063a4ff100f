"""What a fitted LIA says of items and annotators, those of the fit and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.inference.lia.em import batches
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

AT_ONCE = 2**22  # numbers of a block of rows of Q


@dataclass(frozen=True)
class Learned:
    """Parameters in double precision, and the standardised inputs that they were fitted to.

    An item or an annotator that the fit does not know stands at the centre of everything: features or an embedding of 0, or the competence
    of a typical annotator.
    """

    parameters: Parameters
    inputs: Inputs
    num_classes: int

    @property
    def num_annotators(self) -> int:
        """Of the fit."""
        if self.inputs.annotator_features is not None:
            return len(self.inputs.annotator_features)
        table = self.parameters.get("competence_offset", self.parameters.get("annotator_embedding"))
        assert table is not None
        return len(table)

    def class_probabilities(
        self, features: Float64[np.ndarray, "i w"], question: Int64[np.ndarray, " i"] | None = None
    ) -> Float64[np.ndarray, "i k"]:
        """h(x), the probabilities of the classes of items of which nobody has said anything."""
        with torch.no_grad():
            return (
                log_truth(self.parameters, self._silent(len(features), features, question=question))
                .exp()
                .numpy()
            )

    def truth(
        self, place: Int64[np.ndarray, " i"], features: Float64[np.ndarray, "i w"] | None = None
    ) -> Float64[np.ndarray, "i k"]:
        """h of the items at those places of the fit; -1: of an item with these features, or of one that nothing is known of."""
        parameters, said = self._at(place, features)
        with torch.no_grad():
            return log_truth(parameters, said).exp().numpy()

    def posterior(
        self,
        rows: Rows,
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        annotator_features: Float64[np.ndarray, "j f"] | None,
    ) -> Float64[np.ndarray, "i k"]:
        """p(class | rows) of items at those places; annotators beyond those of the fit have the features given, or are typical ones."""
        parameters, said = self._at(place, features)
        parameters, seen = self._everyone(parameters, rows.num_annotators, annotator_features)
        said = replace(
            said,
            starts=torch.from_numpy(np.searchsorted(rows.item, np.arange(rows.num_items + 1))),
            item=torch.from_numpy(rows.item),
            annotator=torch.from_numpy(rows.annotator),
            label=torch.from_numpy(rows.label),
            weight=torch.from_numpy(rows.weight),
            annotator_features=seen,
        )
        with torch.no_grad():
            found = [
                log_joint(log_truth(parameters, part), label_log_likelihood(parameters, part), part)
                for part in batches(said)
            ]
            return torch.softmax(torch.cat(found), -1).numpy()

    def typical(self, question: int | None = None) -> Float64[np.ndarray, "j k l"]:
        """Confusion matrices on an item of which nothing is known, when asked that question; None: an average one."""
        parameters, said = self._at(np.array([-1]), None, None if question is None else np.array([question]))
        with torch.no_grad():
            return (
                log_confusion(difficulty_logits(parameters, said) + competence_logits(parameters, said))
                .exp()
                .numpy()
            )

    def logits(self) -> Float64[np.ndarray, "j k l"]:
        """How the scores of annotators' labels differ from those of a typical annotator, on an item of which nothing is known: log Q less its mean."""
        scores = np.log(self.typical())
        scores = scores - scores.mean(2, keepdims=True)
        return scores - scores.mean(0)

    def difficulty(
        self, posterior: Float64[np.ndarray, "i k"], place: Int64[np.ndarray, " i"]
    ) -> Float64[np.ndarray, " i"]:
        """The probability that a typical annotator is wrong about the items at those places."""
        parameters, said = self._at(place, None)
        with torch.no_grad():
            rows = [
                log_confusion(difficulty_logits(parameters, part) + parameters["competence_mean"]).exp()
                for part in batches(said)
            ]
        return 1 - np.einsum("ik,ikk->i", posterior, torch.cat(rows).numpy())

    def right(
        self,
        posterior: Float64[np.ndarray, "i k"],
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        annotators: Int64[np.ndarray, " j"],
    ) -> Float64[np.ndarray, "i j"]:
        """sum_k p(class k) Q[i,j,k,k]: the probability that an annotator is right about an item; a block of items at a time."""
        found = np.zeros((len(place), len(annotators)))
        parameters, said = self._at(place, features)
        with torch.no_grad():
            skills = competence_logits(parameters, said)[torch.from_numpy(annotators)]
            for block in _blocks(len(place), max(AT_ONCE // max(skills.numel(), 1), 1)):
                bent = difficulty_logits(parameters, said.part(torch.arange(block.start, block.stop)))
                rows = (
                    log_confusion(bent[:, None] + skills).exp().diagonal(dim1=2, dim2=3).numpy()
                )  # (b, j, k)
                found[block] = np.einsum("ik,ijk->ij", posterior[block], rows)
        return found

    def _at(
        self,
        place: Int64[np.ndarray, " i"],
        features: Float64[np.ndarray, "i w"] | None,
        question: Int64[np.ndarray, " i"] | None = None,
    ) -> tuple[Parameters, LIABatch]:
        """Parameters and silent items at places of the fit; where the place is -1, with those features, or at the centre. question: of all of them,
        in the place of their own."""
        parameters = dict(self.parameters)
        if self.inputs.question is not None:
            parameters["question_embedding"] = _with_centre(parameters["question_embedding"])
            if question is None:
                question = np.where(place >= 0, self.inputs.question[place], self.inputs.num_questions)
        if self.inputs.item_features is None:
            parameters["item_embedding"] = _with_centre(parameters["item_embedding"])
            return parameters, self._silent(len(place), None, place, question)
        seen = np.where(
            place[:, None] >= 0, self.inputs.item_features[place], 0.0 if features is None else features
        )
        return parameters, self._silent(len(place), seen, question=question)

    def _everyone(
        self, parameters: Parameters, number: int, features: Float64[np.ndarray, "j f"] | None
    ) -> tuple[Parameters, Tensor | None]:
        known = self.num_annotators
        if self.inputs.annotator_features is not None:
            more = (
                np.zeros((number - known, self.inputs.annotator_features.shape[1]))
                if features is None
                else features
            )
            return parameters, torch.from_numpy(np.vstack([self.inputs.annotator_features, more]))
        name = "competence_offset" if "competence_offset" in parameters else "annotator_embedding"
        table = parameters[name]
        return parameters | {
            name: torch.cat([table, table.new_zeros(number - known, *table.shape[1:])])
        }, None

    def _silent(
        self,
        number: int,
        features: Float64[np.ndarray, "i w"] | None,
        place: Int64[np.ndarray, " i"] | None = None,
        question: Int64[np.ndarray, " i"] | None = None,
    ) -> LIABatch:
        """Items of which nobody has said anything."""
        none = np.zeros(0, np.int64)
        rows = Rows(none, none, none, np.zeros(0), np.full(number, -1), self.num_annotators, self.num_classes)
        inputs = replace(self.inputs, item_features=features, question=question)
        said = LIABatch.of(rows, inputs, torch.float64)
        return (
            said
            if place is None
            else replace(
                said,
                place=torch.from_numpy(np.where(place < 0, len(self.parameters["item_embedding"]), place)),
            )
        )


def _with_centre(table: Tensor) -> Tensor:
    """The table with a last row at the centre of its prior."""
    return torch.cat([table, table.new_zeros(1, table.shape[1])])


def _blocks(number: int, size: int) -> Iterator[slice]:
    return (slice(low, min(low + size, number)) for low in range(0, number, size))


def principal_map(scores: Float64[np.ndarray, "j k l"], ids: pd.Index) -> pd.DataFrame:
    """Two principal components of what tells annotators apart, each with the sign that makes its largest weight positive."""
    flat = scores.reshape(len(scores), -1)
    left, size, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    points = np.zeros((len(flat), 2))
    points[:, : min(2, len(size))] = (left * size * signs)[:, :2]
    return pd.DataFrame(points, pd.Index(ids, name="annotator"), ["first", "second"])

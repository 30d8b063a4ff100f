r"""LIA in Pyro: truth, difficulty and competence as networks (Platanios et al. 2020).

    +--- item i ------------------------------+      truth[i]   ~ Categorical(softmax(h(x_i)))
    |   x_i ---> truth[i] ---> label[n] <-----|---+  label[n]   ~ Categorical(Q[i_n, j_n, truth[i_n], :])
    |    |                       ^            |   |
    |    +------> D_i -----------+            |   |  Q[i,j,k,:] = softmax_l( log sum_r exp(D[i,k,l,r]
    |                                         |   |                                          + C[j,k,l,r]) )
    +-----------------------------------------+   |
    +--- annotator j ---+                         |  h, D: networks of the item's features or of its embedding
    |   r_j ---> C_j ---|-------------------------+  C: linear in j's features or embedding, or a table
    +-------------------+

Equations 1 and 2, figure 1; `lia_numpyro` declares the same in NumPyro. The paper does not specify how
rows of Q are normalised; here the sum over r comes first and the softmax last. Only D + C is identified:
moving a term from D to C, or adding one to all labels of a row, changes nothing but the prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.aggregation.observed import codes, observe
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites
from probcrowd.models.meta.prototype import LOG_ZERO

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class LIABatch:
    """Annotations and inputs of b items as tensors.

    `annotations.items`: the items' rows in the table of item embeddings. possible: false for classes that a
    gold label rules out.
    """

    annotations: AnnotationTensors
    possible: Bool[Tensor, "b k"]
    item_features: Float[Tensor, "b p"] | None
    annotator_features: Float[Tensor, "j f"] | None
    question: Int[Tensor, " b"] | None

    @staticmethod
    def of(rows: Rows, inputs: Inputs, dtype: torch.dtype) -> LIABatch:
        """All items of a table, whose rows are sorted by item."""
        gold = codes(rows.gold)[:, None]
        item_features, annotator_features = (
            None if array is None else _tensor(array, dtype)
            for array in (inputs.item_features, inputs.annotator_features)
        )
        return LIABatch(
            AnnotationTensors.of(rows, dtype=dtype),
            (gold < 0) | (gold == torch.arange(rows.num_classes)),
            item_features,
            annotator_features,
            None if inputs.question is None else codes(inputs.question),
        )

    def select(self, items: Int[Tensor, " b"]) -> LIABatch:
        """The items at these positions with all their annotations."""
        return replace(
            self,
            annotations=self.annotations.select(items),
            possible=self.possible[items],
            item_features=None if self.item_features is None else self.item_features[items],
            question=None if self.question is None else self.question[items],
        )


def lia(inputs: Inputs, rows: Rows, prior: LIAPrior) -> None:
    """Declare the networks' weights and the truth of every item, and condition on the labels."""
    dtype = torch.get_default_dtype()
    parameters = {
        name: pyro.sample(name, dist.Normal(_tensor(site.loc, dtype), site.scale).to_event(site.loc.ndim))
        for name, site in sites(rows, inputs, prior).items()
    }
    batch = LIABatch.of(rows, inputs, dtype)
    evidence = _row_log_confusion(parameters, batch)
    observe(rows, log_truth(parameters, batch), evidence, torch.arange(len(rows.item)))


def log_truth(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "b k"]:
    """log h_k(x_i): log class probabilities of items before any label."""
    hidden = _hidden_layers(parameters, "truth", item_inputs(parameters, batch))
    weight, bias = parameters["truth_weight"], parameters["truth_bias"]
    if batch.question is None:
        return torch.log_softmax(hidden @ weight + bias, -1)
    embedding, shift = parameters["question_embedding"], parameters["truth_question"]
    weights = weight + (embedding @ shift.flatten(1)).unflatten(1, weight.shape)  # (m, w, k)
    logits = (
        torch.einsum("iw,mwk->imk", hidden, weights) + bias + embedding @ parameters["truth_question_bias"]
    )
    return torch.log_softmax(logits[torch.arange(len(hidden)), batch.question], -1)


def difficulty_logits(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "b k l r"]:
    """D: the item's part of the label logits, including the effect of its question on all annotators."""
    weight = parameters["difficulty_weight"]
    hidden = _hidden_layers(parameters, "difficulty", item_inputs(parameters, batch))
    difficulty = (hidden @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    if batch.question is None:
        return difficulty
    weight = parameters["question_competence"]
    effect = (parameters["question_embedding"] @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    return difficulty + effect[batch.question]


def competence_logits(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "j k l r"]:
    """C: the annotator's part of the label logits."""
    return parameters["competence_mean"] + competence_offset(parameters, batch.annotator_features)


def competence_offset(
    parameters: Parameters, annotator_features: Float[Tensor, "j f"] | None
) -> Float[Tensor, "j k l r"]:
    """The difference between each annotator's competence and that of a typical annotator."""
    if "competence_offset" in parameters:
        return parameters["competence_offset"]
    inputs = parameters["annotator_embedding"] if annotator_features is None else annotator_features
    weight = parameters["competence_weight"]
    return (inputs @ weight.flatten(1)).unflatten(1, weight.shape[1:])


def log_confusion(logits: Float[Tensor, "*n k l r"]) -> Float[Tensor, "*n k l"]:
    """log Q from D + C: rows (over l) sum to 1 for any R."""
    summed = logits[..., 0] if logits.shape[-1] == 1 else torch.logsumexp(logits, -1)
    return torch.log_softmax(summed, -1)


def label_log_likelihood(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "n k"]:
    """log Q[i_n, j_n, k, l_n] of every row, unweighted."""
    rows = _row_log_confusion(parameters, batch)
    return rows.gather(2, batch.annotations.label[:, None, None].expand(-1, rows.shape[1], 1))[..., 0]


def log_joint(
    log_class: Float[Tensor, "b k"], evidence: Float[Tensor, "n k"], batch: LIABatch
) -> Float[Tensor, "b k"]:
    """a_ik = log h_k(x_i) + sum_n weight[n] log Q[i, j_n, k, l_n]; `LOG_ZERO` if gold rules out k."""
    rows = batch.annotations
    total = log_class.index_add(0, rows.item, evidence * rows.weight[:, None])
    return torch.where(batch.possible, total, LOG_ZERO)


def _row_log_confusion(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "n k l"]:
    rows = batch.annotations
    difficulty, competence = difficulty_logits(parameters, batch), competence_logits(parameters, batch)
    return log_confusion(difficulty[rows.item] + competence[rows.annotator])


def item_inputs(parameters: Parameters, batch: LIABatch) -> Float[Tensor, "b w"]:
    """The networks' input for an item: its features or its embedding."""
    if batch.item_features is None:
        return parameters["item_embedding"][batch.annotations.items]
    return batch.item_features


def _hidden_layers(
    parameters: Parameters, network: str, inputs: Float[Tensor, "b w"]
) -> Float[Tensor, "b v"]:
    layer = 0
    while f"{network}_weight_{layer}" in parameters:
        weight, bias = parameters[f"{network}_weight_{layer}"], parameters[f"{network}_bias_{layer}"]
        inputs = torch.nn.functional.selu(inputs @ weight + bias)
        layer += 1
    return inputs


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.array(array)).to(dtype)

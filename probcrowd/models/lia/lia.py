r"""LIA: truth, difficulty and competence, all of them networks, in Pyro; `lia_numpyro` declares the same in NumPyro (Platanios et al. 2020).

          +--- item i ------------------------------+      truth[i]   ~ Categorical(softmax(h(x_i)))
          |   x_i ---> truth[i] ---> label[n] <-----|---+  label[n]   ~ Categorical(Q[i_n, j_n, truth[i_n], :])
          |    |                       ^            |   |
          |    +------> D_i -----------+            |   |  Q[i,j,k,:] = softmax_l( log sum_r exp(D[i,k,l,r] + C[j,k,l,r]) )
          +-----------------------------------------+   |
          +--- annotator j ---+                         |  h, d: networks of the item's features or of an embedding of it
          |   r_j ---> C_j ---|-------------------------+  c: linear in the annotator's features or embedding, or a table
          +-------------------+

Equations 1 and 2, figure 1. The paper does not say how rows of Q are made to sum to 1; here the sum over r comes first and the softmax last.
Only D + C matters: what is added to D and taken from C, or added to all labels of a row, changes nothing but the prior.
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
from probcrowd.models.aggregation.observed import codes, observe
from probcrowd.models.lia.prior import Inputs, LIAPrior, sites
from probcrowd.models.meta.prototype import LOG_ZERO

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class LIABatch:
    """Rows and inputs as tensors; items are all of them or a batch.

    starts: where the rows of each item begin, and the number of rows. place: where each item stands in the table of item embeddings.
    possible: false for the classes that a gold label rules out.
    """

    item: Int[Tensor, " n"]
    annotator: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    weight: Float[Tensor, " n"]
    starts: Int[Tensor, " s"]
    place: Int[Tensor, " i"]
    possible: Bool[Tensor, "i k"]
    item_features: Float[Tensor, "i p"] | None
    annotator_features: Float[Tensor, "j f"] | None
    question: Int[Tensor, " i"] | None

    @staticmethod
    def of(rows: Rows, inputs: Inputs, dtype: torch.dtype) -> LIABatch:
        """All items of a table, whose rows are sorted by item."""
        gold = codes(rows.gold)[:, None]
        features = [
            None if array is None else _numbers(array, dtype)
            for array in (inputs.item_features, inputs.annotator_features)
        ]
        return LIABatch(
            codes(rows.item),
            codes(rows.annotator),
            codes(rows.label),
            _numbers(rows.weight, dtype),
            torch.from_numpy(np.searchsorted(rows.item, np.arange(rows.num_items + 1))),
            torch.arange(rows.num_items),
            (gold < 0) | (gold == torch.arange(rows.num_classes)),
            features[0],
            features[1],
            None if inputs.question is None else codes(inputs.question),
        )

    def part(self, items: Int[Tensor, " b"]) -> LIABatch:
        """Those items with all their rows."""
        first = self.starts[items]
        starts = torch.nn.functional.pad((self.starts[items + 1] - first).cumsum(0), (1, 0))
        item = torch.repeat_interleave(torch.arange(len(items)), starts.diff())
        row = torch.arange(len(item)) - starts[item] + first[item]
        return replace(
            self,
            item=item,
            annotator=self.annotator[row],
            label=self.label[row],
            weight=self.weight[row],
            starts=starts,
            place=self.place[items],
            possible=self.possible[items],
            item_features=None if self.item_features is None else self.item_features[items],
            question=None if self.question is None else self.question[items],
        )


def lia(inputs: Inputs, rows: Rows, prior: LIAPrior) -> None:
    """Declare the weights of the networks, the truth of every item, and condition on what was said of it."""
    dtype = torch.get_default_dtype()
    parameters = {
        name: pyro.sample(name, dist.Normal(_numbers(site.loc, dtype), site.scale).to_event(site.loc.ndim))
        for name, site in sites(rows, inputs, prior).items()
    }
    said = LIABatch.of(rows, inputs, dtype)
    log_rows = log_confusion(
        difficulty_logits(parameters, said)[said.item] + competence_logits(parameters, said)[said.annotator]
    )
    observe(rows, log_truth(parameters, said), log_rows, torch.arange(len(said.item)))


def log_truth(parameters: Parameters, said: LIABatch) -> Float[Tensor, "i k"]:
    """log h_k(x_i), the class probabilities of items before anybody has said anything."""
    inner = _hidden(parameters, "truth", item_inputs(parameters, said))
    weight, bias = parameters["truth_weight"], parameters["truth_bias"]
    if said.question is None:
        return torch.log_softmax(inner @ weight + bias, -1)
    embedding, shift = parameters["question_embedding"], parameters["truth_question"]
    weights = weight + (embedding @ shift.flatten(1)).unflatten(1, weight.shape)  # (m, w, k)
    logits = (
        torch.einsum("iw,mwk->imk", inner, weights) + bias + embedding @ parameters["truth_question_bias"]
    )
    return torch.log_softmax(logits[torch.arange(len(inner)), said.question], -1)


def difficulty_logits(parameters: Parameters, said: LIABatch) -> Float[Tensor, "i k l r"]:
    """What an item adds to the logits of its labels: its difficulty, and what its question does to everybody's competence."""
    weight = parameters["difficulty_weight"]
    inner = _hidden(parameters, "difficulty", item_inputs(parameters, said))
    bent = (inner @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    if said.question is None:
        return bent
    weight = parameters["question_competence"]
    asked = (parameters["question_embedding"] @ weight.flatten(1)).unflatten(1, weight.shape[1:])
    return bent + asked[said.question]


def competence_logits(parameters: Parameters, said: LIABatch) -> Float[Tensor, "j k l r"]:
    """What an annotator adds to the logits of their labels."""
    return parameters["competence_mean"] + competence_offset(parameters, said.annotator_features)


def competence_offset(
    parameters: Parameters, annotator_features: Float[Tensor, "j f"] | None
) -> Float[Tensor, "j k l r"]:
    """How the competence of annotators differs from that of a typical one."""
    if "competence_offset" in parameters:
        return parameters["competence_offset"]
    seen = parameters["annotator_embedding"] if annotator_features is None else annotator_features
    weight = parameters["competence_weight"]
    return (seen @ weight.flatten(1)).unflatten(1, weight.shape[1:])


def log_confusion(logits: Float[Tensor, "*n k l r"]) -> Float[Tensor, "*n k l"]:
    """log Q: rows (over l) sum to 1 for any R."""
    summed = logits[..., 0] if logits.shape[-1] == 1 else torch.logsumexp(logits, -1)
    return torch.log_softmax(summed, -1)


def label_log_likelihood(parameters: Parameters, said: LIABatch) -> Float[Tensor, "n k"]:
    """log Q[i_n, j_n, k, l_n], not weighted."""
    log_rows = log_confusion(
        difficulty_logits(parameters, said)[said.item] + competence_logits(parameters, said)[said.annotator]
    )
    return log_rows.gather(2, said.label[:, None, None].expand(-1, log_rows.shape[1], 1))[..., 0]


def log_joint(
    log_class: Float[Tensor, "i k"], evidence: Float[Tensor, "n k"], said: LIABatch
) -> Float[Tensor, "i k"]:
    """a_ik = log h_k(x_i) + sum over rows n of i of weight[n] log Q[i, j_n, k, l_n]; classes that gold rules out are impossible."""
    total = log_class.index_add(0, said.item, evidence * said.weight[:, None])
    return torch.where(said.possible, total, LOG_ZERO)


def item_inputs(parameters: Parameters, said: LIABatch) -> Float[Tensor, "i w"]:
    """What the networks see of an item: its features or its embedding."""
    return parameters["item_embedding"][said.place] if said.item_features is None else said.item_features


def _hidden(parameters: Parameters, network: str, inner: Float[Tensor, "i w"]) -> Float[Tensor, "i v"]:
    layer = 0
    while f"{network}_weight_{layer}" in parameters:
        inner = torch.nn.functional.selu(
            inner @ parameters[f"{network}_weight_{layer}"] + parameters[f"{network}_bias_{layer}"]
        )
        layer += 1
    return inner


def _numbers(array: np.ndarray, dtype: torch.dtype) -> Float[Tensor, "..."]:
    return torch.from_numpy(np.array(array)).to(dtype)

"""Aggregate labels without the embeddings into class probabilities: majority vote or Dawid-Skene."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from probcrowd.data.validation import find_name
from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.fit import fit
from probcrowd.metrics.tensors import highest
from probcrowd.models.meta.prototype import Prior

Aggregation = Literal["majority-vote", "dawid-skene"]


def aggregate_labels(
    support: Support, method: Aggregation, prior: Prior, *, steps: int
) -> Float[Tensor, "b i k"]:
    """Return class probabilities of the support items; `prior` and `steps` are those of Dawid-Skene."""
    if find_name("labels", method, get_args(Aggregation)) == "majority-vote":
        return majority(support.votes.totals())
    return dawid_skene(support, prior, steps=steps)


def majority(totals: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
    """Put all weight on the most frequent label; labels in a tie share it; items without labels have 0."""
    best = highest(totals) & (totals > 0)
    return best.to(totals.dtype) / best.sum(-1, keepdim=True).clamp(min=1)


def dawid_skene(support: Support, prior: Prior, *, steps: int) -> Float[Tensor, "b i k"]:
    """Return Dawid-Skene responsibilities: EM for the prototype crowd with embeddings of dimension 0.

    There are as many E steps as M steps, so the confusion matrices count even after one step.
    """
    annotations = replace(support, embeddings=support.embeddings[..., :0])
    return em.e_step(fit(annotations, prior, steps=steps), annotations)

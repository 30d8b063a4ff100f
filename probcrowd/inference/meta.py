r"""Meta-training: the embedding network is trained through the adaptation to many small tasks (Kumagai et al. 2025, Algorithm 1).

    loss(theta) = - sum over query items of ln p(truth | u; parameters fitted to the support set)       equation (10), mean over tasks

A method says how the parameters of a task are fitted, and whether the support sets of meta-training carry simulated annotators:

    joint              EM in the embedding space: the paper's method, `steps` M steps
    dawid-skene        responsibilities by EM on the annotations alone, then one M step: prototypes on Dawid-Skene labels
    majority-vote      responsibilities by majority (ties share), then one M step: prototypes on majority labels

Without pseudo-annotators the network is trained on clean support labels: with the paper's prior this is its ablation, with a flat prior
(`PROTOTYPICAL`) it is a prototypical network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.episodes import Episodes, EpisodeSource
from probcrowd.inference import em
from probcrowd.inference.guide import query_elbo
from probcrowd.models.encoders import embed
from probcrowd.models.prototype import Prior, log_predictive
from probcrowd.votes import DenseVotes, Support

FLAT_PRECISION, FLAT_COUNT = 1e-6, 1e6  # no shrinkage of prototypes, equal class probabilities
PROTOTYPICAL = Prior(FLAT_PRECISION, FLAT_COUNT)


@dataclass(frozen=True)
class Method:
    """How a task is adapted to, and what the support sets of meta-training look like."""

    labels: Literal["joint", "dawid-skene", "majority-vote"] = "joint"
    steps: int = 2
    gradient: em.Gradient = "unrolled"
    pseudo_annotators: bool = True
    prior: Prior = field(default_factory=Prior)


def adapt(support: Support, method: Method) -> em.Parameters:
    """The parameters that a method fits to the noisily labelled support sets of a batch of tasks."""
    return em.m_step(responsibilities(support, method), support, method.prior)


def responsibilities(support: Support, method: Method) -> Float[Tensor, "b i k"]:
    """What a method's last M step takes for the true labels of the support items."""
    if method.labels == "joint":
        return em.iterate(support, method.prior, steps=method.steps, gradient=method.gradient)
    if method.labels == "majority-vote":
        return majority(support.votes.totals())
    return dawid_skene(support, method.prior, steps=method.steps)


def dawid_skene(support: Support, prior: Prior, *, steps: int) -> Float[Tensor, "b i k"]:
    """Responsibilities by EM on the annotations alone: the prototype crowd with embeddings of no dimension.

    As many M steps as E steps, so the labels have used the confusion matrices even after one step.
    """
    blind = Support(support.embeddings[..., :0], support.votes, support.items, support.classes)
    return em.e_step(em.fit(blind, prior, steps=steps), blind)


def majority(totals: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
    """All weight on the most frequent label; labels in a tie share it; 0 for items without labels."""
    best = (totals == totals.amax(-1, keepdim=True)) & (totals > 0)
    return best.to(totals.dtype) / best.sum(-1, keepdim=True).clamp(min=1)


def meta_loss(encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method) -> Float[Tensor, ""]:
    """Equation (10): summed over the queries of a task, averaged over tasks; as an ELBO under the guide that adaptation gives."""
    support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
    task = noisy_support(support, episodes) if method.pseudo_annotators else clean_support(support, episodes)
    known = responsibilities(task, method) if method.pseudo_annotators else em.start(task)
    return -query_elbo(queries, episodes.query_truth, *em.class_parameters(known, task, method.prior)) / len(queries)


def noisy_support(embeddings: Float[Tensor, "b i d"], episodes: Episodes) -> Support:
    """The support sets with what the annotators said of them; the truth stays hidden."""
    return Support(embeddings, DenseVotes.from_labels(episodes.labels, episodes.ways, embeddings.dtype))


def clean_support(embeddings: Float[Tensor, "b i d"], episodes: Episodes) -> Support:
    """The support sets as one annotator labels them who is always right; its soft majority vote is the truth."""
    return Support(embeddings, DenseVotes.from_labels(episodes.support_truth[..., None], episodes.ways, embeddings.dtype))


def predict(encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method) -> tuple[Float[Tensor, "b q k"], em.Parameters]:
    """Log class probabilities of the query items and the fitted parameters, after adapting to the noisy support; no gradient."""
    with torch.no_grad():
        support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
        parameters = adapt(noisy_support(support, episodes), method)
        return log_predictive(queries, parameters.prototypes, parameters.log_class_prior), parameters

r"""The meta-training loss: the encoder is trained through the adaptation to many small tasks.

Kumagai et al. 2025, Algorithm 1 and equation (10), mean over tasks:

    loss(theta) = - sum over query items of ln p(truth | u; parameters fitted to the support set)

With pseudo-annotators, support sets carry labels of simulated annotators. Without, they carry clean labels:
with the paper's prior this is its ablation, with a flat prior (`adaptation.PROTOTYPICAL`) it is a
prototypical network. `clean_share` mixes both.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em, variational
from probcrowd.inference.meta.adaptation import Method, learned_prior, support_responsibilities
from probcrowd.inference.meta.guide import query_elbo
from probcrowd.models.encoders import embed
from probcrowd.simulate.episodes import Episodes, EpisodeSource


def meta_loss(
    encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    """Return equation (10), summed over the queries of a task and averaged over tasks."""
    support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
    learned = learned_prior(encoder)
    if method.separate and learned is not None:
        # The clean loss trains the encoder without the learned scale, the noisy one the rest with it
        support, queries = support / learned.scale, queries / learned.scale
        scaled = support.detach() * learned.scale, queries.detach() * learned.scale
        noisy = noisy_loss(*scaled, episodes, method.with_learned(encoder))
        return clean_loss(support, queries, episodes, method) + noisy
    method = method.with_learned(encoder)
    share = method.clean_share if method.pseudo_annotators else 1.0
    if share == 0:
        return noisy_loss(support, queries, episodes, method)
    if share == 1:
        return clean_loss(support, queries, episodes, method)
    clean, noisy = (loss(support, queries, episodes, method) for loss in (clean_loss, noisy_loss))
    return share * clean + (1 - share) * noisy


def clean_loss(
    support: Float[Tensor, "b i d"], queries: Float[Tensor, "b q d"], episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    """Return the loss after one M step on the true labels of the support items."""
    task = episodes.clean_support(support)
    return _query_loss(queries, episodes, task, em.initial_responsibilities(task), method)


def noisy_loss(
    support: Float[Tensor, "b i d"], queries: Float[Tensor, "b q d"], episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    """Return the loss after adapting to the labels of the simulated annotators."""
    task = episodes.noisy_support(support)
    return _query_loss(queries, episodes, task, support_responsibilities(task, method), method)


def _query_loss(
    queries: Float[Tensor, "b q d"],
    episodes: Episodes,
    task: Support,
    responsibilities: Float[Tensor, "b i k"],
    method: Method,
) -> Float[Tensor, ""]:
    if method.inference == "variational":
        classes = variational.class_parameters(
            responsibilities, task, method.prior, average_prototypes=method.average_prototypes
        )
    else:
        classes = em.class_parameters(responsibilities, task, method.prior)
    return -query_elbo(queries, episodes.query_truth, classes, method.temperature) / len(queries)

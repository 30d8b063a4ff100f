r"""Meta-training: the embedding network is trained through the adaptation to many small tasks (Kumagai et al. 2025, Algorithm 1).

    loss(theta) = - sum over query items of ln p(truth | u; parameters fitted to the support set)       equation (10), mean over tasks

A method says how the parameters of a task are fitted, and whether the support sets of meta-training carry simulated annotators:

    joint              EM in the embedding space: the paper's method, `steps` M steps
    dawid-skene        responsibilities by EM on the annotations alone, then one M step: prototypes on Dawid-Skene labels
    majority-vote      responsibilities by majority (ties share), then one M step: prototypes on majority labels

Without pseudo-annotators the network is trained on clean support labels: with the paper's prior this is its ablation, with a flat prior
(`PROTOTYPICAL`) it is a prototypical network.

Beyond the paper: variational Bayes in place of EM, with a population prior of annotators or without (`inference.variational`), a prior that is
learned with the network (`models.learned_prior`), and a share of the loss that takes the same support sets with clean labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta import em, variational
from probcrowd.inference.meta.guide import query_elbo
from probcrowd.metrics.tensors import highest
from probcrowd.models.encoders import embed
from probcrowd.models.meta.learned_prior import LearnedPrior
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior, predictive_scores
from probcrowd.simulate.episodes import Episodes, EpisodeSource

FLAT_PRECISION, FLAT_COUNT = 1e-6, 1e6  # no shrinkage of prototypes, equal class probabilities
PROTOTYPICAL = Prior(FLAT_PRECISION, FLAT_COUNT)


@dataclass(frozen=True)
class Method:
    """How a task is adapted to, and what the support sets of meta-training look like.

    inference: of joint labels; "variational" has no gradient but the unrolled one. population: of annotators; spread: whether prototypes are averaged over
    as well; both in variational inference alone.
    temperature: divides the scores of queries. clean_share: the part of the meta-training loss that is of clean support labels; separate: the encoder
    learns from those alone, and what is learned beside it from noisy ones alone. tie_noise: how far votes are moved at random before EM, so
    that classes with equal votes part.

    Raises:
        ValueError: a combination that has no meaning.
    """

    labels: Literal["joint", "dawid-skene", "majority-vote"] = "joint"
    steps: int = 2
    gradient: em.Gradient = "unrolled"
    pseudo_annotators: bool = True
    prior: Prior = field(default_factory=Prior)
    inference: Literal["map", "variational"] = "map"
    population: Population | None = None
    spread: bool = True
    temperature: Tensor | float = 1.0
    clean_share: float = 0.0
    separate: bool = False
    tie_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.inference == "variational" and (self.gradient != "unrolled" or self.labels != "joint"):
            raise ValueError(
                f"variational inference is of joint labels by the unrolled gradient, not {self.labels!r} by {self.gradient!r}"
            )
        if self.population is not None and self.inference != "variational":
            raise ValueError("a population of annotators needs inference = 'variational'")

    def learned(self, encoder: nn.Module) -> Method:
        """This method with what the encoder has learned beside itself, if it has."""
        beside = _beside(encoder)
        if beside is None:
            return self
        return replace(self, prior=beside.prior, population=beside.population, temperature=beside.temperature)


def adapt(support: Support, method: Method) -> em.Parameters:
    """The parameters that a method fits to the noisily labelled support sets of a batch of tasks."""
    known = responsibilities(support, method)
    if method.inference == "variational":
        return variational.parameters(known, support, method.prior, method.population, spread=method.spread)
    return em.m_step(known, support, method.prior)


def explained(parameters: em.Parameters, support: Support, method: Method) -> Float[Tensor, "b i k"]:
    """p(truth | embedding, annotations) of the support items, at fitted parameters or averaged over them."""
    if method.inference == "variational":
        known = responsibilities(support, method)
        return variational.step(known, support, method.prior, method.population, spread=method.spread)
    return em.e_step(parameters, support)


def responsibilities(support: Support, method: Method) -> Float[Tensor, "b i k"]:
    """What a method's last M step takes for the true labels of the support items."""
    if method.labels == "majority-vote":
        return majority(support.votes.totals())
    if method.labels == "dawid-skene":
        return dawid_skene(support, method.prior, steps=method.steps)
    if method.inference == "variational":
        return variational.responsibilities(
            support,
            method.prior,
            method.population,
            steps=method.steps,
            spread=method.spread,
            tie_noise=method.tie_noise,
        )
    return em.iterate(
        support, method.prior, steps=method.steps, gradient=method.gradient, tie_noise=method.tie_noise
    )


def dawid_skene(support: Support, prior: Prior, *, steps: int) -> Float[Tensor, "b i k"]:
    """Responsibilities by EM on the annotations alone: the prototype crowd with embeddings of no dimension.

    As many M steps as E steps, so the labels have used the confusion matrices even after one step.
    """
    blind = Support(support.embeddings[..., :0], support.votes, support.items, support.classes)
    return em.e_step(em.fit(blind, prior, steps=steps), blind)


def majority(totals: Float[Tensor, "b i k"]) -> Float[Tensor, "b i k"]:
    """All weight on the most frequent label; labels in a tie share it; 0 for items without labels."""
    best = highest(totals) & (totals > 0)
    return best.to(totals.dtype) / best.sum(-1, keepdim=True).clamp(min=1)


def meta_loss(
    encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    """Equation (10): summed over the queries of a task, averaged over tasks; as an ELBO under the guide that adaptation gives."""
    support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
    beside = _beside(encoder)
    if method.separate and beside is not None:
        raw, raw_queries = support / beside.scale, queries / beside.scale
        clean = _clean_loss(raw, raw_queries, episodes, method)
        return clean + _noisy_loss(
            raw.detach() * beside.scale,
            raw_queries.detach() * beside.scale,
            episodes,
            method.learned(encoder),
        )
    method = method.learned(encoder)
    share = method.clean_share if method.pseudo_annotators else 1.0
    if share in (0, 1):
        return (_clean_loss if share else _noisy_loss)(support, queries, episodes, method)
    return share * _clean_loss(support, queries, episodes, method) + (1 - share) * _noisy_loss(
        support, queries, episodes, method
    )


def _clean_loss(
    support: Float[Tensor, "b i d"], queries: Float[Tensor, "b q d"], episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    task = clean_support(support, episodes)
    return _query_loss(queries, episodes, task, em.start(task), method)


def _noisy_loss(
    support: Float[Tensor, "b i d"], queries: Float[Tensor, "b q d"], episodes: Episodes, method: Method
) -> Float[Tensor, ""]:
    task = noisy_support(support, episodes)
    return _query_loss(queries, episodes, task, responsibilities(task, method), method)


def _query_loss(
    queries: Float[Tensor, "b q d"],
    episodes: Episodes,
    task: Support,
    known: Float[Tensor, "b i k"],
    method: Method,
) -> Float[Tensor, ""]:
    """Minus equation (10) with these responsibilities of the support items."""
    spread = None
    if method.inference == "variational":
        prototypes, variance, log_class_prior = variational.class_parameters(known, task, method.prior)
        spread = variance if method.spread else None
    else:
        prototypes, log_class_prior = em.class_parameters(known, task, method.prior)
    return -query_elbo(
        queries, episodes.query_truth, prototypes, log_class_prior, spread, method.temperature
    ) / len(queries)


def _beside(encoder: nn.Module) -> LearnedPrior | None:
    inner = encoder.module if isinstance(encoder, nn.parallel.DistributedDataParallel) else encoder
    return inner if isinstance(inner, LearnedPrior) else None


def noisy_support(embeddings: Float[Tensor, "b i d"], episodes: Episodes) -> Support:
    """The support sets with what the annotators said of them; the truth stays hidden."""
    return Support(embeddings, DenseVotes.from_labels(episodes.labels, episodes.ways, embeddings.dtype))


def clean_support(embeddings: Float[Tensor, "b i d"], episodes: Episodes) -> Support:
    """The support sets as one annotator labels them who is always right; its soft majority vote is the truth."""
    return Support(
        embeddings, DenseVotes.from_labels(episodes.support_truth[..., None], episodes.ways, embeddings.dtype)
    )


def predict(
    encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method
) -> tuple[Float[Tensor, "b q k"], em.Parameters]:
    """Log class probabilities of the query items and the fitted parameters, after adapting to the noisy support; no gradient."""
    with torch.no_grad():
        support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
        method = method.learned(encoder)
        parameters = adapt(noisy_support(support, episodes), method)
        return log_classes(queries, parameters, method), parameters


def log_classes(
    queries: Float[Tensor, "b q d"], parameters: em.Parameters, method: Method
) -> Float[Tensor, "b q k"]:
    """Log class probabilities of query embeddings: equation (8), averaged over prototypes where their spread is known, by the temperature."""
    scores = predictive_scores(queries, parameters.prototypes, parameters.log_class_prior, parameters.spread)
    return torch.log_softmax(scores / method.temperature, -1)

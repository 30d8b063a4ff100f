r"""Adapt to new tasks: fit the parameters of a task to its support set, then classify its query items.

A `Method` names where the responsibilities of the last M step come from:

    joint              EM in the embedding space: the paper's method, `steps` M steps
    dawid-skene        EM on the annotations alone, then one M step: prototypes on Dawid-Skene labels
    majority-vote      majority vote (ties share), then one M step: prototypes on majority labels

Beyond the paper: variational Bayes in place of EM, with or without a population prior of annotators
(`variational.py`), and a prior learned together with the network (`probcrowd.models.meta.learned_prior`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probcrowd.data.validation import find_name
from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em, variational
from probcrowd.inference.meta.fit import Gradient, iterate
from probcrowd.inference.meta.label_aggregation import Aggregation, aggregate_labels
from probcrowd.models.encoders import embed
from probcrowd.models.meta.learned_prior import LearnedPrior
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior, predictive_scores
from probcrowd.simulate.episodes import Episodes, EpisodeSource

FLAT_PRECISION, FLAT_COUNT = 1e-6, 1e6  # no shrinkage of prototypes, equal class probabilities
PROTOTYPICAL = Prior(FLAT_PRECISION, FLAT_COUNT)
NAMES = {
    "labels": ("joint", *get_args(Aggregation)),
    "gradient": get_args(Gradient),
    "inference": ("map", "variational"),
}


@dataclass(frozen=True)
class Method:
    """How a task is adapted to, and how its support set is labelled in meta-training.

    inference: of joint labels; "variational" has the unrolled gradient only. population, average_prototypes:
    options of it.
    temperature: divisor of the query scores. tie_noise: see `em.initial_responsibilities`.
    pseudo_annotators: whether support sets in meta-training carry simulated annotators; otherwise their
    labels are clean.
    clean_share: the weight of the loss on clean support labels. separate: train the encoder on that loss
    alone, and the learned prior on the loss with pseudo-annotators alone.

    Raises:
        ValueError: a combination without a meaning.
    """

    labels: Literal["joint"] | Aggregation = "joint"
    steps: int = 2
    gradient: Gradient = "unrolled"
    pseudo_annotators: bool = True
    prior: Prior = field(default_factory=Prior)
    inference: Literal["map", "variational"] = "map"
    population: Population | None = None
    average_prototypes: bool = True
    temperature: Tensor | float = 1.0
    clean_share: float = 0.0
    separate: bool = False
    tie_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in NAMES.items():
            object.__setattr__(self, name, find_name(name, getattr(self, name), choices))
        if self.inference == "variational" and (self.gradient != "unrolled" or self.labels != "joint"):
            raise ValueError(
                "variational inference needs labels = 'joint' and gradient = 'unrolled', "
                f"got {self.labels!r} and {self.gradient!r}"
            )
        if self.population is not None and self.inference != "variational":
            raise ValueError("a population of annotators needs inference = 'variational'")

    def with_learned(self, encoder: nn.Module) -> Method:
        """Return this method with the prior, population and temperature that the encoder has learned."""
        learned = learned_prior(encoder)
        if learned is None:
            return self
        population = learned.population if self.inference == "variational" else None
        return replace(self, prior=learned.prior, population=population, temperature=learned.temperature)


def predict(
    encoder: nn.Module, source: EpisodeSource, episodes: Episodes, method: Method
) -> tuple[Float[Tensor, "b q k"], em.Parameters]:
    """Adapt to noisily labelled support sets; return the queries' log class probabilities and the parameters.

    Without a graph.
    """
    with torch.no_grad():
        support, queries = embed(encoder, source.inputs(episodes.support), source.inputs(episodes.query))
        method = method.with_learned(encoder)
        parameters = adapt(episodes.noisy_support(support), method)
        return query_log_probabilities(queries, parameters, method), parameters


def adapt(support: Support, method: Method) -> em.Parameters:
    """Fit the parameters of a batch of tasks to their support sets."""
    responsibilities = support_responsibilities(support, method)
    if method.inference == "variational":
        return variational.parameters(
            responsibilities,
            support,
            method.prior,
            method.population,
            average_prototypes=method.average_prototypes,
        )
    return em.m_step(responsibilities, support, method.prior)


def support_responsibilities(support: Support, method: Method) -> Float[Tensor, "b i k"]:
    """Return the responsibilities of the support items that enter a method's last M step."""
    if method.labels != "joint":
        return aggregate_labels(support, method.labels, method.prior, steps=method.steps)
    if method.inference == "variational":
        return variational.iterate(
            support,
            method.prior,
            method.population,
            steps=method.steps,
            average_prototypes=method.average_prototypes,
            tie_noise=method.tie_noise,
        )
    return iterate(
        support, method.prior, steps=method.steps, gradient=method.gradient, tie_noise=method.tie_noise
    )


def support_probabilities(
    parameters: em.Parameters, support: Support, method: Method
) -> Float[Tensor, "b i k"]:
    """Return p(truth | embedding, annotations) of support items, at the parameters or averaged over them."""
    if method.inference == "variational":
        return variational.step(
            support_responsibilities(support, method),
            support,
            method.prior,
            method.population,
            average_prototypes=method.average_prototypes,
        )
    return em.e_step(parameters, support)


def query_log_probabilities(
    queries: Float[Tensor, "b q d"], parameters: em.ClassParameters, method: Method
) -> Float[Tensor, "b q k"]:
    """Return log class probabilities of query embeddings: equation (8) of Kumagai et al. 2025, tempered.

    They are averaged over prototypes that have a variance.
    """
    scores = predictive_scores(
        queries, parameters.prototypes, parameters.log_class_prior, parameters.variance
    )
    return torch.log_softmax(scores / method.temperature, -1)


def learned_prior(encoder: nn.Module) -> LearnedPrior | None:
    """Return the encoder as a `LearnedPrior` if it is one, also inside a distributed wrapper."""
    inner = encoder.module if isinstance(encoder, nn.parallel.DistributedDataParallel) else encoder
    return inner if isinstance(inner, LearnedPrior) else None

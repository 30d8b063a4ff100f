r"""MAML (Finn et al. 2017): train a network that a few gradient steps on a small support set make accurate.

    phi[0]      = theta
    phi[s + 1]  = phi[s] - rate * gradient of L at phi[s]                          s = 0 .. steps - 1
    L(phi)      = - sum_{i, k} r[i, k] ln p(k | x[i]; phi) / sum_{i, k} r[i, k]    all support items at once
    loss(theta) = - sum over query items of ln p(truth | x; phi[steps])            mean over tasks

r are the labels as probabilities (b i k). The gradient of the loss passes through all steps (second order).

theta is meta-trained on true support labels. A new task has annotators, and r is their majority vote (ties
share) or their Dawid-Skene labels.

Batch normalisation uses the mean and variance of one task's batch, in training and in evaluation mode: the
support items in the steps, the queries in prediction. Running statistics are neither used nor changed;
dropout is off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

from probcrowd.inference.meta.batch_norm import without_running_statistics
from probcrowd.inference.meta.label_aggregation import Aggregation, aggregate_labels
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.episodes import Episodes, EpisodeSource

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class GradientSteps:
    """Labels, gradient steps and their rate. `prior`, `dawid_skene_steps`: of Dawid-Skene labels."""

    labels: Aggregation = "majority-vote"
    steps: int = 5
    rate: float = 0.1
    prior: Prior = field(default_factory=Prior)
    dawid_skene_steps: int = 2


def maml_loss(
    network: nn.Module, source: EpisodeSource, episodes: Episodes, method: GradientSteps
) -> Float[Tensor, ""]:
    """Return the query cross-entropy after adapting to true support labels.

    It is summed over the queries of a task and averaged over tasks.
    network: maps (n, *input) to logits (n, k).
    """
    support, queries = _inputs(network, source, episodes)
    labels = one_hot(episodes.support_truth, episodes.ways).to(support.dtype)
    log_probabilities = adapted_log_probabilities(network, support, labels, queries, method)
    return -log_probabilities.gather(2, episodes.query_truth[..., None]).sum() / len(queries)


@torch.no_grad()
def maml_predict(
    network: nn.Module, source: EpisodeSource, episodes: Episodes, method: GradientSteps, *, chunk: int = 16
) -> Float[Tensor, "b q k"]:
    """Return log class probabilities of the queries after adapting to the noisy support sets.

    chunk: tasks in memory at a time.
    """
    results = []
    for part in episodes.chunks(chunk):
        support, queries = _inputs(network, source, part)
        labels = label_probabilities(part, method, support.dtype)
        results.append(adapted_log_probabilities(network, support, labels, queries, method))
    return torch.cat(results)


def label_probabilities(
    episodes: Episodes, method: GradientSteps, dtype: torch.dtype
) -> Float[Tensor, "b i k"]:
    """Aggregate the annotators' labels of the support items into class probabilities."""
    no_embeddings = torch.zeros(*episodes.support.shape, 0, dtype=dtype, device=episodes.support.device)
    support = episodes.noisy_support(no_embeddings)
    return aggregate_labels(support, method.labels, method.prior, steps=method.dawid_skene_steps)


def adapted_log_probabilities(
    network: nn.Module,
    support: Float[Tensor, "b i *shape"],
    labels: Float[Tensor, "b i k"],
    queries: Float[Tensor, "b q *shape"],
    method: GradientSteps,
) -> Float[Tensor, "b q k"]:
    """Return the queries' log class probabilities by each task's adapted weights, differentiably."""
    stateless = without_running_statistics(network)

    def log_probabilities(weights: Weights, inputs: Tensor) -> Tensor:
        return torch.log_softmax(functional_call(stateless, weights, inputs), -1)

    def loss(weights: Weights, inputs: Tensor, labels: Tensor) -> Tensor:
        return -(labels * log_probabilities(weights, inputs)).sum() / labels.sum().clamp(min=1)

    def adapt_and_predict(weights: Weights, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        for _ in range(method.steps):
            gradient = grad(loss)(weights, support, labels)
            weights = {name: weight - method.rate * gradient[name] for name, weight in weights.items()}
        return log_probabilities(weights, queries)

    batched = vmap(adapt_and_predict, in_dims=(None, 0, 0, 0))
    return batched(dict(network.named_parameters()), support, labels, queries)


def _inputs(network: nn.Module, source: EpisodeSource, episodes: Episodes) -> tuple[Tensor, Tensor]:
    """Return the inputs of support and query items in the network's dtype."""
    dtype = next(network.parameters()).dtype
    return source.inputs(episodes.support).to(dtype), source.inputs(episodes.query).to(dtype)

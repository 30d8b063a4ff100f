r"""MAML (Finn et al. 2017): a network is trained so that a few gradient steps on a small support set make it a good classifier.

    phi[0]      = theta
    phi[s + 1]  = phi[s] - rate * gradient of L at phi[s]                              s = 0 .. steps - 1, all support items at once
    L(phi)      = - sum_{i, k} r[i, k] log p(k | x[i]; phi) / sum_{i, k} r[i, k]       r: the labels, as probabilities (b i k)
    loss(theta) = - sum over query items of log p(truth | x; phi[steps])               mean over tasks, through all steps: second order

theta is meta-trained on true support labels. A new task has annotators, and r is their majority vote (ties share) or what Dawid-Skene
makes of their labels.

Batch normalisation uses the mean and variance of the batch of one task at hand, whether the network is in training mode or not: those of
the support items in the steps, those of the queries in prediction. Running statistics are neither used nor changed; dropout is off.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

from probcrowd.inference.meta.adaptation import dawid_skene, majority, noisy_support
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.episodes import Episodes, EpisodeSource

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class GradientSteps:
    """How a task is adapted to. `prior` and `dawid_skene_steps` are those of Dawid-Skene labels; meta-training knows the labels."""

    labels: Literal["majority-vote", "dawid-skene"] = "majority-vote"
    steps: int = 5
    rate: float = 0.1
    prior: Prior = field(default_factory=Prior)
    dawid_skene_steps: int = 2


def maml_loss(
    network: nn.Module, source: EpisodeSource, episodes: Episodes, method: GradientSteps
) -> Float[Tensor, ""]:
    """Cross-entropy of the queries after adapting to true support labels: summed over the queries of a task, averaged over tasks.

    network: maps (n, *input) to logits (n, k).
    """
    support, queries = (_inputs(network, source, index) for index in (episodes.support, episodes.query))
    known = one_hot(episodes.support_truth, episodes.ways).to(support.dtype)
    log_class = adapted_log_classes(network, support, known, queries, method)
    return -log_class.gather(2, episodes.query_truth[..., None]).sum() / len(queries)


@torch.no_grad()
def maml_predict(
    network: nn.Module, source: EpisodeSource, episodes: Episodes, method: GradientSteps, *, chunk: int = 16
) -> Float[Tensor, "b q k"]:
    """Log class probabilities of the queries, after adapting to the noisy support; without a graph. chunk: tasks in memory at a time."""
    labels = label_probabilities(episodes, method, next(network.parameters()).dtype)
    parts = zip(episodes.support.split(chunk), labels.split(chunk), episodes.query.split(chunk), strict=True)
    return torch.cat(
        [
            adapted_log_classes(
                network, _inputs(network, source, support), known, _inputs(network, source, queries), method
            )
            for support, known, queries in parts
        ]
    )


def label_probabilities(
    episodes: Episodes, method: GradientSteps, dtype: torch.dtype
) -> Float[Tensor, "b i k"]:
    """What the annotators' labels say of the support items."""
    nothing = torch.zeros(*episodes.support.shape, 0, dtype=dtype, device=episodes.support.device)
    support = noisy_support(nothing, episodes)
    if method.labels == "majority-vote":
        return majority(support.votes.totals())
    return dawid_skene(support, method.prior, steps=method.dawid_skene_steps)


def adapted_log_classes(
    network: nn.Module,
    support: Float[Tensor, "b i *shape"],
    labels: Float[Tensor, "b i k"],
    queries: Float[Tensor, "b q *shape"],
    method: GradientSteps,
) -> Float[Tensor, "b q k"]:
    """Log class probabilities of the queries, each task with its own adapted weights; differentiable in the network's weights."""
    shell = without_running_statistics(network)

    def log_class(weights: Weights, inputs: Tensor) -> Tensor:
        return torch.log_softmax(functional_call(shell, weights, inputs), -1)

    def loss(weights: Weights, inputs: Tensor, labels: Tensor) -> Tensor:
        return -(labels * log_class(weights, inputs)).sum() / labels.sum().clamp(min=1)

    def adapted(weights: Weights, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        for _ in range(method.steps):
            slope = grad(loss)(weights, support, labels)
            weights = {name: weight - method.rate * slope[name] for name, weight in weights.items()}
        return log_class(weights, queries)

    return vmap(adapted, in_dims=(None, 0, 0, 0))(dict(network.named_parameters()), support, labels, queries)


def without_running_statistics(network: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, whose batch normalisation has nothing but the batch at hand. The network given is left as it is."""
    shell = nn.ModuleDict({"network": deepcopy(network)})
    for module in list(shell.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.add_module(name, BatchAtHand(child))
    return shell["network"].eval()


class BatchAtHand(nn.Module):
    """Batch normalisation by the mean and variance of the batch, with the weight and the bias of another.

    In single operations: through `torch.func.vmap` the gradient of the gradient of `torch.nn.functional.batch_norm` takes the mean and the
    variance for constants, and is wrong (PyTorch 2.13).
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.small = norm.weight, norm.bias, norm.eps

    def forward(self, inputs: Float[Tensor, "n c *shape"]) -> Float[Tensor, "n c *shape"]:
        """Channels of mean 0 and variance 1 over items and places, scaled and shifted."""
        others = [0, *range(2, inputs.ndim)]
        variance, mean = torch.var_mean(inputs, others, correction=0, keepdim=True)
        normalised = (inputs - mean) * torch.rsqrt(variance + self.small)
        if self.weight is None:
            return normalised
        return normalised * self.weight.view_as(mean[0]) + self.bias.view_as(mean[0])


def _inputs(network: nn.Module, source: EpisodeSource, index: Tensor) -> Tensor:
    return source.inputs(index).to(next(network.parameters()).dtype)

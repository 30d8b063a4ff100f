"""MAML: the inner loop equals a plain one, the outer gradient is second order, the network is unchanged."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Literal

import pytest
import torch
from meta_episodes import SHAPE, blobs, episodes_of, images
from torch import Tensor, nn
from torch.func import functional_call

from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta.batch_norm import without_running_statistics
from probcrowd.inference.meta.label_aggregation import dawid_skene, majority
from probcrowd.inference.meta.maml import (
    GradientSteps,
    adapted_log_probabilities,
    label_probabilities,
    maml_loss,
    maml_predict,
)
from probcrowd.metrics.tensors import accuracy
from probcrowd.models.encoders import MLP, Conv4
from probcrowd.simulate.annotators import Mixture
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_episodes

METHOD = GradientSteps(steps=3, rate=0.3)


def network(dimension: int = 6) -> nn.Module:
    """In double precision."""
    torch.manual_seed(1)
    return nn.Sequential(MLP(dimension, [7], 5), nn.Linear(5, SHAPE.ways)).double()


def looped(
    net: nn.Module,
    support: Tensor,
    labels: Tensor,
    queries: Tensor,
    method: GradientSteps,
    *,
    second_order: bool = True,
) -> Tensor:
    """Adapt one task after the other by torch.autograd, with the batch normalisation of `net`."""
    result = []
    for x, given, x_query in zip(support, labels, queries, strict=True):
        weights: dict[str, Tensor] = dict(net.named_parameters())
        for _ in range(method.steps):
            loss = nn.functional.cross_entropy(functional_call(net, weights, (x,)), given)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=second_order)
            weights = {
                name: weight - method.rate * slope
                for (name, weight), slope in zip(weights.items(), slopes, strict=True)
            }
        result.append(torch.log_softmax(functional_call(net, weights, (x_query,)), -1))
    return torch.stack(result)


def looped_loss(
    net: nn.Module,
    source: EpisodeSource,
    episodes: Episodes,
    method: GradientSteps,
    *,
    second_order: bool = True,
) -> Tensor:
    """Outer loss with true labels."""
    known = nn.functional.one_hot(episodes.support_truth, episodes.ways).double()
    support, queries = source.inputs(episodes.support).double(), source.inputs(episodes.query).double()
    result = looped(net, support, known, queries, method, second_order=second_order)
    losses = [
        nn.functional.nll_loss(each, truth, reduction="sum")
        for each, truth in zip(result, episodes.query_truth, strict=True)
    ]
    return torch.stack(losses).mean()


def slopes_of(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(net.parameters()))])


def test_loss_and_outer_gradient_equal_a_plain_loop() -> None:
    net, source, episodes = network(), blobs(), episodes_of(blobs())
    result, expected = maml_loss(net, source, episodes, METHOD), looped_loss(net, source, episodes, METHOD)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(slopes_of(result, net), slopes_of(expected, net), rtol=0, atol=1e-10)


def test_outer_gradient_is_of_second_order() -> None:
    net, source, episodes = network(), blobs(), episodes_of(blobs())
    result = slopes_of(maml_loss(net, source, episodes, METHOD), net)
    first_order = slopes_of(looped_loss(net, source, episodes, METHOD, second_order=False), net)
    assert float((result - first_order).norm() / result.norm()) > 0.05


@pytest.mark.parametrize("observed", [1.0, 0.4])
@pytest.mark.parametrize("labels", ["majority-vote", "dawid-skene"])
def test_predictions_equal_a_plain_loop_on_the_annotators_labels(
    labels: Literal["majority-vote", "dawid-skene"], observed: float
) -> None:
    net, source, episodes = network(), blobs(), episodes_of(blobs(), 5, replace(SHAPE, observed=observed))
    method = GradientSteps(labels, steps=3, rate=0.3, dawid_skene_steps=3)
    votes = DenseVotes.from_labels(episodes.labels, 3, torch.float64)
    blind = Support(torch.zeros(5, 12, 0, dtype=torch.float64), votes)
    soft = (
        majority(votes.totals()) if labels == "majority-vote" else dawid_skene(blind, method.prior, steps=3)
    )
    expected = looped(
        net, source.inputs(episodes.support).double(), soft, source.inputs(episodes.query).double(), method
    )
    result = maml_predict(net, source, episodes, method, chunk=2)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(maml_predict(net, source, episodes, method, chunk=2), result)
    assert not result.requires_grad


def test_without_steps_predictions_are_those_of_the_network() -> None:
    net, source, episodes = network(), blobs(), episodes_of(blobs())
    expected = torch.log_softmax(net(source.inputs(episodes.query).double().flatten(0, 1)), -1).view(4, 15, 3)
    torch.testing.assert_close(
        maml_predict(net, source, episodes, GradientSteps(steps=0)), expected, rtol=0, atol=1e-12
    )


def test_annotators_who_are_always_right_give_the_true_labels() -> None:
    source = blobs()
    episodes = episodes_of(source)
    right = replace(episodes, labels=episodes.support_truth[..., None].expand(-1, -1, 5))
    for labels in ("majority-vote", "dawid-skene"):
        result = label_probabilities(right, GradientSteps(labels), torch.float64)
        assert torch.equal(result.argmax(-1), episodes.support_truth)
        assert labels == "dawid-skene" or torch.equal(
            result, nn.functional.one_hot(episodes.support_truth, 3).double()
        )
    net = network()
    log_class = maml_predict(net, source, right, METHOD)
    by_hand = -log_class.gather(2, episodes.query_truth[..., None]).sum((1, 2)).mean()
    torch.testing.assert_close(maml_loss(net, source, episodes, METHOD), by_hand, rtol=0, atol=1e-11)


def test_items_without_labels_do_not_affect_the_steps() -> None:
    net, source, episodes = network(), blobs(), episodes_of(blobs(), 2)
    support, queries = source.inputs(episodes.support).double(), source.inputs(episodes.query).double()
    labels = label_probabilities(episodes, METHOD, torch.float64)
    silent = torch.cat([labels[:, :9], torch.zeros(2, 3, 3, dtype=torch.float64)], 1)
    result = adapted_log_probabilities(net, support, silent, queries, METHOD)
    expected = adapted_log_probabilities(net, support[:, :9], labels[:, :9], queries, METHOD)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_is_by_task_and_leaves_the_network_unchanged(training: bool) -> None:
    torch.manual_seed(4)
    net = nn.Sequential(Conv4(1, 16, 4), nn.Linear(4, 3)).double().train(training)
    before, mode = deepcopy(net.state_dict()), [module.training for module in net.modules()]
    source, method = images(), GradientSteps(steps=2, rate=0.1)
    episodes = episodes_of(source, 3, replace(SHAPE, queries=2))
    plain = deepcopy(net).train()  # in training mode a batch is normalised by itself
    result, expected = maml_loss(net, source, episodes, method), looped_loss(plain, source, episodes, method)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(slopes_of(result, net), slopes_of(expected, plain), rtol=0, atol=1e-8)
    maml_predict(net, source, episodes, method)
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert mode == [module.training for module in net.modules()]
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_copy_without_running_statistics_has_none() -> None:
    net = Conv4(1, 16, 4)
    copy = without_running_statistics(net)
    assert not any("running" in name for name in copy.state_dict()) and any(
        "running" in name for name in net.state_dict()
    )
    images_here = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(copy(images_here), net.train()(images_here))


def test_training_learns_to_adapt() -> None:
    source, method = blobs(6, 3.0), GradientSteps(steps=3, rate=0.1)
    net = network().float()
    fixed = draw_episodes(source, SHAPE, Mixture(1.0, 0.0, 0.0), 100, torch.Generator().manual_seed(9))

    def score() -> float:
        return float(accuracy(maml_predict(net, source, fixed, method), fixed.query_truth).mean())

    before, optimizer, generator = (
        score(),
        torch.optim.Adam(net.parameters(), 1e-2),
        torch.Generator().manual_seed(6),
    )
    for _ in range(60):
        optimizer.zero_grad()
        maml_loss(net, source, draw_episodes(source, SHAPE, Mixture(), 16, generator), method).backward()
        optimizer.step()
    assert before < 0.85 and score() > 0.95

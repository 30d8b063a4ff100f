"""Fine-tuning: tasks fitted together equal tasks fitted one by one; missing labels have no influence."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Literal, get_args

import pytest
import torch
from meta_episodes import SHAPE, blobs, episodes_of, images
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.meta.fine_tune import Classifier, FineTuning, fine_tune, new_classifiers
from probcrowd.metrics.tensors import accuracy
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.models.encoders import MLP, Conv4
from probcrowd.simulate.annotators import Mixture
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource

Channel = Literal["crowd-layer", "conal"]
CHANNELS = get_args(Channel)
SPARSE = replace(SHAPE, observed=0.5)


def encoder() -> nn.Module:
    """In double precision."""
    torch.manual_seed(1)
    return MLP(6, [7], 5).double()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(8)


def one_by_one(
    start: list[Classifier], net: nn.Module, source: EpisodeSource, episodes: Episodes, method: FineTuning
) -> dict[int, Tensor]:
    """Fit task by task with torch.optim.Adam; in training mode `net` normalises by batch."""
    result: dict[int, list[Tensor]] = {steps: [] for steps in method.steps}
    for task, fresh in enumerate(start):
        one = deepcopy(fresh)
        one.encoder = deepcopy(net).train()
        optimizer = torch.optim.Adam(one.parameters(), method.rate)
        support, queries = (
            source.inputs(index[task][None])[0].double() for index in (episodes.support, episodes.query)
        )
        codes = episodes.labels[task]
        item, annotator = (codes >= 0).nonzero(as_tuple=True)
        weight = torch.ones(len(item), dtype=torch.float64)
        labels = AnnotationTensors(
            item, annotator, codes[item, annotator], weight, torch.arange(len(codes)), len(item) / len(codes)
        )
        for step in range(max(method.steps) + 1):
            if step in method.steps:
                result[step].append(torch.log_softmax(one.head(one.encoder(queries).flatten(1)), -1).detach())
            features = one.encoder(support).flatten(1)
            loss = one.channel.loss(
                NetworkOutput(torch.log_softmax(one.head(features), -1), features), labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {steps: torch.stack(each) for steps, each in result.items()}


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("channel", CHANNELS)
def test_tasks_fitted_together_equal_tasks_fitted_one_by_one(channel: Channel, convolutions: bool) -> None:
    source, shape = (images(), replace(SPARSE, queries=2)) if convolutions else (blobs(), SPARSE)
    net = Conv4(1, 16, 4).double() if convolutions else encoder()
    episodes, method = episodes_of(source, 3, shape), FineTuning(channel, (0, 1, 12))
    result = fine_tune(net, source, episodes, method, seeded(), chunk=2)
    start = new_classifiers(net, source.inputs(episodes.support[:1])[0].double(), episodes, method, seeded())
    assert all(
        isinstance(each.channel, {"crowd-layer": CrowdLayer, "conal": CoNAL}[channel]) for each in start
    )
    expected = one_by_one(start, net, source, episodes, method)
    assert tuple(result) == method.steps
    for steps in method.steps:
        torch.testing.assert_close(result[steps], expected[steps], rtol=0, atol=1e-8)
        assert not result[steps].requires_grad
    assert float((result[12] - result[1]).abs().max()) > 0.05


@pytest.mark.parametrize("channel", CHANNELS)
def test_codes_of_missing_labels_have_no_influence(channel: Channel) -> None:
    source, method = blobs(), FineTuning(channel, (5,))
    episodes = episodes_of(source, 3, SPARSE)
    other = replace(episodes, labels=torch.where(episodes.labels < 0, -7, episodes.labels))
    result = [fine_tune(encoder(), source, each, method, seeded())[5] for each in (episodes, other)]
    assert torch.equal(*result)


@pytest.mark.parametrize("channel", CHANNELS)
def test_an_annotator_without_labels_changes_nothing(channel: Channel) -> None:
    """But for the distance that CoNAL asks of all annotators, which is left out here."""
    source = blobs()
    episodes = episodes_of(source, 2)
    codes, inputs = episodes.labels[0].clone(), source.inputs(episodes.support)[0].double()
    codes[:, -1] = -1
    task = new_classifiers(encoder(), inputs, episodes, FineTuning(channel), seeded())[0]
    without = deepcopy(task)
    for name, parameter in without.channel.named_parameters():
        if name in ("weight", "individual", "annotators"):
            parameter.data = parameter.data[:-1]
    for one in (task.channel, without.channel):
        if isinstance(one, CoNAL):
            one.strength = 0.0
    result, expected = task(inputs, codes), without(inputs, codes[:, :-1])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-14)
    result.backward()
    expected.backward()
    for (name, parameter), other in zip(task.named_parameters(), without.parameters(), strict=True):
        slope, cut = parameter.grad, other.grad
        assert slope is not None and cut is not None
        torch.testing.assert_close(slope[: len(cut)], cut, rtol=0, atol=1e-14, msg=name)
        assert len(slope) == len(cut) or not slope[-1].any()


def test_tasks_are_independent() -> None:
    source, method = blobs(), FineTuning("conal", (6,))
    episodes = episodes_of(source, 3)
    other = replace(episodes, labels=torch.cat([episodes.labels[:2], 2 - episodes.labels[2:]]))
    result, changed = (fine_tune(encoder(), source, each, method, seeded())[6] for each in (episodes, other))
    torch.testing.assert_close(result[:2], changed[:2], rtol=0, atol=1e-12)
    assert float((result[2] - changed[2]).abs().max()) > 0.01


@pytest.mark.parametrize("channel", CHANNELS)
def test_encoder_and_global_random_state_are_unchanged(channel: Channel) -> None:
    source = images()
    net = Conv4(1, 16, 4).train()
    before, state = deepcopy(net.state_dict()), torch.get_rng_state()
    episodes, method = episodes_of(source, 3, replace(SHAPE, queries=2)), FineTuning(channel, (0, 2))
    with torch.no_grad():
        result = fine_tune(net, source, episodes, method, seeded())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    torch.manual_seed(77)
    again = fine_tune(net, source, episodes, method, seeded())
    assert all(torch.equal(result[steps], again[steps]) for steps in method.steps)
    other = fine_tune(net, source, episodes, method, torch.Generator().manual_seed(9))
    assert not torch.equal(result[0], other[0])


def test_tasks_have_heads_of_their_own() -> None:
    source = blobs()
    episodes = episodes_of(source, 3)
    start = new_classifiers(
        encoder(), source.inputs(episodes.support[:1])[0].double(), episodes, FineTuning("conal"), seeded()
    )
    assert not torch.equal(start[0].head.weight, start[1].head.weight)
    assert start[0].encoder is start[1].encoder


@pytest.mark.parametrize("channel", CHANNELS)
def test_easy_tasks_are_learned(channel: Channel) -> None:
    source = blobs(6, 5.0)
    shape = EpisodeShape(ways=3, shots=5, queries=10, annotators=7)
    episodes = episodes_of(source, 40, shape, Mixture(0.5, 0.5, 0.0))
    result = fine_tune(MLP(6, [32], 16), source, episodes, FineTuning(channel, (0, 100)), seeded())
    scores = {
        steps: float(accuracy(log_class, episodes.query_truth).mean()) for steps, log_class in result.items()
    }
    assert scores[0] < 0.6 and scores[100] > 0.95, scores

"""Contracts of all channels: loops, finite differences, permuted annotators, small trainings, state."""

from __future__ import annotations

from typing import Any

import crowd_loops as loops
import numpy as np
import pytest
import torch
from crowd_loops import MAKE, crowd, perturbed, random_labels, random_output, small_network

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.crowd.network_output import apply_network_to_all
from probcrowd.inference.crowd.training import TrainingOptions, TrainingState, train
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput
from probcrowd.models.crowd.doctor_net import DoctorNet
from probcrowd.storage.checkpoint import Checkpoint

every = pytest.mark.parametrize("name", MAKE)
J = 5
GROW = {
    "confusion volume",
    "trace",
    "union A",
    "union B",
    "conal",
}  # an annotator without labels changes their terms


def made(name: str, labels: AnnotationTensors, annotators: int = J) -> ConfusionChannel:
    torch.manual_seed(1)
    return perturbed(MAKE[name](labels, annotators))


def some_batch(labels: AnnotationTensors) -> AnnotationTensors:
    """Some of the items, in another order."""
    return next(iter(labels.batches(5, torch.Generator().manual_seed(3))))


@every
def test_label_probabilities_equal_loops(name: str) -> None:
    labels = random_labels()
    channel, part = made(name, labels), some_batch(labels)
    seen = random_output(len(part.items))
    assert seen.features is not None and len(part.item) > 5
    found = channel.log_label(seen, part)
    torch.testing.assert_close(
        found.exp().sum(1), torch.ones(len(part.item), dtype=torch.float64), rtol=1e-12, atol=0
    )
    f, x = seen.log_truth.exp().numpy(), seen.features.numpy()
    expected = [
        loops.label_probabilities(channel, f[i], x[i], j)
        for i, j in zip(part.item.tolist(), part.annotator.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found.detach().exp().numpy(), expected, rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(channel.confusion().detach().sum(2).numpy(), 1, rtol=1e-12)


@every
def test_all_labels_of_an_item_share_a_class_where_there_is_one(name: str) -> None:
    labels = random_labels()
    channel, part = made(name, labels), some_batch(labels)
    seen = random_output(len(part.items))
    found = channel.item_log_likelihood(seen, part).detach().numpy()
    confusion = channel.confusion().detach().numpy()
    truth = channel.log_truth(seen).detach().exp().numpy()
    alone = channel.log_label(seen, part).detach().numpy()
    rows = list(
        zip(
            part.item.tolist(),
            part.annotator.tolist(),
            part.label.tolist(),
            part.weight.tolist(),
            strict=True,
        )
    )
    for i in range(len(part.items)):
        if name.startswith(("crowd layer", "conal", "union")):
            expected = sum(w * alone[n, l] for n, (item, _, l, w) in enumerate(rows) if item == i)
        else:
            expected = np.log(
                sum(
                    truth[i, k] * np.prod([confusion[j, k, l] ** w for item, j, l, w in rows if item == i])
                    for k in range(3)
                )
            )
        assert found[i] == pytest.approx(expected, abs=1e-9)


@every
def test_the_loss_equals_loops(name: str) -> None:
    labels = random_labels()
    channel = made(name, labels)
    for part in labels.batches(5, torch.Generator().manual_seed(3)):
        seen, channel.degenerate = random_output(len(part.items)), torch.zeros((), dtype=torch.int64)
        if name == "running truth volume":
            channel = made(name, labels)  # whose first Gram matrix is the batch's
        np.testing.assert_allclose(
            float(channel.loss(seen, part).detach()), loops.loss(channel, seen, part), rtol=1e-9
        )
        assert not channel.degenerate


@pytest.mark.parametrize(
    "name", [name for name in MAKE if name != "running truth volume"]
)  # whose gradient is of another matrix
def test_gradients_equal_finite_differences(name: str) -> None:
    labels = random_labels()
    channel, part = made(name, labels), some_batch(labels)
    start = random_output(len(part.items))
    assert start.features is not None
    logits, features = start.log_truth.clone().requires_grad_(), start.features.clone().requires_grad_()

    def value() -> torch.Tensor:
        return channel.loss(NetworkOutput(torch.log_softmax(logits, 1), features), part)

    value().backward()
    tensors = [logits, features, *channel.parameters()]
    if isinstance(channel, DoctorNet) and channel.averages:
        assert [tensor is channel.log_weight for tensor in tensors] == [
            tensor.grad is not None for tensor in tensors
        ]
        tensors = [channel.log_weight]
    moved = 0
    with torch.no_grad():
        for tensor in tensors:
            found = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            flat, differences = tensor.view(-1), []
            for place in range(len(flat)):
                before = float(flat[place])
                both = []
                for step in (1e-5, -1e-5):
                    flat[place] = before + step
                    both.append(float(value()))
                flat[place] = before
                differences.append((both[0] - both[1]) / 2e-5)
            np.testing.assert_allclose(found.reshape(-1).numpy(), differences, rtol=1e-5, atol=1e-8)
            moved += int(found.any())
    assert moved


def carried(channel: ConfusionChannel, other: ConfusionChannel, places: torch.Tensor) -> None:
    """Gives `other` the parameters of `channel`, annotator j's at places[j]."""
    targets: dict[str, Any] = dict(other.named_parameters())
    with torch.no_grad():
        for key, value in channel.named_parameters():
            if key.startswith("heads"):
                targets[key].unflatten(0, (-1, loops.K))[places] = value.unflatten(0, (-1, loops.K))
            elif len(value) == J:
                targets[key][places] = value
            else:
                targets[key].copy_(value)


@every
def test_permuting_annotators_changes_nothing(name: str) -> None:
    labels, seen = random_labels(), random_output(9)
    places = torch.tensor([3, 0, 4, 1, 2])
    renamed = AnnotationTensors(
        labels.item,
        places[labels.annotator],
        labels.label,
        labels.weight,
        labels.items,
        labels.weight_per_item,
    )
    channel, other = made(name, labels), made(name, renamed)
    carried(channel, other, places)
    torch.testing.assert_close(
        other.log_label(seen, renamed), channel.log_label(seen, labels), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(other.confusion()[places], channel.confusion(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.loss(seen, renamed), channel.loss(seen, labels), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(other.log_label(seen, labels), channel.log_label(seen, labels))


@every
def test_an_annotator_without_labels_changes_no_cross_entropy(name: str) -> None:
    labels, seen = random_labels(), random_output(9)
    channel, other = made(name, labels), made(name, labels, J + 1)
    carried(channel, other, torch.arange(J))
    same = torch.allclose(
        other.log_label(seen, labels), channel.log_label(seen, labels), rtol=1e-12, atol=1e-12
    )
    assert same is (name != "union B")  # there x tells who answers, and who answers tells of x
    torch.testing.assert_close(other.confusion()[:J], channel.confusion(), rtol=1e-12, atol=1e-12)
    assert torch.isfinite(other.confusion()).all()
    same = torch.allclose(other.loss(seen, labels), channel.loss(seen, labels), rtol=1e-12, atol=1e-12)
    assert same is (name not in GROW)


@every
def test_the_state_dict_restores_a_channel(name: str) -> None:
    labels, seen = random_labels(), random_output(9)
    channel = made(name, labels)
    for epoch in range(3):
        channel.start_epoch(epoch, 4, lambda: seen)
    fresh = MAKE[name](labels, J).double()
    assert not any("training_labels" in key for key in channel.state_dict())
    fresh.load_state_dict(channel.state_dict())
    torch.testing.assert_close(fresh.log_label(seen, labels), channel.log_label(seen, labels), rtol=0, atol=0)
    torch.testing.assert_close(fresh.log_truth(seen), channel.log_truth(seen), rtol=0, atol=0)
    torch.testing.assert_close(fresh.confusion(), channel.confusion(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in MAKE if name != "doctor net, averaging"]
)  # which training begins anew
def test_a_small_crowd_is_learned(name: str) -> None:
    inputs, labels, truth = crowd()
    network = small_network()
    channel = MAKE[name](labels, 10)
    stands = train(
        network,
        channel,
        lambda items: inputs[items],
        labels,
        TrainingOptions(epochs=15, batch=32, learning_rate=2e-2),
        seed=5,
    )
    seen = apply_network_to_all(network, channel, lambda items: inputs[items], labels.items)
    right = (channel.log_truth(seen).argmax(1) == truth).double().mean()
    assert right > 0.85, (name, float(right))
    assert len(stands.history) == 15
    confusion = channel.confusion().detach()
    diagonal = confusion.diagonal(dim1=1, dim2=2).mean(1)
    assert diagonal[-3:].mean() > diagonal[:3].mean(), name


@pytest.mark.parametrize("name", ["raykar", "mbem", "max-mig", "conal", "doctor net"])
def test_resumed_training_is_bit_identical(name: str) -> None:
    inputs, labels, _ = crowd(items=40)
    kept: list[tuple[Any, Any]] = []

    def trained(resume: Checkpoint | None) -> dict[str, torch.Tensor]:
        network = small_network()
        torch.manual_seed(2)
        channel = MAKE[name](labels, 10)
        train(
            network,
            channel,
            lambda items: inputs[items],
            labels,
            TrainingOptions(epochs=5, batch=10),
            resume=resume,
            keep=lambda *now: kept.append(now),
        )
        return {
            **network.state_dict(),
            **{f"channel {key}": value for key, value in channel.state_dict().items()},
        }

    whole = trained(None)
    for done in (1, 3, 4):
        again = trained(Checkpoint(*kept[done - 1]))
        assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "finished"),
    [
        (9, 0, None, False),  # of ten epochs
        (10, 0, None, True),
        (6, 4, 3, False),  # two epochs without a better score
        (7, 4, 3, True),
        (9, 0, 3, False),  # nothing was scored
    ],
)
def test_training_ends_after_all_epochs_or_when_patience_runs_out(
    epoch: int, best: int, patience: int | None, finished: bool
) -> None:
    state = TrainingState(epoch, best)
    assert state.finished(TrainingOptions(epochs=10, patience=patience)) is finished
    assert state.selected == (best or epoch)

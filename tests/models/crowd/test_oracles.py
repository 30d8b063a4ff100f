"""Each channel in special cases with known answers, and its initial values."""

from __future__ import annotations

import math

import crowd_loops as loops
import numpy as np
import pytest
import torch
from crowd_loops import D, K, close, never, perturbed, random_labels, random_output, rows_of

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, diagonal_logit, diagonal_logits
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.models.crowd.doctor_net import DoctorNet
from probcrowd.models.crowd.max_mig import MaxMIG
from probcrowd.models.crowd.mbem import MBEM
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.crowd.raykar import Raykar
from probcrowd.models.crowd.union_net import UnionNet

J = 5


# Mixture and log-linear


def test_the_two_families_agree_where_f_is_sure_and_else_are_means_of_two_kinds() -> None:
    labels, seen = random_labels(), random_output(9)
    layer = perturbed(CrowdLayer(J, K))
    assert isinstance(layer, CrowdLayer) and layer.weight is not None
    mixture = Mixture(layer.weight.detach()).double()
    close(layer.confusion(), mixture.confusion())
    sure = NetworkOutput(torch.log_softmax(1e4 * seen.log_truth, 1).clamp_min(-1e3))
    close(layer.log_label(sure, labels), mixture.log_label(sure, labels))
    f = seen.log_truth.exp().numpy()
    rows = layer.confusion().detach().numpy()
    said = list(zip(labels.item.tolist(), labels.annotator.tolist(), strict=True))
    geometric = np.array(
        [[math.prod(rows[j, k, l] ** f[i, k] for k in range(K)) for l in range(K)] for i, j in said]
    )
    close(layer.log_label(seen, labels).exp(), geometric / geometric.sum(1, keepdims=True))
    assert (layer.log_label(seen, labels) - mixture.log_label(seen, labels)).abs().max() > 0.01


def test_one_annotator_who_is_always_right_leaves_plain_cross_entropy() -> None:
    seen, truth = random_output(6), torch.tensor([0, 2, 1, 1, 0, 2])
    labels = rows_of(*((i, 0, int(l)) for i, l in enumerate(truth)), items=6)
    expected = -seen.log_truth[torch.arange(6), truth].mean()
    right = diagonal_logits(60.0, 1, K).double()
    close(Mixture(right).double().loss(seen, labels), expected)
    close(Mixture(right, trace=0.25).double().loss(seen, labels), expected + 0.25 * K)
    for channel in (Raykar(1, K, labels, concentration=1.0), MBEM(1, K, labels)):
        close(channel.confusion(), torch.eye(K)[None])
        close(channel.loss(seen, labels), expected)
        close(labels.cross_entropy(channel.log_label(seen, labels)), expected)


def test_a_crowd_layer_starts_where_it_should() -> None:
    for kind in ("MW", "VW", "VW+B", "SW"):
        confusion = CrowdLayer(J, K, kind, 1.5).double().confusion()
        close(
            confusion.diagonal(dim1=1, dim2=2),
            torch.full((J, K), math.exp(1.5) / (math.exp(1.5) + K - 1), dtype=torch.float64),
        )
    close(CrowdLayer(J, K, "VB", 1.5).double().confusion(), CrowdLayer(J, K).double().confusion())
    sizes = {
        kind: sum(part.numel() for part in CrowdLayer(J, K, kind).parameters())
        for kind in ("MW", "VW", "VB", "VW+B", "SW")
    }
    assert sizes == {"MW": J * K * K, "VW": J * K, "VB": J * K, "VW+B": 2 * J * K, "SW": J}


def test_invalid_options_are_errors() -> None:
    labels = random_labels()
    with pytest.raises(ValueError, match="kind='XL': choose one of MW, VW"):
        CrowdLayer(J, K, "XL")
    with pytest.raises(ValueError, match="kind='C': choose one of A, B"):
        UnionNet(J, K, "C")
    with pytest.raises(ValueError, match=r"concentration=0\.5.*at least 1"):
        Raykar(J, K, labels, concentration=0.5)
    with pytest.raises(ValueError, match="rounds=0"):
        MBEM(J, K, labels, rounds=0)
    for averaging in (-0.01, 1.01):
        with pytest.raises(ValueError, match=f"averaging={averaging}"):
            DoctorNet(J, K, D, labels, averaging=averaging)
    for accuracy in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"initial_accuracy={accuracy}"):
            diagonal_logit(accuracy, K)
    assert diagonal_logit(1e-9, K) < 0 < diagonal_logit(1 - 1e-9, K)
    for channel in (CoNAL(J, K, D).double(), DoctorNet(J, K, D, labels).double()):
        with pytest.raises(ValueError, match="features"):
            channel.log_label(NetworkOutput(random_output(9).log_truth), labels)


# CoNAL


def test_neither_part_of_conal_can_be_switched_off() -> None:
    labels, channel = random_labels(), CoNAL(J, K, D).double()
    for scale in (1e-6, 1.0, 1e6):
        share = channel.common_share(
            NetworkOutput(random_output(9).log_truth, scale * torch.randn(9, D, dtype=torch.float64)), labels
        )
        assert 0.2689 <= share.min() and share.max() <= 0.7311
    with torch.no_grad():  # the same direction, and the opposite one
        channel.embedding.weight.zero_()
        for sign, extreme in ((1, 0.7310585786300049), (-1, 0.2689414213699951)):
            channel.annotators.copy_(sign * channel.embedding.bias.expand(J, -1))
            close(channel.common_share(random_output(9), labels), np.full(len(labels.item), extreme))


def test_conal_without_what_is_common_is_a_crowd_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, seen = random_labels(), random_output(9)
    channel, layer = CoNAL(J, K, D).double(), CrowdLayer(J, K, size=2.0).double()
    close(channel.loss(seen, labels), layer.loss(seen, labels))  # at the start both parts are alike
    channel, layer = perturbed(CoNAL(J, K, D, strength=0.0)), perturbed(CrowdLayer(J, K))
    assert isinstance(channel, CoNAL) and isinstance(layer, CrowdLayer) and layer.weight is not None
    layer.weight.data = channel.individual.data
    assert abs(channel.loss(seen, labels) - layer.loss(seen, labels)) > 1e-3
    monkeypatch.setattr(
        channel, "common_share", lambda seen, labels: torch.zeros(len(labels.item), dtype=torch.float64)
    )
    close(channel.loss(seen, labels), layer.loss(seen, labels))


def test_the_distance_of_conal_grows_and_has_no_gradient_at_its_start() -> None:
    labels, seen = random_labels(), random_output(9)
    weak, strong = (CoNAL(J, K, D, strength=strength).double() for strength in (0.0, 10.0))
    strong.load_state_dict(weak.state_dict())
    values = [channel.loss(seen, labels) for channel in (weak, strong)]
    close(values[1], values[0].detach())
    for value in values:
        value.backward()
    assert weak.individual.grad is not None and strong.individual.grad is not None
    close(strong.individual.grad, weak.individual.grad)
    with torch.no_grad():
        strong.individual[0, 0, 1] += 3.0
        weak.load_state_dict(strong.state_dict())
        close(strong.loss(seen, labels), weak.loss(seen, labels) - 10 * 3.0)


# UnionNet


def test_a_union_is_one_distribution_and_starts_like_the_others() -> None:
    for kind in ("A", "B"):
        channel = UnionNet(J, K, kind).double()
        close(channel.confusion().diagonal(dim1=1, dim2=2), np.full((J, K), math.e / (math.e + K - 1)))
        close(channel.share(), np.full((K, J), 1 / J))
        moved = perturbed(channel)
        assert isinstance(moved, UnionNet)
        union = np.array([loops.softmax(moved.logits[:, k].detach().numpy()) for k in range(K)])  # (k, j, l)
        close(moved.share(), union.sum(2))
        close(moved.confusion(), (union / union.sum(2, keepdims=True)).transpose(1, 0, 2))


def test_labels_of_an_item_share_its_weight_in_a_union() -> None:
    seen = random_output(4)
    few = rows_of((0, 1, 2), (1, 0, 0), (2, 3, 1), (3, 1, 1), items=4)
    sure = NetworkOutput(torch.log_softmax(1e4 * seen.log_truth, 1).clamp_min(-1e3))
    for form, one in (
        ("one label each, any f", few),
        ("several", rows_of((0, 1, 2), (0, 2, 1), (1, 0, 0), (2, 3, 1), (3, 1, 1), items=4)),
    ):
        a, b = (perturbed(UnionNet(J, K, kind)) for kind in ("A", "B"))
        same = torch.allclose(a.loss(sure, one), b.loss(sure, one), rtol=1e-10)
        assert same is (form != "several")  # A takes raw labels, B shares of them
    thrice = AnnotationTensors(
        few.item, few.annotator, few.label, 3 * few.weight, few.items, 3 * few.weight_per_item
    )
    close(b.loss(seen, thrice), b.loss(seen, few).detach())
    close(a.loss(seen, thrice), 3 * a.loss(seen, few).detach())


# Max-MIG


@pytest.mark.parametrize("per_class", [1, 4])
def test_two_that_agree_and_are_sure_tell_all(per_class: int) -> None:
    """f = h one-hot and balanced: -log K - 1 + K (b - 1) / (K b - 1)."""
    items = K * per_class
    truth = np.arange(items) % K
    labels = rows_of(*((i, 0, int(k)) for i, k in enumerate(truth)), items=items)
    channel = MaxMIG(1, K, labels, eps=1e-30)
    f = torch.log_softmax(100 * torch.eye(K, dtype=torch.float64)[truth], 1)
    close(channel.log_aggregated(labels).exp(), np.eye(K)[truth])
    close(
        channel.loss(NetworkOutput(f), labels),
        np.array(-math.log(K) - 1 + K * (per_class - 1) / (K * per_class - 1)),
    )


def test_max_mig_starts_at_the_posterior_of_dawid_and_skene() -> None:
    labels, prior = random_labels(), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    channel = MaxMIG(J, K, labels, class_prior=prior)
    votes = labels.votes(K).numpy()
    shares = np.where(
        votes.sum(1, keepdims=True) > 0, votes / np.maximum(votes.sum(1, keepdims=True), 1e-9), 1 / K
    )
    counts = np.zeros((J, K, K))
    rows = list(
        zip(
            labels.item.tolist(),
            labels.annotator.tolist(),
            labels.label.tolist(),
            labels.weight.tolist(),
            strict=True,
        )
    )
    for i, j, l, w in rows:
        counts[j, :, l] += w * shares[i]
    confusion = counts / counts.sum(2, keepdims=True) + 0.01
    close(channel.weight.exp(), confusion)
    close(channel.confusion(), confusion / confusion.sum(2, keepdims=True))
    h = np.tile(prior.numpy(), (9, 1))
    for i, j, l, w in rows:
        h[i] *= confusion[j, :, l] ** w
    close(channel.log_aggregated(labels).exp(), h / h.sum(1, keepdims=True))
    close(MaxMIG(J, K, labels).log_aggregated(labels)[-1].exp(), np.full(K, 1 / K))


def test_one_item_has_no_pairs() -> None:
    labels = rows_of((0, 0, 1), items=1)
    channel, f = MaxMIG(1, K, labels), random_output(1)
    value = channel.loss(f, labels)
    value.backward()
    close(
        value, -torch.logsumexp(f.log_truth + channel.log_aggregated(labels) + math.log(K), 1)[0].detach() - 1
    )
    assert channel.weight.grad is not None and torch.isfinite(channel.weight.grad).all()


def test_extreme_probabilities_stay_finite() -> None:
    labels = random_labels()
    sure = NetworkOutput(torch.log_softmax(torch.randn(9, K) * 1e4, 1))
    single = AnnotationTensors(
        labels.item,
        labels.annotator,
        labels.label,
        labels.weight.float(),
        labels.items,
        labels.weight_per_item,
    )
    channels: list[ConfusionChannel] = [
        MaxMIG(J, K, single),
        UnionNet(J, K),
        CrowdLayer(J, K),
        Raykar(J, K, single, concentration=1.0),
    ]
    for channel in channels:
        channel.start_epoch(1, 2, lambda: sure)
        assert torch.isfinite(channel.loss(sure, single)), type(channel)


# DoctorNet


def test_doctors_who_are_absent_get_no_gradient_and_none_is_asked_twice() -> None:
    labels, seen = (
        rows_of((0, 0, 0), (0, 2, 0), (1, 2, 1), (2, 0, 1), (2, 2, 2), (2, 3, 1), items=4),
        random_output(4),
    )
    channel = perturbed(DoctorNet(J, K, D, labels))
    assert isinstance(channel, DoctorNet)
    channel.start_epoch(9, 10, lambda: seen)
    assert channel.averages
    channel.loss(seen, labels).backward()
    assert channel.log_weight.grad is not None
    assert [bool(part) for part in channel.log_weight.grad] == [True, False, True, True, False]
    assert channel.heads.weight.grad is None and channel.heads.bias.grad is None
    alone = rows_of((1, 2, 1), items=4)
    with torch.no_grad():
        heads = channel.log_label(seen, alone)
        close(
            channel.loss(seen, alone), -heads[0, 1] / 4
        )  # the mean of one head is that head, whatever its weight


def test_the_last_epochs_are_for_averaging() -> None:
    labels, seen = random_labels(), random_output(9)
    for averaging, epochs, first in (
        (0.2, 10, 8),
        (0.2, 2, 1),
        (0.2, 1, 1),
        (0.0, 10, 10),
        (1.0, 4, 1),
        (0.5, 7, 3),
    ):
        channel = DoctorNet(J, K, D, labels, averaging=averaging).double()
        found = []
        for epoch in range(epochs):
            channel.start_epoch(epoch, epochs, lambda: seen)
            found.append(channel.averages)
        assert found == [epoch >= first for epoch in range(epochs)], (averaging, epochs)


def test_a_doctor_net_answers_with_the_mean_of_all_and_counts_confusions_from_it() -> None:
    labels, seen = random_labels(), random_output(9)
    channel = perturbed(DoctorNet(J, K, D, labels))
    assert isinstance(channel, DoctorNet) and seen.features is not None
    values = {name: value.detach().numpy() for name, value in channel.state_dict().items()}
    w = np.exp(values["log_weight"])
    mean = np.array(
        [sum(w[j] * loops.head(values, x, j) for j in range(J)) / w.sum() for x in seen.features.numpy()]
    )
    close(channel.log_truth(seen).exp(), mean)
    start = channel.confusion().clone()
    channel.start_epoch(0, 9, never)
    close(channel.confusion(), start)
    channel.start_epoch(1, 9, lambda: seen)
    counts = np.zeros((J, K, K))
    for i, j, l, weight in zip(labels.item, labels.annotator, labels.label, labels.weight, strict=True):
        counts[j, :, l] += float(weight) * mean[i]
    pooled = counts.sum(0) + 1 / K
    counts += pooled / pooled.sum(1, keepdims=True)
    close(channel.confusion(), counts / counts.sum(2, keepdims=True))
    assert not channel.confusion().requires_grad
    many = random_output(600)
    assert many.features is not None
    parts = [
        channel.log_truth(NetworkOutput(many.log_truth[part], many.features[part]))
        for part in (slice(0, 100), slice(100, 600))
    ]
    close(channel.log_truth(many), torch.cat(parts).detach())

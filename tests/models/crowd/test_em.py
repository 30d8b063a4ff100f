"""Channels that run EM: Raykar equals Dawid-Skene with an intercept; MBEM's rounds by hand."""

from __future__ import annotations

import math

import crowd_loops as loops
import numpy as np
import pytest
import torch
from crowd_loops import K, close, never, random_labels, random_output, rows_of
from torch import Tensor

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import NetworkOutput
from probcrowd.models.crowd.mbem import MBEM
from probcrowd.models.crowd.raykar import Raykar

J = 5


# Raykar


def dawid_skene(labels: AnnotationTensors, annotators: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Maximum likelihood by EM from vote shares, loop by loop: posteriors and confusions."""
    rows = list(
        zip(
            labels.item.tolist(),
            labels.annotator.tolist(),
            labels.label.tolist(),
            labels.weight.tolist(),
            strict=True,
        )
    )
    q = np.zeros((len(labels.items), K))
    for i, _, l, w in rows:
        q[i, l] += w
    q /= q.sum(1, keepdims=True)
    for _ in range(steps):
        pi, counts = q.mean(0), np.zeros((annotators, K, K))
        for i, j, l, w in rows:
            counts[j, :, l] += w * q[i]
        confusion = counts / counts.sum(2, keepdims=True)
        log_q = np.tile(np.log(pi), (len(q), 1))
        for i, j, l, w in rows:
            log_q[i] += w * np.log(np.maximum(confusion[j, :, l], 1e-300))
        q = np.array([loops.softmax(row) for row in log_q])
    return q, confusion


def easy_labels(items: int = 80, annotators: int = 4) -> AnnotationTensors:
    rng = np.random.default_rng(4)
    truth = rng.choice(K, items, p=[0.5, 0.3, 0.2])
    item, annotator = np.nonzero(rng.random((items, annotators)) < 0.85)
    label = np.where(rng.random(len(item)) < 0.8, truth[item], rng.integers(0, K, len(item)))
    assert len(np.unique(item)) == items
    parts = (torch.from_numpy(part) for part in (item, annotator, label, np.ones(len(item))))
    return AnnotationTensors(*parts, torch.arange(items), len(item) / items)


def test_with_an_intercept_alone_raykar_is_dawid_skene_and_never_falls() -> None:
    labels = easy_labels()
    channel = Raykar(4, K, labels, concentration=1.0)
    before, log_f = -math.inf, channel.posterior.mean(0).log()
    for epoch in range(400):
        channel.start_epoch(epoch, 400, lambda: NetworkOutput(log_f.expand(80, K)))  # noqa: B023  (called at once)
        close(channel.confusion().sum(2), np.ones((4, K)))
        log_f = channel.posterior.mean(0).log()
        likelihood = float(
            torch.logsumexp(log_f + labels.log_likelihood(channel.matrices.clamp_min(1e-300).log()), 1).sum()
        )
        assert likelihood >= before - 1e-10
        before = likelihood
    q, confusion = dawid_skene(labels, 4, 1000)
    close(channel.posterior, q, 1e-10)
    close(channel.confusion(), confusion, 1e-10)


def test_raykar_has_none_of_three_published_faults() -> None:
    labels, seen = random_labels(), random_output(9)
    channel = Raykar(J, K, labels)
    start = channel.confusion().clone()
    channel.start_epoch(0, 3, never)
    close(channel.posterior, torch.nan_to_num(labels.votes(K) / labels.votes(K).sum(1, keepdim=True), 1 / K))
    channel.start_epoch(1, 3, lambda: seen)
    rows = list(
        zip(
            labels.item.tolist(),
            labels.annotator.tolist(),
            labels.label.tolist(),
            labels.weight.tolist(),
            strict=True,
        )
    )

    def expected(confusion: Tensor) -> np.ndarray:
        q = seen.log_truth.exp().numpy().copy()
        for i, j, l, w in rows:
            q[i] *= confusion[j, :, l].numpy() ** w
        return q

    q = expected(start)
    assert (q.sum(1)[:-1] < 0.7).all()  # never normalised: the more labels an item has the less it weighs
    q /= q.sum(1, keepdims=True)
    counts, of_f = np.zeros((J, K, K)), np.zeros((J, K, K))
    for i, j, l, w in rows:
        counts[j, :, l] += w * q[i]
        of_f[j, :, l] += w * seen.log_truth.exp().numpy()[i]
    close(channel.confusion(), (counts + 1) / (counts + 1).sum(2, keepdims=True))
    assert (
        np.abs((counts + 1) / counts.sum(2, keepdims=True) - channel.confusion().numpy()).min() > 0.01
    )  # the prior not in the divisor
    assert (
        np.abs((of_f + 1) / (of_f + 1).sum(2, keepdims=True) - channel.confusion().numpy()).max() > 0.01
    )  # counted from f
    again = expected(channel.confusion())
    close(channel.posterior, again / again.sum(1, keepdims=True))
    close(channel.posterior[-1], seen.log_truth[-1].exp())  # no labels, only f


def test_who_did_not_label_an_item_is_not_taken_to_have_said_the_last_class() -> None:
    """The table [[0, -1], [1, 1]]: with -1 as an index, annotator 1 would give item 0 the last class."""
    labels, f = rows_of((0, 0, 0), (1, 0, 1), (1, 1, 1), items=2), random_output(2)
    channel = Raykar(2, K, labels)
    channel.start_epoch(1, 2, lambda: f)
    confusion = channel.confusion()
    close(confusion[1, :, K - 1], confusion[1, :, 0])  # one label each of the prior, no other
    right = f.log_truth[0].exp() * confusion[0, :, 0]
    faulty = right * confusion[1, :, K - 1]
    close(channel.posterior[0], right / right.sum())
    assert (channel.posterior[0] - faulty / faulty.sum()).abs().max() > 0.01


def test_the_prior_of_raykar_fills_rows_without_labels() -> None:
    labels = random_labels()
    channel = Raykar(J + 1, K, labels, concentration=1.5, diagonal=2.0)
    row = (0.5 + 2 * np.eye(K)) / (0.5 * K + 2)
    close(channel.confusion()[J], row)
    close(Raykar(J + 1, K, labels, concentration=1.0).confusion()[J], np.full((K, K), 1 / K))


# MBEM


def test_a_round_of_mbem_by_hand() -> None:
    labels = rows_of((0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 0), (2, 0, 2), items=3)
    channel = MBEM(3, K, labels)
    close(channel.targets, [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    f = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
    for epoch in range(4):
        channel.start_epoch(epoch, 8, never)
    channel.start_epoch(4, 8, lambda: NetworkOutput(f.log()))
    first = np.array([[0.8, 0.3, 0.2], [0.1, 0.6, 0.2], [0.1, 0.1, 0.6]])  # rows: truth; columns: said
    first /= first.sum(1, keepdims=True)
    close(channel.confusion(), np.array([first, [[1, 0, 0]] * K, np.full((K, K), 1 / K)]))
    close(
        channel.targets, np.array([first[:, l] / first[:, l].sum() for l in (0, 1, 2)])
    )  # annotator 1 tells nothing, nor does f
    for epoch in range(5, 8):
        channel.start_epoch(epoch, 8, never)


def test_cells_without_counts_rule_nothing_out() -> None:
    labels = rows_of((0, 0, 0), (1, 0, 1), items=2)
    channel = MBEM(1, K, labels)
    channel.start_epoch(
        1, 2, lambda: NetworkOutput(torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.float64).log())
    )
    close(channel.confusion(), np.array([[[1, 0, 0], [0, 1, 0], [1 / 3] * 3]]))
    expected = np.array([1, 1e-10, 1 / 3]) / (4 / 3 + 1e-10)
    torch.testing.assert_close(
        channel.targets, torch.tensor(np.array([expected, expected[[1, 0, 2]]])), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(
    ("rounds", "epochs", "expected"), [(1, 6, []), (2, 6, [3]), (3, 7, [2, 4]), (5, 2, [1]), (2, 1, [])]
)
def test_rounds_share_the_epochs(rounds: int, epochs: int, expected: list[int]) -> None:
    channel, asked = MBEM(J, K, random_labels(), rounds=rounds), []
    for epoch in range(epochs):
        channel.start_epoch(epoch, epochs, lambda: asked.append(epoch) or random_output(9))  # noqa: B023  (called at once)
    assert asked == expected

"""Volumes and coupled cross-entropy: values, gradients, bounds, singular batches, and the Pyro model."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from probcrowd.data.rows import Rows
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import NetworkOutput, diagonal_logit, diagonal_logits
from probcrowd.models.crowd.coupled import coupled
from probcrowd.models.crowd.kernels import gram
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.crowd.volume import RIDGE, SINGULAR, add_log_volume, by_class, log_det, log_volume

TERMS = [
    {},
    {"truth_volume": 0.3},
    {"confusion_volume": 0.2},
    {"trace": 0.7},
    {"truth_volume": 0.3, "running": True, "num_items": 7},
]


def crowd(
    seed: int = 0, items: int = 7, annotators: int = 4, classes: int = 3
) -> tuple[AnnotationTensors, NetworkOutput, Rows]:
    """A few labels in double precision, with weights, and what a network says."""
    rng = np.random.default_rng(seed)
    item = np.sort(rng.integers(items, size=15))
    annotator, label = rng.integers(annotators, size=15), rng.integers(classes, size=15)
    rows = Rows(
        item, annotator, label, rng.integers(1, 3, 15).astype(float), np.full(items, -1), annotators, classes
    )
    log_truth = torch.log_softmax(torch.from_numpy(rng.normal(size=(items, classes))), 1)
    return AnnotationTensors.of(rows, dtype=torch.float64), NetworkOutput(log_truth), rows


def channel(seed: int = 1, **terms: object) -> Mixture:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(4, 3, 3)))
    return Mixture(logits, **terms)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("batch", "classes", "expected"), [(400, 10, 36.8888), (64, 10, 18.5630), (100, 8, 20.2058)]
)
def test_the_largest_truth_volume_is_of_balanced_certain_items(
    batch: int, classes: int, expected: float
) -> None:
    """The bound is K log(B / K).

    64 and 100 items cannot be split evenly over 10 and 8 classes, so a Gram matrix of that trace is used.
    """
    assert log_det(np.eye(classes) * batch / classes)[0] == pytest.approx(expected, abs=1e-4)
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        log_truth = torch.log_softmax(3 * torch.randn(batch, classes, generator=rng, dtype=torch.float64), 1)
        assert float(log_volume(log_truth)[0]) < expected


@pytest.mark.parametrize(
    ("classes", "annotators", "expected"),
    [
        (8, 59, 8.3627),
        (10, 5, -18.4625),
        (10, 15, -7.4764),
        (10, 44, 3.2850),
        (10, 59, 6.2185),
        (3, 2, -1.9610),
    ],
)
def test_the_confusion_volume_of_the_published_start(classes: int, annotators: int, expected: float) -> None:
    value, singular = log_volume(by_class(diagonal_logits(1.0, annotators, classes).double()))
    assert value.item() == pytest.approx(expected, abs=1e-4) and not singular


@pytest.mark.parametrize(
    ("classes", "annotators", "expected"),
    [(10, 5, 16.0944), (10, 15, 27.0805), (10, 59, 40.7754), (8, 59, 32.6203)],
)
def test_the_largest_confusion_volume_is_of_permutations(
    classes: int, annotators: int, expected: float
) -> None:
    rng = np.random.default_rng(0)
    matrices = np.stack([np.eye(classes)[rng.permutation(classes)] for _ in range(annotators)])
    value, _ = log_volume(torch.from_numpy(matrices).transpose(1, 2).reshape(-1, classes).log())
    assert float(value) == pytest.approx(expected, abs=1e-4)
    some = torch.from_numpy(rng.normal(size=(annotators, classes, classes)))
    assert float(log_volume(by_class(some))[0]) < expected


def test_gram_matrices_are_over_true_classes() -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(4, 3, 3)), rng.dirichlet(np.ones(3), 7)
    confusion = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    stacked = np.concatenate([matrix.T for matrix in confusion])  # the paper's W: columns are true classes
    rows, found = gram(by_class(torch.from_numpy(logits)).numpy())
    np.testing.assert_allclose(found, stacked.T @ stacked, atol=1e-14)
    np.testing.assert_allclose(
        rows.reshape(3, 4, 3)[2, 1], confusion[1, :, 2], atol=1e-14
    )  # label 2 of annotator 1
    np.testing.assert_allclose(gram(np.log(truth))[1], truth.T @ truth, atol=1e-14)


@pytest.mark.parametrize("size", [2, 3, 10, 40])
def test_log_determinants_and_inverses(size: int) -> None:
    rows = np.random.default_rng(0).normal(size=(2 * size, size))
    value, inverse, singular = log_det(rows.T @ rows)
    assert value == pytest.approx(np.linalg.slogdet(rows.T @ rows)[1], abs=1e-10) and not singular
    np.testing.assert_allclose(inverse @ rows.T @ rows, np.eye(size), atol=1e-10)


@pytest.mark.parametrize("kind", ["truth", "confusion"])
def test_gradients_are_those_of_the_log_determinant(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if kind == "truth":
        leaf = torch.randn(7, 3, generator=generator, dtype=torch.float64).requires_grad_()
        log_rows = torch.log_softmax(leaf, 1)
    else:
        leaf = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64).requires_grad_()
        log_rows = by_class(leaf)
    rows = log_rows.exp()
    value = log_volume(log_rows)[0]
    expected = torch.logdet(rows.T @ rows)
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    found, other = (torch.autograd.grad(result, leaf, retain_graph=True)[0] for result in (value, expected))
    torch.testing.assert_close(found, other, atol=1e-10, rtol=0)
    d_rows = 2 * torch.linalg.solve(rows.T @ rows, rows.T).T  # the gradient that the specification gives
    torch.testing.assert_close(
        torch.autograd.grad(value, log_rows, retain_graph=True)[0], d_rows * rows, atol=1e-10, rtol=0
    )


def test_along_the_ambiguity_one_volume_rises_by_what_the_other_falls() -> None:
    rng = np.random.default_rng(0)
    truth, confusion, mix = (rng.normal(size=size) for size in ((9, 3), (4, 3, 3), (3, 3)))
    other_truth, other = truth @ mix, np.linalg.solve(mix, confusion)
    np.testing.assert_allclose(
        np.einsum("nt,jtl->njl", other_truth, other), np.einsum("nt,jtl->njl", truth, confusion), atol=1e-10
    )
    sums = []
    for f, c in ((truth, confusion), (other_truth, other)):
        stacked = c.transpose(0, 2, 1).reshape(-1, 3)
        sums.append(log_det(f.T @ f)[0] + log_det(stacked.T @ stacked)[0])
    assert sums[0] == pytest.approx(sums[1], abs=1e-9)


@pytest.mark.parametrize("kind", ["alike", "few"])
def test_what_is_singular_is_counted_and_still_pushes_apart(kind: str) -> None:
    labels, _, _ = crowd()
    start = torch.zeros(7, 3, dtype=torch.float64)
    if kind == "few":
        start = start[:2] + torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
        labels = AnnotationTensors(
            *(part[:0] for part in (labels.item, labels.annotator, labels.label, labels.weight)),
            torch.arange(2),
            2.0,
        )
    leaf = start.requires_grad_()
    made = channel(truth_volume=0.5)
    loss = made.loss(NetworkOutput(torch.log_softmax(leaf, 1)), labels)
    loss.backward()
    assert (
        int(made.degenerate) == 1
        and math.isfinite(loss.item())
        and leaf.grad is not None
        and bool(torch.isfinite(leaf.grad).all())
    )
    fine = channel(truth_volume=0.5)
    fine.loss(crowd()[1], crowd()[0])
    assert int(fine.degenerate) == 0


def test_a_ridge_is_a_thousandth_of_the_mean_eigenvalue_and_only_where_it_is_needed() -> None:
    value, inverse, singular = log_det(np.diag([2.0, 1.0, 0.0]))
    assert singular and value == pytest.approx(sum(math.log(x + RIDGE) for x in (2, 1, 0)), abs=1e-12)
    np.testing.assert_allclose(inverse, np.diag([1 / (x + RIDGE) for x in (2, 1, 0)]), atol=1e-9)
    limit = SINGULAR * 1.0  # of the mean eigenvalue of diag(2 - p, 1, p), at the smallest pivot p
    for pivot, expected in ((0.99 * limit, True), (1.01 * limit, False)):
        assert log_det(np.diag([2.0 - pivot, 1.0, pivot]))[2] is expected
    value, _, singular = log_det(np.diag([2.0, 1.0, 1e-4]))
    assert not singular and value == pytest.approx(math.log(2e-4), abs=1e-12)


def test_a_running_volume_has_the_gradient_of_all_items() -> None:
    """Gradients of batches covering all items add up to the full one, if the running mean is that of all."""
    log_truth = torch.log_softmax(
        torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1
    )
    whole = gram(log_truth.numpy())[1] / 3  # of as many items as a batch has
    found = torch.zeros_like(log_truth)
    for part, of_part in zip(log_truth.split(4), found.split(4), strict=True):
        value, singular = add_log_volume(part, 1 / 3, of_part, whole)
        assert value * 3 == pytest.approx(np.linalg.slogdet(whole)[1], abs=1e-12) and not singular
    leaf = log_truth.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_volume(leaf)[0], leaf)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_running_mean_forgets_within_about_an_epoch() -> None:
    made = channel(truth_volume=1.0, running=True, num_items=21)
    labels, seen, _ = crowd()
    first = torch.from_numpy(gram(seen.log_truth.numpy())[1]) / 7
    made.loss(seen, labels)
    torch.testing.assert_close(made.gram / made.gram_weight, first)
    sure = NetworkOutput(torch.log_softmax(50 * torch.eye(3, dtype=torch.float64)[torch.arange(7) % 3], 1))
    for _ in range(30):
        made.loss(sure, labels)
    left = (2 / 3) ** 30
    torch.testing.assert_close(
        made.gram / made.gram_weight,
        torch.from_numpy(gram(sure.log_truth.numpy())[1]) / 7,
        atol=2 * left + 1e-12,
        rtol=0,
    )


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: " ".join(map(str, terms)) or "ccem")
def test_loss_equals_loops(terms: dict[str, float]) -> None:
    labels, seen, rows = crowd()
    made = channel(**terms)
    confusion, truth = made.confusion().detach().numpy(), seen.log_truth.exp().numpy()
    total = 0.0
    for i, j, l, w in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True):
        total -= w * math.log(sum(truth[i, k] * confusion[j, k, l] for k in range(3)))
    expected = total / rows.weight.sum()
    expected -= terms.get("truth_volume", 0) * np.linalg.slogdet(truth.T @ truth)[1]
    stacked = np.concatenate([matrix.T for matrix in confusion])
    expected -= terms.get("confusion_volume", 0) * np.linalg.slogdet(stacked.T @ stacked)[1]
    expected += terms.get("trace", 0) * np.mean([np.trace(matrix) for matrix in confusion])
    assert made.loss(seen, labels).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("terms", TERMS[:4], ids=lambda terms: " ".join(map(str, terms)) or "ccem")
def test_the_declared_model_is_the_loss(terms: dict[str, float]) -> None:
    """Its log density is -|S| times the loss, and so is its gradient in both networks."""
    labels, _, _ = crowd()
    torch.manual_seed(3)
    network, inputs = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    made = channel(**terms)
    both = [*network.parameters(), made.logits]
    loss = made.loss(NetworkOutput(torch.log_softmax(network(inputs), -1)), labels)
    expected = torch.autograd.grad(loss, both)
    pyro.clear_param_store()
    trace = poutine.trace(coupled).get_trace(network, made, inputs, labels)
    density = trace.log_prob_sum()
    total = float(labels.weight.sum())
    assert density.item() == pytest.approx(-total * loss.item(), abs=1e-9)
    for found, other in zip(torch.autograd.grad(density, both), expected, strict=True):
        torch.testing.assert_close(found, -total * other, atol=1e-9, rtol=0)
    assert {
        "label",
        *[name for name in ("truth_volume", "confusion_volume", "trace") if name in terms],
    } <= set(trace.nodes)


def test_single_labels_cannot_tell_what_labels_of_an_item_together_can() -> None:
    """By enumeration: item_log_likelihood is the probability of all labels of an item under one class."""
    labels, seen, rows = crowd()
    made = channel()
    confusion, truth = made.confusion().detach().numpy(), seen.log_truth.exp().numpy()
    found = made.item_log_likelihood(seen, labels)
    for i in range(7):
        here = [
            (j, l, w)
            for n, j, l, w in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True)
            if n == i
        ]
        expected = sum(truth[i, k] * math.prod(confusion[j, k, l] ** w for j, l, w in here) for k in range(3))
        assert found[i].item() == pytest.approx(math.log(expected), abs=1e-10)


@pytest.mark.parametrize(("accuracy", "classes"), list(product([0.5, 0.8, 0.99], [2, 10, 100])))
def test_a_start_has_the_accuracy_that_was_asked_for(accuracy: float, classes: int) -> None:
    confusion = torch.softmax(diagonal_logits(diagonal_logit(accuracy, classes), 2, classes).double(), -1)
    torch.testing.assert_close(
        confusion.diagonal(dim1=1, dim2=2),
        torch.full((2, classes), accuracy, dtype=torch.float64),
        atol=1e-6,
        rtol=0,
    )


def test_extreme_logits_stay_finite() -> None:
    labels, seen, _ = crowd()
    made = Mixture(torch.tensor([1e4, -1e4, 0.0]).repeat(4, 3, 1).double())
    loss = made.loss(NetworkOutput(torch.log_softmax(1e4 * seen.log_truth, 1)), labels)
    loss.backward()
    assert (
        math.isfinite(loss.item())
        and made.logits.grad is not None
        and bool(torch.isfinite(made.logits.grad).all())
    )

"""Channels computed by loops over labels, items, annotators and classes in NumPy, and simulated labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.aggregated_labels import Targets, majority
from probcrowd.models.crowd.base import ConfusionChannel, NetworkOutput, diagonal_logits
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.models.crowd.doctor_net import DoctorNet
from probcrowd.models.crowd.max_mig import MaxMIG
from probcrowd.models.crowd.mbem import MBEM
from probcrowd.models.crowd.mixture import Mixture
from probcrowd.models.crowd.raykar import Raykar
from probcrowd.models.crowd.union_net import UnionNet

K, D = 3, 4  # classes, features


def mixture(**terms: Any) -> Callable[[AnnotationTensors, int], ConfusionChannel]:
    return lambda labels, j: Mixture(diagonal_logits(1.0, j, K), num_items=len(labels.items), **terms)


def averaging(labels: AnnotationTensors, j: int) -> ConfusionChannel:
    channel = DoctorNet(j, K, D, labels)
    channel.averages = True
    return channel


MAKE: dict[str, Callable[[AnnotationTensors, int], ConfusionChannel]] = {
    "ccem": mixture(),
    "truth volume": mixture(truth_volume=0.01),
    "running truth volume": mixture(truth_volume=0.01, running=True),
    "confusion volume": mixture(confusion_volume=0.1),
    "trace": mixture(trace=0.1),
    "targets": lambda labels, j: Targets(majority(labels.votes(K)), labels, j),
    **{
        f"crowd layer {kind}": lambda _, j, kind=kind: CrowdLayer(j, K, kind)
        for kind in ("MW", "VW", "VB", "VW+B", "SW")
    },
    "conal": lambda _, j: CoNAL(j, K, D, width=6, strength=1e-2),
    "union A": lambda _, j: UnionNet(j, K, "A"),
    "union B": lambda _, j: UnionNet(j, K, "B"),
    "raykar": lambda labels, j: Raykar(j, K, labels, concentration=1.5, diagonal=0.5),
    "mbem": lambda labels, j: MBEM(j, K, labels),
    "max-mig": lambda labels, j: MaxMIG(j, K, labels, class_prior=torch.tensor([0.5, 0.2, 0.3])),
    "doctor net": lambda labels, j: DoctorNet(j, K, D, labels),
    "doctor net, averaging": averaging,
}


def random_labels(seed: int = 0, *, items: int = 9, annotators: int = 5) -> AnnotationTensors:
    """Weighted labels in double precision; the last item has none."""
    rng = np.random.default_rng(seed)
    item, annotator = np.nonzero(rng.random((items - 1, annotators)) < 0.6)
    weight = rng.uniform(0.5, 2, len(item))
    parts = (torch.from_numpy(part) for part in (item, annotator, rng.integers(0, K, len(item)), weight))
    return AnnotationTensors(*parts, torch.arange(items), float(weight.sum()) / items)


def random_output(items: int, seed: int = 0) -> NetworkOutput:
    rng = np.random.default_rng([seed, items])
    logits = torch.from_numpy(rng.normal(0, 1.5, (items, K)))
    return NetworkOutput(torch.log_softmax(logits, 1), torch.from_numpy(rng.normal(size=(items, D))))


def perturbed(channel: ConfusionChannel, seed: int = 0) -> ConfusionChannel:
    """The channel in double precision, with parameters moved away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    channel = channel.double()
    with torch.no_grad():
        for parameter in channel.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return channel


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return e / e.sum()


def label_probabilities(channel: Any, f: np.ndarray, x: np.ndarray, j: int) -> np.ndarray:
    """P(label | annotator j, x) of one item."""
    values = {name: value.detach().numpy() for name, value in channel.state_dict().items()}
    match channel:
        case CrowdLayer():
            matrix = np.zeros((K, K))
            match channel.kind:
                case "MW":
                    matrix = values["weight"][j]
                case "VW" | "VW+B":
                    matrix = np.diag(values["weight"][j])
                case "VB":
                    matrix = np.eye(K)
                case "SW":
                    matrix = values["weight"][j, 0] * np.eye(K)
            return softmax(
                sum(f[k] * matrix[k] for k in range(K)) + (values["bias"][j] if "B" in channel.kind else 0)
            )
        case CoNAL():
            w, individual = common_share(values, x, j), values["individual"][j]
            return softmax(
                np.array(
                    [
                        sum(
                            f[k] * (w * values["common"][k, l] + (1 - w) * individual[k, l]) for k in range(K)
                        )
                        for l in range(K)
                    ]
                )
            )
        case UnionNet():
            joint = union(channel, values["logits"], f)[j]
            return joint / joint.sum()
        case DoctorNet():
            return head(values, x, j)
        case Raykar() | MBEM() | Targets():
            rows = values["matrices"][j]
        case _:
            rows = np.array(
                [softmax(row) for row in values["logits" if isinstance(channel, Mixture) else "weight"][j]]
            )
    return np.array([sum(f[k] * rows[k, l] for k in range(K)) for l in range(K)])


def common_share(values: dict[str, np.ndarray], x: np.ndarray, j: int) -> float:
    u, v = values["embedding.weight"] @ x + values["embedding.bias"], values["annotators"][j]
    return 1 / (1 + math.exp(-u @ v / math.sqrt((u @ u) * (v @ v))))


def head(values: dict[str, np.ndarray], x: np.ndarray, j: int) -> np.ndarray:
    return softmax(
        np.array([values["heads.weight"][j * K + l] @ x + values["heads.bias"][j * K + l] for l in range(K)])
    )


def union(channel: UnionNet, logits: np.ndarray, f: np.ndarray) -> np.ndarray:
    """p(j, l | x)."""
    if channel.kind == "A":
        return softmax(np.einsum("k,jkl->jl", f, logits))
    return sum((f[k] * softmax(logits[:, k]) for k in range(K)), np.zeros((len(logits), K)))


def loss(channel: Any, X: NetworkOutput, labels: AnnotationTensors) -> float:
    """The loss of one batch."""
    assert X.features is not None
    f, x = X.log_truth.exp().detach().numpy(), X.features.detach().numpy()
    rows = list(
        zip(
            *(part.tolist() for part in (labels.item, labels.annotator, labels.label, labels.weight)),
            strict=True,
        )
    )
    values = {name: value.detach().numpy() for name, value in channel.state_dict().items()}
    items, total, votes = len(f), 0.0, np.zeros((len(f), K))
    for i, _, l, w in rows:
        votes[i, l] += w
    match channel:
        case Targets() | Raykar() | MBEM():
            targets = values["posterior" if isinstance(channel, Raykar) else "targets"]
            return (
                -sum(
                    targets[int(place), k] * math.log(f[i, k])
                    for i, place in enumerate(labels.items)
                    for k in range(K)
                )
                / items
            )
        case UnionNet():
            share = 1 / np.maximum(votes.sum(1), 1e-99) if channel.kind == "B" else np.ones(items)
            return (
                -sum(
                    w * share[i] * math.log(union(channel, values["logits"], f[i])[j, l])
                    for i, j, l, w in rows
                )
                / items
            )
        case MaxMIG():
            prior = np.exp(values["log_prior"])
            h = [
                softmax(sum((w * values["weight"][j, :, l] for n, j, l, w in rows if n == i), np.log(prior)))
                for i in range(items)
            ]
            m = np.array([[(f[i] * h[n] / prior).sum() for n in range(items)] for i in range(items)])
            return (
                -np.log(m.diagonal()).mean()
                - 1
                + np.mean([m[i, n] for i, n in product(range(items), repeat=2) if i != n])
            )
        case DoctorNet() if channel.averages:
            for i in range(items):
                who = {j: math.exp(values["log_weight"][j]) for n, j, _, _ in rows if n == i}
                if who:
                    mean = sum(w * head(values, x[i], j) for j, w in who.items()) / sum(who.values())
                    total -= math.log(mean[votes[i].argmax()]) / items
            return total
    total = sum(-w * math.log(label_probabilities(channel, f[i], x[i], j)[l]) for i, j, l, w in rows) / (
        items * labels.weight_per_item
    )
    if isinstance(channel, CoNAL):
        total -= 1e-2 * sum(math.sqrt(((one - values["common"]) ** 2).sum()) for one in values["individual"])
    if isinstance(channel, Mixture):
        confusion = np.array([[softmax(row) for row in one] for one in values["logits"]])
        total -= channel.truth_volume * np.linalg.slogdet(sum(np.outer(one, one) for one in f))[1]
        total -= channel.confusion_volume * np.linalg.slogdet(sum(one @ one.T for one in confusion))[1]
        total += channel.trace * np.mean([np.trace(one) for one in confusion])
    return total


def rows_of(*rows: tuple[int, int, int], items: int) -> AnnotationTensors:
    item, annotator, label = torch.tensor(rows).T
    return AnnotationTensors(
        item,
        annotator,
        label,
        torch.ones(len(rows), dtype=torch.float64),
        torch.arange(items),
        len(rows) / items,
    )


def never() -> NetworkOutput:
    raise AssertionError("f is not asked for here")


def close(result: Tensor, expected: Tensor | np.ndarray, atol: float = 1e-12) -> None:
    torch.testing.assert_close(result, torch.as_tensor(expected, dtype=result.dtype), rtol=0, atol=atol)


def crowd(
    seed: int = 0, *, items: int = 300, annotators: int = 10
) -> tuple[Tensor, AnnotationTensors, Tensor]:
    """Inputs that determine the class, three labels per item by annotators of accuracy .5 to .9, true
    classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, D))
    truth = (x @ rng.normal(size=(D, K))).argmax(1)
    item = np.repeat(np.arange(items), 3)
    annotator = np.concatenate([rng.choice(annotators, 3, replace=False) for _ in range(items)])
    right = rng.random(len(item)) < np.linspace(0.5, 0.9, annotators)[annotator]
    label = np.where(right, truth[item], (truth[item] + rng.integers(1, K, len(item))) % K)
    parts = (torch.from_numpy(part) for part in (item, annotator, label, np.ones(len(item), np.float32)))
    return (
        torch.from_numpy(x).float(),
        AnnotationTensors(*parts, torch.arange(items), 3.0),
        torch.from_numpy(truth),
    )


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, K))

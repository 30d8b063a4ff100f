"""The slow, obvious truth: loops and enumeration in NumPy, from the paper's equations alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.models.meta.prototype import Prior


@dataclass(frozen=True)
class Task:
    """One task: embeddings (i, d), labels[i][j] or -1, number of classes, prior constants."""

    embeddings: np.ndarray
    labels: np.ndarray
    num_classes: int
    tau: float = 0.3
    b: float = 1.0
    c: float = 0.5

    @property
    def prior(self) -> Prior:
        return Prior(self.tau, self.b, self.c)

    @property
    def support(self) -> Support:
        labels = torch.from_numpy(self.labels)[None]
        return Support(
            torch.from_numpy(self.embeddings)[None],
            DenseVotes.from_labels(labels, self.num_classes, torch.float64),
        )


def task_a(seed: int = 0) -> Task:
    """Fixture A of the specification: 12 items, 3 classes, 4 annotators, 5 dimensions."""
    rng = np.random.default_rng(seed)
    items, classes, annotators, dimension = 12, 3, 4, 5
    truth = np.arange(items) % classes
    embeddings = rng.normal(0, 0.9, (classes, dimension))[truth] + rng.normal(size=(items, dimension))
    drawn = np.where(
        rng.random((items, annotators)) < 0.6, truth[:, None], rng.integers(classes, size=(items, annotators))
    )
    given = rng.random((items, annotators)) < 0.75
    given[np.arange(items), np.arange(items) % annotators] = True
    return Task(embeddings, np.where(given, drawn, -1), classes)


def start(task: Task) -> np.ndarray:
    shares = np.zeros((len(task.labels), task.num_classes))
    for i, row in enumerate(task.labels):
        given = [label for label in row if label >= 0]
        for label in given:
            shares[i, label] += 1 / len(given)
    return shares


def m_step(lam: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equation (7), cell by cell: mu[k, d], pi[k], alpha[j, k, l]."""
    items, classes = lam.shape
    annotators = task.labels.shape[1]
    mu = np.zeros((classes, task.embeddings.shape[1]))
    pi = np.zeros(classes)
    alpha = np.zeros((annotators, classes, classes))
    for k in range(classes):
        mu[k] = sum(lam[n, k] * task.embeddings[n] for n in range(items)) / (task.tau + lam[:, k].sum())
        pi[k] = (lam[:, k].sum() + task.b) / (classes * task.b + items)
        for r in range(annotators):
            labelled = [n for n in range(items) if task.labels[n, r] >= 0]
            below = sum(lam[n, k] for n in labelled) + classes * task.c
            for label in range(classes):
                alpha[r, k, label] = (
                    sum(lam[n, k] for n in labelled if task.labels[n, r] == label) + task.c
                ) / below
    return mu, pi, alpha


def item_likelihood(i: int, k: int, mu: np.ndarray, pi: np.ndarray, alpha: np.ndarray, task: Task) -> float:
    """p(embedding i, annotations of i, truth k)."""
    u = task.embeddings[i]
    value = pi[k] * math.exp(-0.5 * float((u - mu[k]) @ (u - mu[k]))) / (2 * math.pi) ** (len(u) / 2)
    for r, label in enumerate(task.labels[i]):
        if label >= 0:
            value *= alpha[r, k, label]
    return value


def e_step(mu: np.ndarray, pi: np.ndarray, alpha: np.ndarray, task: Task) -> np.ndarray:
    """Equation (6)."""
    joint = np.array(
        [
            [item_likelihood(i, k, mu, pi, alpha, task) for k in range(task.num_classes)]
            for i in range(len(task.labels))
        ]
    )
    return joint / joint.sum(1, keepdims=True)


def e_step_by_enumeration(mu: np.ndarray, pi: np.ndarray, alpha: np.ndarray, task: Task) -> np.ndarray:
    """The marginals of the posterior over all labellings of all items; for a handful of items."""
    items = len(task.labels)
    marginal = np.zeros((items, task.num_classes))
    for labelling in itertools.product(range(task.num_classes), repeat=items):
        joint = math.prod(item_likelihood(i, k, mu, pi, alpha, task) for i, k in enumerate(labelling))
        for i, k in enumerate(labelling):
            marginal[i, k] += joint
    return marginal / marginal.sum(1, keepdims=True)


def log_prior(mu: np.ndarray, pi: np.ndarray, alpha: np.ndarray, task: Task) -> float:
    """Log prior density of the parameters, from the densities' textbook forms."""
    classes, dimension = mu.shape
    value = sum(
        0.5 * dimension * math.log(task.tau / (2 * math.pi)) - 0.5 * task.tau * float(m @ m) for m in mu
    )
    value += (
        math.lgamma(classes * (task.b + 1))
        - classes * math.lgamma(task.b + 1)
        + task.b * float(np.log(pi).sum())
    )
    for row in alpha.reshape(-1, classes):
        value += (
            math.lgamma(classes * (task.c + 1))
            - classes * math.lgamma(task.c + 1)
            + task.c * float(np.log(row).sum())
        )
    return value


def log_posterior(mu: np.ndarray, pi: np.ndarray, alpha: np.ndarray, task: Task) -> float:
    likelihood = sum(
        math.log(sum(item_likelihood(i, k, mu, pi, alpha, task) for k in range(task.num_classes)))
        for i in range(len(task.labels))
    )
    return likelihood + log_prior(mu, pi, alpha, task)


def dawid_skene(labels: np.ndarray, num_classes: int, steps: int) -> np.ndarray:
    """Return maximum-likelihood Dawid-Skene (1979) responsibilities, `steps` iterations from the votes."""
    items, annotators = labels.shape
    lam = np.array([[np.mean(row[row >= 0] == k) for k in range(num_classes)] for row in labels])
    for _ in range(steps):
        prevalence = lam.mean(0)
        error = np.zeros((annotators, num_classes, num_classes))
        for j in range(annotators):
            for i in range(items):
                if labels[i, j] >= 0:
                    error[j, :, labels[i, j]] += lam[i]
            error[j] /= np.maximum(error[j].sum(1, keepdims=True), 1e-300)
        joint = np.tile(prevalence, (items, 1))
        for i in range(items):
            for j in range(annotators):
                if labels[i, j] >= 0:
                    joint[i] = joint[i] * error[j, :, labels[i, j]]
        lam = joint / joint.sum(1, keepdims=True)
    return lam


def oracle_scores(labels: Tensor, confusion: Tensor) -> Tensor:
    """Return ln p(labels (b, i, j), -1 if missing | class) with known confusion matrices (b, j, k, l)."""
    logs = confusion.clamp(min=1e-12).log()  # a perfect expert has zeros
    tasks, _, annotators = labels.shape
    given = logs.transpose(2, 3)[
        torch.arange(tasks)[:, None, None], torch.arange(annotators), labels.clamp(min=0)
    ]  # (b, i, j, k)
    return (given * (labels >= 0)[..., None]).sum(2)

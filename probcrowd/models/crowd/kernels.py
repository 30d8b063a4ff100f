"""Passes over the labels and rows of a batch, for tensors on the CPU: a batch is too small for torch, whose calls take longer than the work."""

from __future__ import annotations

import math

import numpy as np

from probcrowd.compute.compiled import fast


@fast
def coupled(
    log_truth: np.ndarray,
    table: np.ndarray,
    item: np.ndarray,
    cell: np.ndarray,
    weight: np.ndarray,
    of_truth: np.ndarray,
    of_table: np.ndarray,
) -> float:
    """sum_n weight[n] log sum_k exp(log_truth[item[n], k] + table[cell[n], k]); adds its gradients to `of_truth` and `of_table`."""
    classes = log_truth.shape[1]
    share = np.empty(classes)
    total = 0.0
    for n in range(len(item)):
        i, c = item[n], cell[n]
        top = log_truth[i, 0] + table[c, 0]
        for k in range(classes):
            share[k] = log_truth[i, k] + table[c, k]
            top = max(top, share[k])
        mass = 0.0
        for k in range(classes):
            share[k] = math.exp(share[k] - top)
            mass += share[k]
        total += weight[n] * (top + math.log(mass))
        for k in range(classes):
            part = weight[n] * share[k] / mass
            of_truth[i, k] += part
            of_table[c, k] += part
    return total


@fast
def gram(log_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R = exp(log_rows) and R'R, in double precision."""
    rows = np.exp(log_rows.astype(np.float64))
    classes = rows.shape[1]
    found = np.zeros((classes, classes))
    for n in range(len(rows)):
        for t in range(classes):
            for s in range(t + 1):
                found[t, s] += rows[n, t] * rows[n, s]
    for t in range(classes):
        for s in range(t):
            found[s, t] = found[t, s]
    return rows, found


@fast
def add_gradient(rows: np.ndarray, inverse: np.ndarray, strength: float, of_rows: np.ndarray) -> None:
    """Adds strength times the gradient of log det R'R in log R to `of_rows`."""
    classes = rows.shape[1]
    for n in range(len(rows)):
        for k in range(classes):
            total = 0.0
            for s in range(classes):
                total += rows[n, s] * inverse[s, k]
            of_rows[n, k] += 2 * strength * total * rows[n, k]

"""Compiled loops over a batch on the CPU, where torch's call overhead exceeds the work."""

from __future__ import annotations

import math

import numpy as np

from probcrowd.compute.compiled import fast


@fast
def coupled_log_likelihood(
    log_truth: np.ndarray,
    table: np.ndarray,
    item: np.ndarray,
    cell: np.ndarray,
    weight: np.ndarray,
    truth_gradient: np.ndarray,
    table_gradient: np.ndarray,
) -> float:
    """sum_n weight[n] log sum_k exp(log_truth[item[n], k] + table[cell[n], k]); adds gradients in place."""
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
            truth_gradient[i, k] += part
            table_gradient[c, k] += part
    return total


@fast
def gram(log_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R = exp(log_rows) and R'R, in double precision."""
    rows = np.exp(log_rows.astype(np.float64))
    classes = rows.shape[1]
    matrix = np.zeros((classes, classes))
    for n in range(len(rows)):
        for t in range(classes):
            for s in range(t + 1):
                matrix[t, s] += rows[n, t] * rows[n, s]
    for t in range(classes):
        for s in range(t):
            matrix[s, t] = matrix[t, s]
    return rows, matrix


@fast
def add_gradient(rows: np.ndarray, inverse: np.ndarray, strength: float, gradient: np.ndarray) -> None:
    """Add `strength` times the gradient of log det R'R with respect to log R."""
    classes = rows.shape[1]
    for n in range(len(rows)):
        for k in range(classes):
            total = 0.0
            for s in range(classes):
                total += rows[n, s] * inverse[s, k]
            gradient[n, k] += 2 * strength * total * rows[n, k]

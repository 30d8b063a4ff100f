"""The loops over annotations packed by item, compiled; `probcrowd.inference.aggregation.e_step` says what they compute.

Products are not of logs: every eight annotations the product of each class is lifted, and how often is noted, where it is small, so that neither long
items nor contradictions underflow, and a class may come back from far behind. With weights the sums are of logs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int64

from probcrowd.compute.compiled import fast
from probcrowd.metrics.scores import TIE

_LIFT = 1e-60  # eight rows at the floor leave a product of 1e-300


@cache
def kernels(num_classes: int) -> tuple[Any, Any, Any, Any]:
    """The passes for that many classes: a known number lets the compiler use vector instructions. Kept on disk where a folder can be written."""
    K, LIFT = num_classes, _LIFT

    def pass_over(
        starts: Int64[np.ndarray, " s"], cell: Any, weight: Any, gold: Any, times: Any, table: Any, log_table: Any, prior: Any,
        low: int, high: int, hard: bool, counts: Any, class_count: Any, out: Any,
    ) -> float:  # fmt: skip
        # Threads that write to the same cache line wait for each other, so what is short lies in the middle of an array of its own
        r, lifts, in_all = (
            np.empty(K + 32)[16 : 16 + K],
            np.empty(K + 32, np.int64)[16 : 16 + K],
            np.zeros(K + 32)[16 : 16 + K],
        )
        total, product = 0.0, 1.0
        for i in range(low, high):
            first, last = starts[i], starts[i + 1]
            for k in range(K):
                r[k] = prior[k]
            if gold.size and gold[i] >= 0:
                for k in range(K):
                    if k != gold[i]:
                        r[k] = 0.0
            extra = 0.0
            if weight.size:
                for k in range(K):
                    r[k] = math.log(r[k]) if r[k] > 0 else -math.inf
                for n in range(first, last):
                    row = log_table[cell[n]]
                    for k in range(K):
                        r[k] += weight[n] * row[k]
                extra = r[0]
                for k in range(1, K):
                    extra = max(extra, r[k])
                for k in range(K):
                    r[k] = math.exp(r[k] - extra)
            elif last - first <= 8:  # most items; what follows is for long ones
                for n in range(first, last):
                    p = cell[n]
                    for k in range(K):
                        r[k] *= table[p, k]
            else:
                steps, lifted = 0, False
                for n in range(first, last):
                    row = table[cell[n]]
                    for k in range(K):
                        r[k] *= row[k]
                    steps += 1
                    if steps == 8:
                        steps = 0
                        least = r[0]
                        for k in range(1, K):
                            least = min(least, r[k])
                        if least < LIFT:
                            if not lifted:
                                lifted = True
                                for k in range(K):
                                    lifts[k] = 0
                            for k in range(K):
                                while 0 < r[k] < LIFT:
                                    r[k] /= LIFT
                                    lifts[k] += 1
                if lifted:
                    fewest = -1
                    for k in range(K):
                        if r[k] > 0 and (fewest < 0 or lifts[k] < fewest):
                            fewest = lifts[k]
                    for k in range(K):
                        if lifts[k] > fewest:
                            r[k] *= LIFT ** (lifts[k] - fewest)
                    extra = fewest * math.log(LIFT)
            top = 0.0
            for k in range(K):
                top += r[k]
            inverse = 1.0 / top
            for k in range(K):
                r[k] *= inverse
            if gold.size and gold[i] >= 0:
                r[gold[i]] = 1.0  # whatever was rounded
            if times.size:
                total += times[i] * (extra + math.log(top))
            else:
                total += extra
                if top < 1e-100:
                    total += math.log(top)
                else:  # one logarithm for many items
                    product *= top
                    if product < 1e-200 or product > 1e200:
                        total += math.log(product)
                        product = 1.0
            if hard and last > first:  # an item without labels is of no class more than of another
                best = 0
                for k in range(1, K):
                    if r[k] > r[best] * (1 + TIE):
                        best = k
                for k in range(K):
                    r[k] = 1.0 if k == best else 0.0
            if out.shape[0]:
                for k in range(K):
                    out[i, k] = r[k]
            if times.size:
                for k in range(K):
                    r[k] *= times[i]
            for k in range(K):
                in_all[k] += r[k]
            if weight.size:
                for n in range(first, last):
                    row = counts[cell[n]]
                    for k in range(K):
                        row[k] += weight[n] * r[k]
            else:
                for n in range(first, last):
                    p = cell[n]
                    for k in range(K):
                        counts[p, k] += r[k]
        for k in range(K):
            class_count[k] += in_all[k]
        return total + math.log(product)

    def count_over(
        starts: Any,
        cell: Any,
        weight: Any,
        gold: Any,
        times: Any,
        given: Any,
        low: int,
        high: int,
        counts: Any,
        class_count: Any,
    ) -> None:
        for i in range(low, high):
            share = times[i] if times.size else 1.0
            for k in range(K):
                class_count[k] += share * given[i, k]
            for n in range(starts[i], starts[i + 1]):
                w = share * weight[n] if weight.size else share
                row = counts[cell[n]]
                for k in range(K):
                    row[k] += w * given[i, k]

    def vote_over(
        starts: Any, cell: Any, weight: Any, gold: Any, times: Any, label: Any, low: int, high: int, counts: Any, class_count: Any, out: Any
    ) -> None:  # fmt: skip
        r, in_all = np.empty(K + 32)[16 : 16 + K], np.zeros(K + 32)[16 : 16 + K]
        for i in range(low, high):
            total = 0.0
            for k in range(K):
                r[k] = 0.0
            if gold.size and gold[i] >= 0:
                r[gold[i]] = total = 1.0
            else:
                for n in range(starts[i], starts[i + 1]):
                    if label[cell[n]] < K:
                        w = weight[n] if weight.size else 1.0
                        r[label[cell[n]]] += w
                        total += w
            for k in range(K):
                r[k] = r[k] / total if total > 0 else 1.0 / K
                if out.shape[0]:
                    out[i, k] = r[k]
                in_all[k] += times[i] * r[k] if times.size else r[k]
            if counts.shape[0]:
                for n in range(starts[i], starts[i + 1]):
                    w = weight[n] if weight.size else 1.0
                    if times.size:
                        w *= times[i]
                    p = cell[n]
                    for k in range(K):
                        counts[p, k] += w * r[k]
        for k in range(K):
            class_count[k] += in_all[k]

    def held_out_over(
        starts: Any,
        cell: Any,
        weight: Any,
        gold: Any,
        times: Any,
        log_table: Any,
        log_prior: Any,
        low: int,
        high: int,
        counts: Any,
    ) -> None:
        all_of, r = np.empty(K), np.empty(K)
        for i in range(low, high):
            share = times[i] if times.size else 1.0
            for k in range(K):
                all_of[k] = log_prior[k]
            for n in range(starts[i], starts[i + 1]):
                w = weight[n] if weight.size else 1.0
                for k in range(K):
                    all_of[k] += w * log_table[cell[n], k]
            for n in range(starts[i], starts[i + 1]):
                w = weight[n] if weight.size else 1.0
                if gold.size and gold[i] >= 0:
                    counts[cell[n], gold[i]] += share * w
                    continue
                most = -math.inf
                for k in range(K):
                    r[k] = all_of[k] - w * log_table[cell[n], k]
                    most = max(most, r[k])
                top = 0.0
                for k in range(K):
                    r[k] = math.exp(r[k] - most)
                    top += r[k]
                for k in range(K):
                    counts[cell[n], k] += share * w * r[k] / top

    return fast(pass_over), fast(count_over), fast(vote_over), fast(held_out_over)


@fast
def add_rows(values: Any, owner: Any, sums: Any) -> None:
    for p in range(values.shape[0]):
        for k in range(values.shape[1]):
            sums[owner[p], k] += values[p, k]


@fast
def scale_rows(logs: Any, floor: float, table: Any, highest: Any) -> None:
    """exp of rows minus their maxima, which are 0 where nothing is possible."""
    for p in range(logs.shape[0]):
        most = -math.inf
        for k in range(logs.shape[1]):
            most = max(most, logs[p, k])
        most = most if most > -math.inf else 0.0
        highest[p] = most
        for k in range(logs.shape[1]):
            table[p, k] = math.exp(max(logs[p, k] - most, floor))

r"""Label probabilities averaged over what is uncertain about the parameters, each item judged by what all others say of the annotators.

Given the responsibilities of the other items, parameters have Dirichlet posteriors, and labels of one item come from rows of different annotators,
which are independent: the average of the product is the product of posterior means, in closed form.

    p(truth_i = k | labels) ~ mean[class k] prod over rows n of i of mean[confusion[j_n, k, l_n]]^w
    mean[confusion[j, k, l]] = (n[jl, k] - w r_ik + a_kl) / (N[j, k] - w r_ik + A_k)        mean[class k] = (n_k - r_ik + b_k) / (I - 1 + sum b)

n are the expected counts at the mode and r the item's own share in them, which is left out: else an annotator with few labels is trusted because
of the very label in question. This is one step of collapsed variational Bayes (Asuncion et al. 2009, CVB0) from the mode. A coin has Beta
posteriors and is averaged in the same way. Rows of one annotator on one item are taken as if by several.

Where annotators err together, n labels of an item are worth n / (1 + (n - 1) rho) independent ones (`inference.dependence`), so with a copying
rate rho > 0 the labels of an item count by that factor; its labels then say less, in the same direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from probcrowd.compute.compiled import fast
from probcrowd.data.packed import Cells, Packed
from probcrowd.inference.aggregation.e_step import Scores


@dataclass(frozen=True)
class Means:
    """Posterior means as ratios: above[p, k] / below[p, k] of cells, class_above[k] / class_below of classes (None: equally likely).

    coin: whether an annotator's rows share one accuracy, so that a row adds to all classes at once.
    """

    above: Float64[np.ndarray, "p k"]
    below: Float64[np.ndarray, "p k"]
    class_above: Float64[np.ndarray, " k"] | None
    coin: bool = False

    @property
    def scores(self) -> Scores:
        """Scores of items that had no say in the counts."""
        num_classes = self.above.shape[1]
        prior = (
            np.full(num_classes, 1 / num_classes)
            if self.class_above is None
            else self.class_above / self.class_above.sum()
        )
        return Scores(np.log(np.maximum(self.above, 1e-300)) - np.log(self.below), np.log(prior))


def averaged_probabilities(
    packed: Packed,
    cells: Cells,
    responsibilities: Float64[np.ndarray, "i k"],
    means: Means,
    copying: float = 0.0,
) -> Float64[np.ndarray, "i k"]:
    """p(truth | all labels) of the items that the counts in `means` are of, with those responsibilities; items with gold keep their class."""
    nothing = np.zeros(0)
    found = responsibilities.copy()
    _average(
        packed.starts,
        packed.cell,
        nothing if packed.weight is None else packed.weight,
        np.zeros(0, np.int32) if packed.gold is None else packed.gold,
        cells.label,
        means.above,
        means.below,
        nothing if means.class_above is None else means.class_above,
        means.coin,
        max(copying, 0.0),
        found,
    )
    return found


def discounted(packed: Packed, copying: float) -> Packed:
    """Items whose labels count by what dependent ones are worth."""
    if copying <= 0:
        return packed
    worth = np.repeat(1 / (1 + np.maximum(packed.size - 1, 0) * copying), packed.size)
    return Packed(
        packed.starts,
        packed.cell,
        worth if packed.weight is None else worth * packed.weight,
        packed.gold,
        packed.times,
    )


@fast
def _average(
    starts: Any, cell: Any, weight: Any, gold: Any, label: Any, above: Any, below: Any, class_above: Any, coin: bool, copying: float, out: Any
) -> None:  # fmt: skip
    num_classes = out.shape[1]
    logs, total = np.empty(num_classes), class_above.sum()
    for i in range(out.shape[0]):
        if gold.size and gold[i] >= 0:
            continue
        size = starts[i + 1] - starts[i]
        worth = 1.0 / (1.0 + max(size - 1, 0) * copying)
        for k in range(num_classes):
            logs[k] = 0.0
            if class_above.size:
                logs[k] = math.log(max(class_above[k] - out[i, k], 1e-12)) - math.log(max(total - 1.0, 1e-12))
        for n in range(starts[i], starts[i + 1]):
            p, w = cell[n], weight[n] if weight.size else 1.0
            for k in range(num_classes):
                mine, all_mine = w * out[i, k], w * out[i, k]
                if coin:
                    hit = out[i, label[p]]
                    mine = w * hit if k == label[p] else w * (1.0 - hit) / max(num_classes - 1, 1)
                    all_mine = w
                share = max(above[p, k] - mine, 1e-12) / max(below[p, k] - all_mine, 1e-12)
                logs[k] += worth * w * math.log(share)
        most = logs[0]
        for k in range(1, num_classes):
            most = max(most, logs[k])
        top = 0.0
        for k in range(num_classes):
            logs[k] = math.exp(logs[k] - most)
            top += logs[k]
        for k in range(num_classes):
            out[i, k] = logs[k] / top

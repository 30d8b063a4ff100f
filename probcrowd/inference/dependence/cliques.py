r"""Copies in the majority: the model believes them right, and expects their agreement.

What they cannot do is to explain the agreement of the others. Take a clique: annotators linked by chance-corrected agreement above 0.8 (one standard error below, Wilson). Were its commonest
label the truth, the others would be independent given that label. So with p0 from the others' label frequencies and p1 from their frequencies
given the clique's label on the same items,

    T = sum (agree - p0)      U = sum (agree - p1)               over row pairs of annotators of two other cliques, or of none

and 1 - U / T is what the clique explains: 1 for annotators who are always right, however poor the others; c^2 for copies of an annotator
whose correlation with the truth is c. Where U exceeds T / 2 by 3 standard errors, its pairs are expected to agree with p = chance + (1 - U / T)
(1 - chance) instead. The model's p of all others is then wrong as well: they are no near duplicates before the copies are gone.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Int

from probcrowd.inference.dependence.expected_agreement import Compared, Labels, components

_MOST_CLIQUES = 50
_ALIKE = 0.8  # a clique's chance-corrected agreement, one standard error below (Wilson)
_UNEXPLAINED_Z = 3.0  # U above T / 2


def without_cliques(
    labels: Labels, compared: Compared, model: Float64[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, " m"], Bool[np.ndarray, " g"]]:
    """The model's p, replaced in cliques that do not explain the others; and the pairs of annotators for which it can then be trusted."""
    rows, first, count = labels.rows, compared.first, compared.count
    left, right, share = compared.left[first], compared.right[first], compared.sums(compared.agree) / count
    alone = np.zeros(rows.num_items, np.int64)  # one class, known for all: chance
    chance = labels.agreement(left, right, labels.frequencies(np.arange(len(rows.item)), alone), alone)
    lower = (share + 0.5 / count - np.sqrt(share * (1 - share) / count + 0.25 / count**2)) / (1 + 1 / count)
    alike = lower - chance > _ALIKE * (1 - chance)
    clique = components(rows.annotator[left[alike]], rows.annotator[right[alike]], rows.num_annotators)
    expected, inside, members, owner = (
        model.copy(),
        np.zeros(len(first), bool),
        np.bincount(clique),
        clique[rows.annotator],
    )
    for suspect in np.argsort(-members, kind="stable")[: min((members > 1).sum(), _MOST_CLIQUES)].tolist():
        unexplained = _unexplained(labels, compared, owner, suspect)
        both = (
            (clique[rows.annotator[left]] == suspect)
            & (clique[rows.annotator[right]] == suspect)
            & (unexplained > 0)
        )
        for pair in np.flatnonzero(both):
            expected[first[pair] : first[pair] + count[pair]] = 1 - unexplained * (1 - chance[pair])
        inside |= both
    return expected, inside | (not inside.any())


def _unexplained(labels: Labels, compared: Compared, clique: Int[np.ndarray, " n"], suspect: int) -> float:
    """U / T of a clique, 0 where U is not significantly above T / 2. clique: of each row's annotator."""
    rows, own = labels.rows, clique == suspect
    label = commonest(rows.item[own], rows.label[own], rows.num_items)
    left, right = clique[compared.left], clique[compared.right]
    used = (label[rows.item[compared.left]] >= 0) & (left != suspect) & (right != suspect) & (left != right)
    left, right, told = (
        compared.left[used],
        compared.right[used],
        np.flatnonzero((label[rows.item] >= 0) & ~own),
    )
    total, unexplained = (
        np.bincount(
            rows.item[left],
            compared.agree[used] - labels.agreement(left, right, labels.frequencies(told, known), known),
            rows.num_items,
        )
        for known in (np.minimum(label, 0), label)
    )
    above_half = unexplained - total / 2
    significant = total.sum() > 0 and above_half.sum() > _UNEXPLAINED_Z * math.sqrt((above_half**2).sum())
    return float(min(unexplained.sum() / total.sum(), 1.0)) if significant else 0.0


def commonest(
    item: Int[np.ndarray, " m"], label: Int[np.ndarray, " m"], num_items: int
) -> Int[np.ndarray, " i"]:
    """The commonest label of each item, the first of those; -1 for items without."""
    commonest = np.full(num_items, -1)
    said, count = np.unique(np.stack([item, label]), axis=1, return_counts=True)
    order = np.lexsort((-said[1], count))
    commonest[said[0, order]] = said[1, order]  # what comes last stays
    return commonest

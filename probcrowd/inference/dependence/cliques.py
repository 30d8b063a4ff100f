r"""Copied annotators that outvote the rest: the fitted model takes them for accurate, so their agreement does
not surprise it.

But copies cannot explain the agreement of the others. Take a clique: annotators linked by
chance-corrected agreement above 0.8 (one standard error below, Wilson). If its commonest label were the
truth, the others would be independent given that label. So with p0 from the others' label frequencies and p1
from their frequencies given the clique's label on the same items,

    T = sum (agree - p0)      U = sum (agree - p1)        over row pairs of two other cliques, or of none

and 1 - U / T is the share that the clique explains: 1 for annotators who are always right, however poor the
others; c^2 for copies of an annotator whose correlation with the truth is c. Where U exceeds T / 2 by 3
standard errors, the clique's pairs are expected to agree with p = chance + (1 - U / T) (1 - chance) instead.
The model's p of all others is then wrong as well: they are no near duplicates before the copies are gone.

False alarms, in fits to simulated independent annotators (2 to 4 classes, 50 to 2,000 items, 20 labels or
more per annotator): no warning of rho in 4,600 tables; near duplicates in 2 of 14,600, most of them with
experts among poor annotators. What the check misses, or takes for something else:

    items that are hard for all       a fit mostly takes them for better annotators; gold and
                                      `predictive.vote_entropy` show them
    a majority of copies, c^2 > 1/2   they explain the others well enough (see `cliques`)
    experts, others share errors      seem to be copies, once a fifth of the others' labels share a cause
    a table shrunk to the uniform     expects too little agreement: rho is then that misfit. Maximum
                                      likelihood suffices with 20 labels or more per annotator (with 6 to 15:
                                      rho = 0.05 to 0.09); with fewer, shrink to the crowd's mean table
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from probcrowd.inference.aggregation.e_step import shares_by_owner
from probcrowd.inference.dependence.dependence import ALIKE, RowPairs, expected_agreement
from probcrowd.inference.dependence.labels import Labels

_MOST_CLIQUES = 50
_UNEXPLAINED_Z = 3.0  # U above T / 2
_NONE = np.zeros((0, 1))


def without_cliques(
    labels: Labels,
    pairs: RowPairs,
    agree: Float64[np.ndarray, " m"],
    lower: Float64[np.ndarray, " g"],
    model: Float64[np.ndarray, " m"],
) -> tuple[Float64[np.ndarray, " m"], Bool[np.ndarray, " g"]]:
    """Replace the model's p in cliques that do not explain the others; return it, and for which pairs of
    annotators it can be trusted.

    lower: the agreement of the pairs of annotators in `pairs.shared`, one standard error below.
    """
    first, count = pairs.start[pairs.shared], pairs.count[pairs.shared]
    left, right = pairs.left[first], pairs.right[first]
    num_items, num_annotators = int(labels.item.max()) + 1, len(labels.first) - 1
    everything = np.arange(len(labels.item))
    chance = _agreement(
        labels, left, right, everything, np.zeros(num_items, np.int64)
    )  # one class, known for all
    linked = alike(lower, chance)
    clique = components(labels.annotator[left[linked]], labels.annotator[right[linked]], num_annotators)
    expected, inside, members = model.copy(), np.zeros(len(first), bool), np.bincount(clique)
    owner = clique[labels.annotator]
    for suspect in np.argsort(-members, kind="stable")[: min((members > 1).sum(), _MOST_CLIQUES)].tolist():
        unexplained = _unexplained(labels, pairs, agree, owner, suspect)
        both = (owner[left] == suspect) & (owner[right] == suspect) & (unexplained > 0)
        for pair in np.flatnonzero(both):
            expected[first[pair] : first[pair] + count[pair]] = 1 - unexplained * (1 - chance[pair])
        inside |= both
    return expected, inside | (not inside.any())


def _unexplained(
    labels: Labels,
    pairs: RowPairs,
    agree: Float64[np.ndarray, " m"],
    owner: Int[np.ndarray, " n"],
    suspect: int,
) -> float:
    """Return U / T of a clique, 0 where U is not significantly above T / 2. owner: the clique of each row's
    annotator.
    """
    num_items, own = int(labels.item.max()) + 1, owner == suspect
    label = commonest(labels.item[own], labels.label[labels.cell[own]], num_items)
    left, right = owner[pairs.left], owner[pairs.right]
    used = (label[labels.item[pairs.left]] >= 0) & (left != suspect) & (right != suspect) & (left != right)
    left, right = pairs.left[used], pairs.right[used]
    others = np.flatnonzero((label[labels.item] >= 0) & ~own)
    total, unexplained = (
        np.bincount(
            labels.item[left], agree[used] - _agreement(labels, left, right, others, known), num_items
        ).astype(np.float64)  # integers without row pairs
        for known in (np.minimum(label, 0), label)
    )
    return share_unexplained(total, unexplained)


def alike(lower: Float64[np.ndarray, " g"], chance: Float64[np.ndarray, " g"]) -> Bool[np.ndarray, " g"]:
    """Return which pairs belong to one clique, given agreement one standard error below its estimate."""
    return lower - chance > ALIKE * (1 - chance)


def share_unexplained(total: Float64[np.ndarray, " i"], unexplained: Float64[np.ndarray, " i"]) -> float:
    """Return U / T from their sums by item, 0 where U is not significantly above T / 2."""
    above_half = unexplained - total / 2
    significant = total.sum() > 0 and above_half.sum() > _UNEXPLAINED_Z * math.sqrt((above_half**2).sum())
    return float(min(unexplained.sum() / total.sum(), 1.0)) if significant else 0.0


def _agreement(
    labels: Labels,
    left: Int[np.ndarray, " m"],
    right: Int[np.ndarray, " m"],
    rows: Int[np.ndarray, " s"],
    known: Int[np.ndarray, " i"],
) -> Float64[np.ndarray, " m"]:
    """Return p under the label frequencies of annotators in those rows, by the known class of the items."""
    groups = int(known.max(initial=0)) + 1
    count = np.bincount(
        labels.cell[rows] * groups + known[labels.item[rows]], minlength=len(labels.label) * groups
    )
    frequencies = shares_by_owner(
        count.reshape(-1, groups).astype(float), labels.owner, len(labels.first) - 1
    )
    return expected_agreement(left, right, labels, frequencies, known, _NONE, _NONE)


def components(left: Int[np.ndarray, " m"], right: Int[np.ndarray, " m"], size: int) -> Int[np.ndarray, " j"]:
    """Return the connected component of each of `size` nodes."""
    graph = coo_array((np.ones(len(left)), (left, right)), (size, size))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def commonest(
    item: Int[np.ndarray, " m"], label: Int[np.ndarray, " m"], num_items: int
) -> Int[np.ndarray, " i"]:
    """Return the commonest label of each item, the first of equals; -1 for items without labels."""
    commonest = np.full(num_items, -1)
    pairs, count = np.unique(np.stack([item, label]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], count))
    commonest[pairs[0, order]] = pairs[1, order]  # the last assignment wins
    return commonest

"""Label switching: which renaming of a draw's classes fits the votes best, the draws renamed, and how often that was needed.

    agreement[c, s, k, m] = sum over items i of  p(truth of i = k | draw c, s) share[i, m]     class k of the draw against label m
    permutation[c, s, :]  = the permutation p that maximises  sum over m of agreement[c, s, p[m], m]

so that x[permutation] puts an axis of true classes in the order of the labels. Labels have names of their own and are never renamed:
of confusion[j, k, l] only the rows (k) move. Hence the trace of a confusion matrix depends on the names of the classes; `invariants`
has what does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import linear_sum_assignment
from scipy.special import entr

_ROUNDING = 1e-12  # relative: sums of the same numbers in another order are a tie


@dataclass(frozen=True)
class Switching:
    """How the draws' classes are named.

    share, share_by_chain: draws whose permutation is not the identity. changes: draws of a chain whose permutation is not that of the
    draw before. commonest: each chain's most frequent permutation. counts: draws by permutation, most frequent first.
    """

    share: float
    share_by_chain: Float[np.ndarray, " c"]
    changes: Int[np.ndarray, " c"]
    commonest: Int[np.ndarray, "c k"]
    counts: dict[tuple[int, ...], int]

    @property
    def between_chains(self) -> bool:
        """Whether chains sit in different permutations."""
        return bool((self.commonest != self.commonest[0]).any())

    @property
    def within_chains(self) -> Bool[np.ndarray, " c"]:
        """Which chains change their permutation during the run."""
        return self.changes > 0

    def __str__(self) -> str:
        if self.share == 0:
            return "The classes of every draw are named as the votes name them."
        chains = ", ".join(f"{share:.1%}" for share in self.share_by_chain)
        between = "Chains sit in different namings" if self.between_chains else "All chains sit in one naming"
        within = f"{int(self.within_chains.sum())} of {len(self.changes)} switch within the run ({int(self.changes.sum())} changes)"
        often, draws = next(iter(self.counts.items()))
        return (
            f"{self.share:.1%} of the draws name their classes otherwise than the votes do (by chain: {chains}). {between}, {within}. "
            f"Namings met: {len(self.counts)}; the most frequent takes classes {', '.join(map(str, often))} "
            f"for the labels in order ({draws} draws)."
        )


def alignment(agreement: Float[np.ndarray, "c s k k"]) -> Int[np.ndarray, "c s k"]:
    """permutation[c, s, m]: the draw's class that label m names, by maximum total agreement; in a tie the identity if it is optimal."""
    permutation = np.broadcast_to(np.arange(agreement.shape[-1]), agreement.shape[:-1]).copy()
    kept = np.diagonal(agreement, axis1=-2, axis2=-1)
    # Row maxima bound every permutation's total, and so do column maxima: on the diagonal they need no solver
    plain = (kept >= agreement.max(-1)).all(-1) | (kept >= agreement.max(-2)).all(-1)
    for draw in zip(*np.nonzero(~plain), strict=True):
        table = agreement[draw]
        labels, classes = linear_sum_assignment(table.T, maximize=True)
        best = table[classes, labels].sum()
        if best - kept[draw].sum() > _ROUNDING * abs(best):
            permutation[draw] = classes
    return permutation


def realign(
    samples: Mapping[str, Shaped[np.ndarray, "c s ..."]],
    permutation: Int[np.ndarray, "c s k"],
    dims: Mapping[str, tuple[str, ...]],
) -> dict[str, Shaped[np.ndarray, "c s ..."]]:
    """The samples with every axis `true_class` in the order of the labels; sites without one are the arrays they were.

    dims: the names of each site's axes after (chain, draw), as `catalogue.Model.dims`.
    """
    return {site: _permuted(values, permutation, dims[site]) for site, values in samples.items()}


def _permuted(
    values: Shaped[np.ndarray, "c s ..."], permutation: Int[np.ndarray, "c s k"], axes: tuple[str, ...]
) -> Shaped[np.ndarray, "c s ..."]:
    for position, axis in enumerate(axes, 2):
        if axis == "true_class":
            others = tuple(other for other in range(2, values.ndim) if other != position)
            values = np.take_along_axis(values, np.expand_dims(permutation, others), position)
    return values


def switching(permutation: Int[np.ndarray, "c s k"]) -> Switching:
    """How often, and where, the draws had to be renamed."""
    renamed = (permutation != np.arange(permutation.shape[-1])).any(-1)
    namings, which, counts = np.unique(
        permutation.reshape(-1, permutation.shape[-1]), axis=0, return_inverse=True, return_counts=True
    )
    by_chain = np.apply_along_axis(
        np.bincount, 1, which.reshape(renamed.shape), minlength=len(namings)
    )  # (c, namings)
    order = np.argsort(-counts, kind="stable")
    return Switching(
        float(renamed.mean()),
        renamed.mean(1),
        (np.diff(permutation, axis=1) != 0).any(-1).sum(1),
        namings[by_chain.argmax(1)],
        {tuple(map(int, namings[at])): int(counts[at]) for at in order},
    )


def invariants(
    samples: Mapping[str, Shaped[np.ndarray, "c s ..."]], log_likelihood: Float[np.ndarray, "c s"]
) -> dict[str, Float[np.ndarray, "c s ..."]]:
    """What no renaming of the classes changes, so that R-hat and effective sizes of it mean something even where chains switch.

    information is the mutual information of truth and label, in nats, of each annotator (of all, where they share one matrix):
    H(sum_k p_k confusion[k, :]) - sum_k p_k H(confusion[k, :]),  p = class_prior, uniform in a model without one.
    """
    found = {"log_likelihood": log_likelihood}
    if "class_prior" in samples:
        found["sorted_class_prior"] = np.sort(samples["class_prior"], -1)
        found["prior_concentration"] = (samples["class_prior"] ** 2).sum(-1)
    if "confusion" in samples:
        confusion = samples["confusion"]  # (c, s, j, k, l), or (c, s, k, l)
        num_classes = confusion.shape[-2]
        prior = samples.get("class_prior", np.full((*log_likelihood.shape, num_classes), 1 / num_classes))
        prior = np.expand_dims(prior, tuple(range(2, confusion.ndim - 2)))  # (c, s, 1, k), or (c, s, k)
        said = np.einsum("...k,...kl->...l", prior, confusion)
        found["information"] = entr(said).sum(-1) - (prior * entr(confusion).sum(-1)).sum(-1)
    return found

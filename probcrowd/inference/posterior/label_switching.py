"""Label switching: permute each draw's classes to match the votes, and measure how often that is needed.

    agreement[c, s, k, m] = sum over items i of  p(truth of i = k | draw c, s) share[i, m]
    permutation[c, s, :]  = the permutation p that maximises  sum over m of agreement[c, s, p[m], m]

so that x[permutation] puts an axis of true classes in the order of the labels. Labels are observed and never
permuted: of confusion[j, k, l] only the rows (k) move. Hence the trace of a confusion matrix depends on the
permutation; `invariants` do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.optimize import linear_sum_assignment
from scipy.special import entr

_ROUNDING = 1e-12  # relative: equal sums in another order are ties


@dataclass(frozen=True)
class Switching:
    """Permutations of the draws' classes.

    share, share_by_chain: draws whose permutation is not the identity. changes: draws of a chain whose
    permutation differs from the previous draw's. commonest: each chain's most frequent permutation. counts:
    draws by permutation, most frequent first.
    """

    share: float
    share_by_chain: Float[np.ndarray, " c"]
    changes: Int[np.ndarray, " c"]
    commonest: Int[np.ndarray, "c k"]
    counts: dict[tuple[int, ...], int]

    @property
    def between_chains(self) -> bool:
        """Whether chains differ in their most frequent permutation."""
        return bool((self.commonest != self.commonest[0]).any())

    @property
    def within_chains(self) -> Bool[np.ndarray, " c"]:
        """Which chains change permutation during the run."""
        return self.changes > 0

    def __str__(self) -> str:
        if self.share == 0:
            return "The classes of all draws are in the order of the votes."
        chains = ", ".join(f"{share:.1%}" for share in self.share_by_chain)
        between = (
            "Chains sit in different permutations"
            if self.between_chains
            else "All chains sit in one permutation"
        )
        switch = f"{int(self.within_chains.sum())} of {len(self.changes)} switch within the run"
        within = f"{switch} ({int(self.changes.sum())} changes)"
        order, draws = next(iter(self.counts.items()))
        return (
            f"In {self.share:.1%} of the draws the classes are permuted relative to the votes (by chain: "
            f"{chains}). {between}, {within}. {len(self.counts)} permutations occur; "
            f"the most frequent takes classes {', '.join(map(str, order))} "
            f"for the labels in order ({draws} draws)."
        )


def alignment(agreement: Float[np.ndarray, "c s k k"]) -> Int[np.ndarray, "c s k"]:
    """Return permutation[c, s, m], the draw's class for label m, by maximum total agreement; ties go to the
    identity if it is optimal.
    """
    permutation = np.broadcast_to(np.arange(agreement.shape[-1]), agreement.shape[:-1]).copy()
    diagonal = np.diagonal(agreement, axis1=-2, axis2=-1)
    # Row maxima bound every permutation's total, as do column maxima: where the diagonal attains them no
    # solver is needed
    plain = (diagonal >= agreement.max(-1)).all(-1) | (diagonal >= agreement.max(-2)).all(-1)
    for draw in zip(*np.nonzero(~plain), strict=True):
        table = agreement[draw]
        labels, classes = linear_sum_assignment(table.T, maximize=True)
        best = table[classes, labels].sum()
        if best - diagonal[draw].sum() > _ROUNDING * abs(best):
            permutation[draw] = classes
    return permutation


def realign(
    samples: Mapping[str, Shaped[np.ndarray, "c s ..."]],
    permutation: Int[np.ndarray, "c s k"],
    dims: Mapping[str, tuple[str, ...]],
) -> dict[str, Shaped[np.ndarray, "c s ..."]]:
    """Return the samples with every axis `true_class` in the order of the labels; sites without one are not
    copied.

    dims: the names of each site's axes after (chain, draw), as `Model.dims`.
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
    """Summarise how often, and where, the draws are permuted."""
    permuted = (permutation != np.arange(permutation.shape[-1])).any(-1)
    distinct, which, counts = np.unique(
        permutation.reshape(-1, permutation.shape[-1]), axis=0, return_inverse=True, return_counts=True
    )
    by_chain = np.apply_along_axis(
        np.bincount, 1, which.reshape(permuted.shape), minlength=len(distinct)
    )  # (c, distinct)
    order = np.argsort(-counts, kind="stable")
    return Switching(
        float(permuted.mean()),
        permuted.mean(1),
        (np.diff(permutation, axis=1) != 0).any(-1).sum(1),
        distinct[by_chain.argmax(1)],
        {tuple(map(int, distinct[at])): int(counts[at]) for at in order},
    )


def invariants(
    samples: Mapping[str, Shaped[np.ndarray, "c s ..."]], log_likelihood: Float[np.ndarray, "c s"]
) -> dict[str, Float[np.ndarray, "c s ..."]]:
    """Return functionals that no permutation of the classes changes, so that R-hat and ESS are meaningful
    even where chains switch.

    information: the mutual information of truth and label, in nats, of each annotator (of all, where they
    share one matrix): H(sum_k p_k confusion[k, :]) - sum_k p_k H(confusion[k, :]),  p = class_prior, uniform
    in a model without one.
    """
    values = {"log_likelihood": log_likelihood}
    if "class_prior" in samples:
        values["sorted_class_prior"] = np.sort(samples["class_prior"], -1)
        values["prior_concentration"] = (samples["class_prior"] ** 2).sum(-1)
    if "confusion" in samples:
        confusion = samples["confusion"]  # (c, s, j, k, l), or (c, s, k, l)
        num_classes = confusion.shape[-2]
        prior = samples.get("class_prior", np.full((*log_likelihood.shape, num_classes), 1 / num_classes))
        prior = np.expand_dims(prior, tuple(range(2, confusion.ndim - 2)))  # (c, s, 1, k), or (c, s, k)
        labels = np.einsum("...k,...kl->...l", prior, confusion)
        values["information"] = entr(labels).sum(-1) - (prior * entr(confusion).sum(-1)).sum(-1)
    return values

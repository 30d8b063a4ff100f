"""Report dependence between annotators in sentences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probcrowd.inference.dependence.cliques import components
from probcrowd.inference.dependence.dependence import Dependence

_MOST_NAMED, _MOST_MEMBERS = 5, 10


def sentences(result: Dependence, annotators: pd.Index) -> list[str]:
    """Describe correlated errors and near duplicates; return no sentences if there are none."""
    reports = []
    if result.correlated:
        reports.append(
            f"annotators agree on {result.agreement:.1%} of pairs, the model expects {result.expected:.1%}: "
            "their errors are correlated "
            f"(copying rate {result.residual:.2f} ± {result.residual_error:.2f}). "
            f"{result.labels_per_item:.1f} labels per item carry the information of about "
            f"{result.effective_annotators:.1f}, so the probabilities are overconfident {result.note}".strip()
        )
    groups = near_duplicates(result)
    if groups:
        named = "; ".join(
            ", ".join(map(str, annotators[group[:_MOST_MEMBERS]])) + ", ..." * (len(group) > _MOST_MEMBERS)
            for group in groups[:_MOST_NAMED]
        )
        more = f"; and {len(groups) - _MOST_NAMED} more groups" if len(groups) > _MOST_NAMED else ""
        reports.append(
            f"annotators who agree like copies of each other: {named}{more}; "
            f"keep one of each group, or give each of its g members the weight 1/g, and fit again"
        )
    return reports


def near_duplicates(result: Dependence) -> list[list[int]]:
    """Return the codes of annotators linked by near duplicate pairs, largest group first."""
    pairs = result.pairs
    linked = pairs.loc[pairs["near_duplicate"], ["annotator", "other"]].to_numpy()
    codes, ends = np.unique(linked, return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    group = components(left, right, len(codes))
    groups = [codes[group == g].tolist() for g in np.unique(group)]
    return sorted(groups, key=lambda members: (-len(members), members))

r"""Expected counts given responsibilities: what initial values and M steps are computed from.

    class_counts[k] = sum over items i of q[i, k]
    counts[j, k, l] = sum over rows n of annotator j with label l of weight[n] q[item[n], k]

q are vote shares for initial values and p(truth | labels) in EM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from probcrowd.data.rows import Rows

_ACCURACY = 0.7  # of one pseudo-label per row, which keeps smoothed values off 0 and 1


@dataclass(frozen=True)
class ExpectedCounts:
    """Responsibilities q (i, k), the counts (j, k, l) that they imply, the rows, and features (i, d) where
    the model has them.
    """

    responsibilities: Float[np.ndarray, "i k"]
    counts: Float[np.ndarray, "j k l"]
    rows: Rows
    features: Float[np.ndarray, "i d"] | None = None

    @staticmethod
    def of(
        rows: Rows,
        responsibilities: Float[np.ndarray, "i k"],
        features: Float[np.ndarray, "i d"] | None = None,
    ) -> ExpectedCounts:
        """Count the rows' labels under the responsibilities."""
        classes = rows.num_classes
        counts = np.zeros((rows.num_annotators, classes, classes))
        for k in range(classes):
            weight = rows.weight * responsibilities[rows.item, k]
            np.add.at(counts[:, k], (rows.annotator, rows.label), weight)
        return ExpectedCounts(responsibilities, counts, rows, features)

    @property
    def class_counts(self) -> Float[np.ndarray, " k"]:
        """Expected items per class."""
        return self.responsibilities.sum(0)

    @property
    def right(self) -> Float[np.ndarray, " j"]:
        """Expected right labels per annotator."""
        return self.counts.diagonal(axis1=1, axis2=2).sum(-1)

    @cached_property
    def smoothed_class_prior(self) -> Float[np.ndarray, " k"]:
        """Class frequencies with one pseudo-item per class."""
        classes = self.responsibilities.shape[1]
        return (self.class_counts + 1) / (self.responsibilities.sum() + classes)

    @cached_property
    def smoothed_confusion(self) -> Float[np.ndarray, "j k l"]:
        """Confusion rows with one pseudo-label each."""
        return self._smoothed(self.counts)

    @cached_property
    def smoothed_pooled_confusion(self) -> Float[np.ndarray, "k l"]:
        """Confusion rows of all annotators together, with one pseudo-label each."""
        return self._smoothed(self.counts.sum(0))

    @cached_property
    def smoothed_accuracy(self) -> Float[np.ndarray, " j"]:
        """Shares of right labels with one pseudo-label, between 0.02 and 0.98."""
        return np.clip((self.right + _ACCURACY) / (self.counts.sum((1, 2)) + 1), 0.02, 0.98)

    def _smoothed(self, counts: Float[np.ndarray, "*j k l"]) -> Float[np.ndarray, "*j k l"]:
        classes = counts.shape[-1]
        wrong = (1 - _ACCURACY) / max(classes - 1, 1)
        smoothed = counts + (np.full((classes, classes), wrong) + np.eye(classes) * (_ACCURACY - wrong))
        return smoothed / smoothed.sum(-1, keepdims=True)

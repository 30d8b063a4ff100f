"""Annotations as arrays for the compiled loops of the dependence check."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int


class Labels(NamedTuple):
    """Rows, and cells sorted by annotator, then label: those of annotator j are first[j] to first[j + 1]."""

    item: Int[np.ndarray, " n"]
    annotator: Int[np.ndarray, " n"]
    weight: Float64[np.ndarray, " n"]
    cell: Int[np.ndarray, " n"]
    owner: Int[np.ndarray, " p"]
    label: Int[np.ndarray, " p"]
    first: Int[np.ndarray, " j"]

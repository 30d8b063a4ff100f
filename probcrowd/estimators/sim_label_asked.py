"""What a `SimLabel` is asked for, before anything is learned: parameters that make sense, variants by name, architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from probcrowd.agreement import COEFFICIENTS
from probcrowd.columns import reject
from probcrowd.estimators.crowd_checks import check_folder, check_number, check_training
from probcrowd.models.channels.soft_labels import SoftLabelling
from probcrowd.models.predictors.base import Predictor
from probcrowd.models.predictors.performance import Performance
from probcrowd.models.predictors.pooled import PooledConfusions
from probcrowd.models.predictors.queries import Queries
from probcrowd.models.predictors.residuals import Residuals

ARCHITECTURES: dict[str, Callable[..., Predictor]] = {
    "qumatl": Queries,
    "madl": Performance,
    "padl": Residuals,
    "pooled": PooledConfusions,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "recommended": {"kind": "kappa", "shrink": True, "divergence": "paper"},
    "paper": {"kind": "kappa", "shrink": False, "divergence": "paper"},
    "released": {"kind": "bennett", "shrink": False, "divergence": "released"},
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "missing": ("similarity", "uniform", "consensus", "skip"),
    "variant": tuple(VARIANTS),
    "imputed": ("similarity", "loss"),
    "selection": ("held-out", "last"),
}


def check(asked: Any, folder: Any, resume: bool) -> None:
    """Refuses parameters that cannot be, and those of a fit.

    Raises:
        ValueError: the parameter, what it was, and what it may be.
    """
    for name, choices in _CHOICES.items():
        if getattr(asked, name) not in choices:
            raise ValueError(f"{name}={getattr(asked, name)!r}: choose one of {', '.join(choices)}")
    if asked.similarity is not None and asked.similarity not in COEFFICIENTS:
        raise ValueError(f"similarity={asked.similarity!r}: choose one of {', '.join(COEFFICIENTS)}")
    check_training(asked)
    check_number(asked, "kl_weight")
    check_number(asked, "warm_up")
    check_number(asked, "threshold", positive=True, optional=True)
    if asked.threshold is not None and asked.threshold > 1:
        raise ValueError(f"threshold={asked.threshold!r}: a confidence is at most 1")
    if asked.threshold is not None and asked.missing == "skip":
        raise ValueError("a threshold imputes soft labels, and missing='skip' makes none")
    if asked.imputed == "loss" and asked.threshold is None:
        raise ValueError("imputed='loss' needs a threshold: nothing is imputed without one")
    check_folder(folder, resume)


def asked_how(asked: Any) -> SoftLabelling:
    """How missing labels are to be treated."""
    how = VARIANTS[asked.variant] | ({} if asked.similarity is None else {"kind": asked.similarity})
    threshold = None if asked.threshold is None else float(asked.threshold)
    return SoftLabelling(
        asked.missing, **how, kl_weight=float(asked.kl_weight), threshold=threshold, imputed=asked.imputed, warm_up=int(asked.warm_up)
    )


def make_predictor(name: str, shape: tuple[int, ...], num_annotators: int, num_classes: int, options: Mapping[str, Any]) -> Predictor:
    """The predictor of an architecture for embeddings of a shape.

    Raises:
        ValueError: embeddings without a size, or options that the architecture has not.
    """
    if not shape:
        raise ValueError("the encoder gives one number per item; it must give an embedding (b, d), or a feature map (b, channels, ...)")
    try:
        return ARCHITECTURES[name](num_annotators, num_classes, shape, **options)
    except TypeError as error:
        if options:
            raise ValueError(f"options={dict(options)!r} do not fit the architecture {name!r}: {error}") from error
        raise


def withdrawn_pairs(pairs: pd.DataFrame | None, items: pd.Index, annotators: pd.Index) -> Int[np.ndarray, " w"]:
    """Pairs of item and annotator as item * annotators + annotator; those of items that are not there are left out.

    Raises:
        ValueError: no such columns, or annotators that are not there.
    """
    if pairs is None:
        return np.zeros(0, np.int64)
    if not isinstance(pairs, pd.DataFrame) or not {"item", "annotator"} <= set(pairs.columns):
        raise ValueError("pairs are a data frame with the columns item and annotator, as `imputed_` is")
    who = pd.Series(pairs["annotator"])
    item, annotator = items.get_indexer(pd.Index(pairs["item"])), annotators.get_indexer(pd.Index(who))
    reject(annotator < 0, who, "annotators that the annotations have not")
    return np.unique((item * len(annotators) + annotator)[item >= 0]).astype(np.int64)

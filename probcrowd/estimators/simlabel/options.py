"""What a `SimLabel` is asked for, before anything is learned: parameters that make sense, variants by name, architectures by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from probcrowd.data.columns import reject
from probcrowd.data.options import check_number, check_option, check_whole
from probcrowd.estimators.crowd.options import check_folder, check_training
from probcrowd.metrics.agreement import COEFFICIENTS
from probcrowd.models.simlabel.base import Predictor
from probcrowd.models.simlabel.imputed_labels import SoftLabelOptions
from probcrowd.models.simlabel.performance import Performance
from probcrowd.models.simlabel.pooled import PooledConfusions
from probcrowd.models.simlabel.queries import Queries
from probcrowd.models.simlabel.residuals import Residuals

ARCHITECTURES: dict[str, Callable[..., Predictor]] = {
    "qumatl": Queries,
    "madl": Performance,
    "padl": Residuals,
    "pooled": PooledConfusions,
}
VARIANTS: dict[str, dict[str, Any]] = {
    # Of .1 and 1 held-out labels mostly choose .1; at 1 soft labels outweigh the labels where most are missing
    "recommended": {"kind": "kappa", "shrink": True, "divergence": "paper", "kl_weight": 0.1},
    "paper": {"kind": "kappa", "shrink": False, "divergence": "paper", "kl_weight": 1.0},
    "released": {"kind": "bennett", "shrink": False, "divergence": "released", "kl_weight": 1.0},
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
        check_option(name, getattr(asked, name), choices)
    check_option("similarity", asked.similarity, (None, *COEFFICIENTS))
    check_training(asked)
    check_number("kl_weight", asked.kl_weight, least=0, others=(None,))
    check_whole("warm_up", asked.warm_up, 0)
    if not (asked.options is None or isinstance(asked.options, Mapping)):
        raise ValueError(f"options={asked.options!r}: give a dictionary of options of the architecture")
    check_number("threshold", asked.threshold, above=0, others=(None,))
    if asked.threshold is not None and asked.threshold > 1:
        raise ValueError(f"threshold={asked.threshold!r}: a confidence is at most 1")
    if asked.threshold is not None and (asked.missing == "skip" or asked.kl_weight == 0):
        raise ValueError("a threshold imputes soft labels, and missing='skip' or kl_weight=0 makes none")
    if asked.imputed == "loss" and asked.threshold is None:
        raise ValueError("imputed='loss' needs a threshold: nothing is imputed without one")
    check_folder(folder, resume)


def asked_how(asked: Any) -> SoftLabelOptions:
    """How missing labels are to be treated."""
    how = VARIANTS[asked.variant] | ({} if asked.similarity is None else {"kind": asked.similarity})
    how |= {} if asked.kl_weight is None else {"kl_weight": float(asked.kl_weight)}
    threshold = None if asked.threshold is None else float(asked.threshold)
    return SoftLabelOptions(
        asked.missing, **how, threshold=threshold, imputed=asked.imputed, warm_up=int(asked.warm_up)
    )


def make_predictor(
    name: str, shape: tuple[int, ...], num_annotators: int, num_classes: int, options: Mapping[str, Any]
) -> Predictor:
    """The predictor of an architecture for embeddings of a shape.

    Raises:
        ValueError: embeddings without a size, or options that the architecture has not.
    """
    if not shape:
        raise ValueError(
            "the encoder gives one number per item; it must give an embedding (b, d), or a feature map (b, channels, ...)"
        )
    try:
        return ARCHITECTURES[name](num_annotators, num_classes, shape, **options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if options:
            raise ValueError(
                f"options={dict(options)!r} do not fit the architecture {name!r}: {error}"
            ) from error
        raise


def embedding_shape(encoder: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """The shape of one embedding.

    Raises:
        ValueError: the encoder gives something else than a tensor of floats with a row per item.
    """
    with torch.no_grad():
        found = encoder(inputs)
    if not isinstance(found, Tensor) or found.dtype != inputs.dtype or len(found) != len(inputs):
        what = (
            f"{tuple(found.shape)} of {found.dtype}"
            if isinstance(found, Tensor)
            else f"a {type(found).__name__}"
        )
        raise ValueError(
            f"the encoder gives {what} for {len(inputs)} items; it must give a tensor of {inputs.dtype}, an embedding per item"
        )
    return tuple(found.shape[1:])


def pair_codes(pairs: pd.DataFrame | None, items: pd.Index, annotators: pd.Index) -> Int[np.ndarray, " w"]:
    """Pairs of item and annotator as item * annotators + annotator.

    Raises:
        ValueError: no such columns, or items or annotators that are not there.
    """
    if pairs is None:
        return np.zeros(0, np.int64)
    if not isinstance(pairs, pd.DataFrame) or not {"item", "annotator"} <= set(pairs.columns):
        raise ValueError("pairs are a data frame with the columns item and annotator, as `imputed_` is")
    codes = []
    for name, known in (("item", items), ("annotator", annotators)):
        ids = pd.Series(pairs[name])
        codes.append(known.get_indexer(pd.Index(ids)))
        reject(codes[-1] < 0, ids, f"pairs of {name}s that the fit has not")
    return np.unique(codes[0] * len(annotators) + codes[1]).astype(np.int64)


def among(
    pairs: Int[np.ndarray, " w"], place: Int[np.ndarray, " i"], num_annotators: int
) -> Int[np.ndarray, " v"]:
    """Codes of pairs by the numbers of the items trained on, which are at those places; pairs of other items are left out."""
    item, annotator = np.divmod(pairs, num_annotators)
    number = pd.Index(place).get_indexer(pd.Index(item))
    return (number * num_annotators + annotator)[number >= 0].astype(np.int64)


def in_order(ids: pd.Index) -> pd.Index:
    """The ids in their order; those that have none, in that of their text."""
    try:
        return ids.sort_values()
    except TypeError:
        return ids[np.argsort(ids.astype(str), kind="stable")]

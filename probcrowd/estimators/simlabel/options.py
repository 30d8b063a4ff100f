"""Parameters of `SimLabel`: architectures and variants by name, checks, and the ids of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor, nn

from probcrowd.data.validation import check_number, check_option, check_whole, reject
from probcrowd.estimators.network.options import check_training
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
    # Held-out labels mostly prefer a weight of .1 to 1: then soft labels outweigh labels if most are missing
    "recommended": {"kind": "kappa", "shrink": True, "divergence": "paper", "kl_weight": 0.1},
    "paper": {"kind": "kappa", "shrink": False, "divergence": "paper", "kl_weight": 1.0},
    "released": {"kind": "bennett", "shrink": False, "divergence": "released", "kl_weight": 1.0},
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "architecture": tuple(ARCHITECTURES),
    "missing": ("similarity", "uniform", "consensus", "skip"),
    "variant": tuple(VARIANTS),
    "similarity": (None, *COEFFICIENTS),
    "imputed": ("similarity", "loss"),
    "selection": ("held-out", "last"),
}


def check(estimator: Any) -> None:
    """Raise a ValueError for parameters that are out of range or do not fit each other."""
    for name, choices in _CHOICES.items():
        check_option(name, getattr(estimator, name), choices)
    check_training(estimator)
    check_number("kl_weight", estimator.kl_weight, least=0, others=(None,))
    check_whole("warm_up", estimator.warm_up, 0)
    if not (estimator.options is None or isinstance(estimator.options, Mapping)):
        raise ValueError(f"options={estimator.options!r}: give a dictionary of options of the architecture")
    check_number("threshold", estimator.threshold, above=0, others=(None,))
    if estimator.threshold is None:
        if estimator.imputed == "loss":
            raise ValueError("imputed='loss' needs a threshold: nothing is imputed without one")
        return
    if estimator.threshold > 1:
        raise ValueError(f"threshold={estimator.threshold!r}: a confidence is at most 1")
    if estimator.missing == "skip" or estimator.kl_weight == 0:
        raise ValueError(
            "a threshold imputes soft labels, and there are none with missing='skip' or kl_weight=0: "
            "set threshold=None"
        )


def soft_labelling(estimator: Any) -> SoftLabelOptions:
    """The options for missing labels that the parameters amount to."""
    options = VARIANTS[estimator.variant] | {"imputed": estimator.imputed, "warm_up": int(estimator.warm_up)}
    if estimator.similarity is not None:
        options["kind"] = estimator.similarity
    for name in ("kl_weight", "threshold"):
        if getattr(estimator, name) is not None:
            options[name] = float(getattr(estimator, name))
    return SoftLabelOptions(estimator.missing, **options)


def make_predictor(
    name: str, shape: tuple[int, ...], num_annotators: int, num_classes: int, options: Mapping[str, Any]
) -> Predictor:
    """Build the predictor of an architecture, for embeddings of a shape.

    Raises:
        ValueError: embeddings without a dimension, or options that the architecture lacks.
    """
    if not shape:
        raise ValueError(
            "the encoder returns one number per item; "
            "it must return an embedding (b, d), or a feature map (b, channels, ...)"
        )
    try:
        return ARCHITECTURES[name](num_annotators, num_classes, shape, **options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if options:
            message = f"options={dict(options)!r} do not fit the architecture {name!r}: {error}"
            raise ValueError(message) from error
        raise


def embedding_shape(encoder: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """The shape of one embedding.

    Raises:
        ValueError: the encoder returns anything but a tensor of floats with a row per item.
    """
    with torch.no_grad():
        output = encoder(inputs)
    if not isinstance(output, Tensor):
        what = f"a {type(output).__name__}"
    elif output.dtype != inputs.dtype or len(output) != len(inputs):
        what = f"{tuple(output.shape)} of {output.dtype}"
    else:
        return tuple(output.shape[1:])
    raise ValueError(
        f"the encoder returns {what} for {len(inputs)} items; "
        f"it must return a tensor of {inputs.dtype} with an embedding per item"
    )


def pair_codes(pairs: pd.DataFrame | None, items: pd.Index, annotators: pd.Index) -> Int[np.ndarray, " w"]:
    """Pairs of item and annotator as item * annotators + annotator, sorted.

    Raises:
        ValueError: missing columns, or unknown items or annotators.
    """
    if pairs is None:
        return np.zeros(0, np.int64)
    if not isinstance(pairs, pd.DataFrame) or not {"item", "annotator"} <= set(pairs.columns):
        raise ValueError("pairs must be a data frame with the columns item and annotator, such as `imputed_`")
    codes = []
    for name, known in (("item", items), ("annotator", annotators)):
        ids = pd.Series(pairs[name])
        codes.append(known.get_indexer(pd.Index(ids)))
        reject(codes[-1] < 0, ids, f"pairs of {name}s that are not in the fit")
    return np.unique(codes[0] * len(annotators) + codes[1]).astype(np.int64)


def renumbered(
    pairs: Int[np.ndarray, " w"], place: Int[np.ndarray, " i"], num_annotators: int
) -> Int[np.ndarray, " v"]:
    """Codes of pairs with items numbered among those at `place`; pairs of other items are dropped."""
    item, annotator = np.divmod(pairs, num_annotators)
    number = pd.Index(place).get_indexer(pd.Index(item))
    return (number * num_annotators + annotator)[number >= 0].astype(np.int64)

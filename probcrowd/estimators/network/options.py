"""Check the parameters that all network estimators share."""

from __future__ import annotations

from typing import Any

from probcrowd.data.validation import check_number, check_whole


def check_training(estimator: Any) -> None:
    """Raise a ValueError for parameters that are out of range or do not fit each other."""
    for name, least in (("epochs", 1), ("batch", 1), ("random_state", 0)):
        check_whole(name, getattr(estimator, name), least)
    check_whole("patience", estimator.patience, others=(None,))
    check_number("learning_rate", estimator.learning_rate, above=0)
    check_number("weight_decay", estimator.weight_decay, least=0)
    check_number("validation_fraction", estimator.validation_fraction, above=0, below=1)
    if estimator.selection == "last" and estimator.patience is not None:
        raise ValueError(
            "patience waits for a better score, and selection='last' has none: set patience=None"
        )

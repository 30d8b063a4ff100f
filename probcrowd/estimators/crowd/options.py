"""What a `CrowdClassifier` is asked for, before anything is learned: parameters that make sense, and labels in one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from probcrowd.data.annotations import Annotations
from probcrowd.data.options import check_number, check_option, check_whole
from probcrowd.estimators.crowd.inputs import Items
from probcrowd.estimators.crowd.methods import find_method


def check(asked: Any, validation: Any, folder: Any, resume: bool) -> None:
    """Refuses parameters of a classifier that cannot be, and those of its fit.

    Raises:
        ValueError: the parameter, what it was, and what it may be.
    """
    find_method(asked.method)
    check_number("initial_accuracy", asked.initial_accuracy, above=0, below=1, others=("published",))
    check_training(asked)
    check_number("channel_learning_rate", asked.channel_learning_rate, above=0, others=(None,))
    check_number("strength", asked.strength, least=0, others=(None, "selected"))
    check_option("selection", asked.selection, ("held-out", "last", "gold"))
    if asked.strength == "selected" and asked.selection == "last":
        raise ValueError(
            "strength='selected' needs selection='held-out' or 'gold': nothing selects otherwise"
        )
    if asked.strength == "selected" and find_method(asked.method).strength is None:
        raise ValueError(f"strength='selected': the method {asked.method!r} has no term that it would weigh")
    if (asked.selection == "gold") != (validation is not None):
        raise ValueError("selection='gold' and validation=(X, classes) go together")
    check_folder(folder, resume)


def check_training(asked: Any) -> None:
    """Refuses parameters of a training that cannot be.

    Raises:
        ValueError: the parameter, what it was, and what it may be.
    """
    for name, least in (("epochs", 1), ("batch", 1), ("random_state", 0)):
        check_whole(name, getattr(asked, name), least)
    check_whole("patience", asked.patience, others=(None,))
    check_number("learning_rate", asked.learning_rate, above=0)
    check_number("weight_decay", asked.weight_decay, least=0)
    if asked.selection == "last" and asked.patience is not None:
        raise ValueError("patience waits for a better score, and selection='last' has none")
    check_number("validation_fraction", asked.validation_fraction, above=0, below=1)


def check_folder(folder: Any, resume: bool) -> None:
    """Refuses to go on nowhere.

    Raises:
        ValueError: there is no folder.
    """
    if resume and folder is None:
        raise ValueError("resume=True needs the folder of the fit to go on with")


def read_said(annotations: Any, missing_label: Any, items: Items) -> Any:
    """Annotations in a form that `read_table` takes: a matrix, with a row per item, becomes an `Annotations`.

    Raises:
        ValueError: a matrix of other rows than the items, or a mark for missing labels where there is no matrix.
    """
    if isinstance(annotations, torch.Tensor):
        annotations = annotations.detach().cpu().numpy()
    if (
        isinstance(annotations, pd.DataFrame) and "label" not in annotations.columns
    ):  # a matrix under ids of its own
        if not annotations.index.isin(items.ids).all():
            raise ValueError(
                "annotations need the columns item, annotator and label; a matrix needs a row per item, under the ids of X"
            )
        return Annotations.from_wide(annotations, missing_label=missing_label)
    if isinstance(annotations, (np.ndarray, list)):
        if len(annotations) != len(items.ids):
            raise ValueError(
                f"a matrix of {len(annotations)} rows for {len(items.ids)} items: give it a row per item, a column per annotator"
            )
        return Annotations.from_wide(annotations, missing_label=missing_label, items=items.ids)
    if missing_label is not None:
        raise ValueError(
            "missing_label marks cells of a matrix; a long table has no row where nobody said anything"
        )
    return annotations

"""Covariates for tests over all models: whatever a model needs, for any annotators and items."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.data.annotations import Annotations
from probcrowd.data.covariates import Covariates
from probcrowd.data.rows import Rows
from probcrowd.models.model import Model


def frame(model: Model, names: tuple[str, ...], ids: Any) -> pd.DataFrame | None:
    """Two groups for covariates that name an axis of the model, numbers for others; None without names."""
    axes = {axis for dims in model.dims.values() for axis in dims}
    groups, numbers = np.array(["even", "odd"])[np.arange(len(ids)) % 2], np.linspace(-1, 1, len(ids))
    columns = {name: groups if name in axes else numbers for name in names}
    return pd.DataFrame(columns, index=ids) if names else None


def annotations_for(model: Model, annotations: Annotations) -> Annotations:
    """The table with the covariates that the model needs."""
    return replace(
        annotations,
        annotator_covariates=frame(model, model.annotator_covariates, annotations.annotators),
        item_covariates=frame(model, model.item_covariates, annotations.items),
    )


def rows_for(model: Model, rows: Rows) -> Rows:
    """The rows with the covariates that the model needs."""
    annotators, items = range(rows.num_annotators), range(rows.num_items)
    return replace(
        rows,
        annotator_covariates=Covariates.from_frame(frame(model, model.annotator_covariates, annotators)),
        item_covariates=Covariates.from_frame(frame(model, model.item_covariates, items)),
    )

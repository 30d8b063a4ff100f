"""Covariates of annotators or items besides labels, such as a group, a language or a length.

`align` validates a user's frame, one row per id. `Covariates` holds its columns as arrays for models: numbers
as they are, anything else as codes into the sorted distinct values, the levels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from probcrowd.data.validation import factorize, plain, reject, sort_ids


def align(frame: Any, ids: pd.Index, plural: str) -> pd.DataFrame | None:
    """Copy the covariates with one row per id, in the order of `ids`; rows of other ids are dropped.

    Raises:
        TypeError: `frame` is not a DataFrame. ValueError: ids without a row or with several, repeated
        columns, missing values, or numbers that are not finite.
    """
    if frame is None:
        return None
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(
            f"covariates of {plural} must be a DataFrame indexed by id, not {type(frame).__name__}"
        )
    if not frame.columns.is_unique:
        raise ValueError(f"covariates of {plural} have repeated columns: {frame.columns.tolist()}")
    index = pd.Series(frame.index)
    repeated = frame.index.duplicated(keep=False) & frame.index.isin(ids)
    reject(repeated, index, f"{plural} with several rows of covariates: give one row each")
    rows = frame.index.get_indexer(ids) if frame.index.is_unique else frame.index.get_indexer_for(ids)
    reject(rows < 0, pd.Series(ids), f"{plural} without covariates: add a row for each", plural)
    aligned = frame.iloc[rows].set_axis(ids, axis=0)
    for name in aligned.columns:
        column = plain(aligned[name])
        reject(
            column.isna().to_numpy(bool), column, f"missing values of the covariate {name!r}: fill them in"
        )
        if is_numeric_dtype(column.dtype):
            values = column.to_numpy(np.float64)
            reject(~np.isfinite(values), column, f"values of the covariate {name!r} that are not finite")
    return aligned.copy()


def equal(left: pd.DataFrame | None, right: pd.DataFrame | None) -> bool:
    """Whether both are absent or hold the same rows and columns in the same order."""
    return left is right if left is None or right is None else left.equals(right)


@dataclass(frozen=True)
class Covariates:
    """Covariates as arrays.

    columns: one value per annotator or item. levels: the values that each column of codes points into.

    >>> groups = Covariates.from_frame(pd.DataFrame({"group": ["novice", "expert", "novice"]}))
    >>> groups["group"], groups.level_names("group")
    (array([1, 0, 1]), ('expert', 'novice'))
    """

    columns: dict[str, Any] = field(default_factory=dict)
    levels: tuple[tuple[str, tuple[str, ...]], ...] = ()  # hashable: static inside compiled functions

    @staticmethod
    def from_frame(frame: pd.DataFrame | None) -> Covariates:
        """Code the columns of an aligned frame."""
        columns, levels = {}, []
        for name, column in {} if frame is None else frame.items():
            if is_numeric_dtype(column.dtype) and not is_bool_dtype(column.dtype):
                columns[str(name)] = column.to_numpy(np.float64)
            else:
                codes, values = sort_ids(*factorize(plain(column)))
                columns[str(name)] = codes
                levels.append((str(name), tuple(str(value) for value in values)))
        return Covariates(columns, tuple(levels))

    def __getitem__(self, name: str) -> Any:
        """The values of one covariate.

        Raises:
            ValueError: the table has no covariate of that name.
        """
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise ValueError(
                f"the model needs the covariate {name!r}; the table has {known}: add it to "
                "annotator_covariates or item_covariates of Annotations (commands: "
                "--annotator-covariates, --item-covariates)"
            )
        return self.columns[name]

    def level_names(self, name: str) -> tuple[str, ...]:
        """The distinct values of a covariate that is coded, in the order of the codes.

        Raises:
            ValueError: the covariate is missing or holds numbers.
        """
        self[name]
        for coded, values in self.levels:
            if coded == name:
                return values
        raise ValueError(f"the covariate {name!r} holds numbers, not groups: convert it to text")

"""Tables of experiments: selected settings, means and errors over seeds, published numbers, texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float


def select_settings(rows: pd.DataFrame, keys: list[str], setting: str) -> pd.DataFrame:
    """Keep the setting with the highest mean `held_out_score` over seeds, for each combination of `keys`."""
    scores: Any = rows.groupby([*keys, setting], sort=False)["held_out_score"]
    mean = scores.mean().dropna().reset_index()
    best = mean.loc[mean.groupby(keys, sort=False)["held_out_score"].idxmax(), [*keys, setting]]
    return rows.merge(best, on=[*keys, setting])


def average_over_seeds(
    rows: pd.DataFrame, keys: list[str], columns: Sequence[str], *, measure: str, percent: Sequence[str]
) -> pd.DataFrame:
    """Means of `columns` for each combination of `keys`, those in `percent` times 100.

    "seeds" is the number of rows, "standard_error" that of the mean of `measure`, as it is scaled; nan for
    one seed.
    """
    groups: Any = rows.groupby(keys, sort=False)
    means = groups[[name for name in columns if name in rows]].mean()
    means[list(percent)] *= 100
    error = (100 if measure in percent else 1) * groups[measure].std(ddof=1) / np.sqrt(groups.size())
    return means.assign(seeds=groups.size(), standard_error=error)[list(columns)].reset_index()


def standard_error(values: Float[np.ndarray, " n"] | pd.Series) -> float:
    """Standard error of the mean of independent values; nan for a single one."""
    return float(np.asarray(values).std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def read_published(experiment: str) -> pd.DataFrame:
    """The numbers that papers report, from published.csv in the folder of the experiment."""
    with (files("probcrowd.experiments") / experiment / "published.csv").open() as file:
        return pd.read_csv(file)


def format_results(
    table: pd.DataFrame, by: list[str], heading: str, columns: str, axis: str | None = None
) -> str:
    """Format a text table for each combination of `by`: `name` down, `columns` across, `cell` inside.

    Numbers across ascend. axis: the name shown above the rows.
    """
    parts = []
    groups: Any = table.groupby(by, sort=False)
    for keys, part in groups:
        wide = part.pivot_table(index="name", columns=columns, values="cell", aggfunc="first", sort=False)
        if pd.api.types.is_numeric_dtype(wide.columns):
            wide = wide.sort_index(axis=1)
        text = wide.rename_axis(None).rename_axis(axis, axis=1).to_string(na_rep="")
        parts.append(f"{heading.format(*keys)}\n{text}")
    return "\n\n".join(parts)


def format_errors(table: pd.DataFrame, measure: str) -> list[str]:
    """Each mean with its standard error, 0 where unknown: "81.2±0.4"."""
    errors = table["standard_error"].fillna(0.0)
    return [f"{mean:.1f}±{error:.1f}" for mean, error in zip(table[measure], errors, strict=True)]

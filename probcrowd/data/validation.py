"""Validate what users give: the columns of their tables, and options by name.

Columns become codes that point into ids. Ids and labels may be text, whole or decimal numbers, booleans,
dates or tuples, in any of pandas' encodings; equivalent columns give the same codes. Invalid input raises one
ValueError that says what was given, where (the first few rows and how many there are), and what to do or may
be given instead.
"""

import math
from collections.abc import Hashable, Iterable
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from pandas.api.types import (
    infer_dtype,
    is_bool_dtype,
    is_extension_array_dtype,
    is_float_dtype,
    is_numeric_dtype,
)

PLURALS = {
    "item": "items",
    "annotator": "annotators",
    "label": "classes",
}  # codes, and the ids they point into
_KINDS = {
    "string": "text",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "decimal": "number",
}
_SHOWN = 5


NAMES = {
    "item": ("item", "task"),
    "annotator": ("annotator", "worker", "rater", "user"),
    "label": ("label",),
    "weight": (),
}  # usual names of columns by role; a column of weights has to be named


def reject(
    bad: Bool[np.ndarray, " n"], values: pd.Series | np.ndarray, message: str, unit: str = "rows"
) -> None:
    """Raise ValueError if any row is bad; the message lists the first few row labels and distinct values."""
    if not bad.any():
        return
    offending = pd.Series(values).loc[bad]
    distinct = offending.astype(object).map(repr).drop_duplicates().tolist()
    rows, seen = (
        ", ".join(part[:_SHOWN]) + ", ..." * (len(part) > _SHOWN)
        for part in (list(map(repr, offending.index.tolist())), distinct)
    )
    raise ValueError(f"{message} ({len(offending)} of {len(bad)} {unit}: {rows}; values: {seen})")


def find_columns(frame: pd.DataFrame, named: dict[str, Hashable | None]) -> dict[str, pd.Series]:
    """Find the column of each role by its name or its usual names.

    Raises:
        ValueError: roles without a column or with several, all reported together.
    """
    candidates, problems = {}, []
    for role, name in named.items():
        wanted = NAMES[role] if name is None else (name,)
        candidates[role] = [column for column in frame.columns if column in wanted]
        if wanted and not candidates[role]:
            problems.append(f"no column {' or '.join(map(repr, wanted))} for {role}=")
        elif len(candidates[role]) > 1:
            problems.append(f"several columns {', '.join(map(repr, candidates[role]))} for {role}=")
    chosen = {role: columns[0] for role, columns in candidates.items() if columns}
    if not problems and len(set(chosen.values())) < len(chosen):
        roles = ", ".join(f"{role}={column!r}" for role, column in chosen.items())
        problems.append(f"one column has two roles ({roles})")
    if problems:
        known = frame.columns.tolist()
        raise ValueError(f"{'; '.join(problems)}: name one column for each. The columns are {known}")
    return {role: pd.Series(frame[column]) for role, column in chosen.items()}


def plain(column: pd.Series) -> pd.Series:
    """Decode dictionaries of Arrow and nullable floats."""
    if isinstance(column.dtype, pd.ArrowDtype) and str(column.dtype).startswith("dictionary"):
        return column.astype(pd.ArrowDtype(column.dtype.pyarrow_dtype.value_type))
    if is_extension_array_dtype(column.dtype) and is_float_dtype(column.dtype):
        # NaN is not NA in nullable floats: it would become an id
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan), index=column.index)
    return column


def undo_float(column: pd.Series) -> pd.Series:
    """Convert a float column of whole numbers to int64; pandas makes them floats to make room for NaN."""
    if column.dtype.kind == "f" and ((column % 1 == 0) & (column.abs() < 2**53)).all():
        return column.astype(np.int64)
    return column


def factorize(column: pd.Series) -> tuple[Int64[np.ndarray, " n"], pd.Index]:
    """Return codes in order of first appearance, -1 where missing, and the ids they point into."""
    try:
        codes, values = pd.factorize(column.array)
    except TypeError:  # a list, a set or a dict among them
        hashable = np.array([isinstance(value, Hashable) for value in column], dtype=bool)
        reject(
            ~hashable, column, "ids and labels must be single values such as text or numbers; convert these"
        )
        raise
    if isinstance(values, pd.Categorical):
        values = values.categories.take(values.codes)
    return codes.astype(np.int64), pd.Index(values).infer_objects()


def _kind(ids: pd.Index) -> str:
    if is_bool_dtype(ids.dtype):
        return "boolean"
    if is_numeric_dtype(ids.dtype):
        return "number"
    name = infer_dtype(ids.astype(object))
    return _KINDS.get(name, name)


def _value_kind(value: Any) -> str:
    name = infer_dtype([value], skipna=False)
    return type(value).__name__ if name == "mixed" else _KINDS.get(name, name)


def _check_kinds(column: pd.Series, what: str) -> None:
    """Raise ValueError for several types of values, which hashing would merge (True, 1) or part (1, "1")."""
    values = column.dtype.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    name = infer_dtype(values, skipna=True)
    if values.dtype != object or not name.startswith("mixed") or name in _KINDS:
        return
    present = column.astype(object).loc[column.notna()]
    kinds = pd.Series([_value_kind(value) for value in present])
    first = np.flatnonzero(~kinds.duplicated())
    if len(first) > 1:
        examples = (f"{kinds.iloc[n]} {present.iloc[n]!r} (row {present.index[n]!r})" for n in first)
        raise ValueError(f"{what} of several kinds: {', '.join(examples)}; convert them to one kind")


def declare(ids: Any, plural: str) -> pd.Index:
    """Copy ids to an Index and check it: one type, none missing, none repeated."""
    index = pd.Index(ids)
    column = plain(pd.Series(index.to_flat_index() if isinstance(index, pd.MultiIndex) else index))
    reject(
        column.isna().to_numpy(bool), column, f"missing ids in `{plural}`; name or remove these", "positions"
    )
    _check_kinds(column, f"ids in `{plural}`")
    values = factorize(column)[1]
    if len(values) < len(column):
        reject(
            column.duplicated(keep=False).to_numpy(bool),
            column,
            f"repeated ids in `{plural}`; each must be there once",
            "positions",
        )
    return values.rename(plural)  # factorize has copied them


def encode(column: pd.Series, role: str, declared: Any) -> tuple[Int64[np.ndarray, " n"], pd.Index]:
    """Code a column by the declared ids or, without them, by its own values in order of first appearance."""
    column, plural = plain(column), PLURALS[role]
    reject(
        column.isna().to_numpy(bool), column, f"missing {role} ids; remove these rows or name their {role}"
    )
    _check_kinds(column, f"{role} values")
    codes, values = factorize(column)
    if is_float_dtype(values.dtype):
        reject(
            np.isinf(values.to_numpy())[codes],
            column,
            f"infinite {role} values; correct or remove these rows",
        )
    if declared is None:
        return codes, values
    ids = declare(declared, plural)
    lookup, kinds = ids.get_indexer(values), (_kind(values), _kind(ids))
    message = f"{role} values outside the declared `{plural}`: correct the rows, or declare these values too."
    if kinds[0] != kinds[1]:
        types = f"the column is {kinds[0]}, `{plural}` is {kinds[1]}"
        message += f" The types differ: {types}; convert one of them."
    reject(lookup[codes] < 0, column, message)
    return lookup[codes].astype(np.int64), ids


def sort_ids(codes: Int64[np.ndarray, " n"], ids: pd.Index) -> tuple[Int64[np.ndarray, " n"], pd.Index]:
    """Sort the ids and recode the labels."""
    try:
        order = np.asarray(ids.argsort(), dtype=np.int64)
    except TypeError as error:
        raise ValueError(f"labels such as {ids[0]!r} have no order: declare classes") from error
    return np.argsort(order)[codes], ids[order]


def read_weights(column: pd.Series) -> Float64[np.ndarray, " n"]:
    """Check a column of weights: finite numbers > 0."""
    values = column.infer_objects()
    numeric = is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype)
    if not numeric:
        number = np.array([_value_kind(value) == "number" for value in values], dtype=bool)
        reject(~number, column, "weights must be numbers; convert these rows")
    weights = values.to_numpy(np.float64, na_value=np.nan)
    reject(
        ~(np.isfinite(weights) & (weights > 0)),
        column,
        "weights must be finite and > 0; correct or remove these rows",
    )
    return weights


def find_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Return the one of `names` that is `name` up to case, hyphens and underscores.

    >>> find_name("model", "Dawid_Skene", ["dawid-skene", "glad"])
    'dawid-skene'

    Raises:
        ValueError: there is none.
    """
    known = {_plain(each): each for each in names}
    if _plain(name) not in known:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {_listed(known.values())}")
    return known[_plain(name)]


def check_option(name: str, value: Any, options: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the options."""
    options = list(options)
    if value not in options:
        raise ValueError(f"{name}={value!r}: choose one of {_listed(options)}")


def check_whole(name: str, value: Any, least: int = 1, others: tuple[Any, ...] = ()) -> None:
    """Raise ValueError unless the value is a whole number of at least `least`, or one of `others`."""
    if value not in others and not (isinstance(value, Integral) and int(value) >= least):
        raise ValueError(f"{name}={value!r}: choose a whole number of at least {least}{_or(others)}")


def check_number(
    name: str,
    value: Any,
    *,
    above: int | None = None,
    least: int | None = None,
    below: int | None = None,
    others: tuple[Any, ...] = (),
) -> None:
    """Raise ValueError unless the value is finite, > above, >= least and < below, or one of `others`."""
    fits = isinstance(value, (int, float, np.number)) and math.isfinite(value)
    fits = fits and (above is None or value > above) and (least is None or value >= least)
    if value in others or (fits and (below is None or value < below)):
        return
    bounds = f">= {least}" if above is None else f"> {above}"
    if above is not None and below is not None:
        bounds = f"between {above} and {below}"
    raise ValueError(f"{name}={value!r}: choose a number {bounds}{_or(others)}")


def _or(others: tuple[Any, ...]) -> str:
    return "".join(f" or {other!r}" for other in others)


def _listed(options: Iterable[Any]) -> str:
    words = list(map(str, options))
    return ("; " if any("," in word for word in words) else ", ").join(words)


def _plain(name: str) -> str:
    return name.replace("_", "-").lower()

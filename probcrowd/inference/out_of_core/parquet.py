"""Read annotations from a Parquet file or a folder of files, a batch at a time, and validate them.

    survey(path)             ->  files, pieces (consecutive row groups of a file), columns with their kinds
    batches(piece, columns)  ->  item, annotator, label, weight, as int64, text or boolean

`survey` reads no rows; `batches` reads a million at a time. All files have the columns, and each column is of
the same kind in all of them. Whole numbers may be stored as floats, as pandas does in columns with missing
values; text may be dictionary-encoded. Memory: a batch, and the compressed columns of one row group.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from probcrowd.data.files import some
from probcrowd.data.validation import find_columns

_BATCH_ROWS = 2**20
_TYPES = {"number": pa.int64(), "text": pa.large_string(), "boolean": pa.bool_(), "weight": pa.float64()}


@dataclass(frozen=True)
class Column:
    """The column of a role: its name in the files, and the kind of its values (a key of `_TYPES`)."""

    name: str
    kind: str


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of a file; `first_row` is the position of their first row in the file."""

    number: int
    file: Path
    row_groups: tuple[int, ...]
    first_row: int


@dataclass(frozen=True)
class Survey:
    """Files, pieces, columns by role and the number of rows of a data set."""

    files: tuple[Path, ...]
    pieces: tuple[Piece, ...]
    columns: dict[str, Column]
    num_rows: int


def survey(path: Path, names: dict[str, str | None], piece_rows: int) -> Survey:
    """Split a file, or the *.parquet files in a folder and its subfolders, into pieces, ordered by path.

    names: the column of each role, None for the default; weight None: each row counts once. Files and folders
    whose names begin with a dot or an underscore are skipped. A piece has about `piece_rows` rows, or one row
    group.

    Raises:
        ValueError: no file, no row, a file that is not Parquet, absent columns, or a column of several kinds.
    """
    files = _files(path)
    columns: dict[str, Column] = {}
    pieces: list[Piece] = []
    num_rows = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is not a valid Parquet file ({error}); repair or remove it") from error
        current = {
            role: Column(name, _kind(role, schema.field(name), file))
            for role, name in _names(schema, names, columns, file).items()
        }
        for role, column in current.items():
            if columns and columns[role] != column:
                raise ValueError(
                    f"the {role} column {column.name!r} is {column.kind} in {file} and {columns[role].kind} "
                    f"in {files[0]}; convert one of them"
                )
        columns = current
        pieces += _pieces(
            file,
            [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)],
            piece_rows,
            len(pieces),
        )
        num_rows += metadata.num_rows
    if num_rows == 0:
        raise ValueError(f"{path} holds no annotations: {len(files)} files without rows")
    return Survey(tuple(files), tuple(pieces), columns, num_rows)


def batches(piece: Piece, columns: dict[str, Column]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a piece, in order, as columns named by role.

    Raises:
        ValueError: missing items, annotators or labels, numbers that are not whole, or weights that are not
            finite and positive.
    """
    row = piece.first_row
    with pq.ParquetFile(piece.file, buffer_size=2**20) as file:
        wanted = [column.name for column in columns.values()]
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=list(piece.row_groups), columns=wanted):
            yield pa.record_batch(
                {
                    role: _checked(batch[column.name], role, column, piece.file, row)
                    for role, column in columns.items()
                }
            )
            row += len(batch)


def as_ids(values: pa.Array, kind: str) -> pa.Array:
    """Convert ids to the type of their kind.

    Raises:
        ValueError: they are of another kind.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(_TYPES[kind])


def kind_of(values: pa.DataType) -> str:
    """Return "number", "text", "boolean", or the name of any other type."""
    values = values.value_type if pa.types.is_dictionary(values) else values
    if pa.types.is_integer(values) or pa.types.is_floating(values):
        return "number"
    if pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values):
        return "text"
    return "boolean" if pa.types.is_boolean(values) else str(values)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet"), key=lambda file: file.relative_to(path).parts)
    files = [
        file
        for file in files
        if file.is_file() and not any(part[0] in "._" for part in file.relative_to(path).parts)
    ]
    if not files:
        raise ValueError(f"{path} is neither a file nor a folder with *.parquet files")
    return files


def _names(
    schema: pa.Schema, names: dict[str, str | None], earlier: dict[str, Column], file: Path
) -> dict[str, str]:
    """Return the column of each role, as in earlier files."""
    wanted: dict[str, Hashable | None] = {
        role: earlier[role].name if role in earlier else name for role, name in names.items()
    }
    try:
        chosen = find_columns(pd.DataFrame(columns=pd.Index(schema.names)), wanted)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return {role: str(column.name) for role, column in chosen.items()}


def _kind(role: str, field: pa.Field, file: Path) -> str:
    kind = "text" if pa.types.is_null(field.type) else kind_of(field.type)
    if role == "weight" and kind == "number":
        return "weight"
    if kind not in _TYPES or role == "weight":
        needed = "numbers" if role == "weight" else "text, whole numbers or booleans"
        raise ValueError(
            f"the {role} column {field.name!r} of {file} must hold {needed}, not {field.type}; convert it"
        )
    return kind


def _pieces(file: Path, sizes: list[int], piece_rows: int, number: int) -> list[Piece]:
    pieces, groups, first, rows = [], [], 0, 0
    for group, size in enumerate(sizes):
        groups.append(group)
        rows += size
        if rows and (rows >= piece_rows or group == len(sizes) - 1):
            pieces.append(Piece(number + len(pieces), file, tuple(groups), first))
            groups, first, rows = [], first + rows, 0
    return pieces


def _checked(values: pa.Array, role: str, column: Column, file: Path, row: int) -> pa.Array:
    where = f"{role} column {column.name!r} of {file}"
    _reject(
        values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False),
        values,
        f"the {where} has missing values; remove these rows, or fill them in",
        row,
    )
    if column.kind == "weight":
        values = values.cast(pa.float64())
        number = values.to_numpy()
        _reject(
            ~(np.isfinite(number) & (number > 0)),
            values,
            f"the {where} must be finite and > 0; correct or remove these rows",
            row,
        )
        return values
    if pa.types.is_floating(values.type):
        number = values.to_numpy()
        _reject(
            number != np.rint(number),
            values,
            f"the {where} has numbers that are not whole; convert them",
            row,
        )
    try:
        return as_ids(values, column.kind)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"the {where} does not fit into {_TYPES[column.kind]} ({error}); convert it to text"
        ) from error


def _reject(bad: Bool[np.ndarray, " n"], values: pa.Array, message: str, first_row: int) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        examples = dict.fromkeys(values.take(pa.array(rows[:5])).to_pylist())
        raise ValueError(
            f"{message} (rows {some((rows[:6] + first_row).tolist())}, counted from 0; "
            f"values: {some(list(examples))})"
        )

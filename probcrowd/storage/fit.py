"""What the folders of all fits share: a record of what a fit depends on, and ids that come back as they were."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from probcrowd.data.files import some
from probcrowd.storage.checkpoint import Checkpoint, load_checkpoint
from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, read_written


class FitSettings(Settings):
    """What a fit depends on: its parameters as JSON, and a sum over the data."""

    out: Path
    parameters: str
    data: str


def fit_settings(
    out: Path, parameters: Mapping[str, Any], arrays: Iterable[np.ndarray | None], ids: Mapping[str, pd.Index]
) -> FitSettings:
    """The settings of a fit to these arrays under these ids.

    Raises:
        ValueError: parameters or ids that a file would not give back.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(
            b"-" if array is None else np.ascontiguousarray(array).tobytes() + str(array.shape).encode()
        )
    for some_ids in ids.values():
        _packed(some_ids)  # better now than after the fit
        digest.update(repr(list(some_ids)).encode())
    return FitSettings(
        out=out,
        parameters=json.dumps(dict(parameters), sort_keys=True, default=_plain),
        data=digest.hexdigest(),
    )


def save_ids(path: Path, ids: Mapping[str, pd.Index]) -> None:
    """Writes NAME.parquet for each."""
    for name, index in ids.items():
        write_atomically(path / f"{name}.parquet", _packed(index))


def load_ids(path: Path, names: Iterable[str]) -> dict[str, pd.Index]:
    """The ids of those names."""
    return {name: _ids(path / f"{name}.parquet").rename(name) for name in names}


def read_finished(
    path: Path, names: Iterable[str], what: str
) -> tuple[dict[str, Any], dict[str, pd.Index], Checkpoint]:
    """Parameters, ids of those names, and the model of a finished fit.

    Raises:
        ValueError: there is none in the folder, or files of it are damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no fit: it has no {folder.config.name}")
    if not folder.model.is_file():
        raise ValueError(f"the fit in {path} has not finished: fit the same data with resume=True")
    try:
        written, ids = read_written(FitSettings, folder.config), load_ids(path, names)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds no fit of {what}, or files of it are damaged: {error}") from error
    return json.loads(written.parameters), ids, load_checkpoint(folder.model)


def _packed(ids: pd.Index) -> bytes:
    """The ids as a Parquet file."""
    buffer = io.BytesIO()
    try:
        pd.DataFrame({"id": ids}).to_parquet(buffer)
        same = list(_ids(buffer)) == list(ids)
    except (pa.ArrowException, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"a folder keeps ids that are text, numbers, booleans or dates, not such as {some(ids)}"
        )
    return buffer.getvalue()


def _ids(file: Path | io.BytesIO) -> pd.Index:
    return pd.Index(pd.read_parquet(file)["id"])


def _plain(value: Any) -> Any:
    """What JSON takes in the place of a parameter."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a folder keeps parameters that are text or numbers, not {value!r}")

"""One fit, one folder: what the fit depends on, checkpoints while it runs, and at the end what it learned.

config.json           the estimator, its parameters, and a checksum of the data
provenance.json       versions and date of the start
metrics.jsonl         one line per step
checkpoint*           the newest and the previous state of the training
NAME.parquet          the user's ids, one file for each kind
model.safetensors     what the fit learned; written last, so a folder that has it is complete
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from probcrowd.data.files import some
from probcrowd.storage.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    save_latest,
    under,
)
from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, read_written


class FitSettings(Settings):
    """What a fit depends on. parameters: as JSON; data: a checksum of arrays and ids."""

    estimator: str
    parameters: str
    data: str


@dataclass(frozen=True)
class FitFolder:
    """The folder of a fit, locked for this process. checkpoint: the newest one, if the fit is resumed."""

    folder: RunFolder
    checkpoint: Checkpoint | None

    @property
    def path(self) -> Path:
        return self.folder.path

    def save_checkpoint(
        self, step: int, metrics: Mapping[str, float], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Append a line of metrics, then write the newest checkpoint.

        A kill between the two leaves a line too many, which is removed when the fit is resumed.
        """
        self.folder.append_metrics({"step": step, **metrics})
        save_latest(self.path, tensors, {"step": step, "state": dict(state)})

    def save(
        self, ids: Mapping[str, pd.Index], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Write the finished fit."""
        for name, index in ids.items():
            write_atomically(self.path / f"{name}.parquet", _parquet(pd.DataFrame({"id": index})))
        save_checkpoint(self.folder.model, tensors, {"ids": list(ids), "state": dict(state)})


@dataclass(frozen=True)
class SavedFit:
    """A finished fit as `FitFolder.save` wrote it, with the parameters of its estimator."""

    parameters: dict[str, Any]
    ids: dict[str, pd.Index]
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]


@contextmanager
def open_fit(
    path: Path | str | None,
    *,
    resume: bool,
    estimator: str,
    parameters: Mapping[str, Any],
    arrays: Iterable[np.ndarray | None],
    ids: Mapping[str, pd.Index],
) -> Iterator[FitFolder | None]:
    """Open and lock the folder of a fit; yield None without a path.

    Raises:
        ValueError: `resume` without a path; a folder in use, of other files or of a fit with other settings;
            parameters or ids that cannot be read back from a file.
    """
    if path is None:
        if resume:
            raise ValueError("resume=True needs the folder of the fit to resume: pass it as `folder`")
        yield None
        return
    with RunFolder(Path(path)) as folder:
        for index in ids.values():
            _require_stored(index)  # fail now rather than after the fit
        text = json.dumps(dict(parameters), sort_keys=True, default=_json_value)
        data = _checksum(arrays, ids.values())
        resumed = folder.start(FitSettings(estimator=estimator, parameters=text, data=data), resume)
        checkpoint = load_latest(folder.path) if resumed else None
        folder.truncate_metrics(0 if checkpoint is None else checkpoint.state["step"])
        if checkpoint is not None:
            checkpoint = Checkpoint(checkpoint.tensors, checkpoint.state["state"])
        yield FitFolder(folder, checkpoint)


def stored_table(folder: FitFolder | None, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Load NAME.parquet from the folder, or compute the table and write it there if there is a folder."""
    if folder is None:
        return compute()
    if not (folder.path / f"{name}.parquet").is_file():
        write_atomically(folder.path / f"{name}.parquet", _parquet(compute()))
    return load_table(folder.path, name)


def load_table(path: Path | str, name: str) -> pd.DataFrame:
    """Load the table that `stored_table` wrote."""
    return pd.read_parquet(Path(path) / f"{name}.parquet")


def load_fit(path: Path | str, estimator: str) -> SavedFit:
    """Load the finished fit of an estimator from its folder.

    Raises:
        ValueError: no fit there, an unfinished one, one of another estimator, or damaged files.
    """
    folder = RunFolder(Path(path))
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no fit: it has no {folder.config.name}")
    if not folder.model.is_file():
        raise ValueError(f"the fit in {path} has not finished: fit the same data with resume=True")
    damaged = f"{path} holds no fit of {estimator}, or its files are damaged"
    try:
        settings = read_written(FitSettings, folder.config)
    except (OSError, ValueError) as error:
        raise ValueError(f"{damaged}: {error}") from error
    if settings.estimator != estimator:
        loader = "load_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", settings.estimator).lower()
        raise ValueError(
            f"{path} holds a fit of {settings.estimator}, not of {estimator}: load it with {loader}"
        )
    model = load_checkpoint(folder.model)
    try:
        ids = {name: pd.Index(load_table(path, name)["id"], name=name) for name in model.state["ids"]}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{damaged}: {error}") from error
    return SavedFit(json.loads(settings.parameters), ids, model.tensors, dict(model.state["state"]))


def array_tensors(prefix: str, record: Any) -> dict[str, Tensor]:
    """The arrays (copied) and tensors among the fields of a record, by names "prefix/field"."""
    fields = {name: value for name, value in vars(record).items() if isinstance(value, (np.ndarray, Tensor))}
    return {
        f"{prefix}/{name}": value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        for name, value in fields.items()
    }


def arrays_under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors named "prefix/field" as arrays by field."""
    return {name: value.numpy() for name, value in under(prefix, tensors).items()}


def _checksum(arrays: Iterable[np.ndarray | None], ids: Iterable[pd.Index]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        data = b"-" if array is None else np.ascontiguousarray(array).tobytes() + str(array.shape).encode()
        digest.update(data)
    for index in ids:
        digest.update(repr(list(index)).encode())
    return digest.hexdigest()


def _require_stored(ids: pd.Index) -> None:
    """Raise a ValueError for ids that a file would not give back."""
    try:
        same = list(pd.read_parquet(io.BytesIO(_parquet(pd.DataFrame({"id": ids}))))["id"]) == list(ids)
    except (pa.ArrowException, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f"a folder stores ids that are text, numbers, booleans or dates, not {some(ids)}")


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def _json_value(value: Any) -> Any:
    """A parameter that JSON does not know, as one that it knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a folder stores parameters that are text or numbers, not {value!r}")

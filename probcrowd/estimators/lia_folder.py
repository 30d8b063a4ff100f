"""A fit of LIA in a folder: settings, a checkpoint after every round, and at the end all that answers need.

config.json, provenance.json, metrics.jsonl, checkpoint*.safetensors, model.safetensors   as in every run
items.parquet, annotators.parquet, classes.parquet                                        ids
spreads.parquet                                                                           where held-out labels chose the prior
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from probcrowd.estimators.table import Table
from probcrowd.inference.gem_fit import State
from probcrowd.models.lia_prior import Inputs, LIAPrior
from probcrowd.storage.checkpoint import load_checkpoint, load_latest, save_checkpoint, save_latest, under
from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, read_written
from probcrowd.tables import some

_SPREADS = "spreads.parquet"
_IDS = ("items", "annotators", "classes")


class FitSettings(Settings):
    """What a fit depends on: its parameters as JSON, and a sum over the data."""

    out: Path
    parameters: str
    data: str


def settings_of(out: Path, parameters: Mapping[str, Any], table: Table, inputs: Inputs) -> FitSettings:
    """The settings of a fit to this data.

    Raises:
        ValueError: parameters or ids that a file would not give back.
    """
    digest = hashlib.sha256()
    for array in (*_arrays(table).values(), inputs.item_features, inputs.annotator_features, inputs.question):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes() + str(array.shape).encode())
    for ids in (table.items, table.annotators, table.classes):
        _packed(ids)  # better now than after the fit
        digest.update(repr(list(ids)).encode())
    return FitSettings(out=out, parameters=json.dumps(dict(parameters), sort_keys=True, default=_plain), data=digest.hexdigest())


def save_state(folder: RunFolder, state: State) -> None:
    """Makes this the newest checkpoint of the fit."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"moments/{name}": value for name, value in state.moments.items()}
    progress = {"unit": state.unit, "values": list(state.values), "steps": state.steps, "converged": state.converged}
    progress |= {"order": list(state.parameters)}  # sums depend on it, in their last bits; a file has its own
    folder.append_metrics({"step": state.unit, "log_posterior": state.values[-1]})  # first: a line too many goes when the fit goes on
    save_latest(folder.path, tensors, progress)


def load_state(folder: RunFolder) -> State | None:
    """Where the fit stands; None before its first checkpoint."""
    found = load_latest(folder.path)
    folder.truncate_metrics(0 if found is None else found.state["unit"])
    if found is None:
        return None
    progress = dict(found.state)
    parameters, order = under("parameters", found.tensors), progress.pop("order")
    return State({name: parameters[name] for name in order}, moments=under("moments", found.tensors), **progress)


def save_spreads(path: Path, tried: pd.DataFrame) -> None:
    """Keeps what held-out labels said of spreads, to the bit."""
    packed = io.BytesIO()
    tried.to_parquet(packed)
    write_atomically(path / _SPREADS, packed.getvalue())


def load_spreads(path: Path) -> pd.DataFrame | None:
    """What held-out labels said of spreads; None where it is not there."""
    return pd.read_parquet(path / _SPREADS) if (path / _SPREADS).is_file() else None


def save_fit(
    folder: RunFolder, table: Table, arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Writes ids, table and fit; the model last, so that a folder with it is whole."""
    for name in _IDS:
        write_atomically(folder.path / f"{name}.parquet", _packed(getattr(table, name)))
    tensors = {f"parameters/{name}": value for name, value in parameters.items()}
    tensors |= {f"table/{name}": torch.from_numpy(np.array(array)) for name, array in _arrays(table).items() if array is not None}
    tensors |= {f"arrays/{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    save_checkpoint(folder.model, tensors, {"num_labels": table.num_labels, **state})


def load_fit(path: Path) -> tuple[dict[str, Any], Table, dict[str, np.ndarray], dict[str, Tensor], dict[str, Any]]:
    """Parameters of the estimator, table, arrays, the networks' parameters and state of a finished fit.

    Raises:
        ValueError: there is none in the folder, or files of it are damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} holds no fit: it has no {folder.config.name}")
    if not folder.model.is_file():
        raise ValueError(f"the fit in {path} has not finished: fit the same data with resume=True")
    try:
        written = read_written(FitSettings, folder.config)
        ids = {name: _ids(path / f"{name}.parquet").rename(name) for name in _IDS}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds no fit of LIA, or files of it are damaged: {error}") from error
    saved = load_checkpoint(folder.model)
    state = dict(saved.state)
    arrays = {name: value.numpy() for name, value in under("table", saved.tensors).items()}
    parts: dict[str, Any] = {"weight": None} | arrays | ids
    table = Table(**parts, num_labels=state.pop("num_labels"))
    others = {name: value.numpy() for name, value in under("arrays", saved.tensors).items()}
    return json.loads(written.parameters), table, others, under("parameters", saved.tensors), state


def _packed(ids: pd.Index) -> bytes:
    """The ids as a Parquet file."""
    buffer = io.BytesIO()
    try:
        pd.DataFrame({"id": ids}).to_parquet(buffer)
        same = list(_ids(buffer)) == list(ids)
    except (pa.ArrowException, TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f"a folder keeps ids that are text, numbers, booleans or dates, not such as {some(ids)}")
    return buffer.getvalue()


def _ids(file: Path | io.BytesIO) -> pd.Index:
    return pd.Index(pd.read_parquet(file)["id"])


def _plain(value: Any) -> Any:
    """What JSON takes in the place of a parameter."""
    if isinstance(value, LIAPrior):
        return vars(value)
    if isinstance(value, np.generic):
        return value.item()
    raise ValueError(f"a folder keeps parameters that are text or numbers, not {value!r}")


def _arrays(table: Table) -> dict[str, np.ndarray | None]:
    return {"item": table.item, "annotator": table.annotator, "label": table.label, "weight": table.weight, "gold": table.gold}

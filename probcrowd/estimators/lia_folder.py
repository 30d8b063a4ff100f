"""A fit of LIA in a folder: settings, a checkpoint after every round, and at the end all that answers need.

config.json, provenance.json, metrics.jsonl, checkpoint*.safetensors, model.safetensors   as in every run
items.parquet, annotators.parquet, classes.parquet                                        ids
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
import torch
from torch import Tensor

from probcrowd.estimators.table import Table
from probcrowd.inference.gem_fit import State
from probcrowd.models.lia_prior import Inputs
from probcrowd.storage.checkpoint import Checkpoint, load_checkpoint, load_latest, save_checkpoint, save_latest
from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, read_written

_IDS = ("items", "annotators", "classes")


class FitSettings(Settings):
    """What a fit depends on: its parameters as JSON, and a sum over the data."""

    out: Path
    parameters: str
    data: str


def settings_of(out: Path, parameters: Mapping[str, Any], table: Table, inputs: Inputs) -> FitSettings:
    """The settings of a fit to this data."""
    digest = hashlib.sha256()
    for array in (*_arrays(table).values(), inputs.item_features, inputs.annotator_features, inputs.question):
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes() + str(array.shape).encode())
    for ids in (table.items, table.annotators, table.classes):
        digest.update(repr(list(ids)).encode())
    return FitSettings(out=out, parameters=json.dumps(dict(parameters), sort_keys=True, default=vars), data=digest.hexdigest())


def save_state(folder: RunFolder, state: State) -> None:
    """Makes this the newest checkpoint of the fit."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"moments/{name}": value for name, value in state.moments.items()}
    progress = {"unit": state.unit, "values": list(state.values), "steps": state.steps, "converged": state.converged}
    save_latest(folder.path, tensors, progress)
    folder.append_metrics({"step": state.unit, "log_posterior": state.values[-1]})


def load_state(folder: RunFolder) -> State | None:
    """Where the fit stands; None before its first checkpoint."""
    found = load_latest(folder.path)
    folder.truncate_metrics(0 if found is None else found.state["unit"])
    if found is None:
        return None
    return State(_under(found, "parameters"), moments=_under(found, "moments"), **found.state)


def save_fit(
    folder: RunFolder, table: Table, arrays: Mapping[str, np.ndarray], parameters: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Writes ids, table and fit; the model last, so that a folder with it is whole."""
    for name in _IDS:
        buffer = io.BytesIO()
        pd.DataFrame({"id": getattr(table, name)}).to_parquet(buffer)
        write_atomically(folder.path / f"{name}.parquet", buffer.getvalue())
    tensors = {f"parameters/{name}": value for name, value in parameters.items()}
    tensors |= {f"table/{name}": torch.from_numpy(array) for name, array in _arrays(table).items() if array is not None}
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
    saved, written = load_checkpoint(folder.model), read_written(FitSettings, folder.config)
    ids = {name: pd.Index(pd.read_parquet(path / f"{name}.parquet")["id"], name=None) for name in _IDS}
    state = dict(saved.state)
    arrays = {name: value.numpy() for name, value in _under(saved, "table").items()}
    parts: dict[str, Any] = {"weight": None} | arrays | ids
    table = Table(**parts, num_labels=state.pop("num_labels"))
    others = {name: value.numpy() for name, value in _under(saved, "arrays").items()}
    return json.loads(written.parameters), table, others, _under(saved, "parameters"), state


def _arrays(table: Table) -> dict[str, np.ndarray | None]:
    return {"item": table.item, "annotator": table.annotator, "label": table.label, "weight": table.weight, "gold": table.gold}


def _under(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in checkpoint.tensors.items() if name.startswith(f"{prefix}/")}

"""A fit of LIA in a folder: settings, a checkpoint after every round, and at the end all that answers need.

config.json, provenance.json, metrics.jsonl, checkpoint*.safetensors, model.safetensors   as in every run
items.parquet, annotators.parquet, classes.parquet                                        ids
spreads.parquet                                                                           where held-out labels chose the prior
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probcrowd.data.table import Table
from probcrowd.inference.lia.em import State
from probcrowd.models.lia.prior import Inputs
from probcrowd.storage.checkpoint import load_latest, save_checkpoint, save_latest, under
from probcrowd.storage.files import write_atomically
from probcrowd.storage.fit import FitSettings, fit_settings, read_finished, save_ids
from probcrowd.storage.folder import RunFolder

_SPREADS = "spreads.parquet"
_IDS = ("items", "annotators", "classes")


def settings_of(out: Path, parameters: Mapping[str, Any], table: Table, inputs: Inputs) -> FitSettings:
    """The settings of a fit to this data.

    Raises:
        ValueError: parameters or ids that a file would not give back.
    """
    arrays = [*_arrays(table).values(), inputs.item_features, inputs.annotator_features, inputs.question]
    ids = {name: getattr(table, name) for name in _IDS}
    return fit_settings(out, parameters, arrays, ids)


def save_state(folder: RunFolder, state: State) -> None:
    """Makes this the newest checkpoint of the fit."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"moments/{name}": value for name, value in state.moments.items()}
    progress = {
        "unit": state.unit,
        "values": list(state.values),
        "steps": state.steps,
        "converged": state.converged,
    }
    progress |= {"order": list(state.parameters)}  # sums depend on it, in their last bits; a file has its own
    folder.append_metrics(
        {"step": state.unit, "log_posterior": state.values[-1]}
    )  # first: a line too many goes when the fit goes on
    save_latest(folder.path, tensors, progress)


def load_state(folder: RunFolder) -> State | None:
    """Where the fit stands; None before its first checkpoint."""
    found = load_latest(folder.path)
    folder.truncate_metrics(0 if found is None else found.state["unit"])
    if found is None:
        return None
    progress = dict(found.state)
    parameters, order = under("parameters", found.tensors), progress.pop("order")
    return State(
        {name: parameters[name] for name in order}, moments=under("moments", found.tensors), **progress
    )


def save_spreads(path: Path, tried: pd.DataFrame) -> None:
    """Keeps what held-out labels said of spreads, to the bit."""
    packed = io.BytesIO()
    tried.to_parquet(packed)
    write_atomically(path / _SPREADS, packed.getvalue())


def load_spreads(path: Path) -> pd.DataFrame | None:
    """What held-out labels said of spreads; None where it is not there."""
    return pd.read_parquet(path / _SPREADS) if (path / _SPREADS).is_file() else None


def save_fit(
    folder: RunFolder,
    table: Table,
    arrays: Mapping[str, np.ndarray],
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Writes ids, table and fit; the model last, so that a folder with it is whole."""
    save_ids(folder.path, {name: getattr(table, name) for name in _IDS})
    tensors = {f"parameters/{name}": value for name, value in parameters.items()}
    tensors |= {
        f"table/{name}": torch.from_numpy(np.array(array))
        for name, array in _arrays(table).items()
        if array is not None
    }
    tensors |= {f"arrays/{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    save_checkpoint(folder.model, tensors, {"num_labels": table.num_labels, **state})


def load_fit(
    path: Path,
) -> tuple[dict[str, Any], Table, dict[str, np.ndarray], dict[str, Tensor], dict[str, Any]]:
    """Parameters of the estimator, table, arrays, the networks' parameters and state of a finished fit.

    Raises:
        ValueError: there is none in the folder, or files of it are damaged.
    """
    parameters, ids, saved = read_finished(path, _IDS, "LIA")
    state = dict(saved.state)
    arrays = {name: value.numpy() for name, value in under("table", saved.tensors).items()}
    parts: dict[str, Any] = {"weight": None} | arrays | ids
    table = Table(**parts, num_labels=state.pop("num_labels"))
    others = {name: value.numpy() for name, value in under("arrays", saved.tensors).items()}
    return parameters, table, others, under("parameters", saved.tensors), state


def _arrays(table: Table) -> dict[str, np.ndarray | None]:
    return {
        "item": table.item,
        "annotator": table.annotator,
        "label": table.label,
        "weight": table.weight,
        "gold": table.gold,
    }

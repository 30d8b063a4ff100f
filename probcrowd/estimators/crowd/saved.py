"""A classifier in a folder: settings, a checkpoint after every epoch, and at the end all that answers need.

config.json, provenance.json, metrics.jsonl, checkpoint*.safetensors, model.safetensors   as in every run
annotators.parquet, classes.parquet                                                       ids

The code of the network is not kept: who reads a fit of a network of their own hands that network over again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.data.rows import Rows
from probcrowd.data.table import Table
from probcrowd.estimators.crowd.inputs import Items
from probcrowd.inference.crowd.training import TrainingState
from probcrowd.models.crowd.base import Channel
from probcrowd.storage.checkpoint import (
    Checkpoint,
    load_latest,
    module_tensors,
    save_checkpoint,
    save_latest,
    under,
)
from probcrowd.storage.fit import FitSettings, fit_settings, read_finished, save_ids
from probcrowd.storage.folder import RunFolder

IDS = ("annotators", "classes")


def settings_of(
    out: Path,
    parameters: Mapping[str, Any],
    network: nn.Module,
    table: Table,
    items: Items,
    validation: tuple[Any, Any] | None = None,
    more: Sequence[np.ndarray] = (),
) -> FitSettings:
    """The settings of a fit: parameters, the network as it prints and as it starts, annotations, inputs, true classes, and what more it depends on."""
    arrays = [table.item, table.annotator, table.label, table.weight]
    arrays += [value.numpy() for _, value in sorted(module_tensors(network, "network").items())]
    arrays += [_numbers(items.values), *more]
    if validation is not None:
        arrays += [_numbers(validation[0]), np.frombuffer(repr(list(validation[1])).encode(), np.uint8)]
    ids = {"items": table.items, "annotators": table.annotators, "classes": table.classes}
    return fit_settings(out, {**parameters, "network": repr(network)}, arrays, ids)


def save_training(folder: RunFolder, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Makes this the newest checkpoint of the training."""
    folder.append_metrics(
        {"step": state["epoch"]}
        | {name: value for name, value in state["history"][-1].items() if name != "epoch"}
    )
    save_latest(folder.path, tensors, state)


def load_training(folder: RunFolder) -> Checkpoint | None:
    """Where the training stands; None before its first checkpoint."""
    found = load_latest(folder.path)
    folder.truncate_metrics(0 if found is None else found.state["epoch"])
    return found


def save_result(
    folder: RunFolder,
    network: nn.Module,
    channel: Channel,
    stands: TrainingState,
    ids: Mapping[str, pd.Index],
    items: Items,
    rows: Rows,
    state: Mapping[str, Any],
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ids and fit, and tensors that belong to it; the model last, so that a folder with it is whole."""
    save_ids(folder.path, ids)
    tensors = module_tensors(network, "network") | module_tensors(channel, "channel") | dict(more or {})
    parts = {
        "item": rows.item,
        "annotator": rows.annotator,
        "label": rows.label,
        "weight": rows.weight,
        "gold": rows.gold,
    }
    tensors |= {f"rows/{name}": torch.from_numpy(np.array(part)) for name, part in parts.items()}
    save_checkpoint(
        folder.model,
        tensors,
        {**vars(stands), "columns": list(items.columns), "shape": list(items.shape), **state},
    )


def load_result(
    path: Path, names: Sequence[str] = IDS, what: str = "a classifier"
) -> tuple[dict[str, Any], dict[str, pd.Index], Checkpoint]:
    """Parameters, ids of those names, and what `save_result` saved.

    Raises:
        ValueError: there is none in the folder, or files of it are damaged.
    """
    return read_finished(path, names, what)


def rows_of(saved: Checkpoint, num_annotators: int, num_classes: int) -> Rows:
    """The rows that the fit was trained on."""
    parts = {name: value.numpy() for name, value in under("rows", saved.tensors).items()}
    return Rows(**parts, num_annotators=num_annotators, num_classes=num_classes)


def _numbers(values: Any) -> np.ndarray:
    """What a sum is taken over: all numbers of a table, an array or a tensor, and of a dataset, which may be large, how many items it has."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, (np.ndarray, pd.DataFrame)):
        return np.asarray(values, np.float32)
    return torch.tensor([len(values)]).numpy()

"""The network of an estimator: build it, save it with all that answers need, and restore it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.data.rows import Rows
from probcrowd.estimators.network.inputs import Items
from probcrowd.inference.crowd.training import TrainingState
from probcrowd.models.crowd.base import Channel
from probcrowd.storage.checkpoint import load_module, module_tensors
from probcrowd.storage.fit import FitFolder, SavedFit, array_tensors, arrays_under


@dataclass(frozen=True)
class FittedNetwork:
    """What a fit learned, and what answers need.

    rows: the labels trained on. ids: items (all of X), annotators and classes. columns, shape: those of X and of
    one of its inputs.
    """

    network: nn.Module
    channel: Channel
    trained: TrainingState
    rows: Rows
    ids: Mapping[str, pd.Index]
    columns: tuple[str, ...]
    shape: tuple[int, ...]


def build_network(
    network: nn.Module | Callable[..., nn.Module], arguments: tuple[Any, ...], seed: int, device: str
) -> nn.Module:
    """A copy of a module, or the module that a function returns for these arguments, drawn from the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = copy.deepcopy(network) if isinstance(network, nn.Module) else network(*arguments)
    return module.to(device).eval()


def example(items: Items) -> Tensor:
    """One or two inputs, to try a network on."""
    return items(torch.arange(min(2, len(items.ids)), device=items.device))


def numbers_of(values: Any) -> np.ndarray:
    """The numbers of a table, an array or a tensor, for a checksum; of a dataset, which may be large, its length."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    if isinstance(values, (np.ndarray, pd.DataFrame)):
        return np.asarray(values, np.float32)
    return np.array([len(values)])


def save_network(
    folder: FitFolder,
    fitted: FittedNetwork,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a finished fit, with other tensors and values that belong to it."""
    saved = module_tensors(fitted.network, "network") | module_tensors(fitted.channel, "channel")
    saved |= array_tensors("rows", fitted.rows) | dict(tensors or {})
    shared = {
        "trained": vars(fitted.trained),
        "columns": list(fitted.columns),
        "shape": list(fitted.shape),
    }
    folder.save(fitted.ids, saved, shared | dict(state))


def restore_network(
    saved: SavedFit,
    network: nn.Module | Callable[..., nn.Module] | None,
    default: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
    printed: str,
) -> nn.Module:
    """The network of a saved fit. network: the one that the fit was given, None for the default.

    Raises:
        ValueError: another network, or one where the fit had the default.
    """
    if saved.state["own_network"] != (network is not None):
        raise ValueError(
            "the fit has a network of its own: pass it to load the fit"
            if network is None
            else "the fit has the default network: load it without one"
        )
    restored = build_network(default if network is None else network, arguments, 0, "cpu")
    if repr(restored) != printed:
        raise ValueError(f"the fit has another network than\n{restored}")
    load_module(restored, saved.tensors, "network")
    return restored


def restore_rows(saved: SavedFit) -> Rows:
    """The labels that a saved fit was trained on."""
    arrays, ids = arrays_under("rows", saved.tensors), saved.ids
    return Rows(**arrays, num_annotators=len(ids["annotators"]), num_classes=len(ids["classes"]))


def restore_fit(saved: SavedFit, network: nn.Module, channel: Channel, rows: Rows) -> dict[str, Any]:
    """The fields of a `FittedNetwork`; fills the channel."""
    load_module(channel, saved.tensors, "channel")
    return {
        "network": network,
        "channel": channel.eval(),
        "trained": TrainingState(**saved.state["trained"]),
        "rows": rows,
        "ids": saved.ids,
        "columns": tuple(saved.state["columns"]),
        "shape": tuple(saved.state["shape"]),
    }

"""The network of an estimator: build it, save it with all that answers need, and restore it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

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

C = TypeVar("C", bound=Channel)


@dataclass(frozen=True)
class FittedNetwork:
    """What a fit learned, and what answers need.

    rows: the labels trained on. ids: items (all of X), annotators and classes. columns, shape: those of X and
    of one of its inputs.
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
    """The numbers of inputs, for a checksum; of a dataset, which may be large, only its length."""
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
    modules = module_tensors(fitted.network, "network") | module_tensors(fitted.channel, "channel")
    state = {"trained": vars(fitted.trained), "shape": list(fitted.shape), **state}
    state["columns"] = list(fitted.columns)
    folder.save(fitted.ids, modules | array_tensors("rows", fitted.rows) | dict(tensors or {}), state)


def restore_summary(saved: SavedFit) -> tuple[Rows, dict[str, pd.Index], tuple[str, ...], tuple[int, ...]]:
    """The fields `rows`, `ids`, `columns` and `shape` of a saved `FittedNetwork`."""
    ids, arrays = saved.ids, arrays_under("rows", saved.tensors)
    rows = Rows(**arrays, num_annotators=len(ids["annotators"]), num_classes=len(ids["classes"]))
    return rows, ids, tuple(saved.state["columns"]), tuple(saved.state["shape"])


def restore_network(
    saved: SavedFit,
    network: nn.Module | Callable[..., nn.Module] | None,
    default: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
) -> nn.Module:
    """The network of a saved fit. network: the one that the fit was given, None for the default.

    Raises:
        ValueError: another network, or one where the fit had the default.
    """
    printed, own = saved.parameters.pop("printed"), saved.parameters.pop("own_network")
    if own and network is None:
        raise ValueError("the fit has a network of its own: pass it to load the fit")
    if network is not None and not own:
        raise ValueError("the fit has the default network: load it without one")
    restored = build_network(default if network is None else network, arguments, 0, "cpu")
    if repr(restored) != printed:
        raise ValueError(f"the fit has another network than\n{restored}")
    load_module(restored, saved.tensors, "network")
    return restored


def restore_training(saved: SavedFit, channel: C) -> tuple[C, TrainingState]:
    """Fill the channel of a saved fit; the fields `channel` and `trained` of its `FittedNetwork`."""
    load_module(channel, saved.tensors, "channel")
    return channel.eval(), TrainingState(**saved.state["trained"])

"""Checkpoints: tensors and a JSON state in one safetensors file with a SHA-256 sum, whole or absent.

    write a temporary file -> fsync -> checkpoint becomes checkpoint.previous -> temporary becomes checkpoint
    -> fsync the folder

A kill or a full disk at any of these moments leaves a whole checkpoint behind. Reading parses two data
formats and executes nothing; the sum detects damage, not malice. The state may hold what JSON returns
unchanged: None, bool, int, float, str, list, and dict with string keys. Infinities and NaN are floats, in
Python's dialect of JSON.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from probcrowd.storage.files import replacing, sync, write_atomically

FORMAT, VERSION = "probcrowd checkpoint", "1"
CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
_REMEDY = "delete it and use another copy or train again"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors on the CPU by name, and the state saved with them."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint to one file, whole or not at all.

    Raises:
        ValueError: JSON refuses `state` or would return it changed.
    """
    write_atomically(path, _packed(tensors, state))


def load_checkpoint(path: Path) -> Checkpoint:
    """Load and verify the checkpoint at `path`.

    Raises:
        ValueError: the file is missing, damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint {path}: give the path of one, or train first") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no checkpoint ({error}): {_REMEDY}") from error
    if (kind := (header.get("format"), header.get("version"))) != (FORMAT, VERSION):
        raise ValueError(
            f"{path} holds {kind}, not {(FORMAT, VERSION)}: give a checkpoint, and read it with the "
            "probcrowd that wrote it"
        )
    if header.get("sha256") != _checksum(tensors, header.get("state", "")):
        raise ValueError(f"{path} is damaged (its SHA-256 sum differs): {_REMEDY}")
    return Checkpoint(tensors, json.loads(header["state"]))


def save_latest(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Save as the folder's current checkpoint; the one it replaces, if undamaged, becomes the previous.

    Raises:
        ValueError: see `save_checkpoint`.
    """
    data = _packed(tensors, state)
    with replacing(folder / CURRENT) as temporary:
        with temporary.open("xb") as file:
            file.write(data)
        sync(temporary)
        with contextlib.suppress(ValueError):  # if absent or damaged, keep a good previous one
            load_checkpoint(folder / CURRENT)
            os.replace(folder / CURRENT, folder / PREVIOUS)


def load_latest(folder: Path) -> Checkpoint | None:
    """Load the newest undamaged checkpoint, with a warning if it is the previous one; None without any.

    Raises:
        ValueError: there are checkpoints, but none is usable.
    """
    errors = []
    for path in filter(Path.exists, (folder / CURRENT, folder / PREVIOUS)):
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            errors.append(str(error))
        else:
            if errors:
                warnings.warn(f"going back to the previous checkpoint {path}: {errors[0]}", stacklevel=2)
            return checkpoint
    if errors:
        raise ValueError("no usable checkpoint: " + "; ".join(errors))
    return None


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Copy all parameters and buffers of a module, by names "prefix/..."."""
    return {_name(prefix, key): value.detach().cpu().clone() for key, value in module.state_dict().items()}


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load into a module what `module_tensors` copied; leave it unchanged unless everything fits.

    Raises:
        ValueError: names that are missing or superfluous, other shapes or other dtypes.
    """
    values = under(prefix, tensors)
    saved, here = ({key: _layout(v) for key, v in each.items()} for each in (values, module.state_dict()))
    _require_equal("module", saved, here)
    module.load_state_dict(values)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, prefix: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Copy an optimizer's tensors by names "prefix/parameter/key", and the rest as JSON (tuples as lists)."""
    full = optimizer.state_dict()
    entries = {
        f"{index}/{key}": value for index, inner in full["state"].items() for key, value in inner.items()
    }
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    groups = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
        for group in full["param_groups"]
    ]
    numbers = {key: value for key, value in entries.items() if key not in tensors}
    state = {**_outline(optimizer, tensors), "groups": groups, "numbers": numbers}
    return {_name(prefix, key): value.detach().cpu().clone() for key, value in tensors.items()}, state


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any], prefix: str
) -> None:
    """Restore what `optimizer_tensors` copied, bit for bit; change nothing unless everything fits.

    Raises:
        ValueError: another kind of optimizer, other parameters, or tensors that are missing or superfluous.
    """
    # Clones, because training will change them in place
    saved = {key: value.clone() for key, value in under(prefix, tensors).items()}
    here = _outline(optimizer, saved)
    _require_equal("optimizer", {key: state.get(key) for key in here}, here)
    nested: dict[int, dict[str, Any]] = {}
    for name, value in {**saved, **state["numbers"]}.items():
        index, _, key = name.partition("/")
        nested.setdefault(int(index), {})[key] = value
    groups = [
        fresh | {key: tuple(v) if isinstance(fresh.get(key), tuple) else v for key, v in group.items()}
        for fresh, group in zip(optimizer.state_dict()["param_groups"], state["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": nested, "param_groups": groups})
    # torch chose the device of each tensor but may have rounded it to its parameter's dtype: restore the
    # saved bits
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in saved.items():
        index, _, key = name.partition("/")
        entry = optimizer.state[flat[int(index)]]
        entry[key] = value.to(entry[key].device)


def _packed(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Serialise a checkpoint."""
    try:
        text = json.dumps(dict(state))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the state of a checkpoint must be plain JSON: {error}") from error
    if repr(json.loads(text)) != repr(dict(state)):  # repr, because nan differs from itself and True equals 1
        raise ValueError(
            f"JSON would change the state {state!r}: use lists, string keys and plain numbers, not tuples or "
            "NumPy numbers"
        )
    plain = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    return save(
        plain, {"format": FORMAT, "version": VERSION, "state": text, "sha256": _checksum(plain, text)}
    )


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the state and of the name, layout and bytes of every tensor, sorted by name."""
    digest = hashlib.sha256(json.dumps(text).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, _layout(value)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(prefix: str, key: str) -> str:
    return f"{prefix}/{key}" if prefix else key


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with "prefix/", by the rest of their names."""
    start = _name(prefix, "")
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _require_equal(target: str, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    lines = [
        f"{key}: saved {saved.get(key)}, here {here.get(key)}"
        for key in {**here, **saved}
        if saved.get(key) != here.get(key)
    ]
    if lines:
        raise ValueError(f"the checkpoint does not fit the {target}:\n  " + "\n  ".join(lines))


def _layout(value: Tensor) -> str:
    return f"{value.dtype} {list(value.shape)}"


def _outline(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint and an optimizer must have in common; parameters by group."""
    parameters = [[_layout(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    return {"kind": type(optimizer).__name__, "parameters": parameters, "tensors": sorted(tensors)}

"""LIA's fits in folders: the state of the training, and what it learned, to tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probcrowd.data.features import Standardiser
from probcrowd.data.table import Table
from probcrowd.inference.lia.em import Fitted
from probcrowd.inference.lia.optimizers import State
from probcrowd.models.lia.prior import Inputs
from probcrowd.storage.checkpoint import Checkpoint, under
from probcrowd.storage.fit import FitFolder, SavedFit, array_tensors, arrays_under

Standards = tuple[Standardiser | None, Standardiser | None]  # of features of items and of annotators
_IDS = ("items", "annotators", "classes")


def fit_dependencies(
    estimator: str, parameters: Mapping[str, Any], table: Table, inputs: Inputs
) -> dict[str, Any]:
    """What a fit depends on, as `open_fit` takes it."""
    arrays = [table.item, table.annotator, table.label, table.weight, table.gold]
    arrays += [inputs.item_features, inputs.annotator_features, inputs.question]
    parameters = {name: value for name, value in parameters.items() if name not in ("progress", "dependence")}
    ids = {name: getattr(table, name) for name in _IDS}
    return {"estimator": estimator, "parameters": parameters, "arrays": arrays, "ids": ids}


def save_state(folder: FitFolder, state: State) -> None:
    """Write a checkpoint."""
    tensors = {f"parameters/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"moments/{name}": value for name, value in state.moments.items()}
    saved = {
        "unit": state.unit,
        "values": list(state.values),
        "steps": state.steps,
        "converged": state.converged,
    }
    # The last bits of sums depend on the order of parameters, which the file does not keep
    saved["order"] = list(state.parameters)
    folder.save_checkpoint(state.unit, {"log_posterior": state.values[-1]}, tensors, saved)


def restore_state(checkpoint: Checkpoint) -> State:
    """The state that `save_state` wrote."""
    state, parameters = dict(checkpoint.state), under("parameters", checkpoint.tensors)
    ordered = {name: parameters[name] for name in state.pop("order")}
    return State(ordered, moments=under("moments", checkpoint.tensors), **state)


def save_fitted(
    folder: FitFolder,
    table: Table,
    inputs: Inputs,
    standards: Standards,
    fitted: Fitted,
) -> None:
    """Write a finished fit."""
    tensors = {f"parameters/{name}": value for name, value in fitted.parameters.items()}
    tensors |= (
        array_tensors("table", table) | array_tensors("inputs", inputs) | array_tensors("fitted", fitted)
    )
    scales: list[dict[str, Any] | None] = []
    for at, standard in enumerate(standards):
        tensors |= array_tensors(f"standard_{at}", standard)
        scales.append(
            None
            if standard is None
            else {"root_mean_square": standard.root_mean_square, "columns": list(standard.columns)}
        )
    state = {
        "converged": fitted.converged,
        "standards": scales,
        "num_questions": inputs.num_questions,
        "num_labels": table.num_labels,
    }
    folder.save({name: getattr(table, name) for name in _IDS}, tensors, state)


def restore_fitted(
    saved: SavedFit,
) -> tuple[Table, Inputs, Standards, Fitted]:
    """What `save_fitted` wrote."""
    state, tensors = saved.state, saved.tensors
    table: dict[str, Any] = {"weight": None} | arrays_under("table", tensors) | saved.ids
    standards = [
        None
        if values is None
        else Standardiser(
            **arrays_under(f"standard_{at}", tensors),
            root_mean_square=values["root_mean_square"],
            columns=tuple(values["columns"]),
        )
        for at, values in enumerate(state["standards"])
    ]
    parameters = under("parameters", tensors)
    return (
        Table(**table, num_labels=state["num_labels"]),
        Inputs(**arrays_under("inputs", tensors), num_questions=state["num_questions"]),
        (standards[0], standards[1]),
        Fitted(parameters, **arrays_under("fitted", tensors), converged=state["converged"]),
    )

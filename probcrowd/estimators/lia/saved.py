"""LIA's fits in folders: the state of the training, and what it learned, to tensors and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from probcrowd.data.features import Standardiser
from probcrowd.data.table import Table
from probcrowd.estimators.lia.fitted import FittedLIA
from probcrowd.inference.lia.em import Fitted
from probcrowd.inference.lia.optimizers import State
from probcrowd.models.lia.prior import Inputs
from probcrowd.storage.checkpoint import Checkpoint, under
from probcrowd.storage.fit import FitFolder, SavedFit, array_tensors, arrays_under

_IDS = ("items", "annotators", "classes")
_STANDARDS = ("item_standard", "annotator_standard")


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


def save_fitted(folder: FitFolder, table: Table, fitted: FittedLIA) -> None:
    """Write a finished fit."""
    tensors = {f"parameters/{name}": value for name, value in fitted.parameters.items()}
    for name, record in (("table", table), ("inputs", fitted.inputs), ("fitted", fitted)):
        tensors |= array_tensors(name, record)
    sizes = {"num_questions": fitted.inputs.num_questions, "num_labels": table.num_labels}
    state: dict[str, Any] = {"converged": fitted.converged, "sizes": sizes, "standards": {}}
    for name, standard in zip(_STANDARDS, fitted.standards, strict=True):
        if standard is not None:
            tensors |= array_tensors(name, standard)
            state["standards"][name] = [standard.root_mean_square, list(standard.columns)]
    folder.save({name: getattr(table, name) for name in _IDS}, tensors, state)


def restore_fitted(saved: SavedFit, spreads: pd.DataFrame | None) -> tuple[Table, FittedLIA]:
    """What `save_fitted` wrote."""
    state, tensors, sizes = saved.state, saved.tensors, saved.state["sizes"]
    table: dict[str, Any] = {"weight": None} | arrays_under("table", tensors) | saved.ids

    def standard(name: str) -> Standardiser | None:
        if name not in state["standards"]:
            return None
        root_mean_square, columns = state["standards"][name]
        arrays = arrays_under(name, tensors)
        return Standardiser(**arrays, root_mean_square=root_mean_square, columns=tuple(columns))

    arrays, parameters = arrays_under("fitted", tensors), under("parameters", tensors)
    inputs = Inputs(**arrays_under("inputs", tensors), num_questions=sizes["num_questions"])
    fitted = Fitted(parameters, **arrays, converged=state["converged"])
    standards = standard(_STANDARDS[0]), standard(_STANDARDS[1])
    return Table(**table, num_labels=sizes["num_labels"]), FittedLIA.of(fitted, inputs, standards, spreads)

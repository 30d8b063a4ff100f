"""The models of annotation by name, collected from `MODELS` of every `*_numpyro.py` file in the folders of
`probcrowd.models`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from probcrowd.data.validation import find_name
from probcrowd.models.model import Model


def _collect() -> dict[str, Model]:
    models: dict[str, Model] = {}
    for path in sorted(Path(__file__).parent.glob("*/*_numpyro.py")):
        module = import_module(f"probcrowd.models.{path.parent.name}.{path.stem}")
        models |= {model.name: model for model in getattr(module, "MODELS", ())}
    return models


MODELS = _collect()


def find_model(model: str | Model) -> Model:
    """Return the model of that name, with hyphens or underscores; a record is returned as it is.

    Raises:
        ValueError: no model has that name.
    """
    if isinstance(model, Model):
        return model
    return MODELS[find_name("model", model, MODELS)]

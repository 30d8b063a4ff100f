"""Learning from several imperfect annotators.

Letters, the same in mathematics, shapes, tests and results:

    b task in a batch   i item   j annotator   k true class   l given label   n annotation (a row)   d embedding dimension
    q query item
    confusion[j, k, l] = P(annotator j says l | truth is k); rows (over l) sum to 1.

The names below are the ones to meet first; each is imported when it is first used, so `import probcrowd` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = [
    "Annotations",
    "MetaTraining",
    "Prior",
    "check_posterior",
    "load_posterior",
    "load_run",
    "meta_train",
    "sample_posterior",
    "save_posterior",
]

_HOMES = {
    "Annotations": "probcrowd.annotations",
    "MetaTraining": "probcrowd.runs.configuration",
    "Prior": "probcrowd.models.prototype",
    "check_posterior": "probcrowd.inference.checks",
    "load_posterior": "probcrowd.inference.tree",
    "load_run": "probcrowd.runs.trained",
    "meta_train": "probcrowd.runs.meta_train",
    "sample_posterior": "probcrowd.inference.posterior",
    "save_posterior": "probcrowd.inference.tree",
}

if TYPE_CHECKING:
    from probcrowd.annotations import Annotations
    from probcrowd.inference.checks import check_posterior
    from probcrowd.inference.posterior import sample_posterior
    from probcrowd.inference.tree import load_posterior, save_posterior
    from probcrowd.models.prototype import Prior
    from probcrowd.runs.configuration import MetaTraining
    from probcrowd.runs.meta_train import meta_train
    from probcrowd.runs.trained import load_run


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probcrowd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

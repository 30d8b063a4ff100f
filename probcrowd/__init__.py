"""Learning from several imperfect annotators.

Letters, the same in mathematics, shapes, tests and results:

    b task in a batch   i item   j annotator   k true class   l given label   n annotation (a row)   d embedding dimension
    q query item
    confusion[j, k, l] = P(annotator j says l | truth is k); rows (over l) sum to 1.

The names below are the ones to meet first; each is imported when it is first used, so `import probcrowd` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.7.0"
__all__ = [
    "GLAD",
    "KOS",
    "LIA",
    "MACE",
    "Annotations",
    "CrowdClassifier",
    "DawidSkene",
    "FastDawidSkene",
    "HierarchicalDawidSkene",
    "MajorityVote",
    "MetaTraining",
    "MinimaxEntropy",
    "MultiLabelLIA",
    "OneCoin",
    "Prior",
    "SimLabel",
    "SnorkelLabelModel",
    "TwoStage",
    "ZenCrowd",
    "check_posterior",
    "load_crowd_classifier",
    "load_lia",
    "load_multi_label_lia",
    "load_posterior",
    "load_run",
    "load_sim_label",
    "meta_train",
    "sample_posterior",
    "save_posterior",
]

_HOMES = {
    "GLAD": "probcrowd.estimators.item_models",
    "KOS": "probcrowd.estimators.item_models",
    "LIA": "probcrowd.estimators.lia",
    "MACE": "probcrowd.estimators.coins",
    "Annotations": "probcrowd.annotations",
    "CrowdClassifier": "probcrowd.estimators.crowd_classifier",
    "DawidSkene": "probcrowd.estimators.dawid_skene",
    "FastDawidSkene": "probcrowd.estimators.dawid_skene",
    "HierarchicalDawidSkene": "probcrowd.estimators.dawid_skene",
    "MajorityVote": "probcrowd.estimators.majority",
    "MetaTraining": "probcrowd.runs.configuration",
    "MinimaxEntropy": "probcrowd.estimators.item_models",
    "MultiLabelLIA": "probcrowd.estimators.multi_label",
    "OneCoin": "probcrowd.estimators.coins",
    "Prior": "probcrowd.models.prototype",
    "SimLabel": "probcrowd.estimators.sim_label",
    "SnorkelLabelModel": "probcrowd.estimators.label_models",
    "TwoStage": "probcrowd.estimators.two_stage",
    "ZenCrowd": "probcrowd.estimators.coins",
    "check_posterior": "probcrowd.inference.checks",
    "load_crowd_classifier": "probcrowd.estimators.crowd_classifier",
    "load_lia": "probcrowd.estimators.lia",
    "load_multi_label_lia": "probcrowd.estimators.multi_label",
    "load_posterior": "probcrowd.inference.tree",
    "load_run": "probcrowd.runs.trained",
    "load_sim_label": "probcrowd.estimators.sim_label",
    "meta_train": "probcrowd.runs.meta_train",
    "sample_posterior": "probcrowd.inference.posterior",
    "save_posterior": "probcrowd.inference.tree",
}

if TYPE_CHECKING:
    from probcrowd.annotations import Annotations
    from probcrowd.estimators.coins import MACE, OneCoin, ZenCrowd
    from probcrowd.estimators.crowd_classifier import CrowdClassifier, load_crowd_classifier
    from probcrowd.estimators.dawid_skene import DawidSkene, FastDawidSkene, HierarchicalDawidSkene
    from probcrowd.estimators.item_models import GLAD, KOS, MinimaxEntropy
    from probcrowd.estimators.label_models import SnorkelLabelModel
    from probcrowd.estimators.lia import LIA, load_lia
    from probcrowd.estimators.majority import MajorityVote
    from probcrowd.estimators.multi_label import MultiLabelLIA, load_multi_label_lia
    from probcrowd.estimators.sim_label import SimLabel, load_sim_label
    from probcrowd.estimators.two_stage import TwoStage
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

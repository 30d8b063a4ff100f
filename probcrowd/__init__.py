"""Learning from several imperfect annotators.

Letters, the same in mathematics, shapes, tests and results:

    b task in a batch   i item   j annotator   k true class   l given label   n annotation (a row)
    q query item        d embedding dimension
    confusion[j, k, l] = P(annotator j says l | truth is k); rows (over l) sum to 1.

The names below are the ones to meet first. Each is imported when it is first used, so `import probcrowd` is
light.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.8.0"
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
    "simulate_annotations",
]

_HOMES = {
    "GLAD": "probcrowd.estimators.aggregation.item_models",
    "KOS": "probcrowd.estimators.aggregation.item_models",
    "LIA": "probcrowd.estimators.lia.lia",
    "MACE": "probcrowd.estimators.aggregation.coins",
    "Annotations": "probcrowd.data.annotations",
    "CrowdClassifier": "probcrowd.estimators.crowd.classifier",
    "DawidSkene": "probcrowd.estimators.aggregation.dawid_skene",
    "FastDawidSkene": "probcrowd.estimators.aggregation.dawid_skene",
    "HierarchicalDawidSkene": "probcrowd.estimators.aggregation.dawid_skene",
    "MajorityVote": "probcrowd.estimators.aggregation.majority",
    "MetaTraining": "probcrowd.runs.meta.configuration",
    "MinimaxEntropy": "probcrowd.estimators.aggregation.item_models",
    "MultiLabelLIA": "probcrowd.estimators.lia.multi_label",
    "OneCoin": "probcrowd.estimators.aggregation.coins",
    "Prior": "probcrowd.models.meta.prototype",
    "SimLabel": "probcrowd.estimators.simlabel.sim_label",
    "SnorkelLabelModel": "probcrowd.estimators.aggregation.snorkel",
    "TwoStage": "probcrowd.estimators.lia.two_stage",
    "ZenCrowd": "probcrowd.estimators.aggregation.coins",
    "check_posterior": "probcrowd.inference.checks.check",
    "load_crowd_classifier": "probcrowd.estimators.crowd.classifier",
    "load_lia": "probcrowd.estimators.lia.lia",
    "load_multi_label_lia": "probcrowd.estimators.lia.multi_label",
    "load_posterior": "probcrowd.inference.posterior.tree",
    "load_run": "probcrowd.runs.meta.trained",
    "load_sim_label": "probcrowd.estimators.simlabel.sim_label",
    "meta_train": "probcrowd.runs.meta.train",
    "sample_posterior": "probcrowd.inference.posterior.sample",
    "save_posterior": "probcrowd.inference.posterior.tree",
    "simulate_annotations": "probcrowd.simulate.tables",
}

if TYPE_CHECKING:
    from probcrowd.data.annotations import Annotations
    from probcrowd.estimators.aggregation.coins import MACE, OneCoin, ZenCrowd
    from probcrowd.estimators.aggregation.dawid_skene import (
        DawidSkene,
        FastDawidSkene,
        HierarchicalDawidSkene,
    )
    from probcrowd.estimators.aggregation.item_models import GLAD, KOS, MinimaxEntropy
    from probcrowd.estimators.aggregation.majority import MajorityVote
    from probcrowd.estimators.aggregation.snorkel import SnorkelLabelModel
    from probcrowd.estimators.crowd.classifier import CrowdClassifier, load_crowd_classifier
    from probcrowd.estimators.lia.lia import LIA, load_lia
    from probcrowd.estimators.lia.multi_label import MultiLabelLIA, load_multi_label_lia
    from probcrowd.estimators.lia.two_stage import TwoStage
    from probcrowd.estimators.simlabel.sim_label import SimLabel, load_sim_label
    from probcrowd.inference.checks.check import check_posterior
    from probcrowd.inference.posterior.sample import sample_posterior
    from probcrowd.inference.posterior.tree import load_posterior, save_posterior
    from probcrowd.models.meta.prototype import Prior
    from probcrowd.runs.meta.configuration import MetaTraining
    from probcrowd.runs.meta.train import meta_train
    from probcrowd.runs.meta.trained import load_run
    from probcrowd.simulate.tables import simulate_annotations


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'probcrowd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

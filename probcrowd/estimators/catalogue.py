"""The aggregators by name: the one place to register a new one.

The command, `compare_aggregators`, messages that name alternatives, and the contract tests read these tables.
"""

from __future__ import annotations

from probcrowd.data.validation import find_name
from probcrowd.estimators.aggregation.coins import MACE, OneCoin, ZenCrowd
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene, FastDawidSkene, HierarchicalDawidSkene
from probcrowd.estimators.aggregation.item_models import GLAD, KOS, MinimaxEntropy
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.network_aggregator import NetworkAggregator
from probcrowd.estimators.lia.two_stage import TwoStage

AGGREGATORS: dict[str, type[Aggregator]] = {
    "majority-vote": MajorityVote,
    "dawid-skene": DawidSkene,
    "fast-dawid-skene": FastDawidSkene,
    "hierarchical-dawid-skene": HierarchicalDawidSkene,
    "one-coin": OneCoin,
    "zencrowd": ZenCrowd,
    "mace": MACE,
    "glad": GLAD,
    "minimax-entropy": MinimaxEntropy,
    "kos": KOS,
}
# Those that take features of the items
NETWORKS: dict[str, type[NetworkAggregator]] = {"lia": LIA, "two-stage": TwoStage}


def find_aggregator(name: str) -> type[Aggregator]:
    """Return the aggregator of that name, with underscores or hyphens.

    Raises:
        ValueError: there is none.
    """
    known: dict[str, type[Aggregator]] = {**AGGREGATORS, **NETWORKS}
    return known[find_name("model", name, known)]

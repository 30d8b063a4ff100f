"""The aggregators by the names that the command takes."""

from __future__ import annotations

from collections.abc import Callable

from probcrowd.data.options import find_name
from probcrowd.estimators.aggregation.coins import MACE, OneCoin, ZenCrowd
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene, FastDawidSkene, HierarchicalDawidSkene
from probcrowd.estimators.aggregation.item_models import GLAD, KOS, MinimaxEntropy
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.network_aggregator import NetworkAggregator
from probcrowd.estimators.lia.two_stage import TwoStage

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
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
NETWORKS: dict[str, Callable[..., NetworkAggregator]] = {"lia": LIA, "two-stage": TwoStage}


def find_aggregator(name: str) -> Callable[..., Aggregator]:
    """The aggregator of that name, with underscores or hyphens.

    Raises:
        ValueError: there is none.
    """
    known: dict[str, Callable[..., Aggregator]] = {**AGGREGATORS, **NETWORKS}
    return known[find_name("model", name, known)]

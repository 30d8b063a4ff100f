"""Simulated annotations with their truth, and planted structure. NumPy only; episodes for meta-training are
in `.episodes`.

simulate_annotations(200, 8, seed=0)                                               one line
simulate_annotations(200, 8, effects=[Copies("a0", ["a1", "a2"])], seed=0).copies  planted
"""

from probcrowd.simulate.effects import (
    Abstain,
    ClassBias,
    Clique,
    Copies,
    HardClass,
    HardItems,
    MisleadingItems,
)
from probcrowd.simulate.features import simulate_features
from probcrowd.simulate.ordinal import OrdinalAnnotators
from probcrowd.simulate.skill import uniform_errors
from probcrowd.simulate.tables import SimulatedAnnotations, simulate_annotations

__all__ = [
    "Abstain",
    "ClassBias",
    "Clique",
    "Copies",
    "HardClass",
    "HardItems",
    "MisleadingItems",
    "OrdinalAnnotators",
    "SimulatedAnnotations",
    "simulate_annotations",
    "simulate_features",
    "uniform_errors",
]

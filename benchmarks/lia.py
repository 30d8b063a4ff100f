"""Time of one round of EM of LIA: `python benchmarks/lia.py`.

8,000 labels of 800 items with 768 features by 164 annotators, 4 x 16 networks.

An E step and an M step: of 25 L-BFGS steps on all items (objective "joint"), and of 1,000 AMSGrad steps on
batches of 1,024 labels (as published). Seconds: median and range over rounds, after one for warming up.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from probcrowd.data.rows import Rows
from probcrowd.inference.lia.em import Schedule, State, fit_lia
from probcrowd.inference.lia.objectives import OBJECTIVES, ObjectiveName
from probcrowd.models.lia.prior import Inputs, LIAPrior

ITEMS, ANNOTATORS, EACH, FEATURES = 800, 164, 10, 768


def table(rng: np.random.Generator) -> tuple[Rows, Inputs]:
    """Features that decide the truth, and labels that are right three times of four."""
    features = rng.normal(size=(ITEMS, FEATURES))
    truth = (features @ rng.normal(size=FEATURES) > 0).astype(np.int64)
    item = np.repeat(np.arange(ITEMS), EACH)
    annotator = np.concatenate([rng.choice(ANNOTATORS, EACH, replace=False) for _ in range(ITEMS)])
    label = np.where(rng.random(len(item)) < 0.75, truth[item], 1 - truth[item])
    rows = Rows(item, annotator, label, np.ones(len(item)), np.full(ITEMS, -1), ANNOTATORS, 2)
    return rows, Inputs(features / np.sqrt((features**2).mean()))


def rounds(objective: ObjectiveName, prior: LIAPrior, schedule: Schedule) -> list[float]:
    """Seconds of every round."""
    rows, inputs = table(np.random.default_rng(0))
    ends = [time.perf_counter()]

    def keep(state: State) -> None:
        ends.append(time.perf_counter())

    fit_lia(rows, inputs, prior, OBJECTIVES[objective], schedule, keep=keep)
    return list(np.diff(ends))[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    number = parser.parse_args().rounds + 1
    deep = LIAPrior(hidden=(16,) * 4)
    ways: dict[str, tuple[ObjectiveName, LIAPrior, Schedule]] = {
        "joint, 4 x 16, L-BFGS": ("joint", deep, Schedule(rounds=number, last_steps=0)),
        "joint, linear, L-BFGS": ("joint", LIAPrior(), Schedule(rounds=number, last_steps=0)),
        "as written, 4 x 16, AMSGrad": (
            "as_written",
            LIAPrior(hidden=(16,) * 4, annotator_embedding=16),
            Schedule(number, 1000, 0, 1024),
        ),
    }
    for name, way in ways.items():
        found = rounds(*way)
        print(
            f"{name:30s} {statistics.median(found):.2f} s a round ({min(found):.2f} to {max(found):.2f}), "
            f"{torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    main()

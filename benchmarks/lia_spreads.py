"""How LIA's prior spreads were chosen: log score, in nats, of labels that the fit did not see, on real sets with features. No gold is read.

A fifth of each set's labels, drawn at random, is held out; the score of one of them is log sum_k q_ik Q[i,j,k,l], where q has seen the other
labels of its item. PROBCROWD_DATA names the data folder.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from probcrowd.estimators.inputs import standardiser
from probcrowd.inference.gem import OBJECTIVES
from probcrowd.inference.gem_fit import Schedule, fit_lia
from probcrowd.models.lia import Said, log_said
from probcrowd.models.lia_prior import Inputs, LIAPrior
from probcrowd.models.rows import Rows

SETS = [
    ("bluebirds", 2),
    ("bluebirds", 5),
    ("bluebirds", 39),
    ("snow_rte", 2),
    ("snow_rte", 10),
    ("medrel_cause", 2),
    ("medrel_treat", 5),
    ("llmbar_processed", 16),
    ("judgebench", 7),
    ("labelme", 3),
    ("music_genre", 5),
]
GRID = {"truth": (1.0, 2.0), "difficulty": (0.3, 0.6), "competence": (0.5, 1.0), "class_logit": (0.3, 1.0)}


def read(root: Path, name: str) -> tuple[Rows, np.ndarray]:
    """All rows of a set, and the features of its items."""
    said = pd.read_parquet(root / name / "annotations.parquet").drop_duplicates(["task", "worker"]).dropna(subset=["label"])
    tasks = pd.Index(pd.read_csv(root / name / "tasks.csv").task.astype(said.task.dtype))
    features = np.load(root / name / "features.npy").astype(float).reshape(len(tasks), -1)
    kept = tasks.isin(said.task)
    said = said.assign(item=tasks[kept].get_indexer(said.task)).sort_values("item", kind="stable")
    annotator, label = pd.factorize(said.worker)[0], pd.factorize(said.label, sort=True)[0]
    sizes = int(annotator.max()) + 1, int(label.max()) + 1
    rows = Rows(said.item.to_numpy(), annotator, label, np.ones(len(said)), np.full(int(kept.sum()), -1), *sizes)
    return rows, standardiser(features[kept]).apply(features[kept])


def chosen(rows: Rows, mask: np.ndarray) -> Rows:
    """Some of the rows."""
    return replace(rows, item=rows.item[mask], annotator=rows.annotator[mask], label=rows.label[mask], weight=rows.weight[mask])


def score(root: Path, name: str, redundancy: int, prior: LIAPrior, seed: int) -> float:
    torch.set_num_threads(1)
    rows, features = read(root, name)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows.item))
    rank = pd.Series(rows.item[order]).groupby(rows.item[order]).cumcount().to_numpy()
    rows = chosen(rows, np.sort(order[rank < redundancy]))
    held = rng.random(len(rows.item)) < 0.2
    fit = fit_lia(chosen(rows, ~held), Inputs(features), prior, OBJECTIVES["joint"], Schedule())
    rest = chosen(rows, held)
    with torch.no_grad():
        likely = log_said(fit.parameters, Said.of(rest, Inputs(features), torch.float64)).exp().numpy()
    return float(np.log((fit.posterior[rest.item] * likely).sum(1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/lia_spreads.csv"))
    chosen_ = parser.parse_args()
    root = Path(os.environ["PROBCROWD_DATA"])
    grid = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    rows = []
    for name, redundancy in SETS:
        jobs = [(spreads, seed) for spreads in grid for seed in range(chosen_.seeds)]
        found = Parallel(chosen_.jobs)(delayed(score)(root, name, redundancy, LIAPrior(**spreads), seed) for spreads, seed in jobs)
        rows += [
            {"set": name, "redundancy": redundancy, **spreads, "seed": seed, "score": value}
            for (spreads, seed), value in zip(jobs, found, strict=True)
        ]
        table = pd.DataFrame(rows)
        last = table[(table["set"] == name) & (table.redundancy == redundancy)].groupby(list(GRID)).score.mean().sort_values()
        print(name, redundancy, "\n", last.tail(4).round(4).to_string(), "\n", last.head(1).round(4).to_string(), flush=True)
    chosen_.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen_.out, index=False)
    means = table.groupby(["set", "redundancy", *GRID]).score.mean().unstack(list(GRID))
    print("mean loss against the best of each set\n", (means.max(1).to_numpy()[:, None] - means).mean().sort_values().round(4).to_string())


if __name__ == "__main__":
    main()

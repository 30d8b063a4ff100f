"""Prior scales of LIA chosen by held-out labels on real sets with features, from the defaults; no gold.

PROBCROWD_DATA names the data folder.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from probcrowd.data.features import standardiser
from probcrowd.data.rows import Rows
from probcrowd.inference.lia.em import Schedule
from probcrowd.inference.lia.held_out_prior import search_prior_scales
from probcrowd.inference.lia.objectives import OBJECTIVES
from probcrowd.models.lia.prior import Inputs, LIAPrior

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


def read(root: Path, name: str, redundancy: int, seed: int) -> tuple[Rows, np.ndarray]:
    """So many rows of every item, drawn at random, and the features of the items."""
    said = (
        pd.read_parquet(root / name / "annotations.parquet")
        .drop_duplicates(["task", "worker"])
        .dropna(subset=["label"])
    )
    tasks = pd.Index(pd.read_csv(root / name / "tasks.csv").task.astype(said.task.dtype))
    features = np.load(root / name / "features.npy").astype(float).reshape(len(tasks), -1)
    kept = tasks.isin(said.task)
    said = (
        said.assign(item=tasks[kept].get_indexer(said.task))
        .sample(frac=1, random_state=seed)
        .groupby("item")
        .head(redundancy)
    )
    said = said.sort_values("item", kind="stable")
    annotator, label = pd.factorize(said.worker)[0], pd.factorize(said.label, sort=True)[0]
    sizes = int(annotator.max()) + 1, int(label.max()) + 1
    rows = Rows(
        said.item.to_numpy(), annotator, label, np.ones(len(said)), np.full(int(kept.sum()), -1), *sizes
    )
    return rows, standardiser(features[kept]).apply(features[kept])


def choose(root: Path, name: str, redundancy: int, seed: int) -> pd.DataFrame:
    torch.set_num_threads(1)
    rows, features = read(root, name, redundancy, seed)
    return search_prior_scales(rows, Inputs(features), LIAPrior(), OBJECTIVES["joint"], Schedule(), seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("outputs/lia_spreads.csv"))
    given = parser.parse_args()
    root = Path(os.environ["PROBCROWD_DATA"])
    jobs = [(name, redundancy, seed) for name, redundancy in SETS for seed in range(given.seeds)]
    found = Parallel(given.jobs, return_as="generator")(delayed(choose)(root, *job) for job in jobs)
    rows = []
    for (name, redundancy, seed), tried in zip(jobs, found, strict=True):
        best = tried.loc[tried["best"]].iloc[-1]
        gained = {"score": best["score"], "before": tried["score"][0], "settings": len(tried)}
        rows.append(
            {
                "set": name,
                "redundancy": redundancy,
                "seed": seed,
                **best[["truth", "difficulty", "competence"]],
                **gained,
            }
        )
        print(pd.DataFrame(rows[-1:]).round(4).to_string(header=len(rows) == 1, index=False), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()

"""Accuracy and confidence of all aggregators on real sets with gold labels, which no fit sees.

    PROBCROWD_DATA=... python benchmarks/aggregation_scores.py [--out FOLDER]

1. Accuracy in per cent, 1/m in a tie of m, beside a recomputation by independent code (`PUBLISHED`): maximum
   likelihood (DS), MAP under the Stan Guide's prior, iBCC by variational Bayes, one coin and ZenCrowd with
   uniform classes, MACE, GLAD, minimax entropy, KOS. The first label of a repeated pair counts.
2. Log loss (nats) and calibration error (ten equally filled bins) of Dawid-Skene's probabilities under the
   default prior: at the mode (plug-in), averaged (the default), variational, and averaged with dependent
   labels discounted. Differences from plug-in have 95 % intervals, paired over items (log loss), or by 200
   bootstrap samples of items (calibration error).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

from probcrowd.data.annotations import Annotations
from probcrowd.data.table import read_table
from probcrowd.estimators.aggregation.coins import MACE, OneCoin, ZenCrowd
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene, FastDawidSkene, HierarchicalDawidSkene
from probcrowd.estimators.aggregation.item_models import GLAD, KOS, MinimaxEntropy
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.base import Aggregator
from probcrowd.metrics.intervals import CENTRAL, interval
from probcrowd.metrics.scores import log_losses, scores
from probcrowd.models.priors import DirichletPrior

COLUMNS = ["MV", "DS", "DS Stan", "iBCC", "one coin", "ZC", "MACE", "GLAD", "MMCE", "KOS"]
PUBLISHED = {
    "bluebirds": [75.93, 89.81, 88.89, 88.89, 72.22, 72.22, 86.11, 72.22, 91.67, 72.22],
    "snow_rte": [89.69, 92.75, 93.00, 92.75, 92.50, 92.50, 92.62, 92.50, 92.38, 50.1],
    "snow_temp": [93.61, 94.16, 93.94, 94.16, 93.94, 93.72, 94.16, 93.51, 94.37, 57],
    "snow_wsd": [99.44, 99.44, 99.44, 99.44, 99.44, 99.44, 99.44, 99.44, 99.44, np.nan],
    "dog": [82.22, 84.26, 83.77, 83.89, 83.02, 83.02, 83.02, 83.40, 83.77, np.nan],
    "trec": [65.14, 70.15, 70.29, 70.55, 57.0, 57.0, 70.9, np.nan, np.nan, 57.2],
    "product": [89.66, 93.97, 93.78, 93.83, 92.80, 92.80, 82.9, 92.83, 84.13, 89.55],
    "d_possent": [93.35, 96.00, 96.00, 96.00, 95.10, 95.10, 95.70, 94.80, 95.80, 93.30],
    "face": [63.67, 64.04, 64.04, 64.04, 62.84, 62.84, 64.38, 62.84, 65.24, np.nan],
    "adult2": [75.83, 74.77, 77.48, 74.47, 72.17, 72.17, 78.08, np.nan, np.nan, np.nan],
    "s_rel": [54.33, 61.28, 60.92, 58.48, 48.06, 49.66, 60.90, np.nan, np.nan, np.nan],
    "music_genre": [70.42, 76.71, 76.71, 79.00, 79.43, 79.71, 80.00, 79.57, np.nan, np.nan],
    "zencrowd_in": [74.00, 75.64, 76.81, 76.72, 77.30, 77.30, 71.47, 76.91, 70.64, 74.85],
    "labelme": [76.6, 78.7, 77.6, 76.4, 77.3, np.nan, 77.9, 77.6, np.nan, np.nan],
    "weather_amt": [85.33, 83.67, 85.67, 85.67, np.nan, np.nan, np.nan, np.nan, np.nan, np.nan],
}
MORE = [
    "cifar10n",
    "cifar10s",
    "ducks",
    "ecg_panel",
    "geirhos16_human",
    "judgebench",
    "llmbar",
    "llmbar_processed",
]
MORE += ["medrel_cause", "medrel_treat", "dices350", "hitspam_crowdflower"]
SLOW = {"MMCE": ("adult2", "s_rel", "trec", "geirhos16_human", "cifar10n")}
CONFIDENCES = {
    "averaged": {},
    "variational": {"confidence": "variational"},
    "discounted": {"dependence": "discount"},
}


def aggregators(num_classes: int) -> dict[str, Aggregator]:
    """The columns of the table with its settings, and the defaults of this library."""
    flat = {"prior": "flat", "confidence": "plug-in", "dependence": "ignore"}
    ibcc = DirichletPrior(np.ones(num_classes), 1 + 3 * np.eye(num_classes))
    quiet = {"dependence": "ignore"}
    return {
        "MV": MajorityVote(**quiet),
        "DS": DawidSkene(**flat),
        "DS Stan": DawidSkene(prior="stan", confidence="plug-in", **quiet),
        "iBCC": DawidSkene(prior=ibcc, confidence="variational", **quiet),
        "one coin": OneCoin(**flat),
        "ZC": ZenCrowd(confidence="plug-in", **quiet),
        "MACE": MACE(max_iter=50, **quiet),
        "GLAD": GLAD(**quiet),
        "MMCE": MinimaxEntropy(**quiet),
        "KOS": KOS(**quiet),
        "DawidSkene()": DawidSkene(**quiet),
        "Hierarchical": HierarchicalDawidSkene(**quiet),
        "Fast": FastDawidSkene(**quiet),
        "OneCoin()": OneCoin(**quiet),
    }


def read(folder: Path) -> tuple[Annotations, np.ndarray]:
    """Read the annotations and the gold labels as codes."""
    frame = pd.read_parquet(folder / "annotations.parquet")[["task", "worker", "label"]]
    annotations = Annotations.from_frame(frame, duplicates="first", missing="skip")
    gold = (
        pd.read_parquet(folder / "gold.parquet", columns=["task", "label"])
        .dropna()
        .drop_duplicates("task")
        .set_index("task")["label"]
    )
    if pd.api.types.is_numeric_dtype(annotations.classes.dtype):
        gold = pd.to_numeric(gold, errors="coerce").dropna()
    return annotations, read_table(annotations, gold[gold.isin(annotations.classes)]).gold


def accuracies(root: Path) -> pd.DataFrame:
    rows = {}
    for name, published in PUBLISHED.items():
        annotations, gold = read(root / name)
        accuracy = {}
        for column, aggregator in aggregators(annotations.num_classes).items():
            if (column == "KOS" and annotations.num_classes != 2) or name in SLOW.get(column, ()):
                continue
            accuracy[column] = (
                100 * scores(aggregator.fit(annotations).probabilities_.to_numpy(), gold)["accuracy"]
            )
        rows[name] = accuracy | {
            f"{column} ref": value for column, value in zip(COLUMNS, published, strict=True)
        }
    return pd.DataFrame(rows).T


def confidences(root: Path) -> pd.DataFrame:
    rows, rng = {}, np.random.default_rng(0)
    for name in [*PUBLISHED, *MORE]:
        annotations, gold = read(root / name)
        known = np.flatnonzero(gold >= 0)
        truth = gold[known]
        plain = (
            DawidSkene(confidence="plug-in", dependence="ignore")
            .fit(annotations)
            .probabilities_.to_numpy()[known]
        )
        row = {f"plug-in {key}": value for key, value in scores(plain, truth).items()}
        draws = [rng.integers(len(known), size=len(known)) for _ in range(200)]
        for kind, options in CONFIDENCES.items():
            fitted = DawidSkene(**({"dependence": "ignore"} | options)).fit(annotations)
            p = fitted.probabilities_.to_numpy()[known]
            row |= {f"{kind} {key}": value for key, value in scores(p, truth).items() if key != "items"}
            gap = log_losses(p, truth) - log_losses(plain, truth)
            row |= {
                f"{kind} log_loss gap": gap.mean(),
                f"{kind} log_loss half": interval(gap).half_width,
            }
            gaps = [
                scores(p[d], truth[d])["calibration_error"] - scores(plain[d], truth[d])["calibration_error"]
                for d in draws
            ]
            row |= {
                f"{kind} calibration gap low": np.quantile(gaps, CENTRAL[0]),
                f"{kind} calibration gap high": np.quantile(gaps, CENTRAL[1]),
            }
            if kind == "discounted" and fitted.dependence_ is not None:
                row |= {
                    "labels per item": fitted.dependence_.labels_per_item,
                    "effective": fitted.dependence_.effective_annotators,
                }
        rows[name] = row
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/aggregation_scores"))
    chosen, root = parser.parse_args(), Path(os.environ["PROBCROWD_DATA"])
    chosen.out.mkdir(parents=True, exist_ok=True)
    pd.set_option("display.width", 250, "display.max_columns", 60)
    table = accuracies(root)
    table.to_csv(chosen.out / "accuracy.csv")
    print(table.round(2).to_string())
    print(
        "ours minus reference\n",
        pd.DataFrame({c: table[c] - table[f"{c} ref"] for c in COLUMNS}).round(2).to_string(),
    )
    confidence = confidences(root)
    confidence.to_csv(chosen.out / "confidence.csv")
    for score in ("accuracy", "log_loss", "calibration_error"):
        part = confidence[[f"{kind} {score}" for kind in ("plug-in", *CONFIDENCES)]]
        print(part.round(4).to_string(), "\nmean", part.mean().round(4).to_dict(), "\n")
    print(
        confidence[[column for column in confidence if "gap" in column or "half" in column]]
        .round(4)
        .to_string()
    )


if __name__ == "__main__":
    main()

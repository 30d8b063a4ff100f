"""Do confusion matrices converge to the truth as items grow? `python benchmarks/identifiability.py`

Three classes; items are of thirty kinds, and the network is a free table of class probabilities by kind, so
that nothing but the terms decides between the matrices that give every single label the same probability.
Each item has one label by one of eight annotators.

    no experts    a third of the kinds are nearly certain of their class; accuracies .4 to .65;
                  start at .95; for F
    experts       no kind is certain of a class; each class has two perfect annotators; start at .4; for W

Of all pairs of class probabilities and matrices that give labels the same probabilities, CCEM ends at one
near its start; so it starts on the wrong side
of the truth: with annotators too good, and with annotators too bad.

Strengths: none (CCEM); selected by held-out labels; and as published, by the accuracy on 500 items whose
class is known. The error is the sum of absolute differences of a row, mean over rows and annotators, after
the permutation of classes that fits best.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from probcrowd.estimators.crowd.classifier import CrowdClassifier
from probcrowd.metrics.tensors import aligned_confusion_error

KINDS, CLASSES, ANNOTATORS = 30, 3, 8
STARTS = {"no experts": 0.95, "experts": 0.4}


def truth(case: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Class probabilities by kind, and confusion matrices."""
    mixed = rng.dirichlet(np.full(CLASSES, 3.0), KINDS)
    if case == "no experts":
        anchors = 0.98 * np.eye(CLASSES)[np.arange(KINDS // 3) % CLASSES] + 0.01 * (
            1 - np.eye(CLASSES)[np.arange(KINDS // 3) % CLASSES]
        )
        kinds = np.concatenate([anchors, mixed[KINDS // 3 :]])
        right = np.linspace(0.4, 0.65, ANNOTATORS)
        lean = rng.dirichlet(np.full(CLASSES, 10.0), (ANNOTATORS, CLASSES))
        confusion = right[:, None, None] * np.eye(CLASSES) + (1 - right[:, None, None]) * lean
        return kinds, confusion
    confusion = rng.dirichlet(np.full(CLASSES, 2.0), (ANNOTATORS, CLASSES))
    for annotator in range(
        2 * CLASSES
    ):  # who knows one class never says it of another, and always of its own
        known = annotator % CLASSES
        confusion[annotator, :, known] = 0
        confusion[annotator] /= confusion[annotator].sum(1, keepdims=True)
        confusion[annotator, known] = np.eye(CLASSES)[known]
    return mixed, confusion


def crowd(case: str, items: int, seed: int) -> tuple[np.ndarray, pd.DataFrame, np.ndarray, np.ndarray]:
    """Draw kinds as one-hot inputs, labels and classes; the confusion matrices depend on the case alone."""
    kinds, confusion = truth(case, np.random.default_rng(0))
    rng = np.random.default_rng([seed, 1])
    kind, annotator = rng.integers(KINDS, size=items), rng.integers(ANNOTATORS, size=items)
    classes = (rng.random(items)[:, None] > kinds[kind].cumsum(1)).sum(1)
    label = (rng.random(items)[:, None] > confusion[annotator, classes].cumsum(1)).sum(1).clip(0, CLASSES - 1)
    labels = pd.DataFrame({"item": np.arange(items), "annotator": annotator, "label": label})
    return np.eye(KINDS, dtype=np.float32)[kind], labels, classes, confusion


def table(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Class probabilities by kind."""
    layer = nn.Linear(shape[0], classes, bias=False)
    nn.init.normal_(layer.weight, std=0.1)
    return layer


def error(case: str, items: int, seed: int, epochs: int = 60, **options: Any) -> tuple[float, float]:
    """The error of the confusion matrices, and the strength."""
    inputs, labels, _, confusion = crowd(case, items, seed)
    rest = {
        "initial_accuracy": STARTS[case],
        "batch": max(items // 20, 50),
        "learning_rate": 0.05,
        "channel_learning_rate": 0.05,
        "epochs": epochs,
        "random_state": seed,
    }
    fitted = CrowdClassifier(network=table, **rest, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        known = crowd(case, 500, seed + 1000)
        gold = {"validation": (known[0], known[2])} if options.get("selection") == "gold" else {}
        fitted.fit(inputs, labels, **gold)
    estimated = fitted.confusion_.to_numpy().reshape(-1, CLASSES, CLASSES)[
        np.argsort(fitted.annotators_.index)
    ]
    strengths = getattr(fitted, "strengths_", None)
    strength = np.nan if strengths is None else fitted.strength_
    return float(
        aligned_confusion_error(torch.from_numpy(estimated), torch.from_numpy(confusion)).mean()
    ), strength


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[500, 2000, 8000, 32000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/identifiability.csv"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways: dict[str, dict[str, Any]] = {"CCEM": {"method": "ccem"}}
    for name in ("F", "W"):
        method = {"method": f"geocrowdnet-{name.lower()}", "strength": "selected"}
        ways |= {f"{name}, held-out labels": method, f"{name}, clean labels": {**method, "selection": "gold"}}
    rows = []
    for case in ("no experts", "experts"):
        for items in given.items:
            for name, options in ways.items():
                results = [error(case, items, seed, **options) for seed in range(given.seeds)]
                errors = np.array([value for value, _ in results])
                spread = errors.std(ddof=1) / np.sqrt(len(errors)) if len(errors) > 1 else np.nan
                strengths = " ".join(f"{strength:g}" for _, strength in results)
                rows.append(
                    {
                        "case": case,
                        "items": items,
                        "method": name,
                        "error": errors.mean(),
                        "standard_error": spread,
                        "strengths": strengths,
                    }
                )
                print(
                    f"{case:10s} {items:6d} {name:18s} {errors.mean():.3f} ± {spread:.3f}   {strengths}",
                    flush=True,
                )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(given.out, index=False)


if __name__ == "__main__":
    main()

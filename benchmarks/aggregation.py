"""Speed and memory of label aggregation beside crowd-kit and a plain scipy.sparse version, in one run.

    python benchmarks/aggregation.py [--sizes 100000 1000000] [--classes 4] [--skip-crowdkit]

1. Dawid-Skene EM, 20 passes from the vote shares with a pseudo-count of 0.01, the same for all: seconds of a
   whole fit divided by passes and annotations. Simulated tables of n annotations: n/5 items, sqrt(n)
   annotators with lognormal activity, accuracy Beta(6, 2.5). The input of each (a frame, a sparse matrix,
   packed cells) is prepared before and timed separately. Minimum of several repetitions, taking turns.
   crowd-kit runs without early stopping. Log likelihoods and accuracies must agree.
2. Few judges, many items: 10^6 items by 5 judges of 2 classes with 5 % missing, 20 passes over response
   patterns.
3. Passes to the log posterior at which plain EM ends, accelerated against plain, on real sets
   (PROBCROWD_DATA).
4. Added labels: 1,000 labels to a table of 10^7.

crowd-kit is needed for its own column only.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import logsumexp

from probcrowd.data.annotations import Annotations
from probcrowd.data.table import occurring, pack
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.inference.aggregation.e_step import e_step
from probcrowd.inference.aggregation.em import InMemory, fit_table, group_patterns
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.models.priors import DirichletPrior

PASSES, PSEUDO = 20, 0.01
SETS = [
    "adult2",
    "bluebirds",
    "cifar10n",
    "cifar10s",
    "d_possent",
    "dog",
    "ducks",
    "ecg_panel",
    "face",
    "geirhos16_human",
    "judgebench",
    "labelme",
    "llmbar",
    "llmbar_processed",
    "medrel_cause",
    "medrel_treat",
    "music_genre",
    "product",
    "s_rel",
    "snow_rte",
    "snow_temp",
    "snow_wsd",
    "trec",
    "weather_amt",
    "zencrowd_in",
    "dices350",
]


@dataclass(frozen=True)
class Labels:
    """A simulated table as codes, with the true classes."""

    item: np.ndarray
    annotator: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    num_annotators: int
    num_classes: int


def simulated(rows: int, num_classes: int) -> Labels:
    """Simulate five labels per item by distinct annotators."""
    rng = np.random.default_rng(0)
    items, annotators = rows // 5, int(rows**0.5)
    activity = rng.lognormal(size=annotators)
    activity /= activity.sum()
    chosen = rng.choice(annotators, size=(items, 5), p=activity)
    repeated = np.arange(items)
    while len(repeated):
        ordered = np.sort(chosen[repeated], 1)
        repeated = repeated[(ordered[:, 1:] == ordered[:, :-1]).any(1)]
        chosen[repeated] = rng.choice(annotators, size=(len(repeated), 5), p=activity)
    item, annotator = np.repeat(np.arange(items), 5), chosen.ravel()
    accuracy, truth = rng.beta(6, 2.5, size=annotators), rng.integers(num_classes, size=items)
    right = rng.random(len(item)) < accuracy[annotator]
    label = np.where(
        right, truth[item], (truth[item] + rng.integers(1, num_classes, size=len(item))) % num_classes
    )
    return Labels(item, annotator, label, truth, annotators, num_classes)


def ours(data: Labels) -> Callable[[], np.ndarray]:
    key = data.annotator * data.num_classes + data.label
    cells = occurring(key, data.num_annotators, data.num_classes, data.num_classes)
    packed = pack(data.item, key, cells, len(data.truth))
    shape = data.num_classes, data.num_classes
    channel = DirichletRows(cells, np.full(shape, 1 + PSEUDO), ClassPrior(np.ones(data.num_classes)))

    def run() -> np.ndarray:
        fit = fit_table(
            InMemory(packed, cells), channel, max_iter=PASSES - 1, tolerance=-np.inf, accelerate=False
        )
        responsibilities = np.zeros((len(data.truth), data.num_classes))
        e_step(packed, fit.scores, responsibilities=responsibilities)  # the last pass
        return responsibilities

    return run


def sparse(data: Labels) -> Callable[[], np.ndarray]:
    """EM as two products with one sparse matrix, items x (annotator, label)."""
    classes = data.num_classes
    matrix = csr_matrix(
        (np.ones(len(data.item)), (data.item, data.annotator * classes + data.label)),
        (len(data.truth), data.num_annotators * classes),
    )

    def run() -> np.ndarray:
        votes = np.zeros((len(data.truth), classes))
        np.add.at(votes, (data.item, data.label), 1.0)
        responsibilities = votes / votes.sum(1, keepdims=True)
        for _ in range(PASSES):
            counts = (matrix.T @ responsibilities).reshape(data.num_annotators, classes, classes) + PSEUDO
            logs = np.log(counts / counts.sum(1, keepdims=True)).reshape(-1, classes)
            scores = matrix @ logs + np.log(responsibilities.mean(0))
            responsibilities = np.exp(scores - logsumexp(scores, 1, keepdims=True))
        return responsibilities

    return run


def crowdkit(data: Labels) -> Callable[[], np.ndarray]:
    from crowdkit.aggregation import DawidSkene as CrowdKitDawidSkene

    frame = pd.DataFrame({"task": data.item, "worker": data.annotator, "label": data.label})

    def run() -> np.ndarray:
        aggregator = CrowdKitDawidSkene(n_iter=PASSES, tol=-np.inf)
        return (
            aggregator.fit_predict_proba(frame)
            .reindex(index=range(len(data.truth)), columns=range(data.num_classes))
            .to_numpy()
        )

    return run


def speed(
    rows: int,
    num_classes: int,
    kinds: dict[str, Callable[[Labels], Callable[[], np.ndarray]]],
    repetitions: int = 5,
) -> None:
    data = simulated(rows, num_classes)
    runs, prepared, seconds, answers = {}, {}, {}, {}
    for name, kind in kinds.items():
        start = time.perf_counter()
        runs[name] = kind(data)
        prepared[name] = time.perf_counter() - start
    runs["probcrowd"]()  # compiles
    for repetition in range(repetitions):
        for name, run in runs.items():
            if name == "crowd-kit" and repetition:
                continue
            start = time.perf_counter()
            answers[name] = run()
            seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
    print(f"\n{len(data.item):,} annotations, {data.num_classes} classes, {PASSES} passes")
    for name, elapsed in seconds.items():
        hit = (answers[name].argmax(1) == data.truth).mean()
        gap = np.abs(answers[name] - answers["probcrowd"]).max()
        each = 1e9 * elapsed / (PASSES * len(data.item))
        ratio = elapsed / seconds["probcrowd"]
        print(
            f"  {name:12s} {each:8.2f} ns per annotation and pass, {ratio:7.1f} x, "
            f"prepared in {prepared[name]:.2f} s, accuracy {hit:.4f}, gap {gap:.1e}"
        )


def judges() -> None:
    rng = np.random.default_rng(0)
    items, annotators = 1_000_000, 5
    truth, accuracy = rng.integers(2, size=items), np.array([0.9, 0.8, 0.75, 0.7, 0.6])
    label = np.where(rng.random((items, annotators)) < accuracy, truth[:, None], 1 - truth[:, None])
    item, annotator = np.nonzero(rng.random((items, annotators)) >= 0.05)
    packing, grouping = np.inf, np.inf
    for _ in range(5):
        start = time.perf_counter()
        key = annotator * 2 + label[item, annotator]
        cells = occurring(key, annotators, 2, 2)
        packed = pack(item, key, cells, items)
        middle = time.perf_counter()
        patterns, place = group_patterns(packed, cells)
        grouping = min(grouping, time.perf_counter() - middle)
        packing = min(packing, middle - start)
    assert place is not None
    prior = DirichletPrior.named("accurate", 2)
    channel = DirichletRows(cells, prior.confusion, ClassPrior(prior.class_prior))
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        fit = fit_table(
            InMemory(patterns, cells), channel, max_iter=PASSES, tolerance=-np.inf, accelerate=False
        )
        responsibilities = np.zeros((patterns.num_items, 2))
        e_step(patterns, fit.scores, responsibilities=responsibilities)
        answer = responsibilities[place]
        best = min(best, time.perf_counter() - start)
    full = fit_table(InMemory(packed, cells), channel, max_iter=PASSES, tolerance=-np.inf, accelerate=False)
    print(
        f"\n{items:,} items by {annotators} judges, {len(item):,} labels: packed in {packing:.3f} s, "
        f"grouped into {patterns.num_items} patterns in {grouping:.3f} s, "
        f"{PASSES} passes and probabilities of every item in {best:.4f} s; "
        f"log posterior {fit.objective[-1]:.4f}, "
        f"without grouping {full.objective[-1]:.4f}; accuracy {(answer.argmax(1) == truth).mean():.4f}"
    )


def acceleration(folder: Path, named: Any) -> None:
    totals = {"plain": 0, "to": 0, "all_plain": 0, "all": 0}
    worst, lower = 0.0, []
    print(
        f"\n{'set':18s} passes of plain EM, accelerated passes to the same log posterior (in all), "
        "difference of log posteriors"
    )
    for name in SETS:
        frame = pd.read_parquet(folder / name / "annotations.parquet")[["task", "worker", "label"]]
        annotations = Annotations.from_frame(frame, duplicates="first", missing="skip")
        classes = annotations.num_classes
        key = annotations.annotator * classes + annotations.label
        cells = occurring(key, annotations.num_annotators, classes, classes)
        source = InMemory(pack(annotations.item, key, cells, annotations.num_items), cells)
        prior = DirichletPrior.named(named, classes)
        channel = DirichletRows(cells, prior.confusion, ClassPrior(prior.class_prior))
        plain = fit_table(source, channel, accelerate=False, max_iter=5000)
        target = plain.objective[-1] - 1e-8 * len(annotations)
        needed = int(np.argmax(plain.objective >= target)) + 1
        fast = fit_table(source, channel, max_iter=5000)
        reached = fast.passes_to(target)
        gap = fast.objective[-1] - plain.objective[-1]
        if reached is None:
            lower.append(name)
            reached = fast.passes
        totals["plain"] += needed
        totals["to"] += reached
        totals["all_plain"] += plain.passes
        totals["all"] += fast.passes
        worst = max(worst, reached / needed)
        print(f"{name:18s} {needed:5d} ({plain.passes})  {reached:5d} ({fast.passes})   {gap:+.4f}")
    print(
        f"sum: {totals['to'] / totals['plain']:.3f} of plain EM's passes to the same log posterior; "
        f"at most {worst:.2f} on a set; to the end {totals['all'] / totals['all_plain']:.3f}; "
        f"lower on {lower or 'none'}"
    )


def added(rows: int = 10_000_000, new: int = 1_000) -> None:
    data = simulated(rows, 4)
    chosen = np.zeros(len(data.item), bool)
    chosen[np.random.default_rng(1).choice(len(data.item), new, replace=False)] = True
    ids = (pd.RangeIndex(size) for size in (len(data.truth), data.num_annotators, 4))
    names = tuple(ids)
    base = Annotations(data.item[~chosen], data.annotator[~chosen], data.label[~chosen], *names)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    fitted = DawidSkene().fit(base)
    elapsed = time.perf_counter() - start
    more = pd.DataFrame(
        {"item": data.item[chosen], "annotator": data.annotator[chosen], "label": data.label[chosen]}
    )
    seconds = []
    for part in np.array_split(np.arange(new), 5):
        start = time.perf_counter()
        fitted.partial_fit(more.iloc[part])
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"\n{len(base):,} labels fitted in {elapsed:.2f} s ({fitted.n_iter_} iterations), "
        f"{1024 * (peak - before) / len(base):.0f} bytes more per label at peak\n"
        f"{new:,} labels added in {len(seconds)} calls: {np.sum(seconds):.3f} s; "
        f"{fitted.refit_gap_.round(4).to_dict()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--skip-crowdkit", action="store_true")
    parser.add_argument("--prior", default="accurate", help="of the acceleration part")
    parser.add_argument("--only", choices=["speed", "judges", "acceleration", "added"])
    chosen = parser.parse_args()
    kinds = {"probcrowd": ours, "scipy.sparse": sparse} | (
        {} if chosen.skip_crowdkit else {"crowd-kit": crowdkit}
    )
    if chosen.only in (None, "speed"):
        for size in chosen.sizes:
            speed(size, chosen.classes, kinds)
    if chosen.only in (None, "judges"):
        judges()
    if chosen.only in (None, "acceleration") and os.environ.get("PROBCROWD_DATA"):
        acceleration(Path(os.environ["PROBCROWD_DATA"]), chosen.prior)
    if chosen.only in (None, "added"):
        added()


if __name__ == "__main__":
    main()

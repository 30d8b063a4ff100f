"""The experiments of the LIA paper (Platanios et al. 2020), tables 2 and 3, beside its numbers and beside what it left out.

Labels are drawn at random, at most r of each item; every seed draws its own. Methods see the labels drawn, and features where they take
any; gold scores them and nothing else. Accuracy counts one half in a tie.

results.csv    one row per set, truth, r, method and answer: accuracy, Brier and log score, mean and standard error over seeds; published
asked.csv      LIA (joint) against the better of Dawid-Skene (MAP) and the published LIA, with both kinds of standard error
cells/         every number: one row per seed, with a mark for every item: 1 right, 0 wrong, - tie
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.compute.threads import one_thread
from probcrowd.estimators.aggregation.snorkel import MISSING
from probcrowd.estimators.lia.multi_label import MultiLabelLIA
from probcrowd.experiments.grid import Cell, read_cells, run_cells
from probcrowd.experiments.lia.datasets import REDUNDANCIES, read_set
from probcrowd.experiments.lia.methods import METHODS
from probcrowd.metrics.scores import hits, scores
from probcrowd.storage.files import write_table
from probcrowd.storage.settings import Settings

TOGETHER = "LIA-ML joint"  # answers the medical sets as two questions about each sentence
_MEDICAL = ("medrel_cause", "medrel_treat")
_MARKS = "0-1"


class LIAReproduction(Settings):
    """What the numbers depend on."""

    out: Path
    seeds: int
    sets: tuple[str, ...]


def reproduce_lia(
    root: Path,
    out: Path,
    *,
    sets: Sequence[str] = tuple(REDUNDANCIES),
    methods: Sequence[str] = (),
    seeds: int = 20,
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of results, after writing it and its parts into `out`; cells that are there already are not made again, and count.

    Args:
        root: the data folder. methods: none: all that are not slow and whose packages are installed. "all": the slow ones too.

    Raises:
        ValueError: unknown sets or methods, no such data, or `out` holds results of other settings.
    """
    slow, by_name = "all" in methods, bool(methods) and "all" not in methods
    chosen = (
        list(methods)
        if by_name
        else [name for name, method in METHODS.items() if available(name) and (slow or not method.slow)]
    )
    for given, known in ((sets, list(REDUNDANCIES)), (chosen, [*METHODS, TOGETHER])):
        if wrong := [name for name in given if name not in known]:
            raise ValueError(f"unknown: {', '.join(wrong)}; choose from {'; '.join(known)}")
    asked_sets = tuple(name for name in REDUNDANCIES if name in sets)
    if TOGETHER in chosen and not set(_MEDICAL) <= set(asked_sets):
        raise ValueError(f"{TOGETHER} needs the sets {' and '.join(_MEDICAL)}")
    for name in asked_sets:
        read_set(root, name)
    if not by_name:
        chosen.append(TOGETHER)  # of which there are cells if there are both sets
    settings = LIAReproduction(out=out, seeds=seeds, sets=asked_sets)
    cells = _cells(root, asked_sets)
    wanted = {name: cell for name, (method, cell) in cells.items() if method in chosen}
    run_cells(out, settings, wanted, seeds, jobs=jobs, progress=progress)
    rows = read_cells(out, cells)
    results, asked = summary(rows), compared(rows)
    write_table(out / "results.csv", results.set_index("set"))
    if len(asked):
        write_table(out / "asked.csv", asked.set_index("set"))
    else:
        (out / "asked.csv").unlink(missing_ok=True)
    return results


def named_methods(text: str | None) -> list[str]:
    """The methods that a text names, between commas; some names have a comma of their own."""
    names: list[str] = []
    for part in map(str.strip, text.split(",") if text else ()):
        if names and f"{names[-1]}, {part}" in METHODS:
            names[-1] += f", {part}"
        else:
            names.append(part)
    return names


def available(method: str) -> bool:
    """Whether the packages that a method needs are installed."""
    return method != "Snorkel 0.10" or find_spec("snorkel") is not None


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and standard errors over seeds, in per cent where it is accuracy, with the paper's numbers."""
    keys = ["set", "truth", "redundancy", "method", "answer"]
    groups = rows.groupby(keys, sort=False)
    made = groups.agg(
        seeds=("seed", "size"),
        accuracy=("accuracy", "mean"),
        brier=("brier", "mean"),
        log_loss=("log_loss", "mean"),
    )
    made["standard_error"] = (
        100 * groups["accuracy"].std(ddof=1) / np.sqrt(groups["accuracy"].size())
    ).fillna(0.0)
    made["accuracy"] *= 100
    made["seconds"] = groups["seconds"].mean()
    table = made.reset_index()
    told = [
        published(*key)
        for key in zip(
            *(table[key] for key in ("set", "redundancy", "method", "answer", "truth")), strict=True
        )
    ]
    return table.assign(published=[value for value, _ in told], published_error=[error for _, error in told])


def published(
    name: str, redundancy: int, method: str, answer: str = "labels", truth: str = "gold"
) -> tuple[float, float]:
    """Accuracy and standard error that the paper reports, in per cent; NaN where it has none.

    Its medical numbers are those of the code's truth.
    """
    nothing = (math.nan, math.nan)
    column = "LIA-ML" if method == TOGETHER else METHODS[method].published
    if column == "LIA" and answer.endswith("before equation 9"):
        column = "LIA before equation 9"
    if column is None or truth == "expert" or answer.startswith("h(x)"):
        return nothing
    table = _published_table()
    text = table[column].get((name, redundancy))
    if not isinstance(text, str):
        return nothing
    value, _, error = text.partition("±")
    return float(value), float(error) if error else math.nan


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """LIA (joint) less the better of Dawid-Skene (MAP) and the published LIA, in per cent, set by set.

    over_seeds: the standard error of the difference over seeds. over_items: over items, of the paired difference from Dawid-Skene, or of
    our own accuracy where the published LIA is the better, of which no answers by item are known.
    """
    made = []
    labels = rows.loc[(rows["answer"] == "labels") & (rows["truth"] != "as the authors' code")]
    groups: Any = labels.groupby(["set", "redundancy"], sort=False)
    for (name, redundancy), part in groups:
        by_method: dict[str, Any] = {
            method: group.set_index("seed") for method, group in part.groupby("method")
        }
        if not {"LIA joint", "Dawid-Skene (MAP)"} <= set(by_method):
            continue
        ours, theirs = by_method["LIA joint"], by_method["Dawid-Skene (MAP)"]
        paper, paper_error = published(name, redundancy, "LIA joint", truth=part["truth"].iloc[0])
        ahead = not paper > 100 * theirs["accuracy"].mean()  # NaN: nothing published
        right = _marks(ours)
        if ahead:
            difference = 100 * (ours["accuracy"] - theirs["accuracy"])
            over_seeds = _error(difference.to_numpy())
            over_items = 100 * _error(right - _marks(theirs))
        else:
            difference = 100 * ours["accuracy"] - paper
            over_seeds = math.hypot(
                _error(difference.to_numpy()), 0.0 if math.isnan(paper_error) else paper_error
            )
            over_items = 100 * _error(right)
        made.append(
            {
                "set": name,
                "redundancy": redundancy,
                "ours": 100 * ours["accuracy"].mean(),
                "dawid_skene": 100 * theirs["accuracy"].mean(),
                "published": paper,
                "difference": difference.mean(),
                "over_seeds": over_seeds,
                "over_items": over_items,
                "reached": bool(difference.mean() >= -over_seeds),
                "reached_over_items": bool(difference.mean() >= -max(over_seeds, over_items)),
            }
        )
    return pd.DataFrame(made)


def results_text(results: pd.DataFrame) -> str:
    """The results for readers: a table per set and truth, accuracy and standard error in per cent, the paper's in brackets."""
    parts = []
    groups: Any = results.groupby(["set", "truth"], sort=False)
    for (name, truth), part in groups:
        numbers = zip(part["accuracy"], part["standard_error"], part["published"], strict=True)
        cell = [
            f"{ours:.1f}±{error:.1f}" + ("" if math.isnan(paper) else f" ({paper:.1f})")
            for ours, error, paper in numbers
        ]
        label = part["method"] + np.where(part["answer"] == "labels", "", " · " + part["answer"])
        table = pd.DataFrame({"method": label, "redundancy": part["redundancy"], "cell": cell})
        wide = table.pivot_table(
            index="method", columns="redundancy", values="cell", aggfunc="first", sort=False
        )
        parts.append(f"{name}, truth: {truth}\n{wide.fillna('').rename_axis(None).to_string()}")
    return "\n\n".join(parts)


def asked_text(asked: pd.DataFrame) -> str:
    """The comparison for readers, in per cent."""
    return asked.to_string(index=False, float_format="{:.1f}".format, na_rep="")


def missing_text() -> str:
    """The label models of the paper for which there is no package, and why."""
    return "\n".join(f"{name}: {reason}" for name, reason in MISSING.items())


def _cells(root: Path, sets: Sequence[str]) -> dict[str, tuple[str, Cell]]:
    """The method and the function of every cell that there may be, by names that may be files'."""
    found: dict[str, tuple[str, Cell]] = {
        f"{name} {redundancy} {method}".replace("*", "_star"): (
            method,
            partial(_scored, root, name, redundancy, method),
        )
        for name in sets
        for redundancy in REDUNDANCIES[name]
        for method in METHODS
    }
    if set(_MEDICAL) <= set(sets):
        for redundancy in REDUNDANCIES[_MEDICAL[0]]:
            found[f"medrel {redundancy} {TOGETHER}"] = TOGETHER, partial(_together, root, redundancy)
    return found


def _scored(root: Path, name: str, redundancy: int, method: str, seed: int) -> list[dict[str, Any]]:
    given = read_set(root, name)
    with _quiet():
        begun = time.perf_counter()
        answers = METHODS[method].fit(given.drawn(redundancy, seed), given.features, seed)
        seconds = time.perf_counter() - begun
    return [
        {
            "set": name,
            "truth": truth,
            "redundancy": redundancy,
            "method": method,
            "answer": who,
            "seconds": seconds,
            **_judged(found, gold),
        }
        for who, found in answers.items()
        for truth, gold in given.truths.items()
    ]


def _together(root: Path, redundancy: int, seed: int) -> list[dict[str, Any]]:
    """The medical relations as two questions about each sentence."""
    sets = {name: read_set(root, name) for name in _MEDICAL}
    labels = pd.concat([given.drawn(redundancy, seed).assign(question=name) for name, given in sets.items()])
    with _quiet():
        begun = time.perf_counter()
        fitted = MultiLabelLIA(random_state=seed).fit(labels, features=sets[_MEDICAL[0]].features)
        seconds = time.perf_counter() - begun
    rows = []
    for name, given in sets.items():
        found = fitted.probabilities_.xs(name, level="question")
        shared = {
            "set": name,
            "redundancy": redundancy,
            "method": TOGETHER,
            "answer": "labels",
            "seconds": seconds,
        }
        rows += [shared | {"truth": truth, **_judged(found, gold)} for truth, gold in given.truths.items()]
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """One core, so that results have the same bits on any number of them and jobs do not wait for each other; no warnings of the data."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _judged(found: pd.DataFrame, gold: pd.Series) -> dict[str, Any]:
    known = gold.loc[gold.index.isin(found.index)].sort_index()
    probabilities = found.loc[known.index].to_numpy(np.float64)
    codes = found.columns.get_indexer(pd.Index(known)).astype(np.int64)
    marks = "".join(_MARKS[round(2 * value)] for value in hits(probabilities, codes))
    return scores(probabilities, codes) | {"marks": f"[{marks}]"}


def _marks(rows: pd.DataFrame) -> np.ndarray:
    """Mean over seeds of how right the answer for each item was."""
    return np.array([[_MARKS.index(mark) / 2 for mark in text.strip("[]")] for text in rows["marks"]]).mean(0)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


@cache
def _published_table() -> pd.DataFrame:
    with (files("probcrowd.experiments.lia") / "published.csv").open() as file:
        return pd.read_csv(file, index_col=["set", "redundancy"])

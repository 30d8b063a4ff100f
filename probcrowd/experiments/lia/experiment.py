"""Tables 2 and 3 of the LIA paper (Platanios et al. 2020), beside its numbers and with further baselines.

At most r labels of each item are drawn at random; every seed draws its own. Methods see these labels, and
features where they take any; gold labels only score them. A tie counts as half right.

results.csv      one row per set, truth, r, method and answer: accuracy, Brier and log score, mean and
                 standard error over seeds; published
comparisons.csv  LIA (joint) against the better of Dawid-Skene (MAP) and the published LIA, with standard
                 errors over seeds and over items
cells/           every number: one row per seed, with a mark for every item: 1 right, 0 wrong, - tie
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from probcrowd.estimators.aggregation.snorkel import MISSING
from probcrowd.estimators.lia.multi_label import MultiLabelLIA
from probcrowd.experiments.grid import Rows, Stage, read_cells
from probcrowd.experiments.harness import Experiment, Options, Tables
from probcrowd.experiments.lia.datasets import MEDICAL, REDUNDANCIES, read_set
from probcrowd.experiments.lia.methods import METHODS
from probcrowd.experiments.tables import (
    average_over_seeds,
    format_errors,
    format_results,
    read_published,
    standard_error,
)
from probcrowd.metrics.scores import hits, scores

JOINTLY = "LIA-ML joint"  # answers the medical sets as two questions about each sentence
_KEYS = ["set", "truth", "redundancy", "method", "answer"]
_MARKS = "0-1"


class LIAOptions(Options):
    """methods: none: all that are not slow and whose packages are installed; "all": the slow ones too."""

    seeds: int = 20
    sets: tuple[str, ...] = tuple(REDUNDANCIES)


def _stages(options: LIAOptions) -> list[Stage]:
    methods = options.methods
    if not methods or "all" in methods:
        usual = [
            name for name, method in METHODS.items() if is_available(name) and (methods or not method.slow)
        ]
        methods = (*usual, JOINTLY)
    elif JOINTLY in methods and not set(MEDICAL) <= set(options.sets):
        raise ValueError(f"{JOINTLY} needs the sets {' and '.join(MEDICAL)}")
    for name in options.sets:
        read_set(options.data, name)
    return [Stage(options.out, options, _cells(options, methods), options.seeds)]


def is_available(method: str) -> bool:
    """Whether the packages that a method needs are installed."""
    return method != "Snorkel 0.10" or find_spec("snorkel") is not None


def _cells(options: LIAOptions, methods: Collection[str]) -> dict[str, Any]:
    cells = {
        f"{name} {redundancy} {method}".replace("*", "_star"): partial(
            _fit, options, (name,), redundancy, method
        )
        for name in options.sets
        for redundancy in REDUNDANCIES[name]
        for method in METHODS
        if method in methods
    }
    if JOINTLY in methods and set(MEDICAL) <= set(options.sets):
        for redundancy in REDUNDANCIES[MEDICAL[0]]:
            cells[f"medrel {redundancy} {JOINTLY}"] = partial(_fit, options, MEDICAL, redundancy, JOINTLY)
    return cells


def _fit(options: LIAOptions, names: Sequence[str], redundancy: int, method: str, seed: int) -> Rows:
    sets = [read_set(options.data, name) for name in names]
    labels = [each.draw(redundancy, seed) for each in sets]
    start = time.perf_counter()
    if method == JOINTLY:
        together = pd.concat([part.assign(question=name) for name, part in zip(names, labels, strict=True)])
        fitted = MultiLabelLIA(random_state=seed).fit(together, features=sets[0].features)
        answers = [{"labels": fitted.probabilities_.xs(name, level="question")} for name in names]
    else:
        answers = [METHODS[method].fit(labels[0], sets[0].features, seed)]
    shared = {"redundancy": redundancy, "method": method, "seconds": time.perf_counter() - start}
    return [
        {"set": each.name, "truth": truth, **shared, "answer": answer, **_score(probabilities, gold)}
        for each, own in zip(sets, answers, strict=True)
        for answer, probabilities in own.items()
        for truth, gold in each.truths.items()
    ]


def _score(probabilities: pd.DataFrame, gold: pd.Series) -> dict[str, Any]:
    known = gold.loc[gold.index.isin(probabilities.index)].sort_index()
    values = probabilities.loc[known.index].to_numpy(np.float64)
    codes = probabilities.columns.get_indexer(pd.Index(known)).astype(np.int64)
    marks = "".join(_MARKS[round(2 * value)] for value in hits(values, codes))
    return scores(values, codes) | {"marks": f"[{marks}]"}


def _tables(options: LIAOptions) -> Tables:
    rows = read_cells(options.out, _cells(options, [*METHODS, JOINTLY]))
    tables = {"results": summarize(rows), "comparisons": compare(rows)}
    return {name: table for name, table in tables.items() if len(table)}


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and standard errors over seeds with the paper's numbers; accuracy in per cent."""
    columns = ["seeds", "accuracy", "brier", "log_loss", "standard_error", "seconds"]
    table = average_over_seeds(rows, _KEYS, columns, measure="accuracy", percent=["accuracy"])
    reported = [published(*key) for key in table[_KEYS].itertuples(index=False)]
    return table.fillna({"standard_error": 0.0}).assign(
        published=[value for value, _ in reported], published_error=[error for _, error in reported]
    )


def published(
    name: str, truth: str, redundancy: int, method: str, answer: str = "labels"
) -> tuple[float, float]:
    """Accuracy and standard error that the paper reports, in per cent; nan where it has none.

    Its medical numbers refer to the truth of the authors' code.
    """
    column = "LIA-ML" if method == JOINTLY else METHODS[method].published
    if column == "LIA" and answer.endswith("before equation 9"):
        column = "LIA before equation 9"
    cell = None
    if column is not None and truth != "expert" and not answer.startswith("h(x)"):
        cell = published_table()[column].get((name, redundancy))
    if not isinstance(cell, str):
        return math.nan, math.nan
    value, _, error = cell.partition("±")
    return float(value), float(error) if error else math.nan


@cache
def published_table() -> pd.DataFrame:
    """The paper's tables 2 and 3 by set and redundancy: accuracy±error, in per cent."""
    return read_published("lia").set_index(["set", "redundancy"])


def compare(rows: pd.DataFrame) -> pd.DataFrame:
    """LIA (joint) less the better of Dawid-Skene (MAP) and the published LIA, in per cent.

    over_seeds: the standard error of the difference over seeds. over_items: over items, of the paired
    difference from Dawid-Skene, or of our own accuracy where the published LIA is the better, for which no
    answers by item are known.
    """
    table = []
    labels = rows.loc[(rows["answer"] == "labels") & (rows["truth"] != "as the authors' code")]
    groups: Any = labels.groupby(["set", "redundancy"], sort=False)
    for (name, redundancy), part in groups:
        by_method: dict[str, Any] = {
            method: group.set_index("seed") for method, group in part.groupby("method")
        }
        if not {"LIA joint", "Dawid-Skene (MAP)"} <= set(by_method):
            continue
        ours, theirs = by_method["LIA joint"], by_method["Dawid-Skene (MAP)"]
        paper, paper_error = published(name, part["truth"].iloc[0], redundancy, "LIA joint")
        right, difference = _mean_marks(ours), 100 * ours["accuracy"] - paper
        over_seeds = np.nan_to_num([standard_error(difference), paper_error])
        if not paper > 100 * theirs["accuracy"].mean():  # nan: nothing published
            right = right - _mean_marks(theirs)
            difference = 100 * (ours["accuracy"] - theirs["accuracy"])
            over_seeds = np.nan_to_num([standard_error(difference)])
        row = {"set": name, "redundancy": redundancy, "ours": 100 * ours["accuracy"].mean()}
        row |= {
            "dawid_skene": 100 * theirs["accuracy"].mean(),
            "published": paper,
            "difference": difference.mean(),
        }
        row |= {"over_seeds": math.hypot(*over_seeds), "over_items": 100 * standard_error(right)}
        row["reached"] = bool(row["difference"] >= -row["over_seeds"])
        row["reached_over_items"] = bool(row["difference"] >= -max(row["over_seeds"], row["over_items"]))
        table.append(row)
    return pd.DataFrame(table)


def _mean_marks(rows: pd.DataFrame) -> np.ndarray:
    """How right the answer for each item was, averaged over seeds."""
    return np.array([[_MARKS.index(mark) / 2 for mark in text.strip("[]")] for text in rows["marks"]]).mean(0)


def _report(tables: Tables) -> list[tuple[str, str]]:
    results = tables["results"]
    reported = results["published"].map(lambda value: "" if math.isnan(value) else f" ({value:.1f})")
    shown = results.assign(
        cell=format_errors(results, "accuracy") + reported,
        name=results["method"] + np.where(results["answer"] == "labels", "", " · " + results["answer"]),
    )
    text = format_results(shown, ["set", "truth"], "{}, truth: {}", "redundancy", axis="redundancy")
    title = "accuracy ± standard error in per cent, by labels per item; in brackets what the paper reports"
    parts = [(title, text)]
    if "comparisons" in tables:
        text = tables["comparisons"].to_string(index=False, float_format="{:.1f}".format, na_rep="")
        parts.append(
            ("LIA (joint) less the better of Dawid-Skene (MAP) and the paper's LIA, in per cent", text)
        )
    missing = "\n".join(f"{name}: {reason}" for name, reason in MISSING.items())
    return [*parts, ("not run, because no package provides it", missing)]


_CHOICES = {"sets": REDUNDANCIES, "methods": [*METHODS, JOINTLY, "all"]}
_QUICK = {"sets": ("bluebirds", "snow_wordsim"), "seeds": 3}
EXPERIMENT = Experiment(LIAOptions, _QUICK, _CHOICES, _stages, _tables, _report)

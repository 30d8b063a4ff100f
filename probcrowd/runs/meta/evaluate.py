"""Accuracy of trained networks on target tasks; all methods that are compared adapt to the same tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from probcrowd.figures.base import accuracy_figure, save_figure
from probcrowd.inference.meta.adaptation import Method, predict
from probcrowd.metrics.intervals import interval
from probcrowd.metrics.tensors import accuracy, confusion_error, log_loss
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.network import evaluating
from probcrowd.runs.meta.sources import class_sources, generator_of
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import EpisodeSource, draw_episodes
from probcrowd.storage.files import write_table

SETTING = ["shots", "annotators", "spammers"]
Methods = Mapping[str, tuple[nn.Module, Method]]


def target_scores(settings: MetaTraining, source: EpisodeSource, methods: Methods) -> pd.DataFrame:
    """Score methods on target tasks, one row per method and task.

    Columns are accuracy and log loss of the queries, and the error of the confusion matrices.
    Tasks are drawn from `settings.seed` alone, so all methods, and all runs of one seed, get the same tasks;
    `task` numbers them.
    """
    rows = []
    target = settings.target
    for shots, annotators, (share, mixture) in product(
        target.shots, target.annotators, zip(target.spammers, target.mixtures, strict=True)
    ):
        generator = generator_of(settings, f"target/{shots}/{annotators}/{share}", 0, source.items.device)
        episodes = draw_episodes(source, settings.shape(shots, annotators), mixture, target.tasks, generator)
        for name, (network, method) in methods.items():
            with evaluating(network):
                log_probabilities, parameters = predict(network, source, episodes, method)
            scores = {
                "accuracy": accuracy(log_probabilities, episodes.query_truth),
                "log_loss": log_loss(log_probabilities, episodes.query_truth),
                "confusion_error": confusion_error(parameters.confusion, episodes.confusion),
            }
            columns = {column: values.mean(1).cpu().numpy() for column, values in scores.items()}
            setting = {"method": name, "shots": shots, "annotators": annotators, "spammers": share}
            rows.append(pd.DataFrame({**setting, "task": range(target.tasks), **columns}))
    return pd.concat(rows, ignore_index=True)


def evaluate_run(path: Path, *, encoder: nn.Module | None = None) -> pd.DataFrame:
    """Score a run's method, its network on aggregated labels, and its method without the network.

    Return the table of mean accuracies; write it and the scores into the run's folder `evaluation`. `encoder`
    is needed where the run trained the user's own network.
    """
    run = load_run(path, encoder=encoder)
    aggregated = replace(run.method, inference="map", population=None, gradient="unrolled")
    methods = {
        "as trained": (run.encoder, run.method),
        "majority-vote labels": (run.encoder, replace(aggregated, labels="majority-vote")),
        "dawid-skene labels": (run.encoder, replace(aggregated, labels="dawid-skene")),
        "inputs, no network": (nn.Flatten(), run.method),
    }
    scores = target_scores(run.settings, class_sources(run.settings).target, methods)
    table = summary(scores, ["method", "shots", "annotators"])
    folder = path / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, frame in {"scores": scores, "table": table}.items():
        write_table(folder / f"{name}.csv", frame)
    save_figure(accuracy_figure(table), folder / "accuracy.png")
    return table


def summary(scores: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Return means with half widths of 95 % intervals over tasks, by the columns in `by`."""
    rows = []
    for key, group in scores.groupby(by, sort=False):
        mean = interval(group[value].to_numpy(float))
        rows.append([*(key if isinstance(key, tuple) else (key,)), mean.mean, mean.half_width, mean.count])
    return pd.DataFrame(rows, columns=pd.Index([*by, value, "half_width", "tasks"]))


def paired_difference(scores: pd.DataFrame, first: str, second: str, value: str = "accuracy") -> pd.Series:
    """Return the mean paired difference first - second with the half width of its 95 % interval over tasks.

    If the scores come from several splits, that is from networks trained on different classes, `ahead` counts
    the splits with a positive mean difference: tasks of one split share their networks, so the interval does
    not cover other splits.
    """
    keys = [column for column in scores.columns if column in ("split", *SETTING, "task")]
    wide = scores.pivot(index=keys, columns="method", values=value)
    differences = pd.Series(wide[first] - wide[second])
    mean = interval(differences.to_numpy(float))
    row = pd.Series(
        {"difference": mean.mean, "half_width": mean.half_width, "tasks": str(mean.count)}, dtype=object
    )
    if "split" in keys:
        means = np.asarray(differences.groupby(level="split").mean())
        row["ahead"] = f"{int((means > 0).sum())} of {len(means)} splits"
    return row


def grid(table: pd.DataFrame) -> str:
    """Format a summary as text: a row per method, a column per (shots, annotators), and their mean."""
    means = table.pivot(index="method", columns=["shots", "annotators"], values="accuracy")
    widths = table.pivot(index="method", columns=["shots", "annotators"], values="half_width")
    text = means.map("{:.3f}".format) + widths.map(" ±{:.3f}".format)
    text.columns = [f"{shots}x{annotators}" for shots, annotators in text.columns]
    text["mean"] = means.mean(axis=1).map("{:.3f}".format)
    return text.loc[table["method"].unique()].rename_axis("shots x annotators").to_string()

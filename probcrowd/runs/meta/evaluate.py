"""How well a trained network adapts to target tasks: the same tasks for every method that is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor, nn

from probcrowd.figures.base import accuracy_figure, save_figure
from probcrowd.inference.meta.adaptation import Method, predict
from probcrowd.metrics.intervals import interval
from probcrowd.metrics.tensors import accuracy, confusion_error, log_loss
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.train import class_sources, evaluating, generator_of
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import EpisodeSource, draw_episodes
from probcrowd.storage.files import write_table

SETTING = ["shots", "annotators", "spammers"]


def target_scores(
    settings: MetaTraining, source: EpisodeSource, methods: Mapping[str, tuple[nn.Module, Method]]
) -> pd.DataFrame:
    """One row per method and target task: accuracy and log loss over its queries, error of its confusion matrices.

    Tasks are drawn from `settings.seed` alone, so methods, and runs of one seed, meet the same tasks; `task` numbers them.
    """
    rows = []
    target = settings.target
    for shots, annotators, (share, mixture) in product(
        target.shots, target.annotators, zip(target.spammers, target.mixtures, strict=True)
    ):
        generator = generator_of(settings, f"target/{shots}/{annotators}/{share}", 0, source.items.device)
        episodes = draw_episodes(source, settings.shape(shots, annotators), mixture, target.tasks, generator)
        for name, (encoder, method) in methods.items():
            with evaluating(encoder):
                log_probabilities, parameters = predict(encoder, source, episodes, method)
            scores: dict[str, Tensor] = {
                "accuracy": accuracy(log_probabilities, episodes.query_truth).mean(1),
                "log_loss": log_loss(log_probabilities, episodes.query_truth).mean(1),
                "confusion_error": confusion_error(parameters.confusion, episodes.confusion).mean(1),
            }
            columns = {column: values.cpu().numpy() for column, values in scores.items()}
            setting = {"method": name, "shots": shots, "annotators": annotators, "spammers": share}
            rows.append(pd.DataFrame({**setting, "task": range(target.tasks), **columns}))
    return pd.concat(rows, ignore_index=True)


def evaluate_run(path: Path, *, encoder: nn.Module | None = None) -> pd.DataFrame:
    """The table of a run's own method, of its network with labels aggregated first, and of its method on the inputs without a network.

    It is written to the folder `evaluation` in the run. `encoder` is needed where the run trained a network of the user's own.
    """
    run = load_run(path, encoder=encoder)
    if run.settings.adaptation.learner != "prototypes":
        raise ValueError("this run trained MAML: compare it by `probcrowd reproduce meta-learning`")
    own = run.settings.adaptation.method.learned(run.encoder)
    methods = {"as trained": own} | {
        f"{labels} labels": replace(own, labels=labels) for labels in ("majority-vote", "dawid-skene")
    }
    source = class_sources(run.settings).target
    pairs: dict[str, tuple[nn.Module, Method]] = {
        name: (run.encoder, method) for name, method in methods.items()
    }
    scores = target_scores(run.settings, source, {**pairs, "inputs, no network": (nn.Flatten(), own)})
    table = summary(scores, ["method", "shots", "annotators"])
    folder = path / "evaluation"
    folder.mkdir(exist_ok=True)
    for name, frame in {"scores": scores, "table": table}.items():
        write_table(folder / f"{name}.csv", frame)
    save_figure(accuracy_figure(table), folder / "accuracy.png")
    return table


def summary(scores: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Mean and half width of its 95 % interval over tasks, for each combination of the columns in `by`."""
    rows = []
    for key, group in scores.groupby(by, sort=False):
        found = interval(group[value].to_numpy(float))
        rows.append([*(key if isinstance(key, tuple) else (key,)), found.mean, found.half_width, found.count])
    return pd.DataFrame(rows, columns=pd.Index([*by, value, "half_width", "tasks"]))


def paired_difference(scores: pd.DataFrame, first: str, second: str, value: str = "accuracy") -> pd.Series:
    """Mean difference first - second over the tasks that both met, with the half width of its 95 % interval over tasks.

    Where the scores come from several splits, that is from networks trained on different classes, `ahead` counts those with a positive
    mean difference: tasks of one split share their networks, so the interval says nothing of other splits.
    """
    keys = [column for column in scores.columns if column in ("split", *SETTING, "task")]
    wide = scores.pivot(index=keys, columns="method", values=value)
    differences = pd.Series(wide[first] - wide[second])
    found = interval(differences.to_numpy(float))
    row = pd.Series(
        {"difference": found.mean, "half_width": found.half_width, "tasks": str(found.count)}, dtype=object
    )
    if "split" in keys:
        means = np.asarray(differences.groupby(level="split").mean())
        row["ahead"] = f"{int((means > 0).sum())} of {len(means)} splits"
    return row


def grid(table: pd.DataFrame) -> str:
    """The table as text: a row per method, a column per (shots, annotators), and the mean over all of them."""
    means = table.pivot(index="method", columns=["shots", "annotators"], values="accuracy")
    widths = table.pivot(index="method", columns=["shots", "annotators"], values="half_width")
    text = means.map("{:.3f}".format) + widths.map(" ±{:.3f}".format)
    text.columns = [f"{shots}x{annotators}" for shots, annotators in text.columns]
    order = table["method"].unique()
    return (
        text.assign(mean=means.mean(axis=1).map("{:.3f}".format))
        .loc[order]
        .rename_axis("shots x annotators")
        .to_string()
    )

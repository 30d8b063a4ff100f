"""How well a trained network adapts to target tasks: the same tasks for every method that is compared."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from probcrowd.episodes import EpisodeShape, EpisodeSource, draw_episodes
from probcrowd.inference.meta import Method, predict
from probcrowd.metrics import accuracy, confusion_error, interval, log_loss
from probcrowd.runs.configuration import MetaTraining
from probcrowd.runs.meta_train import evaluating, generator_of

SETTING = ["shots", "annotators", "spammers"]


def target_scores(settings: MetaTraining, source: EpisodeSource, methods: Mapping[str, tuple[nn.Module, Method]]) -> pd.DataFrame:
    """One row per method and target task: accuracy and log loss over its queries, error of its confusion matrices.

    Tasks are drawn from `settings.seed` alone, so methods, and runs of one seed, meet the same tasks; `task` numbers them.
    """
    rows = []
    target = settings.target
    for shots, annotators, (share, mixture) in product(target.shots, target.annotators, zip(target.spammers, target.mixtures, strict=True)):
        shape = EpisodeShape(settings.episode.ways, shots, settings.episode.queries, annotators, settings.annotators.observed)
        generator = generator_of(settings, f"target/{shots}/{annotators}/{share}", 0, source.items.device)
        episodes = draw_episodes(source, shape, mixture, target.tasks, generator)
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


def summary(scores: pd.DataFrame, by: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Mean and half width of its 95 % interval over tasks, for each combination of the columns in `by`."""
    rows = []
    for key, group in scores.groupby(by, sort=False):
        found = interval(torch.from_numpy(group[value].to_numpy(dtype=float, copy=True)))
        rows.append([*(key if isinstance(key, tuple) else (key,)), found.mean, found.half_width, found.count])
    return pd.DataFrame(rows, columns=pd.Index([*by, value, "half_width", "tasks"]))


def paired_difference(scores: pd.DataFrame, first: str, second: str, value: str = "accuracy") -> pd.Series:
    """Mean difference first - second over the tasks that both met, with the half width of its 95 % interval."""
    keys = [column for column in scores.columns if column in ("split", *SETTING, "task")]
    wide = scores.pivot(index=keys, columns="method", values=value)
    found = interval(torch.from_numpy((wide[first] - wide[second]).to_numpy(dtype=float, copy=True)))
    return pd.Series({"difference": found.mean, "half_width": found.half_width, "tasks": found.count})

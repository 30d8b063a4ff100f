"""Are representations that were meta-learned through EM better where several annotators label little? The paper's comparison, with the controls that it lacks.

Each split of the classes trains every network once (`runs.meta_networks`) and has every method (`runs.meta_methods`) answer the same target tasks
(`runs.meta_targets`). What a method leaves open, such as the number of its steps, validation tasks choose, for each number of shots and of
annotators; the paper gives every baseline its best result on the target tasks instead.

split-N/networks/NAME   one training: a run as `probcrowd meta-train` makes it
split-N/cells/*.csv     every number: one row per network, one per method and target task
table.csv, tests.csv, networks.csv, published.csv, spammers.png, annotators.png    see `runs.meta_tables`

Nothing that exists is made again. Splits share nothing, so a cluster makes one per job, and a last call without `only` gathers them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probcrowd.compute.threads import one_thread
from probcrowd.experiments.grid import Whole, read_cells, run_whole_cells
from probcrowd.experiments.meta.labelme import LABELME
from probcrowd.experiments.meta.methods import METHODS, Answer, Answers, context
from probcrowd.experiments.meta.networks import network_settings
from probcrowd.experiments.meta.tables import write_tables
from probcrowd.experiments.meta.targets import KINDS, Target, targets
from probcrowd.metrics.scores import scores as calibration
from probcrowd.metrics.tensors import accuracy, confusion_error, log_loss
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.sources import class_sources, generator_of
from probcrowd.runs.meta.train import meta_train
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_episodes
from probcrowd.storage.folder import RunFolder


def reproduce_meta(
    settings: MetaTraining,
    *,
    splits: int = 5,
    only: int | None = None,
    methods: Sequence[str] = (),
    kinds: Sequence[str] = (),
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """The table of results of all splits that are there, after making those asked for.

    Args:
        settings: of the paper's method; `out` is the folder of all splits, `seed` of the first one. only: this split alone. methods, kinds: none: all.

    Raises:
        ValueError: unknown names, no such data, or a folder that holds results of other settings.
    """
    known = (LABELME,) if settings.data == LABELME else KINDS
    for given, names in ((methods, tuple(METHODS)), (kinds, known)):
        if wrong := [name for name in given if name not in names]:
            raise ValueError(f"unknown: {', '.join(wrong)}; choose from {', '.join(names)}")
    if only is not None and not 0 <= only < splits:
        raise ValueError(f"only = {only}: splits are numbered from 0 to {splits - 1}")
    of_other_ways = (
        {name for name, entry in METHODS.items() if entry.network == "maml"}
        if settings.data == LABELME
        else set()
    )
    if wrong := sorted(of_other_ways & set(methods)):
        raise ValueError(
            f"{', '.join(wrong)}: MAML's last layer has as many classes as meta-training, LabelMe has eight: leave it out"
        )
    chosen, asked = (
        tuple(methods or (name for name in METHODS if name not in of_other_ways)),
        tuple(kinds or known),
    )
    for number in range(splits) if only is None else (only,):
        split = settings.model_copy(
            update={"seed": settings.seed + number, "out": settings.out / f"split-{number}"}
        )
        needed = dict.fromkeys(network for name in chosen if (network := METHODS[name].network))
        trainings: dict[str, Whole] = {f"network.{name}": partial(_trained, split, name) for name in needed}
        run_whole_cells(split.out, split, trainings, jobs=jobs, progress=progress)
        drawn = [kind for kind in asked if next(targets(split, kind), None)]
        cells: dict[str, Whole] = {
            _cell(name, kind): partial(_scored, split, name, kind) for kind in drawn for name in chosen
        }
        run_whole_cells(split.out, split, cells, jobs=jobs, progress=progress)
    return collect(settings.out, splits)


def collect(out: Path, splits: int) -> pd.DataFrame:
    """The tables and figures of what the folder holds, written into it; the table of results comes back."""
    found, trained = [], []
    for number in range(splits):
        folder = out / f"split-{number}"
        names = sorted(path.stem for path in (folder / "cells").glob("*.csv"))
        networks = [name for name in names if name.startswith("network.")]
        for part, kept in ((trained, networks), (found, [name for name in names if name not in networks])):
            if kept:
                part.append(read_cells(folder, kept).assign(split=number))
    if not found:
        raise ValueError(f"{out} holds no results of the first {splits} splits")
    return write_tables(
        out, pd.concat(found, ignore_index=True), pd.concat(trained, ignore_index=True) if trained else None
    )


def _cell(name: str, kind: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9+]+', '_', name)}.{kind}"


@one_thread()
def _trained(settings: MetaTraining, name: str) -> list[dict[str, Any]]:
    """Trains a network where it is not trained yet."""
    training, begun = network_settings(settings, name), time.perf_counter()
    fresh = not training.out.exists()
    meta_train(training, resume=True, progress=False)
    seconds = time.perf_counter() - begun if fresh else float("nan")
    run = load_run(training.out)
    metrics = pd.DataFrame(RunFolder(training.out).read_metrics()).dropna(subset="validation_accuracy")
    best = metrics.loc[metrics["validation_accuracy"].idxmax()]
    row = {
        "network": name,
        "seconds": seconds,
        "step": int(best["step"]),
        "validation_accuracy": best["validation_accuracy"],
    }
    row["parameters"] = sum(parameter.numel() for parameter in run.encoder.parameters())
    return [row]


@one_thread()
def _scored(settings: MetaTraining, name: str, kind: str) -> list[dict[str, Any]]:
    """One row per target task of this kind: scores of the setting that is best on validation tasks of the same size."""
    device = torch.device(settings.device)
    sources = class_sources(settings, device)
    entry = METHODS[name]
    answer = entry.answer(context(settings, entry, sources.input_shape, device))
    rows: list[dict[str, Any]] = []
    chosen: dict[tuple[int, int], str | None] = {}
    for target in targets(settings, kind):
        size = target.shots, target.annotators
        if size not in chosen:
            chosen[size] = _chosen(settings, sources.validation, answer, target)
        source, episodes = target.draw(settings, sources.target)
        begun = time.perf_counter()
        found = _answers(settings, answer, source, episodes, target)
        seconds = (time.perf_counter() - begun) / len(episodes.query)
        setting = chosen[size] or next(iter(found))
        log_probabilities, parameters = found[setting]
        for number, scores in enumerate(
            _scores(log_probabilities, episodes, None if parameters is None else parameters.confusion)
        ):
            where = {
                "method": name,
                "kind": kind,
                "shots": target.shots,
                "annotators": target.annotators,
                "share": target.share,
            }
            rows.append({**where, "task": number, **scores, "setting": setting, "seconds": seconds})
    return rows


def _chosen(settings: MetaTraining, source: EpisodeSource, answer: Answer, target: Target) -> str | None:
    """The setting with the highest mean accuracy over validation tasks, which are those of meta-training, and of several the one with the lowest log
    loss; None where there is one alone."""
    generator = generator_of(
        settings, f"validation/{target.shots}/{target.annotators}", 0, source.items.device
    )
    one = draw_episodes(source, target.usual(settings), settings.annotators.mixture, 1, generator)
    if len(_answers(settings, answer, source, one, target)) == 1:
        return None
    episodes = draw_episodes(
        source,
        target.usual(settings),
        settings.annotators.mixture,
        settings.training.validation_tasks,
        generator,
    )
    found = _answers(settings, answer, source, episodes, target)

    def worth(setting: str) -> tuple[float, float]:
        scores, truth = found[setting][0], episodes.query_truth
        return round(float(accuracy(scores, truth).mean()), 6), -float(log_loss(scores, truth).mean())

    return max(found, key=worth)


def _answers(
    settings: MetaTraining, answer: Answer, source: EpisodeSource, episodes: Episodes, target: Target
) -> Answers:
    purpose = f"answer/{target.kind}/{target.shots}/{target.annotators}/{target.share}"
    return answer(source, episodes, generator_of(settings, purpose))


def _scores(
    log_probabilities: Tensor, episodes: Episodes, confusion: Tensor | None
) -> list[dict[str, float]]:
    """Scores of each task; the calibration error is that of all queries of these tasks."""
    truth = episodes.query_truth
    probabilities = log_probabilities.exp().flatten(0, 1).double().cpu().numpy()
    error = calibration(probabilities, truth.flatten().cpu().numpy())["calibration_error"]
    right, lost = accuracy(log_probabilities, truth).mean(1), log_loss(log_probabilities, truth).mean(1)
    off = (
        confusion_error(confusion, episodes.confusion).mean(1)
        if confusion is not None
        else torch.full_like(right, np.nan)
    )
    columns = {"accuracy": right, "log_loss": lost, "confusion_error": off}
    table = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()}).assign(
        calibration_error=error
    )
    return table.to_dict("records")

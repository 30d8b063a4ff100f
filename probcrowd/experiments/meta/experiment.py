"""Does meta-learning through EM give better representations where several annotators label little?

The paper's comparison (Kumagai et al. 2025), with controls that it lacks.

For each split of the classes every network (`networks`) is trained once, and every method (`methods`)
predicts the same target tasks (`targets`). Hyperparameters, such as the number of steps, are chosen on
validation tasks, for each number of shots and of annotators; the paper gives every baseline its best result
on the target tasks instead.

split-N/networks/NAME   one training: a run as `probcrowd meta-train` writes it
split-N/cells/*.csv     every number: one row per network, one per method and target task
table.csv, tests.csv, networks.csv, published.csv, spammers.png, annotators.png    see `tables`

Splits share nothing, so a cluster computes one per job, and a last call without `only` gathers them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from probcrowd.experiments.grid import Rows, Stage, cell_names, read_cells
from probcrowd.experiments.harness import Experiment, Tables, choose_names
from probcrowd.experiments.meta import tables
from probcrowd.experiments.meta.labelme import LABELME
from probcrowd.experiments.meta.methods import METHODS, OURS, Answers, Context, network_and_method
from probcrowd.experiments.meta.networks import network_settings
from probcrowd.experiments.meta.settings import MetaOptions
from probcrowd.experiments.meta.targets import KINDS, Target, targets
from probcrowd.experiments.tables import read_published
from probcrowd.metrics.scores import scores
from probcrowd.metrics.tensors import accuracy, confusion_error, log_loss
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.sources import class_sources, generator_of
from probcrowd.runs.meta.train import meta_train
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_episodes
from probcrowd.storage.folder import RunFolder


def _stages(options: MetaOptions) -> Iterator[Stage]:
    training, splits = options.training, options.splits
    if options.only is not None and not 0 <= options.only < splits:
        raise ValueError(f"only = {options.only}: splits are numbered from 0 to {splits - 1}")
    known = (LABELME,) if training.data == LABELME else KINDS
    kinds = choose_names("kind", options.kinds, known) or (known[:1] if options.quick else known)
    methods = options.methods or tuple(METHODS)
    if training.data == LABELME:
        maml = [name for name, entry in METHODS.items() if entry.network == "maml"]
        if wrong := sorted(set(maml) & set(options.methods)):
            raise ValueError(
                f"{', '.join(wrong)}: MAML's last layer has as many classes as meta-training, LabelMe has "
                "eight: leave it out"
            )
        methods = [name for name in methods if name not in maml]
    for number in range(splits) if options.only is None else (options.only,):
        split = training.model_copy(
            update={"seed": training.seed + number, "out": training.out / f"split-{number}"}
        )
        networks = dict.fromkeys(network for name in methods if (network := METHODS[name].network))
        yield Stage(split.out, split, {f"network.{name}": partial(_train, split, name) for name in networks})
        drawn = [kind for kind in kinds if next(targets(split, kind), None)]
        cells = {
            _cell_name(name, kind): partial(_predict, split, name, kind) for kind in drawn for name in methods
        }
        yield Stage(split.out, split, cells)


def _cell_name(method: str, kind: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9+]+', '_', method)}.{kind}"


def _train(settings: MetaTraining, name: str) -> Rows:
    """Train a network, or finish its training."""
    training, start = network_settings(settings, name), time.perf_counter()
    fresh = not training.out.exists()
    meta_train(training, resume=True, progress=False)
    seconds = time.perf_counter() - start if fresh else float("nan")
    metrics = pd.DataFrame(RunFolder(training.out).read_metrics()).dropna(subset="validation_accuracy")
    best = metrics.loc[metrics["validation_accuracy"].idxmax()]
    row = {"network": name, "seconds": seconds, "step": int(best["step"])}
    row["validation_accuracy"] = best["validation_accuracy"]
    row["parameters"] = sum(weights.numel() for weights in load_run(training.out).encoder.parameters())
    return [row]


def _predict(settings: MetaTraining, name: str, kind: str) -> Rows:
    """Score one method on target tasks of one kind, a row per task; settings by validation tasks."""
    device = torch.device(settings.device)
    sources = class_sources(settings, device)
    entry = METHODS[name]
    model = network_and_method(settings, entry, sources.input_shape, device)

    def answer(source: EpisodeSource, episodes: Episodes, target: Target) -> Answers:
        purpose = f"answer/{target.kind}/{target.shots}/{target.annotators}/{target.share}"
        return entry.predict(Context(settings, *model, source, episodes, generator_of(settings, purpose)))

    parts = []
    selected: dict[tuple[int, int], str | None] = {}
    for target in targets(settings, kind):
        size = target.shots, target.annotators
        if size not in selected:
            selected[size] = _select(settings, sources.validation, answer, target)
        source, episodes = target.draw(settings, sources.target)
        start = time.perf_counter()
        answers = answer(source, episodes, target)
        seconds = (time.perf_counter() - start) / len(episodes.query)
        setting = selected[size] or next(iter(answers))
        log_probabilities, parameters = answers[setting]
        truth = episodes.query_truth
        right = accuracy(log_probabilities, truth).mean(1)
        probabilities = log_probabilities.exp().flatten(0, 1).double().cpu().numpy()
        error = torch.full_like(right, np.nan)
        if parameters is not None:
            error = confusion_error(parameters.confusion, episodes.confusion).mean(1)
        columns = {
            "method": name,
            "kind": kind,
            "shots": target.shots,
            "annotators": target.annotators,
            "share": target.share,
            "task": range(len(truth)),
            "accuracy": right.cpu().numpy(),
            "log_loss": log_loss(log_probabilities, truth).mean(1).cpu().numpy(),
            "confusion_error": error.cpu().numpy(),
            "calibration_error": scores(probabilities, truth.flatten().cpu().numpy())["calibration_error"],
            "setting": setting,
            "seconds": seconds,
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts).to_dict("records")


def _select(
    settings: MetaTraining,
    source: EpisodeSource,
    answer: Callable[[EpisodeSource, Episodes, Target], Answers],
    target: Target,
) -> str | None:
    """The setting with the highest mean accuracy on validation tasks; None if there is only one.

    Ties go to the lowest log loss.
    """
    purpose = f"validation/{target.shots}/{target.annotators}"
    generator = generator_of(settings, purpose, 0, source.items.device)
    shape, mixture = target.usual(settings), settings.annotators.mixture
    single = draw_episodes(source, shape, mixture, 1, generator)
    if len(answer(source, single, target)) == 1:
        return None
    episodes = draw_episodes(source, shape, mixture, settings.training.validation_tasks, generator)
    answers = answer(source, episodes, target)

    def quality(setting: str) -> tuple[float, float]:
        log_probabilities, truth = answers[setting][0], episodes.query_truth
        return (
            round(float(accuracy(log_probabilities, truth).mean()), 6),
            -float(log_loss(log_probabilities, truth).mean()),
        )

    return max(answers, key=quality)


def _read(options: MetaOptions, *, networks: bool) -> pd.DataFrame:
    """Rows of all splits, of networks or of methods."""
    parts = []
    for number in range(options.splits):
        folder = options.out / f"split-{number}"
        names = [name for name in cell_names(folder) if name.startswith("network.") == networks]
        parts.append(read_cells(folder, names).assign(split=number))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _tables(options: MetaOptions) -> Tables:
    results, networks = _read(options, networks=False), _read(options, networks=True)
    if results.empty:
        raise ValueError(f"{options.out} holds no results of the first {options.splits} splits")
    results = tables.in_order(results)
    written = {"table": tables.summarize(results), "tests": tables.compare(results)}
    written["published"] = read_published("meta")
    return written | ({"networks": tables.summarize_networks(networks)} if len(networks) else {})


def _report(written: Tables) -> list[tuple[str, str]]:
    table, parts = written["table"], []
    for kind in table["kind"].unique():
        text = tables.format_accuracy(table, kind)
        parts.append((f"{kind}: accuracy in per cent by shots x annotators", text))
        for method in (OURS, tables.BEST):
            heading = f"{kind}: differences on the same tasks in per cent, 95 % intervals over tasks"
            parts.append((heading, tables.format_tests(written["tests"], kind, method)))
    published = written["published"].to_string(index=False)
    return [*parts, ("reported of the paper, on other splits and networks", published)]


def _figures(options: MetaOptions) -> dict[str, Figure]:
    return tables.draw_figures(tables.in_order(_read(options, networks=False)))


_QUICK = {"quick": True, "splits": 2}
EXPERIMENT = Experiment(MetaOptions, _QUICK, {"methods": METHODS}, _stages, _tables, _report, _figures)

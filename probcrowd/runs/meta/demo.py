"""The demonstration: meta-train on some digits, adapt to others labelled by noisy annotators, compare.

For each of several splits of the digits into training, validation and target classes, the method is trained
with J = 1, 2, 3 EM steps and without pseudo-annotators, beside a prototypical network; all adapt to the same
target tasks. Two controls separate the causes: training with pseudo-annotators but through Dawid-Skene
labels, which ignore the embeddings, and EM on the pixels without a network, which wins where the source
classes are too few to learn a better space.

Nothing is chosen on target tasks: networks are the best on validation tasks, and so are the number of
Dawid-Skene steps and the scale of the pixels. Finished trainings are reused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from probcrowd.compute.threads import one_thread
from probcrowd.figures.base import accuracy_figure, confusion_figure, save_figure
from probcrowd.inference.meta.adaptation import FLAT_COUNT, FLAT_PRECISION, predict
from probcrowd.runs.meta.configuration import Adaptation, MetaTraining
from probcrowd.runs.meta.evaluate import paired_difference, summary, target_scores
from probcrowd.runs.meta.sources import class_sources, generator_of
from probcrowd.runs.meta.train import meta_train, validate
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.episodes import draw_episodes
from probcrowd.storage.files import write_table
from probcrowd.storage.settings import read_settings

OURS = "EM, J = {}"
PIXEL_SCALES = (0.5, 1.0, 2.0, 4.0)
DAWID_SKENE_STEPS = (1, 2, 3, 10)
DEMO_SETTINGS = Path(__file__).with_name("demo.toml")
# Changes to the settings' adaptation, by the name of the training
VARIANTS = {
    **{f"em-{steps}": {"steps": steps} for steps in (1, 2, 3)},
    "em-clean": {"steps": 2, "pseudo_annotators": False},
    "labels": {"steps": 2, "labels": "dawid-skene"},
}


@dataclass(frozen=True)
class Demonstration:
    """Scores of every task, their summary, differences from J = 2, and the two figures."""

    scores: pd.DataFrame
    table: pd.DataFrame
    differences: pd.DataFrame
    accuracy: Figure
    confusion: Figure


class Pixels(nn.Module):
    """The inputs as embeddings, times a scale that weighs them against annotations."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs.flatten(1)


def trainings(settings: MetaTraining) -> dict[str, MetaTraining]:
    """Return the trainings of one split by name, each with a folder of its own."""
    adaptations = {name: settings.adaptation.model_copy(update=change) for name, change in VARIANTS.items()}
    adaptations["prototypes"] = Adaptation(
        labels="dawid-skene",
        pseudo_annotators=False,
        precision=FLAT_PRECISION,
        class_count=FLAT_COUNT,
        label_count=settings.adaptation.label_count,
    )
    return {
        name: settings.model_copy(update={"adaptation": adaptation, "out": settings.out / name})
        for name, adaptation in adaptations.items()
    }


def demonstrate(
    settings: MetaTraining,
    *,
    splits: int = 5,
    jobs: int | None = None,
    report: Callable[[str], None] = print,
) -> Demonstration:
    """Train, evaluate, and write scores.csv, table.csv, differences.csv and two figures into `settings.out`.

    jobs: processes at a time, each with one thread; default: one per core. report: receives messages about
    the progress.
    """
    each = [
        settings.model_copy(update={"seed": seed, "out": settings.out / f"split-{seed}"})
        for seed in range(settings.seed, settings.seed + splits)
    ]
    every = [training for split in each for training in trainings(split).values()]
    report(f"training {len(every)} networks: {splits} splits of the classes, {len(every) // splits} methods")
    workers = Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator_unordered")
    for _ in tqdm(workers(delayed(_train)(training) for training in every), total=len(every), unit="network"):
        pass
    report("adapting to the target tasks")
    scores = pd.concat([_scores(split).assign(split=split.seed) for split in each], ignore_index=True)
    table = summary(scores, ["method", "shots", "annotators"])
    ours = OURS.format(2)
    others = [name for name in scores["method"].unique() if name != ours]
    rows = {f"J = 2 minus {name}": paired_difference(scores, ours, name) for name in others}
    differences = pd.DataFrame(rows).T.rename_axis("comparison")
    result = Demonstration(scores, table, differences, accuracy_figure(table), _confusion(each[0]))
    for name in ("scores", "table", "differences"):
        write_table(settings.out / f"{name}.csv", getattr(result, name))
    save_figure(result.accuracy, settings.out / "accuracy.png")
    save_figure(result.confusion, settings.out / "confusion.png")
    return result


def demo_settings(out: Path, config: Path | None = None) -> MetaTraining:
    """Read the settings of the demonstration, from a file or from the one beside this module."""
    return read_settings(MetaTraining, config or DEMO_SETTINGS, [f'out="{out.as_posix()}"'])


@one_thread()
def _train(settings: MetaTraining) -> None:
    meta_train(settings, resume=True, progress=False)


@one_thread()
def _scores(settings: MetaTraining) -> pd.DataFrame:
    """Score all methods of one split on its target tasks."""
    runs = {name: load_run(training.out) for name, training in trainings(settings).items()}
    trained = {name: (run.encoder, run.settings.adaptation.method) for name, run in runs.items()}
    sources = class_sources(settings)
    network, method = trained["prototypes"]
    dawid_skene = max(
        (replace(method, steps=steps) for steps in DAWID_SKENE_STEPS),
        key=lambda candidate: validate(settings, sources.validation, network, candidate),
    )
    ours = trained["em-2"][1]
    pixels = max(
        map(Pixels, PIXEL_SCALES),
        key=lambda candidate: validate(settings, sources.validation, candidate, ours),
    )
    methods = {
        **{OURS.format(steps): trained[f"em-{steps}"] for steps in (1, 2, 3)},
        "EM, no pseudo-annotators": trained["em-clean"],
        "ProtoNet + majority vote": (network, replace(method, labels="majority-vote")),
        "ProtoNet + Dawid-Skene": (network, dawid_skene),
        "Dawid-Skene, pseudo-annotators": trained["labels"],
        "pixels, no network, EM, J = 2": (pixels, ours),
    }
    return target_scores(settings, sources.target, methods)


def _confusion(settings: MetaTraining) -> Figure:
    """Draw estimated against true confusion matrices of the first target task of the largest size."""
    run = load_run(trainings(settings)["em-2"].out)
    target, ways = class_sources(settings).target, settings.episode.ways
    shape = settings.shape(max(settings.target.shots), max(settings.target.annotators))
    episodes = draw_episodes(target, shape, settings.annotators.mixture, 1, generator_of(settings, "figure"))
    _, parameters = predict(run.encoder, target, episodes, run.settings.adaptation.method)
    names = pd.RangeIndex(1, ways + 1)
    index = pd.MultiIndex.from_product([[f"annotator {j + 1}" for j in range(shape.annotators)], names])
    tables = [
        pd.DataFrame(matrix[0].flatten(0, 1).numpy(), index, names)
        for matrix in (parameters.confusion, episodes.confusion)
    ]
    return confusion_figure(*tables)

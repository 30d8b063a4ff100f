r"""Meta-training as a run: a folder with settings, metrics, checkpoints and the trained network.

The state of a run is its step, network and optimizer, because no random state is carried from step to step
(`sources.py`). A run that was killed and resumed therefore ends at the same weights, bit for bit on a CPU.
With several processes (`torchrun --nproc-per-node 2 -m probcrowd meta-train ...`) each computes its share of
every batch of episodes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from probcrowd.inference.meta.adaptation import Method, predict
from probcrowd.inference.meta.maml import GradientSteps, maml_loss, maml_predict
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.metrics.tensors import accuracy
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.network import evaluating, new_network
from probcrowd.runs.meta.processes import Processes, processes
from probcrowd.runs.meta.sources import Sources, class_sources, generator_of, seed_of
from probcrowd.simulate.episodes import Episodes, EpisodeSource, draw_episodes, draw_items
from probcrowd.storage.checkpoint import (
    load_latest,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    save_checkpoint,
    save_latest,
)
from probcrowd.storage.folder import RunFolder

LOG_EVERY = 10


@dataclass(frozen=True)
class Progress:
    """How far a run is. `since_best` counts validations since the best one."""

    step: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0
    since_best: int = 0
    stopped: bool = False

    def validated(self, score: float, patience: int) -> Progress:
        """Return the progress after a validation; stop after `patience` ones without an improvement."""
        if score > self.best_accuracy:
            return replace(self, best_accuracy=score, best_step=self.step, since_best=0)
        waited = self.since_best + 1
        return replace(self, since_best=waited, stopped=waited >= patience)


@dataclass(frozen=True)
class Run:
    """The parts of a run; `folder` is None in processes that do not write."""

    settings: MetaTraining
    sources: Sources
    network: nn.Module
    optimizer: torch.optim.Optimizer
    group: Processes
    folder: RunFolder | None


def meta_train(
    settings: MetaTraining, *, resume: bool = False, encoder: nn.Module | None = None, progress: bool = True
) -> None:
    """Train the network of `settings`, or `encoder` where they say "own", into the folder `settings.out`.

    Raises:
        ValueError: the folder holds a run and `resume` is false, or a run with other settings, or other
            files; unusable settings.
        FloatingPointError: the loss is not a number.
    """
    with processes(settings.device) as group, ExitStack() as stack:
        if settings.episode.tasks % group.size:
            raise ValueError(
                f"episode.tasks = {settings.episode.tasks} cannot be shared evenly by {group.size} processes"
            )
        sources = class_sources(settings, group.device)
        network = new_network(settings, sources.input_shape, encoder).to(group.device)
        _check_sizes(settings, sources, network)
        optimizer = torch.optim.Adam(network.parameters(), settings.training.learning_rate)
        folder = stack.enter_context(RunFolder(settings.out)) if group.leads else None
        run = Run(settings, sources, network, optimizer, group, folder)
        resumed = group.agree(folder is not None and folder.start(settings, resume))
        start, best = _restore(run) if resumed else (Progress(), module_tensors(network, "best"))
        if folder is not None:
            folder.truncate_metrics(start.step)
        bar = tqdm(
            total=settings.training.steps,
            initial=start.step,
            desc=settings.out.name,
            disable=not (progress and group.leads),
            unit="step",
        )
        with bar, deterministic():
            end, best = _train(run, start, best, bar)
        if folder is not None and (end.step > start.step or not folder.model.exists()):
            state = {
                "step": end.best_step,
                "validation_accuracy": end.best_accuracy,
                "input_shape": list(sources.input_shape),
                "scale": sources.training.scale,
                "classes": dict(
                    zip(("train", "validation", "target"), map(list, sources.names), strict=True)
                ),
            }
            save_checkpoint(folder.model, best, state)
        group.agree(True)


def validate(
    settings: MetaTraining, source: EpisodeSource, network: nn.Module, method: Method | GradientSteps
) -> float:
    """Return the mean query accuracy over the validation tasks, the same ones on every call.

    Every episode size counts equally.
    """
    scores = []
    for shots, annotators in product(settings.episode.shots, settings.episode.annotators):
        generator = generator_of(settings, f"validation/{shots}/{annotators}", 0, source.items.device)
        shape, tasks = settings.shape(shots, annotators), settings.training.validation_tasks
        episodes = draw_episodes(source, shape, settings.annotators.mixture, tasks, generator)
        with evaluating(network):
            if isinstance(method, GradientSteps):
                log_probabilities = maml_predict(network, source, episodes, method)
            else:
                log_probabilities, _ = predict(network, source, episodes, method)
        scores.append(accuracy(log_probabilities, episodes.query_truth).mean())
    return float(torch.stack(scores).mean())


def training_episodes(settings: MetaTraining, source: EpisodeSource, step: int) -> Episodes:
    """Draw all episodes of one step; every process draws the same ones and computes its part."""
    choice = random.Random(seed_of(settings, "sizes", step)).choice
    shape = settings.shape(choice(settings.episode.shots), choice(settings.episode.annotators))
    generator = generator_of(settings, "episodes", step, source.items.device)
    return draw_episodes(
        source, shape, settings.annotators.training_mixture, settings.episode.tasks, generator
    )


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic kernels and a private copy of the global random state inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train(
    run: Run, progress: Progress, best: dict[str, Tensor], bar: Any
) -> tuple[Progress, dict[str, Tensor]]:
    """Train until the last step or early stopping; return the progress and the best weights."""
    training, source, folder = run.settings.training, run.sources.training, run.folder
    method = run.settings.adaptation.training_method
    shared = run.group.share_gradients(run.network)
    run.network.train()
    while progress.step < training.steps and not progress.stopped:
        step = progress.step + 1
        torch.manual_seed(seed_of(run.settings, "network", step))  # for layers that draw, such as dropout
        episodes = training_episodes(run.settings, source, step).part(run.group.rank, run.group.size)
        if isinstance(method, GradientSteps):
            loss = maml_loss(shared, source, episodes, method)
        else:
            loss = meta_loss(shared, source, episodes, method)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}: lower training.learning_rate or check the "
                "inputs; unrolled EM of many steps explodes at ties: take fewer, or gradient = 'one-step'"
            )
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()
        progress = replace(progress, step=step)
        row: dict[str, Any] = {"step": step, "loss": loss.item()}
        validates = step % training.validate_every == 0 or step == training.steps
        if validates and run.group.leads:
            score = row["validation_accuracy"] = validate(
                run.settings, run.sources.validation, run.network, method
            )
            progress = progress.validated(score, training.patience)
            best = module_tensors(run.network, "best") if progress.best_step == step else best
        if validates:
            progress = replace(progress, stopped=run.group.agree(progress.stopped))
        if folder is not None:
            if validates or step % LOG_EVERY == 0:
                folder.append_metrics(row)
            if step % training.checkpoint_every == 0 or step == training.steps or progress.stopped:
                _save(run, folder, progress, best)
        bar.update()
        shown = f"{progress.best_accuracy:.3f}" if progress.best_step else "-"
        bar.set_postfix(loss=f"{row['loss']:.3f}", validation=shown, refresh=False)
    return progress, best


def _check_sizes(settings: MetaTraining, sources: Sources, network: nn.Module) -> None:
    """Draw and embed an episode of the largest size from all sources, before anything is written.

    Raises:
        ValueError: too few classes or items for an episode, or a network whose output is not (n, d).
    """
    for source, sizes in (
        (sources.training, settings.episode.shots),
        (sources.validation, settings.episode.shots),
        (sources.target, settings.target.shots),
    ):
        generator = generator_of(settings, "check", 0, source.items.device)
        index = draw_items(source, settings.shape(max(sizes), 1), 1, generator)
        with torch.no_grad(), evaluating(network):
            output = network(source.inputs(index[0])[0])
        if output.dim() != 2 or len(output) != index.shape[2]:
            raise ValueError(
                f"the network turns {index.shape[2]} items into a tensor of shape {tuple(output.shape)}; "
                "needs (items, dimension)"
            )


def _save(run: Run, folder: RunFolder, progress: Progress, best: dict[str, Tensor]) -> None:
    tensors, outline = optimizer_tensors(run.optimizer, "optimizer")
    save_latest(
        folder.path,
        {**module_tensors(run.network, "network"), **best, **tensors},
        {"progress": vars(progress), "optimizer": outline},
    )


def _restore(run: Run) -> tuple[Progress, dict[str, Tensor]]:
    """Load the latest checkpoint, if any; return the progress and the best weights."""
    checkpoint = load_latest(run.settings.out)
    if checkpoint is None:
        return Progress(), module_tensors(run.network, "best")
    load_module(run.network, checkpoint.tensors, "network")
    load_optimizer(run.optimizer, checkpoint.tensors, checkpoint.state["optimizer"], "optimizer")
    best = {name: value for name, value in checkpoint.tensors.items() if name.startswith("best/")}
    return Progress(**checkpoint.state["progress"]), best

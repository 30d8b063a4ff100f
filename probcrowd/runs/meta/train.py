r"""Meta-training as a run: a folder that holds settings, metrics, checkpoints and the trained network.

Nothing random is carried from step to step: everything that step t draws comes from a generator seeded by (seed, purpose, t), so the
state of a run is its step, network and optimizer, and a run that was killed and resumed ends at the same weights, bit for bit on a CPU.
Several processes (`torchrun --nproc-per-node 2 -m probcrowd meta-train ...`) each take their share of every batch of episodes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from probcrowd.data.images import ClassItems, augmented, load, split
from probcrowd.inference.meta.adaptation import Method, meta_loss, predict
from probcrowd.inference.meta.maml import GradientSteps, maml_loss, maml_predict
from probcrowd.metrics.tensors import accuracy
from probcrowd.runs.meta.configuration import MetaTraining, build_encoder
from probcrowd.runs.meta.processes import Processes, processes
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
    """Where a run stands. `waited` counts validations since the best one."""

    step: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0
    waited: int = 0
    stopped: bool = False


def meta_train(
    settings: MetaTraining, *, resume: bool = False, encoder: nn.Module | None = None, progress: bool = True
) -> None:
    """Train the network of `settings` (or `encoder`, where that says "own") into the folder `settings.out`.

    Raises:
        ValueError: the folder holds a run and `resume` is false, or a run with other settings, or something else; unusable settings.
        FloatingPointError: the loss is not a number any more.
    """
    with processes(settings.device) as crew, ExitStack() as stack:
        if settings.episode.tasks % crew.size:
            raise ValueError(
                f"episode.tasks = {settings.episode.tasks} cannot be shared evenly by {crew.size} processes"
            )
        sources = class_sources(settings, crew.device)
        network = new_encoder(settings, sources.input_shape, encoder).to(crew.device)
        _rehearse(settings, sources, network)
        optimizer = torch.optim.Adam(network.parameters(), settings.training.learning_rate)
        folder = stack.enter_context(RunFolder(settings.out)) if crew.leads else None
        continues = crew.agree(folder is not None and folder.start(settings, resume))
        best = module_tensors(network, "best")
        state, best = _resume(settings, network, optimizer, best) if continues else (Progress(), best)
        begun = state.step
        if folder is not None:
            folder.truncate_metrics(begun)
        bar = stack.enter_context(
            tqdm(
                total=settings.training.steps,
                initial=state.step,
                desc=settings.out.name,
                disable=not (progress and crew.leads),
                unit="step",
            )
        )
        with deterministic():
            state, best = _train(settings, sources, network, optimizer, state, best, folder, crew, bar)
        if folder is not None and (state.step > begun or not folder.model.exists()):
            summary = {"step": state.best_step, "validation_accuracy": state.best_accuracy}
            classes = dict(zip(("train", "validation", "target"), map(list, sources.names), strict=True))
            shape = {
                "input_shape": list(sources.input_shape),
                "scale": sources.training.scale,
                "classes": classes,
            }
            save_checkpoint(folder.model, best, {**summary, **shape})
        crew.agree(True)


@dataclass(frozen=True)
class Sources:
    """Disjoint classes for training, validation and as targets."""

    training: EpisodeSource
    validation: EpisodeSource
    target: EpisodeSource
    input_shape: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]


def class_sources(settings: MetaTraining, device: torch.device | str = "cpu") -> Sources:
    """The classes of a run, split by its seed; training classes with their warps."""
    items = load(settings.data)
    sizes = (settings.classes.train, settings.classes.validation, settings.classes.target)
    parts = split(items, sizes, generator_of(settings, "split"))
    training: ClassItems = parts[0]
    if settings.classes.augment:
        training = augmented(training, settings.classes.augment, generator_of(settings, "augment"))
    made = [EpisodeSource.of(part, device) for part in (training, *parts[1:])]
    return Sources(made[0], made[1], made[2], items.input_shape, tuple(part.names for part in parts))


def new_encoder(settings: MetaTraining, input_shape: tuple[int, ...], encoder: nn.Module | None) -> nn.Module:
    """The network at its start; the global random state stays as it is.

    Raises:
        ValueError: a network is given and the settings do not say so, or the other way round.
    """
    if encoder is not None:
        if settings.encoder.kind != "own":
            raise ValueError(
                f"an encoder was passed, but encoder.kind is {settings.encoder.kind!r}: set it to 'own'"
            )
        return settings.adaptation.network(encoder, input_shape, settings.episode.ways)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(settings, "encoder", 0))
        return settings.adaptation.network(
            build_encoder(settings.encoder, input_shape), input_shape, settings.episode.ways
        )


def generator_of(
    settings: MetaTraining, purpose: str, index: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Fresh randomness for one purpose and one index, the same in every process and after every resume."""
    return torch.Generator(device).manual_seed(_seed(settings, purpose, index))


def validate(
    settings: MetaTraining, source: EpisodeSource, encoder: nn.Module, method: Method | GradientSteps
) -> float:
    """Mean query accuracy over the validation tasks, the same ones each time; every size of episode counts the same."""
    scores = []
    for shots, annotators in product(settings.episode.shots, settings.episode.annotators):
        shape = settings.shape(shots, annotators)
        generator = generator_of(settings, f"validation/{shots}/{annotators}", 0, source.items.device)
        episodes = draw_episodes(
            source, shape, settings.annotators.mixture, settings.training.validation_tasks, generator
        )
        with evaluating(encoder):
            if isinstance(method, GradientSteps):
                log_probabilities = maml_predict(encoder, source, episodes, method)
            else:
                log_probabilities, _ = predict(encoder, source, episodes, method)
        scores.append(accuracy(log_probabilities, episodes.query_truth).mean())
    return float(torch.stack(scores).mean())


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """The network in evaluation mode inside, as it was outside."""
    before = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels, and a private copy of the global random state, inside."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _train(
    settings: MetaTraining,
    sources: Sources,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Progress,
    best: dict[str, Tensor],
    folder: RunFolder | None,
    crew: Processes,
    bar: Any,
) -> tuple[Progress, dict[str, Tensor]]:
    """Steps until the last one or until validation has not improved for long; the final state and the best weights."""
    training, adaptation = settings.training, settings.adaptation
    method = adaptation.method if adaptation.learner == "prototypes" else adaptation.gradient_steps
    shared = crew.share_gradients(network)
    network.train()
    while state.step < training.steps and not state.stopped:
        step = state.step + 1
        torch.manual_seed(_seed(settings, "network", step))  # for layers that draw, such as dropout
        episodes = _training_episodes(settings, sources.training, step).part(crew.rank, crew.size)
        if isinstance(method, GradientSteps):
            loss = maml_loss(shared, sources.training, episodes, method)
        else:
            loss = meta_loss(shared, sources.training, episodes, method)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {step}: lower training.learning_rate or check the inputs; unrolled EM of many steps explodes at ties: take fewer, or gradient = 'one-step'"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = replace(state, step=step)
        row: dict[str, Any] = {"step": step, "loss": loss.item()}
        validates = step % training.validate_every == 0 or step == training.steps
        if validates and crew.leads:
            row["validation_accuracy"] = validate(settings, sources.validation, network, method)
            improved = row["validation_accuracy"] > state.best_accuracy
            best = module_tensors(network, "best") if improved else best
            state = _judged(state, row["validation_accuracy"], training.patience)
        if validates:
            state = replace(state, stopped=crew.agree(state.stopped))
        if folder is not None:
            if validates or step % LOG_EVERY == 0:
                folder.append_metrics(row)
            if step % training.checkpoint_every == 0 or step == training.steps or state.stopped:
                _save(folder, network, optimizer, state, best)
        bar.update()
        bar.set_postfix(
            loss=f"{row['loss']:.3f}",
            validation=f"{state.best_accuracy:.3f}" if state.best_step else "-",
            refresh=False,
        )
    return state, best


def _rehearse(settings: MetaTraining, sources: Sources, network: nn.Module) -> None:
    """Nothing, where episodes of every size can be drawn and embedded; called before anything is written.

    Raises:
        ValueError: too few classes or items for an episode, or a network whose output is not (n, d).
    """
    sizes = settings.episode.shots
    for source, shots in (
        (sources.training, sizes),
        (sources.validation, sizes),
        (sources.target, settings.target.shots),
    ):
        index = draw_items(
            source,
            settings.shape(max(shots), 1),
            1,
            generator_of(settings, "rehearsal", 0, source.items.device),
        )
        with torch.no_grad(), evaluating(network):
            output = network(source.inputs(index[0])[0])
        if output.dim() != 2 or len(output) != index.shape[2]:
            raise ValueError(
                f"the network turns {index.shape[2]} items into a tensor of shape {tuple(output.shape)}; needs (items, dimension)"
            )


def _training_episodes(settings: MetaTraining, source: EpisodeSource, step: int) -> Episodes:
    """All episodes of one step; every process draws the same and then takes its part."""
    chance = random.Random(_seed(settings, "sizes", step))
    shape = settings.shape(chance.choice(settings.episode.shots), chance.choice(settings.episode.annotators))
    generator = generator_of(settings, "episodes", step, source.items.device)
    return draw_episodes(source, shape, settings.annotators.drawn, settings.episode.tasks, generator)


def _judged(state: Progress, score: float, patience: int) -> Progress:
    if score > state.best_accuracy:
        return replace(state, best_accuracy=score, best_step=state.step, waited=0)
    return replace(state, waited=state.waited + 1, stopped=state.waited + 1 >= patience)


def _save(
    folder: RunFolder,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Progress,
    best: dict[str, Tensor],
) -> None:
    tensors, outline = optimizer_tensors(optimizer, "optimizer")
    save_latest(
        folder.path,
        {**module_tensors(network, "network"), **best, **tensors},
        {"progress": vars(state), "optimizer": outline},
    )


def _resume(
    settings: MetaTraining, network: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> tuple[Progress, dict[str, Tensor]]:
    """The state in the newest checkpoint, with network and optimizer filled from it; the start where there is none yet."""
    checkpoint = load_latest(settings.out)
    if checkpoint is None:
        return Progress(), best
    load_module(network, checkpoint.tensors, "network")
    load_optimizer(optimizer, checkpoint.tensors, checkpoint.state["optimizer"], "optimizer")
    kept = {name: value for name, value in checkpoint.tensors.items() if name.startswith("best/")}
    return Progress(**checkpoint.state["progress"]), kept


def _seed(settings: MetaTraining, purpose: str, index: int) -> int:
    """63 bits from (seed, purpose, index); a hash, so that neighbouring steps are unrelated."""
    return (
        int.from_bytes(hashlib.sha256(f"{settings.seed}/{purpose}/{index}".encode()).digest()[:8], "big") >> 1
    )

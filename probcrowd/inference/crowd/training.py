r"""The loop that trains a network together with a channel (`probcrowd.models.crowd`).

    epoch e    channel.start_epoch(e)
               batches of whole items in an order drawn from (seed, e): Adam on network and channel
               channel.end_epoch() -> score

All randomness in an epoch comes from (seed, e), so training resumed after any epoch gives bit-identical
results. The score, if any, selects the epoch whose network and channel are the result; without one, the last
epoch. Weight decay applies to the network alone, unless the channel asks for it: on logits of confusion
matrices it would pull annotators towards guessing.

Memory: the network three times with its optimizer, once more for the best epoch, and one batch of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from probcrowd.compute.threads import one_thread
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.crowd.network_output import Inputs, apply_network, apply_network_to_all
from probcrowd.models.crowd.base import Channel
from probcrowd.storage.checkpoint import (
    Checkpoint,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    under,
)

Score = Callable[[nn.Module, Channel], float]  # higher is better
SMALL = 3e7  # multiplications per batch below which one thread is faster than several
PER_INPUT = 100  # multiplications of a small convolution per input number


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training loop.

    batch: items. learning_rate, weight_decay: of Adam. channel_learning_rate: for the channel's parameters,
    whose logits have further to go; None: the network's. patience: epochs without a better score before
    stopping; None: never.
    """

    epochs: int = 100
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    channel_learning_rate: float | None = None
    patience: int | None = None


@dataclass
class TrainingState:
    """Progress of a training: epochs done, the best one and its score, and a row of `history` per epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def selected(self) -> int:
        """The epoch selected as the result: the best, or the last if none was scored."""
        return self.best_epoch or self.epoch

    def finished(self, training: TrainingOptions) -> bool:
        """Whether all epochs are done or patience has run out."""
        waited = self.epoch - self.best_epoch
        return self.epoch >= training.epochs or (
            training.patience is not None and self.best_epoch > 0 and waited >= training.patience
        )


Keep = Callable[[Mapping[str, Tensor], Mapping[str, Any]], None]


def train(
    network: nn.Module,
    channel: Channel,
    inputs: Inputs,
    labels: AnnotationTensors,
    training: TrainingOptions,
    *,
    seed: int = 0,
    score: Score | None = None,
    resume: Checkpoint | None = None,
    keep: Keep | None = None,
    progress: bool = False,
) -> TrainingState:
    """Train both modules in place.

    Args:
        resume: a checkpoint saved by `keep`, to continue from. keep: called with tensors and state after
            every epoch.

    Raises:
        FloatingPointError: the loss, the score or a parameter is no longer finite.
    """
    optimizer = _adam(network, channel, training)
    state, best = TrainingState(), {}
    if resume is not None:
        state, best = _restore(network, channel, optimizer, resume)
    bar = tqdm(
        total=training.epochs,
        initial=state.epoch,
        desc="train",
        unit="epoch",
        disable=not progress,
        leave=False,
    )
    with bar, one_thread(_small(network, inputs, labels, training)):
        while not state.finished(training):
            loss = _epoch(network, channel, optimizer, inputs, labels, training, seed, state.epoch)
            state.epoch += 1
            _require(math.isfinite(loss), f"the loss is {loss} in epoch {state.epoch}")
            row = {"epoch": float(state.epoch), "loss": loss, "degenerate": float(channel.degenerate)}
            row |= channel.metrics()
            if score is not None:
                row["score"] = score(network, channel)
                _require(not math.isnan(row["score"]), f"the score is nan after epoch {state.epoch}")
                if row["score"] > state.best_score and channel.selectable:
                    state.best_epoch, state.best_score = state.epoch, row["score"]
                    best = _tensors(network, channel, "best")
            state.history.append(row)
            if keep is not None:
                tensors, optimizer_state = optimizer_tensors(optimizer, "optimizer")
                keep(
                    {**_tensors(network, channel, "now"), **best, **tensors},
                    {"optimizer": optimizer_state, **vars(state)},
                )
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    if best:
        _load(network, channel, best, "best")
    finite = all(bool(torch.isfinite(value).all()) for value in _tensors(network, channel, "now").values())
    _require(finite, "a parameter is not finite")
    network.eval()
    channel.eval()
    return state


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise FloatingPointError(f"{message}: lower the learning rate or the strength")


def _small(network: nn.Module, inputs: Inputs, labels: AnnotationTensors, training: TrainingOptions) -> bool:
    """Whether a batch is too little work for several threads, by its number of weights and inputs."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    work = training.batch * (weights + PER_INPUT * inputs(labels.items[:1]).numel())
    return labels.item.device.type == "cpu" and work < SMALL


def _adam(network: nn.Module, channel: Channel, training: TrainingOptions) -> torch.optim.Adam:
    rate = training.channel_learning_rate
    groups = [
        {"params": list(network.parameters()), "weight_decay": training.weight_decay},
        {
            "params": list(channel.parameters()),
            "weight_decay": training.weight_decay if channel.weight_decay else 0.0,
            "lr": training.learning_rate if rate is None else rate,
        },
    ]
    return torch.optim.Adam(groups, training.learning_rate, fused=True)


def _epoch(
    network: nn.Module,
    channel: Channel,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    labels: AnnotationTensors,
    training: TrainingOptions,
    seed: int,
    epoch: int,
) -> float:
    """Run one epoch and return the mean loss of its batches."""
    number = seed * 1_000_003 + epoch + 1
    network.train()
    channel.train()
    losses = []
    with _seeded(number, labels.item.device):
        channel.start_epoch(
            epoch, training.epochs, lambda: apply_network_to_all(network, channel, inputs, labels.items)
        )
        for part in labels.batches(training.batch, torch.Generator().manual_seed(number)):
            loss = channel.loss(apply_network(network, channel, inputs(part.items)), part)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        channel.end_epoch()
    return float(torch.stack(losses).mean())


@contextmanager
def _seeded(number: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and restore its random state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        yield


def _tensors(network: nn.Module, channel: Channel, name: str) -> dict[str, Tensor]:
    return module_tensors(network, f"{name}/network") | module_tensors(channel, f"{name}/channel")


def _load(network: nn.Module, channel: Channel, tensors: Mapping[str, Tensor], name: str) -> None:
    load_module(network, tensors, f"{name}/network")
    load_module(channel, tensors, f"{name}/channel")


def _restore(
    network: nn.Module, channel: Channel, optimizer: torch.optim.Optimizer, saved: Checkpoint
) -> tuple[TrainingState, dict[str, Tensor]]:
    """Load a checkpoint into modules and optimizer; return the progress and the tensors of the best epoch."""
    _load(network, channel, saved.tensors, "now")
    state = dict(saved.state)
    load_optimizer(optimizer, saved.tensors, state.pop("optimizer"), "optimizer")
    best = {f"best/{name}": value for name, value in under("best", saved.tensors).items()}
    return TrainingState(**state), best

r"""The one loop that trains a network together with what it believes of annotators, whatever that is (`probcrowd.models.crowd`).

    epoch e    channel.start_epoch(e) -> batches of whole items in an order drawn from (seed, e) -> Adam on network and channel -> channel.end -> score

Everything random in an epoch comes from (seed, e), so a training that goes on after any epoch ends at the bits of one that was never
stopped. The score, where there is one, chooses the epoch whose network and channel are the result; without it the last epoch's are. Weight
decay is the network's alone, unless the channel is one as well: on logits of confusion matrices it would pull annotators towards guessing.

Memory: the network three times over with its optimizer, and once more for the best epoch; one batch of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from probcrowd.compute.threads import one_thread
from probcrowd.data.tensors import AnnotationTensors
from probcrowd.models.crowd.base import Channel, NetworkOutput
from probcrowd.storage.checkpoint import (
    Checkpoint,
    load_module,
    load_optimizer,
    module_tensors,
    optimizer_tensors,
    under,
)

Inputs = Callable[[Int[Tensor, " b"]], Tensor]  # the inputs of those items, on the device
Score = Callable[[nn.Module, Channel], float]  # higher is better
SMALL, PER_INPUT = 3e7, 100  # products of a batch; of a small convolution for every number of an input
AT_ONCE = 1024  # items of a pass without gradients


@dataclass(frozen=True)
class TrainingOptions:
    """epochs; batch: items; learning_rate, weight_decay: of Adam. channel_learning_rate: of what the channel has, whose logits have further to go;
    None: that of the network. patience: epochs without a better score after which to stop; None: never."""

    epochs: int = 100
    batch: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    channel_learning_rate: float | None = None
    patience: int | None = None


@dataclass
class TrainingState:
    """Where a training stands: epochs done, the best of them, its score, and a row of `history` per epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def selected(self) -> int:
        """The epoch that is the result: the best, or the last where nothing was scored."""
        return self.best_epoch or self.epoch

    def finished(self, training: TrainingOptions) -> bool:
        """Whether there is nothing left to do."""
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
    """Trains both modules in place.

    Args:
        resume: what `keep` was given after some epoch, to go on from. keep: called with tensors and state after every epoch.

    Raises:
        FloatingPointError: the loss is not a number any more.
    """
    optimizer = _adam(network, channel, training)
    stands, best = TrainingState(), {}
    if resume is not None:
        stands, best = _restored(network, channel, optimizer, resume)
    bar = tqdm(
        total=training.epochs,
        initial=stands.epoch,
        desc="train",
        unit="epoch",
        disable=not progress,
        leave=False,
    )
    with bar, one_thread(_small(network, inputs, labels, training)):
        while not stands.finished(training):
            row = {
                "epoch": stands.epoch + 1.0,
                "loss": _epoch(network, channel, optimizer, inputs, labels, training, seed, stands.epoch),
            }
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(
                    f"the loss is {row['loss']} in epoch {stands.epoch + 1}: lower the learning rate or the strength"
                )
            stands.epoch += 1
            row |= {"degenerate": float(channel.degenerate), **channel.metrics()}
            if score is not None:
                row["score"] = score(network, channel)
                if math.isnan(row["score"]):
                    raise FloatingPointError(
                        f"the score is {row['score']} after epoch {stands.epoch}: lower the learning rate or the strength"
                    )
                if row["score"] > stands.best_score and channel.selectable:
                    stands.best_epoch, stands.best_score = stands.epoch, row["score"]
                    best = _both(network, channel, "best")
            stands.history.append(row)
            if keep is not None:
                tensors, state = optimizer_tensors(optimizer, "optimizer")
                state = {"optimizer": state, **vars(stands)}
                keep({**_both(network, channel, "now"), **best, **tensors}, state)
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
    if best:
        _load(network, channel, best, "best")
    if not all(bool(torch.isfinite(value).all()) for value in _both(network, channel, "now").values()):
        raise FloatingPointError(
            "a parameter is not a number any more: lower the learning rate or the strength"
        )
    network.eval()
    channel.eval()
    return stands


def apply_network(network: nn.Module, channel: Channel, inputs: Tensor) -> NetworkOutput:
    """What the network makes of some inputs, as the channel wants it."""
    if channel.needs_embedding:
        embedding = network(inputs)
        return NetworkOutput(embedding.new_zeros(len(embedding), 0), embedding)
    if not channel.needs_features:
        return NetworkOutput(torch.log_softmax(network(inputs), -1))
    caught: list[Tensor] = []
    hook = network.get_submodule(channel.head).register_forward_pre_hook(
        lambda _, given: caught.append(given[0])
    )
    try:
        log_truth = torch.log_softmax(network(inputs), -1)
    finally:
        hook.remove()
    return NetworkOutput(log_truth, caught[-1].flatten(1))


@torch.no_grad()
def apply_network_to_all(
    network: nn.Module, channel: Channel, inputs: Inputs, items: Int[Tensor, " i"]
) -> NetworkOutput:
    """The same of many items, some at a time, without dropout and without gradients; the modules are left as they were."""
    modes = network.training, channel.training
    network.eval()
    channel.eval()
    parts = [apply_network(network, channel, inputs(part)) for part in items.split(AT_ONCE)]
    network.train(modes[0])
    channel.train(modes[1])
    features = [part.features for part in parts if part.features is not None]
    return NetworkOutput(
        torch.cat([part.log_truth for part in parts]), torch.cat(features) if features else None
    )


def output_layer(network: nn.Module, inputs: Tensor) -> str | None:
    """The name of the linear layer that gives the logits of these inputs; None where there is none."""
    called: list[tuple[str, Tensor]] = []

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            if given[0].ndim == 2:
                called.append((name, made))

        return note

    hooks = [
        layer.register_forward_hook(noting(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        logits = network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return next((name for name, made in reversed(called) if made is logits), None)


def _small(network: nn.Module, inputs: Inputs, labels: AnnotationTensors, training: TrainingOptions) -> bool:
    """Whether a batch is so little work that several threads would be slower than one: by its weights and, for convolutions, its inputs."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    work = training.batch * (weights + PER_INPUT * inputs(labels.items[:1]).numel())
    return labels.item.device.type == "cpu" and work < SMALL


def _adam(network: nn.Module, channel: Channel, training: TrainingOptions) -> torch.optim.Adam:
    rate = (
        training.learning_rate if training.channel_learning_rate is None else training.channel_learning_rate
    )
    groups = [
        {"params": list(network.parameters()), "weight_decay": training.weight_decay},
        {
            "params": list(channel.parameters()),
            "weight_decay": training.weight_decay if channel.weight_decay else 0.0,
            "lr": rate,
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
    """The mean loss of the batches of one epoch."""
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
    """Dropout and the like draw from this seed inside, and leave no trace."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        yield


def _both(network: nn.Module, channel: Channel, name: str) -> dict[str, Tensor]:
    return module_tensors(network, f"{name}/network") | module_tensors(channel, f"{name}/channel")


def _load(network: nn.Module, channel: Channel, tensors: Mapping[str, Tensor], name: str) -> None:
    load_module(network, tensors, f"{name}/network")
    load_module(channel, tensors, f"{name}/channel")


def _restored(
    network: nn.Module, channel: Channel, optimizer: torch.optim.Optimizer, found: Checkpoint
) -> tuple[TrainingState, dict[str, Tensor]]:
    _load(network, channel, found.tensors, "now")
    state = dict(found.state)
    load_optimizer(optimizer, found.tensors, state.pop("optimizer"), "optimizer")
    return TrainingState(**state), {
        f"best/{name}": value for name, value in under("best", found.tensors).items()
    }

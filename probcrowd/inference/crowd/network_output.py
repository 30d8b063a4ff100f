"""Apply a network as a channel needs it: log class probabilities, last features, or embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from probcrowd.models.crowd.base import Channel, NetworkOutput

Inputs = Callable[[Int[Tensor, " b"]], Tensor]  # positions of items -> their inputs, on the device
CHUNK_ITEMS = 1024  # items per pass without gradients


def apply_network(network: nn.Module, channel: Channel, inputs: Tensor) -> NetworkOutput:
    """The network's output for these inputs, with the parts the channel needs."""
    if channel.needs_embedding:
        embedding = network(inputs)
        return NetworkOutput(embedding.new_zeros(len(embedding), 0), embedding)
    if not channel.needs_features:
        return NetworkOutput(torch.log_softmax(network(inputs), -1))
    captured: list[Tensor] = []
    hook = network.get_submodule(channel.head).register_forward_pre_hook(
        lambda _, arguments: captured.append(arguments[0])
    )
    try:
        log_truth = torch.log_softmax(network(inputs), -1)
    finally:
        hook.remove()
    return NetworkOutput(log_truth, captured[-1].flatten(1))


@torch.no_grad()
def apply_network_to_all(
    network: nn.Module, channel: Channel, inputs: Inputs, items: Int[Tensor, " i"]
) -> NetworkOutput:
    """The output for many items, a chunk at a time, without dropout or gradients."""
    modes = network.training, channel.training
    network.eval()
    channel.eval()
    parts = [apply_network(network, channel, inputs(part)) for part in items.split(CHUNK_ITEMS)]
    network.train(modes[0])
    channel.train(modes[1])
    features = [part.features for part in parts if part.features is not None]
    log_truth = torch.cat([part.log_truth for part in parts])
    return NetworkOutput(log_truth, torch.cat(features) if features else None)


def output_layer(network: nn.Module, inputs: Tensor) -> str | None:
    """The name of the linear layer whose output is the network's; None if there is none."""
    calls: list[tuple[str, Tensor]] = []

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(layer: nn.Module, arguments: tuple[Tensor, ...], result: Tensor) -> None:
            if arguments[0].ndim == 2:
                calls.append((name, result))

        return record

    hooks = [
        layer.register_forward_hook(recorder(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        logits = network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return next((name for name, result in reversed(calls) if result is logits), None)

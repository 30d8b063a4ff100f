"""One process, or several started by `torchrun` that share gradients and stop together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Processes:
    """This process among `size`. Only the leader writes files and shows progress."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share_gradients(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that backward averages gradients over all processes."""
        return nn.parallel.DistributedDataParallel(network) if self.size > 1 else network

    def agree(self, value: bool) -> bool:
        """Return the leader's value in every process; wait for all."""
        if self.size == 1:
            return value
        flag = torch.tensor([int(value)], device=self.device)
        distributed.broadcast(flag, src=0)
        return bool(flag.item())


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Open the group that torchrun's environment variables describe, or a group of this process alone.

    Raises:
        ValueError: `device` is "cuda" and there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device is 'cuda', but this torch finds no GPU: set device = \"cpu\", or install a torch with "
            "CUDA"
        )
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
    chosen = local if device == "cuda" else torch.device(device)
    if size == 1:
        yield Processes(0, 1, chosen)
        return
    if device == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield Processes(rank, size, chosen)
    finally:
        distributed.destroy_process_group()

"""Batch normalisation by the batch at hand, for networks that are adapted to one task at a time."""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn


def without_running_statistics(network: nn.Module) -> nn.Module:
    """Copy a network, in evaluation mode, with batch normalisation by the batch at hand."""
    root = nn.ModuleDict({"network": deepcopy(network)})
    for module in list(root.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.add_module(name, TaskBatchNorm(child))
    return root["network"].eval()


class TaskBatchNorm(nn.Module):
    """Batch normalisation by the mean and variance of the batch, with the weight and bias of another one.

    Written in single operations: through `torch.func.vmap`, the gradient of the gradient of
    `torch.nn.functional.batch_norm` treats mean and variance as constants, which is wrong (PyTorch 2.13).
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, inputs: Float[Tensor, "n c *shape"]) -> Float[Tensor, "n c *shape"]:
        """Normalise channels to mean 0 and variance 1 over items and places, then scale and shift them."""
        others = [0, *range(2, inputs.ndim)]
        variance, mean = torch.var_mean(inputs, others, correction=0, keepdim=True)
        normalised = (inputs - mean) * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return normalised
        return normalised * self.weight.view_as(mean[0]) + self.bias.view_as(mean[0])

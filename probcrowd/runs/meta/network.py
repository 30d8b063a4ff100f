"""The network of a run: an encoder, with the learned prior around it or MAML's last layer on top."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn

from probcrowd.models.encoders import MLP, Conv4
from probcrowd.models.meta.learned_prior import LearnedPrior
from probcrowd.runs.meta.configuration import Encoder, MetaTraining
from probcrowd.runs.meta.sources import seed_of


def new_network(
    settings: MetaTraining, input_shape: tuple[int, ...], encoder: nn.Module | None = None
) -> nn.Module:
    """Build the initial network, around `encoder` where the settings say "own".

    The global random state is not changed.

    Raises:
        ValueError: an encoder is passed and the settings do not say "own", or the reverse; or one that does
            not fit the inputs.
    """
    if encoder is not None and settings.encoder.kind != "own":
        raise ValueError(
            f"an encoder was passed, but encoder.kind is {settings.encoder.kind!r}: set it to 'own'"
        )
    if encoder is not None:
        return _with_head(settings, encoder, input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(settings, "encoder"))
        return _with_head(settings, build_encoder(settings.encoder, input_shape), input_shape)


def build_encoder(settings: Encoder, input_shape: tuple[int, ...]) -> nn.Module:
    """Build the encoder for inputs of this shape; its weights come from torch's global generator.

    Raises:
        ValueError: `kind` is "own", or Conv4 for inputs that are no images or too small.
    """
    if settings.kind == "own":
        raise ValueError("encoder.kind is 'own': pass the network as `encoder`, from Python")
    if settings.kind == "mlp":
        return MLP(math.prod(input_shape), settings.hidden, settings.dimension)
    if len(input_shape) != 3:
        raise ValueError(
            f"encoder.kind is 'conv4', but inputs have shape {input_shape}, not (channels, height, width): "
            "use 'mlp'"
        )
    return Conv4(input_shape[0], min(input_shape[1:]), settings.channels)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Set the network to evaluation mode inside, and back to its mode afterwards."""
    before = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(before)


def _with_head(settings: MetaTraining, encoder: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    adaptation = settings.adaptation
    if adaptation.learner == "maml":
        with torch.no_grad():
            width = deepcopy(encoder).eval()(torch.zeros(1, *input_shape)).shape[-1]
        return nn.Sequential(encoder, nn.Linear(width, settings.episode.ways))
    if not adaptation.learned:
        return encoder
    return LearnedPrior(encoder, adaptation.learned, adaptation.method.prior, adaptation.method.population)

"""What all fits of networks to annotators do alike: make the network, keep checkpoints, train, and read a network back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probcrowd.data.files import some
from probcrowd.estimators.crowd.inputs import Items
from probcrowd.estimators.crowd.saved import load_training, save_training
from probcrowd.estimators.crowd.split import Judge, Split
from probcrowd.inference.crowd.network_output import Inputs
from probcrowd.inference.crowd.training import TrainingOptions, TrainingState, train
from probcrowd.models.crowd.base import Channel
from probcrowd.storage.fit import FitSettings
from probcrowd.storage.folder import RunFolder


def made(
    network: nn.Module | Callable[..., nn.Module], arguments: tuple[Any, ...], seed: int, device: str
) -> nn.Module:
    """A copy of a module, or what a function makes of these arguments under the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (copy.deepcopy(network) if isinstance(network, nn.Module) else network(*arguments)).to(device)


def some_of(items: Items) -> torch.Tensor:
    """One or two inputs, to see what a network makes of them."""
    return items(torch.arange(min(2, len(items.ids)), device=items.device))


def trained_on(items: Items, split: Split) -> Inputs:
    """The inputs of the items trained on, by their places among these."""
    return lambda places: items(split.place[places])


def held_out_from(items: Items, split: Split) -> Inputs:
    """Likewise of the items held out."""
    return lambda places: items(split.held_place[places])


@contextmanager
def kept_in(
    folder: Path | str | None, resume: bool, settings: Callable[[Path], FitSettings]
) -> Iterator[tuple[RunFolder | None, dict[str, Any]]]:
    """The folder of the fit, locked, where there is one, and what `fitted` is to be told of it: where to go on from and where to keep checkpoints."""
    with ExitStack() as stack:
        if folder is None:
            yield None, {}
            return
        kept = stack.enter_context(RunFolder(Path(folder)))
        going_on = kept.start(settings(kept.path), resume)
        yield (
            kept,
            {"resume": load_training(kept) if going_on else None, "keep": partial(save_training, kept)},
        )


def fitted(
    asked: Any,
    network: nn.Module,
    channel: Channel,
    items: Items,
    split: Split,
    judge: Judge | None,
    **options: Any,
) -> TrainingState:
    """Trains both as the parameters of an estimator say, in place."""
    rate = getattr(asked, "channel_learning_rate", None)
    training = TrainingOptions(
        int(asked.epochs),
        int(asked.batch),
        float(asked.learning_rate),
        float(asked.weight_decay),
        None if rate is None else float(rate),
        None if asked.patience is None else int(asked.patience),
    )
    score = None if judge is None else lambda *both: float(judge(*both).mean())
    options |= {"seed": int(asked.random_state), "progress": asked.progress}
    return train(network, channel, trained_on(items, split), split.labels, training, score=score, **options)


def remade(kind: Callable[..., Any], network: Any, parameters: Mapping[str, Any], folder: Path | str) -> Any:
    """An estimator of that kind with the parameters that a folder has.

    Raises:
        ValueError: the fit in the folder is of another kind.
    """
    known = set(inspect.signature(kind).parameters)
    if strange := sorted(set(parameters) - known - {"network"}):
        raise ValueError(
            f"{folder} holds a fit of something else than {kind.__name__}: it has the parameters {some(strange)}"
        )
    return kind(network, **{name: value for name, value in parameters.items() if name != "network"})


def same_network(
    network: nn.Module | Callable[..., nn.Module] | None,
    fallback: Callable[..., nn.Module],
    arguments: tuple[Any, ...],
    own: bool,
    printed: str,
    folder: Path | str,
) -> nn.Module:
    """A network like that of a fit in a folder, whose weights are still to come. own: the fit had one that the user gave; printed: how it looked.

    Raises:
        ValueError: it is another.
    """
    if own != (network is not None):
        raise ValueError(
            f"the fit in {folder} has "
            + ("a network of its own: give it" if own else "the default network: give none")
        )
    blank = (
        copy.deepcopy(network)
        if isinstance(network, nn.Module)
        else (fallback if network is None else network)(*arguments)
    )
    if repr(blank) != printed:
        raise ValueError(f"the fit in {folder} has another network than\n{blank}")
    return blank

r"""Fine-tuning of a classifier for every task by itself, together with a channel from classes to what its annotators say.

    log p(k | x)   = log softmax_k( head(encoder(x)) )
    loss of a task = channel.loss, mean over the labels of its support set         `models.channels.crowd_layer`, `models.channels.conal`

All weights of a task, those of the encoder among them, are fitted by Adam on its whole support set. Tasks start from the same encoder,
each with a head and a channel of its own, and share nothing afterwards. Adam works number by number, so many tasks are one fit of stacked
weights (b, *weight) that lowers the sum of their losses.

An annotator who was not asked about an item has a row of weight 0. Batch normalisation is that of `maml`, dropout is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.meta.maml import without_running_statistics
from probcrowd.models.crowd.base import Channel, NetworkOutput
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.simulate.episodes import Episodes, EpisodeSource


@dataclass(frozen=True)
class FineTuning:
    """The channel, after how many steps predictions are made, and Adam's learning rate."""

    channel: Literal["crowd-layer", "conal"]
    steps: tuple[int, ...] = (10, 30, 100)
    rate: float = 1e-2


class Classifier(nn.Module):
    """The network and the channel of one task: log class probabilities of inputs or, where codes are given, the loss on them."""

    def __init__(self, encoder: nn.Module, head: nn.Linear, channel: Channel) -> None:
        super().__init__()
        self.encoder, self.head, self.channel = encoder, head, channel

    def forward(
        self, inputs: Float[Tensor, "b ..."], codes: Int[Tensor, "b j"] | None = None
    ) -> Float[Tensor, "..."]:
        """codes: of labels; negative where an annotator was not asked."""
        features = self.encoder(inputs).flatten(1)
        seen = NetworkOutput(torch.log_softmax(self.head(features), -1), features)
        return seen.log_truth if codes is None else self.channel.loss(seen, all_pairs(codes, features.dtype))


def fine_tuned(
    encoder: nn.Module,
    source: EpisodeSource,
    episodes: Episodes,
    method: FineTuning,
    generator: torch.Generator,
    *,
    chunk: int = 25,
) -> dict[int, Float[Tensor, "b q k"]]:
    """Log class probabilities of the queries, by how many steps each task was fitted for. The encoder is left as it is.

    chunk: tasks in memory at a time, each with weights, a gradient and two averages of it; results depend on it by rounding only.
    """
    dtype = next(encoder.parameters()).dtype
    fresh = classifiers(
        encoder, source.inputs(episodes.support[:1])[0].to(dtype), episodes, method, generator
    )
    parts = zip(
        episodes.support.split(chunk), episodes.labels.split(chunk), episodes.query.split(chunk), strict=True
    )
    found = [
        _fit(
            fresh[chunk * part : chunk * (part + 1)],
            source.inputs(support).to(dtype),
            codes,
            source.inputs(queries).to(dtype),
            method,
        )
        for part, (support, codes, queries) in enumerate(parts)
    ]
    return {steps: torch.cat([each[steps] for each in found]) for steps in method.steps}


def classifiers(
    encoder: nn.Module,
    inputs: Float[Tensor, "b ..."],
    episodes: Episodes,
    method: FineTuning,
    generator: torch.Generator,
) -> list[Classifier]:
    """Where each task starts: all with one copy of the encoder, in evaluation mode. inputs: some, of which the encoder makes features."""
    shared = without_running_statistics(encoder)
    with torch.no_grad():
        features = shared(inputs).flatten(1)
    width, annotators, ways = features.shape[1], episodes.labels.shape[2], episodes.ways

    def channel() -> Channel:
        return (
            CrowdLayer(annotators, ways)
            if method.channel == "crowd-layer"
            else CoNAL(annotators, ways, width)
        )

    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would reach the generators of all devices
        return [
            Classifier(shared, nn.Linear(width, ways), channel()).to(features).eval()
            for _ in range(len(episodes.support))
        ]


def all_pairs(codes: Int[Tensor, "i j"], dtype: torch.dtype) -> AnnotationTensors:
    """A row for every item and annotator; the weights of those that are there have a mean of 1 per item."""
    items, annotators = (torch.arange(size, device=codes.device) for size in codes.shape)
    asked = (codes >= 0).flatten().to(dtype)
    weight = asked * (len(items) / asked.sum().clamp(min=1))
    item, annotator = items.repeat_interleave(len(annotators)), annotators.repeat(len(items))
    return AnnotationTensors(
        item, annotator, codes.flatten().clamp(min=0), weight, items, weight_per_item=1.0
    )


def _fit(
    fresh: list[Classifier],
    support: Float[Tensor, "b i *shape"],
    codes: Int[Tensor, "b i j"],
    queries: Float[Tensor, "b q *shape"],
    method: FineTuning,
) -> dict[int, Float[Tensor, "b q k"]]:
    """The predictions of tasks that are fitted at the same time."""
    leaves = {
        name: _turned(weight.detach()).contiguous().requires_grad_()
        for name, weight in stack_module_state(fresh)[0].items()
    }
    optimizer = torch.optim.Adam(leaves.values(), method.rate, fused=True)

    def of_task(leaves: dict[str, Tensor], *given: Tensor) -> Tensor:
        return functional_call(fresh[0], leaves, given)

    def of_tasks(*given: Tensor) -> Tensor:
        return vmap(of_task)({name: _turned(leaf) for name, leaf in leaves.items()}, *given)

    found: dict[int, Tensor] = {}
    for step in range(max(method.steps) + 1):
        if step in method.steps:
            with torch.no_grad():
                found[step] = of_tasks(queries)
        if step < max(method.steps):
            with torch.enable_grad():
                loss = of_tasks(support, codes).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return found


def _turned(weight: Tensor) -> Tensor:
    """Matrices transposed: so a linear layer's gradient comes, which would be copied to fit weights that lie in memory the other way."""
    return weight.mT if weight.ndim == 3 else weight

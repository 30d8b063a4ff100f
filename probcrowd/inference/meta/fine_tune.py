r"""Fine-tune a classifier for every task, together with a channel from classes to its annotators' labels.

    log p(k | x)   = log softmax_k( head(encoder(x)) )
    loss of a task = channel.loss, mean over the labels of its support set         `probcrowd.models.crowd`

Adam fits all weights of a task, the encoder's included, to its whole support set. Tasks start from the same
encoder, each with a head and a channel of its own, and share nothing afterwards. Adam works on each number
separately, so many tasks are one fit of stacked weights (b, *weight) that lowers the sum of their losses.

A missing label is a row of weight 0. Batch normalisation uses the batch at hand (`batch_norm.py`), dropout is
off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from probcrowd.data.tensors import AnnotationTensors
from probcrowd.inference.meta.batch_norm import without_running_statistics
from probcrowd.models.crowd.base import Channel, NetworkOutput
from probcrowd.models.crowd.conal import CoNAL
from probcrowd.models.crowd.crowd_layer import CrowdLayer
from probcrowd.simulate.episodes import Episodes, EpisodeSource


@dataclass(frozen=True)
class FineTuning:
    """The channel, the numbers of steps after which to predict, and Adam's learning rate."""

    channel: Literal["crowd-layer", "conal"]
    steps: tuple[int, ...] = (10, 30, 100)
    rate: float = 1e-2


class Classifier(nn.Module):
    """Network and channel of one task: log class probabilities of inputs or, given label codes, a loss."""

    def __init__(self, encoder: nn.Module, head: nn.Linear, channel: Channel) -> None:
        super().__init__()
        self.encoder, self.head, self.channel = encoder, head, channel

    def forward(
        self, inputs: Float[Tensor, "b ..."], codes: Int[Tensor, "b j"] | None = None
    ) -> Float[Tensor, "..."]:
        """codes: of the labels; negative where an annotator gave none."""
        features = self.encoder(inputs).flatten(1)
        output = NetworkOutput(torch.log_softmax(self.head(features), -1), features)
        if codes is None:
            return output.log_truth
        return self.channel.loss(output, all_pairs(codes, features.dtype))


def fine_tune(
    encoder: nn.Module,
    source: EpisodeSource,
    episodes: Episodes,
    method: FineTuning,
    generator: torch.Generator,
    *,
    chunk: int = 25,
) -> dict[int, Float[Tensor, "b q k"]]:
    """Return log class probabilities of the queries by the number of steps; the encoder is not changed.

    chunk: tasks in memory at a time, each with weights, a gradient and two averages of it; it changes results
    by rounding only.
    """
    dtype = next(encoder.parameters()).dtype
    example = source.inputs(episodes.support[:1])[0].to(dtype)
    start = new_classifiers(encoder, example, episodes, method, generator)
    results = [
        _fit(
            start[chunk * index : chunk * (index + 1)],
            source.inputs(part.support).to(dtype),
            part.labels,
            source.inputs(part.query).to(dtype),
            method,
        )
        for index, part in enumerate(episodes.chunks(chunk))
    ]
    return {steps: torch.cat([result[steps] for result in results]) for steps in method.steps}


def new_classifiers(
    encoder: nn.Module,
    example: Float[Tensor, "b ..."],
    episodes: Episodes,
    method: FineTuning,
    generator: torch.Generator,
) -> list[Classifier]:
    """Build the initial classifier of each task; all share one copy of the encoder.

    example: inputs, which show the size of the encoder's output.
    """
    shared = without_running_statistics(encoder)
    with torch.no_grad():
        features = shared(example).flatten(1)
    width, annotators, ways = features.shape[1], episodes.labels.shape[2], episodes.ways

    def channel() -> Channel:
        if method.channel == "crowd-layer":
            return CrowdLayer(annotators, ways)
        return CoNAL(annotators, ways, width)

    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed all devices
        return [
            Classifier(shared, nn.Linear(width, ways), channel()).to(features).eval()
            for _ in range(len(episodes.support))
        ]


def all_pairs(codes: Int[Tensor, "i j"], dtype: torch.dtype) -> AnnotationTensors:
    """Return one row per item and annotator; missing labels weigh 0, the others on average 1 per item."""
    items, annotators = (torch.arange(size, device=codes.device) for size in codes.shape)
    observed = (codes >= 0).flatten().to(dtype)
    weight = observed * (len(items) / observed.sum().clamp(min=1))
    item, annotator = items.repeat_interleave(len(annotators)), annotators.repeat(len(items))
    return AnnotationTensors(
        item, annotator, codes.flatten().clamp(min=0), weight, items, weight_per_item=1.0
    )


def _fit(
    start: list[Classifier],
    support: Float[Tensor, "b i *shape"],
    codes: Int[Tensor, "b i j"],
    queries: Float[Tensor, "b q *shape"],
    method: FineTuning,
) -> dict[int, Float[Tensor, "b q k"]]:
    """Fit tasks together and predict their queries."""
    stacked = {
        name: _transposed(weight.detach()).contiguous().requires_grad_()
        for name, weight in stack_module_state(start)[0].items()
    }
    optimizer = torch.optim.Adam(stacked.values(), method.rate, fused=True)

    def of_task(weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return functional_call(start[0], weights, inputs)

    def of_tasks(*inputs: Tensor) -> Tensor:
        return vmap(of_task)({name: _transposed(weight) for name, weight in stacked.items()}, *inputs)

    predictions: dict[int, Tensor] = {}
    for step in range(max(method.steps) + 1):
        if step in method.steps:
            with torch.no_grad():
                predictions[step] = of_tasks(queries)
        if step < max(method.steps):
            with torch.enable_grad():
                loss = of_tasks(support, codes).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return predictions


def _transposed(weight: Tensor) -> Tensor:
    """Transpose stacked matrices: linear layers' gradients come in that layout, another would cost copies."""
    return weight.mT if weight.ndim == 3 else weight

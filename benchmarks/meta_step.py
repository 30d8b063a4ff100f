"""Time a meta-training step and the adaptation to a thousand tasks.

Usage: `python benchmarks/meta_step.py [--quick] [--device cuda]`

Three comparisons, each interleaved in one run, so that the ratios hold on a machine whose speed drifts;
medians, one thread on a CPU:

1. Conv-4-64 on 28 x 28 images and 2. the demonstration's MLP on 8 x 8 images: one whole step (draw episodes,
   network, loss, backward, Adam) of the method at J = 2 against a prototypical network written in plain torch
   on the same kind of episodes, 4-way 5-shot, R = 5, 10 queries per class. For the method, drawing annotators
   and Pyro's bookkeeping are inside.
3. Adapting 1,000 such tasks from given embeddings, J = 3, d = 64, float32: forward, and forward with the
   gradient, against prototypes by one bare bmm. The three gradients at more steps, beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from probcrowd.data.images import ClassItems
from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.adaptation import Method
from probcrowd.inference.meta.fit import Gradient, fit
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.models.encoders import MLP, Conv4, embed
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.annotators import Mixture
from probcrowd.simulate.episodes import EpisodeShape, EpisodeSource, draw_episodes, draw_items

SHAPE = EpisodeShape(ways=4, shots=5, queries=10, annotators=5)


def interleaved(functions: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Median milliseconds of each function; the order alternates from round to round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(repeats + 2):
        for name, function in list(functions.items())[:: 1 if round_number % 2 else -1]:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def prototypical_loss(
    encoder: nn.Module, source: EpisodeSource, tasks: int, chance: torch.Generator
) -> torch.Tensor:
    """A prototypical network's loss in plain torch, on clean support labels; no annotators are drawn."""
    index = draw_items(source, SHAPE, tasks, chance)
    truth = torch.arange(SHAPE.ways, device=index.device).repeat_interleave(SHAPE.queries).expand(tasks, -1)
    support, queries = embed(
        encoder,
        source.inputs(index[..., : SHAPE.shots].flatten(1)),
        source.inputs(index[..., SHAPE.shots :].flatten(1)),
    )
    prototypes = support.unflatten(1, (SHAPE.ways, SHAPE.shots)).mean(2)
    scores = torch.baddbmm(-0.5 * prototypes.square().sum(-1)[:, None], queries, prototypes.transpose(1, 2))
    return -torch.log_softmax(scores, -1).gather(-1, truth[..., None]).sum() / tasks


def training_steps(
    encoder: Callable[[], nn.Module], side: int, tasks: int, repeats: int, device: str
) -> dict[str, float]:
    """Time a step of the method and of a prototypical network in milliseconds, each with its own network."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (400, 1, side, side), generator=generator, dtype=torch.uint8)
    kinds = torch.arange(20)
    source = EpisodeSource.of(
        ClassItems(images, torch.arange(400) % 20, kinds, kinds, tuple(map(str, range(20)))), device
    )
    functions: dict[str, Callable[[], object]] = {}
    for name in ("prototypical", "EM, J = 2"):
        torch.manual_seed(0)
        network = encoder().to(device)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        chance = torch.Generator(device).manual_seed(0)

        def step(
            name: str = name,
            network: nn.Module = network,
            optimizer: torch.optim.Adam = optimizer,
            chance: torch.Generator = chance,
        ) -> None:
            if name == "prototypical":
                loss = prototypical_loss(network, source, tasks, chance)
            else:
                loss = meta_loss(
                    network, source, draw_episodes(source, SHAPE, Mixture(), tasks, chance), Method()
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        functions[name] = step
    return interleaved(functions, repeats, device)


def adaptation(tasks: int, repeats: int, device: str) -> dict[str, float]:
    """Milliseconds to adapt a batch of tasks from embeddings."""
    generator = torch.Generator().manual_seed(0)
    items, dimension = SHAPE.ways * SHAPE.shots, 64
    embeddings = torch.randn(tasks, items, dimension, generator=generator).to(device)
    labels = torch.randint(SHAPE.ways, (tasks, items, SHAPE.annotators), generator=generator)
    truth = torch.arange(items) // SHAPE.shots
    votes = DenseVotes.from_labels(
        torch.where(torch.rand(labels.shape, generator=generator) < 0.6, truth[:, None], labels).to(device),
        SHAPE.ways,
    )
    shares = em.initial_responsibilities(Support(embeddings, votes))
    prior = Prior()

    def forward() -> None:
        with torch.no_grad():
            fit(Support(embeddings, votes), prior, steps=3)

    def with_gradient(steps: int = 3, gradient: Gradient = "unrolled") -> None:
        free = embeddings.detach().requires_grad_()
        parameters = fit(Support(free, votes), prior, steps=steps, gradient=gradient, tolerance=1e-4)
        (parameters.prototypes.square().sum() + parameters.log_class_prior.sum()).backward()

    def bare(gradient: bool) -> None:
        free = embeddings.detach().requires_grad_(gradient)
        prototypes = torch.bmm(shares.transpose(1, 2), free) / shares.sum(1)[..., None]
        if gradient:
            prototypes.square().sum().backward()

    functions = {
        "bmm prototypes": lambda: bare(False),
        "bmm prototypes + gradient": lambda: bare(True),
        "EM, J = 3": forward,
        "EM, J = 3 + gradient": with_gradient,
        "EM, J = 30 + unrolled gradient": lambda: with_gradient(30),
        "EM, J = 30 + one-step gradient": lambda: with_gradient(30, "one-step"),
    }
    return interleaved(functions, repeats, device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, for a check that it runs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 3 if arguments.quick else 31
    images = 1 if arguments.quick else 16
    cases = {
        f"Conv-4-64, {images} tasks": (lambda: Conv4(1, 28), 28, images, 1 if arguments.quick else 9, 1.03),
        "MLP 64-256-64, 32 tasks": (lambda: MLP(64, [256], 64), 8, 32, repeats * 5, 1.2),
        "MLP 64-256-64, 64 tasks": (lambda: MLP(64, [256], 64), 8, 64, repeats * 5, 1.2),
    }
    print("one meta-training step, 4-way 5-shot, R = 5, 10 queries per class: milliseconds (median)")
    for name, (encoder, side, tasks, rounds, goal) in cases.items():
        medians = training_steps(encoder, side, tasks, rounds, arguments.device)
        ratio = medians["EM, J = 2"] / medians["prototypical"]
        print(
            f"  {name:26s} "
            + "   ".join(f"{key} {value:8.2f}" for key, value in medians.items())
            + f"   ratio {ratio:.3f} (goal {goal})"
        )
    tasks = 50 if arguments.quick else 1000
    print(
        f"adapting {tasks} tasks from embeddings, d = 64, float32: milliseconds (median); goals for 1000: J "
        "= 3 40, with gradient 120"
    )
    for name, value in adaptation(tasks, repeats, arguments.device).items():
        print(f"  {name:34s} {value:8.2f}")


if __name__ == "__main__":
    main()

"""Compare the gradients through EM: unrolled, one-step and implicit.

Usage: `python benchmarks/gradients.py [--quick]`

Four tables, one thread:

1. Time: milliseconds of a meta-training step on the digits, and of adapting a batch of tasks with its
gradient. All gradients take turns. 2. Memory: what adaptation saves for its gradient and its highest point,
per task. 3. Direction: the angle between the gradients of the same loss at the same embeddings, in float64.
4. Accuracy: networks trained on the digits with each gradient over five splits of the classes, scored on the
same target tasks in three
   ways of adapting: as in training, by J = 2 steps and at the fixed point.

J counts M steps. An implicit gradient has no J: it runs to the fixed point, with at most 100 steps. One-step
at J = 2 is the same as unrolled at J = 2, since EM starts from the votes alone: it is in the first three
tables as a control and is not trained again. The two
implicit gradients differ by rounding only: how far their networks differ in accuracy tells what rounding does
to a training. A gradient that falls back on another one warns; the warnings are counted, and so are trainings
whose loss is no number any more. Finished trainings stay in outputs/gradients.
"""

from __future__ import annotations

import copy
import gc
import json
import re
import sys
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from meta_step import interleaved
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.adaptation import Method
from probcrowd.inference.meta.fit import Gradient, converge, iterate
from probcrowd.inference.meta.guide import query_elbo
from probcrowd.inference.meta.jacobian import em_jacobian
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.metrics.intervals import interval
from probcrowd.models.encoders import embed
from probcrowd.models.meta.prototype import Prior
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.demo import demo_settings
from probcrowd.runs.meta.evaluate import paired_difference, target_scores
from probcrowd.runs.meta.network import new_network
from probcrowd.runs.meta.sources import class_sources
from probcrowd.runs.meta.train import meta_train
from probcrowd.runs.meta.trained import load_run
from probcrowd.simulate.annotators import Mixture, annotate, draw_confusion
from probcrowd.simulate.episodes import EpisodeShape, EpisodeSource, draw_episodes

STEPS = (2, 3, 10, 50)
MOST_STEPS = 100
PRIOR = Prior()
SHAPE = EpisodeShape(ways=3, shots=5, queries=10, annotators=5)
BASE, DENSE, NEUMANN = "unrolled, J = 2", "implicit, dense", "implicit, Neumann"
CHOICES: dict[str, tuple[Gradient, int]] = {
    **{f"unrolled, J = {steps}": ("unrolled", steps) for steps in STEPS},
    **{f"one-step, J = {steps}": ("one-step", steps) for steps in STEPS},
    DENSE: ("implicit", MOST_STEPS),
    NEUMANN: ("implicit-neumann", MOST_STEPS),
}
TRAINED = [name for name in CHOICES if name != "one-step, J = 2"]
BROKEN = "loss not a number"
FALLBACKS = {
    "one-step instead": r"(\d+) of \d+ tasks have not reached",
    "dense instead": r"(\d+) of \d+ tasks are not at a strict",
}


@dataclass(frozen=True)
class Case:
    """Embedded tasks of one size."""

    name: str
    support: Support

    def adapted(self, embeddings: Tensor, choice: tuple[Gradient, int]) -> tuple[Tensor, Tensor]:
        """Prototypes and log class prior, which are what meta-training differentiates."""
        support, (gradient, steps) = replace(self.support, embeddings=embeddings), choice
        fitted = em.class_parameters(iterate(support, PRIOR, steps=steps, gradient=gradient), support, PRIOR)
        return fitted.prototypes, fitted.log_class_prior


class LiveBytes(TorchDispatchMode):
    """Count the bytes of living tensors that operations inside created, without their scratch space."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage().data_ptr(): 0 for tensor in given}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage.data_ptr() not in self.sizes:
                self.sizes[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, self.now)
        return result

    @property
    def now(self) -> int:
        """Bytes alive."""
        return sum(self.sizes.values())


@contextmanager
def counted_fallbacks(counts: Counter[str]) -> Iterator[None]:
    """Adds to `counts` how many tasks fell back on another gradient inside; any other warning is shown."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        matches = {name: re.match(pattern, str(warning.message)) for name, pattern in FALLBACKS.items()}
        counts.update({name: int(match[1]) for name, match in matches.items() if match})
        if not any(matches.values()):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def simulated(name: str, tasks: int, truth: Tensor, ways: int, annotators: int) -> Case:
    """Draw tasks in an ideal space: unit noise around centres at distances near 5, 64 dimensions, float32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(tasks, ways, 64, generator=generator) * 5 / 128**0.5
    confusion = draw_confusion(Mixture(), tasks, annotators, ways, generator)
    labels = annotate(truth.expand(tasks, -1), confusion, generator)
    embeddings = centres[:, truth] + torch.randn(tasks, len(truth), 64, generator=generator)
    return Case(name, Support(embeddings, DenseVotes.from_labels(labels, ways)))


def cases(network: nn.Module, source: EpisodeSource) -> list[Case]:
    """Digits as a trained network sees them, and two simulated sizes."""
    episodes = draw_episodes(source, SHAPE, Mixture(), 64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        (embeddings,) = embed(network, source.inputs(episodes.support))
    return [
        Case("64 tasks, digits, 3-way 5-shot, R = 5", episodes.noisy_support(embeddings)),
        simulated("64 tasks, 4-way 5-shot, R = 5", 64, torch.arange(20) // 5, 4, 5),
        simulated("4 tasks, 8-way, 100 items, R = 20", 4, torch.arange(100) % 8, 8, 20),
    ]


def time_table(network: nn.Module, source: EpisodeSource, repeats: int) -> pd.DataFrame:
    """Median milliseconds; every gradient trains its own copy of the network, on the same episodes."""
    fallbacks: dict[str, Counter[str]] = {name: Counter() for name in CHOICES}
    columns: dict[str, dict[str, float]] = {}

    def training_step(name: str) -> Callable[[], None]:
        own = copy.deepcopy(network)
        optimizer, chance = torch.optim.Adam(own.parameters(), 1e-3), torch.Generator().manual_seed(0)
        method = Method(gradient=CHOICES[name][0], steps=CHOICES[name][1])

        def step() -> None:
            with counted_fallbacks(fallbacks[name]):
                loss = meta_loss(own, source, draw_episodes(source, SHAPE, Mixture(), 64, chance), method)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return step

    def adaptation(case: Case, name: str) -> Callable[[], None]:
        def adapt() -> None:
            embeddings = case.support.embeddings.clone().requires_grad_()
            with counted_fallbacks(fallbacks[name]):
                prototypes, log_class_prior = case.adapted(embeddings, CHOICES[name])
                (prototypes.square().sum() + log_class_prior.sum()).backward()

        return adapt

    columns["training step, digits, 64 tasks"] = interleaved(
        {name: training_step(name) for name in CHOICES}, repeats, "cpu"
    )
    for case in cases(network, source):
        columns[case.name] = interleaved({name: adaptation(case, name) for name in CHOICES}, repeats, "cpu")
    table = pd.DataFrame(columns).round(2)
    return pd.concat([table, pd.DataFrame(fallbacks, index=list(FALLBACKS)).T.fillna(0).astype(int)], axis=1)


def memory_table(case: Case) -> pd.DataFrame:
    """KiB per task, without the embeddings and votes that are given."""
    rows = {
        name: {key: value / 1024 / len(case.support.embeddings) for key, value in memory(case, name).items()}
        for name in CHOICES
    }
    return pd.DataFrame(rows).T.round(1)


def memory(case: Case, name: str) -> dict[str, float]:
    """Return the bytes saved by the graph, alive after adapting, and the peaks of both phases.

    Saved bytes are those of distinct storages; alive ones include closures.
    """
    embeddings = case.support.embeddings.clone().requires_grad_()
    given = [embeddings, cast(DenseVotes, case.support.votes).matrix]
    saved = {tensor.untyped_storage().data_ptr(): 0 for tensor in given}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    fallbacks: Counter[str] = Counter()
    with counted_fallbacks(fallbacks):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            parameters = case.adapted(embeddings, CHOICES[name])
        del parameters
        gc.collect()
        with LiveBytes(given) as live:
            parameters = case.adapted(embeddings, CHOICES[name])
            held, forward = live.now, live.peak
            torch.autograd.grad(parameters, embeddings, tuple(map(torch.ones_like, parameters)))
    return {
        "saved by the graph": sum(saved.values()),
        "held after adapting": held,
        "peak, adapting": forward,
        "peak, with gradient": live.peak,
    }


@dataclass(frozen=True)
class Directions:
    """Gradients of one loss in the embeddings of the support items, a row per task, and in all weights."""

    embeddings: Tensor
    weights: Tensor


def directions(
    network: nn.Module, source: EpisodeSource, shape: EpisodeShape, tasks: int
) -> tuple[dict[str, Directions], Tensor, str]:
    """Return the gradients in float64, which tasks are at a maximum before the last of `STEPS`, a summary.

    "last M step, J = ..." holds the responsibilities constant: a gradient that does not go through EM at all.
    """
    episodes = draw_episodes(source, shape, Mixture(), tasks, torch.Generator().manual_seed(1))
    network, fallbacks = copy.deepcopy(network).double(), Counter[str]()
    support, queries = embed(
        network, source.inputs(episodes.support).double(), source.inputs(episodes.query).double()
    )
    task = episodes.noisy_support(support)

    def gradients(responsibilities: Tensor) -> Directions:
        fitted = em.class_parameters(responsibilities, task, PRIOR)
        loss = -query_elbo(queries, episodes.query_truth, fitted)
        both = torch.autograd.grad(loss, [support, *network.parameters()], retain_graph=True)
        return Directions(both[0].flatten(1), torch.cat([part.flatten() for part in both[1:]]))

    result = {}
    for name, (gradient, steps) in CHOICES.items():
        with counted_fallbacks(fallbacks if name == DENSE else Counter()):
            responsibilities = iterate(task, PRIOR, steps=steps, gradient=gradient)
            result[name] = gradients(responsibilities)
        if gradient == "unrolled":
            result[f"last M step, J = {steps}"] = gradients(responsibilities.detach())
    reached = converge(task, PRIOR, steps=STEPS[-1] - 1)
    saddle = reached.converged & (em_jacobian(reached.value, task, PRIOR).largest_eigenvalue() >= 1)
    settled = reached.converged & ~saddle
    fell = dict(fallbacks) or "none"
    counts = f"{int(settled.sum())} tasks at a maximum, {int(saddle.sum())} at a saddle"
    words = f"before J = {STEPS[-1]}: {counts}; {DENSE}, fell back: {fell}"
    return result, settled, words


def direction_table(gradients: Mapping[str, Directions], settled: Tensor) -> pd.DataFrame:
    """Cosines of each gradient with another, over tasks: median, lowest tenth, lowest, share above 0.99.

    "length ratio" is the median of the gradient's length over the other's, "longest" its greatest length over
    its median length, and "network" the cosine of the gradients with respect to all weights, summed over the
    tasks.
    """
    everything = torch.ones_like(settled)
    pairs = []
    for steps in STEPS:
        pairs += [
            (f"{kind}, J = {steps}", f"unrolled, J = {steps}", everything)
            for kind in ("last M step", "one-step")
        ]
    pairs += [(name, DENSE, everything) for name in (*(f"unrolled, J = {steps}" for steps in STEPS), NEUMANN)]
    pairs += [(f"unrolled, J = {STEPS[-1]}", DENSE, settled)]
    rows = []
    for name, other, chosen in pairs:
        first, second = gradients[name].embeddings[chosen], gradients[other].embeddings[chosen]
        cosines = torch.cosine_similarity(first, second, eps=0.0).numpy()
        low, middle = np.quantile(cosines, [0.1, 0.5])
        spread = {
            "median": middle,
            "lowest tenth": low,
            "lowest": cosines.min(),
            "above 0.99": np.mean(cosines > 0.99),
        }
        ratio = float((first.norm(dim=1) / second.norm(dim=1)).median())
        longest = float(first.norm(dim=1).max() / first.norm(dim=1).median())
        whole = float(torch.cosine_similarity(gradients[name].weights, gradients[other].weights, dim=0))
        title = {
            "gradient": name,
            "against": other,
            "tasks": "all" if chosen is everything else "at a maximum",
        }
        rows.append(
            {
                **title,
                **spread,
                "length ratio": ratio,
                "longest": f"{longest:.3g}",
                "network": whole if chosen is everything else np.nan,
            }
        )
    return pd.DataFrame(rows).set_index(["gradient", "against", "tasks"]).round(4)


def training_settings(split: int, name: str, quick: bool) -> MetaTraining:
    """The demonstration's settings with one gradient; a short training where the run is a check."""
    out = (
        Path("outputs")
        / ("gradients-quick" if quick else "gradients")
        / f"split-{split}"
        / re.sub("[^a-zA-Z0-9]+", "-", name)
    )
    settings = demo_settings(out)
    gradient, steps = CHOICES[name]
    short = {"steps": 20, "validate_every": 10, "validation_tasks": 5} if quick else {"steps": 500}
    return settings.model_copy(
        update={
            "seed": split,
            "adaptation": settings.adaptation.model_copy(update={"gradient": gradient, "steps": steps}),
            "training": settings.training.model_copy(update=short),
            "target": settings.target.model_copy(update={"tasks": 5} if quick else {}),
        }
    )


def train(settings: MetaTraining) -> dict[str, int]:
    """Train if needed; return the tasks that fell back since the last start, and whether the loss broke.

    At a tie, a saddle of the posterior, EM's Jacobian has eigenvalues above 1, and an unrolled gradient grows
    like their J-th power: it can pass the largest number. Such a training has no network.
    """
    note = settings.out / "training.json"
    if not note.exists():
        counts: Counter[str] = Counter(dict.fromkeys([*FALLBACKS, BROKEN], 0))
        with counted_fallbacks(counts):
            try:
                meta_train(settings, resume=True, progress=False)
            except FloatingPointError:
                counts[BROKEN] += 1
        note.write_text(json.dumps(counts))
    return json.loads(note.read_text())


def target_table(split: int, quick: bool) -> pd.DataFrame:
    """The scores of every network of a split, adapted in three ways."""
    settings = {name: training_settings(split, name, quick) for name in TRAINED}
    methods: dict[str, tuple[nn.Module, Method]] = {}
    for name, own in settings.items():
        if train(own)[BROKEN]:
            continue
        network, method = load_run(own.out).encoder, own.adaptation.method
        methods[f"as in training/{name}"] = network, method
        methods[f"J = 2/{name}"] = network, replace(method, steps=2, gradient="unrolled")
        methods[f"fixed point/{name}"] = network, replace(method, steps=MOST_STEPS, gradient="implicit")
    scores = target_scores(settings[BASE], class_sources(settings[BASE]).target, methods)
    return scores.assign(
        split=split,
        **dict(zip(("adapted", "method"), zip(*scores["method"].str.split("/"), strict=True), strict=True)),
    )


def accuracy_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Return means over target tasks, and differences from unrolled at J = 2 with their 95 % half widths.

    "over tasks" takes tasks as independent and the networks as given; "over splits" is Student's interval of
    the splits' differences. Splits whose training broke are left out of a row, its differences included.
    """
    by_split = scores.pivot_table(index="split", columns="method", values="accuracy")
    rows = {}
    for name in (name for name in TRAINED if name in by_split):
        own = scores.query("method == @name", local_dict={"name": name})
        row: dict[str, object] = {
            "accuracy": f"{own['accuracy'].mean():.4f}",
            "log loss": f"{own['log_loss'].mean():.4f}",
        }
        if name != BASE:
            common = scores.query("split in @splits", local_dict={"splits": set(own["split"])})
            accuracy, loss = (
                paired_difference(common, name, BASE),
                paired_difference(common, name, BASE, "log_loss"),
            )
            splits = (by_split[name] - by_split[BASE]).dropna().to_numpy()
            half = interval(splits, t=True).half_width
            row["accuracy minus J = 2's"] = f"{accuracy['difference']:+.4f}"
            row |= {
                "over tasks": f"±{accuracy['half_width']:.4f}",
                "over splits": f"±{half:.4f}",
                "ahead in": accuracy["ahead"],
            }
            row["log loss minus J = 2's"] = f"{loss['difference']:+.4f} ±{loss['half_width']:.4f}"
        rows[name] = row
    return pd.DataFrame(rows).T.fillna("")


def show(title: str, table: pd.DataFrame) -> None:
    print(f"\n{title}\n{table.to_string()}", flush=True)


def main() -> None:
    if sys.argv[1:] not in ([], ["--quick"]):
        raise SystemExit(f"usage: {sys.argv[0]} [--quick]\n\n{__doc__}")
    quick = sys.argv[1:] == ["--quick"]
    torch.set_num_threads(1)
    splits = range(2 if quick else 5)

    fallbacks: dict[str, Counter[str]] = {name: Counter(networks=0) for name in TRAINED}
    for split in splits:
        for name in TRAINED:
            fallbacks[name].update(train(training_settings(split, name, quick)), networks=1)
        print(f"split {split} is trained", file=sys.stderr, flush=True)

    base = training_settings(0, BASE, quick)
    source = class_sources(base).training
    trained = load_run(base.out).encoder
    show(
        "time: milliseconds, median; tasks that fell back, over all calls",
        time_table(trained, source, 3 if quick else 31),
    )
    for case in cases(trained, source):
        show(f"memory: KiB per task, float32; {case.name}", memory_table(case))

    for state, network in (
        ("untrained", new_network(base, (1, 8, 8), None)),
        (f"trained with {BASE}", trained),
    ):
        for shots in (1, 5):
            tasks = 20 if quick else 200
            by_name, settled, words = directions(network, source, replace(SHAPE, shots=shots), tasks)
            size = f"{tasks} tasks of the digits, 3-way {shots}-shot, R = 5, float64"
            title = f"direction: cosines over {size}; network {state}"
            show(f"{title}\n{words}", direction_table(by_name, settled))

    scores = pd.concat([target_table(split, quick) for split in splits], ignore_index=True)
    tasks, length = (
        scores[["split", "shots", "annotators", "spammers", "task"]].drop_duplicates(),
        base.training.steps,
    )
    for adapted, group in scores.groupby("adapted", sort=False):
        size = f"{len(splits)} splits, {len(tasks)} target tasks, {length} training steps"
        title = f"accuracy: share of queries, {size}; adapted: {adapted}"
        show(title, accuracy_table(group))
    met = {
        name: {**counts, "tasks, if none is lost": counts["networks"] * length * base.episode.tasks}
        for name, counts in fallbacks.items()
    }
    show("training: tasks that fell back on another gradient, and networks lost", pd.DataFrame(met).T)


if __name__ == "__main__":
    main()

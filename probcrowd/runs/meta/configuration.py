"""The settings of a meta-training run: one typed record, `MetaTraining`, and what is built from it.

Every default here is the demo's or the paper's; `probcrowd meta-train` reads the record from TOML.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from probcrowd.inference.meta.adaptation import Method
from probcrowd.inference.meta.maml import GradientSteps
from probcrowd.models.encoders import MLP, Conv4
from probcrowd.models.meta.learned_prior import Learned, LearnedPrior
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.annotators import Mixture, RandomMixture
from probcrowd.simulate.episodes import EpisodeShape
from probcrowd.storage.settings import Settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Classes(Settings):
    """How many classes are for training, validation and as targets; `augment` warps of each source class train as further classes."""

    train: Positive = 4
    validation: Positive = 3
    target: Positive = 3
    augment: Annotated[int, Field(ge=0)] = 0


class Encoder(Settings):
    """The network; "own" is one that is passed from Python. `hidden` and `dimension` are the MLP's, `channels` the convolutional network's."""

    kind: Literal["mlp", "conv4", "own"] = "mlp"
    hidden: tuple[Positive, ...] = (256, 256)
    dimension: Positive = 64
    channels: Positive = 64


class Annotators(Settings):
    """Shares of the kinds of simulated annotators, and the probability that one is asked about an item.

    random: every training task has other shares, around these, and another probability, between `observed` and 1.
    """

    expert: Share = 0.1
    hammer: Share = 0.7
    spammer: Share = 0.2
    flipper: Share = 0.0
    class_spammer: Share = 0.0
    observed: Annotated[float, Field(gt=0, le=1)] = 1.0
    random: bool = False

    @property
    def drawn(self) -> Mixture | RandomMixture:
        """What meta-training draws annotators from."""
        return RandomMixture(self.mixture, self.observed) if self.random else self.mixture

    @property
    def mixture(self) -> Mixture:
        """The shares as a record of `probcrowd.simulate.annotators`."""
        return Mixture(self.expert, self.hammer, self.spammer, self.flipper, self.class_spammer)


class Episode(Settings):
    """The size of episodes; of `shots` and of `annotators` each training step draws one value for all of its episodes."""

    ways: Annotated[int, Field(gt=1)] = 3
    shots: tuple[Positive, ...] = Field(default=(1, 3, 5), min_length=1)
    annotators: tuple[Positive, ...] = Field(default=(3, 5, 7), min_length=1)
    queries: Positive = 10
    tasks: Positive = 16


class Adaptation(Settings):
    """How a task is adapted to, by prototypes or by gradient steps of `rate` (`probcrowd.inference.meta.maml`): see `probcrowd.inference.meta.adaptation.Method` and `probcrowd.models.meta.prototype.Prior`.

    With an implicit gradient `steps` is the most EM steps that a task may take to its fixed point: allow 100 or more.
    """

    learner: Literal["prototypes", "maml"] = "prototypes"
    labels: Literal["joint", "dawid-skene", "majority-vote"] = "joint"
    steps: Positive = 2
    gradient: Literal["unrolled", "implicit", "implicit-neumann", "one-step"] = "unrolled"
    pseudo_annotators: bool = True
    precision: Number = 0.1
    class_count: Number = 10.0
    label_count: Number = 0.5
    accuracy: Annotated[float, Field(gt=0, lt=1)] | None = None
    inference: Literal["map", "variational"] = "map"
    population: bool = False
    spread: bool = True
    learned: tuple[Learned, ...] = ()
    clean_share: Share = 0.0
    separate: bool = False
    tie_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    rate: Number = 0.1

    @model_validator(mode="after")
    def _meaningful(self) -> "Adaptation":
        if self.separate and not self.learned:
            raise ValueError(
                "separate = true leaves nothing to learn from annotators: name what is learned beside the network in `learned`"
            )
        if "accuracy" in self.learned and self.accuracy is None:
            raise ValueError("an accuracy to learn needs one to start from: give accuracy")
        if "population" in self.learned and not self.population:
            raise ValueError("a population to learn needs one to start from: set population = true")
        _ = self.method  # which refuses what has no meaning
        return self

    @model_validator(mode="after")
    def _enough_steps(self) -> "Adaptation":
        if self.gradient.startswith("implicit") and self.steps < 20:
            raise ValueError(
                f"gradient = {self.gradient!r} iterates to a fixed point and needs steps = 100 or more, got {self.steps}"
            )
        return self

    @property
    def method(self) -> Method:
        """The same as a record of `probcrowd.inference.meta.adaptation`."""
        prior = Prior(self.precision, self.class_count, self.label_count, self.accuracy)
        return Method(
            self.labels,
            self.steps,
            self.gradient,
            self.pseudo_annotators,
            prior,
            inference=self.inference,
            population=Population.usual() if self.population else None,
            spread=self.spread,
            clean_share=self.clean_share,
            separate=self.separate,
            tie_noise=self.tie_noise,
        )

    @property
    def gradient_steps(self) -> GradientSteps:
        """The same as a record of `probcrowd.inference.meta.maml`, for majority labels."""
        return GradientSteps(steps=self.steps, rate=self.rate, prior=self.method.prior)

    def network(self, encoder: nn.Module, input_shape: tuple[int, ...], ways: int) -> nn.Module:
        """The encoder with what is learned beside it: parts of the prior, or a last layer of as many classes as episodes have."""
        if self.learner == "maml":
            with torch.no_grad():
                width = deepcopy(encoder).eval()(torch.zeros(1, *input_shape)).shape[-1]
            return nn.Sequential(encoder, nn.Linear(width, ways))
        method = self.method
        return (
            LearnedPrior(encoder, self.learned, method.prior, method.population) if self.learned else encoder
        )


class Training(Settings):
    """Adam on equation (10); every `validate_every` steps `validation_tasks` tasks of each size are scored, and training stops when
    `patience` validations in a row brought nothing better. The best network is kept."""

    steps: Positive = 2000
    learning_rate: Number = 1e-3
    validate_every: Positive = 100
    validation_tasks: Positive = 50
    patience: Positive = 10
    checkpoint_every: Positive = 100


class Target(Settings):
    """The target tasks that `probcrowd evaluate` draws: `tasks` for each number of shots, of annotators and each share of spammers."""

    tasks: Positive = 50
    shots: tuple[Positive, ...] = Field(default=(1, 3, 5), min_length=1)
    annotators: tuple[Positive, ...] = Field(default=(3, 5, 7), min_length=1)
    spammers: tuple[Annotated[float, Field(ge=0, le=0.9)], ...] = Field(
        default=(0.1, 0.2, 0.3, 0.4), min_length=1
    )

    @property
    def mixtures(self) -> list[Mixture]:
        """One tenth experts, the given share of spammers, hammers otherwise, as in the paper."""
        return [Mixture(0.1, 0.9 - share, share) for share in self.spammers]


class MetaTraining(Settings):
    """Everything that a run depends on, its folder `out` included."""

    out: Path = Path("outputs/digits")
    data: str = "digits"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    classes: Classes = Classes()
    encoder: Encoder = Encoder()
    episode: Episode = Episode()
    annotators: Annotators = Annotators()
    adaptation: Adaptation = Adaptation()
    training: Training = Training()
    target: Target = Target()

    def shape(self, shots: int, annotators: int) -> EpisodeShape:
        """The shape of this run's episodes with so many shots and annotators."""
        return EpisodeShape(
            self.episode.ways, shots, self.episode.queries, annotators, self.annotators.observed
        )


def build_encoder(settings: Encoder, input_shape: tuple[int, ...]) -> nn.Module:
    """The network for inputs of this shape; its weights come from torch's global generator, which the caller seeds.

    Raises:
        ValueError: a convolutional network for inputs that are not images of a sufficient size, or `kind` is "own".
    """
    if settings.kind == "own":
        raise ValueError(
            "encoder.kind is 'own': such a run needs its network passed as `encoder`, from Python"
        )
    if settings.kind == "mlp":
        return MLP(math.prod(input_shape), settings.hidden, settings.dimension)
    if len(input_shape) != 3:
        raise ValueError(
            f"encoder.kind is 'conv4', but inputs have shape {input_shape}, not (channels, height, width): use 'mlp'"
        )
    return Conv4(input_shape[0], min(input_shape[1:]), settings.channels)

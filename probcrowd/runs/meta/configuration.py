"""The settings of a meta-training run, `MetaTraining`, read from TOML by `probcrowd meta-train`.

Every default is that of the demonstration or of the paper (Kumagai et al. 2025).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from probcrowd.inference.meta.adaptation import Method
from probcrowd.inference.meta.fit import Gradient
from probcrowd.inference.meta.label_aggregation import Aggregation
from probcrowd.inference.meta.maml import GradientSteps
from probcrowd.models.meta.learned_prior import Learned
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior
from probcrowd.simulate.annotators import Mixture, RandomMixture
from probcrowd.simulate.episodes import EpisodeShape
from probcrowd.storage.settings import Settings

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Hyphens = BeforeValidator(lambda name: name.replace("_", "-") if isinstance(name, str) else name)
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LEAST_IMPLICIT_STEPS = 20  # below this, EM rarely reaches its fixed point


class Classes(Settings):
    """Numbers of classes for training, validation and target tasks.

    augment: warps of each training class, which are further classes.
    """

    train: Positive = 4
    validation: Positive = 3
    target: Positive = 3
    augment: Annotated[int, Field(ge=0)] = 0


class Encoder(Settings):
    """The network; "own" is passed from Python. `hidden`, `dimension`: of the MLP; `channels`: of Conv4."""

    kind: Literal["mlp", "conv4", "own"] = "mlp"
    hidden: tuple[Positive, ...] = (256, 256)
    dimension: Positive = 64
    channels: Positive = 64


class Annotators(Settings):
    """Shares of the types of simulated annotators, and the probability `observed` that one labels an item.

    random: every training task draws its shares around these, and its probability between `observed` and 1.
    """

    expert: Share = 0.1
    hammer: Share = 0.7
    spammer: Share = 0.2
    flipper: Share = 0.0
    class_spammer: Share = 0.0
    observed: Annotated[float, Field(gt=0, le=1)] = 1.0
    random: bool = False

    @property
    def training_mixture(self) -> Mixture | RandomMixture:
        """The mixture from which meta-training draws annotators."""
        return RandomMixture(self.mixture, self.observed) if self.random else self.mixture

    @property
    def mixture(self) -> Mixture:
        """The shares as `probcrowd.simulate.annotators.Mixture`."""
        return Mixture(self.expert, self.hammer, self.spammer, self.flipper, self.class_spammer)


class Episode(Settings):
    """The size of episodes.

    Each training step draws one value of `shots` and one of `annotators` for all of its `tasks` episodes.
    """

    ways: Annotated[int, Field(gt=1)] = 3
    shots: tuple[Positive, ...] = Field(default=(1, 3, 5), min_length=1)
    annotators: tuple[Positive, ...] = Field(default=(3, 5, 7), min_length=1)
    queries: Positive = 10
    tasks: Positive = 16


class Adaptation(Settings):
    """How to adapt to a task: by prototypes, or with MAML by `steps` gradient steps of `rate`.

    The other fields are those of `probcrowd.inference.meta.adaptation.Method` and, from precision to
    accuracy, of `probcrowd.models.meta.prototype.Prior`. learned: what is learned beside the network. With an
    implicit gradient, `steps` limits the EM steps to the fixed point: allow 100 or more.
    """

    learner: Literal["prototypes", "maml"] = "prototypes"
    labels: Annotated[Literal["joint"] | Aggregation, Hyphens] = "joint"
    steps: Positive = 2
    gradient: Annotated[Gradient, Hyphens] = "unrolled"
    pseudo_annotators: bool = True
    precision: Number = 0.1
    class_count: Number = 10.0
    label_count: Number = 0.5
    accuracy: Annotated[float, Field(gt=0, lt=1)] | None = None
    inference: Literal["map", "variational"] = "map"
    population: bool = False
    average_prototypes: bool = True
    learned: tuple[Learned, ...] = ()
    clean_share: Share = 0.0
    separate: bool = False
    tie_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    rate: Number = 0.1

    @model_validator(mode="after")
    def _check(self) -> "Adaptation":
        if self.separate and not self.learned:
            raise ValueError(
                "separate = true leaves nothing to learn from annotators: name what is learned beside the "
                "network in `learned`"
            )
        if "accuracy" in self.learned and self.accuracy is None:
            raise ValueError("learning the accuracy needs an initial value: set accuracy")
        if "population" in self.learned and not self.population:
            raise ValueError("learning the population needs an initial one: set population = true")
        if self.gradient.startswith("implicit") and self.steps < LEAST_IMPLICIT_STEPS:
            raise ValueError(
                f"gradient = {self.gradient!r} iterates to a fixed point and needs steps = 100 or more, "
                f"got {self.steps}"
            )
        _ = self.method  # raises if the combination has no meaning
        return self

    @property
    def method(self) -> Method:
        """The adaptation of prototypes."""
        return Method(
            labels=self.labels,
            steps=self.steps,
            gradient=self.gradient,
            pseudo_annotators=self.pseudo_annotators,
            prior=Prior(self.precision, self.class_count, self.label_count, self.accuracy),
            inference=self.inference,
            population=Population.default() if self.population else None,
            average_prototypes=self.average_prototypes,
            clean_share=self.clean_share,
            separate=self.separate,
            tie_noise=self.tie_noise,
        )

    @property
    def training_method(self) -> Method | GradientSteps:
        """The adaptation of the chosen learner."""
        if self.learner == "prototypes":
            return self.method
        return GradientSteps(steps=self.steps, rate=self.rate, prior=self.method.prior)


class Training(Settings):
    """Adam on equation (10), with early stopping.

    Every `validate_every` steps, `validation_tasks` tasks of each size are scored; training stops after
    `patience` validations without an improvement. The best network is the result.
    """

    steps: Positive = 2000
    learning_rate: Number = 1e-3
    validate_every: Positive = 100
    validation_tasks: Positive = 50
    patience: Positive = 10
    checkpoint_every: Positive = 100


class Target(Settings):
    """The target tasks of `probcrowd evaluate`.

    There are `tasks` for each number of shots, number of annotators and share of spammers.
    """

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
    """All settings of a run, with its folder `out`."""

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
        """Return the shape of this run's episodes with these numbers of shots and annotators."""
        return EpisodeShape(
            self.episode.ways, shots, self.episode.queries, annotators, self.annotators.observed
        )

"""An encoder with the numbers learned beside it by the same loss: the tasks' prior, the embeddings' scale."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from probcrowd.data.validation import find_name
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior

Learned = Literal["precision", "class_count", "label_count", "accuracy", "scale", "temperature", "population"]
COUNTS = ("precision", "class_count", "label_count")
# Adam moves every parameter by about the learning rate per step; logarithms have further to go than weights
STEP_SIZE = 10.0


class LearnedPrior(nn.Module):
    """`encoder` with a learned scale of its embeddings and learned parts of a prior, those in `names`.

    They start at the given values. Positive numbers are learned as logarithms, shares and skills as logits.
    `initial` is the prior before training. The scale is
    that of the embeddings in units of the standard deviation within a class: as the model's covariance is the
    identity, the scale weighs the embeddings against the annotations.

    Raises:
        ValueError: unknown names, or a learned accuracy or population without an initial one.
    """

    def __init__(
        self, encoder: nn.Module, names: Collection[str], prior: Prior, population: Population | None = None
    ) -> None:
        super().__init__()
        names = [find_name("learned number", name, get_args(Learned)) for name in names]
        if "accuracy" in names and prior.accuracy is None:
            raise ValueError("learning the accuracy needs an initial value: set adaptation.accuracy")
        if "population" in names and population is None:
            raise ValueError("learning the population needs an initial one: set adaptation.population = true")
        self.encoder, self.initial, self._population = encoder, prior, population
        values = {
            name: torch.tensor(math.log(float(getattr(prior, name)))) for name in COUNTS if name in names
        }
        if "accuracy" in names and prior.accuracy is not None:
            values["accuracy"] = torch.logit(torch.tensor(float(prior.accuracy)))
        values |= {name: torch.tensor(0.0) for name in ("scale", "temperature") if name in names}
        if "population" in names and population is not None:
            values["share"] = population.log_share.clone()
            values["skill"] = torch.logit(population.skill)
            values["strength"] = population.strength.log()
        self.learned = nn.ParameterDict({name: nn.Parameter(v / STEP_SIZE) for name, v in values.items()})

    def forward(self, inputs: Tensor) -> Tensor:
        embeddings = self.encoder(inputs)
        return embeddings * self.scale if "scale" in self.learned else embeddings

    @property
    def scale(self) -> Tensor | float:
        """The factor of the embeddings."""
        return self._value("scale").exp() if "scale" in self.learned else 1.0

    @property
    def temperature(self) -> Tensor | float:
        """The divisor of query scores: above 1 if fitted parameters are less certain than they seem."""
        return self._value("temperature").exp() if "temperature" in self.learned else 1.0

    @property
    def prior(self) -> Prior:
        """The prior, its learned parts as tensors with a gradient."""
        learned = {name: self._value(name).exp() for name in COUNTS if name in self.learned}
        if "accuracy" in self.learned:
            learned["accuracy"] = torch.sigmoid(self._value("accuracy"))
        return replace(self.initial, **learned)

    @property
    def population(self) -> Population | None:
        """The population, learned or initial."""
        if "share" not in self.learned:
            return self._population
        return Population(
            self._value("share"), torch.sigmoid(self._value("skill")), self._value("strength").exp()
        )

    def _value(self, name: str) -> Tensor:
        return STEP_SIZE * self.learned[name]

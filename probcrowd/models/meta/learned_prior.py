"""An encoder with what is learned beside it: the prior of the tasks and the scale of the embeddings, trained by the same loss."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from probcrowd.data.options import check_option
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior

Learned = Literal["precision", "class_count", "label_count", "accuracy", "scale", "temperature", "population"]
SPEED = 10.0  # Adam moves every number by the learning rate a step, and logarithms have further to go than weights


class LearnedPrior(nn.Module):
    """`encoder`, whose embeddings are multiplied by a learned scale, and the parts of a prior named in `names`, started at those given.

    Positive numbers are learned as logarithms, shares and skills as logits. `given` is the prior as it was. The scale is that of the embeddings in units of the standard
    deviation within a class: with a unit covariance it says how much an embedding tells beside what annotators say.

    Raises:
        ValueError: unknown names, or an accuracy or a population to learn that is not given.
    """

    def __init__(
        self, encoder: nn.Module, names: Collection[str], prior: Prior, population: Population | None = None
    ) -> None:
        super().__init__()
        for name in names:
            check_option("learned", name, get_args(Learned))
        self.encoder, self.given, self._population = encoder, prior, population
        starts: dict[str, Tensor] = {}
        for name in ("precision", "class_count", "label_count"):
            if name in names:
                starts[name] = torch.tensor(math.log(float(getattr(prior, name))))
        if "accuracy" in names:
            if prior.accuracy is None:
                raise ValueError("an accuracy to learn needs one to start from: give adaptation.accuracy")
            starts["accuracy"] = torch.logit(torch.tensor(float(prior.accuracy)))
        starts |= {name: torch.tensor(0.0) for name in ("scale", "temperature") if name in names}
        if "population" in names:
            if population is None:
                raise ValueError(
                    "a population to learn needs one to start from: set adaptation.population = true"
                )
            starts |= {
                "share": population.log_share.clone(),
                "skill": torch.logit(population.skill),
                "strength": population.strength.log(),
            }
        self.learned = nn.ParameterDict({name: nn.Parameter(start / SPEED) for name, start in starts.items()})

    def forward(self, inputs: Tensor) -> Tensor:
        embeddings = self.encoder(inputs)
        return embeddings * self.scale if "scale" in self.learned else embeddings

    @property
    def scale(self) -> Tensor | float:
        """What embeddings are multiplied by."""
        return self._value("scale").exp() if "scale" in self.learned else 1.0

    @property
    def temperature(self) -> Tensor | float:
        """What the scores of queries are divided by: above 1 where fitted parameters are less sure than they seem."""
        return self._value("temperature").exp() if "temperature" in self.learned else 1.0

    @property
    def prior(self) -> Prior:
        """The prior with its learned parts, as tensors with a gradient."""
        found = {
            name: self._value(name).exp()
            for name in ("precision", "class_count", "label_count")
            if name in self.learned
        }
        if "accuracy" in self.learned:
            found["accuracy"] = torch.sigmoid(self._value("accuracy"))
        return replace(self.given, **found)

    @property
    def population(self) -> Population | None:
        """The population, learned or as given."""
        if "share" not in self.learned:
            return self._population
        return Population(
            self._value("share"), torch.sigmoid(self._value("skill")), self._value("strength").exp()
        )

    def _value(self, name: str) -> Tensor:
        return SPEED * self.learned[name]

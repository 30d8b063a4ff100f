"""The models of annotation in one table: what each is called, what it takes, and what its sites mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from probcrowd.data.validation import find_name
from probcrowd.models.priors import CoinPrior, DirichletPrior, LogitPrior, SpamPrior

_ROWS, _CLASSES = ("true_class", "label"), {"class_prior": ("true_class",)}
_LOGITS = {
    "mean": ("true_class", "logit"),
    "spread": ("true_class", "logit"),
    "annotator_offset": ("annotator", "true_class", "logit"),
}
_BENT = {"item_spread": ("true_class", "logit"), "item_offset": ("item", "logit")}
_CONFUSION = {"confusion": ("annotator", *_ROWS)}


@dataclass(frozen=True)
class Model:
    """A model of annotation.

    module: declares it in Pyro; module + "_numpyro" does in NumPyro, both under `name`.
    dims: the axes of every site, derived ones included. A site with the axis `true_class` follows when classes are renamed.
    conjugate: whether the Gibbs sampler takes it. features: whether it needs features of the items.
    prior: a default prior for K classes.
    """

    name: str
    module: str
    prior: Callable[[int], Any]
    dims: dict[str, tuple[str, ...]]
    conjugate: bool = False
    features: bool = False

    def exchangeable(self, prior: Any, num_classes: int) -> bool:
        """Whether renaming the classes leaves the posterior as it is, so that draws may be renamed. A coin and MACE name theirs by themselves."""
        if self.features:
            prior = DirichletPrior.of_counts(prior, num_classes)
        return getattr(prior, "exchangeable", False)

    @property
    def pyro(self) -> Callable[..., None]:
        """The declaration in Pyro."""
        return getattr(import_module(f"probcrowd.models.{self.module}"), self.name)

    @property
    def numpyro(self) -> Callable[..., None]:
        """The declaration in NumPyro: (rows, prior), or (embeddings, rows, prior) with features."""
        return getattr(import_module(f"probcrowd.models.{self.module}_numpyro"), self.name)


def _dirichlet(num_classes: int) -> DirichletPrior:
    return DirichletPrior.named("accurate", num_classes)


def _logit(num_classes: int) -> LogitPrior:
    return LogitPrior.named("accurate", num_classes)


def _coin(num_classes: int) -> CoinPrior:
    return CoinPrior.named("accurate", num_classes)


def _prototype(num_classes: int) -> Any:
    from probcrowd.models.meta.prototype import Prior  # brings torch

    return Prior(accuracy=max(0.7, 1 / num_classes))


MODELS = {
    model.name: model
    for model in (
        Model(
            "multinomial",
            "aggregation.confusion",
            _dirichlet,
            _CLASSES | {"confusion": _ROWS},
            conjugate=True,
        ),
        Model("dawid_skene", "aggregation.confusion", _dirichlet, _CLASSES | _CONFUSION, conjugate=True),
        Model(
            "one_coin",
            "aggregation.confusion",
            _coin,
            _CLASSES | {"accuracy": ("annotator",)} | _CONFUSION,
            conjugate=True,
        ),
        Model(
            "mace",
            "aggregation.confusion",
            lambda num_classes: SpamPrior(),
            {"competence": ("annotator",), "spam": ("annotator", "label")} | _CONFUSION,
            conjugate=True,
        ),
        Model("hierarchical_dawid_skene", "aggregation.logistic", _logit, _CLASSES | _LOGITS | _CONFUSION),
        Model(
            "item_difficulty", "aggregation.logistic", _logit, _CLASSES | {"mean": _LOGITS["mean"]} | _BENT
        ),
        Model(
            "logistic_random_effects", "aggregation.logistic", _logit, _CLASSES | _LOGITS | _BENT | _CONFUSION
        ),
        Model(
            "prototype_crowd",
            "meta.prototype",
            _prototype,
            _CLASSES | {"prototype": ("true_class", "dimension")} | _CONFUSION,
            conjugate=True,
            features=True,
        ),
    )
}


def find_model(name: str) -> Model:
    """The model of that name.

    Raises:
        ValueError: there is none.
    """
    return MODELS[find_name("model", name, MODELS)]

"""The record of a model of annotation: everything that sampling, checks, commands and simulators need to know
about it, in one place.

A model of the package is a function in a `*_numpyro.py` file of a folder of `probcrowd.models`, with the same
function in Pyro beside it, and a `Model` in that file's `MODELS`. A model of your own needs the record alone:

>>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
>>> from probcrowd.models.aggregation.observed_numpyro import observe
>>> def shared_accuracy(rows, prior):
...     K = rows.num_classes
...     class_prior = numpyro.sample("class_prior", dist.Dirichlet(jnp.ones(K)))
...     accuracy = numpyro.sample("accuracy", dist.Beta(4, 2))
...     confusion = jnp.where(jnp.eye(K, dtype=bool), accuracy, (1 - accuracy) / (K - 1))
...     confusion = numpyro.deterministic("confusion", confusion)
...     observe(rows, jnp.log(class_prior), jnp.log(confusion)[None], 0 * rows.annotator)
>>> my_model = Model(
...     shared_accuracy,
...     dims={"class_prior": ("true_class",), "accuracy": (), "confusion": ("true_class", "given_label")},
... )
>>> my_model.name
'shared_accuracy'

`sample_posterior(annotations, my_model, seed=0)` then returns a tree that `check_posterior` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from probcrowd.data.validation import find_name
from probcrowd.models.expected_counts import ExpectedCounts

Sites = dict[str, Any]


def _no_prior(num_classes: int) -> None:
    """Stand for the prior of a model that takes no record."""


def _never(prior: Any, num_classes: int) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Model:
    """A model of annotation.

    numpyro: the declaration (rows, prior), or (features, rows, prior); it ends with
        `observed_numpyro.observe`.
    dims: the axes of every site, derived ones included: annotator, item, true_class, given_label, dimension
        (of features), the name of a covariate of groups, or any other name. An axis `true_class` is permuted
        when classes are renamed.
    priors: functions of the number of classes that return a prior record, by name; the first is the default.
    initial: initial values from soft votes and the prior. Without it, sites called class_prior, confusion and
        accuracy start at the votes and other sites at their prior median.
    gibbs: the blocks of the Gibbs sampler (prior, rows), see `gibbs_blocks`; without them the model is
        sampled by NUTS.
    m_step: closed-form M step (expected counts, prior, current sites) of MAP-EM, if any. The E step is the
        same for all models.
    exchangeable: whether renaming the classes leaves the posterior unchanged under a prior, so that draws may
        be renamed.
    annotator_covariates, item_covariates: names of the covariates that the table of annotations must have.
    draw_features: features of items (key, sites, true classes, shape), for models that explain features too.
    item_effect: a site of standard normal effects (item, ...) that leave-one-out terms integrate out.
    standardised: sites whose prior is fixed by construction, so that there is no point in varying it.
    """

    numpyro: Callable[..., None]
    dims: Mapping[str, tuple[str, ...]]
    priors: Mapping[str, Callable[[int], Any]] = field(default_factory=lambda: {"none": _no_prior})
    initial: Callable[[ExpectedCounts, Any], Sites] | None = None
    gibbs: Callable[..., Any] | None = None
    m_step: Callable[[ExpectedCounts, Any, Sites], Sites] | None = None
    exchangeable: Callable[[Any, int], bool] = _never
    annotator_covariates: tuple[str, ...] = ()
    item_covariates: tuple[str, ...] = ()
    draw_features: Callable[..., Any] | None = None
    item_effect: str | None = None
    standardised: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the declaration."""
        return self.numpyro.__name__

    @property
    def features(self) -> bool:
        """Whether the model needs features of the items."""
        return self.draw_features is not None

    @property
    def pyro(self) -> Callable[..., None]:
        """The declaration in Pyro: the same name in the module without `_numpyro`."""
        return getattr(import_module(self.numpyro.__module__.removesuffix("_numpyro")), self.name)

    def prior(self, num_classes: int, choice: Any = None) -> Any:
        """Return the default prior record, the one named by `choice`, or `choice` itself if it is the model's
        kind of record.

        Raises:
            ValueError: the model has no prior of that name.
            TypeError: a record of another model.
        """
        default = next(iter(self.priors.values()))(num_classes)
        if choice is None:
            return default
        if isinstance(choice, str):
            return self.priors[find_name(f"prior of {self.name}", choice, self.priors)](num_classes)
        if not isinstance(choice, type(default)):
            raise TypeError(
                f"the prior of {self.name} is a {type(default).__name__}, got {type(choice).__name__}"
            )
        return choice

r"""Models without features whose confusion rows have priors in closed form, in Pyro; `confusion_numpyro`
declares the same in NumPyro.

    class_prior ~ Dirichlet                    (MACE: uniform, known)
    truth[i]    ~ Categorical(class_prior)                                i item
    label[n]    ~ Categorical(confusion[j[n], truth[i[n]], :])            n annotation, by annotator j

    multinomial   one confusion matrix for all:       confusion[k, :] ~ Dirichlet
    dawid_skene   one per annotator:                  confusion[j, k, :] ~ Dirichlet     Dawid, Skene 1979
    one_coin      right or wrong, whatever the class: confusion[j, k, k] = a_j,  a_j ~ Beta
                                                      confusion[j, k, l] = (1 - a_j) / (K - 1), l not k
    mace          knows, or spams:                    confusion[j, k, l] = t_j [l = k] + (1 - t_j) spam[j, l]
                                                      t_j ~ Beta, spam[j] ~ Dirichlet

      class_prior --> truth (item) --> label (annotation) <-- confusion (annotator, true_class)

Sources: Paun et al. 2018 (multinomial, Dawid-Skene, MACE, with flat priors); Hovy et al. 2013 (MACE: t_j is
the competence; whether one row was spam is summed out here).
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from probcrowd.data.rows import Rows
from probcrowd.models.aggregation.observed import codes, observe
from probcrowd.models.priors import CoinPrior, DirichletPrior, SpamPrior


def multinomial(rows: Rows, prior: DirichletPrior) -> None:
    """Declare one confusion matrix (k, l) that all annotators share."""
    class_prior = sample_class_prior(prior.class_prior)
    with pyro.plate("true_class", rows.num_classes, dim=-1):
        confusion = pyro.sample("confusion", dist.Dirichlet(tensor(prior.confusion)))
    observe(rows, class_prior.log(), confusion.log()[None], torch.zeros_like(codes(rows.annotator)))


def dawid_skene(rows: Rows, prior: DirichletPrior) -> None:
    """Declare a confusion matrix per annotator (j, k, l)."""
    class_prior = sample_class_prior(prior.class_prior)
    with (
        pyro.plate("annotator", rows.num_annotators, dim=-2),
        pyro.plate("true_class", rows.num_classes, dim=-1),
    ):
        confusion = pyro.sample("confusion", dist.Dirichlet(tensor(prior.confusion)))
    observe(rows, class_prior.log(), confusion.log(), codes(rows.annotator))


def one_coin(rows: Rows, prior: CoinPrior) -> None:
    """Declare one accuracy per annotator (j); `confusion` follows from it."""
    class_prior = sample_class_prior(prior.class_prior)
    with pyro.plate("annotator", rows.num_annotators, dim=-1):
        accuracy = pyro.sample("accuracy", dist.Beta(tensor(prior.right), tensor(prior.wrong)))
    wrong = (1 - accuracy)[:, None, None] / max(rows.num_classes - 1, 1)
    identity = torch.eye(rows.num_classes, dtype=accuracy.dtype)
    confusion = pyro.deterministic(
        "confusion", torch.where(identity > 0, accuracy[:, None, None], wrong), event_dim=3
    )
    observe(rows, class_prior.log(), confusion.log(), codes(rows.annotator))


def mace(rows: Rows, prior: SpamPrior) -> None:
    """Declare a competence (j) and spamming habits (j, l) per annotator; classes are equally likely."""
    with pyro.plate("annotator", rows.num_annotators, dim=-1):
        competence = pyro.sample("competence", dist.Beta(tensor(prior.honest), tensor(prior.spamming)))
        spam = pyro.sample("spam", dist.Dirichlet(tensor(np.full(rows.num_classes, prior.answers))))
    identity = torch.eye(rows.num_classes, dtype=competence.dtype)
    mixed = competence[:, None, None] * identity + (1 - competence)[:, None, None] * spam[:, None, :]
    confusion = pyro.deterministic("confusion", mixed, event_dim=3)
    observe(
        rows,
        confusion.new_full((rows.num_classes,), 1 / rows.num_classes).log(),
        confusion.log(),
        codes(rows.annotator),
    )


def sample_class_prior(concentrations: np.ndarray) -> Float[Tensor, " k"]:
    """Declare `class_prior` (k)."""
    return pyro.sample("class_prior", dist.Dirichlet(tensor(concentrations)))


def tensor(values: np.ndarray | float) -> Float[Tensor, "..."]:
    """Numbers of a prior in torch's default precision."""
    return torch.as_tensor(np.array(values), dtype=torch.get_default_dtype())

r"""Closed-form EM as a Pyro guide, and the meta-training objective that it gives.

The guide puts point masses on class prior, prototypes and confusion matrices, at the values that EM reaches
from the support set, and the responsibilities on the true labels. Under it

* `TraceEnum_ELBO` of `prototype_crowd` is the closed-form bound `em.evidence_bound`: the guide's parameters
  maximise the bound given its responsibilities, and any other distribution over the true labels lowers it;
* the ELBO of `query_labels`, which scores only the clean query labels, is minus the meta-training loss
  (equation 10): `query_elbo`.

Everything in the guide is differentiable in the embeddings and in the prior's tensors, so either objective
trains a network through EM.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor

from probcrowd.data.vote_tensors import Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.fit import Gradient, fit
from probcrowd.models.meta.prototype import Prior, predictive_scores


def em_guide(
    support: Support, prior: Prior, *, steps: int = 2, gradient: Gradient = "unrolled"
) -> em.Parameters:
    """Guide `prototype_crowd` by the EM estimate and its responsibilities; return the estimate."""
    parameters = fit(support, prior, steps=steps, gradient=gradient)
    num_classes = parameters.prototypes.shape[1]
    with pyro.plate("task", len(support.embeddings), dim=-3):
        pyro.sample("class_prior", dist.Delta(parameters.class_prior[:, None, None], event_dim=1))
        with pyro.plate("true_class", num_classes, dim=-1):
            pyro.sample("prototype", dist.Delta(parameters.prototypes[:, None], event_dim=1))
            with pyro.plate("annotator", support.votes.num_annotators, dim=-2):
                pyro.sample("confusion", dist.Delta(parameters.confusion, event_dim=1))
        real = torch.ones_like(support.embeddings[..., 0], dtype=torch.bool)
        real = real if support.items is None else support.items
        with (
            pyro.plate("item", support.embeddings.shape[1], dim=-1),
            poutine.mask(mask=cast(torch.BoolTensor, real[:, None])),
        ):
            logits = em.log_joint(parameters, support)[:, None]
            pyro.sample("truth", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
    return parameters


def point_guide(classes: em.ClassParameters) -> None:
    """Guide `query_labels`: point masses at fitted parameters."""
    pyro.sample("class_prior", dist.Delta(classes.class_prior, event_dim=2))
    pyro.sample("prototype", dist.Delta(classes.prototypes, event_dim=3))


def query_labels(
    queries: Float[Tensor, "b q d"],
    truth: Int[Tensor, "b q"],
    num_classes: int,
    variance: Float[Tensor, "b k"] | None = None,
    temperature: Tensor | float = 1.0,
) -> None:
    """Declare what meta-training scores: clean query labels given class prior and prototypes.

    Class prior and prototypes are declared flat, as their prior density belongs to adaptation, not to the
    score. All batch
    dimensions are declared as event dimensions: nothing is subsampled, and plates would cost more than the
    arithmetic.
    """
    tasks, _, dimension = queries.shape
    flat = partial(dist.ImproperUniform, dist.constraints.real, ())  # log density 0 everywhere
    class_prior = pyro.sample("class_prior", flat((tasks, num_classes)))
    prototypes = pyro.sample("prototype", flat((tasks, num_classes, dimension)))
    scores = predictive_scores(queries, prototypes, class_prior.log(), variance) / temperature
    pyro.sample("query_truth", dist.Categorical(logits=scores, validate_args=False).to_event(2), obs=truth)


def query_elbo(
    queries: Float[Tensor, "b q d"],
    truth: Int[Tensor, "b q"],
    classes: em.ClassParameters,
    temperature: Tensor | float = 1.0,
) -> Float[Tensor, ""]:
    """Return the ELBO of `query_labels` under `point_guide`: minus equation (10), summed over tasks.

    `Trace_ELBO` gives the same number: point masses have log density 0, so the model is replayed at their
    values.
    """
    num_classes = classes.prototypes.shape[1]
    with pyro.validation_enabled(False):  # the checks cost as much as the model
        guided = poutine.trace(partial(point_guide, classes)).get_trace()
        model = poutine.replay(
            partial(query_labels, queries, truth, num_classes, classes.variance, temperature), trace=guided
        )
        return cast(Tensor, poutine.trace(model).get_trace().log_prob_sum())

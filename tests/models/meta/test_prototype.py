"""The Pyro model and the EM guide: densities equal the closed form, loops and sums over all labellings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import references as ref
import torch
from meta_tasks import batch_b, close
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from torch import Tensor

from probcrowd.data.vote_tensors import DenseVotes, SparseVotes, Support, Votes
from probcrowd.inference.meta import em
from probcrowd.inference.meta.fit import fit
from probcrowd.inference.meta.guide import em_guide
from probcrowd.models.meta.prototype import Prior, prototype_crowd

PRIORS = [Prior(0.3, 1.0, 0.5), Prior(0.3, 1.0, 0.5, accuracy=0.7)]
ENUMERATION = TraceEnum_ELBO(max_plate_nesting=3)


def random_point(
    tasks: int, num_annotators: int, num_classes: int, dimension: int, seed: int
) -> em.Parameters:
    """Parameters that have nothing to do with any data."""
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(size=(tasks, num_classes, dimension))
    class_prior = rng.dirichlet(np.full(num_classes, 2.0), tasks)
    confusion = rng.dirichlet(np.full(num_classes, 1.5), (tasks, num_annotators, num_classes))
    return em.Parameters(
        torch.from_numpy(prototypes),
        torch.from_numpy(np.log(class_prior)),
        log_confusion=torch.from_numpy(np.log(confusion)),
    )


def sites(parameters: em.Parameters) -> dict[str, Tensor]:
    """Parameters as the values of the model's sites."""
    return {
        "class_prior": parameters.class_prior[:, None, None],
        "prototype": parameters.prototypes[:, None],
        "confusion": parameters.confusion,
    }


def declared(support: Support, prior: Prior, num_classes: int) -> Callable[[], None]:
    return partial(prototype_crowd, support.embeddings, support.votes, prior, num_classes, support.items)


def no_guide() -> None:
    """Nothing is left to guess: the parameters are given and the truths are summed out."""


def sparse(votes: Votes) -> SparseVotes:
    matrix = votes.dense().matrix
    tasks, items, _ = matrix.shape
    cells = matrix.unflatten(2, (votes.num_annotators, votes.num_labels)).nonzero().T
    sizes = {
        "num_tasks": tasks,
        "num_items": items,
        "num_annotators": votes.num_annotators,
        "num_labels": votes.num_labels,
    }
    return SparseVotes.build(*cells, torch.ones(cells.shape[1], dtype=matrix.dtype), **sizes)


def padded(support: Support, more: int) -> Support:
    """Pad a single task with items without votes, whose embeddings would matter if they counted."""
    matrix, items = support.votes.dense().matrix, support.embeddings.shape[1]
    votes = DenseVotes(
        torch.nn.functional.pad(matrix, (0, 0, 0, more)),
        support.votes.num_annotators,
        support.votes.num_labels,
    )
    embeddings = torch.nn.functional.pad(support.embeddings, (0, 0, 0, more), value=3.0)
    return Support(embeddings, votes, (torch.arange(items + more) < items)[None])


def loop_log_posterior(parameters: em.Parameters, task: ref.Task, prior: Prior) -> float:
    """Loop over items and classes, with prior densities from SciPy, which may favour the diagonal."""
    mu, pi, alpha = (
        tensor[0].numpy() for tensor in (parameters.prototypes, parameters.class_prior, parameters.confusion)
    )
    classes, annotators = task.num_classes, alpha.shape[0]
    likelihood = ref.log_posterior(mu, pi, alpha, task) - ref.log_prior(mu, pi, alpha, task)
    value = float(stats.norm(0, task.tau**-0.5).logpdf(mu).sum()) + float(
        stats.dirichlet(np.full(classes, task.b + 1)).logpdf(pi)
    )
    for j, k in itertools.product(range(annotators), range(classes)):
        concentration = np.full(classes, task.c + 1)
        if prior.accuracy is not None:
            accuracy = float(prior.accuracy)
            concentration[k] = (classes - 1) * (task.c + 1) * accuracy / (1 - accuracy)
        value += float(stats.dirichlet(concentration).logpdf(alpha[j, k]))
    return likelihood + value


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", [0, 1])
def test_enumerated_density_equals_the_closed_form_and_the_loop_at_any_parameters(
    prior: Prior, seed: int
) -> None:
    task = ref.task_a(seed)
    parameters = random_point(1, 4, 3, 5, seed)
    truth = loop_log_posterior(parameters, task, prior)
    if prior.accuracy is None:
        mu, pi, alpha = (
            tensor[0].numpy()
            for tensor in (parameters.prototypes, parameters.class_prior, parameters.confusion)
        )
        assert abs(ref.log_posterior(mu, pi, alpha, task) - truth) < 1e-10
    plain = task.support
    for support in (plain, replace(plain, votes=sparse(plain.votes)), padded(plain, 3)):
        model = poutine.condition(declared(support, prior, 3), data=sites(parameters))
        assert abs(-ENUMERATION.loss(model, no_guide) - truth) < 1e-10
        assert abs(float(em.log_posterior(parameters, support, prior)) - truth) < 1e-10


@pytest.mark.parametrize("prior", PRIORS)
def test_a_batch_of_padded_tasks_has_the_sum_of_the_closed_forms(prior: Prior) -> None:
    support, _ = batch_b()
    parameters = random_point(3, 5, 4, 6, 2)
    for votes in (support.votes, sparse(support.votes)):
        some = Support(support.embeddings, votes, support.items)
        model = poutine.condition(declared(some, prior, 4), data=sites(parameters))
        assert (
            abs(-ENUMERATION.loss(model, no_guide) - float(em.log_posterior(parameters, some, prior).sum()))
            < 1e-10
        )


@pytest.mark.parametrize("prior", PRIORS)
def test_sum_over_every_labelling_of_the_items_is_the_density(prior: Prior) -> None:
    task = ref.task_a()
    task = replace(task, embeddings=task.embeddings[:4], labels=task.labels[:4])
    parameters = random_point(1, 4, 3, 5, 3)
    values = []
    for labelling in itertools.product(range(3), repeat=4):
        given = sites(parameters) | {"truth": torch.tensor(labelling)[None, None]}
        trace = poutine.trace(poutine.condition(declared(task.support, prior, 3), data=given)).get_trace()
        values.append(trace.log_prob_sum())
    assert len(values) == 81
    assert (
        abs(
            float(torch.logsumexp(torch.stack(values), 0) - em.log_posterior(parameters, task.support, prior))
        )
        < 1e-10
    )


@pytest.mark.parametrize("prior", PRIORS)
def test_responsibilities_are_the_enumerated_marginals(prior: Prior) -> None:
    support, _ = batch_b()
    support = Support(support.embeddings, support.votes, support.items)
    parameters = random_point(3, 5, 4, 6, 4)
    marginals = ENUMERATION.compute_marginals(
        poutine.condition(declared(support, prior, 4), data=sites(parameters)), no_guide
    )
    assert support.items is not None
    close(marginals["truth"].probs[:, 0] * support.items[..., None], em.e_step(parameters, support), 1e-10)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("steps", [1, 3])
def test_under_the_em_guide_the_elbo_is_the_bound_and_the_log_posterior(prior: Prior, steps: int) -> None:
    support, _ = batch_b()
    everything = support.votes.dense()
    whole = Support(
        support.embeddings[:1], replace(everything, matrix=everything.matrix[:1])
    )  # without padding
    for some in (whole, Support(support.embeddings, everything, support.items)):
        parameters = fit(some, prior, steps=steps)
        elbo = -ENUMERATION.loss(declared(some, prior, 4), partial(em_guide, some, prior, steps=steps))
        assert (
            abs(elbo - float(em.evidence_bound(em.e_step(parameters, some), parameters, some, prior).sum()))
            < 1e-10
        )
        assert abs(elbo - float(em.log_posterior(parameters, some, prior).sum())) < 1e-10


def test_any_other_distribution_over_the_truths_gives_a_lower_elbo() -> None:
    support, prior = batch_b()
    support = Support(support.embeddings, support.votes, support.items)
    parameters = fit(support, prior, steps=2)
    best = float(em.log_posterior(parameters, support, prior).sum())
    assert support.items is not None
    shown = support.items[:, None]
    model = poutine.condition(declared(support, prior, 4), data=sites(parameters))

    def guide(logits: Tensor) -> None:
        with pyro.plate("task", 3, dim=-3), pyro.plate("item", 12, dim=-1), poutine.mask(mask=shown):
            pyro.sample("truth", dist.Categorical(logits=logits[:, None]), infer={"enumerate": "parallel"})

    for seed, size in itertools.product(range(3), (0.0, 0.3, 1.0)):
        noise = size * torch.randn(
            3, 12, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        logits = em.log_joint(parameters, support) + noise
        elbo = -ENUMERATION.loss(model, partial(guide, logits))
        lam = torch.softmax(logits, -1) * support.items[..., None]
        assert abs(elbo - float(em.evidence_bound(lam, parameters, support, prior).sum())) < 1e-10
        assert elbo < best - 1e-3 if size else abs(elbo - best) < 1e-10


def test_the_elbo_trains_embeddings_and_prior_through_em() -> None:
    support, _ = batch_b()
    result = []
    for use_pyro in (True, False):
        embeddings = support.embeddings.clone().requires_grad_()
        numbers = [
            torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 1.0, 0.5, 0.7)
        ]
        prior, free = Prior(*numbers), Support(embeddings, support.votes, support.items)
        if use_pyro:
            loss = ENUMERATION.differentiable_loss(
                declared(free, prior, 4), partial(em_guide, free, prior, steps=3)
            )
        else:
            loss = -em.log_posterior(fit(free, prior, steps=3), free, prior).sum()
        result.append(torch.autograd.grad(loss, [embeddings, *numbers]))
    for left, right in zip(*result, strict=True):
        close(left, right, 1e-10)
        assert float(left.abs().max()) > 1e-3


def test_a_plate_of_annotations_outside_the_plate_of_items_gives_another_density() -> None:
    """The obvious declaration, a plate of rows beside the plate of items, runs but is wrong."""
    task, prior = ref.task_a(), PRIORS[0]
    labels = torch.from_numpy(task.labels)
    item, annotator = (labels >= 0).nonzero().T
    parameters = random_point(1, 4, 3, 5, 5)
    embeddings = torch.from_numpy(task.embeddings)

    def long_format() -> None:
        class_prior = pyro.sample(
            "class_prior", dist.Dirichlet(torch.full((3,), task.b + 1, dtype=torch.float64))
        )
        with pyro.plate("true_class", 3, dim=-1):
            prototype = pyro.sample(
                "prototype", dist.Normal(torch.zeros(5, dtype=torch.float64), task.tau**-0.5).to_event(1)
            )
            with pyro.plate("annotator", 4, dim=-2):
                confusion = pyro.sample(
                    "confusion", dist.Dirichlet(torch.full((3,), task.c + 1, dtype=torch.float64))
                )
        with pyro.plate("item", 12, dim=-1):
            truth = pyro.sample(
                "truth", dist.Categorical(class_prior), infer={"enumerate": "parallel", "expand": True}
            )
            pyro.sample("embedding", dist.Normal(prototype[truth], 1.0).to_event(1), obs=embeddings)
        with pyro.plate("annotation", len(item), dim=-1):
            pyro.sample(
                "label", dist.Categorical(confusion[annotator, truth[..., item]]), obs=labels[item, annotator]
            )

    given = {
        name: value.reshape(value.shape[-dims:])
        for (name, value), dims in zip(sites(parameters).items(), (1, 2, 3), strict=True)
    }
    wrong = -TraceEnum_ELBO(max_plate_nesting=2).loss(poutine.condition(long_format, data=given), no_guide)
    ours = -ENUMERATION.loss(
        poutine.condition(declared(task.support, prior, 3), data=sites(parameters)), no_guide
    )
    truth = loop_log_posterior(parameters, task, prior)
    assert abs(wrong - truth) > 1
    assert abs(ours - truth) < 1e-10


@pytest.mark.parametrize("accuracy", [None, 0.7])
@pytest.mark.parametrize("num_classes", [3, 6])
def test_prior_draws_have_the_declared_shapes_and_moments(num_classes: int, accuracy: float | None) -> None:
    tasks, items, annotators, dimension, prior = 2000, 3, 2, 4, Prior(0.25, 1.5, 0.5, accuracy)
    labels = torch.zeros(tasks, items, annotators, dtype=torch.long)
    embeddings = torch.zeros(tasks, items, dimension, dtype=torch.float64)
    votes = DenseVotes.from_labels(labels, num_classes, torch.float64)
    drawn = poutine.trace(prototype_crowd).get_trace(embeddings, votes, prior, num_classes).nodes
    class_prior, prototype, confusion, truth = (
        drawn[name]["value"] for name in ("class_prior", "prototype", "confusion", "truth")
    )
    assert class_prior.shape == (tasks, 1, 1, num_classes)
    assert prototype.shape == (tasks, 1, num_classes, dimension)
    assert confusion.shape == (tasks, annotators, num_classes, num_classes)
    assert truth.shape == (tasks, 1, items)

    def has_mean(values: Tensor, mean: float) -> None:
        """Values whose first axis is independent tasks have this mean, within four standard errors."""
        by_task = values.double().flatten(1).mean(1)
        assert abs(float(by_task.mean()) - mean) < 4 * float(by_task.std()) / math.sqrt(tasks)

    has_mean(prototype, 0.0)
    has_mean(prototype.square(), 4.0)  # 1 / tau
    share, total = 1 / num_classes, num_classes * 2.5
    has_mean(
        (class_prior[..., 0] - share).square(), share * (1 - share) / (total + 1)
    )  # variance under Dirichlet(2.5, ...)
    has_mean(
        class_prior[:, 0].expand(-1, items, -1).gather(2, truth[:, 0, :, None]),
        (1 - share) / (total + 1) + share,
    )  # E sum p^2
    diagonal, off = confusion.diagonal(dim1=2, dim2=3), confusion[:, :, 0, 1]
    mean = share if accuracy is None else accuracy
    has_mean(diagonal, mean)
    has_mean(off, (1 - mean) / (num_classes - 1))
    concentration = 1.5 * (num_classes if accuracy is None else (num_classes - 1) / (1 - accuracy))
    has_mean((diagonal - mean).square(), mean * (1 - mean) / (concentration + 1))

"""Gradients through EM: unrolled, one-step and implicit; the closed-form Jacobian; the fallbacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import references as ref
import torch
from meta_tasks import batch_b, close
from torch import Tensor

from probcrowd.data.vote_tensors import DenseVotes, SparseVotes, Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.fit import converge, fit
from probcrowd.inference.meta.fixed_point import FixedPoint, implicit_step, one_step, run_to_fixed_point
from probcrowd.inference.meta.jacobian import Jacobian, em_jacobian
from probcrowd.models.meta.prototype import Prior, log_predictive

MANY = 3000


def fixture(seed: int = 0, accuracy: float | None = None) -> tuple[Support, Prior, Tensor, Tensor]:
    """Fixture A with queries."""
    task = ref.task_a(seed)
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(1, 6, 5, generator=generator, dtype=torch.float64)
    truth = torch.randint(3, (1, 6), generator=generator)
    return task.support, Prior(0.3, 1.0, 0.5, accuracy), queries, truth


def query_loss(parameters: em.Parameters, queries: Tensor, truth: Tensor) -> Tensor:
    return (
        -log_predictive(queries, parameters.prototypes, parameters.log_class_prior)
        .gather(-1, truth[..., None])
        .sum()
    )


def gradients(
    support: Support, prior: Prior, queries: Tensor, truth: Tensor, **how: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the query loss after EM and its gradient in the embeddings and in every number of the prior."""
    free = {
        name: torch.tensor(float(getattr(prior, name)), dtype=torch.float64, requires_grad=True)
        for name in ("precision", "class_count", "label_count")
    }
    if prior.accuracy is not None:
        free["accuracy"] = torch.tensor(float(prior.accuracy), dtype=torch.float64, requires_grad=True)
    embeddings = support.embeddings.clone().requires_grad_()
    task = Support(embeddings, support.votes, support.items, support.classes)
    parameters = fit(task, Prior(**free), **how)  # pyright: ignore
    loss = query_loss(parameters, queries, truth)
    loss.backward()
    free["embeddings"] = embeddings
    return loss.detach(), {name: tensor.grad for name, tensor in free.items() if tensor.grad is not None}


def numerical_jacobian(function: Callable[[Tensor], Tensor], at: Tensor, step: float) -> Tensor:
    """Return central differences; rows are outputs, columns inputs."""
    columns = []
    for index in range(at.numel()):
        shift = torch.zeros(at.numel(), dtype=at.dtype)
        shift[index] = step
        columns.append(
            (function(at + shift.view_as(at)) - function(at - shift.view_as(at))).flatten() / (2 * step)
        )
    return torch.stack(columns, 1)


@pytest.mark.parametrize("accuracy", [None, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_unrolled_gradient_passes_gradcheck(steps: int, accuracy: float | None) -> None:
    support, prior, queries, truth = fixture(accuracy=accuracy)

    def loss(embeddings: Tensor, tau: Tensor, b: Tensor, c: Tensor) -> Tensor:
        fitted = fit(Support(embeddings, support.votes), Prior(tau, b, c, prior.accuracy), steps=steps)
        return query_loss(fitted, queries, truth)

    numbers = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 1.0, 0.5)]
    inputs = (support.embeddings.clone().requires_grad_(), *numbers)
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_confusion_prior_matters_from_the_second_step_on() -> None:
    support, prior, queries, truth = fixture()
    _, first = gradients(support, prior, queries, truth, steps=1)
    _, second = gradients(support, prior, queries, truth, steps=2)
    assert "label_count" not in first or float(first["label_count"]) == 0
    assert torch.isfinite(second["label_count"]) and float(second["label_count"]) != 0


@pytest.mark.parametrize("accuracy", [None, 0.7])
def test_closed_form_jacobian_equals_central_differences(accuracy: float | None) -> None:
    support, prior, _, _ = fixture(accuracy=accuracy)
    # Differences need a point off the edges of the simplex
    lam = em.em_step(em.em_step(em.initial_responsibilities(support), support, prior), support, prior)
    at = converge(support, prior, steps=MANY, tolerance=1e-14).value
    closed_form = em_jacobian(at, support, prior).adjoint_matrix()[0].T
    numerical = numerical_jacobian(lambda value: em.em_step(value, support, prior), at, 1e-6)
    close(closed_form, numerical, 1e-8)
    assert (
        float((em_jacobian(lam, support, prior).adjoint_matrix()[0].T - numerical).abs().max()) > 1e-3
    )  # at another point it differs


def test_jacobian_products_equal_the_dense_matrix_for_all_votes_and_masks() -> None:
    support, prior = batch_b()
    lam = em.em_step(em.initial_responsibilities(support), support, prior)
    vector = torch.randn(lam.shape, dtype=torch.float64)
    jacobian = em_jacobian(lam, support, prior)
    dense = (jacobian.adjoint_matrix() @ vector.flatten(1)[..., None])[..., 0].view_as(vector)
    close(jacobian.adjoint_product(vector), dense, 1e-12)
    matrix = support.votes.dense().matrix.unflatten(2, (5, 4))
    task, item, annotator, label = matrix.nonzero().T
    sparse = SparseVotes.build(
        task,
        item,
        annotator,
        label,
        torch.ones(len(task), dtype=torch.float64),
        num_tasks=3,
        num_items=12,
        num_annotators=5,
        num_labels=4,
    )
    jacobian = em_jacobian(lam, Support(support.embeddings, sparse, support.items, support.classes), prior)
    close(jacobian.adjoint_product(vector), dense, 1e-12)


def test_jacobian_is_symmetric_positive_semidefinite_times_softmax() -> None:
    support, prior, _, _ = fixture()
    lam = converge(support, prior, steps=MANY, tolerance=1e-14).value
    jacobian = em_jacobian(lam, support, prior)
    blocks = jacobian.logit_matrix()
    close(blocks, blocks.transpose(2, 3), 1e-12)
    assert float(torch.linalg.eigvalsh(blocks).min()) >= -1e-10
    eigenvalues = torch.linalg.eigvals(jacobian.adjoint_matrix()[0])
    assert float(eigenvalues.imag.abs().max()) <= 1e-10
    assert float(eigenvalues.real.min()) >= -1e-10
    assert float(eigenvalues.real.max()) < 1
    close(jacobian.largest_eigenvalue()[0], eigenvalues.real.max(), 1e-6)


def test_implicit_gradients_equal_central_differences_of_the_fixed_point() -> None:
    """Along four random directions of the embeddings."""
    support, prior, queries, truth = fixture()
    directions = torch.randn(
        4, *support.embeddings.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    directions /= directions.flatten(1).norm(dim=1)[:, None, None, None]

    def converged(embeddings: Tensor) -> float:
        free = Support(embeddings, support.votes)
        fixed_point = converge(free, prior, steps=600, tolerance=1e-15)
        return float(query_loss(em.m_step(fixed_point.value, free, prior), queries, truth))

    numerical = [
        (converged(support.embeddings + 1e-5 * each) - converged(support.embeddings - 1e-5 * each)) / 2e-5
        for each in directions
    ]
    for gradient in ("implicit", "implicit-neumann"):
        _, exact = gradients(support, prior, queries, truth, steps=MANY, gradient=gradient, tolerance=1e-14)
        close(
            (exact["embeddings"] * directions).sum((1, 2, 3)),
            torch.tensor(numerical, dtype=torch.float64),
            1e-8,
        )


@pytest.mark.parametrize("accuracy", [None, 0.7])
def test_implicit_gradients_equal_a_long_unrolling(accuracy: float | None) -> None:
    support, prior = batch_b()
    prior = Prior(prior.precision, prior.class_count, prior.label_count, accuracy)
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
    truth = torch.randint(3, (3, 8), generator=generator)
    loss, unrolled = gradients(support, prior, queries, truth, steps=400)
    for gradient in ("implicit", "implicit-neumann"):
        implicit_loss, implicit = gradients(
            support, prior, queries, truth, steps=MANY, gradient=gradient, tolerance=1e-14
        )
        close(implicit_loss, loss, 1e-10)
        for name, value in unrolled.items():
            close(implicit[name], value, 1e-10)


def test_error_of_the_neumann_series_falls_at_the_rate_of_the_largest_eigenvalue() -> None:
    support, prior, _, _ = fixture()
    lam = converge(support, prior, steps=MANY, tolerance=1e-14).value
    jacobian = em_jacobian(lam, support, prior)
    rate = float(jacobian.largest_eigenvalue(500))
    vector = torch.randn(lam.shape, dtype=torch.float64)
    system = torch.eye(lam.numel(), dtype=torch.float64) - jacobian.adjoint_matrix()[0]
    exact = jacobian.softmax_product(torch.linalg.solve(system, vector.flatten()).view_as(vector))
    total = term = vector
    for terms in range(1, 31):
        term = jacobian.adjoint_product(term)
        total = total + term
        error = (jacobian.softmax_product(total) - exact).norm() / exact.norm()
        assert float(error) <= 2 * rate**terms + 1e-12


def test_one_step_gradient_is_the_series_without_further_terms() -> None:
    support, prior, queries, truth = fixture()
    reached = converge(support, prior, steps=MANY, tolerance=1e-14)

    def run(step: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
        embeddings = support.embeddings.clone().requires_grad_()
        free = Support(embeddings, support.votes)
        lam = step(lambda value: em.em_step(value, free, prior))
        query_loss(em.m_step(lam, free, prior), queries, truth).backward()
        assert embeddings.grad is not None
        return embeddings.grad

    jacobian = em_jacobian(reached.value, support, prior)
    with pytest.warns(
        UserWarning, match="Neumann"
    ):  # no terms: the series is cut off and the guard must speak
        run(lambda step: implicit_step(step, reached, jacobian, dense=False, terms=0))
    by_hand = run(lambda step: one_step(step, reached.value))
    named = gradients(support, prior, queries, truth, steps=400, gradient="one-step")[1]["embeddings"]
    close(by_hand, named, 1e-10)
    exact = gradients(support, prior, queries, truth, steps=MANY, gradient="implicit", tolerance=1e-14)[1][
        "embeddings"
    ]
    assert float((by_hand - exact).abs().max()) > 1e-6  # first order only


def test_more_steps_approach_the_fixed_point() -> None:
    support, prior, queries, truth = fixture()
    losses = {
        steps: float(query_loss(fit(support, prior, steps=steps), queries, truth))
        for steps in (2, 5, 40, 400)
    }
    assert abs(losses[5] - losses[400]) < abs(losses[2] - losses[400])
    assert abs(losses[40] - losses[400]) <= 1e-5


def tied() -> tuple[Support, Prior]:
    votes = torch.tensor([[[0, 0], [1, 1], [2, 3], [3, 2]]])
    embeddings = torch.tensor([[[3.0, 0, 0], [-3, 0, 0], [0, 2, 0], [0, -2, 0]]], dtype=torch.float64)
    return Support(embeddings, DenseVotes.from_labels(votes, 4, torch.float64)), Prior(0.1, 1.0, 0.5)


def test_at_a_tie_the_largest_eigenvalue_exceeds_one_and_tasks_are_solved_densely() -> None:
    support, prior = tied()
    lam = em.initial_responsibilities(support)
    for _ in range(30):
        lam = em.em_step(lam, support, prior)
        lam = torch.cat(
            [lam[..., :2], lam[..., 2:].mean(-1, keepdim=True).expand(1, 4, 2)], -1
        )  # hold the tie against rounding
    jacobian = em_jacobian(lam, support, prior)
    assert abs(float(jacobian.largest_eigenvalue()) - 4.62) <= 0.01
    assert abs(float(torch.linalg.eigvals(jacobian.adjoint_matrix()).real.max()) - 4.62) <= 0.01
    close(lam[..., 2], lam[..., 3], 0)

    reached = FixedPoint(lam, torch.tensor([30]), torch.zeros(1, dtype=torch.float64), torch.tensor([True]))
    solved = {}
    for dense in (True, False):
        embeddings = support.embeddings.clone().requires_grad_()
        free = Support(embeddings, support.votes)
        after = implicit_step(
            lambda value, free=free: em.em_step(value, free, prior), reached, jacobian, dense=dense
        )
        objective = (after * torch.arange(16.0, dtype=torch.float64).view(1, 4, 4)).sum()
        if dense:
            objective.backward()
        else:
            with pytest.warns(
                UserWarning, match=r"1 of 1 tasks are not at a strict maximum.*4\.62.*solved densely"
            ):
                objective.backward()
        assert embeddings.grad is not None
        solved[dense] = embeddings.grad
    close(solved[False], solved[True], 1e-8)


def test_a_task_that_has_not_converged_gets_the_one_step_gradient_and_a_warning() -> None:
    support, prior, queries, truth = fixture()
    with pytest.warns(UserWarning, match="1 of 1 tasks have not reached a fixed point"):
        _, implicit = gradients(support, prior, queries, truth, steps=3, gradient="implicit", tolerance=1e-14)
    # three steps and the attached one
    _, short = gradients(support, prior, queries, truth, steps=5, gradient="one-step")
    close(implicit["embeddings"], short["embeddings"], 1e-12)


def test_converged_tasks_do_not_move() -> None:
    support, prior = batch_b()
    reached = converge(support, prior, steps=MANY, tolerance=1e-6)
    assert bool(reached.converged.all()) and len(set(reached.steps.tolist())) > 1
    fastest = int(reached.steps.argmin())
    again = converge(support, prior, steps=int(reached.steps[fastest]), tolerance=1e-6)
    assert torch.equal(again.value[fastest], reached.value[fastest])


def test_without_a_gradient_there_is_no_graph_and_no_warning() -> None:
    support, prior, _, _ = fixture()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(support, prior, steps=MANY, gradient="implicit-neumann", tolerance=1e-12)
    assert not fitted.prototypes.requires_grad


def test_a_dense_solve_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    support, prior, _, _ = fixture()  # 12 items x 3 classes
    jacobian = em_jacobian(em.initial_responsibilities(support), support, prior)
    monkeypatch.setattr("probcrowd.inference.meta.jacobian.DENSE_LIMIT", 36)
    assert jacobian.adjoint_matrix().shape == (1, 36, 36)
    monkeypatch.setattr("probcrowd.inference.meta.jacobian.DENSE_LIMIT", 35)
    with pytest.raises(ValueError, match="12 items x 3 classes.*implicit-neumann"):
        jacobian.adjoint_matrix()


@pytest.mark.parametrize(
    ("tolerance", "steps", "converged"), [(0.125, 3, True), (0.1249, 3, False), (0.1249, 4, True)]
)
def test_a_task_has_converged_when_no_entry_changes_by_more_than_the_tolerance(
    tolerance: float, steps: int, converged: bool
) -> None:
    """Halving 1 changes it by 1/2, 1/4, 1/8, 1/16."""
    reached = run_to_fixed_point(lambda x: x / 2, torch.ones(1, 1, 1), steps=steps, tolerance=tolerance)
    assert bool(reached.converged) is converged and int(reached.steps) == steps
    assert float(reached.change) == 0.5**steps


def test_a_tolerance_of_zero_means_rounding() -> None:
    support, prior, _, _ = fixture()
    reached = converge(support, prior, steps=MANY, tolerance=0.0)
    assert bool(reached.converged) and float(reached.change) <= 16 * torch.finfo(torch.float64).eps


class Scaled(Jacobian):
    """The Jacobian of x <- factor * x, which no EM step has: its series is a geometric one."""

    factor = 0.5

    def adjoint_product(self, vector: Tensor) -> Tensor:
        return self.factor * vector

    def adjoint_matrix(self) -> Tensor:
        return self.factor * torch.eye(self.responsibilities[0].numel(), dtype=torch.float64)[None]

    def largest_eigenvalue(self, iterations: int = 60) -> Tensor:
        return torch.full((1,), self.factor, dtype=torch.float64)


@pytest.mark.parametrize(
    ("factor", "terms", "valid"),
    # The series is cut off where its last term is above 1e-6: 0.5 ** 19 = 1.9e-6, 0.5 ** 20 = 9.5e-7
    [(0.5, 19, False), (0.5, 20, True), (1.5, 20, False)],
)
def test_a_neumann_series_is_replaced_where_it_is_cut_off_or_diverges(
    factor: float, terms: int, valid: bool
) -> None:
    support, prior, _, _ = fixture()
    shares = em.initial_responsibilities(support)
    jacobian = Scaled(**vars(em_jacobian(shares, support, prior)))
    object.__setattr__(jacobian, "factor", factor)
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    reached = FixedPoint(shares, torch.ones(1, dtype=torch.long), torch.zeros(1), torch.tensor([True]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        after = implicit_step(lambda x: x * theta, reached, jacobian, dense=False, terms=terms)
        after.sum().backward()
    assert bool(caught) is not valid
    assert theta.grad is not None
    close(theta.grad, shares.sum() / (1 - factor), 1e-4)


@pytest.mark.parametrize(("eigenvalue", "valid"), [(0.999, True), (1.0, False)])
def test_a_neumann_series_needs_a_largest_eigenvalue_below_one(eigenvalue: float, valid: bool) -> None:
    """Even where the terms of this adjoint vanish at once."""

    class Vanishing(Scaled):
        def adjoint_product(self, vector: Tensor) -> Tensor:
            return 0 * vector

        def largest_eigenvalue(self, iterations: int = 60) -> Tensor:
            return torch.full((1,), eigenvalue, dtype=torch.float64)

    support, prior, _, _ = fixture()
    shares = em.initial_responsibilities(support)
    jacobian = Vanishing(**vars(em_jacobian(shares, support, prior)))
    theta = torch.ones((), dtype=torch.float64, requires_grad=True)
    reached = FixedPoint(shares, torch.ones(1, dtype=torch.long), torch.zeros(1), torch.tensor([True]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        implicit_step(lambda x: x * theta, reached, jacobian, dense=False).sum().backward()
    assert bool(caught) is not valid

"""EM against loops over the paper's equations and enumeration; stationarity, monotonicity, limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import references as ref
import torch
from meta_tasks import batch_b, close, one_task

from probcrowd.data.vote_tensors import DenseVotes, SparseVotes, Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.fit import converge, fit
from probcrowd.models.meta.prototype import Prior, confusion_pseudo_counts, log_predictive

DIAGONAL = Prior(0.3, 1.0, 0.5, accuracy=0.7)
PRIORS = [Prior(0.3, 1.0, 0.5), DIAGONAL]


def test_em_steps_equal_loops_over_the_equations() -> None:
    task = ref.task_a()
    lam = ref.start(task)
    close(em.initial_responsibilities(task.support)[0], lam, 1e-15)
    for _ in range(3):
        mu, pi, alpha = ref.m_step(lam, task)
        parameters = em.m_step(torch.from_numpy(lam)[None], task.support, task.prior)
        close(parameters.prototypes[0], mu, 1e-12)
        close(parameters.class_prior[0], pi, 1e-12)
        close(parameters.confusion[0], alpha, 1e-12)
        lam = ref.e_step(mu, pi, alpha, task)
        close(em.e_step(parameters, task.support)[0], lam, 1e-12)


@pytest.mark.parametrize("prior", PRIORS)
def test_probabilities_sum_to_one(prior: Prior) -> None:
    support = ref.task_a().support
    parameters = fit(support, prior, steps=3)
    for rows in (parameters.confusion, parameters.class_prior, em.e_step(parameters, support)):
        close(rows.sum(-1), torch.ones_like(rows[..., 0]), 1e-12)


def test_e_step_equals_enumeration_of_all_labellings() -> None:
    task = ref.task_a()
    task = replace(task, embeddings=task.embeddings[:6], labels=task.labels[:6])
    mu, pi, alpha = ref.m_step(ref.start(task), task)
    parameters = em.m_step(em.initial_responsibilities(task.support), task.support, task.prior)
    close(em.e_step(parameters, task.support)[0], ref.e_step_by_enumeration(mu, pi, alpha, task), 1e-12)


def test_log_posterior_equals_the_loop() -> None:
    task = ref.task_a()
    mu, pi, alpha = ref.m_step(ref.start(task), task)
    parameters = em.m_step(em.initial_responsibilities(task.support), task.support, task.prior)
    close(
        em.log_posterior(parameters, task.support, task.prior)[0],
        np.array(ref.log_posterior(mu, pi, alpha, task)),
        1e-10,
    )


@pytest.mark.parametrize("prior", PRIORS)
def test_no_em_step_lowers_the_log_posterior(prior: Prior) -> None:
    support, _ = batch_b()
    responsibilities, before = (
        em.initial_responsibilities(support),
        torch.full((3,), -torch.inf, dtype=torch.float64),
    )
    for _ in range(200):
        parameters = em.m_step(responsibilities, support, prior)
        after = em.log_posterior(parameters, support, prior)
        assert bool((after >= before - 1e-9).all())
        responsibilities, before = em.e_step(parameters, support), after


@pytest.mark.parametrize("prior", PRIORS)
def test_m_step_maximises_the_expected_log_posterior(prior: Prior) -> None:
    support, generator = ref.task_a().support, torch.Generator().manual_seed(1)
    lam = em.em_step(em.initial_responsibilities(support), support, prior)
    best = em.m_step(lam, support, prior)
    value = em.evidence_bound(lam, best, support, prior)
    gains = []
    for _ in range(150):
        size = 10 ** (-4 * torch.rand((), generator=generator, dtype=torch.float64))
        noise = [
            size * torch.randn(t.shape, generator=generator, dtype=t.dtype)
            for t in (best.prototypes, best.log_class_prior, best.log_confusion)
        ]
        other = em.Parameters(
            best.prototypes + noise[0],
            torch.log_softmax(best.log_class_prior + noise[1], -1),
            log_confusion=torch.log_softmax(best.log_confusion + noise[2], -1),
        )
        gains.append(float(em.evidence_bound(lam, other, support, prior) - value))
    assert max(gains) < 0


@pytest.mark.parametrize("prior", PRIORS)
def test_gradient_of_the_log_posterior_vanishes_at_the_fixed_point(prior: Prior) -> None:
    support, _ = batch_b()
    support = Support(support.embeddings, support.votes, support.items)  # an absent class has no gradient
    with torch.no_grad():
        fixed_point = converge(support, prior, steps=20000, tolerance=1e-14)
        fitted = em.m_step(fixed_point.value, support, prior)
    assert bool(fixed_point.converged.all())
    free = [
        tensor.clone().requires_grad_()
        for tensor in (fitted.prototypes, fitted.log_class_prior, fitted.log_confusion)
    ]
    parameters = em.Parameters(
        free[0], torch.log_softmax(free[1], -1), log_confusion=torch.log_softmax(free[2], -1)
    )
    em.log_posterior(parameters, support, prior).sum().backward()
    for tensor in free:
        assert tensor.grad is not None and float(tensor.grad.abs().max()) < 1e-10


def test_bound_is_tight_after_the_e_step_and_lower_for_any_other_responsibilities() -> None:
    support, prior = batch_b()
    parameters = fit(support, prior, steps=2)
    lam = em.e_step(parameters, support)
    close(
        em.evidence_bound(lam, parameters, support, prior),
        em.log_posterior(parameters, support, prior),
        1e-10,
    )
    assert support.items is not None and support.classes is not None
    flat = support.classes[:, None] / support.classes.sum(-1)[:, None, None] * support.items[..., None]
    mixed = 0.9 * lam + 0.1 * flat
    assert bool(
        (
            em.evidence_bound(mixed, parameters, support, prior)
            < em.log_posterior(parameters, support, prior) - 1e-3
        ).all()
    )


def test_known_truth_and_no_shrinkage_give_class_means() -> None:
    task = ref.task_a()
    truth = torch.arange(12)[None, :, None] % 3
    support = Support(task.support.embeddings, DenseVotes.from_labels(truth, 3, torch.float64))
    parameters = fit(support, Prior(0.0, 1e12, 0.5), steps=1)
    means = torch.stack([support.embeddings[0, k::3].mean(0) for k in range(3)])
    close(parameters.prototypes[0], means, 1e-12)
    close(parameters.class_prior[0], np.full(3, 1 / 3), 1e-12)
    queries = torch.randn(1, 6, 5, dtype=torch.float64)
    distances = torch.cdist(queries, means[None]).square()
    close(
        log_predictive(queries, parameters.prototypes, parameters.log_class_prior),
        torch.log_softmax(-0.5 * distances, -1),
        1e-10,
    )


@pytest.mark.parametrize("prior", PRIORS)
def test_renaming_classes_annotators_and_items_renames_the_answer(prior: Prior) -> None:
    task = ref.task_a()
    plain = fit(task.support, prior, steps=3)
    classes, annotators, items = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2]), torch.randperm(12)
    labels = torch.from_numpy(task.labels)
    renamed = torch.where(labels >= 0, torch.argsort(classes)[labels], -1)[items][:, annotators]
    support = Support(
        task.support.embeddings[:, items], DenseVotes.from_labels(renamed[None], 3, torch.float64)
    )
    other = fit(support, prior, steps=3)
    close(other.prototypes, plain.prototypes[:, classes], 1e-12)
    close(other.log_class_prior, plain.log_class_prior[:, classes], 1e-12)
    close(other.confusion, plain.confusion[:, annotators][:, :, classes][..., classes], 1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize(("index", "items", "classes"), [(0, 12, 4), (1, 9, 4), (2, 12, 3)])
def test_padding_changes_nothing(prior: Prior, index: int, items: int, classes: int) -> None:
    support, _ = batch_b()
    padded = fit(support, prior, steps=3)
    alone = fit(one_task(support, index, items, classes), prior, steps=3)
    close(padded.prototypes[index, :classes], alone.prototypes[0], 1e-14)
    close(padded.log_class_prior[index, :classes], alone.log_class_prior[0], 1e-14)
    close(padded.confusion[index, :, :classes, :classes], alone.confusion[0], 1e-14)
    close(padded.class_prior[index, classes:], torch.zeros(4 - classes), 0)
    close(padded.confusion[index, :, :classes, classes:], torch.zeros(5, classes, 4 - classes), 0)
    close(
        em.log_posterior(padded, support, prior)[index],
        em.log_posterior(alone, one_task(support, index, items, classes), prior)[0],
        1e-10,
    )
    queries = torch.randn(3, 8, 6, dtype=torch.float64)
    predictive = log_predictive(queries, padded.prototypes, padded.log_class_prior).exp()
    close(predictive[index, :, classes:], torch.zeros(8, 4 - classes), 0)


def test_vote_shares_ignore_missing_labels() -> None:
    labels = torch.tensor([[[0, -1, 1, 0], [2, -1, -1, -1]]])
    support = Support(torch.zeros(1, 2, 1), DenseVotes.from_labels(labels, 3))
    close(em.initial_responsibilities(support)[0], torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 0.0, 1.0]]), 1e-7)


def test_an_item_without_annotations_is_refused_unless_it_is_padding() -> None:
    labels = torch.tensor([[[0, 1], [-1, -1]]])
    with pytest.raises(
        ValueError, match=r"1 support items have no annotation, at \(task, item\) \[\(0, 1\)\]"
    ):
        Support(torch.zeros(1, 2, 1), DenseVotes.from_labels(labels, 2))
    Support(torch.zeros(1, 2, 1), DenseVotes.from_labels(labels, 2), torch.tensor([[True, False]]))


def test_labels_outside_the_classes_of_a_task_are_refused() -> None:
    with pytest.raises(ValueError, match="`classes` excludes"):
        Support(
            torch.zeros(1, 1, 1),
            DenseVotes.from_labels(torch.tensor([[[2]]]), 3),
            classes=torch.tensor([[True, True, False]]),
        )


@pytest.mark.parametrize("prior", PRIORS)
def test_an_annotator_without_labels_is_the_prior_and_changes_nothing(prior: Prior) -> None:
    task = ref.task_a()
    silent = replace(task, labels=np.concatenate([task.labels, np.full((12, 1), -1)], 1))
    plain, other = fit(task.support, prior, steps=3), fit(silent.support, prior, steps=3)
    mode = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    if prior.accuracy is not None:  # mode of Dirichlet(7, 1.5, 1.5): (6, .5, .5) / 7
        mode = torch.full((3, 3), 0.5 / 7, dtype=torch.float64).fill_diagonal_(6 / 7)
    close(other.confusion[0, -1], mode, 1e-12)
    close(other.prototypes, plain.prototypes, 1e-12)
    close(other.confusion[:, :-1], plain.confusion, 1e-12)


def test_prior_mean_accuracy_does_not_depend_on_the_number_of_classes() -> None:
    for num_classes in (2, 3, 10, 100):
        prior, like = Prior(label_count=0.5, accuracy=0.7), torch.zeros(1, dtype=torch.float64)
        concentration = confusion_pseudo_counts(prior, num_classes, None, like)[0] + 1
        mean = concentration / concentration.sum(-1, keepdim=True)
        close(mean.diagonal(), np.full(num_classes, 0.7), 1e-12)
        assert float(concentration.min()) == 1.5  # off the diagonal as in the symmetric prior


def test_a_class_without_votes_stays_at_its_prior() -> None:
    labels = torch.tensor([[[0, 1], [0, 0], [1, 1]]])
    support = Support(
        torch.randn(1, 3, 2, dtype=torch.float64), DenseVotes.from_labels(labels, 3, torch.float64)
    )
    parameters = fit(support, Prior(0.3, 1.0, 0.5), steps=1)
    close(parameters.prototypes[0, 2], torch.zeros(2), 1e-14)
    close(parameters.class_prior[0, 2], torch.tensor(1 / (3 + 3), dtype=torch.float64), 1e-14)
    close(parameters.confusion[0, :, 2], np.full((2, 3), 1 / 3), 1e-14)


@pytest.mark.parametrize("labels", [[[0, 0], [1, 1], [2, 3], [3, 2]], [[0, 0], [1, 1], [0, 1], [1, 0]]])
def test_ties_stay_tied(labels: list[list[int]]) -> None:
    support = Support(
        torch.randn(1, 4, 3, dtype=torch.float64),
        DenseVotes.from_labels(torch.tensor([labels]), 4, torch.float64),
    )
    for steps in range(1, 6):
        parameters = fit(support, Prior(0.1, 1.0, 0.5), steps=steps)
        close(parameters.prototypes[:, 2], parameters.prototypes[:, 3], 1e-12)
        close(parameters.confusion[:, :, 2], parameters.confusion[:, :, 3], 1e-12)


def test_without_embeddings_it_is_dawid_skene() -> None:
    task = ref.task_a()
    truth = ref.dawid_skene(task.labels, 3, 30)
    gaps = []
    for count in (1e-5, 1e-7):
        blind = Support(torch.zeros(1, 12, 2, dtype=torch.float64), task.support.votes)
        lam = em.e_step(fit(blind, Prior(0.3, count, count), steps=30), blind)
        gaps.append(float((lam[0] - torch.from_numpy(truth)).abs().max()))
    assert gaps[1] <= 1e-6
    assert gaps[1] < 0.05 * gaps[0]  # linear in the prior's counts


@pytest.mark.parametrize("prior", PRIORS)
def test_sparse_votes_equal_dense_votes(prior: Prior) -> None:
    dense, _ = batch_b()
    matrix = dense.votes.dense().matrix.unflatten(2, (5, 4))
    task, item, annotator, label = (
        column[torch.randperm(len(column), generator=torch.Generator().manual_seed(0))]
        for column in matrix.nonzero().T
    )
    weight = torch.ones(len(task), dtype=torch.float64)
    votes = SparseVotes.build(
        task, item, annotator, label, weight, num_tasks=3, num_items=12, num_annotators=5, num_labels=4
    )
    close(votes.dense().matrix, dense.votes.dense().matrix, 0)
    close(votes.totals(), dense.votes.totals(), 0)
    results = []
    for chosen in (dense.votes, votes):
        embeddings = dense.embeddings.clone().requires_grad_()
        parameters = fit(Support(embeddings, chosen, dense.items, dense.classes), prior, steps=3)
        loss = parameters.prototypes.square().sum() + parameters.class_prior.square().sum()
        loss.backward()
        assert embeddings.grad is not None
        results.append([parameters.prototypes, parameters.confusion, embeddings.grad])
    for left, right in zip(*results, strict=True):
        close(left.detach(), right.detach(), 1e-12)


def test_a_repeated_row_is_a_row_of_weight_two() -> None:
    sizes = {"num_tasks": 1, "num_items": 2, "num_annotators": 1, "num_labels": 2}
    zeros = torch.zeros(3, dtype=torch.long)
    rows = SparseVotes.build(
        zeros, torch.tensor([0, 0, 1]), zeros, torch.tensor([1, 1, 0]), torch.ones(3), **sizes
    )
    heavy = SparseVotes.build(
        zeros[:2], torch.tensor([0, 1]), zeros[:2], torch.tensor([1, 0]), torch.tensor([2.0, 1.0]), **sizes
    )
    close(rows.dense().matrix, heavy.dense().matrix, 0)
    left, right = (fit(Support(torch.ones(1, 2, 3), votes), Prior(), steps=3) for votes in (rows, heavy))
    close(left.confusion, right.confusion, 1e-6)


def test_many_annotators_and_long_embeddings_are_finite_in_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (2, 20, 200), generator=generator)
    support = Support(3 * torch.randn(2, 20, 1600, generator=generator), DenseVotes.from_labels(labels, 4))
    parameters = fit(support, Prior(), steps=10)
    for tensor in (
        parameters.prototypes,
        parameters.log_class_prior,
        parameters.log_confusion,
        em.log_posterior(parameters, support, Prior()),
    ):
        assert bool(torch.isfinite(tensor).all())


def test_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fit(ref.task_a().support, Prior(), steps=0)


@pytest.mark.parametrize(("accuracy", "refused"), [(1 / 3, False), (0.3333, True), (0.1, True)])
def test_a_prior_accuracy_worse_than_guessing_is_refused(accuracy: float, refused: bool) -> None:
    support = ref.task_a().support
    if refused:
        with pytest.raises(
            ValueError, match=rf"prior accuracy {accuracy:g} is worse than guessing among 3 classes"
        ):
            fit(support, Prior(accuracy=accuracy))
    else:  # the symmetric prior
        close(fit(support, Prior(accuracy=accuracy)).confusion, fit(support, Prior()).confusion, 1e-9)


def test_a_prior_accuracy_has_no_meaning_for_a_single_class() -> None:
    single = Support(torch.zeros(1, 2, 2), DenseVotes.from_labels(torch.zeros(1, 2, 2, dtype=torch.long), 1))
    close(fit(single, Prior(accuracy=0.7)).confusion, np.ones((1, 2, 1, 1)), 1e-6)

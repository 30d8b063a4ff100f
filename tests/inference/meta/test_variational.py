"""Variational Bayes for the prototype crowd against enumeration, autograd and its limits; learned priors."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from meta_tasks import batch_b, close, one_task
from scipy.special import gammaln
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from probcrowd.data.image_sets import load_classes
from probcrowd.data.images import select_classes
from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta import em, variational
from probcrowd.inference.meta.adaptation import Method, adapt, predict, support_probabilities
from probcrowd.inference.meta.fit import iterate
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.models.encoders import MLP
from probcrowd.models.meta.learned_prior import LearnedPrior
from probcrowd.models.meta.population import Population
from probcrowd.models.meta.prototype import Prior, log_predictive, predictive_scores
from probcrowd.simulate.annotators import Mixture, annotate, draw_confusion
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource, draw_episodes

POPULATION = Population.default()
CASES = [(None, True), (None, False), (POPULATION, True), (POPULATION, False)]
USUAL = Prior()
ALL = ("precision", "class_count", "scale", "temperature", "population")


def log_dirichlet_multinomial(counts: Tensor, concentration: Tensor) -> float:
    """ln of the probability of labels with these counts, in one order, under a Dirichlet."""
    total, known = float(concentration.sum()), float(counts.sum())
    rows = gammaln((counts + concentration).numpy()) - gammaln(concentration.numpy())
    return float(gammaln(total) - gammaln(total + known) + rows.sum())


@pytest.mark.parametrize("population", [None, POPULATION])
def test_the_bound_is_exact_at_a_labelling_and_below_the_evidence_elsewhere(
    population: Population | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[0, 1], [1, 1], [0, -1], [0, 0]])
    embeddings = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    prior = Prior(0.7, 1.5, 0.4)
    support = Support(embeddings[None], DenseVotes.from_labels(labels[None], 2, torch.float64))
    total = []
    for number in range(16):
        truth = torch.tensor([number >> place & 1 for place in range(4)])
        logs = log_dirichlet_multinomial(torch.bincount(truth, minlength=2), torch.full((2,), 2.5))
        for k in range(2):
            mine = embeddings[truth == k]
            if len(mine):  # embeddings of a class are normal with common covariance 1 / tau
                covariance = torch.eye(len(mine)) + 1 / 0.7
                logs += sum(
                    multivariate_normal.logpdf(column.numpy(), cov=covariance.numpy()) for column in mine.T
                )
        for j in range(2):
            types = [(0.0, torch.full((2, 2), 1.4))]
            if population is not None:
                shares = torch.log_softmax(population.log_share, 0).tolist()
                correct = 0.5 + 0.5 * population.skill
                rows = [
                    torch.tensor([[a, 1 - a], [1 - a, a]]) * s
                    for a, s in zip(correct.tolist(), population.strength.tolist(), strict=True)
                ]
                types = list(zip(shares, rows, strict=True))
            given = labels[:, j] >= 0
            counts = torch.zeros(2, 2).index_put(
                (truth[given], labels[given, j]), torch.ones(()), accumulate=True
            )
            of_type = [
                share + sum(log_dirichlet_multinomial(counts[k], rows[k]) for k in range(2))
                for share, rows in types
            ]
            logs += float(torch.logsumexp(torch.tensor(of_type, dtype=torch.float64), 0))
        certain = torch.nn.functional.one_hot(truth, 2).double()[None]
        bound = variational.evidence_bound(certain, support, prior, population)
        assert abs(float(bound) - logs) < 1e-5  # the population's numbers are float32
        total.append(logs)
    evidence = float(torch.logsumexp(torch.tensor(total, dtype=torch.float64), 0))
    fitted = variational.iterate(support, prior, population, steps=50)
    assert max(total) < float(variational.evidence_bound(fitted, support, prior, population)) < evidence


@pytest.mark.parametrize(("population", "average"), CASES)
def test_a_step_is_the_softmax_of_the_gradient_of_the_bound(
    population: Population | None, average: bool
) -> None:
    support, prior = batch_b()
    for index, (items, classes) in enumerate([(12, 4), (9, 4), (12, 3)]):
        task = one_task(support, index, items, classes)
        generator = torch.Generator().manual_seed(index)
        start = torch.softmax(
            torch.randn(1, items, classes, generator=generator, dtype=torch.float64), -1
        ).requires_grad_()
        bound = (
            variational.evidence_bound(start, task, prior, population, average_prototypes=average)
            + torch.xlogy(start, start).sum()
        )
        (slope,) = torch.autograd.grad(bound.sum(), start)
        close(
            variational.step(start, task, prior, population, average_prototypes=average),
            torch.softmax(slope, -1),
            1e-12,
        )


@pytest.mark.parametrize(("population", "average"), CASES)
def test_no_step_lowers_the_bound_and_padding_changes_nothing(
    population: Population | None, average: bool
) -> None:
    support, prior = batch_b()
    known = em.initial_responsibilities(support)
    bounds = []
    for _ in range(60):
        bounds.append(
            variational.evidence_bound(known, support, prior, population, average_prototypes=average)
        )
        known = variational.step(known, support, prior, population, average_prototypes=average)
    rises = torch.stack(bounds).diff(dim=0)
    assert float(rises.min()) > -1e-9 and float(rises[0].min()) > 1e-3
    together = variational.parameters(known, support, prior, population, average_prototypes=average)
    close(together.confusion[:, :, :3, :3].sum(-1)[2], torch.ones(5, 3), 1e-6)
    for index, (items, classes) in enumerate([(12, 4), (9, 4), (12, 3)]):
        task = one_task(support, index, items, classes)
        alone = variational.iterate(task, prior, population, steps=61, average_prototypes=average)
        close(known[index, :items, :classes], alone[0], 1e-9)
        fitted = variational.parameters(alone, task, prior, population, average_prototypes=average)
        close(together.prototypes[index, :classes], fitted.prototypes[0], 1e-9)
        close(together.confusion[index, :, :classes, :classes], fitted.confusion[0], 1e-6)
        close(together.class_prior[index, :classes], fitted.class_prior[0], 1e-9)
        bound = variational.evidence_bound(alone, task, prior, population, average_prototypes=average)
        close(
            variational.evidence_bound(known, support, prior, population, average_prototypes=average)[index],
            bound[0],
            1e-9,
        )


def test_one_type_of_guessing_annotators_is_the_papers_prior() -> None:
    support, _ = batch_b()
    task = one_task(support, 0, 12, 4)
    one = Population(torch.zeros(1), torch.zeros(1), torch.tensor([6.0]))  # 4 classes times (c + 1)
    close(*(variational.iterate(task, Prior(0.3, 1.0, 0.5), each, steps=5) for each in (None, one)), 1e-12)


def test_a_population_separates_spammers_from_experts_with_few_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(12).expand(300, 12) % 4
    confusion = torch.cat(
        [
            draw_confusion(Mixture(1.0, 0.0, 0.0), 300, 2, 4, generator),
            draw_confusion(Mixture(0.0, 0.0, 1.0), 300, 2, 4, generator),
        ],
        1,
    )
    votes = DenseVotes.from_labels(annotate(truth, confusion, generator), 4)
    known = torch.nn.functional.one_hot(truth, 4).float()
    support = Support(torch.zeros(300, 12, 0), votes)
    errors = []
    for population in (None, POPULATION):
        mean = variational.annotator_posterior(known, support, Prior(), population).mean
        errors.append(float(0.5 * (mean - confusion).abs().sum(-1).mean()))
    assert errors[1] < 0.6 * errors[0]


def test_predictions_average_over_prototypes() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes, queries = (
        torch.randn(1, size, 3, generator=generator, dtype=torch.float64) for size in (2, 5)
    )
    log_prior, variance = (
        torch.tensor([[0.3, 0.7]], dtype=torch.float64).log(),
        torch.tensor([[0.2, 1.5]], dtype=torch.float64),
    )
    probabilities = log_predictive(queries, prototypes, log_prior, variance)[0].exp()
    for query, row in zip(queries[0], probabilities, strict=True):
        densities = [
            math.exp(float(log_prior[0, k]))
            * multivariate_normal.pdf(query.numpy(), prototypes[0, k].numpy(), 1 + float(variance[0, k]))
            for k in range(2)
        ]
        close(row, torch.tensor(densities) / sum(densities), 1e-6)
    close(
        log_predictive(queries, prototypes, log_prior, torch.zeros(1, 2).double()),
        log_predictive(queries, prototypes, log_prior),
        1e-12,
    )


def episodes(tasks: int = 6) -> tuple[EpisodeSource, Episodes]:
    source = EpisodeSource.of(select_classes(load_classes("digits"), range(5)))
    return source, draw_episodes(
        source, EpisodeShape(3, 3, 5, 4), Mixture(), tasks, torch.Generator().manual_seed(1)
    )


def network(
    names: tuple[str, ...] = ALL, prior: Prior = USUAL, population: Population | None = POPULATION
) -> LearnedPrior:
    torch.manual_seed(0)
    return LearnedPrior(MLP(64, [16], 8), names, prior, population)


def test_learned_numbers_start_at_the_given_values_and_have_gradients() -> None:
    source, drawn = episodes()
    module = network((*ALL, "label_count", "accuracy"), Prior(0.2, 3.0, 0.7, 0.6))
    for name, value in vars(Prior(0.2, 3.0, 0.7, 0.6)).items():
        assert float(getattr(module.prior, name).detach()) == pytest.approx(value, rel=1e-5)
    assert (
        module.population is not None
        and float(torch.as_tensor(module.scale).detach())
        == float(torch.as_tensor(module.temperature).detach())
        == 1.0
    )
    close(module.population.skill.detach(), POPULATION.skill, 1e-6)
    method = Method(steps=3, inference="variational", average_prototypes=False, population=POPULATION)
    plain = meta_loss(module.encoder, source, drawn, replace(method, prior=module.initial))
    close(meta_loss(module, source, drawn, method).detach(), plain.detach(), 1e-3)
    meta_loss(module, source, drawn, method).backward()
    without = {
        name
        for name, each in module.learned.named_parameters()
        if each.grad is None or not float(each.grad.abs().sum())
    }
    assert without == {"label_count", "accuracy"}  # which a population replaces
    counts = network(("label_count", "accuracy"), Prior(0.2, 3.0, 0.7, 0.6), None)
    meta_loss(counts, source, drawn, Method(steps=3)).backward()
    assert all(each.grad is not None and float(each.grad.abs()) > 0 for each in counts.learned.values())


def test_separate_losses_train_the_encoder_on_clean_labels_and_the_prior_on_noisy_ones() -> None:
    source, drawn = episodes()
    method = Method(steps=3, inference="variational", average_prototypes=False, population=POPULATION)

    def slopes(method: Method, module: nn.Module) -> dict[str, Tensor]:
        module.zero_grad()
        meta_loss(module, source, drawn, method).backward()
        return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}

    module = network()
    with torch.no_grad():
        module.learned["scale"].add_(0.03)  # so that a scale that leaked would be seen
    apart, noisy = slopes(replace(method, separate=True), module), slopes(method, module)
    clean = slopes(replace(method, pseudo_annotators=False), module.encoder)
    for name, expected in clean.items():
        torch.testing.assert_close(apart[f"encoder.{name}"], expected, rtol=1e-4, atol=1e-4)
    for name in module.learned:
        torch.testing.assert_close(apart[f"learned.{name}"], noisy[f"learned.{name}"], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(apart["encoder.1.weight"], noisy["encoder.1.weight"], rtol=1e-2)


def test_a_share_of_clean_labels_mixes_both_losses() -> None:
    source, drawn = episodes()
    torch.manual_seed(0)
    encoder = MLP(64, [16], 8)
    noisy, clean, mixed, all_noisy, all_clean = (
        meta_loss(encoder, source, drawn, each).item()
        for each in (
            Method(),
            Method(pseudo_annotators=False),
            Method(clean_share=0.25),
            Method(clean_share=0.0),
            Method(clean_share=1.0),
        )
    )
    assert noisy != pytest.approx(clean, rel=1e-3)
    assert mixed == pytest.approx(0.75 * noisy + 0.25 * clean, rel=1e-5)
    assert all_noisy == noisy and all_clean == clean


@pytest.mark.parametrize(
    "method",
    [Method(), Method(steps=4, inference="variational", population=POPULATION)],
    ids=["map", "variational"],
)
def test_support_probabilities_are_those_of_the_fitted_parameters(method: Method) -> None:
    support, prior = batch_b()
    method = replace(method, prior=prior)
    parameters = adapt(support, method)
    if method.inference == "map":
        close(support_probabilities(parameters, support, method), em.e_step(parameters, support), 0)
    else:
        assert parameters.variance is not None
        more = variational.iterate(support, prior, POPULATION, steps=method.steps + 1)
        close(support_probabilities(parameters, support, method), more, 0)


def test_the_temperature_scales_scores_and_keeps_their_order() -> None:
    source, drawn = episodes(20)
    module = network(("temperature",), population=None)
    before, _ = predict(module, source, drawn, Method())
    with torch.no_grad():
        module.learned["temperature"].fill_(math.log(3.0) / 10)
    after, _ = predict(module, source, drawn, Method())
    assert torch.equal(before.argmax(-1), after.argmax(-1))
    close(torch.log_softmax(before / 3, -1), after, 1e-4)


def test_tie_noise_separates_classes_with_equal_votes() -> None:
    labels = torch.tensor([[[0, 1], [0, 1], [2, 2]]])
    embeddings = torch.eye(3, dtype=torch.float64)[None] * 3
    support = Support(embeddings, DenseVotes.from_labels(labels, 3, torch.float64))
    fit = partial(iterate, support, Prior(), steps=10)
    tied, parted = fit()[0], fit(tie_noise=0.05)[0]
    close(tied[:2, 0], tied[:2, 1], 1e-12)
    assert float((parted[:2, 0] - parted[:2, 1]).abs().max()) > 0.01
    close(em.initial_responsibilities(support, 0.05).sum(-1), torch.ones(1, 3), 1e-12)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"population": POPULATION}, "inference = 'variational'"),
        ({"inference": "variational", "gradient": "one-step"}, "one-step"),
        ({"inference": "variational", "labels": "majority-vote"}, "majority-vote"),
    ],
)
def test_methods_without_a_meaning_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Method(**given)  # pyright: ignore[reportArgumentType]


def test_names_of_methods_are_spelled_with_hyphens_or_underscores() -> None:
    """As given by callers without the type checks of these tests."""

    def given(**names: str) -> Method:
        method = object.__new__(Method)
        vars(method).update(vars(Method()) | names)
        method.__post_init__()
        return method

    assert given(labels="majority_vote") == Method(labels="majority-vote")
    assert given(gradient="implicit_neumann").gradient == "implicit-neumann"
    with pytest.raises(ValueError, match="unknown labels 'votes': choose one of joint, majority-vote"):
        given(labels="votes")


def test_unknown_or_missing_learned_numbers_are_refused() -> None:
    for names, words in (
        (("spread",), "unknown learned number 'spread': choose one of precision"),
        (("accuracy",), "learning the accuracy"),
        (("population",), "learning the population"),
    ):
        with pytest.raises(ValueError, match=words):
            LearnedPrior(nn.Identity(), names, Prior())


def test_scores_with_a_variance_are_finite_in_many_dimensions() -> None:
    scores = predictive_scores(
        torch.ones(1, 2, 1600), torch.zeros(1, 3, 1600), torch.zeros(1, 3), torch.full((1, 3), 0.5)
    )
    assert bool(torch.isfinite(scores).all())

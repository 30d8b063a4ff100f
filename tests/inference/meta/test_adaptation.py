"""Adaptation and the meta-training loss: by hand, on ideal embeddings with known accuracies, and trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cache, partial

import pytest
import references as ref
import torch
from meta_tasks import batch_b, close
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import one_hot

from probcrowd.data.image_sets import load_classes
from probcrowd.data.images import select_classes
from probcrowd.data.vote_tensors import DenseVotes, Support
from probcrowd.inference.meta import em
from probcrowd.inference.meta.adaptation import PROTOTYPICAL, Method, adapt, predict
from probcrowd.inference.meta.fit import Gradient, converge, fit
from probcrowd.inference.meta.guide import point_guide, query_elbo, query_labels
from probcrowd.inference.meta.jacobian import em_jacobian
from probcrowd.inference.meta.label_aggregation import dawid_skene, majority
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.metrics.tensors import accuracy, log_loss
from probcrowd.models.encoders import MLP, embed
from probcrowd.models.meta.prototype import Prior, log_predictive
from probcrowd.simulate.annotators import Mixture, annotate, draw_confusion
from probcrowd.simulate.episodes import Episodes, EpisodeShape, EpisodeSource, draw_episodes

MIXTURES = [Mixture(0.1, 0.8, 0.1), Mixture(0.1, 0.7, 0.2), Mixture(0.1, 0.6, 0.3), Mixture(0.1, 0.5, 0.4)]
PRIOR = Prior(0.1, 10.0, 0.5)

# Section 9.3 of the specification: centre distance, shots, annotators -> accuracy by EM steps, on Dawid-Skene
# labels and on the truth
ACCURACIES = {
    (3, 1, 3): ({1: 0.304, 2: 0.321, 3: 0.324, 5: 0.325, 10: 0.325}, 0.315, 0.370),
    (3, 3, 5): ({1: 0.423, 2: 0.429, 3: 0.424, 5: 0.423, 10: 0.423}, 0.428, 0.488),
    (3, 5, 7): ({1: 0.496, 2: 0.518, 3: 0.512, 5: 0.510, 10: 0.510}, 0.511, 0.558),
    (5, 1, 7): ({1: 0.499, 2: 0.540, 3: 0.546, 5: 0.547, 10: 0.547}, 0.509, 0.593),
    (5, 3, 3): ({1: 0.604, 2: 0.627, 3: 0.617, 5: 0.617, 10: 0.617}, 0.608, 0.801),
    (5, 5, 5): ({1: 0.761, 2: 0.802, 3: 0.796, 5: 0.795, 10: 0.795}, 0.761, 0.870),
}


@dataclass(frozen=True)
class Latents:
    """Tasks whose embeddings follow the model: support and query embeddings, truths and annotations."""

    support: Support
    truth: Tensor
    queries: Tensor
    query_truth: Tensor

    def score(self, parameters: em.Parameters) -> Tensor:
        """Query accuracy of each task."""
        scores = log_predictive(self.queries, parameters.prototypes, parameters.log_class_prior)
        return accuracy(scores, self.query_truth).mean(1)

    def known(self) -> Support:
        """Return the same support sets labelled by one annotator who is always right."""
        return Support(
            self.support.embeddings, DenseVotes.from_labels(self.truth[..., None], 4, self.queries.dtype)
        )


def ideal_latents(
    distance: float, shots: int, annotators: int, *, tasks: int = 400, mixtures: list[Mixture] = MIXTURES
) -> Latents:
    """Draw the tasks of section 9.3: 4 balanced classes in 64 dimensions, unit noise, all items labelled.

    distance: root mean square between centres. There are 10 queries per class.
    """
    generator, dimension = torch.Generator().manual_seed(1000 * int(distance) + 100 * shots + annotators), 64
    count = tasks * len(mixtures)
    centres = (
        torch.randn(count, 4, dimension, generator=generator, dtype=torch.float64)
        * distance
        / math.sqrt(2 * dimension)
    )
    embeddings, truths = [], []
    for size in (shots, 10):
        truth = torch.arange(4).repeat_interleave(size).expand(count, -1)
        truths.append(truth)
        embeddings.append(
            centres.repeat_interleave(size, 1)
            + torch.randn(count, 4 * size, dimension, generator=generator, dtype=torch.float64)
        )
    confusion = torch.cat([draw_confusion(mixture, tasks, annotators, 4, generator) for mixture in mixtures])
    votes = DenseVotes.from_labels(annotate(truths[0], confusion, generator), 4, torch.float64)
    return Latents(Support(embeddings[0], votes), truths[0], embeddings[1], truths[1])


@cache
def accuracies(distance: float, shots: int, annotators: int) -> dict[str | int, Tensor]:
    """Accuracy of every task, the same tasks for every method."""
    latents = ideal_latents(distance, shots, annotators)
    result: dict[str | int, Tensor] = {
        steps: latents.score(adapt(latents.support, Method(steps=steps, prior=PRIOR)))
        for steps in (1, 2, 3, 5, 10)
    }
    result["dawid-skene"] = latents.score(
        adapt(latents.support, Method(labels="dawid-skene", steps=3, prior=PRIOR))
    )
    result["clean"] = latents.score(fit(latents.known(), Prior(0.0, 1.0, 0.5), steps=1))
    return result


@pytest.mark.parametrize("cell", ACCURACIES)
def test_accuracies_on_ideal_latents_are_those_of_the_specification(cell: tuple[int, int, int]) -> None:
    by_steps, labels_only, clean = ACCURACIES[cell]
    result = {method: float(values.mean()) for method, values in accuracies(*cell).items()}
    assert result == pytest.approx({**by_steps, "dawid-skene": labels_only, "clean": clean}, abs=0.012)


def test_one_e_step_with_embeddings_is_worth_more_than_labels_alone() -> None:
    """Paired on the same tasks, at distance 5 with 5 shots and 5 annotators."""
    result = {method: float(values.mean()) for method, values in accuracies(5, 5, 5).items()}
    assert result[2] - result[1] >= 0.025
    assert result[2] - result["dawid-skene"] >= 0.025
    assert -0.002 < result[2] - result[10] < 0.012


def test_em_converges_in_a_few_steps_on_ideal_latents() -> None:
    latents = ideal_latents(5, 5, 3, tasks=60, mixtures=[Mixture()])
    totals, (first, second) = latents.support.votes.totals(), torch.triu_indices(4, 4, 1)
    tied = (totals[..., first] == totals[..., second]).all(1).any(1)
    reached = converge(latents.support, PRIOR, steps=100, tolerance=1e-8)
    assert int((~tied).sum()) > 50
    assert bool(reached.converged[~tied].all())
    assert float(reached.steps[~tied].double().median()) <= 10
    rates = em_jacobian(reached.value, latents.support, PRIOR).largest_eigenvalue()
    assert float(rates[~tied].median()) <= 0.02 and float(rates.min()) >= 0


def clean_fit(embeddings: Tensor, truth: Tensor, ways: int, prior: Prior) -> em.Parameters:
    """One M step on the labels of one annotator who is always right."""
    support = Support(embeddings, DenseVotes.from_labels(truth[..., None], ways, embeddings.dtype))
    return em.m_step(em.initial_responsibilities(support), support, prior)


@pytest.mark.parametrize(("shots", "tolerance"), [(1, 0.02), (5, 0.004)])
def test_unanimous_correct_labels_are_as_good_as_the_truth(shots: int, tolerance: float) -> None:
    latents = ideal_latents(5, shots, 3)
    votes = DenseVotes.from_labels(latents.truth[..., None].expand(-1, -1, 3), 4, torch.float64)
    unanimous = Support(latents.support.embeddings, votes)
    by_steps = [float(latents.score(fit(unanimous, PRIOR, steps=steps)).mean()) for steps in (1, 2, 3)]
    assert max(by_steps) - min(by_steps) <= 0.001
    network = float(
        latents.score(clean_fit(latents.support.embeddings, latents.truth, 4, PROTOTYPICAL)).mean()
    )
    assert abs(network - by_steps[0]) <= tolerance
    assert abs(network - float(accuracies(5, 5, 5)[2].mean())) > tolerance  # noisy labels are not


def fixture() -> tuple[Support, Prior, Tensor, Tensor]:
    """Three tasks with 4 classes in float64, the second padded, and 8 queries each."""
    support, prior = batch_b()
    generator = torch.Generator().manual_seed(4)
    queries = torch.randn(3, 8, 6, generator=generator, dtype=torch.float64)
    return (
        Support(support.embeddings, support.votes, support.items),
        prior,
        queries,
        torch.randint(4, (3, 8), generator=generator),
    )


def equation_10(queries: Tensor, truth: Tensor, prototypes: Tensor, class_prior: Tensor) -> Tensor:
    """-ln p(query labels), task by task, query by query, in the paper's order of terms."""
    total = queries.new_zeros(())
    for task in range(len(queries)):
        for u, t in zip(queries[task], truth[task].tolist(), strict=True):
            joint = [
                class_prior[task, k] * torch.exp(-0.5 * (u - mu).square().sum())
                for k, mu in enumerate(prototypes[task])
            ]
            total = total - torch.log(joint[t] / sum(joint))
    return total


def test_the_query_elbo_is_equation_10_and_so_is_its_gradient() -> None:
    support, prior, queries, truth = fixture()
    result = []
    for way in ("Trace_ELBO", "query_elbo", "by hand"):
        labelled, scored = support.embeddings.clone().requires_grad_(), queries.clone().requires_grad_()
        parameters = fit(Support(labelled, support.votes, support.items), prior, steps=2)
        if way == "Trace_ELBO":
            loss = Trace_ELBO().differentiable_loss(
                partial(query_labels, scored, truth, 4), partial(point_guide, parameters)
            )
        elif way == "query_elbo":
            loss = -query_elbo(scored, truth, parameters)
        else:
            loss = equation_10(scored, truth, parameters.prototypes, parameters.class_prior)
        result.append([loss.detach(), *torch.autograd.grad(loss, [labelled, scored])])
    for by_trace, by_replay, by_hand in zip(*result, strict=True):
        close(by_trace, by_hand, 1e-10)
        close(by_replay, by_hand, 1e-10)
    # the query embeddings' gradient in closed form: softmax minus truth, times the prototypes
    parameters = fit(support, prior, steps=2)
    excess = log_predictive(queries, parameters.prototypes, parameters.log_class_prior).exp() - one_hot(
        truth, 4
    )
    close(result[0][2], excess @ parameters.prototypes, 1e-10)
    assert float(result[0][1].abs().max()) > 1e-3


@cache
def digit_source() -> EpisodeSource:
    return EpisodeSource.of(select_classes(load_classes("digits"), [0, 1, 2, 3, 4, 5]))


def digit_episodes(tasks: int, seed: int, *, shots: int = 3, observed: float = 1.0) -> Episodes:
    shape = EpisodeShape(ways=4, shots=shots, queries=5, annotators=3, observed=observed)
    return draw_episodes(digit_source(), shape, Mixture(), tasks, torch.Generator().manual_seed(seed))


def small_network(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(64, [32], 16)


def test_meta_loss_of_joint_em_equals_the_loops_over_the_paper() -> None:
    encoder, episodes = small_network(), digit_episodes(3, 1, observed=0.7)
    prior = Prior(0.3, 2.0, 0.7)
    total = 0.0
    with torch.no_grad():
        result = float(meta_loss(encoder, digit_source(), episodes, Method(steps=3, prior=prior)))
        for index in range(3):
            pixels = [
                digit_source().pool[rows[index]].float().flatten(1) / 255
                for rows in (episodes.support, episodes.query)
            ]
            labelled, queries = (encoder(group).double() for group in pixels)
            task = ref.Task(labelled.numpy(), episodes.labels[index].numpy(), 4, 0.3, 2.0, 0.7)
            lam = ref.start(task)
            for _ in range(2):
                lam = ref.e_step(*ref.m_step(lam, task), task)
            mu, pi, _ = (torch.from_numpy(array)[None] for array in ref.m_step(lam, task))
            total += float(equation_10(queries[None], episodes.query_truth[index : index + 1], mu, pi))
    assert result == pytest.approx(total / 3, rel=1e-5)  # single precision


def test_meta_loss_uses_the_true_support_labels_only_without_pseudo_annotators() -> None:
    encoder, episodes = small_network(), digit_episodes(4, 2)
    other_truth = replace(episodes, support_truth=episodes.support_truth.flip(1))
    other_labels = replace(episodes, labels=torch.zeros_like(episodes.labels))

    def loss(chosen: Episodes, *, noisy: bool) -> float:
        return float(meta_loss(encoder, digit_source(), chosen, Method(pseudo_annotators=noisy)).detach())

    assert loss(episodes, noisy=True) == loss(other_truth, noisy=True) != loss(other_labels, noisy=True)
    assert loss(episodes, noisy=False) == loss(other_labels, noisy=False) != loss(other_truth, noisy=False)


def test_one_step_of_joint_em_is_prototypes_on_soft_votes_bit_for_bit() -> None:
    episodes = digit_episodes(20, 3, observed=0.6)
    embeddings = torch.randn(20, 12, 16, generator=torch.Generator().manual_seed(0))
    counts = one_hot(episodes.labels + 1, 5)[..., 1:].sum(2).float()
    soft = counts / counts.sum(-1, keepdim=True)
    support = episodes.noisy_support(embeddings)
    by_hand = em.m_step(soft, support, PRIOR)
    joint, more = (adapt(support, Method(steps=steps, prior=PRIOR)) for steps in (1, 2))
    assert torch.equal(joint.prototypes, by_hand.prototypes) and torch.equal(
        joint.log_class_prior, by_hand.log_class_prior
    )
    assert not torch.equal(more.prototypes, by_hand.prototypes)


def test_dawid_skene_prototypes_are_joint_em_without_the_embedding_term_of_the_e_step() -> None:
    support, prior, _, _ = fixture()
    assert support.items is not None
    lam = em.initial_responsibilities(support)
    for steps in range(1, 5):
        # As many M as E steps; the M step sees the embeddings, the E step only class prior and annotations
        parameters = em.m_step(lam, support, prior)
        table = parameters.log_confusion.transpose(2, 3).flatten(1, 2)
        lam = (
            torch.softmax(parameters.log_class_prior[:, None] + support.votes.evidence(table), -1)
            * support.items[..., None]
        )
        close(dawid_skene(support, prior, steps=steps), lam, 1e-12)
        expected = em.m_step(lam, support, prior)
        adapted = adapt(support, Method(labels="dawid-skene", steps=steps, prior=prior))
        close(adapted.prototypes, expected.prototypes, 1e-12)
        close(adapted.log_class_prior, expected.log_class_prior, 1e-12)
    joint = adapt(support, Method(steps=5, prior=prior))
    assert float((joint.prototypes - adapted.prototypes).abs().max()) > 0.01  # the embeddings do matter


def test_majority_shares_ties_and_leaves_items_without_labels_empty() -> None:
    totals = torch.tensor(
        [[[3.0, 1.0, 0.0], [2.0, 0.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.5]]]
    )
    expected = torch.tensor([[[1, 0, 0], [0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0], [0, 0, 1]]])
    close(majority(totals), expected, 1e-7)


def test_majority_prototypes_are_means_of_the_items_of_each_majority() -> None:
    labels = torch.tensor([[[0, 0, 1], [1, 1, 1], [0, 1, -1], [1, -1, -1]]])
    embeddings = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]], dtype=torch.float64)
    support = Support(embeddings, DenseVotes.from_labels(labels, 2, torch.float64))
    parameters = adapt(support, Method(labels="majority-vote", steps=7, prior=Prior(0.5, 1.0, 0.5)))
    close(parameters.prototypes[0, :, 0], torch.tensor([(1 + 2) / 2.0, (2 + 2 + 8) / 3.0]), 1e-7)
    close(parameters.class_prior[0], torch.tensor([(1.5 + 1) / 6, (2.5 + 1) / 6]), 1e-7)


def test_clean_fit_with_a_flat_prior_is_a_prototypical_network() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    truth = torch.tensor([[0, 1, 2, 2, 2, 1, 2], [2, 2, 0, 0, 1, 1, 0]])  # unbalanced
    parameters = clean_fit(embeddings, truth, 3, PROTOTYPICAL)
    means = torch.stack(
        [torch.stack([embeddings[task][truth[task] == k].mean(0) for k in range(3)]) for task in range(2)]
    )
    close(parameters.prototypes, means, 1e-5)
    close(parameters.class_prior, torch.full((2, 3), 1 / 3, dtype=torch.float64), 1e-5)
    shrunk = clean_fit(embeddings, truth, 3, PRIOR)
    sizes = one_hot(truth, 3).sum(1).double()
    close(shrunk.prototypes, means * (sizes / (sizes + 0.1))[..., None], 1e-12)
    close(shrunk.class_prior, (sizes + 10) / 37, 1e-12)


METHODS = {
    "joint unrolled": Method(steps=3),
    "joint one-step": Method(steps=3, gradient="one-step"),
    "joint implicit": Method(steps=1000, gradient="implicit"),
    "joint implicit-neumann": Method(steps=1000, gradient="implicit-neumann"),
    "joint with accuracy": Method(steps=3, prior=Prior(accuracy=0.7)),
    "dawid-skene": Method(labels="dawid-skene", steps=3),
    "majority-vote": Method(labels="majority-vote"),
    "clean": Method(pseudo_annotators=False),
}


def smooth_network() -> nn.Sequential:
    """Build a smooth network in double precision, so that differences are exact, for single inputs."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 16)).double()
    encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return encoder


def settled_episodes(encoder: nn.Module, tasks: int, shots: int) -> Episodes:
    """Draw episodes in which EM converges fast enough for a Neumann series, embedded in double precision."""
    episodes = digit_episodes(8 * tasks, 4, shots=shots)
    with torch.no_grad():
        (embeddings,) = embed(encoder, digit_source().inputs(episodes.support))
    support = episodes.noisy_support(embeddings.double())
    reached = converge(support, Prior(), steps=1000)
    fast = reached.converged & (em_jacobian(reached.value, support, Prior()).largest_eigenvalue() < 0.85)
    retained = fast.nonzero().flatten()[:tasks]
    assert len(retained) == tasks
    return Episodes(*(getattr(episodes, field.name)[retained] for field in fields(Episodes)))


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_the_slope_of_the_loss_in_every_parameter(name: str) -> None:
    """Along a random direction, by central differences; the one-step gradient differs from the slope."""
    encoder, other, method = smooth_network(), smooth_network(), METHODS[name]
    episodes = settled_episodes(encoder, 4, 3)
    meta_loss(encoder, digit_source(), episodes, method).backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().max()) > 1e-6
    generator = torch.Generator().manual_seed(0)
    directions = [
        torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for parameter in encoder.parameters()
    ]
    slope = sum(
        float((parameter.grad * direction).sum())
        for parameter, direction in zip(encoder.parameters(), directions, strict=True)
        if parameter.grad is not None
    )

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, start, direction in zip(
                other.parameters(), encoder.parameters(), directions, strict=True
            ):
                parameter.copy_(start + step * direction)
            return float(meta_loss(other, digit_source(), episodes, method))

    numerical = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert (abs(slope / numerical - 1) < 1e-5) == (name != "joint one-step")


@pytest.mark.parametrize("gradient", ["implicit", "implicit-neumann"])
def test_tasks_at_a_fixed_point_need_no_fallback_in_single_precision(gradient: Gradient) -> None:
    """A fallback would warn, which is an error here: rounding must not prevent convergence."""
    method = Method(steps=1000, gradient=gradient)
    single, double = small_network(), small_network().double()
    double.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    for encoder in (double, single):
        with torch.no_grad():
            for parameter in encoder[-1].parameters():
                parameter *= 4  # classes far enough apart for EM to converge soon
    episodes = settled_episodes(double, 10, 5)
    for encoder in (double, single):
        meta_loss(encoder, digit_source(), episodes, method).backward()
    for exact, rounded in zip(double.parameters(), single.parameters(), strict=True):
        assert exact.grad is not None and rounded.grad is not None
        assert float((exact.grad - rounded.grad).abs().max()) < 0.01 * float(exact.grad.abs().max())


def test_predictions_are_those_of_the_adapted_parameters() -> None:
    encoder, episodes = small_network(), digit_episodes(5, 5)
    method = Method(steps=3, prior=PRIOR)
    log_probabilities, parameters = predict(encoder, digit_source(), episodes, method)
    assert not log_probabilities.requires_grad and log_probabilities.shape == (5, 20, 4)
    close(log_probabilities.exp().sum(-1), torch.ones(5, 20), 1e-5)
    with torch.no_grad():
        by_hand = encoder(digit_source().inputs(episodes.query).flatten(0, 1)).view(5, 20, 16)
        expected = log_predictive(by_hand, parameters.prototypes, parameters.log_class_prior)
        loss = float(meta_loss(encoder, digit_source(), episodes, method))
    close(log_probabilities, expected, 1e-5)
    scored = -log_probabilities.gather(-1, episodes.query_truth[..., None]).sum() / 5
    assert loss == pytest.approx(float(scored), rel=1e-5)


def trained(steps: int, seed: int) -> MLP:
    """A small network after some steps of meta-training on six digits."""
    encoder = small_network(seed)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    for step in range(steps):
        optimiser.zero_grad()
        meta_loss(encoder, digit_source(), digit_episodes(8, 1000 * seed + step), Method()).backward()
        optimiser.step()
    return encoder


def test_meta_training_lowers_the_loss_and_depends_on_its_seed() -> None:
    fixed = digit_episodes(200, 10**6)
    new, encoder = small_network(7), trained(60, 7)
    losses, hits = [], []
    for network in (new, encoder):
        log_probabilities, _ = predict(network, digit_source(), fixed, Method())
        losses.append(log_loss(log_probabilities, fixed.query_truth).sum(1))
        hits.append(accuracy(log_probabilities, fixed.query_truth).mean(1))
    assert float(losses[1].mean()) < 0.8 * float(losses[0].mean())
    gain = hits[1] - hits[0]
    assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(200)
    first, again, other = (trained(8, seed).parameters() for seed in (7, 7, 8))
    for left, right, apart in zip(first, again, other, strict=True):
        assert torch.equal(left, right) and not torch.equal(left, apart)

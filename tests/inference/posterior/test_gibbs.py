"""The Gibbs sampler: against enumeration of all labellings, quadrature, conjugate posteriors, NumPyro's
densities and loops over its own draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density

from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.posterior import gibbs as gibbs_module
from probcrowd.inference.posterior.density import make_data
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.models.catalogue import MODELS, find_model
from probcrowd.models.meta.prototype import Prior
from probcrowd.models.priors import CoinPrior, DirichletPrior, SpamPrior

K = 3
CONJUGATE = [name for name, model in MODELS.items() if model.gibbs is not None]
CLASS_PRIOR = np.array([1.5, 0.8, 2.2])
CONFUSION = np.array(
    [[3.0, 0.7, 1.2], [0.6, 2.5, 0.9], [1.1, 0.5, 4.0]]
)  # neither symmetric nor exchangeable
PRIORS: dict[str, Any] = {
    "multinomial": DirichletPrior(CLASS_PRIOR, CONFUSION),
    "dawid_skene": DirichletPrior(CLASS_PRIOR, np.stack([CONFUSION, CONFUSION[::-1] + 0.3])),
    "one_coin": CoinPrior(CLASS_PRIOR, 2.3, 0.8),
    "mace": SpamPrior(1.3, 0.6, 0.9),
    "prototype_crowd": Prior(0.4, 0.7, 0.5, accuracy=0.6),
}
EMBEDDINGS = np.array([[0.9, -0.2], [-0.6, 0.4], [0.3, 1.1], [-1.4, -0.5]])


def tiny() -> Rows:
    """4 items, 2 annotators; annotator 0 labels item 0 twice, item 3 has one row."""
    annotations = [(0, 0, 0), (0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 0, 2), (2, 1, 0), (3, 1, 2)]
    item, annotator, label = map(np.array, zip(*annotations, strict=True))
    return Rows(item, annotator, label, np.ones(len(annotations)), np.full(4, -1), 2, K)


def panel(num_items: int = 40, num_annotators: int = 4, accuracy: float = 0.8, seed: int = 0) -> Rows:
    """A full panel of annotators who are right with that probability."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(K, size=num_items)
    item, annotator = (
        np.repeat(np.arange(num_items), num_annotators),
        np.tile(np.arange(num_annotators), num_items),
    )
    label = np.where(rng.random(len(item)) < accuracy, truth[item], rng.integers(K, size=len(item)))
    return Rows(item, annotator, label, np.ones(len(item)), np.full(num_items, -1), num_annotators, K)


def sample(model: str, rows: Rows, prior: Any = None, **options: Any) -> Draws:
    if find_model(model).features and "embeddings" not in options:
        options["embeddings"] = np.resize(EMBEDDINGS, (rows.num_items, 2))
    return gibbs(
        model, rows, PRIORS[model] if prior is None else prior, **({"seed": 1, "progress": False} | options)
    )


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over (chain, draw), by the means of 25 batches in each chain, each far longer than the
    chain remembers.
    """
    chains, draws = values.shape[:2]
    batches = values.reshape(chains * 25, draws // 25, *values.shape[2:]).mean(1)
    return batches.std(0, ddof=1) / math.sqrt(len(batches))


def agree(values: np.ndarray, exact: np.ndarray | float, what: str = "", errors: float = 5.0) -> None:
    """The mean over draws is the exact one, within its Monte-Carlo error."""
    error = standard_error(values)
    assert (error < 0.02).all(), f"{what}: vacuous, the standard error is {error.max()}"
    gap = np.abs(values.mean((0, 1)) - exact)
    assert (gap <= errors * error + 1e-12).all(), (
        f"{what}: {(gap / (error + 1e-12)).max():.1f} standard errors"
    )


def agree_moments(values: np.ndarray, mean: np.ndarray, variance: np.ndarray, what: str = "") -> None:
    agree(values, mean, what)
    agree((values - mean) ** 2, variance, f"variance of {what}")


def dirichlet_moments(concentrations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = concentrations.sum(-1, keepdims=True)
    mean = concentrations / total
    return mean, mean * (1 - mean) / (total + 1)


def log_beta(concentrations: np.ndarray) -> float:
    """log of the Dirichlet normaliser."""
    return sum(math.lgamma(a) for a in concentrations.ravel()) - math.lgamma(float(concentrations.sum()))


# ---- Exact posteriors of a tiny problem
# ---------------------------------------------------------------------------------------------------


def explanations(
    model: str, rows: Rows, prior: Any
) -> Iterator[tuple[float, tuple[int, ...], dict[str, np.ndarray]]]:
    """Each labelling (for MACE each labelling and set of spam rows): log weight, labelling, conditional means
    of the sites.
    """
    choices = [range(K) if g < 0 else [int(g)] for g in rows.gold]
    for z in itertools.product(*choices):
        classes = np.bincount(z, minlength=K)
        right = np.array([z[i] == label for i, label in zip(rows.item, rows.label, strict=True)])
        if model == "mace":
            doubtful = np.nonzero(right)[0]  # a row that misses is spam
            for spams in itertools.product([False, True], repeat=len(doubtful)):
                spam = ~right
                spam[doubtful] = spams
                coin = np.tile([prior.honest, prior.spamming], (rows.num_annotators, 1))
                habits = np.full((rows.num_annotators, K), float(prior.answers))
                for n in range(len(spam)):
                    coin[rows.annotator[n], int(spam[n])] += 1
                    habits[rows.annotator[n], rows.label[n]] += spam[n]
                t, e = dirichlet_moments(coin)[0][:, 0], dirichlet_moments(habits)[0]
                confusion = t[:, None, None] * np.eye(K) + (1 - t)[:, None, None] * e[:, None, :]
                weight = sum(log_beta(c) for c in coin) + sum(log_beta(h) for h in habits)
                yield weight, z, {"competence": t, "spam": e, "confusion": confusion}
            continue
        dirichlet = DirichletPrior.of_counts(prior, K) if model == "prototype_crowd" else prior
        pi = dirichlet.class_prior + classes
        weight, sites = log_beta(pi), {"class_prior": pi / pi.sum()}
        if model == "one_coin":
            coin = np.tile([prior.right, prior.wrong], (rows.num_annotators, 1))
            for n in range(len(right)):
                coin[rows.annotator[n], 0 if right[n] else 1] += rows.weight[n]
                weight -= 0 if right[n] else rows.weight[n] * math.log(K - 1)
            a = dirichlet_moments(coin)[0][:, 0]
            sites |= {
                "accuracy": a,
                "confusion": np.where(np.eye(K) > 0, a[:, None, None], (1 - a[:, None, None]) / (K - 1)),
            }
            yield weight + sum(log_beta(c) for c in coin), z, sites
            continue
        shared = model == "multinomial"
        counts = np.array(np.broadcast_to(dirichlet.confusion, (1 if shared else rows.num_annotators, K, K)))
        for n in range(len(right)):
            counts[0 if shared else rows.annotator[n], z[rows.item[n]], rows.label[n]] += rows.weight[n]
        weight += sum(log_beta(row) for row in counts.reshape(-1, K))
        confusion = dirichlet_moments(counts)[0]
        sites["confusion"] = confusion[0] if shared else confusion
        if (
            model == "prototype_crowd"
        ):  # x | z: prototype ~ N(0, I / tau), hence the marginal of the members of a class
            sums = np.stack([EMBEDDINGS[: len(z)][np.array(z) == k].sum(0) for k in range(K)])
            precision = prior.precision + classes[:, None]
            weight += float(
                (0.5 * sums**2 / precision).sum()
                + EMBEDDINGS.shape[1] * 0.5 * np.log(prior.precision / precision).sum()
            )
            sites["prototype"] = sums / precision
        yield weight, z, sites


def exact_means(model: str, rows: Rows, prior: Any) -> dict[str, np.ndarray]:
    weights, labellings, sites = zip(*explanations(model, rows, prior), strict=True)
    p = np.exp(np.array(weights) - max(weights))
    p /= p.sum()
    means = {name: np.einsum("s,s...->...", p, np.stack([each[name] for each in sites])) for name in sites[0]}
    return means | {"q": np.einsum("s,sik->ik", p, np.eye(K)[np.array(labellings)])}


@pytest.mark.parametrize("gold", [False, True])
@pytest.mark.parametrize("model", CONJUGATE)
def test_posterior_means_equal_those_of_all_labellings(model: str, gold: bool) -> None:
    rows = replace(tiny(), gold=np.array([-1, -1, 2, -1])) if gold else tiny()
    if model not in ("mace", "prototype_crowd"):
        rows = replace(rows, weight=np.array([1.0, 1.0, 0.5, 1.0, 2.7, 1.0, 1.0, 0.3]))
    exact = exact_means(model, rows, PRIORS[model])
    sampled = sample(model, rows, draws=25_000)
    assert set(sampled.samples) == set(exact) - {"q"} == set(find_model(model).dims)
    for name, values in sampled.samples.items():
        agree(values, exact[name], name)
    # The smooth probabilities of each draw have the same mean as those of the chain, whose error batches of
    # draws give
    q = np.stack([item_probabilities(model, rows, sampled, c) for c in range(4)])
    agree(q, exact["q"], "q")
    np.testing.assert_allclose(sampled.responsibilities.mean(0), q.mean((0, 1)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", CONJUGATE)
def test_a_row_of_weight_two_is_two_rows(model: str) -> None:
    twice = np.array([1, 1, 1, 1, 1, 1, 1, 1.0])
    twice[4] = 2
    weighted = replace(tiny(), weight=twice)
    again = np.insert(np.arange(8), 4, 4)
    rows = tiny()
    repeated = replace(
        rows,
        item=rows.item[again],
        annotator=rows.annotator[again],
        label=rows.label[again],
        weight=np.ones(9),
    )
    sampled, exact = sample(model, weighted, draws=25_000), exact_means(model, repeated, PRIORS[model])
    for name, values in sampled.samples.items():
        agree(values, exact[name], name)


@pytest.mark.parametrize("weight", [0.4, 1.7])
def test_weights_of_mace_need_not_be_whole(weight: float) -> None:
    """Two items, one annotator, two classes: quadrature over competence t and spam habits (e, 1 - e)."""
    prior = SpamPrior(1.3, 1.6, 1.4)
    weights = np.array([weight, 1.0, 1.3])
    rows = Rows(np.array([0, 0, 1]), np.zeros(3, int), np.array([0, 1, 0]), weights, np.array([-1, 0]), 1, 2)
    nodes, width = np.polynomial.legendre.leggauss(400)
    u = (nodes + 1) / 2
    grid, jacobian = (
        u**2 * (3 - 2 * u),
        6 * u * (1 - u) * width / 2,
    )  # flat at the ends, where the density is steep
    t, e = grid[:, None], grid[None, :]
    density = t ** (prior.honest - 1) * (1 - t) ** (prior.spamming - 1) * (e * (1 - e)) ** (prior.answers - 1)
    chance = [[t + (1 - t) * e, (1 - t) * (1 - e)], [(1 - t) * e, t + (1 - t) * (1 - e)]]  # [truth][label]
    first = [chance[k][0] ** weights[0] * chance[k][1] ** weights[1] for k in range(2)]
    mass = jacobian[:, None] * jacobian * density * (first[0] + first[1]) * chance[0][0] ** weights[2]
    mass = mass / mass.sum()
    sampled = gibbs("mace", rows, prior, draws=50_000, seed=0, progress=False)
    agree_moments(
        sampled.samples["competence"][..., 0],
        (mass * t).sum(),
        (mass * (t - (mass * t).sum()) ** 2).sum(),
        "competence",
    )
    agree(sampled.samples["spam"][..., 0, 0], (mass * e).sum(), "spam")


# ---- Known labels: independent draws of conjugate posteriors
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", CONJUGATE)
def test_known_labels_give_the_conjugate_posterior(model: str) -> None:
    rows = replace(tiny(), gold=np.array([0, 1, 1, 2]))
    sampled = sample(model, rows, draws=20_000, warmup=100)
    np.testing.assert_array_equal(sampled.responsibilities, np.broadcast_to(np.eye(K)[rows.gold], (4, 4, K)))
    prior = PRIORS[model]
    if model == "mace":  # which rows were spam is not known still
        exact = exact_means("mace", rows, prior)
        for name in ("competence", "spam", "confusion"):
            agree(sampled.samples[name], exact[name], name)
        return
    dirichlet = DirichletPrior.of_counts(prior, K) if model == "prototype_crowd" else prior
    agree_moments(
        sampled.samples["class_prior"], *dirichlet_moments(dirichlet.class_prior + [1, 2, 1]), "class_prior"
    )
    observed = np.zeros((2, K, K))
    np.add.at(observed, (rows.annotator, rows.gold[rows.item], rows.label), 1.0)
    if model == "one_coin":
        right = np.trace(observed, axis1=1, axis2=2)
        mean, variance = dirichlet_moments(
            np.stack([prior.right + right, prior.wrong + observed.sum((1, 2)) - right], 1)
        )
        agree_moments(sampled.samples["accuracy"], mean[:, 0], variance[:, 0], "accuracy")
        return
    counts = dirichlet.confusion + (observed.sum(0) if model == "multinomial" else observed)
    agree_moments(sampled.samples["confusion"], *dirichlet_moments(counts), "confusion")
    if model == "prototype_crowd":
        precision = prior.precision + np.array([[1], [2], [1]])
        sums = np.stack([EMBEDDINGS[rows.gold == k].sum(0) for k in range(K)])
        agree_moments(
            sampled.samples["prototype"],
            sums / precision,
            np.broadcast_to(1 / precision, (K, 2)),
            "prototype",
        )


def test_draws_given_labels_are_independent() -> None:
    rows = replace(tiny(), gold=np.array([0, 1, 1, 2]))
    values = sample("dawid_skene", rows, draws=20_000, chains=1).samples["class_prior"][0, :, 0]
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / math.sqrt(len(values))


@pytest.mark.parametrize("concentration", [0.01, 0.5, 1.0])
def test_concentrations_below_one(concentration: float) -> None:
    """No rows at all: draws of the prior. Most of Dirichlet(0.01, ...) is closer to 0 than a float gets, and
    its logs are finite.
    """
    prior = DirichletPrior(np.full(K, concentration), np.full((K, K), concentration))
    empty = np.zeros(0, int)
    rows = Rows(empty, empty, empty, np.zeros(0), np.full(1, 0), 2, K)
    sampled = gibbs("dawid_skene", rows, prior, draws=20_000, seed=0, progress=False)
    assert np.isfinite(sampled.samples["confusion"]).all() and np.isfinite(sampled.stats["lp"]).all()
    agree_moments(
        sampled.samples["confusion"], *dirichlet_moments(np.full((2, K, K), concentration)), "confusion"
    )


# ---- Every draw: density, probabilities, what belongs together
# ----------------------------------------------------------------------------


def item_scores(model: str, rows: Rows, sampled: Draws, chain: int) -> np.ndarray:
    """log p(truth k, data of item i | sites) of each draw (s, i, k), by loops over rows and dimensions."""
    samples = {name: values[chain] for name, values in sampled.samples.items()}
    log_class = (
        np.log(samples["class_prior"])
        if "class_prior" in samples
        else np.full((len(samples["confusion"]), K), -math.log(K))
    )
    scores = np.repeat(log_class[:, None], rows.num_items, 1)
    with np.errstate(divide="ignore"):
        log_confusion = np.log(samples["confusion"])
    for n in range(len(rows.item)):
        table = log_confusion if model == "multinomial" else log_confusion[:, rows.annotator[n]]
        scores[:, rows.item[n]] += rows.weight[n] * table[:, :, rows.label[n]]
    if model == "prototype_crowd":
        for d in range(2):
            x = np.resize(EMBEDDINGS, (rows.num_items, 2))[:, d]
            scores += -0.5 * (x[:, None] - samples["prototype"][:, None, :, d]) ** 2 - 0.5 * math.log(
                2 * math.pi
            )
    return scores


def item_probabilities(model: str, rows: Rows, sampled: Draws, chain: int) -> np.ndarray:
    scores = item_scores(model, rows, sampled, chain)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.where((rows.gold >= 0)[:, None], np.eye(K)[np.maximum(rows.gold, 0)], p)


def mixed_panel() -> Rows:
    """Whole and other weights, gold classes, an item and an annotator without rows."""
    rows = panel(12, 3)
    retained = (rows.item != 5) & (rows.annotator != 1)
    weight = np.where(rows.item % 2 == 0, 1.0, 1.5)[retained]
    gold = np.where(np.arange(12) % 4 == 3, np.arange(12) % K, -1)
    return Rows(rows.item[retained], rows.annotator[retained], rows.label[retained], weight, gold, 3, K)


def prior_for(model: str, num_annotators: int) -> Any:
    if model == "dawid_skene":
        return DirichletPrior(CLASS_PRIOR, np.stack([CONFUSION + 0.1 * j for j in range(num_annotators)]))
    return PRIORS[model]


@pytest.mark.parametrize("model", CONJUGATE)
def test_stats_are_log_densities_of_the_declared_model(model: str) -> None:
    rows, prior = mixed_panel(), prior_for(model, 3)
    sampled = sample(model, rows, prior, draws=5, chains=2)
    declared = find_model(model).numpyro
    with jax.enable_x64(True):
        data = make_data(model, rows, np.resize(EMBEDDINGS, (12, 2)) if model == "prototype_crowd" else None)
        for c, s in itertools.product(range(2), range(5)):
            sites = {name: jax.numpy.asarray(values[c, s]) for name, values in sampled.samples.items()}
            lp, trace = log_density(declared, (*data, prior), {}, sites)
            assert abs(float(lp) - sampled.stats["lp"][c, s]) < 1e-8
            likelihood = float(trace["label"]["fn"].log_prob(rows.gold).sum())
            assert abs(likelihood - sampled.stats["log_likelihood"][c, s]) < 1e-8


@pytest.mark.parametrize("model", CONJUGATE)
def test_probabilities_and_agreement_belong_to_the_retained_parameters(model: str) -> None:
    rows = mixed_panel()
    sampled = sample(model, rows, prior_for(model, 3), draws=30, chains=2)
    q = np.stack([item_probabilities(model, rows, sampled, c) for c in range(2)])
    np.testing.assert_allclose(sampled.responsibilities, q.mean(1), rtol=0, atol=1e-12)
    assert sampled.agreement is not None
    np.testing.assert_allclose(
        sampled.agreement, np.einsum("csik,il->cskl", q, vote_shares(rows.vote_totals)), rtol=0, atol=1e-12
    )


def test_axes_are_those_of_the_catalogue() -> None:
    sizes = {"true_class": K, "given_label": K, "annotator": 4, "dimension": 2}
    for model in CONJUGATE:
        sampled = sample(model, panel(), prior_for(model, 4), draws=7, chains=3, warmup=2)
        shapes = {
            site: (3, 7, *(sizes[axis] for axis in axes)) for site, axes in find_model(model).dims.items()
        }
        assert {site: values.shape for site, values in sampled.samples.items()} == shapes


def test_what_has_no_rows_follows_the_prior() -> None:
    rows, prior = mixed_panel(), DirichletPrior(CLASS_PRIOR, CONFUSION)
    sampled = sample("dawid_skene", rows, prior, draws=20_000)
    agree_moments(sampled.samples["confusion"][:, :, 1], *dirichlet_moments(CONFUSION), "a silent annotator")
    # Item 5 is silent: its probabilities are the class prior of each draw
    np.testing.assert_allclose(
        sampled.responsibilities[:, 5], sampled.samples["class_prior"].mean(1), rtol=0, atol=1e-12
    )


# ---- Chains: seeds, threads, chunks, thinning, starts
# -------------------------------------------------------------------------------------


def equal(left: Draws, right: Draws) -> bool:
    pairs = [(left.responsibilities, right.responsibilities), (left.agreement, right.agreement)]
    pairs += [(left.samples[name], right.samples[name]) for name in left.samples]
    pairs += [(left.stats[name], right.stats[name]) for name in left.stats]
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("model", CONJUGATE)
def test_bits_depend_on_the_seed_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, prior = mixed_panel(), prior_for(model, 3)
    first = sample(model, rows, prior, draws=40, warmup=11, thin=3, threads=1)
    assert equal(first, sample(model, rows, prior, draws=40, warmup=11, thin=3, threads=4))
    monkeypatch.setattr(gibbs_module, "SECONDS_PER_CHUNK", 0.0)  # a sweep at a time
    assert equal(first, sample(model, rows, prior, draws=40, warmup=11, thin=3, threads=2, progress=True))
    other = sample(model, rows, prior, draws=40, warmup=11, thin=3, seed=2)
    for name, values in first.samples.items():
        assert not np.isclose(values, other.samples[name]).any()
        for one, two in itertools.combinations(values, 2):
            assert not np.isclose(one, two).any()


def test_thinning_keeps_every_third_draw_and_all_probabilities() -> None:
    rows, prior = mixed_panel(), prior_for("dawid_skene", 3)
    full, thinned = (
        sample("dawid_skene", rows, prior, draws=60 // thin, thin=thin, warmup=5) for thin in (1, 3)
    )
    np.testing.assert_array_equal(thinned.samples["confusion"], full.samples["confusion"][:, 2::3])
    np.testing.assert_array_equal(thinned.stats["lp"], full.stats["lp"][:, 2::3])
    np.testing.assert_array_equal(thinned.responsibilities, full.responsibilities)


def test_warmup_sweeps_come_first() -> None:
    rows, prior = mixed_panel(), prior_for("dawid_skene", 3)
    whole, late = (sample("dawid_skene", rows, prior, draws=20 - warmup, warmup=warmup) for warmup in (0, 5))
    np.testing.assert_array_equal(late.samples["confusion"], whole.samples["confusion"][:, 5:])
    q = np.stack([item_probabilities("dawid_skene", rows, late, c) for c in range(4)])
    np.testing.assert_allclose(late.responsibilities, q.mean(1), rtol=0, atol=1e-12)


def first_counts(rows: Rows, **options: Any) -> np.ndarray:
    """Class counts of the start: with no prior to speak of and much data, the first draw's class prior shows
    them.
    """
    prior = DirichletPrior(np.full(K, 1e-3), np.ones((K, K)))
    return sample("dawid_skene", rows, prior, draws=1, warmup=0, chains=200, **options).samples[
        "class_prior"
    ][:, 0]


def test_chains_start_at_the_majority_vote_with_ties_at_random() -> None:
    # 60 items say 0; 20 are tied between 1 and 2, heavier than the 0 they also have; 20 say 2
    annotations = [(i, 0, 0, 1.0) for i in range(60)]
    annotations += [row for i in range(60, 80) for row in ((i, 0, 0, 1.0), (i, 1, 1, 1.5), (i, 2, 2, 1.5))]
    annotations += [(i, 0, 2, 1.0) for i in range(80, 100)]
    item, annotator, label, weight = map(np.array, zip(*annotations, strict=True))
    rows = Rows(item, annotator, label, weight, np.full(100, -1), 3, K)
    shares = first_counts(rows)
    # Given counts n, Dirichlet: mean n / 100. Counts of 1 and 2 are Binomial(20, 1/2) and 20 + the rest
    error = shares.std(0, ddof=1) / math.sqrt(len(shares))
    assert (np.abs(shares.mean(0) - [0.6, 0.1, 0.3]) < 5 * error).all()
    variance = 0.6 * 0.4 / 101, 0.1 * 0.9 / 101 + 5 / 100**2 * 100 / 101
    for k, expected in enumerate(variance):
        squares = (shares[:, k] - shares[:, k].mean()) ** 2
        assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(200)
    silent = Rows(*(np.zeros(0, int),) * 3, np.zeros(0), np.full(90, -1), 1, K)
    assert (
        np.abs(first_counts(silent).mean(0) - 1 / 3) < 5 * first_counts(silent).std(0) / math.sqrt(200)
    ).all()


def test_starts_are_taken_as_given_but_for_gold() -> None:
    rows = replace(panel(100, 2), gold=np.where(np.arange(100) < 40, 2, -1))
    for start, expected in ((np.zeros(100, int), [0.6, 0, 0.4]), (np.ones((200, 100), int), [0, 0.6, 0.4])):
        shares = first_counts(rows, start=start)
        assert (np.abs(shares.mean(0) - expected) < 5 * shares.std(0) / math.sqrt(200) + 1e-4).all()
    mixed = np.repeat([[0] * 100, [1] * 100], 100, 0)
    shares = first_counts(rows, start=mixed)
    assert shares[:100, 0].min() > 0.4 and shares[100:, 1].min() > 0.4


def test_labels_switch_under_a_flat_prior_when_chains_start_apart() -> None:
    """A negative control: the sampler cannot be trusted to find other namings, nor to leave them."""
    rng = np.random.default_rng(0)
    truth = rng.choice(K, p=[0.6, 0.3, 0.1], size=120)
    item, annotator = np.repeat(np.arange(120), 5), np.tile(np.arange(5), 120)
    label = np.where(rng.random(600) < 0.9, truth[item], rng.integers(K, size=600))
    rows = Rows(item, annotator, label, np.ones(600), np.full(120, -1), 5, K)
    flat = DirichletPrior.named("flat", K)
    votes = sample("dawid_skene", rows, flat, draws=2000).samples["class_prior"].mean(1)
    assert np.ptp(votes, axis=0).max() < 0.02 and abs(votes[0, 0] - 0.6) < 0.1
    turned = np.stack([(truth + shift) % K for shift in (0, 1, 2, 0)])
    apart = sample("dawid_skene", rows, flat, draws=2000, start=turned).samples["class_prior"].mean(1)
    np.testing.assert_allclose(apart, [np.roll(votes.mean(0), shift) for shift in (0, 1, 2, 0)], atol=0.02)


# ---- At the border -----------------------------------------------------------------------------------------
# -------------------------------


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (
            (
                "hierarchical_dawid_skene has no Gibbs blocks: "
                ".*choose one of multinomial, dawid_skene, one_coin"
            ),
            {"model": "hierarchical_dawid_skene"},
        ),
        ("unknown model 'rater'", {"model": "rater"}),
        ("prototype_crowd needs embeddings", {"model": "prototype_crowd", "prior": Prior()}),
        (
            r"got shape \(3, 2\) for 4 items",
            {"model": "prototype_crowd", "prior": Prior(), "embeddings": EMBEDDINGS[:3]},
        ),
        (
            "embeddings must be finite",
            {"model": "prototype_crowd", "prior": Prior(), "embeddings": EMBEDDINGS * np.inf},
        ),
        ("> 0, got 0", {"model": "prototype_crowd", "prior": Prior(precision=0.0), "embeddings": EMBEDDINGS}),
        ("dawid_skene takes no embeddings", {"embeddings": EMBEDDINGS}),
        ("`chains` must be at least 1, got 0", {"chains": 0}),
        ("`warmup` must be at least 0, got -1", {"warmup": -1}),
        ("`draws` must be at least 1, got 0", {"draws": 0}),
        ("`thin` must be at least 1, got 0", {"thin": 0}),
        ("`threads` must be at least 1, got 0", {"threads": 0}),
        (r"codes 0 \.\. 3, outside the classes 0 \.\. 2", {"start": np.array([0, 1, 2, 3])}),
        (r"codes -1 \.\. 2, outside", {"start": np.array([0, 1, 2, -1])}),
        (r"got shape \(3,\) for 4 items", {"start": np.array([0, 1, 2])}),
        (r"got shape \(3, 4\) for 4 items", {"start": np.zeros((3, 4), int)}),
        ("the prior is for 2 classes, the rows have 3", {"prior": DirichletPrior.named("rater", 2)}),
        (r"shape \(4, 3, 3\) do not fit 2 confusion matrices", {"prior": prior_for("dawid_skene", 4)}),
        (
            r"shape \(1, 3, 3\) do not fit 1 confusion matrices",
            {"model": "multinomial", "prior": DirichletPrior(CLASS_PRIOR, CONFUSION[None])},
        ),
        ("> 0, got -1", {"model": "one_coin", "prior": CoinPrior(CLASS_PRIOR, 1.0, -1.0)}),
        ("> 0, got 0", {"model": "mace", "prior": SpamPrior(answers=0.0)}),
        (
            r"item codes outside 0 \.\. 3: 0 \.\. 4",
            {"rows": replace(tiny(), item=tiny().item + (np.arange(8) > 6))},
        ),
        (
            r"annotator codes outside 0 \.\. 0: 0 \.\. 1",
            {"rows": replace(tiny(), num_annotators=1), "prior": DirichletPrior(CLASS_PRIOR, CONFUSION)},
        ),
        (
            r"label codes outside 0 \.\. 1: 0 \.\. 2",
            {"rows": replace(tiny(), num_classes=2), "prior": DirichletPrior.named("rater", 2)},
        ),
        (r"gold codes outside -1 \.\. 2: 3 \.\. 3", {"rows": replace(tiny(), gold=np.full(4, 3))}),
        ("sorted by item", {"rows": replace(tiny(), item=tiny().item[::-1].copy())}),
    ],
)
def test_what_cannot_be_sampled_is_refused_and_named(message: str, options: dict[str, Any]) -> None:
    given = {
        "model": "dawid_skene",
        "rows": tiny(),
        "prior": PRIORS["dawid_skene"],
        "seed": 0,
        "progress": False,
    } | options
    with pytest.raises(ValueError, match=message):
        gibbs(**given)


def test_the_prior_of_another_model_is_refused() -> None:
    with pytest.raises(TypeError, match="the prior of mace is a SpamPrior, got DirichletPrior"):
        gibbs("mace", tiny(), PRIORS["dawid_skene"], seed=0)
    with pytest.raises(
        TypeError,
        match="the prior of prototype_crowd is a Prior, got CoinPrior",
    ):
        gibbs("prototype_crowd", tiny(), PRIORS["one_coin"], seed=0)


def test_a_failing_chain_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def advance(first: int, *_: Any) -> None:
        calls.append(first)
        if first >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(gibbs_module.kernels, "advance", advance)
    monkeypatch.setattr(gibbs_module, "SECONDS_PER_CHUNK", 0.0)
    with pytest.raises(KeyboardInterrupt):
        sample("dawid_skene", tiny(), warmup=10**9, draws=1, threads=1)
    assert len(calls) <= 5

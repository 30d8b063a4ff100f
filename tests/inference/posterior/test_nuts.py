"""NUTS: where chains begin, that the draws are those of the posterior, and that running chains side by side
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch
from arviz_stats import ess
from pyro.infer import MCMC
from pyro.infer import NUTS as PyroNUTS

from probcrowd.data.files import anesthesia
from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.density import Target, make_data, make_target
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.initial import find_mode, find_modes, vote_start
from probcrowd.inference.posterior.nuts import nuts
from probcrowd.models.catalogue import MODELS
from probcrowd.models.priors import DirichletPrior

CLASSES = 4


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def anaesthetists() -> Rows:
    return Rows.from_annotations(anesthesia())


def target_of(
    name: str, prior: Any, rows: Rows, embeddings: np.ndarray | None = None
) -> tuple[Target, tuple[Any, ...]]:
    data = make_data(name, rows, embeddings)
    return make_target(name, prior, data), data


def em(
    rows: Rows, class_counts: np.ndarray, row_counts: np.ndarray, steps: int = 3000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dawid and Skene's EM from the vote shares, with pseudo-counts added in each M step; loops over rows."""
    share = np.zeros((rows.num_items, rows.num_classes))
    np.add.at(share, (rows.item, rows.label), 1.0)
    share /= share.sum(1, keepdims=True)
    for _ in range(steps):
        prior = share.sum(0) + class_counts
        prior /= prior.sum()
        confusion = np.tile(row_counts, (rows.num_annotators, 1, 1)).astype(float)
        np.add.at(confusion, (rows.annotator, slice(None), rows.label), share[rows.item])
        confusion /= confusion.sum(-1, keepdims=True)
        logs = np.tile(np.log(prior), (rows.num_items, 1))
        with np.errstate(divide="ignore"):
            np.add.at(logs, rows.item, np.log(confusion)[rows.annotator, :, rows.label])
        share = np.exp(logs - logs.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
    return prior, confusion, share


def test_chains_start_at_ems_fixed_point_with_one_more_pseudo_count() -> None:
    rows, prior = anaesthetists(), DirichletPrior.named("rater", CLASSES)
    target, data = target_of("dawid_skene", prior, rows)
    mode = find_mode(target, data, vote_start(target, data))
    class_prior, confusion, _ = em(
        rows, prior.class_prior, prior.confusion
    )  # concentrations as counts: one more than the MAP's
    np.testing.assert_allclose(mode.sites["class_prior"], class_prior, atol=2e-5)
    np.testing.assert_allclose(mode.sites["confusion"], confusion, atol=2e-5)
    assert mode.gradient < 1e-3
    plain = em(rows, prior.class_prior - 1, prior.confusion - 1)[0]
    assert np.abs(mode.sites["class_prior"] - plain).max() > 1e-3


def test_without_the_jacobian_the_mode_is_the_published_map_estimate() -> None:
    """Stan User's Guide priors: log likelihood -202.44341, class prior (.3771, .3973, .1690, .0566)."""
    rows = anaesthetists()
    target, data = target_of("dawid_skene", DirichletPrior.named("stan", CLASSES), rows)
    mode = find_mode(target, data, vote_start(target, data), jacobian=False)
    np.testing.assert_allclose(mode.sites["class_prior"], [0.3771, 0.3973, 0.1690, 0.0566], atol=1e-4)
    items, _ = target.items({name: jax.numpy.asarray(mode.sites[name]) for name in target.latent}, data)
    np.testing.assert_allclose(float(items.log_prob(rows.gold).sum()), -202.44341, atol=1e-3)


def test_dispersed_starts_reveal_the_other_modes() -> None:
    rows = anaesthetists()
    flat = find_modes(*target_of("dawid_skene", DirichletPrior.named("flat", CLASSES), rows), seed=0)
    assert len(flat) >= 3
    np.testing.assert_allclose(flat["lead"], 0, atol=1e-3)  # renamings of one mode are equally high
    assert (flat["agreement"][1:] < flat["agreement"][0] - 0.1).all()
    named = find_modes(*target_of("dawid_skene", DirichletPrior.named("rater", CLASSES), rows), seed=0)
    assert named["starts"].sum() == flat["starts"].sum() == 9
    assert (named["lead"][1:] < -10).all()


def compared(first: Draws, second: Draws, sites: tuple[str, ...]) -> float:
    """The largest difference of posterior means, in standard errors."""
    worst = 0.0
    for site in sites:
        moments = []
        for draws in (first, second):
            values = draws.samples[site].reshape(*draws.samples[site].shape[:2], -1)
            sizes = np.array(
                [
                    float(ess(values[..., column], chain_axis=0, draw_axis=1, method="mean"))
                    for column in range(values.shape[2])
                ]
            )
            moments.append((values.mean((0, 1)), values.var((0, 1)) / sizes))
        (mean, error), (other, other_error) = moments
        worst = max(worst, float((np.abs(mean - other) / np.sqrt(error + other_error)).max()))
    return worst


@pytest.fixture(scope="module")
def sampled() -> Draws:
    return nuts(
        "dawid_skene",
        anaesthetists(),
        DirichletPrior.named("rater", CLASSES),
        warmup=500,
        draws=1000,
        seed=1,
        progress=False,
    )


def test_nuts_and_gibbs_draw_from_the_same_posterior(sampled: Draws) -> None:
    rows, prior = anaesthetists(), DirichletPrior.named("rater", CLASSES)
    other = gibbs("dawid_skene", rows, prior, warmup=500, draws=2000, thin=10, seed=2, progress=False)
    assert compared(sampled, other, ("class_prior", "confusion")) < 4.5  # 84 entries
    np.testing.assert_allclose(sampled.responsibilities.mean(0), other.responsibilities.mean(0), atol=0.03)
    wrong = gibbs(
        "dawid_skene",
        rows,
        DirichletPrior.named("accurate", CLASSES),
        warmup=500,
        draws=2000,
        thin=10,
        seed=2,
        progress=False,
    )
    assert compared(sampled, wrong, ("class_prior", "confusion")) > 10  # so the comparison sees another prior


def stans_density(rows: Rows, prior: DirichletPrior) -> Any:
    """Minus the log density on logits of every simplex with the last logit 0, written as the Stan User's
    Guide does, row by row and in torch.
    """
    items, annotators, classes = rows.num_items, rows.num_annotators, rows.num_classes
    class_concentration, row_concentration = torch.tensor(prior.class_prior), torch.tensor(prior.confusion)
    item, annotator, label = (torch.tensor(array) for array in (rows.item, rows.annotator, rows.label))

    def potential(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        pi = torch.log_softmax(torch.cat([parameters["pi"], torch.zeros(1)]), 0)
        theta = torch.log_softmax(
            torch.cat([parameters["theta"], torch.zeros(annotators, classes, 1)], -1), -1
        )
        log_q = pi.repeat(items, 1).index_add(0, item, theta[annotator, :, label])
        # The density of a simplex on its logits is that of the Dirichlet times the product of all entries:
        # concentrations, not minus 1
        return -(
            torch.logsumexp(log_q, 1).sum()
            + (class_concentration * pi).sum()
            + (row_concentration * theta).sum()
        )

    return potential


def test_an_independent_sampler_of_an_independently_written_density_agrees(sampled: Draws) -> None:
    rows, prior = anaesthetists(), DirichletPrior.named("rater", CLASSES)
    torch.set_default_dtype(torch.float64)
    try:
        begin = {
            "pi": torch.zeros(2, CLASSES - 1),
            "theta": (2 * torch.eye(CLASSES) - 2 * torch.eye(CLASSES)[-1])[:, :-1].repeat(2, 5, 1, 1),
        }
        chains = []
        for chain in range(2):
            kernel = PyroNUTS(potential_fn=stans_density(rows, prior))
            first = {name: value[chain] for name, value in begin.items()}
            sampler = MCMC(
                kernel, num_samples=250, warmup_steps=150, initial_params=first, disable_progbar=True
            )
            torch.manual_seed(chain)
            sampler.run()
            chains.append(sampler.get_samples())
    finally:
        torch.set_default_dtype(torch.float32)
    stacked = {name: torch.stack([draws[name] for draws in chains]) for name in begin}
    zero = torch.zeros(2, 250, 1)
    samples = {
        "class_prior": torch.softmax(torch.cat([stacked["pi"], zero], -1), -1).numpy(),
        "confusion": torch.softmax(
            torch.cat([stacked["theta"], torch.zeros(2, 250, 5, CLASSES, 1)], -1), -1
        ).numpy(),
    }
    other = Draws(samples, {}, np.zeros((2, 1, CLASSES)), np.zeros((2, 250, CLASSES, CLASSES)))
    assert compared(sampled, other, ("class_prior", "confusion")) < 4.5
    np.testing.assert_allclose(
        sampled.samples["class_prior"].mean((0, 1)), [0.376, 0.407, 0.143, 0.074], atol=0.005
    )  # rater's own answer


@pytest.mark.parametrize("name", ["prototype_crowd"])
def test_with_all_labels_known_the_posterior_is_conjugate(name: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 20)
    item = np.repeat(np.arange(20), 2)
    rows = Rows(item, np.tile([0, 1], 20), rng.integers(0, 3, 40), np.ones(40), truth, 2, 3)
    embeddings = rng.normal(size=(20, 2)) + truth[:, None] if MODELS[name].features else None
    prior = MODELS[name].prior(3)
    sampled = nuts(
        name,
        rows,
        prior,
        embeddings=embeddings,
        chains=2,
        warmup=300,
        draws=1000,
        method="vectorized",
        seed=3,
        progress=False,
    )
    concentrations = DirichletPrior.of_counts(prior, 3) if MODELS[name].features else prior
    counts = np.tile(concentrations.confusion, (2, 1, 1)).astype(float)
    np.add.at(counts, (rows.annotator, truth[rows.item], rows.label), 1)
    sizes = np.bincount(truth, minlength=3)
    expected = {"class_prior": concentrations.class_prior + sizes, "confusion": counts}
    for site, alpha in expected.items():
        mean = alpha / alpha.sum(-1, keepdims=True)
        spread = np.sqrt(mean * (1 - mean) / (alpha.sum(-1, keepdims=True) + 1))
        assert (np.abs(sampled.samples[site].mean((0, 1)) - mean) < 4.5 * spread / np.sqrt(800)).all()
        np.testing.assert_allclose(sampled.samples[site].std((0, 1)), spread, rtol=0.15)
    if embeddings is not None:
        centre = (
            np.stack([embeddings[truth == k].sum(0) for k in range(3)]) / (prior.precision + sizes)[:, None]
        )
        spread = (prior.precision + sizes)[:, None] ** -0.5
        assert (
            np.abs(sampled.samples["prototype"].mean((0, 1)) - centre) < 4.5 * spread / np.sqrt(800)
        ).all()
    np.testing.assert_array_equal(sampled.responsibilities[0], np.eye(3)[truth])


def test_statistics_belong_to_their_draws(sampled: Draws) -> None:
    rows, prior = anaesthetists(), DirichletPrior.named("rater", CLASSES)
    target, data = target_of("dawid_skene", prior, rows)
    for chain, draw in ((0, 0), (3, 999)):
        sites = {name: jax.numpy.asarray(sampled.samples[name][chain, draw]) for name in target.latent}
        np.testing.assert_allclose(
            sampled.stats["lp"][chain, draw], float(target.log_density(sites, data)), atol=1e-8
        )
        items, _ = target.items(sites, data)
        np.testing.assert_allclose(
            sampled.stats["log_likelihood"][chain, draw], float(items.log_prob(rows.gold).sum()), atol=1e-8
        )
    assert set(sampled.stats) == {
        "lp",
        "log_likelihood",
        "diverging",
        "energy",
        "n_steps",
        "acceptance_rate",
        "step_size",
        "tree_depth",
    }
    assert (2.0 ** sampled.stats["tree_depth"] > sampled.stats["n_steps"]).all() and not sampled.stats[
        "diverging"
    ].any()
    np.testing.assert_allclose(sampled.responsibilities.sum(-1), 1)
    np.testing.assert_allclose(sampled.agreement.sum((-1, -2)), rows.num_items)
    assert set(sampled.samples) == {"class_prior", "confusion"} and sampled.samples["confusion"].shape == (
        4,
        1000,
        5,
        CLASSES,
        CLASSES,
    )
    # Draws after the warm-up have one step size per chain; it was adapted before
    assert (np.ptp(sampled.stats["step_size"], axis=1) == 0).all()


SHORT: dict[str, Any] = {
    "warmup": 10,
    "draws": 12,
    "progress": False,
}  # one compiled program for the tests below


def test_chains_side_by_side_or_one_after_the_other_draw_the_same() -> None:
    rows = anaesthetists()
    runs = {
        way: nuts("one_coin", rows, method=way, seed=5, chains=2, **SHORT).samples["accuracy"]
        for way in ("parallel", "sequential", "vectorized")
    }
    np.testing.assert_array_equal(runs["sequential"], runs["parallel"])
    np.testing.assert_allclose(runs["vectorized"], runs["parallel"], rtol=1e-4)
    again = nuts("one_coin", rows, method="parallel", seed=5, chains=2, **SHORT).samples["accuracy"]
    np.testing.assert_array_equal(again, runs["parallel"])
    other = nuts("one_coin", rows, method="parallel", seed=6, chains=2, **SHORT).samples["accuracy"]
    assert (other != again).any() and (again[0] != again[1]).any()


def test_thinning_keeps_the_last_of_each_few_across_chunks() -> None:
    rows = anaesthetists()
    plain = nuts("one_coin", rows, seed=1, chains=1, **SHORT | {"draws": 60}).samples["accuracy"]
    thinned = nuts("one_coin", rows, seed=1, chains=1, thin=3, **SHORT | {"draws": 20}).samples["accuracy"]
    np.testing.assert_allclose(thinned, plain[:, 2::3], rtol=1e-12)


def test_settings_of_jax_are_left_alone_and_single_precision_is_possible() -> None:
    with jax.enable_x64(False):
        assert (
            nuts("one_coin", anaesthetists(), chains=1, seed=0, double=False, **SHORT)
            .samples["accuracy"]
            .dtype
            == np.float32
        )
        assert (
            nuts("one_coin", anaesthetists(), chains=1, seed=0, **SHORT).samples["accuracy"].dtype
            == np.float64
        )
        assert not jax.config.jax_enable_x64


def test_one_program_serves_other_data_of_the_same_shape() -> None:
    rows = anaesthetists()
    prior = DirichletPrior.named("rater", CLASSES)
    assert make_target("dawid_skene", prior, make_data("dawid_skene", rows, None)) is make_target(
        "dawid_skene", DirichletPrior.named("rater", CLASSES), make_data("dawid_skene", rows, None)
    )
    assert make_target("dawid_skene", prior, make_data("dawid_skene", rows, None)) is not make_target(
        "dawid_skene", DirichletPrior.named("stan", CLASSES), make_data("dawid_skene", rows, None)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("chains", 0), ("draws", 0), ("warmup", 0), ("thin", 0), ("max_depth", 0), ("target_accept", 1.0)],
)
def test_invalid_counts_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be"):
        nuts("dawid_skene", anaesthetists(), seed=0, progress=False, **settings)

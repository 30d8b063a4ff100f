"""Simulation-based calibration: right samplers have uniform ranks and honest intervals, wrong ones visibly do
not.
"""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np
import numpyro
import pytest
from example_covariates import rows_for
from jax import Array
from numpyro import handlers
from numpyro.distributions import Distribution, constraints
from numpyro.infer import NUTS

from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.sbc import Calibration, calibrate
from probcrowd.metrics.intervals import LEVELS
from probcrowd.models.aggregation.observed_numpyro import AnnotatedItems
from probcrowd.models.catalogue import MODELS
from probcrowd.models.priors import DirichletPrior


def design(items: int = 30, annotators: int = 6, labels: int = 4, classes: int = 2) -> Rows:
    """Each item labelled by a few annotators drawn at random."""
    rng = np.random.default_rng(0)
    item = np.repeat(np.arange(items), labels)
    annotator = np.concatenate([rng.choice(annotators, labels, replace=False) for _ in range(items)])
    return Rows(
        item, annotator, np.zeros_like(item), np.ones(len(item)), np.full(items, -1), annotators, classes
    )


def closed_form(
    rows: Rows, generator: np.random.Generator, *, narrower: float = 1.0, draws: int = 99
) -> dict[str, np.ndarray]:
    """Dirichlet posteriors of Dawid-Skene with all true classes known; each concentration multiplied by
    `narrower`.
    """
    prior = DirichletPrior.named("accurate", rows.num_classes)
    counts = np.tile(prior.confusion, (rows.num_annotators, 1, 1)).astype(float)
    np.add.at(counts, (rows.annotator, rows.gold[rows.item], rows.label), 1)
    classes = prior.class_prior + np.bincount(rows.gold, minlength=rows.num_classes)
    rows_drawn = [[generator.dirichlet(narrower * row, draws) for row in matrix] for matrix in counts]
    return {
        "class_prior": generator.dirichlet(narrower * classes, draws),
        "confusion": np.moveaxis(np.array(rows_drawn), 2, 0),
    }


def run(name: str, sampler: Any, classes: int = 2, **changed: Any) -> Calibration:
    settings: dict[str, Any] = {"simulations": 200, "warmup": 100, "draws": 99, "thin": 5, "seed": 1}
    dimension = 2 if MODELS[name].features else None
    return calibrate(
        name,
        MODELS[name].prior(classes),
        rows_for(MODELS[name], design(classes=classes)),
        sampler=sampler,
        dimension=dimension,
        **settings | changed,
    )


def misses(calibration: Calibration) -> np.ndarray:
    """Mean coverage of all functionals minus the nominal one, by level."""
    return (calibration.table().drop(columns="p").mean() - calibration.nominal()).to_numpy()


def test_the_closed_form_posterior_is_calibrated_and_a_narrower_one_is_not() -> None:
    right = run("dawid_skene", closed_form, known=True)
    assert right.p_value > 0.01 and np.abs(misses(right)).max() < 0.02
    narrow = run("dawid_skene", lambda rows, generator: closed_form(rows, generator, narrower=4), known=True)
    assert narrow.p_value < 1e-6 and (misses(narrow) < -0.1).all()


def test_gibbs_is_calibrated_and_under_another_prior_it_is_not() -> None:
    right = run("dawid_skene", "gibbs")
    assert right.p_value > 0.01 and np.abs(misses(right)).max() < 0.03
    wrong = run(
        "dawid_skene",
        "gibbs",
        fitted_prior=DirichletPrior(np.full(2, 1.0), np.array([[20.0, 1.0], [1.0, 20.0]])),
    )
    assert wrong.p_value < 1e-6 and (misses(wrong) < -0.05).all()


def test_nuts_is_calibrated_all_simulations_side_by_side() -> None:
    calibration = run("dawid_skene", "nuts", simulations=60, draws=49, thin=2)
    assert calibration.p_value > 0.01 and np.abs(misses(calibration)).max() < 0.06


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    ("name", "sampler"),
    [(name, "nuts") for name in MODELS]
    + [(name, "gibbs") for name in MODELS if MODELS[name].gibbs is not None],
)
def test_every_model_is_calibrated(name: str, sampler: str, classes: int) -> None:
    calibration = run(name, sampler, classes, thin=4)
    print(
        f"\n{name}, {sampler}, {classes} classes: p {calibration.p_value:.3f}, "
        f"coverage minus nominal {misses(calibration).round(3)}"
    )
    assert calibration.p_value > 0.001
    assert np.abs(misses(calibration)).max() < 0.03


def test_the_table_counts_ranks() -> None:
    ranks = np.stack([np.arange(100), np.full(100, 50), np.repeat([0, 99], 50)], axis=1)
    calibration = Calibration(ranks, ["uniform", "always in the middle", "always outside"], 99)
    table = calibration.table()
    assert table["p"].iloc[0] > 0.99 and (table["p"].iloc[1:] < 1e-10).all()
    covered = table[[f"covered_{level:g}" for level in LEVELS]].to_numpy()
    np.testing.assert_allclose(covered, [[0.5, 0.8, 0.9, 0.96], [1, 1, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(calibration.nominal(), [0.5, 0.8, 0.9, 0.96])
    assert calibration.p_value < 1e-9


class Panel(Distribution):
    """All labels of a table at once, given what a model says of its items: what another library needs to
    simulate and to score.
    """

    pytree_data_fields = ("items",)

    def __init__(self, items: AnnotatedItems) -> None:
        self.items = items
        super().__init__(event_shape=items.rows.label.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.nonnegative_integer, 1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        for_truth, for_labels = jax.random.split(key)
        return self.items.draw_labels(for_labels, self.items.draw_truth(for_truth))

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        rows = self.items.rows
        seen = Rows(
            rows.item, rows.annotator, value, rows.weight, rows.gold, rows.num_annotators, rows.num_classes
        )
        items = AnnotatedItems(seen, self.items.log_class, self.items.log_table, self.items.table_of_row)
        return items.log_prob(rows.gold).sum()


@pytest.mark.slow
def test_another_librarys_calibration_agrees() -> None:
    """simuk simulates from and fits the declared Dawid-Skene with NumPyro's own driver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from simuk import SBC

    rows = jax.tree.map(jax.numpy.asarray, design(classes=2))
    prior = DirichletPrior.named("accurate", 2)

    def model(label: Any = None) -> None:
        with handlers.block(hide=["label"]), handlers.trace() as trace:
            MODELS["dawid_skene"].numpyro(rows, prior)
        numpyro.sample("label", Panel(trace["label"]["fn"]), obs=label)

    settings = {"num_warmup": 200, "num_samples": 99, "num_chains": 1, "thinning": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        second = SBC(
            NUTS(model), num_simulations=60, sample_kwargs=settings, seed=3, data_dir={"label": rows.label}
        )
        second.run_simulations()
    ranks = [
        np.asarray(second.simulations["prior_sbc"][name]).reshape(60, -1)
        for name in ("class_prior", "confusion")
    ]
    calibration = Calibration(np.concatenate(ranks, 1).astype(int), [f"{n}" for n in range(26)], 99)
    print(f"\nsimuk: p {calibration.p_value:.3f}, coverage minus nominal {misses(calibration).round(3)}")
    assert calibration.p_value > 0.001

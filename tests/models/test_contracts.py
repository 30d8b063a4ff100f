"""Contracts of every registered model of annotation: declarations, axes, priors, initial values, M step,
Gibbs blocks and simulation agree.

A new model needs no entry here: tests run over `MODELS`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import jax
import numpy as np
import pyro
import pytest
import torch
from example_covariates import rows_for
from pyro.infer import TraceEnum_ELBO, config_enumerate

from probcrowd.data.rows import Rows
from probcrowd.inference.posterior.density import Target, compiled, make_data, make_target
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.initial import voted_sites
from probcrowd.models.catalogue import MODELS
from probcrowd.models.expected_counts import ExpectedCounts
from probcrowd.models.model import Model

ITEMS, ANNOTATORS, CLASSES, DIMENSION = 8, 4, 3, 2
EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)

pytestmark = pytest.mark.usefixtures("double_precision")


def panel(model: Model, items: int) -> Rows:
    """A full panel of annotators who are right with 0.75, with weights; no gold."""
    generator = np.random.default_rng(0)
    item, annotator = np.repeat(np.arange(items), ANNOTATORS), np.tile(np.arange(ANNOTATORS), items)
    truth = np.arange(items) % CLASSES
    right = generator.random(len(item)) < 0.75
    label = np.where(right, truth[item], generator.integers(CLASSES, size=len(item)))
    weight, gold = generator.uniform(0.5, 2, len(item)), np.full(items, -1)
    return rows_for(model, Rows(item, annotator, label, weight, gold, ANNOTATORS, CLASSES))


def problem(
    model: Model, prior: str | None = None, items: int = ITEMS
) -> tuple[Target, tuple[Any, ...], Rows]:
    rows = panel(model, items)
    features = np.random.default_rng(1).normal(size=(items, DIMENSION)) if model.features else None
    data = make_data(model, rows, features)
    return make_target(model, model.prior(CLASSES, prior), data), data, rows


def drawn(target: Target, data: tuple[Any, ...]) -> dict[str, Any]:
    return target.prior_draw(jax.random.key(0), data)


@EVERY
def test_pyro_and_numpyro_declare_the_same_density(model: Model) -> None:
    if model.features:
        pytest.skip("declared for batches of tasks in Pyro; test_declarations compares it")
    target, data, rows = problem(model)
    sites = drawn(target, data)
    at = pyro.poutine.condition(
        model.pyro, data={name: torch.tensor(np.asarray(sites[name])) for name in target.latent}
    )
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(config_enumerate(at), lambda *_: None, rows, target.prior)
    density = target.log_density({name: jax.numpy.asarray(sites[name]) for name in target.latent}, data)
    np.testing.assert_allclose(-loss, float(density), rtol=0, atol=1e-10)


@EVERY
def test_order_of_rows_and_duplicates_do_not_change_the_density(model: Model) -> None:
    target, data, rows = problem(model)
    order = np.repeat(np.arange(len(rows.item)).reshape(ITEMS, -1)[:, ::-1], 2)  # items stay sorted
    columns = {name: getattr(rows, name)[order] for name in ("item", "annotator", "label")}
    twice = make_data(
        model,
        replace(rows, weight=rows.weight[order] / 2, **columns),
        None if len(data) == 1 else np.asarray(data[0]),
    )
    sites = {name: value for name, value in drawn(target, data).items() if name in target.latent}
    densities = [float(target.log_density(sites, each)) for each in (data, twice)]
    np.testing.assert_allclose(densities[1], densities[0], rtol=0, atol=1e-10)


@EVERY
def test_sites_have_the_axes_of_dims_under_every_named_prior(model: Model) -> None:
    sizes = {
        "item": ITEMS,
        "annotator": ANNOTATORS,
        "true_class": CLASSES,
        "given_label": CLASSES,
        "dimension": DIMENSION,
    } | dict.fromkeys((*model.annotator_covariates, *model.item_covariates), 2)
    assert model.priors
    for name in model.priors:
        target, data, _ = problem(model, name)
        shapes = jax.eval_shape(lambda data, draw=target.prior_draw: draw(jax.random.key(0), data), data)
        assert set(shapes) == set(model.dims)
        for site, axes in model.dims.items():
            assert len(shapes[site].shape) == len(axes), site
            for axis, size in zip(axes, shapes[site].shape, strict=True):
                assert size == sizes.get(axis, size), (site, axis)


def test_flat_and_default_priors_have_the_names_that_users_expect() -> None:
    for model in MODELS.values():
        assert "flat" in model.priors or list(model.priors) == ["none"], model.name


@EVERY
def test_initial_values_have_a_finite_density(model: Model) -> None:
    target, data, rows = problem(model)
    sites = voted_sites(target, rows, None if len(data) == 1 else np.asarray(data[0]))
    assert set(sites) == set(target.latent)
    expected = jax.eval_shape(lambda data: target.prior_draw(jax.random.key(0), data), data)
    assert {name: np.shape(sites[name]) for name in sites} == {name: expected[name].shape for name in sites}
    density = target.log_density({name: jax.numpy.asarray(value) for name, value in sites.items()}, data)
    assert np.isfinite(float(density))


@EVERY
def test_the_m_step_never_lowers_the_log_posterior(model: Model) -> None:
    if model.m_step is None:
        pytest.skip("no closed-form M step")
    # Concentrations of 1 and items enough for every label: densities are finite, maxima not on the border
    target, data, rows = problem(model, "flat" if "flat" in model.priors else None, items=60)
    features = None if len(data) == 1 else np.asarray(data[0])
    density = compiled(target.log_density)
    sites: dict[str, Any] = voted_sites(target, rows, features)
    values = []
    for _ in range(40):
        latent = {name: jax.numpy.asarray(sites[name]) for name in target.latent}
        values.append(float(density(latent, data)))
        responsibilities = np.asarray(compiled(target.truth)(latent, data))
        expected = ExpectedCounts.of(rows, responsibilities, features)
        sites = model.m_step(expected, target.prior, sites)
    assert np.isfinite(values).all() and (np.diff(values) > -1e-9).all()
    assert values[-1] > values[0] + 0.1 and values[-1] - values[-2] < 0.1 * (values[1] - values[0])


@EVERY
def test_permuting_classes_changes_nothing_where_the_prior_is_exchangeable(model: Model) -> None:
    name = "flat" if "flat" in model.priors else None
    target, data, _ = problem(model, name)
    if not model.exchangeable(target.prior, CLASSES):
        pytest.skip("the prior identifies the classes")
    sites, density, densities = drawn(target, data), compiled(target.log_density), []
    for order in permutations(range(CLASSES)):
        permuted = {}
        for site in target.latent:
            values = sites[site]
            for place, axis in enumerate(model.dims[site]):
                values = np.take(values, order, place) if axis == "true_class" else values
            permuted[site] = jax.numpy.asarray(values)
        densities.append(float(density(permuted, data)))
    assert np.ptp(densities) < 1e-9


@EVERY
def test_gibbs_draws_have_the_density_of_the_declaration(model: Model) -> None:
    if model.gibbs is None:
        pytest.skip("sampled by NUTS")
    target, data, rows = problem(model)
    features = None if len(data) == 1 else np.asarray(data[0])
    result = gibbs(model, rows, embeddings=features, chains=1, warmup=3, draws=3, seed=0, progress=False)
    for draw in range(3):
        sites = {name: jax.numpy.asarray(result.samples[name][0, draw]) for name in target.latent}
        density = compiled(target.log_density)(sites, data)
        np.testing.assert_allclose(float(density), result.stats["lp"][0, draw], rtol=0, atol=1e-8)


@EVERY
def test_simulated_labels_are_classes(model: Model) -> None:
    target, data, rows = problem(model)
    items, _ = target.items(drawn(target, data), data)
    keys = jax.random.split(jax.random.key(3))
    truth = items.draw_truth(keys[0])
    labels = np.asarray(items.draw_labels(keys[1], truth))
    assert labels.shape == rows.label.shape and set(labels) <= set(range(CLASSES))
    if model.draw_features is not None:
        features = model.draw_features(keys[0], drawn(target, data), truth, (ITEMS, DIMENSION))
        assert features.shape == (ITEMS, DIMENSION) and np.isfinite(np.asarray(features)).all()

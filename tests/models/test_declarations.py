"""Each model of annotation with a loop in `annotation_loops` is declared in Pyro and in NumPyro; both
densities equal the loop to 1e-10. Contracts of all models are in `test_contracts`.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import annotation_loops as loops
import jax
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from numpyro.infer.util import log_density as numpyro_log_density
from pyro.infer import TraceEnum_ELBO, config_enumerate

from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.data.vote_tensors import SparseVotes
from probcrowd.inference.posterior.density import Target, make_data, make_target
from probcrowd.models.catalogue import MODELS, find_model
from probcrowd.models.meta.prototype import Prior, prototype_crowd
from probcrowd.models.priors import CoinPrior, DirichletPrior, LogitPrior, SpamPrior

ITEMS, ANNOTATORS, CLASSES, ROWS = 6, 3, 3, 20
LOGISTIC = ("hierarchical_dawid_skene", "item_difficulty", "logistic_random_effects")


pytestmark = pytest.mark.usefixtures("double_precision")


def some_rows(seed: int = 0) -> Rows:
    """Rows with weights, repeated annotators, gold for some; item 4 has no row, annotator 2 few."""
    rng = np.random.default_rng(seed)
    item = np.sort(rng.choice([0, 1, 2, 3, 5], ROWS))
    gold = np.array([-1, 2, -1, -1, 0, -1])
    return Rows(
        item,
        rng.choice(ANNOTATORS, ROWS, p=[0.5, 0.4, 0.1]),
        rng.integers(0, CLASSES, ROWS),
        rng.uniform(0.5, 2, ROWS),
        gold,
        ANNOTATORS,
        CLASSES,
    )


def some_prior(name: str, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if name in ("multinomial", "dawid_skene"):
        return DirichletPrior(rng.uniform(0.5, 3, CLASSES), rng.uniform(0.5, 3, (CLASSES, CLASSES)))
    if name == "one_coin":
        return CoinPrior(rng.uniform(0.5, 3, CLASSES), 2.5, 1.5)
    if name == "mace":
        return SpamPrior(0.7, 0.4, 3.0)
    if name == "prototype_crowd":
        return Prior(0.3, 2.0, 0.5, accuracy=0.6)
    return LogitPrior(rng.uniform(0.5, 3, CLASSES), rng.normal(size=(CLASSES, CLASSES)), 0.8, 1.3, 0.7)


def problem(
    name: str, prior: Any = None, seed: int = 0
) -> tuple[Target, tuple[Any, ...], Rows, np.ndarray | None, dict[str, np.ndarray]]:
    """The density of a model, its data and a random point drawn from its prior."""
    rows = some_rows(seed)
    embeddings = np.random.default_rng(seed).normal(size=(ITEMS, 2)) if find_model(name).features else None
    data = make_data(name, rows, embeddings)
    target = make_target(name, some_prior(name) if prior is None else prior, data)
    sites = {site: np.asarray(value) for site, value in target.prior_draw(jax.random.key(seed), data).items()}
    return target, data, rows, embeddings, sites


def latent(target: Target, sites: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: jax.numpy.asarray(sites[name]) for name in target.latent}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", loops.MODELS)
def test_numpyro_density_is_the_loop(name: str, seed: int) -> None:
    target, data, rows, embeddings, sites = problem(name, seed=seed)
    assert set(sites) == set(MODELS[name].dims)
    density, _ = numpyro_log_density(target.declare, data, {}, latent(target, sites))
    np.testing.assert_allclose(
        float(density), loops.log_density(name, sites, target.prior, rows, embeddings), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", [name for name in loops.MODELS if name != "prototype_crowd"])
def test_pyro_density_is_numpyros(name: str) -> None:
    target, data, rows, _, sites = problem(name)
    at = pyro.poutine.condition(
        MODELS[name].pyro, data={site: torch.tensor(sites[site]) for site in target.latent}
    )
    trace = pyro.poutine.trace(at).get_trace(rows, target.prior)
    assert {
        site
        for site, node in trace.nodes.items()
        if node["type"] == "sample" and "fn" in node and site in MODELS[name].dims
    } >= set(target.latent)
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(config_enumerate(at), lambda *_: None, rows, target.prior)
    np.testing.assert_allclose(
        -loss, float(target.log_density(latent(target, sites), data)), rtol=0, atol=1e-10
    )
    for site, axes in MODELS[name].dims.items():
        assert trace.nodes[site]["value"].numpy().shape == sites[site].shape, site
        assert len(axes) == sites[site].ndim


def test_pyros_prototype_crowd_is_numpyros() -> None:
    target, data, rows, embeddings, sites = problem("prototype_crowd")
    rows = Rows(rows.item, rows.annotator, rows.label, rows.weight, np.full(ITEMS, -1), ANNOTATORS, CLASSES)
    data = make_data("prototype_crowd", rows, embeddings)
    item, annotator, label, weight = (
        torch.tensor(array) for array in (rows.item, rows.annotator, rows.label, rows.weight)
    )
    sizes = {"num_tasks": 1, "num_items": ITEMS, "num_annotators": ANNOTATORS, "num_labels": CLASSES}
    votes = SparseVotes.build(torch.zeros_like(item), item, annotator, label, weight, **sizes)
    shapes = {
        "class_prior": (1, 1, 1, CLASSES),
        "prototype": (1, 1, CLASSES, 2),
        "confusion": (1, ANNOTATORS, CLASSES, CLASSES),
    }
    at = pyro.poutine.condition(
        prototype_crowd,
        data={name: torch.tensor(sites[name]).reshape(shape) for name, shape in shapes.items()},
    )
    arguments = (torch.tensor(embeddings)[None], votes, target.prior, CLASSES)
    loss = TraceEnum_ELBO(max_plate_nesting=3).loss(config_enumerate(at), lambda *_: None, *arguments)
    np.testing.assert_allclose(
        -loss, float(target.log_density(latent(target, sites), data)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("name", LOGISTIC)
def test_a_reference_label_drops_a_column(name: str) -> None:
    prior = LogitPrior.named("paun", CLASSES)
    target, data, rows, _, sites = problem(name, prior)
    assert sites["mean"].shape == (CLASSES, CLASSES - 1)
    expected = loops.log_density(name, sites, prior, rows, None)
    np.testing.assert_allclose(
        float(target.log_density(latent(target, sites), data)), expected, rtol=0, atol=1e-10
    )
    at = pyro.poutine.condition(
        MODELS[name].pyro, data={site: torch.tensor(sites[site]) for site in target.latent}
    )
    loss = TraceEnum_ELBO(max_plate_nesting=2).loss(config_enumerate(at), lambda *_: None, rows, prior)
    np.testing.assert_allclose(-loss, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", loops.MODELS)
def test_one_log_likelihood_per_item_with_gold_classes_known(name: str) -> None:
    target, data, rows, embeddings, sites = problem(name)
    items, priors = target.items(latent(target, sites), data)
    expected = loops.item_terms(name, sites, target.prior, rows, embeddings)
    np.testing.assert_allclose(items.log_prob(rows.gold), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        float(sum(priors.values())), loops.log_prior(name, sites, target.prior, CLASSES), rtol=0, atol=1e-10
    )
    truth = np.exp(np.asarray(items.log_truth()))
    np.testing.assert_allclose(truth.sum(1), 1)
    assert truth[1, 2] == 1 and truth[4, 0] == 1


def renamed(sites: dict[str, np.ndarray], name: str, order: tuple[int, ...]) -> dict[str, np.ndarray]:
    moved = {}
    for site, axes in MODELS[name].dims.items():
        value = sites[site]
        for place, axis in enumerate(axes):
            value = np.take(value, order, axis=place) if axis == "true_class" else value
        moved[site] = value
    return moved


@pytest.mark.parametrize(
    ("name", "prior", "equal"),
    [
        ("multinomial", DirichletPrior.named("flat", CLASSES), True),
        ("dawid_skene", DirichletPrior.named("flat", CLASSES), True),
        ("dawid_skene", DirichletPrior.named("rater", CLASSES), False),
        ("hierarchical_dawid_skene", LogitPrior.named("paun", CLASSES), True),
        ("hierarchical_dawid_skene", LogitPrior.named("accurate", CLASSES), False),
        ("item_difficulty", LogitPrior.named("paun", CLASSES), True),
        ("logistic_random_effects", LogitPrior.named("paun", CLASSES), True),
        ("prototype_crowd", Prior(), True),
        ("prototype_crowd", Prior(accuracy=0.6), False),
    ],
)
def test_renaming_classes_changes_nothing_exactly_where_the_prior_is_exchangeable(
    name: str, prior: Any, equal: bool
) -> None:
    target, data, rows, embeddings, sites = problem(name, prior)
    unknown = Rows(
        rows.item, rows.annotator, rows.label, rows.weight, np.full(ITEMS, -1), ANNOTATORS, CLASSES
    )
    data = make_data(name, unknown, embeddings)
    assert MODELS[name].exchangeable(prior, CLASSES) is equal
    densities = [
        float(target.log_density(latent(target, renamed(sites, name, order)), data))
        for order in permutations(range(CLASSES))
    ]
    assert bool(np.ptp(densities) < 1e-10) is equal


@pytest.mark.parametrize("name", ["one_coin", "mace"])
def test_a_coin_and_mace_name_their_classes(name: str) -> None:
    assert not MODELS[name].exchangeable(MODELS[name].prior(3), 3)


def test_limits_join_the_models() -> None:
    rows = some_rows()
    prior = LogitPrior.named("accurate", CLASSES)
    data = make_data("item_difficulty", rows, None)
    point = {
        name: problem("logistic_random_effects")[4][name]
        for name in ("class_prior", "mean", "spread", "annotator_offset", "item_spread", "item_offset")
    }

    def terms(name: str, **changed: Any) -> np.ndarray:
        target = make_target(name, prior if name in LOGISTIC else DirichletPrior.named("flat", CLASSES), data)
        sites = point | changed
        return np.asarray(
            target.items({site: jax.numpy.asarray(sites[site]) for site in target.latent}, data)[0].log_prob(
                rows.gold
            )
        )

    none = np.full_like(point["spread"], 1e-14)
    pooled = np.exp(point["mean"]) / np.exp(point["mean"]).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        terms("logistic_random_effects", item_spread=none), terms("hierarchical_dawid_skene"), atol=1e-12
    )
    np.testing.assert_allclose(
        terms("hierarchical_dawid_skene", spread=none), terms("multinomial", confusion=pooled), atol=1e-12
    )
    np.testing.assert_allclose(
        terms("item_difficulty", item_spread=none), terms("multinomial", confusion=pooled), atol=1e-12
    )
    np.testing.assert_allclose(
        terms("dawid_skene", confusion=np.broadcast_to(pooled, (ANNOTATORS, CLASSES, CLASSES))),
        terms("multinomial", confusion=pooled),
        atol=1e-12,
    )


def test_the_worked_example() -> None:
    """One item, labels 0, 1, 1 by three annotators, known parameters: section 13 of the specification."""
    rows = Rows(np.zeros(3, dtype=int), np.arange(3), np.array([0, 1, 1]), np.ones(3), np.array([-1]), 3, 2)
    data = make_data("dawid_skene", rows, None)
    target = make_target("dawid_skene", DirichletPrior.named("flat", 2), data)
    confusion = np.array([[[0.8, 0.2], [0.3, 0.7]], [[0.9, 0.1], [0.4, 0.6]], [[0.5, 0.5], [0.5, 0.5]]])
    items, _ = target.items(
        {"class_prior": jax.numpy.array([0.6, 0.4]), "confusion": jax.numpy.asarray(confusion)}, data
    )
    np.testing.assert_allclose(items.log_prob(rows.gold), [-2.813411], atol=1e-6)
    np.testing.assert_allclose(np.exp(items.log_truth()), [[0.4, 0.6]], atol=1e-6)
    mace = make_target(
        "mace",
        SpamPrior(),
        make_data("mace", Rows(rows.item, rows.annotator, rows.label, rows.weight, rows.gold, 3, 3), None),
    )
    sites = {
        "competence": jax.numpy.full(3, 0.7),
        "spam": jax.numpy.tile(jax.numpy.array([0.2, 0.3, 0.5]), (3, 1)),
    }
    table = np.exp(
        mace.items(
            sites,
            make_data(
                "mace", Rows(rows.item, rows.annotator, rows.label, rows.weight, rows.gold, 3, 3), None
            ),
        )[0].log_table[0]
    )
    np.testing.assert_allclose(
        table, [[0.76, 0.09, 0.15], [0.06, 0.79, 0.15], [0.06, 0.09, 0.85]], atol=1e-12
    )


@pytest.mark.parametrize(("name", "mean"), [("accurate", 0.7), ("rater", 0.6)])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_prior_accuracy_does_not_depend_on_the_number_of_classes(
    name: Any, mean: float, classes: int
) -> None:
    rows = DirichletPrior.named(name, classes).confusion
    np.testing.assert_allclose(rows.diagonal() / rows.sum(-1), mean)
    coin = CoinPrior.named(name, classes)
    np.testing.assert_allclose(coin.right / (coin.right + coin.wrong), mean)


@pytest.mark.parametrize(("classes", "mean"), [(2, 0.8333333), (4, 0.7692308), (10, 0.7352941)])
def test_stans_prior_is_the_guides(classes: int, mean: float) -> None:
    rows = DirichletPrior.named("stan", classes).confusion
    np.testing.assert_allclose(rows.diagonal() / rows.sum(-1), mean, atol=1e-6)


def test_gold_is_read_under_the_users_ids() -> None:
    frame = pd.DataFrame(
        {"item": ["b", "a", "c", "a"], "annotator": ["x", "x", "y", "y"], "label": ["no", "yes", "no", "no"]}
    )
    annotations = Annotations.from_frame(frame)
    rows = Rows.from_annotations(annotations, pd.Series({"a": "yes", "elsewhere": "maybe", "c": None}))
    assert rows.gold.tolist() == [-1, 1, -1]  # items b, a, c
    assert rows.item.tolist() == [0, 1, 1, 2] and rows.annotator.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"none of the classes \['no', 'yes'\].*maybe"):
        Rows.from_annotations(annotations, pd.Series({"a": "maybe"}))
    with pytest.raises(ValueError, match="more than one gold label"):
        Rows.from_annotations(annotations, pd.Series(["yes", "no"], index=["a", "a"]))


def test_errors_say_what_is_wanted() -> None:
    with pytest.raises(ValueError, match="unknown model 'stan'.*dawid_skene"):
        find_model("stan")
    rows = some_rows()
    with pytest.raises(ValueError, match="prototype_crowd needs features"):
        make_data("prototype_crowd", rows, None)
    with pytest.raises(ValueError, match="dawid_skene takes no features"):
        make_data("dawid_skene", rows, np.zeros((ITEMS, 2)))
    with pytest.raises(ValueError, match=r"\(5, 2\) for 6 items"):
        make_data("prototype_crowd", rows, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="1 items have features that are not finite"):
        make_data("prototype_crowd", rows, np.where(np.arange(12).reshape(6, 2) == 3, np.nan, 0.0))
    with pytest.raises(ValueError, match="finite and > 0"):
        DirichletPrior(np.ones(2), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="do not fit 3 classes"):
        DirichletPrior(np.ones(3), np.ones((2, 2)))
    with pytest.raises(ValueError, match="not between guessing"):
        DirichletPrior.named("accurate", 4, accuracy=0.2)

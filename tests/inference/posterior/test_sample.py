"""From a table to a tree of draws: names, terms by loops and quadrature, replicates by enumeration, names of
classes, gold, files, the plug-in.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import annotation_loops as loops
import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from probcrowd.data.annotations import Annotations
from probcrowd.data.files import anesthesia
from probcrowd.data.rows import Rows
from probcrowd.data.table import vote_shares
from probcrowd.inference.posterior import build_tree as tree_module
from probcrowd.inference.posterior import sample as posterior_module
from probcrowd.inference.posterior.density import make_data, make_target
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.label_switching import invariants, realign
from probcrowd.inference.posterior.pointwise import Pointwise, pointwise, prior_predictive, thinned
from probcrowd.inference.posterior.sample import sample_posterior
from probcrowd.inference.posterior.tree import array, dataset, load_posterior, save_posterior
from probcrowd.models.catalogue import MODELS
from probcrowd.models.priors import CoinPrior, DirichletPrior, LogitPrior

ITEMS, ANNOTATORS, CLASSES = (
    [f"q{number}" for number in (7, 3, 11, 0, 5, 9, 2, 8)],
    [30, 10, 20],
    ["no", "maybe", "yes"],
)
GOLD = pd.Series({"q3": "yes", "q0": "no", "elsewhere": "yes", "q5": None})
STAN = DirichletPrior.named("stan", 3)
GROUPS = {
    "posterior": {"class_prior": ("true_class",), "confusion": ("annotator", "true_class", "given_label")},
    "invariants": {
        "log_likelihood": (),
        "sorted_class_prior": ("rank",),
        "prior_concentration": (),
        "information": ("annotator",),
    },
    "sample_stats": {"lp": (), "log_likelihood": (), "permutation": ("true_class",)},
    "log_prior": {"class_prior": (), "confusion": ()},
    "log_likelihood": {"votes": ("item",)},
    "leave_one_out": {"label": ("annotation",)},
    "posterior_predictive": {"label": ("annotation",), "votes": ("item",), "truth": ("item",)},
    "truth": {"truth": ("item",)},
    "prior": {"class_prior": ("true_class",), "confusion": ("annotator", "true_class", "given_label")},
    "prior_predictive": {"label": ("annotation",)},
}
FIXED = {
    "responsibilities": {"mean": ("item", "true_class"), "by_chain": ("in_chain", "item", "true_class")},
    "plug_in": {
        "class_prior": ("true_class",),
        "confusion": ("annotator", "true_class", "given_label"),
        "responsibility": ("item", "true_class"),
    },
    "observed_data": {"votes": ("item",)},
    "constant_data": {
        "row_item": ("annotation",),
        "row_annotator": ("annotation",),
        "row_label": ("annotation",),
        "weight": ("annotation",),
        "gold": ("item",),
    },
    "modes": {"log_density": ("mode",), "lead": ("mode",), "starts": ("mode",), "agreement": ("mode",)},
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """What is compiled here runs for milliseconds, so compiling it well is a waste."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def sparing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes longest to compile: other modes and draws from the prior."""
    _spare(monkeypatch)


def _spare(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"rank": 1, "logit": 1, "dimension": 1}

    def nothing(target: Any, data: Any, seed: int, draws: int) -> Any:
        rows = data[-1]
        of = sizes | {
            "true_class": rows.num_classes,
            "given_label": rows.num_classes,
            "annotator": rows.num_annotators,
            "item": rows.num_items,
        }
        sites = {
            name: np.zeros((2, *(of[axis] for axis in axes))) for name, axes in target.model.dims.items()
        }
        return sites, np.zeros((2, len(rows.item)), np.int16)

    monkeypatch.setattr(tree_module, "prior_predictive", nothing)
    monkeypatch.setattr(posterior_module, "MODES_UP_TO", -1)


def some_annotations() -> Annotations:
    """Rows in no order, with weights; one item and one class without rows, one annotator twice on an item."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"item": generator.choice(ITEMS[:-1], 24), "annotator": generator.choice(ANNOTATORS, 24)}
    )
    frame["label"] = generator.choice(CLASSES[:2], 24)
    frame["w"] = generator.uniform(0.5, 2, 24)
    return Annotations.from_frame(
        frame, weight="w", items=ITEMS, annotators=ANNOTATORS, classes=CLASSES, duplicates="count"
    )


def sample(**options: Any) -> xr.DataTree:
    settings: dict[str, Any] = {
        "seed": 3,
        "prior": STAN,
        "gold": GOLD,
        "chains": 2,
        "warmup": 10,
        "draws": 24,
        "progress": False,
    }
    return sample_posterior(some_annotations(), **(settings | options))


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return sample()


def draw_of(tree: xr.DataTree, chain: int, draw: int) -> dict[str, np.ndarray]:
    return {
        str(name): values[chain, draw].to_numpy()
        for name, values in dataset(tree, "posterior").data_vars.items()
    }


def bayes(class_prior: np.ndarray, confusion: np.ndarray, rows: Rows) -> np.ndarray:
    """p(truth | rows) (i, k), a row at a time."""
    joint = np.tile(class_prior, (rows.num_items, 1))
    for i, j, label, weight in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True):
        joint[i] *= confusion[j, :, label] ** weight
    for i, gold in enumerate(rows.gold):
        if gold >= 0:
            joint[i] *= np.arange(len(class_prior)) == gold
    return joint / joint.sum(1, keepdims=True)


# ---- What the tree is --------------------------------------------------------------------------------------
# ---------------------------------


def test_groups_stand_under_the_users_ids(tree: xr.DataTree) -> None:
    annotations = some_annotations()
    ids = {
        "item": ITEMS,
        "annotator": ANNOTATORS,
        "true_class": CLASSES,
        "given_label": CLASSES,
        "annotation": np.argsort(annotations.item, kind="stable").tolist(),
    }
    assert set(tree.children) == set(GROUPS) | set(FIXED)
    for group, variables in (GROUPS | FIXED).items():
        stored = dataset(tree, group)
        assert set(map(str, stored.data_vars)) == set(variables), group
        for name, axes in variables.items():
            assert stored[name].dims == (() if group in FIXED else ("chain", "draw")) + axes, (group, name)
            for axis in set(axes) & set(ids):
                assert stored[axis].to_numpy().tolist() == ids[axis], (group, name)
    assert array(tree, "posterior", "class_prior").shape == (2, 24, 3)
    for group in ("posterior_predictive", "prior_predictive"):
        labels = array(tree, group, "label")
        assert labels.dtype == np.int16 and set(np.unique(labels)) == {0, 1, 2}
    data = dataset(tree, "constant_data")
    place = data["annotation"].to_numpy()  # the row of the user's table
    np.testing.assert_array_equal(data["row_item"], annotations.item[place])
    np.testing.assert_array_equal(data["row_annotator"], annotations.annotator[place])
    np.testing.assert_array_equal(array(tree, "constant_data", "row_label"), annotations.label[place])
    assert annotations.weight is not None
    np.testing.assert_array_equal(data["weight"], annotations.weight[place])
    assert data["gold"].to_numpy().tolist() == [-1, 2, -1, 0, -1, -1, -1, -1]


def test_attributes_say_what_was_done(tree: xr.DataTree) -> None:
    assert (
        tree.attrs["model"] == "dawid_skene"
        and tree.attrs["sampler"] == "gibbs"
        and tree.attrs["start"] == "votes"
    )
    assert tree.attrs["num_annotators"] == 3
    prior = json.loads(tree.attrs["prior"])
    assert prior == {
        "kind": "DirichletPrior",
        "class_prior": [3.0] * 3,
        "confusion": (np.eye(3) * 6.5 + 1).tolist(),
    }
    settings = json.loads(tree.attrs["settings"])
    assert {name: settings[name] for name in ("chains", "warmup", "draws", "seed")} == {
        "chains": 2,
        "warmup": 10,
        "draws": 24,
        "seed": 3,
    }
    assert {"probcrowd", "jax", "numpyro"} <= set(json.loads(tree.attrs["versions"]))
    assert json.loads(tree.attrs["classes"]) == CLASSES


def test_a_loaded_posterior_does_not_need_its_file(tree: xr.DataTree, tmp_path: Path) -> None:
    save_posterior(tree, tmp_path / "posterior.nc")
    back = load_posterior(tmp_path / "posterior.nc")
    (tmp_path / "posterior.nc").unlink()
    assert back.identical(tree)


def test_a_saved_tree_is_read_back(tree: xr.DataTree, tmp_path: Path) -> None:
    path = tmp_path / "new" / "posterior.nc"
    save_posterior(tree, path)
    back = load_posterior(path)
    assert list(path.parent.iterdir()) == [path]
    assert back.identical(tree)
    assert array(back, "posterior_predictive", "label").dtype == np.int16


def test_a_failed_save_leaves_the_old_file(
    tree: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "posterior.nc"
    save_posterior(tree, path)
    before = path.read_bytes()

    def breaks(self: xr.DataTree, to: Path, **_: Any) -> None:
        Path(to).write_text("half of it")
        raise OSError("disk full")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", breaks)
    with pytest.raises(OSError, match="disk full"):
        save_posterior(tree, path)
    assert path.read_bytes() == before


def test_an_unrelated_file_is_refused(tmp_path: Path) -> None:
    for name, attributes, group in (("a.nc", {}, "posterior"), ("b.nc", {"model": "dawid_skene"}, "prior")):
        foreign = xr.DataTree.from_dict({group: xr.Dataset({"x": ("t", np.zeros(3))})})
        foreign.attrs = attributes
        foreign.to_netcdf(tmp_path / name, engine="h5netcdf")
        with pytest.raises(ValueError, match=f"{name} holds no posterior"):
            load_posterior(tmp_path / name)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.nc").write_text("not NetCDF")
    with pytest.raises(ValueError, match="notes.nc is not a NetCDF file, or is damaged"):
        load_posterior(tmp_path / "notes.nc")


# ---- Terms by item and by row ------------------------------------------------------------------------------
# -----------------------------------


def without(rows: Rows, n: int) -> Rows:
    return replace(
        rows, **{name: np.delete(getattr(rows, name), n) for name in ("item", "annotator", "label", "weight")}
    )


def check_terms(
    model: str,
    sites: dict[str, np.ndarray],
    prior: Any,
    rows: Rows,
    embeddings: Any,
    by_item: np.ndarray,
    by_row: np.ndarray,
) -> None:
    """Against loops: p(rows of an item), and p(its rows) / p(its rows but one)."""
    expected = np.array(loops.item_terms(model, sites, prior, rows, embeddings))
    np.testing.assert_allclose(by_item, expected, rtol=0, atol=1e-10)
    for n, item in enumerate(rows.item):
        rest = loops.item_terms(model, sites, prior, without(rows, n), embeddings)[item]
        np.testing.assert_allclose(by_row[n], expected[item] - rest, rtol=0, atol=1e-10)


def test_the_trees_terms_are_the_loops(tree: xr.DataTree) -> None:
    rows = Rows.from_annotations(some_annotations(), GOLD)
    lp = array(tree, "sample_stats", "lp")
    for chain, draw in ((0, 0), (1, 23)):
        sites = draw_of(tree, chain, draw)
        by_item = array(tree, "log_likelihood", "votes")[chain, draw]
        by_row = array(tree, "leave_one_out", "label")[chain, draw]
        check_terms("dawid_skene", sites, STAN, rows, None, by_item, by_row)
        priors = {
            name: float(values[chain, draw]) for name, values in dataset(tree, "log_prior").data_vars.items()
        }
        np.testing.assert_allclose(
            priors["class_prior"], loops.dirichlet(sites["class_prior"], STAN.class_prior), atol=1e-9
        )
        np.testing.assert_allclose(
            sum(priors.values()), loops.log_prior("dawid_skene", sites, STAN, 3), atol=1e-9
        )
        np.testing.assert_allclose(sum(priors.values()) + by_item.sum(), lp[chain, draw], atol=1e-9)
    rest = array(tree, "log_likelihood", "votes")[..., -1]
    np.testing.assert_allclose(rest, 0, atol=1e-12)  # an item without rows


def terms_of(
    model: str,
    prior: Any,
    rows: Rows,
    embeddings: np.ndarray | None = None,
    draws: int = 2,
    change: Callable[..., Any] | None = None,
) -> tuple[Pointwise, dict[str, np.ndarray]]:
    """The terms of draws from the prior, changed if wanted, in one chain."""
    with jax.enable_x64(True):
        data = make_data(model, rows, embeddings)
        target = make_target(model, prior, data)
        drawn = [target.prior_draw(jax.random.key(seed), data) for seed in range(draws)]
        sites = {name: np.stack([np.asarray(each[name]) for each in drawn])[None] for name in drawn[0]}
        sites = sites if change is None else change(sites)
        plain = np.broadcast_to(np.arange(rows.num_classes), (1, draws, rows.num_classes))
        return pointwise(target, sites, plain, data, 0), sites


def panel(classes: int, seed: int = 1) -> Rows:
    """Five items, two annotators, weights; item 1 has gold, item 3 no rows."""
    generator = np.random.default_rng(seed)
    item = np.sort(generator.choice([0, 1, 2, 4], 16))
    label, annotator = generator.integers(classes, size=16), generator.integers(2, size=16)
    return Rows(
        item, annotator, label, generator.uniform(0.5, 1.5, 16), np.array([-1, 1, -1, -1, -1]), 2, classes
    )


@pytest.mark.parametrize("model", ["mace", "prototype_crowd"])
def test_other_models_terms_are_the_loops(model: str) -> None:
    rows = panel(3)
    prior = MODELS[model].prior(3)
    embeddings = np.random.default_rng(2).normal(size=(5, 2)) if MODELS[model].features else None
    terms, sites = terms_of(model, prior, rows, embeddings)
    for draw in range(2):
        one = {name: values[0, draw] for name, values in sites.items()}
        check_terms(
            model, one, prior, rows, embeddings, terms.log_likelihood[0, draw], terms.leave_one_out[0, draw]
        )
        total = sum(float(values[0, draw]) for values in terms.log_prior.values())
        np.testing.assert_allclose(total, loops.log_prior(model, one, prior, 3), atol=1e-9)
    expected = np.mean(
        [
            posterior_of(
                model, {name: values[0, draw] for name, values in sites.items()}, prior, rows, embeddings
            )
            for draw in range(2)
        ],
        0,
    )
    np.testing.assert_allclose(terms.responsibilities[0], expected, atol=1e-10)


def posterior_of(
    model: str, sites: dict[str, np.ndarray], prior: Any, rows: Rows, embeddings: np.ndarray | None
) -> np.ndarray:
    """p(truth | rows) by declaring each class in turn to be gold."""
    joint = np.array(
        [
            loops.item_terms(
                model, sites, prior, replace(rows, gold=np.where(rows.gold < 0, k, rows.gold)), embeddings
            )
            for k in range(rows.num_classes)
        ]
    ).T
    joint[rows.gold >= 0] = np.where(
        np.arange(rows.num_classes) == rows.gold[rows.gold >= 0, None], 0, -np.inf
    )
    return np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])


def integrated(model: str, sites: dict[str, np.ndarray], prior: LogitPrior, rows: Rows) -> np.ndarray:
    """log p(rows of item) with the item's effect integrated by the trapezoidal rule, which is exact here to
    many digits.
    """
    line = np.linspace(-8, 8, 321)
    width = sites["mean"].shape[1]
    grid = np.stack(np.meshgrid(*[line] * width, indexing="ij"), -1).reshape(-1, width)
    weight = np.exp(-0.5 * (grid**2).sum(1)) * (line[1] - line[0]) ** width / (2 * math.pi) ** (width / 2)
    terms = []
    for i in range(rows.num_items):
        total = 0.0
        for k in range(rows.num_classes) if rows.gold[i] < 0 else [rows.gold[i]]:
            joint = sites["class_prior"][k] * weight
            for n in np.flatnonzero(rows.item == i):
                logits = sites["mean"][k] + np.zeros_like(grid)
                if model == "logistic_random_effects":
                    logits = (
                        logits
                        + sites["spread"][k] * sites["annotator_offset"][rows.annotator[n], k]
                        - sites["item_spread"][k] * grid
                    )
                else:
                    logits = logits + sites["item_spread"][k] * grid
                full = np.concatenate([logits, np.zeros((len(grid), 1))], 1) if prior.reference else logits
                joint = joint * (np.exp(full[:, rows.label[n]]) / np.exp(full).sum(1)) ** rows.weight[n]
            total += joint.sum()
        terms.append(math.log(total))
    return np.array(terms)


@pytest.mark.parametrize(
    ("model", "prior", "most"),
    [
        ("item_difficulty", LogitPrior.named("accurate", 2), 0.06),  # effects in two dimensions
        ("logistic_random_effects", LogitPrior.named("paun", 2), 0.02),  # in one
    ],
)
def test_effects_of_items_are_integrated_out(model: str, prior: LogitPrior, most: float) -> None:
    """128 points are off by 0.03 at most for effects of two dimensions and standard deviation 1 to 3."""
    rows = panel(2)

    def wide(sites: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return sites | {
            "item_spread": np.ones_like(sites["item_spread"]) * np.array([1.0, 3.0])[:, None, None]
        }

    terms, sites = terms_of(model, prior, rows, change=wide)
    for draw in range(2):
        one = {name: values[0, draw] for name, values in sites.items()}
        expected = integrated(model, one, prior, rows)
        error = np.abs(terms.log_likelihood[0, draw] - expected).max()
        assert error < most, error
        given = np.abs(np.array(loops.item_terms(model, one, prior, rows, None)) - expected).max()
        assert given > 5 * most  # given the effects drawn it would be something else
        for n in (0, 7, 15):
            rest = integrated(model, one, prior, without(rows, n))[rows.item[n]]
            assert abs(terms.leave_one_out[0, draw, n] - expected[rows.item[n]] + rest) < most


# ---- Replicates --------------------------------------------------------------------------------------------
# -----------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_replicates_have_the_probabilities_that_enumeration_gives(order: tuple[int, ...]) -> None:
    """Item 0 is new, item 1 has gold; the draws' classes are named in some order, labels and gold as they
    are.
    """
    rows = Rows(
        np.array([0, 0, 1]),
        np.array([0, 1, 1]),
        np.zeros(3, int),
        np.array([1.0, 3.0, 1.0]),
        np.array([-1, 2]),
        2,
        3,
    )
    class_prior = np.array([0.5, 0.3, 0.2])
    confusion = np.array(
        [
            [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]],
            [[0.5, 0.1, 0.4], [0.3, 0.4, 0.3], [0.05, 0.15, 0.8]],
        ]
    )
    draws = 4000
    sites = {
        name: np.broadcast_to(value, (2, draws, *value.shape))
        for name, value in {"class_prior": class_prior, "confusion": confusion}.items()
    }
    rows = rows if order == (0, 1, 2) else replace(rows, gold=np.array([-1, -1]))
    with jax.enable_x64(True):
        data = make_data("dawid_skene", rows, None)
        densities = pointwise(
            make_target("dawid_skene", STAN, data), sites, np.broadcast_to(order, (2, draws, 3)), data, 1
        )
    labels, truth = densities.replicated.reshape(-1, 3), densities.replicated_truth.reshape(-1, 2)
    seen: dict[tuple[int, ...], float] = {}
    for k, first, second in itertools.product(range(3), repeat=3):
        probability = class_prior[k] * confusion[0, k, first] * confusion[1, k, second]
        share = ((truth[:, 0] == order.index(k)) & (labels[:, 0] == first) & (labels[:, 1] == second)).mean()
        seen[k, first, second] = (share - probability) / math.sqrt(
            probability * (1 - probability) / len(labels)
        )
    assert max(map(abs, seen.values())) < 4.5, seen
    row = confusion[1, 2] if order == (0, 1, 2) else class_prior @ confusion[1]
    share = np.bincount(labels[:, 2], minlength=3) / len(labels)
    assert (np.abs(share - row) < 4.5 * np.sqrt(row * (1 - row) / len(labels))).all()
    assert order != (0, 1, 2) or (truth[:, 1] == 2).all()
    assert (densities.replicated[0] != densities.replicated[1]).any()  # each chain has its own randomness


def test_the_trees_replicates_keep_gold(tree: xr.DataTree) -> None:
    truth = array(tree, "posterior_predictive", "truth")
    assert (truth[..., 1] == 2).all() and (truth[..., 3] == 0).all()
    assert all(np.ptp(truth[..., item]) > 0 for item in (0, 2, 4))


# ---- Memory ------------------------------------------------------------------------------------------------
# -----------------------------------


@pytest.mark.parametrize(
    ("draws", "memory"), [(1000, 10**6), (1000, 54_321), (1000, 1), (7, 1), (100, 10**9), (1, 1)]
)
def test_draws_are_thinned_to_fit_in_memory(draws: int, memory: int) -> None:
    chains, size = 3, 160
    retained = thinned(chains, draws, size, memory)
    fit = memory // (chains * size)
    assert len(retained) == min(draws, max(10, fit))
    assert retained[0] == 0 and retained[-1] == draws - 1 and (np.diff(retained) > 0).all()
    assert len(retained) < 2 or np.ptp(np.diff(retained)) <= 1


def test_little_memory_thins_the_groups_and_nothing_else(tree: xr.DataTree, sparing: None) -> None:
    small = sample(memory=2 * 2 * (8 + 24) * 8 * 12 + 5)
    retained = dataset(small, "log_likelihood")["draw"].to_numpy()
    assert len(retained) == 12 and retained[0] == 0 and retained[-1] == 23
    for group in ("log_likelihood", "leave_one_out", "log_prior"):
        assert small[group].to_dataset().equals(tree[group].to_dataset().sel(draw=retained)), group
    assert dataset(small, "posterior_predictive").sizes["draw"] == 12
    assert dataset(small, "posterior").equals(dataset(tree, "posterior"))
    np.testing.assert_array_equal(
        array(small, "responsibilities", "mean"), array(tree, "responsibilities", "mean")
    )
    groups = {"log_likelihood": "votes", "leave_one_out": "label"}
    numbers = sum(array(small, group, name).nbytes for group, name in groups.items())
    assert numbers <= 2 * 2 * (8 + 24) * 8 * 12 + 5


# ---- Names of classes --------------------------------------------------------------------------------------
# -----------------------------------


@pytest.fixture(scope="module")
def flat() -> xr.DataTree:
    with pytest.MonkeyPatch.context() as patch:
        _spare(patch)
        return sample_anesthesia(DirichletPrior.named("flat", 4))


def sample_anesthesia(prior: DirichletPrior, **options: Any) -> xr.DataTree:
    settings: dict[str, Any] = {
        "seed": 1,
        "chains": 4,
        "warmup": 100,
        "draws": 60,
        "start": "dispersed",
        "progress": False,
    }
    return sample_posterior(anesthesia(), prior=prior, **(settings | options))


def unnamed(prior: DirichletPrior) -> dict[str, np.ndarray]:
    """The same draws as the sampler names them."""
    rows = Rows.from_annotations(anesthesia())
    start = np.random.default_rng(1).integers(4, size=(4, 45))
    return gibbs(
        "dawid_skene",
        rows,
        prior,
        chains=4,
        warmup=100,
        draws=60,
        thin=5,
        seed=1,
        start=start,
        progress=False,
    ).samples


def test_dispersed_chains_are_relabelled_towards_the_votes(flat: xr.DataTree) -> None:
    raw, order = unnamed(DirichletPrior.named("flat", 4)), array(flat, "sample_stats", "permutation")
    assert (
        dataset(flat, "sample_stats").attrs["renamed"] == 1 and (order != np.arange(4)).any(-1).mean() > 0.2
    )
    for name, values in realign(raw, order, MODELS["dawid_skene"].dims).items():
        np.testing.assert_array_equal(array(flat, "posterior", name), values)
    means = array(flat, "posterior", "class_prior").mean(1)
    # Of the two classes that are rare, chains may take either: the common ones must agree
    assert (
        np.ptp(means[:, :2], axis=0).max() < 0.05 and np.ptp(raw["class_prior"].mean(1), axis=0).max() > 0.2
    ), means
    votes = vote_shares(Rows.from_annotations(anesthesia()).vote_totals)
    clear = (np.sort(votes, 1)[:, -1] > 0.6) & (votes.argmax(1) < 2)
    by_chain = array(flat, "responsibilities", "by_chain")
    assert clear.sum() > 30 and (by_chain.argmax(-1) == votes.argmax(1))[:, clear].mean() > 0.99


def test_renamed_responsibilities_are_bayes_rule_at_the_renamed_draws(flat: xr.DataTree) -> None:
    rows = Rows.from_annotations(anesthesia())
    draws = dataset(flat, "posterior")
    for chain in range(2):
        each = [
            bayes(draws["class_prior"][chain, s].to_numpy(), draws["confusion"][chain, s].to_numpy(), rows)
            for s in range(60)
        ]
        np.testing.assert_allclose(
            array(flat, "responsibilities", "by_chain")[chain], np.mean(each, 0), atol=1e-10
        )
    np.testing.assert_allclose(
        array(flat, "responsibilities", "mean"),
        array(flat, "responsibilities", "by_chain").mean(0),
        atol=1e-14,
    )


def test_invariants_are_the_same_before_and_after_renaming(flat: xr.DataTree) -> None:
    samples = {name: array(flat, "posterior", name) for name in ("class_prior", "confusion")}
    again = invariants(samples, array(flat, "sample_stats", "log_likelihood"))
    for name, values in again.items():
        np.testing.assert_allclose(array(flat, "invariants", name), values, atol=1e-12)
    assert np.ptp(array(flat, "invariants", "sorted_class_prior").mean(1), axis=0).max() < 0.05


def test_draws_of_a_prior_that_names_the_classes_stay_as_they_are(sparing: None) -> None:
    """A faint preference for the diagonal: some draws align otherwise, and are still from this posterior."""
    prior = DirichletPrior(np.ones(4), np.ones((4, 4)) + 1e-6 * np.eye(4))
    sampled = sample_anesthesia(prior)
    assert (array(sampled, "sample_stats", "permutation") != np.arange(4)).any() and dataset(
        sampled, "sample_stats"
    ).attrs["renamed"] == 0
    for name, values in unnamed(prior).items():
        np.testing.assert_array_equal(array(sampled, "posterior", name), values)
    rows = Rows.from_annotations(anesthesia())
    draws = dataset(sampled, "posterior")
    chain = int((array(sampled, "sample_stats", "permutation") != np.arange(4)).any(-1).sum(1).argmax())
    each = [
        bayes(draws["class_prior"][chain, s].to_numpy(), draws["confusion"][chain, s].to_numpy(), rows)
        for s in range(60)
    ]
    # All sweeps are averaged, the thinned ones too
    assert np.abs(array(sampled, "responsibilities", "by_chain")[chain] - np.mean(each, 0)).mean() < 0.02


# ---- Gold and features -------------------------------------------------------------------------------------
# -----------------------------------


def test_gold_is_certain_and_the_rest_is_not(tree: xr.DataTree) -> None:
    averaged = array(tree, "responsibilities", "mean")
    assert (np.delete(averaged, [1, 3], 0).max(1) < 0.9999).all()
    for probabilities in (averaged, array(tree, "plug_in", "responsibility")):
        np.testing.assert_array_equal(probabilities[[1, 3]], [[0, 0, 1], [1, 0, 0]])
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)


def test_gold_names_the_classes_even_against_the_votes(sparing: None) -> None:
    """All annotators say the opposite of gold: it is they who are wrong."""
    generator = np.random.default_rng(0)
    truth, item = generator.integers(2, size=30), np.repeat(np.arange(30), 3)
    label = np.where(generator.random(90) < 0.9, 1 - truth[item], truth[item])
    frame = pd.DataFrame({"item": item, "annotator": np.tile(np.arange(3), 30), "label": label})
    gold = pd.Series(truth[:20], index=range(20))
    settings: dict[str, Any] = {
        "gold": gold,
        "seed": 0,
        "chains": 2,
        "warmup": 20,
        "draws": 20,
        "progress": False,
    }
    sampled = sample_posterior(
        Annotations.from_frame(frame), prior=DirichletPrior.named("flat", 2), **settings
    )
    assert (array(sampled, "responsibilities", "mean")[:20].argmax(1) == truth[:20]).all()
    assert (array(sampled, "posterior_predictive", "truth")[..., :20] == truth[:20]).all()
    assert (array(sampled, "responsibilities", "mean").argmax(1) == truth).mean() > 0.9


def crowd_with_features() -> tuple[Annotations, pd.DataFrame, np.ndarray]:
    generator = np.random.default_rng(5)
    truth = generator.integers(2, size=60)
    features = pd.DataFrame(
        4.0 * truth[:, None] - 2 + generator.normal(size=(60, 2)), index=[f"q{i}" for i in range(60)]
    )
    item = np.repeat(np.arange(60), 2)
    label = np.where(generator.random(120) < 0.65, truth[item], 1 - truth[item])
    annotator = np.concatenate([generator.choice(4, 2, replace=False) for _ in range(60)])
    frame = pd.DataFrame({"item": [f"q{i}" for i in item], "annotator": annotator, "label": label})
    return Annotations.from_frame(frame), features, truth


def test_features_find_the_classes_that_votes_leave_open() -> None:
    annotations, features, truth = crowd_with_features()
    settings: dict[str, Any] = {"seed": 2, "chains": 2, "warmup": 50, "draws": 50, "progress": False}
    shuffled_rows = features.sample(frac=1, random_state=0)  # another order, under the right ids
    sampled = sample_posterior(annotations, "prototype_crowd", features=shuffled_rows, **settings)
    assert array(sampled, "posterior", "prototype").shape == (2, 50, 2, 2)
    right = (array(sampled, "responsibilities", "mean").argmax(1) == truth).mean()
    wrong_rows = shuffled_rows.set_axis(features.index, axis=0)
    with pytest.MonkeyPatch.context() as patch:
        _spare(patch)
        without_sense = sample_posterior(annotations, "prototype_crowd", features=wrong_rows, **settings)
    other = (array(without_sense, "responsibilities", "mean").argmax(1) == truth).mean()
    assert right > 0.95 and other < 0.85, (right, other)
    accuracy = np.diagonal(
        array(sampled, "prior", "confusion"), axis1=-2, axis2=-1
    )  # 200 draws of 4 annotators and 2 classes
    assert abs(accuracy.mean() - 0.7) < 4 * accuracy.std() / math.sqrt(accuracy.size)
    with pytest.raises(ValueError, match=r"items without features.*2 of 60 items.*q(5|17)") as refused:
        sample_posterior(
            annotations, "prototype_crowd", features=features.drop(["q5", "q17"]), seed=0, progress=False
        )
    assert "q5" in str(refused.value) and "q17" in str(refused.value)


# ---- Seeds, errors, NUTS -----------------------------------------------------------------------------------
# -----------------------------------


def test_the_seed_determines_the_tree(tree: xr.DataTree) -> None:
    again, other = sample(), sample(seed=4)
    for group in tree.children:
        assert dataset(again, group).equals(dataset(tree, group)), group
    same = {"observed_data", "constant_data", "modes", "plug_in"}
    for group in set(tree.children) - same:
        assert not dataset(other, group).equals(dataset(tree, group)), group
    assert not np.array_equal(array(other, "prior", "class_prior"), array(tree, "prior", "class_prior"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "stan"}, "unknown model 'stan'"),
        (
            {"model": "hierarchical_dawid_skene", "prior": None, "sampler": "gibbs"},
            "hierarchical_dawid_skene has no Gibbs blocks: sample it by NUTS",
        ),
        (
            {"model": "prototype_crowd", "prior": None},
            "prototype_crowd needs (features|embeddings) of the items",
        ),
        (
            {"features": pd.DataFrame(np.zeros((8, 2)), index=ITEMS)},
            "dawid_skene takes no (features|embeddings)",
        ),
        ({"gold": pd.Series({"q3": "perhaps"})}, "none of the classes.*perhaps"),
        ({"draws": 0}, "`draws` must be at least 1, got 0"),
        ({"chains": 0}, "`chains` must be at least 1"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(**options)


def test_no_thinning_is_not_zero(sparing: None) -> None:
    with pytest.raises(ValueError, match="thin.* must be at least 1"):
        sample(thin=0)


def test_nuts_fills_the_same_tree(sparing: None) -> None:
    prior = LogitPrior.named("accurate", 3)
    sampled = sample(model="hierarchical_dawid_skene", prior=prior, warmup=15, draws=6, chains=2)
    assert sampled.attrs["sampler"] == "nuts" and json.loads(sampled.attrs["prior"])["reference"] is False
    stats = dataset(sampled, "sample_stats")
    assert {"diverging", "energy", "tree_depth", "n_steps", "step_size", "acceptance_rate", "lp"} <= set(
        map(str, stats.data_vars)
    )
    assert dataset(sampled, "posterior")["annotator_offset"].dims == (
        "chain",
        "draw",
        "annotator",
        "true_class",
        "logit",
    )
    assert dataset(sampled, "posterior")["annotator"].to_numpy().tolist() == ANNOTATORS
    rows = Rows.from_annotations(some_annotations(), GOLD)
    sites = draw_of(sampled, 1, 5)
    model = "hierarchical_dawid_skene"
    check_terms(
        model,
        sites,
        prior,
        rows,
        None,
        array(sampled, "log_likelihood", "votes")[1, 5],
        array(sampled, "leave_one_out", "label")[1, 5],
    )
    total = (
        sum(float(values[1, 5]) for values in dataset(sampled, "log_prior").data_vars.values())
        + array(sampled, "log_likelihood", "votes")[1, 5].sum()
    )
    np.testing.assert_allclose(total, loops.log_density(model, sites, prior, rows, None), atol=1e-9)
    np.testing.assert_allclose(total, float(stats["lp"][1, 5]), atol=1e-9)
    np.testing.assert_array_equal(array(sampled, "responsibilities", "mean")[[1, 3]], [[0, 0, 1], [1, 0, 0]])


# ---- The prior, and the plug-in ----------------------------------------------------------------------------
# -------------------------------------


def test_the_prior_group_holds_the_prior(tree: xr.DataTree) -> None:
    accuracy = np.diagonal(array(tree, "prior", "confusion"), axis1=-2, axis2=-1)
    assert accuracy.shape == (1, 200, 3, 3)
    assert abs(accuracy.mean() - 7.5 / 9.5) < 4 * accuracy.std() / math.sqrt(accuracy.size)
    labels = array(tree, "prior_predictive", "label")
    gold = array(tree, "constant_data", "gold")[array(tree, "constant_data", "row_item")]
    right = (labels == gold)[..., gold >= 0].mean(
        (0, 2)
    )  # items with gold keep it, so these are right as often as annotators are
    assert abs(right.mean() - 7.5 / 9.5) < 4 * right.std() / math.sqrt(len(right))


def test_annotators_are_right_with_0_7_for_more_classes_too() -> None:
    classes = 5
    rows = replace(panel(classes), gold=np.full(5, -1))
    with jax.enable_x64(True):
        data = make_data("one_coin", rows, None)
        sites, labels = prior_predictive(
            make_target("one_coin", CoinPrior.named("accurate", classes), data), data, 0, 800
        )
    accuracy = sites["accuracy"]
    assert accuracy.shape == (800, 2) and labels.shape == (800, 16) and labels.max() == classes - 1
    assert abs(accuracy.mean() - 0.7) < 4 * accuracy.std() / 40


def em_by_loops(rows: Rows, prior: DirichletPrior, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MAP by EM from the vote shares; the last responsibilities are Bayes' rule at the last parameters."""
    classes = rows.num_classes
    q = vote_shares(rows.vote_totals)
    q[q.sum(1) == 0] = 1 / classes
    for i, gold in enumerate(rows.gold):
        if gold >= 0:
            q[i] = np.eye(classes)[gold]
    for _ in range(steps):
        class_prior = prior.class_prior - 1 + q.sum(0)
        confusion = np.tile(prior.confusion - 1, (rows.num_annotators, 1, 1))
        for i, j, label, weight in zip(rows.item, rows.annotator, rows.label, rows.weight, strict=True):
            confusion[j, :, label] += weight * q[i]
        class_prior, confusion = class_prior / class_prior.sum(), confusion / confusion.sum(-1, keepdims=True)
        q = bayes(class_prior, confusion, rows)
    return class_prior, confusion, q


def test_the_plug_in_is_em_by_loops(sparing: None) -> None:
    """Concentrations above 1 everywhere: the maximum is inside, and EM and the library must meet there."""
    prior = DirichletPrior(np.full(3, 3.0), np.eye(3) * 5 + 1.4)
    sampled = sample(prior=prior, draws=10, chains=1)
    class_prior, confusion, q = em_by_loops(Rows.from_annotations(some_annotations(), GOLD), prior, 3000)
    np.testing.assert_allclose(array(sampled, "plug_in", "class_prior"), class_prior, atol=1e-5)
    np.testing.assert_allclose(array(sampled, "plug_in", "confusion"), confusion, atol=1e-5)
    np.testing.assert_allclose(array(sampled, "plug_in", "responsibility"), q, atol=1e-5)


def test_the_plug_in_of_the_anesthesia_data_is_the_published_one(sparing: None) -> None:
    prior = DirichletPrior.named("stan", 4)
    sampled = sample_anesthesia(prior, chains=1, warmup=5, draws=10)
    class_prior, confusion = (array(sampled, "plug_in", name) for name in ("class_prior", "confusion"))
    rows = Rows.from_annotations(anesthesia())
    terms = loops.item_terms(
        "dawid_skene", {"class_prior": class_prior, "confusion": confusion + 1e-300}, prior, rows, None
    )
    assert sum(terms) == pytest.approx(-202.44341, abs=2e-4)
    np.testing.assert_allclose(class_prior, [0.3771, 0.3973, 0.1690, 0.0566], atol=6e-5)
    np.testing.assert_allclose(
        confusion.diagonal(axis1=1, axis2=2) @ class_prior, [0.888, 0.837, 0.901, 0.922, 0.907], atol=6e-4
    )
    np.testing.assert_allclose(
        array(sampled, "plug_in", "responsibility"), bayes(class_prior, confusion, rows), atol=1e-10
    )

"""ArviZ reads every tree that we produce: summary, psense_summary, loo and plot_loo_pit, here and with other
versions of ArviZ.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import arviz_plots
import arviz_stats
import arviz_trees
import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from example_covariates import annotations_for

from probcrowd import Annotations
from probcrowd.inference.posterior import sample as sample_module
from probcrowd.inference.posterior.sample import sample_posterior
from probcrowd.inference.posterior.tree import load_posterior, save_posterior
from probcrowd.models.catalogue import MODELS

ARVIZ = SimpleNamespace(
    summary=arviz_stats.summary,
    psense_summary=arviz_stats.psense_summary,
    loo=arviz_stats.loo,
    plot_loo_pit=arviz_plots.plot_loo_pit,
)
OTHER = os.environ.get("PROBCROWD_ARVIZ1_PYTHON")
COMPILED_FOR_LONG = (
    "item_difficulty",
    "logistic_random_effects",
)  # hierarchical_dawid_skene has their form of tree


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_module, "MODES_UP_TO", -1)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    plt.close("all")


@cache
def tree_of(model: str) -> xr.DataTree:
    """A posterior of 12 items and 3 annotators; some items lack labels of some annotators."""
    generator = np.random.default_rng(0)
    truth, item = generator.integers(2, size=12), np.repeat(np.arange(12), 3)
    label = np.where(generator.random(36) < 0.8, truth[item], 1 - truth[item])
    frame = pd.DataFrame({"item": item, "annotator": np.tile(list("abc"), 12), "label": label})
    annotations = annotations_for(MODELS[model], Annotations.from_frame(frame.drop([1, 5, 6])))
    features = (
        pd.DataFrame(generator.normal(size=(12, 2)) + truth[:, None]) if MODELS[model].features else None
    )
    sizes = {"chains": 2, "warmup": 50, "draws": 50, "progress": False}
    return sample_posterior(annotations, model, seed=0, features=features, **sizes)


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=pytest.mark.slow if model in COMPILED_FOR_LONG else ()) for model in MODELS],
)
def test_arviz_summarises_and_plots_every_tree(model: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws
        save_posterior(tree_of(model), tmp_path / "posterior.nc")
        arviz_trees.check_tree(load_posterior(tmp_path / "posterior.nc"), ARVIZ)


def test_loo_pit_uses_votes_of_new_items() -> None:
    """PIT values of items left out: observed votes among replicated ones, both on the items' own axis."""
    tree = tree_of("dawid_skene")
    codes = tree["constant_data"]["row_item"].to_numpy()
    labels = tree["constant_data"]["row_label"].to_numpy()
    votes = [max(np.bincount(labels[codes == item])) for item in range(12)]
    np.testing.assert_array_equal(tree["observed_data"]["votes"], votes)
    replicated = tree["posterior_predictive"]
    some = replicated["label"].to_numpy()[1, 7]
    expected = [max(np.bincount(some[codes == item])) for item in range(12)]
    np.testing.assert_array_equal(replicated["votes"].to_numpy()[1, 7], expected)


@pytest.mark.skipif(OTHER is None, reason="PROBCROWD_ARVIZ1_PYTHON names no Python with ArviZ 1.x")
@pytest.mark.parametrize("model", MODELS)
def test_arviz_1_reads_saved_trees(model: str, tmp_path: Path) -> None:
    save_posterior(tree_of(model), tmp_path / "posterior.nc")
    command = [str(OTHER), arviz_trees.__file__, str(tmp_path / "posterior.nc")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_older_arviz_takes_the_converted_groups() -> None:
    """The conversion in the docstring of `tree` is one line, and ArviZ 0.23 summarises its result."""
    arviz: Any = pytest.importorskip("arviz")
    if not hasattr(arviz, "InferenceData"):
        pytest.skip("this ArviZ reads DataTree")
    tree = tree_of("dawid_skene")
    names = ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "observed_data")
    converted = arviz.InferenceData(**{name: tree[name].to_dataset() for name in names})
    assert len(arviz.summary(converted)) and arviz.loo(converted).n_data_points == 12

"""Sample the posterior of a model of annotation: from a table of annotations to an `xarray.DataTree` that
ArviZ reads.

`build_tree` lists the groups of the tree.
"""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

import jax
import numpy as np
import pandas as pd
import xarray as xr

from probcrowd import __version__
from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.data.validation import check_option, reject
from probcrowd.inference.posterior.build_tree import build_tree
from probcrowd.inference.posterior.density import make_data, make_target
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.initial import find_modes
from probcrowd.inference.posterior.nuts import nuts
from probcrowd.models.catalogue import find_model
from probcrowd.models.model import Model

Sampler = Literal["auto", "gibbs", "nuts"]
Start = Literal["votes", "dispersed"]
GIBBS_THIN = 5  # sweeps are cheap and autocorrelated
MODES_UP_TO = 100_000  # annotations; climbing from overdispersed starts takes minutes beyond


def sample_posterior(
    annotations: Annotations,
    model: str | Model = "dawid_skene",
    *,
    seed: int,
    prior: Any = None,
    gold: pd.Series | None = None,
    features: pd.DataFrame | None = None,
    sampler: Sampler = "auto",
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    thin: int | None = None,
    start: Start = "votes",
    memory: int = 2**27,
    progress: bool = True,
) -> xr.DataTree:
    """Sample the posterior of a model of annotation; results are under the user's ids.

    ArviZ 1.x takes the tree as it is; `probcrowd.inference.posterior.tree` has the one-line conversion for
    older versions.

    Args:
        model: a name in `probcrowd.models.catalogue.MODELS`, or a `Model` record of your own (see
            `probcrowd.models.model`).
        prior: the name of one of the model's priors ("accurate", "flat", ...) or its prior record. By default
            an annotator is right with mean 0.7 for every number of classes, except in MACE.
        gold: known classes of some items, by item id.
        features: a row per item under its id, for models with features.
        sampler: "auto" uses blocked Gibbs where the model has Gibbs blocks and NUTS elsewhere.
        thin: iterations per draw; by default 5 for Gibbs, 1 for NUTS.
        start: chains start at the votes (NUTS: at the mode reached from them), or overdispersed, to look for
            other modes.
        memory: bytes for the groups by item and annotation.

    Raises:
        TypeError: the prior record of another model.
        ValueError: an unknown model, prior, sampler or start; Gibbs for a model without blocks; features or
            covariates missing; gold labels that are not classes.
    """
    model = find_model(model)
    check_option("sampler", sampler, get_args(Sampler))
    check_option("start", start, get_args(Start))
    rows = Rows.from_annotations(annotations, gold)
    prior = model.prior(rows.num_classes, prior)
    embeddings = None if features is None else _align_features(features, annotations)
    if sampler == "auto":
        sampler = "nuts" if model.gibbs is None else "gibbs"
    thin = (GIBBS_THIN if sampler == "gibbs" else 1) if thin is None else thin
    settings = {"chains": chains, "warmup": warmup, "draws": draws, "thin": thin, "seed": seed}
    options: dict[str, Any] = settings | {"progress": progress, "embeddings": embeddings}
    if sampler == "gibbs":
        random = np.random.default_rng(seed).integers(rows.num_classes, size=(chains, rows.num_items))
        result = gibbs(model, rows, prior, start=random if start == "dispersed" else None, **options)
    else:
        result = nuts(model, rows, prior, start="mode" if start == "votes" else "dispersed", **options)
    with jax.enable_x64(True):
        data = make_data(model, rows, embeddings)
        target = make_target(model, prior, data)
        tree = build_tree(target, data, result, annotations, seed, memory, progress)
        if len(annotations) <= MODES_UP_TO:
            tree["modes"] = xr.DataTree(find_modes(target, data, seed).rename_axis("mode").to_xarray())
    versions = {name: version(name) for name in ("numpyro", "jax", "numba", "arviz-base")}
    values = asdict(prior) if is_dataclass(prior) else {}  # pyright: ignore[reportArgumentType]
    tree.attrs = {
        "model": model.name,
        "prior": json.dumps(
            {"kind": type(prior).__name__}
            | {name: np.asarray(value).tolist() for name, value in values.items()}
        ),
        "sampler": sampler,
        "start": start,
        "num_annotators": rows.num_annotators,
        "settings": json.dumps(settings),
        "versions": json.dumps({"probcrowd": __version__} | versions),
        "classes": json.dumps([str(name) for name in annotations.classes]),
        "standardised": json.dumps(model.standardised),
    }
    return tree


def _align_features(features: pd.DataFrame, annotations: Annotations) -> np.ndarray:
    """Return the features in the order of the items."""
    place = pd.Index(features.index).get_indexer(annotations.items)
    message = "items without features: add their rows, or leave their annotations out"
    reject(place < 0, pd.Series(annotations.items), message, "items")
    return features.to_numpy(np.float64)[place]

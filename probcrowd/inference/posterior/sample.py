"""From a table of annotations to a posterior that can be read with ArviZ, saved and checked: one `xarray.DataTree`.

    posterior              (chain, draw, ...)         every site under the user's ids: item, annotator, true_class, label
    invariants             (chain, draw, ...)         functionals that no renaming of the classes changes
    sample_stats           (chain, draw)              lp, what the sampler tells, and `permutation`: the order in which the votes would name a draw's
                                                      classes. Draws are renamed so where the prior treats all classes alike
    log_prior              (chain, draw)              by site
    log_likelihood         (chain, draw, item)        true classes summed out
    leave_one_out          (chain, draw, annotation)  log p(label | the item's other labels, parameters)
    posterior_predictive   (chain, draw, annotation)  codes of replicated labels for new items, and their true classes
    truth                  (chain, draw, item)        true classes drawn from p(truth | labels, parameters), as codes
    prior, prior_predictive                           the same from the prior
    responsibilities       (item, true_class)         p(truth | labels), averaged over all draws
    plug_in                                           the sites at the posterior's mode, where EM ends, and p(truth | labels) there
    modes                                             maxima that scattered starts lead to, the votes' first (up to 100,000 annotations)
    observed_data, constant_data                      labels; who gave them, to which item, how often they count; gold

Groups by item or annotation hold the draws that fit into `memory`, evenly thinned; their coordinate `draw` says which.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, Literal, get_args

import jax
import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import dict_to_dataset

from probcrowd import __version__
from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import Rows
from probcrowd.data.validation import check_option, reject
from probcrowd.inference.posterior.density import Sites, Target, compiled, make_data, make_target
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.gibbs import gibbs
from probcrowd.inference.posterior.initial import find_mode, find_modes, vote_start
from probcrowd.inference.posterior.label_switching import alignment, invariants, realign
from probcrowd.inference.posterior.nuts import nuts
from probcrowd.inference.posterior.pointwise import pointwise, prior_predictive
from probcrowd.models.catalogue import find_model

Sampler = Literal["auto", "gibbs", "nuts"]
PRIOR_DRAWS = 200
MODES_UP_TO = 100_000  # annotations; climbing from scattered starts takes minutes beyond


def sample_posterior(
    annotations: Annotations,
    model: str = "dawid_skene",
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
    start: Literal["votes", "dispersed"] = "votes",
    memory: int = 2**27,
    progress: bool = True,
) -> xr.DataTree:
    """The posterior of a model of annotation, under the user's ids.

    Args:
        model: a name of `probcrowd.models.catalogue.MODELS`.
        prior: the model's record; by default an annotator is right with mean 0.7 for every number of classes.
        gold: known classes of some items, by item id.
        features: a row per item under its id, for `prototype_crowd`.
        sampler: "auto" takes blocked Gibbs where the model is conjugate and NUTS elsewhere.
        thin: sweeps per draw; 5 for Gibbs, whose sweeps are cheap and dependent, 1 for NUTS by default.
        start: chains begin at the votes (for NUTS, at the mode that they lead to), or scattered, to see whether there are other modes.
        memory: bytes for the groups by item and annotation.

    Raises:
        ValueError: an unknown model, a sampler that does not know it, features missing for some items, or gold that is no class.
    """
    kind = find_model(model)
    check_option("sampler", sampler, get_args(Sampler))
    check_option("start", start, ("votes", "dispersed"))
    rows = Rows.from_annotations(annotations, gold)
    usual = kind.prior(rows.num_classes)
    prior = usual if prior is None else prior
    if not isinstance(prior, type(usual)):
        raise TypeError(f"the prior of {model} is a {type(usual).__name__}, got {type(prior).__name__}")
    embeddings = None if features is None else _features(features, annotations)
    used = ("gibbs" if kind.conjugate else "nuts") if sampler == "auto" else sampler
    thin = (5 if used == "gibbs" else 1) if thin is None else thin
    settings = {
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "seed": seed,
        "progress": progress,
        "embeddings": embeddings,
    }
    if used == "gibbs":
        scattered = np.random.default_rng(seed).integers(rows.num_classes, size=(chains, rows.num_items))
        made = gibbs(
            model, rows, prior, thin=thin, start=scattered if start == "dispersed" else None, **settings
        )
    else:
        made = nuts(
            model, rows, prior, thin=thin, start="mode" if start == "votes" else "dispersed", **settings
        )
    with jax.enable_x64(True):
        data = make_data(model, rows, embeddings)
        target = make_target(model, prior, data)
        tree = _tree(target, data, made, annotations, seed, memory, progress)
        if len(annotations) <= MODES_UP_TO:
            tree["modes"] = xr.DataTree(find_modes(target, data, seed).rename_axis("mode").to_xarray())
    tree.attrs = {
        "model": model,
        "prior": json.dumps(
            {"kind": type(prior).__name__}
            | {name: np.asarray(value).tolist() for name, value in asdict(prior).items()}
        ),
        "sampler": used,
        "start": start,
        "num_annotators": rows.num_annotators,
        "settings": json.dumps(
            {"chains": chains, "warmup": warmup, "draws": draws, "thin": thin, "seed": seed}
        ),
        "versions": json.dumps(
            {"probcrowd": __version__}
            | {name: version(name) for name in ("numpyro", "jax", "numba", "arviz-base")}
        ),
        "classes": json.dumps([str(name) for name in annotations.classes]),
    }
    return tree


def _tree(
    target: Target,
    data: tuple[Any, ...],
    made: Draws,
    annotations: Annotations,
    seed: int,
    memory: int,
    progress: bool,
) -> xr.DataTree:
    rows = jax.tree.map(np.asarray, data[-1])
    needed = alignment(made.agreement)
    exchangeable = target.model.exchangeable(target.prior, rows.num_classes) and bool((rows.gold < 0).all())
    # Where the prior or gold names the classes, a draw that the votes would name otherwise is part of the posterior as it is
    permutation = needed if exchangeable else np.broadcast_to(np.arange(rows.num_classes), needed.shape)
    samples = realign(made.samples, permutation, target.model.dims)
    terms = pointwise(target, made.samples, permutation, data, seed, memory=memory, progress=progress)
    named = bool((permutation == np.arange(rows.num_classes)).all())
    responsibilities = (
        made.responsibilities if named else terms.responsibilities
    )  # an average over draws cannot be renamed afterwards
    prior_sites, prior_labels = prior_predictive(target, data, seed + 1, PRIOR_DRAWS)
    order = np.argsort(annotations.item, kind="stable")
    coords = {
        "item": _ids(annotations.items),
        "annotator": _ids(annotations.annotators),
        "true_class": _ids(annotations.classes),
        "label": _ids(annotations.classes),
        "annotation": order,
    }
    dims: dict[Hashable, Sequence[Hashable]] = {name: list(axes) for name, axes in target.model.dims.items()}

    def group(
        values: Sites, axes: dict[Hashable, Sequence[Hashable]], draw: Any = None, **options: Any
    ) -> xr.Dataset:
        made = dict_to_dataset(
            values,
            coords={name: coords[name] for name in coords if any(name in axis for axis in axes.values())},
            dims=axes,
            **options,
        )
        return made if draw is None else made.assign_coords(draw=draw)

    axes_of_invariants: dict[Hashable, Sequence[Hashable]] = {
        "sorted_class_prior": ["rank"],
        "information": target.model.dims.get("confusion", ())[:-2],
    }
    by_row: dict[Hashable, Sequence[Hashable]] = {"label": ["annotation"], "truth": ["item"]}
    weight = {} if annotations.weight is None else {"weight": rows.weight}
    plug_in, plugged = _plug_in(target, data)
    groups = {
        "posterior": group(samples, dims),
        "invariants": group(invariants(made.samples, made.stats["log_likelihood"]), axes_of_invariants),
        "sample_stats": group(
            made.stats | {"permutation": needed}, {"permutation": ["true_class"]}
        ).assign_attrs(renamed=int(exchangeable)),
        "log_prior": group(terms.log_prior, {}, terms.kept),
        "log_likelihood": group({"label": terms.log_likelihood}, {"label": ["item"]}, terms.kept),
        "leave_one_out": group({"label": terms.leave_one_out}, {"label": ["annotation"]}, terms.kept),
        "posterior_predictive": group(
            {"label": terms.replicated, "truth": terms.replicated_truth}, by_row, terms.kept
        ),
        "truth": group({"truth": terms.truth}, {"truth": ["item"]}, terms.kept),
        "prior": group({name: value[None] for name, value in prior_sites.items()}, dims),
        "prior_predictive": group({"label": prior_labels[None]}, {"label": ["annotation"]}),
        "responsibilities": group(
            {"mean": responsibilities.mean(0), "by_chain": responsibilities},
            {"mean": ["item", "true_class"], "by_chain": ["in_chain", "item", "true_class"]},
            sample_dims=[],
        ),
        "plug_in": group(
            plug_in | {"responsibility": plugged},
            dims | {"responsibility": ["item", "true_class"]},
            sample_dims=[],
        ),
        "observed_data": group({"label": rows.label}, {"label": ["annotation"]}, sample_dims=[]),
        "constant_data": group(
            {"row_item": rows.item, "row_annotator": rows.annotator, "gold": rows.gold} | weight,
            {
                "row_item": ["annotation"],
                "row_annotator": ["annotation"],
                "weight": ["annotation"],
                "gold": ["item"],
            },
            sample_dims=[],
        ),
    }
    return xr.DataTree.from_dict(groups)


def _plug_in(target: Target, data: tuple[Any, ...]) -> tuple[Sites, np.ndarray]:
    """The sites that EM started at the votes ends at, and p(truth | labels) there. Models without closed-form EM take NUTS's mode."""
    mode = find_mode(target, data, vote_start(target, data), jacobian=not target.model.conjugate)
    return {name: mode.sites[name] for name in target.model.dims}, np.asarray(
        compiled(target.truth)(mode.sites, data)
    )


def _features(features: pd.DataFrame, annotations: Annotations) -> np.ndarray:
    """The features in the order of the items."""
    place = pd.Index(features.index).get_indexer(annotations.items)
    reject(
        place < 0,
        pd.Series(annotations.items),
        "items without features: add their rows, or leave their annotations out",
        "items",
    )
    return features.to_numpy(np.float64)[place]


def _ids(index: pd.Index) -> np.ndarray:
    """Ids as coordinates that NetCDF can hold: numbers as they are, anything else as text."""
    return index.to_numpy() if index.dtype.kind in "iuf" else np.array([str(name) for name in index])

"""Build the `xarray.DataTree` of a posterior from a sampler's draws.

  posterior            (chain, draw, ...)         every site under the user's ids: item, annotator,
                                                  true_class, given_label
  invariants           (chain, draw, ...)         functionals that no permutation of the classes changes
  sample_stats         (chain, draw)              lp, the sampler's statistics, and `permutation`: the order
                                                  of a draw's classes that matches the votes; draws are
                                                  permuted so where the prior treats all classes alike
  log_prior            (chain, draw)              by site
  log_likelihood       (chain, draw, item)        votes: log p(labels of the item), true class summed out
  leave_one_out        (chain, draw, annotation)  log p(label | the item's other labels, parameters)
  posterior_predictive (chain, draw, annotation)  label: codes of labels of new items with the same design
                       (chain, draw, item)        votes: labels that are the item's most frequent one; truth
  truth                (chain, draw, item)        true classes drawn from p(truth | labels, parameters)
  prior, prior_predictive                         the same from the prior
  responsibilities     (item, true_class)         p(truth | labels), averaged over all draws
  plug_in                                         the sites at the mode, where EM ends, and p(truth | labels)
  modes                                           maxima reached from the votes (first) and from overdispersed
                                                  starts (up to 100,000 annotations)
  observed_data        (item)                     votes, as in posterior_predictive
  constant_data        (annotation), (item)       row_item, row_annotator, row_label: codes of the annotations
                                                  and their weights; gold

Groups by item or annotation hold as many evenly thinned draws as fit into `memory`; their coordinate `draw`
gives the positions. `votes` has the same axes in log_likelihood, posterior_predictive and observed_data, so
that ArviZ computes PIT values of items left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from arviz_base import dict_to_dataset

from probcrowd.data.annotations import Annotations
from probcrowd.inference.posterior.density import Target, compiled
from probcrowd.inference.posterior.draws import Draws
from probcrowd.inference.posterior.initial import find_mode, vote_start
from probcrowd.inference.posterior.label_switching import alignment, invariants, realign
from probcrowd.inference.posterior.pointwise import most_votes, pointwise, prior_predictive
from probcrowd.models.model import Sites

PRIOR_DRAWS = 200
Axes = dict[Hashable, Sequence[Hashable]]
_ITEM, _ROW, _BOTH = ["item"], ["annotation"], ["item", "true_class"]


def build_tree(
    target: Target,
    data: tuple[Any, ...],
    result: Draws,
    annotations: Annotations,
    seed: int,
    memory: int,
    progress: bool,
) -> xr.DataTree:
    """Return the groups listed above, except `modes`."""
    rows = jax.tree.map(np.asarray, data[-1])
    to_votes = alignment(result.agreement)
    exchangeable = target.model.exchangeable(target.prior, rows.num_classes) and bool((rows.gold < 0).all())
    # Where the prior or gold identifies the classes, a draw with permuted classes belongs to the posterior as
    # it is
    identity = np.broadcast_to(np.arange(rows.num_classes), to_votes.shape)
    permutation = to_votes if exchangeable else identity
    samples = realign(result.samples, permutation, target.model.dims)
    terms = pointwise(target, result.samples, permutation, data, seed, memory=memory, progress=progress)
    # The sampler's average over all draws cannot be permuted afterwards
    unchanged = bool((permutation == identity).all())
    responsibilities = result.responsibilities if unchanged else terms.responsibilities
    prior_sites, prior_labels = prior_predictive(target, data, seed + 1, PRIOR_DRAWS)
    coords = _coordinates(annotations, rows)
    dims: Axes = {name: list(axes) for name, axes in target.model.dims.items()}

    def group(values: Sites, axes: Axes, draw: Any = None, **options: Any) -> xr.Dataset:
        used: dict[Any, Any] = {
            name: coords[name] for name in coords if any(name in axis for axis in axes.values())
        }
        group = dict_to_dataset(values, coords=used, dims=axes, **options)
        return group if draw is None else group.assign_coords(draw=draw)

    weight = {} if annotations.weight is None else {"weight": rows.weight}
    by_row: Axes = dict.fromkeys(("row_item", "row_annotator", "row_label", "weight"), _ROW)
    table = {"row_item": rows.item, "row_annotator": rows.annotator, "row_label": rows.label} | weight
    permutations = group(result.stats | {"permutation": to_votes}, {"permutation": ["true_class"]})
    replicated = {"label": terms.replicated, "votes": terms.replicated_votes, "truth": terms.replicated_truth}
    plug_in, plug_in_truth = _plug_in(target, data)
    per_annotator: Axes = {
        "sorted_class_prior": ["rank"],
        "information": target.model.dims.get("confusion", ())[:-2],
    }
    groups = {
        "posterior": group(samples, dims),
        "invariants": group(invariants(result.samples, result.stats["log_likelihood"]), per_annotator),
        "sample_stats": permutations.assign_attrs(renamed=int(exchangeable)),
        "log_prior": group(terms.log_prior, {}, terms.draw),
        "log_likelihood": group({"votes": terms.log_likelihood}, {"votes": _ITEM}, terms.draw),
        "leave_one_out": group({"label": terms.leave_one_out}, {"label": _ROW}, terms.draw),
        "posterior_predictive": group(
            replicated, {"label": _ROW, "votes": _ITEM, "truth": _ITEM}, terms.draw
        ),
        "truth": group({"truth": terms.truth}, {"truth": _ITEM}, terms.draw),
        "prior": group({name: value[None] for name, value in prior_sites.items()}, dims),
        "prior_predictive": group({"label": prior_labels[None]}, {"label": _ROW}),
        "responsibilities": group(
            {"mean": responsibilities.mean(0), "by_chain": responsibilities},
            {"mean": _BOTH, "by_chain": ["in_chain", *_BOTH]},
            sample_dims=[],
        ),
        "plug_in": group(
            plug_in | {"responsibility": plug_in_truth}, dims | {"responsibility": _BOTH}, sample_dims=[]
        ),
        "observed_data": group(
            {"votes": np.asarray(most_votes(data[-1], data[-1].label))}, {"votes": _ITEM}, sample_dims=[]
        ),
        "constant_data": group(table | {"gold": rows.gold}, by_row | {"gold": _ITEM}, sample_dims=[]),
    }
    return xr.DataTree.from_dict(groups)


def _coordinates(annotations: Annotations, rows: Any) -> dict[str, np.ndarray]:
    """Return the user's ids by axis; covariates of groups name an axis too."""
    levels = dict((*rows.annotator_covariates.levels, *rows.item_covariates.levels))
    return {name: np.array(values) for name, values in levels.items()} | {
        "item": _ids(annotations.items),
        "annotator": _ids(annotations.annotators),
        "true_class": _ids(annotations.classes),
        "given_label": _ids(annotations.classes),
        "annotation": np.argsort(annotations.item, kind="stable"),
    }


def _plug_in(target: Target, data: tuple[Any, ...]) -> tuple[Sites, np.ndarray]:
    """Return the sites where EM from the votes ends, and p(truth | labels) there. Models without a
    closed-form M step use NUTS's mode.
    """
    mode = find_mode(target, data, vote_start(target, data), jacobian=target.model.m_step is None)
    sites = {name: mode.sites[name] for name in target.model.dims}
    return sites, np.asarray(compiled(target.truth)(mode.sites, data))


def _ids(index: pd.Index) -> np.ndarray:
    """Return ids as NetCDF coordinates: numbers unchanged, anything else as text."""
    return index.to_numpy() if index.dtype.kind in "iuf" else np.array([str(name) for name in index])

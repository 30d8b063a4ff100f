r"""Leave-one-out predictive densities by Pareto-smoothed importance sampling (Vehtari et al. 2024), the truth
summed out.

    a[i, k] = log p(truth k, rows of item i | parameters)
    r[n, k] = log confusion[annotator n, k, label n]    w[n] = weight

    unit          log density of the unit, per draw                                 predicts
    item i        logsumexp_k a[i, k]                                               new items, same annotators
    annotation n  logsumexp_k a[i_n, k] - logsumexp_k (a[i_n, k] - w[n] r[n, k])    a further label of a known

For gold items only the gold class counts: a[i, gold], and w[n] r[n, gold]. Annotation terms of an item do not
    sum to the item's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.loo.loo import loo as psis_loo
from arviz_stats.sampling_diagnostics import ess
from arviz_stats.utils import ELPDData
from jaxtyping import Float

_UNITS_FOR_EFFICIENCY = (
    200  # the smoothed tail's length depends only on the square root of their mean efficiency
)
_CONSTANT = 1e-9


def loo(
    log_likelihood: Float[np.ndarray, "c s u"] | xr.DataArray,
    unit_name: str = "unit",
    coords: Sequence[Any] | np.ndarray | pd.Index | None = None,
    reff: float | None = None,
) -> ELPDData:
    """Return the expected log predictive density of units left out one at a time, pointwise, with the Pareto
    k of each.

    log_likelihood: log density of unit u under each draw; a DataArray (chain, draw, unit) has names of its
    own. reff: effective draws per draw; by default that of the units' densities, averaged over at most 200
    units. Units whose density never varies, such as items without
    rows, need no weights: their k is 0. No warnings are raised: see `reliability`.
    """
    values = _named(log_likelihood, unit_name, coords)
    varying = np.ptp(values.to_numpy(), axis=(0, 1)) > _CONSTANT
    efficiency = relative_efficiency(values.to_numpy()[..., varying]) if reff is None else reff
    weights = xr.full_like(values, -np.log(values.sizes["chain"] * values.sizes["draw"]))
    tails = xr.zeros_like(values[0, 0], dtype=float).drop_vars(["chain", "draw"], errors="ignore")
    if varying.any():
        weights[..., varying], tails[varying] = values[..., varying].azstats.psislw(r_eff=efficiency)
    tree = xr.DataTree.from_dict({"log_likelihood": xr.Dataset({"log_likelihood": values})})
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Estimated shape parameter|The point-wise LOO is the same", UserWarning
        )
        return cast(
            ELPDData, psis_loo(tree, pointwise=True, reff=efficiency, log_weights=weights, pareto_k=tails)
        )


def relative_efficiency(log_likelihood: Float[np.ndarray, "c s u"]) -> float:
    """Return effective draws per draw for the mean of exp(log_likelihood), averaged over at most 200 evenly
    spaced units; 1 without units.
    """
    units = log_likelihood.shape[2]
    if not units:
        return 1.0
    chosen = log_likelihood[
        ..., np.unique(np.linspace(0, units - 1, min(units, _UNITS_FOR_EFFICIENCY)).round().astype(int))
    ]
    density = np.exp(chosen - chosen.max((0, 1)))
    return float(np.mean(ess(density, method="mean", chain_axis=0, draw_axis=1))) / density[..., 0].size


def reliability(result: ELPDData) -> str:
    """Summarise in words what the Pareto k imply for a leave-one-out estimate."""
    tails, bad, limit = np.asarray(result.pareto_k), _unreliable(result), f"{result.good_k:.2f}"
    if not bad:
        return f"All {tails.size} units have a Pareto k of at most {limit}: every estimate is reliable."
    return (
        f"{bad} of {tails.size} units ({bad / tails.size:.1%}) have a Pareto k above {limit} "
        f"(highest {np.max(tails):.2f}): the posterior "
        "changes too much without them, so their part of the estimate is unreliable. Refit without them."
    )


def compare_models(
    log_likelihoods: Mapping[str, Float[np.ndarray, "_c _s _u"] | xr.DataArray],
) -> pd.DataFrame:
    """Compare models by expected log predictive density (elpd), best first, each with the best on the same
    units.

    difference = sum of d_u, d_u = elpd of unit u under the model - under the best one; its standard error is
    sqrt(n var d) for n units. parameters: effective number. unreliable: units with a Pareto k above the
    threshold.

    Raises:
        ValueError: models with different units, or the same in another order.
    """
    named = {name: _named(values, "unit", None) for name, values in log_likelihoods.items()}
    units = {name: values.get_index(values.dims[2]) for name, values in named.items()}
    first = next(iter(units))
    for name, index in units.items():
        if index.name != units[first].name or not index.equals(units[first]):
            raise ValueError(
                "models are compared on the same units in the same order: "
                f"{name!r} has {_describe(index)}, {first!r} has {_describe(units[first])}"
            )
    results = sorted(((name, loo(values)) for name, values in named.items()), key=lambda each: -each[1].elpd)
    best = results[0][1].elpd_i.to_numpy()
    table = {}
    for name, result in results:
        difference = result.elpd_i.to_numpy() - best
        error = np.sqrt(len(difference) * difference.var(ddof=1)) if len(difference) > 1 else np.nan
        sums = (result.elpd, result.se, result.p, difference.sum(), error)
        table[name] = [*sums, _unreliable(result), len(difference)]
    columns = [
        "elpd",
        "standard_error",
        "parameters",
        "difference",
        "difference_error",
        "unreliable",
        "units",
    ]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).rename_axis("model")


def _named(values: np.ndarray | xr.DataArray, unit_name: str, coords: Any) -> xr.DataArray:
    if isinstance(values, xr.DataArray):
        return values.transpose("chain", "draw", ...)
    return xr.DataArray(
        values, {} if coords is None else {unit_name: np.asarray(coords)}, ("chain", "draw", unit_name)
    )


def _unreliable(result: ELPDData) -> int:
    return int((np.asarray(result.pareto_k) > result.good_k).sum())


def _describe(index: pd.Index) -> str:
    return f"{len(index)} of {index.name} ({', '.join(map(str, index[:3]))}, ...)"

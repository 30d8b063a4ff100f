"""Every decision threshold of the checks, from both sides: the value itself, and the closest values that
change the verdict.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import binom, chi2

from probcrowd.data.rows import Rows
from probcrowd.inference.checks import check, convergence, coverage, prior_sensitivity
from probcrowd.inference.checks.leave_one_out import loo, reliability
from probcrowd.inference.checks.plug_in import mode_position, outside_central_95
from probcrowd.inference.checks.predictive import PredictiveCheck, Statistic, row_pairs
from probcrowd.inference.checks.predictive import check as compare
from probcrowd.inference.posterior import pointwise
from probcrowd.inference.posterior.initial import same_mode
from probcrowd.inference.posterior.label_switching import alignment
from probcrowd.inference.posterior.sbc import Calibration

BELOW, ABOVE = -1e-12, 1e-12


def diagnostics(r_hat: float = 1.0, bulk: float = 1e4, tail: float = 1e4) -> pd.DataFrame:
    columns = {"r_hat": [1.0, r_hat], "ess_bulk": [1e4, bulk], "ess_tail": [1e4, tail]}
    return pd.DataFrame(columns, index=["first", "second"])


@pytest.mark.parametrize(("r_hat", "passed"), [(1.01, True), (1.01 + ABOVE, False), (1.0, True)])
def test_r_hat(r_hat: float, passed: bool) -> None:
    finding = convergence._table_findings(diagnostics(r_hat=r_hat), "parameters", 4)[0]
    assert finding.passed is passed and finding.threshold == "at most 1.01"
    assert ("second" in finding.meaning) is not passed


@pytest.mark.parametrize("chains", [4, 6])
@pytest.mark.parametrize(("kind", "place"), [("bulk", 1), ("tail", 2)])
@pytest.mark.parametrize(("extra", "passed"), [(0, True), (BELOW * 1e3, False)])
def test_effective_sample_size(chains: int, kind: str, place: int, extra: float, passed: bool) -> None:
    table = diagnostics(**{kind: 100 * chains + extra})
    findings = convergence._table_findings(table, "parameters", chains)
    assert findings[place].name == f"{kind} ESS, parameters" and findings[place].passed is passed
    assert findings[3 - place].passed is True and findings[place].threshold == f"at least {100 * chains}"


@pytest.mark.parametrize(("chains", "number"), [(3, 1), (4, 0)])
def test_number_of_chains(chains: int, number: int) -> None:
    findings = convergence._chains_findings(chains)
    assert len(findings) == number and all(finding.passed is False for finding in findings)


@pytest.mark.parametrize(("energy", "passed"), [(0.3, True), (0.3 + BELOW, False)])
def test_energy(energy: float, passed: bool) -> None:
    assert convergence._energy_finding(energy).passed is passed


def nuts_statistics(divergences: int, depth: int, **attributes: Any) -> xr.Dataset:
    diverging = np.arange(400).reshape(4, 100) < divergences
    energy = np.random.default_rng(0).normal(size=(4, 100))
    dims, depths = ("chain", "draw"), np.where(np.arange(400).reshape(4, 100) == 0, depth, 3)
    values = {"diverging": (dims, diverging), "energy": (dims, energy), "tree_depth": (dims, depths)}
    coords = {"chain": range(4), "draw": range(100)}
    return xr.Dataset(values, coords, attributes)


@pytest.mark.parametrize(("divergences", "passed"), [(0, True), (1, False)])
def test_one_divergence_fails(divergences: int, passed: bool) -> None:
    assert convergence._nuts_findings(nuts_statistics(divergences, 3))[0].passed is passed


@pytest.mark.parametrize(
    ("depth", "attributes", "passed"),
    [(9, {}, True), (10, {}, None), (11, {}, None), (7, {"max_depth": 8}, True), (8, {"max_depth": 8}, None)],
)
def test_depth_of_trees(depth: int, attributes: dict[str, int], passed: bool | None) -> None:
    assert convergence._nuts_findings(nuts_statistics(0, depth, **attributes))[2].passed is passed


@pytest.mark.parametrize(
    ("lead", "permuted", "passed"),
    [
        (-5.0, False, False),
        (-5.0 + BELOW, False, True),
        (1e-3, True, True),  # a permutation
        (-1e-3, True, True),
        (1e-3 + ABOVE, True, False),
        (-1e-3 + BELOW, True, False),
        (0.0, False, False),
    ],
)
def test_lead_of_another_mode(lead: float, permuted: bool, passed: bool) -> None:
    modes = pd.DataFrame({"lead": [0.0, lead], "starts": [1, 1], "agreement": [0.9, 0.5]})
    assert convergence._modes_finding(modes, permuted).passed is passed


@pytest.mark.parametrize(
    ("density", "agreement", "same"),
    [
        (1e-3, 0, False),
        (1e-3 + BELOW, 0, True),
        (-1e-3, 0, False),
        (-1e-3 + ABOVE, 0, True),
        (0, 0.01, False),
        (0, 0.01 + BELOW, True),
        (0, -0.01, False),
        (0, -0.01 + ABOVE, True),
    ],
)
def test_modes_are_one(density: float, agreement: float, same: bool) -> None:
    assert same_mode(float(density), float(agreement)) is same


@pytest.mark.parametrize(("size", "included"), [(0.9e-12, False), (1.1e-12, True)])
def test_numbers_that_vary(size: float, included: bool) -> None:
    values = size * np.random.default_rng(0).permutation(np.linspace(0, 1, 200)).reshape(4, 50)
    table = convergence.summarise(xr.Dataset({"x": (("chain", "draw"), values)}))
    assert bool(len(table)) is included


def test_at_most_2000_numbers_per_site() -> None:
    values = np.random.default_rng(0).normal(size=(2, 5, 2001))
    for number, retained in ((2000, 2000), (2001, 2000)):
        site = xr.Dataset({"x": (("chain", "draw", "n"), values[..., :number])})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convergence, "ess", lambda one, **_: one.mean(("chain", "draw")))
            patch.setattr(convergence, "rhat", lambda one: one.mean(("chain", "draw")))
            assert len(convergence.summarise(site)) == retained


@pytest.mark.parametrize(("share", "passed"), [(0.05, True), (0.05 + ABOVE, False)])
def test_share_of_high_pareto_k(share: float, passed: bool) -> None:
    assert check._high_k_finding("item", share, "").passed is passed


@pytest.mark.parametrize(("k", "bad"), [(0.7, 0), (0.7 + ABOVE, 1)])
def test_pareto_k(k: float, bad: int) -> None:
    result = loo(np.random.default_rng(0).normal(size=(2, 50, 2)) / 100)
    result.pareto_k, result.good_k = np.array([0.1, k]), 0.7
    assert ("1 of 2 units" in reliability(result)) is bool(bad)


@pytest.mark.parametrize(("k", "share"), [(0.7, 0.0), (0.7 + ABOVE, 0.5)])
def test_pareto_k_counted_in_the_finding(k: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    terms = xr.DataArray(
        np.random.default_rng(0).normal(size=(2, 50, 2)) / 100, {"item": [0, 1]}, ("chain", "draw", "item")
    )
    result = loo(terms)
    result.pareto_k, result.good_k = np.array([0.1, k]), 0.7
    monkeypatch.setattr(check, "loo", lambda *_: result)
    assert check._leave_one_out(terms, "item")[0].value == share


def predictive_check(by_entry: float, overall: float) -> PredictiveCheck:
    numbers = {"observed": 0.5, "mean": 0.5, "lower": 0.4, "upper": 0.6, "p": overall}
    return PredictiveCheck(pd.DataFrame([numbers]), pd.Series(numbers), by_entry, 0.0)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("p", "passed"), [(0.005, True), (0.005 + BELOW, False), (math.nan, True)])
def test_p_value_of_replicated_labels(p: float, passed: bool, swapped: bool) -> None:
    values = (0.9, p) if swapped else (p, 0.9)
    finding = check._predictive_finding("vote_entropy", predictive_check(*values))
    assert finding.passed is passed and finding.threshold == "p at least 0.005"
    assert check._predictive_finding("x", predictive_check(math.nan, math.nan)).passed is None


def test_number_of_draws() -> None:
    for draws in (14, 15):
        votes = xr.Dataset({"votes": (("chain", "draw", "item"), np.zeros((2, draws, 3)))})
        tree = xr.DataTree.from_dict({"log_likelihood": votes})
        error, message = (ValueError, "at least 30") if draws == 14 else (KeyError, "sample_stats")
        with pytest.raises(error, match=message):
            check.check_posterior(tree, seed=0)


@pytest.mark.parametrize("annotators", [4, 20, 200])
def test_annotators_that_95_percent_intervals_miss(annotators: int) -> None:
    """The verdict changes at the smallest number covered whose binomial probability reaches 0.01."""
    covered = next(n for n in range(annotators + 1) if binom.cdf(n, annotators, 0.95) >= 0.01)
    scores = {"items": 10.0, "accuracy": 0.8, "calibration_error": 0.1, "log_loss": 0.5}
    gold = pd.DataFrame([scores, scores], index=["posterior", "plug-in"])
    for number, passed in ((covered, True), (covered - 1, False)):
        table = pd.DataFrame([{"nominal": 0.95, "covered": number / annotators, "annotators": annotators}])
        assert check._gold_findings(gold, table)[1].passed is passed


@pytest.mark.parametrize(("labels", "annotators"), [(4, 0), (5, 1)])
def test_annotators_need_five_labels_with_gold(labels: int, annotators: int) -> None:
    codes = {"row_item": np.arange(6), "row_annotator": np.zeros(6, int), "row_label": np.zeros(6, int)}
    truth = xr.Dataset({"truth": (("chain", "draw", "item"), np.zeros((1, 10, 6), int))})
    table = xr.Dataset({name: ("annotation", values) for name, values in codes.items()})
    tree = xr.DataTree.from_dict({"truth": truth, "constant_data": table})
    tree.attrs["num_annotators"] = 1
    gold = np.where(np.arange(6) < labels, 0, -1)
    result = coverage.accuracy_coverage(tree, gold, np.random.default_rng(0))
    assert (result["annotators"] == annotators).all()


@pytest.mark.parametrize(("sensitivity", "passed"), [(0.05, False), (0.05 + BELOW, True)])
def test_sensitivity_to_the_prior(sensitivity: float, passed: bool) -> None:
    values = pd.Series([0.0, sensitivity], index=["first", "second"])
    assert prior_sensitivity._finding("confusion", values).passed is passed


@pytest.mark.parametrize(("spread", "flat"), [(0.8e-9, True), (1.2e-9, False)])
def test_a_constant_prior_is_flat(spread: float, flat: bool) -> None:
    assert prior_sensitivity.is_flat(xr.DataArray(spread * np.array([-1.0, 1.0]))) is flat


@pytest.mark.parametrize(("spread", "varies"), [(0.8e-12, False), (1.2e-12, True)])
def test_fixed_parameters_have_no_position(spread: float, varies: bool) -> None:
    draws = xr.DataArray(spread * np.array([[-1.0, 1.0]]), dims=("chain", "draw"))
    assert bool(mode_position(draws, xr.DataArray(0.0))) is varies


@pytest.mark.parametrize(
    ("below", "outside"),
    [(0.025, False), (0.025 + BELOW, True), (0.975, False), (0.975 + ABOVE, True), (0.5, False)],
)
def test_position_in_the_tails(below: float, outside: bool) -> None:
    assert bool(outside_central_95(np.array([below]))[0]) is outside


def test_observed_values_outside_the_central_interval() -> None:
    """Of 0 .. 1000, the central 95 % are 25 .. 975."""
    replicated = Statistic(np.arange(1001.0)[:, None], pd.Index(["e"]), np.arange(1001.0))
    for value, outside in ((25.0, 0), (24.999, 1), (975.0, 0), (975.001, 1)):
        observed = Statistic(np.array([[value]]), pd.Index(["e"]), np.array([value]))
        assert compare(observed, replicated).outside == outside


def shared_rows(number: int) -> Rows:
    item, annotator = np.repeat(np.arange(number), 2), np.tile([0, 1], number)
    return Rows(item, annotator, np.zeros(2 * number, int), np.ones(2 * number), np.full(number, -1), 2, 2)


@pytest.mark.parametrize(("rows", "entries"), [(4, 0), (5, 1)])
def test_pairs_of_annotators_share_five_rows(rows: int, entries: int) -> None:
    assert len(row_pairs(shared_rows(rows), np.random.default_rng(0)).shared) == entries


@pytest.mark.parametrize(("most", "sampled"), [(6, False), (5, True)])
def test_row_pairs_are_sampled_beyond_the_maximum(most: int, sampled: bool) -> None:
    pairs = row_pairs(shared_rows(6), np.random.default_rng(0), max_pairs=most)
    assert len(pairs.left) == min(6, most) and ("at random" in pairs.note) is sampled


@pytest.mark.parametrize(("gain", "permuted"), [(0.9e-12, False), (1.1e-12, True)])
def test_gain_that_permutes_classes(gain: float, permuted: bool) -> None:
    agreement = np.array([[[[1.0, 1.0 + gain], [1.0 + gain, 1.0]]]])
    assert bool((alignment(agreement)[0, 0] != [0, 1]).any()) is permuted


@pytest.mark.parametrize(("draws", "retained"), [(9, 9), (10, 10), (11, 10)])
def test_at_least_ten_draws_are_retained(draws: int, retained: int) -> None:
    assert len(pointwise.thinned(1, draws, 100, 100)) == retained
    assert len(pointwise.thinned(2, 100, 10, 2 * 10 * 20)) == 20


def bins_of(simulations: int) -> int:
    """The number of bins, from the p-value of ranks that are all 0."""
    table = Calibration(np.zeros((simulations, 1), int), ["x"], 99).table()
    candidates = {
        bins: chi2.sf(simulations * (bins - 1) if 100 % bins == 0 else math.nan, bins - 1)
        for bins in (2, 4, 5, 10, 20)
    }
    return min(candidates, key=lambda bins: abs(candidates[bins] - float(table.loc["x", "p"])))


@pytest.mark.parametrize(("simulations", "bins"), [(10, 2), (29, 2), (40, 4), (49, 4), (50, 5)])
def test_calibration_fills_bins_with_ten_simulations(simulations: int, bins: int) -> None:
    assert bins_of(simulations) == bins


@pytest.mark.parametrize(("rank", "covered"), [(4, 0), (5, 1), (94, 1), (95, 0)])
def test_central_intervals_of_ranks(rank: int, covered: int) -> None:
    """With 99 draws the 90 % interval excludes 5 ranks at either end."""
    table = Calibration(np.full((20, 1), rank), ["x"], 99).table()
    assert table.loc["x", "covered_0.9"] == covered

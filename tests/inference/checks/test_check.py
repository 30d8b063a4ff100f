"""Every check passes on good draws and fails on draws made bad on purpose; scores against gold and the
plug-in's position by loops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from example_covariates import annotations_for

from probcrowd.data.annotations import Annotations
from probcrowd.data.files import anesthesia
from probcrowd.inference.checks import convergence as convergence_module
from probcrowd.inference.checks import coverage as coverage_module
from probcrowd.inference.checks.check import Checked, check_posterior
from probcrowd.inference.checks.convergence import convergence, summarise
from probcrowd.inference.checks.coverage import accuracy_coverage
from probcrowd.inference.checks.findings import Finding, exit_status, to_json, verdict
from probcrowd.inference.checks.plug_in import compare_on_gold, compare_with_mode
from probcrowd.inference.checks.prior_sensitivity import functionals, prior_sensitivity
from probcrowd.inference.posterior import build_tree as tree_module
from probcrowd.inference.posterior import sample as posterior_module
from probcrowd.inference.posterior.sample import sample_posterior
from probcrowd.inference.posterior.tables import accuracy
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.scores import reliability, scores
from probcrowd.models.catalogue import MODELS
from probcrowd.models.priors import DirichletPrior

CHAINS, DRAWS, ITEMS, ANNOTATORS = 4, 250, 150, 4
LIKELIHOOD, PRIOR = "leave-one-item-out", "sensitivity to the prior of confusion"


@pytest.fixture(scope="module", autouse=True)
def spared() -> Iterator[None]:
    """Leaves out what no check here reads and what takes longest to compile: other modes and draws from the
    prior.
    """

    def nothing(target: Any, data: Any, seed: int, draws: int) -> Any:
        return {}, np.zeros((2, len(data[-1].item)), np.int16)

    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "prior_predictive", nothing)
        patch.setattr(posterior_module, "MODES_UP_TO", -1)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def simulated(seed: int = 0) -> tuple[Annotations, np.ndarray]:
    """A full panel of two classes and annotators who are right with 0.8."""
    generator = np.random.default_rng(seed)
    truth, item = generator.integers(2, size=ITEMS), np.repeat(np.arange(ITEMS), ANNOTATORS)
    label = np.where(generator.random(len(item)) < 0.8, truth[item], 1 - truth[item])
    frame = pd.DataFrame(
        {"item": [f"q{i}" for i in item], "annotator": np.tile(np.arange(ANNOTATORS), ITEMS), "label": label}
    )
    return Annotations.from_frame(frame), truth


@pytest.fixture(scope="module")
def good() -> xr.DataTree:
    prior = DirichletPrior(np.full(2, 1.5), np.array([[4.0, 1.5], [1.5, 4.0]]))
    return sample_posterior(
        simulated()[0], prior=prior, seed=0, warmup=200, draws=DRAWS, thin=20, progress=False
    )


def edited(tree: xr.DataTree, group: str, **changed: Any) -> xr.DataTree:
    """The tree with some variables of a group replaced: arrays of the same shape, or pairs (dims, array)."""
    fresh = tree.copy(deep=True)
    edited_group = dataset(fresh, group)
    for name, values in changed.items():
        edited_group[name] = values if isinstance(values, tuple) else (edited_group[name].dims, values)
    fresh[group] = xr.DataTree(edited_group)
    return fresh


def finding(findings: list[Finding], name: str) -> Finding:
    (selected,) = [each for each in findings if each.name == name]
    return selected


def failed(findings: list[Finding]) -> set[str]:
    return {each.name for each in findings if each.passed is False}


def with_nuts(tree: xr.DataTree, diverging: Any = False, energy: Any = None, depth: int = 3) -> xr.DataTree:
    shape, generator = (CHAINS, DRAWS), np.random.default_rng(0)
    energies = generator.normal(size=shape) if energy is None else energy
    stats = {
        "diverging": np.broadcast_to(diverging, shape).copy(),
        "energy": energies,
        "tree_depth": np.full(shape, depth),
    }
    return edited(
        tree, "sample_stats", **{name: (("chain", "draw"), values) for name, values in stats.items()}
    )


# ---- Findings ----------------------------------------------------------------------------------------------
# -------------------------------------


def example(name: str, area: Any, passed: bool | None, value: float = 1.0) -> Finding:
    return Finding(name, area, value, "some", passed, "So it is.")


@pytest.mark.parametrize(
    ("findings", "status", "words"),
    [
        ([], 0, "the model passes every check"),
        ([example("a", "sampling", True), example("b", "model", None)], 0, "the model passes every check"),
        ([example("a", "sampling", None), example("b", "model", False)], 4, "the model not fully: b."),
        (
            [example("a", "sampling", False), example("b", "model", False), example("c", "sampling", False)],
            3,
            "Do not use these draws yet: a; c.",
        ),
    ],
)
def test_findings_make_a_verdict(findings: list[Finding], status: int, words: str) -> None:
    assert exit_status(findings) == status and words in verdict(findings)
    checked = Checked(findings, {})
    assert (
        checked.exit_status == status
        and str(checked).splitlines()[0] == checked.verdict
        and len(str(checked).splitlines()) == 1 + len(findings)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_in_json(value: float) -> None:
    written = to_json([example("a", "sampling", None, value), example("b", "model", False, 0.25)])
    read = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (
        read["exit_status"] == 4
        and read["findings"][0]["value"] is None
        and read["findings"][1]["value"] == 0.25
    )
    assert read["findings"][0]["passed"] is None and read["findings"][1]["passed"] is False


# ---- Good draws, and bad ones ------------------------------------------------------------------------------
# ----------------------------------------


def test_good_draws_of_the_right_model_pass(good: xr.DataTree) -> None:
    checked = check_posterior(with_nuts(good), seed=0)
    assert failed(checked.findings) == set(), str(checked)
    assert checked.exit_status == 0 and "the model passes every check" in checked.verdict
    assert {
        "divergences",
        "E-BFMI",
        LIKELIHOOD,
        "leave-one-annotation-out",
        PRIOR,
        "plug-in overconfidence",
    } <= {each.name for each in checked.findings}
    assert all(type(each.passed) in (bool, type(None)) for each in checked.findings)
    assert json.loads(to_json(checked.findings))["exit_status"] == 0
    assert set(checked.tables) == {
        *("convergence", "loo_by_item", "loo_by_annotation", "prior_sensitivity", "plug_in", "items"),
        *("pairwise_agreement", "vote_entropy", "annotator_bias", "error_correlation"),
    }
    assert (
        list(checked.tables["loo_by_item"].index[:2]) == ["q0", "q1"]
        and len(checked.tables["loo_by_annotation"]) == 600
    )
    assert set(checked.predictive) == {
        "pairwise_agreement",
        "vote_entropy",
        "annotator_bias",
        "error_correlation",
    }


def test_the_same_seed_checks_alike(good: xr.DataTree) -> None:
    one, two, other = (check_posterior(good, seed=seed) for seed in (1, 1, 2))
    assert str(one) == str(two) != str(other)


def test_a_chain_in_another_mode_fails(good: xr.DataTree) -> None:
    confusion = array(good, "posterior", "confusion").copy()
    confusion[2, :, 1, 0] = confusion[2, :, 1, 0][:, ::-1]  # one annotator, in one chain
    checked = check_posterior(edited(good, "posterior", confusion=confusion), seed=0)
    assert {"R-hat, parameters"} <= failed(checked.findings) and checked.exit_status == 3
    assert "Do not use these draws yet: R-hat, parameters" in checked.verdict
    assert finding(checked.findings, "R-hat, functionals that permuting classes cannot change").passed is True
    assert "confusion[1, 0, " in finding(checked.findings, "R-hat, parameters").meaning
    assert checked.tables["convergence"].loc["posterior"].index[0].startswith("confusion[1, 0, ")
    assert json.loads(to_json(checked.findings))["exit_status"] == 3
    shifted = array(good, "invariants", "log_likelihood").copy()
    shifted[0] += 5 * shifted.std()
    checked_findings, _ = convergence(edited(good, "invariants", log_likelihood=shifted))
    assert "R-hat, functionals that permuting classes cannot change" in failed(checked_findings)


def test_repeated_draws_are_too_few(good: xr.DataTree) -> None:
    repeated = array(good, "posterior", "class_prior")[:, np.arange(DRAWS) // 25 * 25]
    findings, table = convergence(edited(good, "posterior", class_prior=repeated))
    assert {"bulk ESS, parameters", "tail ESS, parameters"} <= failed(findings)
    assert "class_prior[" in finding(findings, "bulk ESS, parameters").meaning
    assert (
        4 * table.loc[("posterior", "class_prior[0]"), "ess_bulk"]
        < 400
        < table.loc[("invariants", "sorted_class_prior[0]"), "ess_bulk"]
    )


def test_slowly_mixing_tails_fail(good: xr.DataTree) -> None:
    """Draws that go up and down at once, but are large in stretches: means are precise, intervals are not."""
    wild = np.random.default_rng(0).normal(size=(CHAINS, DRAWS)) * np.where(
        np.arange(DRAWS) // 25 % 5 == 2, 10, 1
    )
    findings, _ = convergence(edited(good, "invariants", prior_concentration=wild))
    assert failed(findings) == {"tail ESS, functionals that permuting classes cannot change"}
    assert (
        "prior_concentration"
        in finding(findings, "tail ESS, functionals that permuting classes cannot change").meaning
    )


def test_divergences_energies_and_depth(good: xr.DataTree) -> None:
    one = np.zeros((CHAINS, DRAWS), bool)
    one[1, 7] = True
    assert failed(convergence(with_nuts(good, one))[0]) == {"divergences"}
    assert finding(convergence(with_nuts(good, one))[0], "divergences").value == 1
    slow = np.random.default_rng(1).normal(size=(CHAINS, DRAWS))
    slow[3] = slow[3].cumsum()  # of one chain alone
    assert failed(convergence(with_nuts(good, energy=slow))[0]) == {"E-BFMI"}
    heavy = np.random.default_rng(1).normal(size=(CHAINS, DRAWS)) + 10 * np.sin(np.arange(DRAWS) / 10)
    assert finding(convergence(with_nuts(good, energy=heavy))[0], "E-BFMI").value < 0.3
    deep = finding(convergence(with_nuts(good, depth=10))[0], "share of deepest trees")
    assert deep.value == 1 and deep.passed is None and "cut off" in deep.meaning
    assert finding(convergence(with_nuts(good))[0], "share of deepest trees").passed is True


def test_fewer_than_four_chains_are_too_few(good: xr.DataTree) -> None:
    names = ("posterior", "invariants", "sample_stats")
    two = xr.DataTree.from_dict({name: dataset(good, name).isel(chain=[0, 1]) for name in names})
    findings, _ = convergence(two)
    assert finding(findings, "chains").passed is False and finding(findings, "chains").value == 2
    assert finding(findings, "bulk ESS, parameters").threshold == "at least 200"


def test_a_chain_with_other_names_of_the_classes(good: xr.DataTree) -> None:
    """Under a prior that names the classes a chain of its own naming has not explored; a naming all chains
    visit alike is uncertainty.
    """
    name = "order of the classes"
    order = array(good, "sample_stats", "permutation").copy()
    assert finding(convergence(good)[0], name).passed is True and (order == [0, 1]).all()
    order[1] = [1, 0]
    findings, _ = convergence(edited(good, "sample_stats", permutation=order))
    assert failed(findings) == {name} and finding(findings, name).value == 0.25
    assert "left unchanged" in finding(findings, name).meaning
    order[:] = [0, 1]
    order[:, ::10] = [1, 0]
    visited = edited(good, "sample_stats", permutation=order)
    assert finding(convergence(visited)[0], name).passed is True
    stats = dataset(visited, "sample_stats").assign_attrs(renamed=1)
    visited["sample_stats"] = xr.DataTree(stats)
    renamed = finding(convergence(visited)[0], name)
    assert renamed.passed is False and "no permutation changes are usable" in renamed.meaning
    confusion, class_prior = (array(good, "posterior", site).copy() for site in ("confusion", "class_prior"))
    confusion[1], class_prior[1] = confusion[1][:, :, ::-1], class_prior[1][:, ::-1]
    findings, _ = convergence(edited(good, "posterior", confusion=confusion, class_prior=class_prior))
    assert "R-hat, parameters" in failed(findings) and finding(findings, "R-hat, parameters").value > 1.5
    assert finding(findings, "R-hat, functionals that permuting classes cannot change").passed is True


@pytest.mark.parametrize(
    ("leads", "renamed", "passed", "value"),
    [
        ([], 0, True, -math.inf),
        ([-40.0, -8.0], 0, True, -8.0),
        ([-8.0, -1.0], 0, False, -1.0),
        ([2.0], 0, False, 2.0),
        ([1e-5], 1, True, -math.inf),
        ([1e-5], 0, False, 1e-5),
    ],
)
def test_other_modes_matter_if_they_are_high(
    good: xr.DataTree, leads: list[float], renamed: int, passed: bool, value: float
) -> None:
    modes = {
        "log_density": [-100.0, *leads],
        "lead": [0.0, *leads],
        "starts": [5] + [1] * len(leads),
        "agreement": [0.9, *leads],
    }
    tree = good.copy(deep=True)
    tree["modes"] = xr.DataTree(pd.DataFrame(modes).rename_axis("mode").to_xarray())
    tree["sample_stats"] = xr.DataTree(dataset(tree, "sample_stats").assign_attrs(renamed=renamed))
    result = finding(convergence(tree)[0], "other modes, log density")
    assert (
        result.passed is passed
        and result.value == pytest.approx(value)
        and f"{4 + len(leads)} overdispersed starts" in result.meaning
    )


def test_constant_parameters_are_left_out(good: xr.DataTree) -> None:
    confusion = array(good, "posterior", "confusion").copy()
    confusion[:, :, 2, 0] = [0.75, 0.25]
    fixed = edited(good, "posterior", confusion=confusion)
    nothing = edited(
        good,
        "posterior",
        confusion=np.full_like(confusion, 0.5),
        class_prior=np.full((CHAINS, DRAWS, 2), 0.5),
    )
    table, findings = summarise(dataset(fixed, "posterior")), convergence(fixed)[0]
    empty, none = summarise(dataset(nothing, "posterior")), convergence(nothing)[0]
    assert np.isfinite(table.to_numpy()).all() and len(table) == 2 + 4 * 4 - 2
    assert not [name for name in table.index if "[2, 0," in name] and (np.diff(table["r_hat"]) <= 0).all()
    assert failed(findings) == failed(none) == set() and empty.empty


def test_of_very_many_numbers_those_are_taken_whose_chains_are_furthest_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convergence_module, "MAX_NUMBERS", 5)
    values = np.random.default_rng(0).normal(size=(CHAINS, 100, 40))
    values[1, :, 33] += 1
    values[..., 7] = 2.5  # never varies
    table = summarise(
        xr.Dataset({"x": (("chain", "draw", "place"), values), "y": (("chain", "draw"), values[..., 0])})
    )
    assert table.index[0] == "x[33]" and len(table) == 6 and "y" in table.index and "x[7]" not in table.index


def test_constant_parameters_have_no_position(good: xr.DataTree) -> None:
    confusion = array(good, "posterior", "confusion").copy()
    mean = [compare_with_mode(good).parameters.loc["confusion", "outermost_position"]]
    confusion[:, :, 2, 0] = [0.75, 0.25]
    mean.append(
        compare_with_mode(edited(good, "posterior", confusion=confusion)).parameters.loc[
            "confusion", "outermost_position"
        ]
    )
    assert np.isfinite(mean).all() and mean[1] <= mean[0]


def test_an_item_that_a_few_draws_decide(good: xr.DataTree) -> None:
    terms = array(good, "log_likelihood", "votes").copy()
    terms[:, :, :20] *= 40
    checked = check_posterior(edited(good, "log_likelihood", votes=terms), seed=0)
    result = finding(checked.findings, LIKELIHOOD)
    assert result.passed is False and 0.05 < result.value <= 20 / ITEMS
    assert checked.exit_status == 4 and "The draws can be trusted, the model not fully" in checked.verdict
    k = checked.tables["loo_by_item"]["pareto_k"]
    assert k.iloc[20:].max() < 0.6 and (k.iloc[:20] > 0.7).sum() == round(result.value * ITEMS)
    few = array(good, "log_likelihood", "votes").copy()
    few[:, :, :2] *= 40
    assert (
        finding(
            check_posterior(edited(good, "log_likelihood", votes=few), seed=0).findings, LIKELIHOOD
        ).passed
        is True
    )
    by_row = array(good, "leave_one_out", "label").copy()
    by_row[:, :, :60] *= 60
    assert failed(check_posterior(edited(good, "leave_one_out", label=by_row), seed=0).findings) == {
        "leave-one-annotation-out"
    }


def test_labels_of_another_model_fail(good: xr.DataTree) -> None:
    """Replicates of annotators who guess, then of one annotator who copies."""
    generator = np.random.default_rng(0)
    labels = array(good, "posterior_predictive", "label")
    guessed = generator.integers(2, size=labels.shape).astype(labels.dtype)
    failures = failed(check_posterior(edited(good, "posterior_predictive", label=guessed), seed=0).findings)
    assert {"replicated pairwise agreement", "replicated vote entropy"} <= failures
    copied = labels.reshape(CHAINS, DRAWS, ITEMS, ANNOTATORS).copy()
    copied[..., 1] = copied[..., 0]
    failures = failed(
        check_posterior(
            edited(good, "posterior_predictive", label=copied.reshape(labels.shape)), seed=0
        ).findings
    )
    assert {"replicated pairwise agreement", "replicated error correlation"} <= failures
    always = labels.copy()
    always[..., 3::4] = 1
    assert "replicated annotator bias" in failed(
        check_posterior(edited(good, "posterior_predictive", label=always), seed=0).findings
    )


# ---- Sensitivity to the prior ------------------------------------------------------------------------------
# ----------------------------------------


def tilted(tree: xr.DataTree, strength: float) -> xr.DataTree:
    """As if the prior held, with that strength, that an annotator is right less often than in the draws."""
    right = accuracy(dataset(tree, "posterior")).isel(annotator=0).to_numpy()
    return edited(tree, "log_prior", confusion=-strength * (right - right.mean()) / right.std())


def test_a_conflicting_prior_fails_and_a_flat_one_is_reported_as_not_checkable(good: xr.DataTree) -> None:
    weak, strong = (finding(prior_sensitivity(tilted(good, strength))[0], PRIOR) for strength in (0.01, 4.0))
    assert weak.passed is True and "hardly moves" in weak.meaning
    assert (
        strong.passed is False
        and strong.value > 0.5
        and "accuracy[0]" in strong.meaning
        and strong.area == "model"
    )
    checked = check_posterior(tilted(good, 4.0), seed=0)
    assert checked.exit_status == 4 and PRIOR in checked.verdict
    findings, table = prior_sensitivity(edited(good, "log_prior", confusion=np.full((CHAINS, DRAWS), -3.0)))
    flat = finding(findings, PRIOR)
    assert flat.passed is None and math.isnan(flat.value) and "cannot be scaled" in flat.meaning
    assert set(table.index.get_level_values("component")) == {"class_prior"}
    nothing = edited(
        good, "log_prior", confusion=np.zeros((CHAINS, DRAWS)), class_prior=np.zeros((CHAINS, DRAWS))
    )
    assert [each.passed for each in prior_sensitivity(nothing)[0]] == [None, None] and prior_sensitivity(
        nothing
    )[1].empty


def test_functionals_are_those_of_loops(good: xr.DataTree) -> None:
    read = functionals(good)
    assert set(read.data_vars) == {"class_prior", "accuracy"} and read["accuracy"].dims == (
        "chain",
        "draw",
        "annotator",
    )
    prior, confusion = (
        array(good, "posterior", "class_prior")[1, 5],
        array(good, "posterior", "confusion")[1, 5],
    )
    for j in range(ANNOTATORS):
        assert float(read["accuracy"][1, 5, j]) == pytest.approx(
            sum(prior[k] * confusion[j, k, k] for k in range(2)), abs=1e-14
        )
    alone = dataset(good, "posterior").drop_vars("class_prior")
    assert float(accuracy(alone)[1, 5, 2]) == pytest.approx(np.diag(confusion[2]).mean(), abs=1e-14)


def test_offsets_are_no_component_of_the_prior(good: xr.DataTree) -> None:
    offset = tilted(good, 4.0)["log_prior"]["confusion"]
    tree = edited(good, "log_prior", annotator_offset=(("chain", "draw"), offset.to_numpy()))
    tree.attrs["standardised"] = '["annotator_offset"]'
    assert not [each for each in prior_sensitivity(tree)[0] if "offset" in each.name]


# ---- Against gold ------------------------------------------------------------------------------------------
# ------------------------------------------


def test_scores_are_those_of_loops() -> None:
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(3), 43)
    p[5], p[6] = [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3]
    gold = generator.integers(-1, 3, 43)
    gold[5], gold[6] = 1, 2
    hits, losses, briers, tops = [], [], [], []
    for row, truth in zip(p, gold, strict=True):
        if truth < 0:
            continue
        best = [k for k in range(3) if abs(row[k] - max(row)) < 1e-12]
        hits.append(1 / len(best) if truth in best else 0)
        losses.append(-math.log(row[truth]))
        briers.append(sum((row[k] - (k == truth)) ** 2 for k in range(3)))
        tops.append(max(row))
    order = sorted(range(len(tops)), key=lambda at: tops[at])
    size, more = divmod(len(order), 10)
    bins = [order[b * size + min(b, more) :][: size + (b < more)] for b in range(10)]
    error = sum(abs(sum(tops[at] for at in each) - sum(hits[at] for at in each)) for each in bins) / len(
        order
    )
    expected = {
        "items": len(hits),
        "accuracy": np.mean(hits),
        "log_loss": np.mean(losses),
        "brier": np.mean(briers),
        "calibration_error": error,
    }
    assert scores(p, gold) == pytest.approx(expected, abs=1e-12)
    assert 1 / 2 in hits and 1 / 3 in hits
    table = reliability(p[gold >= 0], gold[gold >= 0])
    assert table["items"].tolist() == [len(each) for each in bins]
    np.testing.assert_allclose(table["confidence"], [np.mean([tops[at] for at in each]) for each in bins])
    np.testing.assert_allclose(table["accuracy"], [np.mean([hits[at] for at in each]) for each in bins])
    none = scores(p, np.full(43, -1))
    assert none.pop("items") == 0 and all(math.isnan(value) for value in none.values())
    assert len(reliability(p[:3], np.array([0, 1, 2]))) == 3
    assert scores(np.array([[1.0, 0.0]]), np.array([1]))["log_loss"] == pytest.approx(
        690.8, abs=0.1
    )  # finite, and terrible


def test_gold_is_scored_only_where_the_fit_did_not_see_it(good: xr.DataTree) -> None:
    _, truth = simulated()
    with_gold = check_posterior(good, seed=0, gold=truth)
    assert with_gold.tables["gold"].loc["posterior", "items"] == ITEMS and {"gold", "coverage"} <= set(
        with_gold.tables
    )
    majority = array(good, "responsibilities", "mean").argmax(1)
    assert finding(with_gold.findings, "accuracy on gold").value == pytest.approx(
        (majority == truth).mean(), abs=0.01
    )
    seen = edited(good, "constant_data", gold=np.where(np.arange(ITEMS) < 100, truth, -1))
    assert check_posterior(seen, seed=0, gold=truth).tables["gold"].loc["posterior", "items"] == ITEMS - 100
    everything = check_posterior(edited(good, "constant_data", gold=truth), seed=0, gold=truth)
    assert not [each for each in everything.findings if each.name == "accuracy on gold"]
    assert list(compare_on_gold(good, truth).index) == ["posterior", "plug-in"]


def drawn_truth(one: np.ndarray, generator: np.random.Generator) -> xr.Dataset:
    """500 draws of two classes, the second with probability `one` of each item."""
    return xr.Dataset(
        {"truth": (("chain", "draw", "item"), (generator.random((1, 500, len(one))) < one).astype(np.int16))}
    )


def crowd_of_200(seed: int, items: int = 1000, each: int = 4) -> tuple[xr.DataTree, np.ndarray]:
    """200 annotators whose accuracies come from a Beta distribution, and p(truth | labels) by Bayes' rule, so
    that it is exact.
    """
    generator = np.random.default_rng(seed)
    right = generator.beta(4, 2, 200)
    truth, item = generator.integers(2, size=items), np.repeat(np.arange(items), each)
    annotator = np.concatenate([generator.choice(200, each, replace=False) for _ in range(items)])
    label = np.where(generator.random(len(item)) < right[annotator], truth[item], 1 - truth[item])
    odds = np.log(right / (1 - right))[annotator] * (2 * label - 1)
    one = 1 / (1 + np.exp(-np.bincount(item, odds)))
    tree = xr.DataTree.from_dict(
        {
            "truth": drawn_truth(one, generator),
            "constant_data": xr.Dataset(
                {
                    name: ("annotation", codes)
                    for name, codes in (
                        ("row_item", item),
                        ("row_annotator", annotator),
                        ("row_label", label),
                    )
                }
            ),
        }
    )
    tree.attrs["num_annotators"] = 200
    return tree, truth


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_intervals_on_gold_cover_as_often_as_they_say(share: float) -> None:
    """Coverage is nominal where label probabilities are right, and above since counts are whole numbers;
    sharpened ones cover less.
    """
    tree, truth = crowd_of_200(0)
    gold = np.where(np.random.default_rng(1).random(len(truth)) < share, truth, -1)
    table = accuracy_coverage(tree, gold, np.random.default_rng(2)).set_index("nominal")
    assert list(table.index) == [0.5, 0.8, 0.9, 0.95] and (table["annotators"] > 180).all()
    for nominal, covered in table["covered"].items():
        error = math.sqrt(nominal * (1 - nominal) / 200)
        assert -3 * error < covered - nominal < 3 * error + (1 - nominal) / 1.5, table
    q = array(tree, "truth", "truth").mean((0, 1))
    sure = edited(
        tree,
        "truth",
        truth=drawn_truth(q**3 / (q**3 + (1 - q) ** 3), np.random.default_rng(3))["truth"].to_numpy(),
    )
    narrow = accuracy_coverage(sure, gold, np.random.default_rng(2)).set_index("nominal")
    assert (narrow["covered"] < table["covered"] - 0.07).all() and narrow.loc[0.8, "covered"] < 0.8, narrow


def test_coverage_counts_annotators_with_enough_gold(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, truth = crowd_of_200(0)
    gold = np.where(np.arange(len(truth)) < 100, truth, -1)
    known = array(tree, "constant_data", "row_annotator")[gold[array(tree, "constant_data", "row_item")] >= 0]
    for least in (1, 3, 5):
        number = sum((known == j).sum() >= least for j in range(200))
        monkeypatch.setattr(coverage_module, "MIN_LABELS", least)
        assert set(accuracy_coverage(tree, gold, np.random.default_rng(0))["annotators"]) == {number}
    none = accuracy_coverage(tree, np.full(len(truth), -1), np.random.default_rng(0))
    assert (none["annotators"] == 0).all() and none["covered"].isna().all()


def test_too_narrow_intervals_fail(good: xr.DataTree) -> None:
    _, truth = simulated()
    fair = check_posterior(good, seed=0, gold=truth)
    result, coverage = finding(fair.findings, "coverage on gold"), fair.tables["coverage"].iloc[-1]
    assert result.value == coverage["covered"] >= 0.5 and coverage["annotators"] == 4
    assert result.passed is (result.value >= 0.5)  # 2 of 4 happen to one in 70 tables, 1 of 4 to one in 2,000
    opposite = np.broadcast_to(1 - truth, array(good, "truth", "truth").shape)
    checked = check_posterior(edited(good, "truth", truth=opposite), seed=0, gold=truth)
    narrow = finding(checked.findings, "coverage on gold")
    assert narrow.passed is False and narrow.value < result.value and checked.exit_status == 4


# ---- The plug-in -------------------------------------------------------------------------------------------
# -------------------------------------------


def test_the_position_of_the_mode_is_that_of_loops(good: xr.DataTree) -> None:
    seen = edited(good, "constant_data", gold=np.where(np.arange(ITEMS) < 30, 0, -1))
    draws = array(good, "posterior", "confusion")
    far = np.linspace(-2.5, 2.5, 16).reshape(4, 2, 2)
    mode = draws.mean((0, 1)) + far * draws.std((0, 1))  # some in the middle, some in the tails
    compared = compare_with_mode(edited(seen, "plug_in", confusion=mode))
    positions, outside = [], 0
    for index in np.ndindex(mode.shape):
        values = draws[(..., *index)]
        positions.append(abs((mode[index] - values.mean()) / values.std()))
        outside += not 0.025 <= (values < mode[index]).mean() <= 0.975
    row = compared.parameters.loc["confusion"]
    assert row["mean_absolute_position"] == pytest.approx(np.mean(positions)) and row[
        "outermost_position"
    ] == pytest.approx(max(positions))
    assert row["outside_central_95"] == pytest.approx(outside / len(positions)) and 1 < outside < 8
    averaged, plugged = array(good, "responsibilities", "mean"), array(good, "plug_in", "responsibility")
    surer = np.mean([max(plugged[i]) - max(averaged[i]) for i in range(30, ITEMS)])
    result = finding(compared.findings, "plug-in overconfidence")
    assert result.value == pytest.approx(surer) and result.passed is None
    changed = sum(averaged[i].argmax() != plugged[i].argmax() for i in range(30, ITEMS))
    assert f"{changed} of 120 items" in result.meaning
    items = compared.items
    assert list(items.index[:2]) == ["q0", "q1"] and len(items) == ITEMS
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in averaged]
    np.testing.assert_allclose(items["entropy"], entropy, atol=1e-12)
    np.testing.assert_allclose(items["largest_difference"], np.abs(averaged - plugged).max(1))


def test_the_mode_is_too_sure_of_the_anesthesia_data() -> None:
    tree = sample_posterior(anesthesia(), seed=0, chains=2, warmup=50, draws=50, progress=False)
    result = finding(compare_with_mode(tree).findings, "plug-in overconfidence")
    assert result.value > 0.005 and "more confident by" in result.meaning


# ---- Every model, and small tables -------------------------------------------------------------------------
# -----------------------------------------


def small(**columns: Any) -> Annotations:
    generator = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "item": np.repeat(np.arange(8), 3),
            "annotator": np.tile(np.arange(3), 8),
            "label": generator.integers(2, size=24),
        }
    )
    return Annotations.from_frame(frame.assign(**columns), items=np.arange(9))  # item 8 has no rows


@pytest.mark.parametrize("model", ["dawid_skene", "multinomial", "mace"])
def test_models_are_checked(model: str) -> None:
    check_model(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [model for model in MODELS if model not in ("dawid_skene", "multinomial", "mace")]
)
def test_models_that_take_long_to_compile_are_checked(model: str) -> None:
    check_model(model)


def check_model(model: str) -> None:
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 2))) if MODELS[model].features else None
    gold = pd.Series([0, 1], index=[2, 5])
    sizes = {"chains": 2, "warmup": 10, "draws": 30, "progress": False}
    annotations = annotations_for(MODELS[model], small())
    tree = sample_posterior(annotations, model, features=features, gold=gold, seed=0, **sizes)
    checked = check_posterior(tree, seed=0, gold=np.array([0, 1, 0, 1, 0, 1, 0, 1, -1]))
    read = json.loads(
        to_json(checked.findings), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    assert read["exit_status"] == 3 and "chains" in failed(
        checked.findings
    )  # two chains and 24 draws cannot pass
    assert (
        len(checked.tables["loo_by_item"]) == 9 and np.isfinite(checked.tables["loo_by_item"]["elpd"]).all()
    )
    assert checked.tables["gold"].loc["posterior", "items"] == 6
    assert "plug-in overconfidence" in str(checked)


@pytest.mark.parametrize("case", ["one annotator", "one item", "all gold"])
def test_small_tables_are_checked(case: str) -> None:
    generator = np.random.default_rng(0)
    gold = None
    if case == "one annotator":
        frame = pd.DataFrame(
            {"item": np.arange(12), "annotator": "ann", "label": generator.integers(2, size=12)}
        )
    elif case == "one item":
        frame = pd.DataFrame(
            {"item": "q", "annotator": np.arange(12), "label": generator.integers(2, size=12)}
        )
    else:
        frame = pd.DataFrame(
            {
                "item": np.repeat(np.arange(4), 3),
                "annotator": np.tile(np.arange(3), 4),
                "label": generator.integers(2, size=12),
            }
        )
        gold = pd.Series([0, 1, 1, 0])
    annotations = Annotations.from_frame(frame, classes=[0, 1])
    tree = sample_posterior(annotations, gold=gold, seed=0, chains=4, warmup=20, draws=40, progress=False)
    checked = check_posterior(tree, seed=0, gold=np.zeros(annotations.num_items, int))
    json.loads(to_json(checked.findings))
    assert np.isfinite(checked.tables["loo_by_annotation"]["elpd"]).all()
    if case == "one annotator":
        pairs = finding(checked.findings, "replicated pairwise agreement")
        assert pairs.passed is None and math.isnan(pairs.value) and "Nothing to compare" in pairs.meaning
    if case == "all gold":
        assert (array(tree, "responsibilities", "mean").max(1) == 1).all() and checked.tables["gold"].loc[
            "posterior", "items"
        ] == 0
        assert finding(checked.findings, "plug-in overconfidence").value == 0

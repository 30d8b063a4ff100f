"""Run all checks of a posterior: can the draws be trusted, does the model fit, and does averaging over the
posterior matter?

convergence      R-hat, effective sample sizes, divergences, E-BFMI, order of the classes
leave one out    PSIS-LOO by item and by annotation
predictive       agreement, vote entropy, label frequencies, error correlation: replicated against observed
prior            power scaling of each component
plug-in          the mode, where EM ends, against the posterior
gold             calibration and coverage, where gold is known and was not used
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom

from probcrowd.data.rows import Rows
from probcrowd.inference.checks import findings as summary
from probcrowd.inference.checks.convergence import convergence
from probcrowd.inference.checks.coverage import accuracy_coverage
from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.checks.leave_one_out import loo, reliability
from probcrowd.inference.checks.plug_in import compare_on_gold, compare_with_mode
from probcrowd.inference.checks.predictive import PredictiveCheck, predictive_checks
from probcrowd.inference.checks.prior_sensitivity import prior_sensitivity
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.intervals import LEVEL

MIN_P_VALUE = 0.01  # of a predictive check, and of too few intervals covering
MAX_SHARE_OF_HIGH_K = 0.05
REPLICATES = 500
MIN_DRAWS = 30


@dataclass(frozen=True)
class Checked:
    """Results of all checks. tables: the numbers behind the findings, by name. predictive: the checks of
    replicated labels.
    """

    findings: list[Finding]
    tables: dict[str, pd.DataFrame]
    predictive: dict[str, PredictiveCheck] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One sentence that summarises the findings."""
        return summary.verdict(self.findings)

    @property
    def exit_status(self) -> int:
        """0, 3 or 4, see `findings.exit_status`."""
        return summary.exit_status(self.findings)

    def __str__(self) -> str:
        return "\n".join([self.verdict, *map(str, self.findings)])


def check_posterior(tree: xr.DataTree, *, seed: int, gold: np.ndarray | None = None) -> Checked:
    """Check a tree from `sample_posterior` or `load_posterior`.

    gold: codes of true classes by item, -1 where unknown; classes that the fit used are ignored.

    Raises:
        ValueError: fewer than 30 draws by item in all.
    """
    chains, draws = array(tree, "log_likelihood", "votes").shape[:2]
    if chains * draws < MIN_DRAWS:
        raise ValueError(
            f"{chains} chains of {draws} draws by item are too few to check: draw at least {MIN_DRAWS} in all"
        )
    sampling, convergence_table = convergence(tree)
    rows = _rows(tree)
    generator = np.random.default_rng(seed)
    tables = {"convergence": convergence_table}
    model: list[Finding] = []
    for unit, group, name in (("item", "log_likelihood", "votes"), ("annotation", "leave_one_out", "label")):
        finding, table = _leave_one_out(dataset(tree, group)[name], unit)
        model.append(finding)
        tables[f"loo_by_{unit}"] = table
    predictive = _predictive(tree, rows, generator)
    model += [_predictive_finding(name, check) for name, check in predictive.items()]
    tables |= {name: check.table for name, check in predictive.items()}
    sensitivity, tables["prior_sensitivity"] = prior_sensitivity(tree)
    compared = compare_with_mode(tree)
    tables |= {"plug_in": compared.parameters, "items": compared.items}
    model += sensitivity + compared.findings
    if gold is not None:
        unseen = np.where(rows.gold >= 0, -1, gold)
        tables |= {
            "gold": compare_on_gold(tree, unseen),
            "coverage": accuracy_coverage(tree, unseen, generator),
        }
        model += _gold_findings(tables["gold"], tables["coverage"])
    return Checked(sampling + model, tables, predictive)


def _leave_one_out(terms: xr.DataArray, unit: str) -> tuple[Finding, pd.DataFrame]:
    result = loo(terms.to_numpy(), unit)
    k = np.asarray(result.pareto_k)
    high = float((k > result.good_k).mean())
    table = pd.DataFrame(
        {"elpd": np.asarray(result.elpd_i), "pareto_k": k}, index=pd.Index(terms[unit].to_numpy(), name=unit)
    )
    estimate = f"elpd {result.elpd:.1f} (standard error {result.se:.1f}, effective parameters {result.p:.1f})"
    meaning = f"{estimate}. {reliability(result)}"
    return _high_k_finding(unit, high, meaning), table


def _high_k_finding(unit: str, share: float, meaning: str) -> Finding:
    threshold, passed = f"at most {MAX_SHARE_OF_HIGH_K}", share <= MAX_SHARE_OF_HIGH_K
    return Finding(f"leave-one-{unit}-out", "model", share, threshold, passed, meaning)


def _predictive(tree: xr.DataTree, rows: Rows, generator: np.random.Generator) -> dict[str, PredictiveCheck]:
    group = dataset(tree, "posterior_predictive").stack(sample=("chain", "draw"))
    chosen = generator.permutation(group.sizes["sample"])[:REPLICATES]
    labels = group["label"].transpose("sample", "annotation").to_numpy()[chosen].astype(np.int64)
    truth = group["truth"].transpose("sample", "item").to_numpy()[chosen].astype(np.int64)
    return predictive_checks(
        rows, labels, array(tree, "responsibilities", "mean"), truth, generator=generator
    )


def _predictive_finding(name: str, check: PredictiveCheck) -> Finding:
    p_values = np.array([check.p_value, check.overall["p"]], dtype=float)
    p = float(np.nanmin(p_values)) if np.isfinite(p_values).any() else np.nan
    # Two tests of one statistic, by entry and overall, share the threshold (Bonferroni)
    passed = None if np.isnan(p) else 2 * p >= MIN_P_VALUE
    meaning = {
        None: "Nothing to compare",
        True: "Replicated labels look like the observed ones",
        False: "Replicated labels do not look like the observed ones",
    }[passed]
    title, threshold = f"replicated {name.replace('_', ' ')}", f"p at least {MIN_P_VALUE / 2}"
    return Finding(title, "model", p, threshold, passed, f"{meaning}: {check}.")


def _gold_findings(table: pd.DataFrame, coverage: pd.DataFrame) -> list[Finding]:
    posterior, plug_in = table.loc["posterior"], table.loc["plug-in"]
    if not posterior["items"]:
        return []
    meaning = (
        f"On {posterior['items']:.0f} items with gold that the fit did not see: "
        f"calibration error {posterior['calibration_error']:.3f} "
        f"(plug-in {plug_in['calibration_error']:.3f}), "
        f"log loss {posterior['log_loss']:.3f} ({plug_in['log_loss']:.3f})."
    )
    findings = [Finding("accuracy on gold", "model", posterior["accuracy"], "no threshold", None, meaning)]
    if len(coverage) and coverage["annotators"].iloc[-1]:
        covered, number = float(coverage["covered"].iloc[-1]), int(coverage["annotators"].iloc[-1])
        enough = bool(binom.cdf(round(covered * number), number, LEVEL) >= MIN_P_VALUE)
        result = "about as often as they should" if enough else "too rarely: the model is overconfident"
        meaning = f"95 % intervals of the share of right labels cover it {result} ({number} annotators)."
        threshold = f"p at least {MIN_P_VALUE} if 95 % cover"
        findings.append(Finding("coverage on gold", "model", covered, threshold, enough, meaning))
    return findings


def _rows(tree: xr.DataTree) -> Rows:
    data = dataset(tree, "constant_data")
    item, annotator, label, gold = (
        data[name].to_numpy() for name in ("row_item", "row_annotator", "row_label", "gold")
    )
    weight = data["weight"].to_numpy() if "weight" in data else np.ones(len(label))
    classes = array(tree, "responsibilities", "mean").shape[1]
    return Rows(item, annotator, label, weight, gold, int(tree.attrs["num_annotators"]), classes)

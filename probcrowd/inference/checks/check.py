"""Every check of a posterior in one call: can the draws be trusted, does the model fit, and what did averaging change?

convergence      R-hat, effective sizes, divergences, E-BFMI, names of the classes
leave one out    PSIS-LOO by item and by annotation
predictive       agreement, vote entropy, annotators' label frequencies, error correlation of replicated against observed labels
prior            power scaling, component by component
plug-in          EM's point against the posterior
gold             calibration and coverage, where gold is known and was not used
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom

from probcrowd.data.rows import Rows
from probcrowd.inference.checks import findings as found
from probcrowd.inference.checks.convergence import convergence
from probcrowd.inference.checks.coverage import accuracy_coverage
from probcrowd.inference.checks.findings import Finding
from probcrowd.inference.checks.leave_one_out import loo, reliability
from probcrowd.inference.checks.plug_in import compare_on_gold, compare_with_mode
from probcrowd.inference.checks.predictive import PredictiveCheck, predictive_checks
from probcrowd.inference.checks.prior_sensitivity import prior_sensitivity
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.intervals import LEVEL

MIN_PREDICTIVE, MAX_SHARE_OF_HIGH_K, REPLICATES, LEAST_DRAWS = 0.01, 0.05, 500, 30


@dataclass(frozen=True)
class Checked:
    """What the checks found. tables: the numbers behind the findings, by name. predictive: the checks of replicated labels."""

    findings: list[Finding]
    tables: dict[str, pd.DataFrame]
    predictive: dict[str, PredictiveCheck] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return found.verdict(self.findings)

    @property
    def exit_status(self) -> int:
        """0, 3 or 4, as `findings.exit_status`."""
        return found.exit_status(self.findings)

    def __str__(self) -> str:
        return "\n".join([self.verdict, *map(str, self.findings)])


def check_posterior(tree: xr.DataTree, *, seed: int, gold: np.ndarray | None = None) -> Checked:
    """All checks of what `sample_posterior` returned, or of the same read back from a file.

    gold: codes of true classes by item, -1 where not known; those that the fit used are left out.

    Raises:
        ValueError: fewer than 30 draws in all, of which nothing can be said.
    """
    kept = array(tree, "log_likelihood", "label").shape[:2]
    if kept[0] * kept[1] < LEAST_DRAWS:
        raise ValueError(
            f"{kept[0]} chains of {kept[1]} draws by item are too few to check: draw at least {LEAST_DRAWS} in all"
        )
    sampling, convergence_table = convergence(tree)
    rows = _rows(tree)
    generator = np.random.default_rng(seed)
    tables = {"convergence": convergence_table}
    model: list[Finding] = []
    for unit, group in (("item", "log_likelihood"), ("annotation", "leave_one_out")):
        finding, table = _leave_one_out(dataset(tree, group)["label"], unit)
        model.append(finding)
        tables[f"loo_by_{unit}"] = table
    predictive = _predictive(tree, rows, generator)
    model += [_of_predictive(name, check) for name, check in predictive.items()]
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
        model += _of_gold(tables["gold"], tables["coverage"])
    return Checked(sampling + model, tables, predictive)


def _leave_one_out(terms: xr.DataArray, unit: str) -> tuple[Finding, pd.DataFrame]:
    result = loo(terms.to_numpy(), unit)
    k = np.asarray(result.pareto_k)
    high = float((k > result.good_k).mean())
    table = pd.DataFrame(
        {"elpd": np.asarray(result.elpd_i), "pareto_k": k}, index=pd.Index(terms[unit].to_numpy(), name=unit)
    )
    meaning = f"elpd {result.elpd:.1f} (standard error {result.se:.1f}, effective parameters {result.p:.1f}). {reliability(result)}"
    passed = high <= MAX_SHARE_OF_HIGH_K
    return Finding(
        f"leave-one-{unit}-out", "model", high, f"at most {MAX_SHARE_OF_HIGH_K}", passed, meaning
    ), table


def _predictive(tree: xr.DataTree, rows: Rows, generator: np.random.Generator) -> dict[str, PredictiveCheck]:
    group = dataset(tree, "posterior_predictive").stack(sample=("chain", "draw"))
    chosen = generator.permutation(group.sizes["sample"])[:REPLICATES]
    labels = group["label"].transpose("sample", "annotation").to_numpy()[chosen].astype(np.int64)
    truth = group["truth"].transpose("sample", "item").to_numpy()[chosen].astype(np.int64)
    return predictive_checks(
        rows, labels, array(tree, "responsibilities", "mean"), truth, generator=generator
    )


def _of_predictive(name: str, check: PredictiveCheck) -> Finding:
    looks = np.array([check.p_value, check.overall["p"]], dtype=float)
    p = float(np.nanmin(looks)) if np.isfinite(looks).any() else np.nan
    # Two looks at one statistic, entry by entry and overall, share the threshold
    passed = None if np.isnan(p) else 2 * p >= MIN_PREDICTIVE
    meaning = (
        "Labels that the model replicates look like those observed"
        if passed
        else "Labels that the model replicates look otherwise than those observed"
    )
    meaning = "Nothing to compare" if passed is None else meaning
    return Finding(
        f"replicated {name.replace('_', ' ')}",
        "model",
        p,
        f"p at least {MIN_PREDICTIVE / 2}",
        passed,
        f"{meaning}: {check}.",
    )


def _of_gold(table: pd.DataFrame, coverage: pd.DataFrame) -> list[Finding]:
    ours, plugged = table.loc["posterior"], table.loc["plug-in"]
    if not ours["items"]:
        return []
    errors = f"calibration error {ours['calibration_error']:.3f} (plug-in {plugged['calibration_error']:.3f})"
    meaning = f"On {ours['items']:.0f} items with gold that the fit did not see: {errors}, log loss {ours['log_loss']:.3f} ({plugged['log_loss']:.3f})."
    findings = [
        Finding("accuracy on gold", "model", ours["accuracy"], "tells, does not judge", None, meaning)
    ]
    if len(coverage) and coverage["annotators"].iloc[-1]:
        covered, number = float(coverage["covered"].iloc[-1]), int(coverage["annotators"].iloc[-1])
        honest = bool(binom.cdf(round(covered * number), number, LEVEL) >= MIN_PREDICTIVE)
        words = (
            "hold it about as often as they say"
            if honest
            else "hold it too seldom: the model is surer of the labels than it may be"
        )
        meaning = f"95 % intervals of how many of their labels are right, of {number} annotators, {words}."
        findings.append(
            Finding(
                "coverage on gold", "model", covered, "as many as 95 % may miss by chance", honest, meaning
            )
        )
    return findings


def _rows(tree: xr.DataTree) -> Rows:
    data = dataset(tree, "constant_data")
    label = array(tree, "observed_data", "label")
    weight = data["weight"].to_numpy() if "weight" in data else np.ones(len(label))
    item, annotator, gold = (data[name].to_numpy() for name in ("row_item", "row_annotator", "gold"))
    classes = array(tree, "responsibilities", "mean").shape[1]
    return Rows(item, annotator, label, weight, gold, int(tree.attrs["num_annotators"]), classes)

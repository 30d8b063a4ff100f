"""Sample a posterior, check it, and write label probabilities and findings into files.

posterior.nc      the xarray.DataTree of `sample_posterior`
items.csv         label probabilities, under the user's ids
annotators.csv    accuracy with intervals
comparison.csv    leave-one-item-out scores of several models, if requested
report.html       all of it on one page
verdict.json      the findings; written last, so all other files of the run are complete if it exists
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import xarray as xr

from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import gold_codes
from probcrowd.inference.checks.check import Checked, check_posterior
from probcrowd.inference.checks.findings import to_json
from probcrowd.inference.checks.leave_one_out import compare_models
from probcrowd.inference.posterior.sample import Sampler, sample_posterior
from probcrowd.inference.posterior.tables import annotator_table, item_table
from probcrowd.inference.posterior.tree import dataset, save_posterior
from probcrowd.models.catalogue import find_model
from probcrowd.runs.report import make_report
from probcrowd.storage.files import write_atomically, write_json, write_table

FILES = ("posterior.nc", "items.csv", "annotators.csv", "comparison.csv", "report.html", "verdict.json")


def check_labels(
    annotations: Annotations,
    *,
    out: Path,
    model: str = "dawid-skene",
    prior: str | None = None,
    features: pd.DataFrame | None = None,
    gold: pd.Series | None = None,
    known: pd.Series | None = None,
    sampler: Sampler = "auto",
    chains: int = 4,
    warmup: int = 1000,
    draws: int = 1000,
    start: Literal["votes", "dispersed"] = "votes",
    seed: int = 0,
    compare: Sequence[str] = (),
    progress: bool = True,
) -> Checked:
    """Sample and check the posterior of a model, write the files above into `out`, and return the findings.

    Args:
        prior: the name of one of the model's priors; None: its default. Models of `compare` use their
            defaults.
        gold: known classes, for scoring only.
        known: known classes, taken as certain in the fit.
        compare: other models, to compare by leaving out items.

    Raises:
        ValueError: as `sample_posterior`; a prior that the model does not have; models whose densities are
            not of the same data.
    """
    model, *others = (find_model(name).name for name in (model, *compare))
    compared = [name for name in dict.fromkeys(others) if name != model]
    _require_possible(model, compared, features)
    record = find_model(model).prior(annotations.num_classes, prior)
    codes = None if gold is None else gold_codes(annotations.items, annotations.classes, gold)
    out.mkdir(parents=True, exist_ok=True)  # before the hours that sampling may take
    settings = {
        "seed": seed,
        "gold": known,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "start": start,
        "progress": progress,
    }
    tree = sample_posterior(annotations, model, prior=record, features=features, sampler=sampler, **settings)
    checked = check_posterior(tree, seed=seed, gold=codes)
    terms = {model: _by_item(tree)} | {
        name: _by_item(sample_posterior(annotations, name, **settings)) for name in compared
    }
    comparison = compare_models(terms) if compared else None
    items, annotators = item_table(tree), annotator_table(tree, annotations.annotators)

    save_posterior(tree, out / "posterior.nc")
    write_table(out / "items.csv", items)
    write_table(out / "annotators.csv", annotators)
    if comparison is None:
        (out / "comparison.csv").unlink(missing_ok=True)  # an earlier run's would pass for this one's
    else:
        write_table(out / "comparison.csv", comparison)
    page = make_report(tree, checked, items, annotators, prior=prior, comparison=comparison, gold=codes)
    write_atomically(out / "report.html", page.encode())
    verdict = json.loads(to_json(checked.findings)) | {
        "model": model,
        "prior": {"name": prior} | json.loads(tree.attrs["prior"]),
        "settings": json.loads(tree.attrs["settings"])
        | {"start": start, "sampler": tree.attrs["sampler"], "compare": compared},
        "versions": json.loads(tree.attrs["versions"]),
    }
    write_json(out / "verdict.json", verdict)
    return checked


def _require_possible(model: str, compared: Sequence[str], features: pd.DataFrame | None) -> None:
    """Raise an error for combinations that can be refused before sampling."""
    with_features = [name for name in (model, *compared) if find_model(name).features]
    if with_features and compared:
        # Its density is of features and labels, theirs of labels alone
        raise ValueError(
            f"{with_features[0]} predicts features as well as labels, so it cannot be compared with "
            "models of labels alone"
        )
    if bool(with_features) != (features is not None):
        raise ValueError(
            f"the model {model} {'needs' if with_features else 'takes no'} features of the items"
        )


def _by_item(tree: xr.DataTree) -> xr.DataArray:
    return dataset(tree, "log_likelihood")["votes"]

"""Report a posterior on one self-contained HTML page: verdict, findings, figures and tables.

The page fetches nothing, and ids are escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Int
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from probcrowd.figures.posterior import posterior_figures
from probcrowd.inference.checks.check import Checked
from probcrowd.inference.posterior.tables import class_names
from probcrowd.inference.posterior.tree import array, dataset
from probcrowd.metrics.scores import predicted

PARAMETERS, ANNOTATORS, ITEMS, CLASSES = 15, 40, 20, 12  # shown at most
ADVICE = {
    0: "The numbers below can be used as they are.",
    3: "The numbers below help to find the problem. Do not use them as results.",
    4: "The numbers below depend on this model. Read the failed checks before you rely on them.",
}
AREAS = {"sampling": "Can the draws be trusted?", "model": "Does the model fit, and how much depends on it?"}
FIGURES = {
    "chains": (
        "Chains",
        (
            "Each colour is one chain: good chains overlap everywhere, without trends or plateaus, and "
            "their histograms coincide. Shown are the log likelihood and the quantities with the highest "
            "R-hat."
        ),
    ),
    "energy": (
        "Energy",
        (
            "The two distributions should nearly coincide, and every chain's BFMI should lie right of the "
            "dashed line; otherwise the sampler explores the tails too slowly."
        ),
    ),
    "annotators": (
        "Annotators",
        (
            "How often each annotator is right on an item drawn from the class prior, best first. Short "
            "intervals come from many labels; a cross outside its interval shows where EM's point "
            "estimate misleads."
        ),
    ),
    "items": (
        "Most uncertain items",
        (
            "A bar of one colour is a certain item; these are the items with the highest entropy, the "
            "most uncertain first."
        ),
    ),
    "plug_in": (
        "EM against the posterior",
        (
            "Items above the line are more certain at EM's point estimate than averaged over the "
            "posterior; red items change their most probable class. Counts have a log scale."
        ),
    ),
    "reliability": (
        "Calibration on gold",
        (
            "Bins on the line are calibrated; bins below it are overconfident. Bars are 95 % intervals of "
            "the share, given the number of items."
        ),
    ),
    "predictive": (
        "Replicated against observed labels",
        (
            "Labels drawn from the fitted model should look like those observed: intervals cross the "
            "diagonal, grey bars end within the blue ones. Red entries do not; about 5 % are expected by "
            "chance."
        ),
    ),
    "pareto_k": (
        "Influence of single items",
        (
            "Each point is an item. Above the lower line its leave-one-out estimate is unreliable, "
            "because the fit depends too much on the item."
        ),
    ),
}


@dataclass(frozen=True)
class Table:
    """A table of the page, every cell as text."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def make_report(
    tree: xr.DataTree,
    checked: Checked,
    items: pd.DataFrame,
    annotators: pd.DataFrame,
    *,
    prior: str | None = None,
    comparison: pd.DataFrame | None = None,
    gold: Int[np.ndarray, " i"] | None = None,
) -> str:
    """Build the page as HTML.

    items, annotators: from `probcrowd.inference.posterior.tables`. prior: its name. gold: codes by item,
    -1 if unknown.
    """
    figures = posterior_figures(tree, checked, gold)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("probcrowd.runs").joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        verdict=checked.verdict,
        advice=ADVICE[checked.exit_status],
        status=checked.exit_status,
        facts=_facts(tree, prior, gold),
        areas=[
            (title, [finding for finding in checked.findings if finding.area == area])
            for area, title in AREAS.items()
        ],
        figures=[(*FIGURES[name], _encoded(figure)) for name, figure in figures.items()],
        tables=_tables(tree, checked, items, annotators, comparison),
        number=number,
    )


def number(value: object) -> str:
    """Format a number for readers; a dash for NaN."""
    if isinstance(value, (float, np.floating)):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return "–" if math.isnan(value) else f"{value:.4g}"
    return (
        f"{value:,}" if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else str(value)
    )


def _facts(tree: xr.DataTree, prior: str | None, gold: Int[np.ndarray, " i"] | None) -> list[tuple[str, str]]:
    settings, classes = json.loads(tree.attrs["settings"]), class_names(tree)
    used = array(tree, "constant_data", "gold") >= 0
    shown = ", ".join(classes[:CLASSES]) + (", …" if len(classes) > CLASSES else "")
    weighted = ", weighted" if "weight" in dataset(tree, "constant_data") else ""
    labels, annotators = len(array(tree, "constant_data", "row_label")), int(tree.attrs["num_annotators"])
    every = f", every {settings['thin']}th sweep" if settings["thin"] else ""
    runs = (
        f"{settings['chains']} chains of {settings['draws']:,} draws after {settings['warmup']:,} of warm-up"
    )
    runs += every
    facts = [
        ("Labels", f"{labels:,}{weighted}, by {annotators:,} annotators, of {len(used):,} items"),
        ("Classes", f"{len(classes)}: {shown}"),
        ("Model", str(tree.attrs["model"])),
        ("Prior", f"{prior or 'the default'}: {_prior(json.loads(tree.attrs['prior']))}"),
        (
            "Sampler",
            f"{tree.attrs['sampler']}, {runs}; initial values: {tree.attrs['start']}",
        ),
        ("Seed", str(settings["seed"])),
        ("Known classes", f"{used.sum():,} items, used in the fit" if used.any() else "none"),
    ]
    if gold is not None:
        facts.append(("Gold", f"{((gold >= 0) & ~used).sum():,} items, for scoring alone"))
    versions = {"python": platform.python_version()} | json.loads(tree.attrs["versions"])
    facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return [
        *facts,
        ("Sampled", str(dataset(tree, "posterior").attrs.get("created_at", ""))[:19].replace("T", " ")),
    ]


def _prior(record: Mapping[str, Any]) -> str:
    parts = []
    for name, value in record.items():
        if name != "kind":
            flat = np.unique(
                np.asarray(value, dtype=object).astype(str) if value is None else np.asarray(value, float)
            )
            ends = [number(each) for each in flat[[0, -1]].tolist()]
            parts.append(f"{name.replace('_', ' ')} {ends[0] if len(flat) == 1 else ' to '.join(ends)}")
    return f"{record['kind']} ({', '.join(parts)})"


def _tables(
    tree: xr.DataTree,
    checked: Checked,
    items: pd.DataFrame,
    annotators: pd.DataFrame,
    comparison: pd.DataFrame | None,
) -> list[Table]:
    worst = (
        checked.tables["convergence"]
        .sort_values("r_hat", ascending=False)
        .head(PARAMETERS)
        .reset_index(names=["group", "parameter"])
    )
    tables = [_table("Worst parameters", "By R-hat, the highest first.", worst)]
    shown = annotators.sort_values("accuracy_mean", ascending=False, kind="stable").reset_index()
    note = "P(label = truth) of each, best first."
    if "confusion" not in dataset(tree, "posterior"):
        shown, note = shown.loc[:, ["annotator", "labels"]], "This model describes items, not annotators."
    elif "annotator" not in dataset(tree, "posterior").coords:
        note = "This model gives all annotators the same matrix."
    if len(shown) > ANNOTATORS:
        shown = pd.concat([shown.head(ANNOTATORS // 2), shown.tail(ANNOTATORS // 2)])
        note += f" The first and last {ANNOTATORS // 2} of {len(annotators):,}; all are in annotators.csv."
    tables.append(_table("Annotators", note, shown))
    tables += _item_tables(tree, checked.tables["items"], items)
    if "gold" in checked.tables:
        tables.append(
            _table(
                "Scores on gold",
                "Items whose classes the fit did not use.",
                checked.tables["gold"].rename_axis("probabilities").reset_index(),
            )
        )
    if comparison is not None:
        note = (
            "Expected log density of an item left out, best first; differences below a few standard errors "
            "are not reliable."
        )
        tables.append(_table("Models compared", note, comparison.reset_index()))
    return tables


def _item_tables(tree: xr.DataTree, compared: pd.DataFrame, items: pd.DataFrame) -> list[Table]:
    plugged = np.array(class_names(tree))[predicted(array(tree, "plug_in", "responsibility"))]
    table = items.loc[:, ["most_probable_class", "confidence"]].assign(
        em_class=plugged, em_confidence=items["plug_in_confidence"]
    )
    changed = table.loc[compared["class_differs"].to_numpy()].sort_values(by="em_confidence", ascending=False)
    uncertain = table.iloc[np.argsort(-compared["entropy"].to_numpy(), kind="stable")[:ITEMS]]
    several = (
        f"{len(changed):,} of {len(table):,} items"
        + (f"; the {ITEMS} where EM was most certain" if len(changed) > ITEMS else "")
        + "."
    )
    return [
        _table("Items whose class EM would change", several, changed.head(ITEMS).reset_index()),
        _table(
            "Most uncertain items",
            "Highest entropy first; all items are in items.csv.",
            uncertain.reset_index(),
        ),
    ]


def _table(title: str, note: str, frame: pd.DataFrame) -> Table:
    rows = [[number(value) for value in row] for row in frame.itertuples(index=False)]
    return Table(title, note, [str(name).replace("_", " ") for name in frame.columns], rows)


def _encoded(figure: Figure) -> str:
    """Encode the figure as PNG in base64."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Ids in scripts that the font lacks; the tables have them
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(file, format="png", dpi=110)
    return base64.b64encode(file.getvalue()).decode()

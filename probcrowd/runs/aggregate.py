"""Aggregate a table of annotations into files, and compare all aggregators on gold.

labels.csv        item, label, its probability, the probability of every class, ties, flags
annotators.csv    accuracy, information and probability of spamming, with intervals
confusion.csv     P(label | true class) by annotator; omitted like confusion.png if there are too many
summary.json      sizes, fit, class prior, dependence, scores on gold; written last, after all other files
annotators.png    annotators by accuracy
confidence.png    how certain the labels are
confusion.png     confusion matrices of the annotators with most labels

LIA adds

competence.csv    P(label | true class) by annotator, on an average item; omitted like confusion.csv
difficulty.csv    the probability that a typical annotator is wrong, by item
truth.csv         class probabilities by item from the truth network alone, without the item's labels
map.png           annotators with similar labels near each other
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

import probcrowd
from probcrowd.data.annotations import Annotations
from probcrowd.data.table import read_table
from probcrowd.data.validation import find_name
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.catalogue import AGGREGATORS, NETWORKS, find_aggregator
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.options import HELD_OUT
from probcrowd.estimators.results import MOST_CONFUSION
from probcrowd.figures.aggregation import annotator_map_figure, annotators_figure, confidence_figure
from probcrowd.figures.base import SHOWN, confusion_figure, save_figure
from probcrowd.metrics.intervals import interval
from probcrowd.metrics.scores import hits, log_losses, scores
from probcrowd.storage.files import replacing_files, write_json, write_table

_FIGURES = ("annotators.png", "confidence.png", "confusion.png")
FILES = ("labels.csv", "annotators.csv", "confusion.csv", *_FIGURES, "summary.json")
LIA_FILES = ("competence.csv", "difficulty.csv", "truth.csv", "map.png")


@dataclass(frozen=True)
class Aggregated:
    """The fitted aggregator, the content of summary.json, and the warnings of the fit."""

    aggregator: Aggregator
    summary: dict[str, Any]
    warnings: list[str]

    @property
    def is_lia(self) -> bool:
        """Whether `LIA_FILES` were written."""
        return isinstance(self.aggregator, LIA)


def aggregate_labels(
    annotations: Annotations,
    *,
    out: Path,
    model: str = "dawid-skene",
    gold: pd.Series | None = None,
    features: pd.DataFrame | np.ndarray | None = None,
    annotator_features: pd.DataFrame | None = None,
    progress: bool = True,
    **options: Any,
) -> Aggregated:
    """Fit an aggregator and write the files above into `out`, replacing earlier ones once all are complete.

    Args:
        gold: known classes by item. The labels take them as certain; scores come from a second fit without
            them.
        features, annotator_features: numbers by item and by annotator, for models that use them; see
            `LIA.fit`.
        options: arguments of the aggregator.

    Raises:
        ValueError: an unknown model, options or features that it does not take, invalid tables.
    """
    aggregator = make_aggregator(model, progress=progress, **options)
    inputs = _features(aggregator, model, features=features, annotator_features=annotator_features)
    out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        aggregator.fit(annotations, gold, **inputs)
        scored = aggregator
        if gold is not None:
            scored = make_aggregator(model, progress=progress, **options).fit(annotations, **inputs)
    messages = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    messages = list(dict.fromkeys(messages))
    codes = None if gold is None else _codes(annotations, gold, aggregator.abstention)
    probabilities = scored.probabilities_.to_numpy()
    summary = _summary(aggregator, annotations, model, messages)
    if codes is not None:
        summary["scores_without_gold"] = scores(probabilities, codes)
    # Without a fit of LIA, now or earlier, files of these names belong to the user
    lia_files = LIA_FILES if isinstance(aggregator, LIA) or _written_by_lia(out) else ()
    with replacing_files(out, (*lia_files, *FILES)) as folder:
        _write(folder, aggregator, confidence_figure(probabilities, codes), summary)
    return Aggregated(aggregator, summary, messages)


def compare_aggregators(
    annotations: Annotations,
    gold: pd.Series,
    *,
    models: Sequence[str] = (),
    reference: str = "majority-vote",
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> pd.DataFrame:
    """Score every aggregator on gold, with paired differences from the reference and 95 % intervals.

    The reference is the first row. Accuracy counts 1/m in a tie of m classes. No fit uses gold. A model that
    cannot fit the table is omitted, and `report` is called with the reason.
    """
    codes = _codes(annotations, gold, options.get("abstention"))
    known = codes >= 0
    if not known.any():
        raise ValueError("gold has no class for any of the items")
    names = [
        find_name("model", name, [*AGGREGATORS, *NETWORKS]) for name in (reference, *(models or AGGREGATORS))
    ]
    if networks := [name for name in names if name in NETWORKS]:
        raise ValueError(
            f"{networks[0]} uses features of items and cannot be compared here: fit it with aggregate"
        )
    rows, base = {}, None
    for name in tqdm(dict.fromkeys(names), disable=not progress, leave=False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                fitted = make_aggregator(name, progress=False, dependence="ignore", **options).fit(
                    annotations
                )
        except ValueError as error:
            if base is None:
                raise
            report(f"{name} omitted: {error}")
            continue
        p = fitted.probabilities_.to_numpy()
        each = {"accuracy": hits(p[known], codes[known]), "log_loss": log_losses(p[known], codes[known])}
        base = each if base is None else base
        row = scores(p, codes)
        for score, values in each.items():
            difference = values - base[score]
            estimate = interval(difference)
            row |= {f"{score}_difference": estimate.mean, f"{score}_half_width": estimate.half_width}
        rows[name] = row | {"iterations": fitted.n_iter_, "converged": fitted.converged_}
    return pd.DataFrame(rows).T.infer_objects().rename_axis("model")


def comparison_text(table: pd.DataFrame) -> str:
    """Format the comparison: accuracy in per cent, log loss in nats. The first row is the reference."""
    reference = table.index[0]
    shown = pd.DataFrame(
        {
            "accuracy %": [f"{100 * value:.2f}" for value in table["accuracy"]],
            f"minus {reference}": [
                ""
                if name == reference
                else f"{100 * row['accuracy_difference']:+.2f} ± {100 * row['accuracy_half_width']:.2f}"
                for name, row in table.iterrows()
            ],
            "log loss": [f"{value:.3f}" for value in table["log_loss"]],
            "calibration error": [f"{value:.3f}" for value in table["calibration_error"]],
        },
        index=table.index,
    )
    return f"{shown.to_string()}\n{int(table['items'].iloc[0]):,} items with gold"


def make_aggregator(model: str, **options: Any) -> Aggregator:
    """Create an aggregator from its name and options; None stands for an option's default.

    `progress` is dropped for aggregators without it.

    Raises:
        ValueError: an unknown model, or an option that the model lacks.
    """
    kind = find_aggregator(model)
    parameters = kind().get_params()
    given = {name: value for name, value in options.items() if value is not None}
    named = isinstance(given.get("prior"), str) and kind in NETWORKS.values()
    if named and (kind is not LIA or given["prior"] != HELD_OUT):
        raise ValueError(
            f"the model {model} has no prior named {given['prior']!r}"
            + (f": choose {HELD_OUT}, or leave it out" if kind is LIA else ": leave it out")
        )
    unknown = [name for name in given if name not in parameters and name not in ("progress", "abstentions")]
    if unknown:
        raise ValueError(f"the model {model} has no option {unknown[0]!r}: leave it out")
    aggregator = kind(**{name: value for name, value in given.items() if name in parameters})
    if given.get("abstentions", "ignore") != "ignore" and "abstentions" not in parameters:
        raise ValueError(f"the model {model} cannot model abstentions as events: choose 'ignore'")
    return aggregator


def _features(aggregator: Aggregator, model: str, **features: Any) -> dict[str, Any]:
    """Return the features that are not None; raise ValueError if the model does not take one of them."""
    given = {name: table for name, table in features.items() if table is not None}
    for name in given:
        if name not in signature(aggregator.fit).parameters:
            takers = [
                other for other in NETWORKS if name in signature(find_aggregator(other)().fit).parameters
            ]
            raise ValueError(
                f"the model {model} does not use {name.replace('_', ' ')}: choose {' or '.join(takers)}"
            )
    return given


def _written_by_lia(out: Path) -> bool:
    """Return whether the folder holds the files of an earlier run of LIA."""
    try:
        return json.loads((out / "summary.json").read_text(encoding="utf-8"))["model"].lower() == "lia"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _summary(fitted: Aggregator, annotations: Annotations, model: str, messages: list[str]) -> dict[str, Any]:
    items = fitted.items_
    return {
        "model": model,
        "options": {
            name: value
            for name, value in fitted.get_params().items()
            if name != "progress" and isinstance(value, (str, int, float, bool, type(None)))
        },
        "annotations": len(annotations),
        "items": annotations.num_items,
        "annotators": annotations.num_annotators,
        "classes": [str(name) for name in fitted.classes_],
        "items_without_labels": int(np.sum(np.asarray(items["num_labels"]) == 0)),
        "items_tied": int(np.sum(np.asarray(items["tied"]))),
        "items_known": int(np.sum(np.asarray(items["known"]))),
        "iterations": fitted.n_iter_,
        "converged": fitted.converged_,
        "log_posterior": float(fitted.log_posterior_[-1]) if len(fitted.log_posterior_) else None,
        "class_prior": {str(name): float(value) for name, value in fitted.class_prior_.items()},
        "mean_probability": float(np.mean(np.asarray(items["probability"]))),
        "annotators_probably_spamming": int(np.sum(np.asarray(fitted.annotators_["spammer"]) > 0.5)),
        "dependence": _dependence(fitted),
        "warnings": messages,
        "version": probcrowd.__version__,
    }


def _dependence(fitted: Aggregator) -> dict[str, Any] | None:
    if fitted.dependence_ is None:
        return None
    estimates = asdict(fitted.dependence_)
    near = fitted.dependent_pairs_
    near = near.loc[near["near_duplicate"].to_numpy(bool), ["annotator", "other"]]
    return {name: value for name, value in estimates.items() if name != "pairs"} | {
        "near_duplicates": [[str(name) for name in pair] for pair in near.itertuples(index=False)]
    }


def _write(folder: Path, fitted: Aggregator, confidence: Any, summary: dict[str, Any]) -> None:
    probabilities = fitted.probabilities_.add_prefix("p_")
    write_table(folder / "labels.csv", fitted.items_.join(probabilities))
    annotators = fitted.annotators_
    write_table(folder / "annotators.csv", annotators)
    size = len(annotators) * len(fitted.classes_) * len(fitted.classes_)
    if isinstance(fitted, LIA):
        write_table(folder / "difficulty.csv", fitted.difficulty_)
        write_table(folder / "truth.csv", fitted.truth_probabilities_.add_prefix("p_"))
        save_figure(annotator_map_figure(fitted.annotator_map_), folder / "map.png")
    if size <= MOST_CONFUSION // 20:
        if isinstance(fitted, LIA):
            write_table(folder / "competence.csv", fitted.competence_.add_prefix("says_"))
        write_table(folder / "confusion.csv", fitted.confusion_.add_prefix("says_"))
        most = annotators.sort_values("num_labels", ascending=False, kind="stable").index[:SHOWN]
        confusion = fitted.confusion_.loc[list(most)]
        save_figure(confusion_figure(confusion), folder / "confusion.png")
    save_figure(annotators_figure(annotators), folder / "annotators.png")
    save_figure(confidence, folder / "confidence.png")
    write_json(folder / "summary.json", summary)


def _codes(annotations: Annotations, gold: pd.Series, abstention: Any) -> np.ndarray:
    """Return the code of each item's known class, not counting the abstention; -1 if unknown."""
    return read_table(annotations, gold, abstention=abstention).gold

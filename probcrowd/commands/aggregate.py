"""Commands that aggregate labels and compare aggregators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from probcrowd.commands.options import (
    FILE,
    LABELS,
    OUT,
    Name,
    annotation_options,
    missing_packages,
    print_files,
    report_errors,
    split_names,
)

ABSTENTION = click.option("--abstention", metavar="LABEL", help="The label that stands for an abstention.")


@click.command()
@LABELS
@OUT
@click.option(
    "--model",
    default="dawid-skene",
    show_default=True,
    help="A model that `compare` lists, lia or two-stage.",
)
@click.option("--features", type=FILE, help="Numbers by item, .csv, .parquet or .npy, for lia and two-stage.")
@click.option("--annotator-features", type=FILE, help="Numbers by annotator, for lia.")
@click.option(
    "--gold", type=FILE, help="Known classes, taken as certain; scores come from a fit without them."
)
@click.option(
    "--prior",
    metavar="NAME",
    help="accurate, flat (maximum likelihood), stan or rater, for models with priors; held-out for lia.",
)
@click.option(
    "--confidence",
    type=Name(["averaged", "variational", "plug-in"]),
    help="Average probabilities over the parameters, or take them at the posterior mode (plug-in).",
)
@click.option(
    "--dependence",
    type=Name(["warn", "discount", "ignore"]),
    help="What to do if the annotators' errors are correlated.",
)
@ABSTENTION
@click.option(
    "--abstentions",
    type=Name(["ignore", "event"]),
    help="Leave abstentions out, or model them as events that hold information.",
)
@click.option("--out-of-core", is_flag=True, help="Dawid-Skene on Parquet files that need not fit in memory.")
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="The scheduler of a Dask cluster that sees the same files; implies --out-of-core.",
)
@report_errors
@annotation_options
def aggregate(
    labels: Path,
    out: Path,
    model: str,
    features: Path | None,
    annotator_features: Path | None,
    gold: Path | None,
    reading: dict[str, str],
    out_of_core: bool,
    cluster: str | None,
    **options: Any,
) -> None:
    """Estimate the true labels of the items in LABELS, with probabilities.

    LABELS is a .csv or .parquet file with columns item (or task), annotator (or worker) and label.

    Writes labels.csv, annotators.csv, confusion.csv, summary.json and three figures into the folder `out`,
    once all are complete; with --out-of-core, labels/*.parquet, annotators.csv and summary.json. lia adds
    competence.csv, difficulty.csv, truth.csv and map.png.

    With features, lia and two-stage predict from the items' features; without, they learn an embedding of
    every item from its labels. Feature files have ids in a column item (or task), or annotator (or worker);
    without that column, and in .npy files, ids are 0, 1, ...
    """
    if out_of_core or cluster:
        refused = {**options, "features": features, "annotator features": annotator_features, "prior": None}
        _check_out_of_core(model, refused, reading)
        _aggregate_parquet(labels, out, gold, reading, options["prior"] or "accurate", cluster)
        return
    from probcrowd.data.files import read_annotations, read_annotator_features, read_features, read_gold
    from probcrowd.runs.aggregate import FILES, LIA_FILES, aggregate_labels

    annotations = read_annotations(labels, **reading)
    result = aggregate_labels(
        annotations,
        out=out,
        model=model,
        gold=None if gold is None else read_gold(gold, annotations),
        features=None if features is None else read_features(features),
        annotator_features=None
        if annotator_features is None
        else read_annotator_features(annotator_features, annotations),
        progress=sys.stderr.isatty(),
        **options,
    )
    for line in result.warnings:
        click.echo(f"warning: {line}", err=True)
    click.echo(f"{_sizes(result.summary)}; {result.summary['model']}", err=True)
    if "scores_without_gold" in result.summary:
        scores = result.summary["scores_without_gold"]
        click.echo(
            f"without gold: accuracy {scores['accuracy']:.4f}, log loss {scores['log_loss']:.4f} "
            f"on {scores['items']:.0f} items",
            err=True,
        )
    print_files(out, (*FILES, *(LIA_FILES if result.is_lia else ())))


@click.command()
@LABELS
@click.option("--gold", required=True, type=FILE, help="Known classes, for scoring only.")
@click.option(
    "--models", metavar="NAME,NAME", callback=split_names, help="Models to compare.  [default: all]"
)
@click.option(
    "--reference",
    default="majority-vote",
    show_default=True,
    help="The model with which the others are compared.",
)
@ABSTENTION
@click.option("--out", type=FILE, help="A .csv file for the whole table.")
@report_errors
@annotation_options
def compare(
    labels: Path,
    gold: Path,
    models: list[str] | None,
    reference: str,
    abstention: str | None,
    reading: dict[str, str],
    out: Path | None,
) -> None:
    """Score all aggregators of LABELS on gold: accuracy, log loss, calibration error, paired differences.

    Differences are paired by item, with 95 % intervals over items with gold. In a tie of m classes accuracy
    counts 1/m.
    """
    from probcrowd.data.files import read_annotations, read_gold
    from probcrowd.runs.aggregate import compare_aggregators, comparison_text
    from probcrowd.storage.files import write_table

    annotations = read_annotations(labels, **reading)
    table = compare_aggregators(
        annotations,
        read_gold(gold, annotations),
        models=models or (),
        reference=reference,
        progress=sys.stderr.isatty(),
        report=lambda line: click.echo(line, err=True),
        abstention=abstention,
    )
    click.echo(comparison_text(table))
    if out is not None:
        write_table(out, table)
        click.echo(f"written to {out}", err=True)


def _check_out_of_core(model: str, options: dict[str, Any], reading: dict[str, str]) -> None:
    """Raise an error for a model or options that need the table in memory."""
    refused = [f"--{name.replace(' ', '-')}" for name, value in options.items() if value is not None]
    if reading["missing"] != "error":
        refused.append("--missing")
    if model.replace("_", "-").lower() != "dawid-skene":
        refused.insert(0, f"--model {model}")
    if refused:
        raise ValueError(f"--out-of-core fits dawid-skene with a prior only: remove {', '.join(refused)}")


def _aggregate_parquet(
    labels: Path, out: Path, gold: Path | None, reading: dict[str, str], prior: str, cluster: str | None
) -> None:
    from probcrowd.data.files import read_classes
    from probcrowd.runs.aggregate_parquet import aggregate_files

    client = None
    if cluster is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise missing_packages("a cluster", error, "dask") from error
        client = Client(cluster)
    roles = ("item", "annotator", "label", "weight")
    summary = aggregate_files(
        labels,
        out=out,
        gold=None if gold is None else read_classes(gold),
        prior=prior,
        columns={role: reading[role] for role in roles if role in reading},
        duplicates=reading["duplicates"],
        client=client,
        progress=sys.stderr.isatty(),
    )
    click.echo(_sizes(summary), err=True)
    print_files(out, ("labels", "annotators.csv", "summary.json"))


def _sizes(summary: dict[str, Any]) -> str:
    return (
        f"{summary['items']:,} items, {summary['annotators']:,} annotators, {summary['annotations']:,} labels"
    )

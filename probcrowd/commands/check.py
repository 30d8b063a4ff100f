"""The command that samples and checks a posterior."""

from __future__ import annotations

import sys
from dataclasses import replace
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
)


def _count(name: str, default: int, words: str, least: int = 1) -> Any:
    return click.option(name, default=default, show_default=True, type=click.IntRange(min=least), help=words)


@click.command()
@LABELS
@OUT
@click.option("--model", default="dawid-skene", show_default=True, help="The annotation model.")
@click.option(
    "--prior",
    metavar="NAME",
    help="flat, accurate or another name that the model has.  [default: the model's own]",
)
@click.option("--annotator-covariates", type=FILE, help="Groups or numbers by annotator, .csv or .parquet.")
@click.option("--item-covariates", type=FILE, help="Groups or numbers by item, .csv or .parquet.")
@click.option("--features", type=FILE, help="Numbers by item, .csv, .parquet or .npy, for prototype-crowd.")
@click.option("--gold", type=FILE, help="Known classes, for scoring only.")
@click.option("--known", type=FILE, help="Known classes, taken as certain in the fit.")
@click.option(
    "--sampler",
    default="auto",
    show_default=True,
    type=Name(["auto", "gibbs", "nuts"]),
    help="How to sample.",
)
@_count("--chains", 4, "Number of Markov chains.")
@_count("--warmup", 1000, "Discarded draws of each chain.")
@_count("--draws", 1000, "Retained draws of each chain.", 10)
@click.option(
    "--start",
    default="votes",
    show_default=True,
    type=Name(["votes", "dispersed"]),
    help="Initial values of the chains.",
)
@click.option(
    "--compare",
    multiple=True,
    metavar="MODEL",
    help="Another model, to compare by leaving out items. Repeatable.",
)
@_count("--seed", 0, "Seed of all random draws.", 0)
@report_errors
@annotation_options
def check(
    labels: Path,
    out: Path,
    annotator_covariates: Path | None,
    item_covariates: Path | None,
    features: Path | None,
    gold: Path | None,
    known: Path | None,
    reading: dict[str, str],
    **options: Any,
) -> None:
    """Sample the posterior of a model of LABELS, and check whether draws and model can be trusted.

    Writes posterior.nc, items.csv, annotators.csv, report.html, verdict.json and, with --compare,
    comparison.csv.

    \b
    Exit status
      0  every check passed
      1  an error, reported in one line
      2  wrong usage of the command
      3  the draws cannot be trusted
      4  the draws can be trusted, but the model fails a check
    """
    try:
        from probcrowd.runs.check import FILES, check_labels
    except ImportError as error:
        raise missing_packages("checking", error, "mcmc") from error
    from probcrowd.data.files import read_annotations, read_annotator_features, read_features, read_gold

    annotations = read_annotations(labels, **reading)
    if annotator_covariates is not None:
        covariates = read_annotator_features(annotator_covariates, annotations)
        annotations = replace(annotations, annotator_covariates=covariates)
    if item_covariates is not None:
        annotations = replace(annotations, item_covariates=read_features(item_covariates))
    checked = check_labels(
        annotations,
        out=out,
        features=None if features is None else read_features(features),
        gold=None if gold is None else read_gold(gold, annotations),
        known=None if known is None else read_gold(known, annotations),
        progress=sys.stderr.isatty(),
        **options,
    )
    click.echo(str(checked))
    print_files(out, FILES)
    click.get_current_context().exit(checked.exit_status)

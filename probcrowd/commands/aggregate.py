"""Commands of aggregation: labels from a table, and the comparison of all ways to get them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from probcrowd.commands.errors import told
from probcrowd.commands.options import COLUMNS, FILE, MISSING, duplicates_option


@click.command()
@click.argument("labels", type=FILE)
@click.option("--out", required=True, type=FILE, help="Folder for the results.")
@click.option(
    "--model",
    default="dawid-skene",
    show_default=True,
    help="One that `probcrowd compare` lists, or lia or two-stage.",
)
@click.option("--features", type=FILE, help="Numbers by item, .csv, .parquet or .npy, for lia and two-stage.")
@click.option("--annotator-features", type=FILE, help="Numbers by annotator, for lia.")
@click.option(
    "--gold", type=FILE, help="Known classes: taken as certain. Scores are those of a fit without them."
)
@COLUMNS
@click.option(
    "--prior",
    metavar="NAME",
    help="accurate, flat (maximum likelihood), stan or rater, where the model has priors; held-out for lia.",
)
@click.option(
    "--confidence",
    type=click.Choice(["averaged", "variational", "plug-in"]),
    help="Probabilities averaged over parameters, or at their mode.",
)
@click.option(
    "--dependence",
    type=click.Choice(["warn", "discount", "ignore"]),
    help="What to do if annotators err together.",
)
@click.option("--abstention", metavar="LABEL", help="The label that stands for an abstention.")
@click.option(
    "--abstentions",
    type=click.Choice(["ignore", "event"]),
    help="Leave them out, or let them tell something.",
)
@duplicates_option("Repeated pairs.")
@MISSING
@click.option(
    "--out-of-core", is_flag=True, help="Dawid-Skene of a Parquet file or folder that need not fit in memory."
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="The scheduler of a Dask cluster that sees the same files; implies --out-of-core.",
)
@told
def aggregate(
    labels: Path,
    out: Path,
    model: str,
    features: Path | None,
    annotator_features: Path | None,
    gold: Path | None,
    columns: str | None,
    duplicates: str,
    missing: str,
    out_of_core: bool,
    cluster: str | None,
    **options: Any,
) -> None:
    """Labels with probabilities from LABELS, a .csv or .parquet file with columns item (or task), annotator (or worker) and label.

    Writes labels.csv, annotators.csv, confusion.csv, summary.json and three figures into the folder `out`, once all of them are whole; out
    of core labels/*.parquet, annotators.csv and summary.json. lia adds competence.csv, difficulty.csv, truth.csv and map.png.

    With features lia and two-stage look at the items; without them they learn a place for every item from its labels. Ids of features are
    in a column item (or task), or annotator (or worker); without that column, and in .npy files, they are 0, 1, ...
    """
    if out_of_core or cluster:
        given = options | {"features": features, "annotator features": annotator_features}
        names = ("confidence", "dependence", "abstention", "abstentions", "features", "annotator features")
        refused = [name for name in names if given[name] is not None]
        if model.replace("_", "-") != "dawid-skene" or refused or missing != "error":
            raise ValueError(
                f"out of core there is dawid-skene with a prior alone, not {', '.join(refused) or model}"
            )
        _aggregate_files(labels, out, gold, columns, duplicates, options["prior"] or "accurate", cluster)
        return
    from probcrowd.data.files import (
        named_columns,
        read_annotations,
        read_annotator_features,
        read_features,
        read_gold,
    )
    from probcrowd.runs.aggregate import FILES, LIA_FILES, aggregate_labels

    said = read_annotations(labels, duplicates=duplicates, missing=missing, **named_columns(columns))
    known = None if gold is None else read_gold(gold, said)
    done = aggregate_labels(
        said,
        out=out,
        model=model,
        gold=known,
        features=None if features is None else read_features(features),
        annotator_features=None
        if annotator_features is None
        else read_annotator_features(annotator_features, said),
        progress=sys.stderr.isatty(),
        **options,
    )
    for line in done.warnings:
        click.echo(f"warning: {line}", err=True)
    summary = done.summary
    click.echo(
        f"{summary['items']:,} items, {summary['annotators']:,} annotators, {summary['annotations']:,} labels; {model}",
        err=True,
    )
    if "scores_without_gold" in summary:
        scores = summary["scores_without_gold"]
        click.echo(
            f"without gold: accuracy {scores['accuracy']:.4f}, log loss {scores['log_loss']:.4f} on {scores['items']:.0f} items",
            err=True,
        )
    for path in filter(Path.exists, (out / name for name in (*FILES, *(LIA_FILES if done.is_lia else ())))):
        click.echo(str(path))


def _aggregate_files(
    labels: Path,
    out: Path,
    gold: Path | None,
    columns: str | None,
    duplicates: str,
    prior: str,
    cluster: str | None,
) -> None:
    from probcrowd.data.files import named_columns, read_classes
    from probcrowd.runs.aggregate_parquet import aggregate_files

    client = None
    if cluster is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise click.ClickException(
                f'a cluster needs more packages ({error}): pip install "probcrowd[dask]"'
            ) from error
        client = Client(cluster)
    known = None if gold is None else read_classes(gold)
    summary = aggregate_files(
        labels,
        out=out,
        gold=known,
        prior=prior,
        columns=named_columns(columns),
        duplicates=duplicates,
        client=client,
        progress=sys.stderr.isatty(),
    )
    click.echo(
        f"{summary['items']:,} items, {summary['annotators']:,} annotators, {summary['annotations']:,} labels",
        err=True,
    )
    for name in ("labels", "annotators.csv", "summary.json"):
        click.echo(str(out / name))


@click.command()
@click.argument("labels", type=FILE)
@click.option("--gold", required=True, type=FILE, help="Known classes; no fit sees them.")
@click.option("--models", metavar="NAME,NAME", help="Which models.  [default: all]")
@click.option(
    "--reference",
    default="majority-vote",
    show_default=True,
    help="The model that the others are compared with.",
)
@COLUMNS
@click.option(
    "--abstention", metavar="LABEL", help="The label that stands for an abstention; such rows are left out."
)
@duplicates_option("Repeated pairs.")
@MISSING
@click.option("--out", type=FILE, help="A .csv file for the whole table.")
@told
def compare(
    labels: Path,
    gold: Path,
    models: str | None,
    reference: str,
    columns: str | None,
    abstention: str | None,
    duplicates: str,
    missing: str,
    out: Path | None,
) -> None:
    """Accuracy, log loss and calibration error of all aggregators of LABELS, with paired differences from a reference.

    Intervals are 95 %, over items with gold; accuracy counts 1/m where m classes tie.
    """
    from probcrowd.data.files import named_columns, read_annotations, read_gold
    from probcrowd.runs.aggregate import compare_aggregators, comparison_text
    from probcrowd.storage.files import write_table

    said = read_annotations(labels, duplicates=duplicates, missing=missing, **named_columns(columns))
    names = [] if models is None else models.split(",")
    table = compare_aggregators(
        said,
        read_gold(gold, said),
        models=names,
        reference=reference,
        progress=sys.stderr.isatty(),
        say=lambda line: click.echo(line, err=True),
        abstention=abstention,
    )
    click.echo(comparison_text(table, reference))
    if out is not None:
        write_table(out, table)
        click.echo(f"written to {out}", err=True)

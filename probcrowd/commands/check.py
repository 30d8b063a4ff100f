"""The command that samples and checks a posterior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from probcrowd.commands.errors import told
from probcrowd.commands.options import FILE, MISSING, duplicates_option


@click.command()
@click.argument("labels", type=FILE)
@click.option("--out", required=True, type=FILE, help="Folder for the results.")
@click.option("--model", default="dawid_skene", show_default=True, help="The model of annotation.")
@click.option(
    "--prior",
    metavar="NAME",
    help="accurate, rater, stan, flat or paun, where the model has it.  [default: the model's own]",
)
@click.option("--features", type=FILE, help="Numbers by item, .csv, .parquet or .npy, for prototype_crowd.")
@click.option(
    "--gold", type=FILE, help="Known classes to score the answer against; the fit does not see them."
)
@click.option("--known", type=FILE, help="Known classes that the fit takes as certain.")
@click.option("--item", metavar="NAME", help="Column of items.  [default: item or task]")
@click.option(
    "--annotator", metavar="NAME", help="Column of annotators.  [default: annotator, worker, rater or user]"
)
@click.option("--label", metavar="NAME", help="Column of labels.  [default: label]")
@click.option("--weight", metavar="NAME", help="Column of weights.")
@duplicates_option("Repeated pairs.")
@MISSING
@click.option(
    "--sampler",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "gibbs", "nuts"]),
    help="How to sample.",
)
@click.option("--chains", default=4, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--warmup",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Draws of each chain that are thrown away.",
)
@click.option(
    "--draws",
    default=1000,
    show_default=True,
    type=click.IntRange(min=10),
    help="Draws of each chain that are kept.",
)
@click.option(
    "--start",
    default="votes",
    show_default=True,
    type=click.Choice(["votes", "dispersed"]),
    help="Where chains begin.",
)
@click.option(
    "--compare",
    multiple=True,
    metavar="MODEL",
    help="Another model, to compare by leaving out items. Repeatable.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@told
def check(
    labels: Path,
    out: Path,
    features: Path | None,
    gold: Path | None,
    known: Path | None,
    item: str | None,
    annotator: str | None,
    label: str | None,
    weight: str | None,
    duplicates: str,
    missing: str,
    **options: Any,
) -> None:
    """Sample the posterior of a model of LABELS, and check whether draws and model can be trusted.

    Writes posterior.nc, items.csv, annotators.csv, report.html, verdict.json and, with --compare, comparison.csv.

    \b
    Exit status
      0  every check passed
      1  an error, told in one line
      2  the command was called wrongly
      3  the draws cannot be trusted
      4  the draws can be trusted, but a check speaks against the model
    """
    try:
        from probcrowd.runs.check import FILES, check_labels
    except ImportError as error:
        raise click.ClickException(
            f'checking needs more packages ({error}): pip install "probcrowd[mcmc]"'
        ) from error
    from probcrowd.data.files import read_annotations, read_features, read_gold

    columns = {"item": item, "annotator": annotator, "label": label, "weight": weight}
    said = read_annotations(labels, duplicates=duplicates, missing=missing, **columns)
    checked = check_labels(
        said,
        out=out,
        features=None if features is None else read_features(features),
        gold=None if gold is None else read_gold(gold, said),
        known=None if known is None else read_gold(known, said),
        progress=sys.stderr.isatty(),
        **options,
    )
    click.echo(str(checked))
    for path in filter(Path.exists, (out / name for name in FILES)):
        click.echo(str(path))
    click.get_current_context().exit(checked.exit_status)

"""The `probcrowd` command: a thin layer over functions that do the same from Python."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click

import probcrowd


def _told(command: Callable[..., None]) -> Callable[..., None]:
    """The command with faults of the user's input told in one line instead of a traceback."""

    @wraps(command)
    def told(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, FloatingPointError) as error:
            raise click.ClickException(str(error)) from error
        except (EOFError, BadZipFile) as error:
            raise click.ClickException(f"a file is empty or damaged: {error}") from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'file'}: {error.strerror}") from error
        except KeyboardInterrupt as error:
            raise click.ClickException("interrupted; what has been saved is whole") from error

    return told


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(probcrowd.__version__)
def main() -> None:
    """Learn from several imperfect annotators."""


@main.command("meta-train")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Continue the run in the folder `out`, or begin it.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting, e.g. training.steps=500. Repeatable.")
@_told
def meta_train_command(config: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Meta-train an embedding network as CONFIG (a TOML file) says, into the folder that its key `out` names.

    Several processes: torchrun --nproc-per-node 2 -m probcrowd meta-train CONFIG
    """
    from probcrowd.runs.configuration import MetaTraining
    from probcrowd.runs.meta_train import meta_train
    from probcrowd.storage.settings import read_settings

    settings = read_settings(MetaTraining, config, overrides)
    meta_train(settings, resume=resume)
    click.echo(f"the run is in {settings.out}", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@_told
def evaluate(run: Path) -> None:
    """Accuracy of RUN on its target tasks, beside label aggregation followed by prototypes with the same network.

    Writes scores.csv (one row per task), table.csv and accuracy.png into RUN/evaluation.
    """
    from probcrowd.runs.evaluate import evaluate_run, grid

    click.echo(grid(evaluate_run(run)))
    click.echo(f"query accuracy, mean and 95 % interval over tasks; written to {run / 'evaluation'}", err=True)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--support", required=True, type=click.Path(path_type=Path), help="Features of the labelled items: .csv, .parquet or .npy.")
@click.option("--annotations", required=True, type=click.Path(path_type=Path), help="Columns item, annotator, label: .csv or .parquet.")
@click.option("--query", required=True, type=click.Path(path_type=Path), help="Features of the items to classify.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--weight", help="The annotations' column of weights, if there is one.")
@click.option(
    "--duplicates", default="error", type=click.Choice(["error", "first", "last", "count", "share"]), help="Repeated (item, annotator)."
)
@click.option("--missing", default="error", type=click.Choice(["error", "skip"]), help="Rows without a label.")
@_told
def adapt(run: Path, support: Path, annotations: Path, query: Path, out: Path, weight: str | None, duplicates: str, missing: str) -> None:
    """Adapt RUN to a task that several annotators labelled; classify its query items.

    Features have one row per item, with ids in a column `item`; without that column, and in .npy files, items are 0, 1, ...
    Writes probabilities, responsibilities, confusion, annotators and class_prior as .csv and .parquet, and confusion.png.
    """
    from probcrowd.figures import confusion_figure
    from probcrowd.runs.trained import load_run
    from probcrowd.tables import read_annotations, read_features

    said = read_annotations(annotations, weight=weight, duplicates=duplicates, missing=missing)
    adapted = load_run(run).adapt(read_features(support), said, read_features(query))
    files = adapted.write(out)
    confusion_figure(adapted.confusion).savefig(out / "confusion.png", dpi=150)
    for path in [*files, out / "confusion.png"]:
        click.echo(str(path))


@main.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--model", default="dawid_skene", show_default=True, help="The model of annotation.")
@click.option("--prior", metavar="NAME", help="accurate, rater, stan, flat or paun, where the model has it.  [default: the model's own]")
@click.option("--features", type=click.Path(path_type=Path), help="Numbers by item, .csv, .parquet or .npy, for prototype_crowd.")
@click.option("--gold", type=click.Path(path_type=Path), help="Known classes to score the answer against; the fit does not see them.")
@click.option("--known", type=click.Path(path_type=Path), help="Known classes that the fit takes as certain.")
@click.option("--item", metavar="NAME", help="Column of items.  [default: item or task]")
@click.option("--annotator", metavar="NAME", help="Column of annotators.  [default: annotator, worker, rater or user]")
@click.option("--label", metavar="NAME", help="Column of labels.  [default: label]")
@click.option("--weight", metavar="NAME", help="Column of weights.")
@click.option("--duplicates", default="error", type=click.Choice(["error", "first", "last", "count", "share"]), help="Repeated pairs.")
@click.option("--missing", default="error", type=click.Choice(["error", "skip"]), help="Rows without a label.")
@click.option("--sampler", default="auto", show_default=True, type=click.Choice(["auto", "gibbs", "nuts"]), help="How to sample.")
@click.option("--chains", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--warmup", default=1000, show_default=True, type=click.IntRange(min=1), help="Draws of each chain that are thrown away.")
@click.option("--draws", default=1000, show_default=True, type=click.IntRange(min=10), help="Draws of each chain that are kept.")
@click.option("--start", default="votes", show_default=True, type=click.Choice(["votes", "dispersed"]), help="Where chains begin.")
@click.option("--compare", multiple=True, metavar="MODEL", help="Another model, to compare by leaving out items. Repeatable.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@_told
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
        raise click.ClickException(f'checking needs more packages ({error}): pip install "probcrowd[mcmc]"') from error
    from probcrowd.tables import read_annotations, read_features, read_gold

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


@main.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--model", default="dawid-skene", show_default=True, help="How to aggregate; `probcrowd compare` lists all.")
@click.option("--gold", type=click.Path(path_type=Path), help="Known classes: taken as certain. Scores are those of a fit without them.")
@click.option("--columns", metavar="item=NAME,annotator=NAME,label=NAME,weight=NAME", help="Columns that have other names.")
@click.option("--prior", metavar="NAME", help="accurate, flat (maximum likelihood), stan or rater, where the model has priors.")
@click.option(
    "--confidence",
    type=click.Choice(["averaged", "variational", "plug-in"]),
    help="Probabilities averaged over parameters, or at their mode.",
)
@click.option("--dependence", type=click.Choice(["warn", "discount", "ignore"]), help="What to do if annotators err together.")
@click.option("--abstention", metavar="LABEL", help="The label that stands for an abstention.")
@click.option("--abstentions", type=click.Choice(["ignore", "event"]), help="Leave them out, or let them tell something.")
@click.option("--duplicates", default="error", type=click.Choice(["error", "first", "last", "count", "share"]), help="Repeated pairs.")
@click.option("--missing", default="error", type=click.Choice(["error", "skip"]), help="Rows without a label.")
@click.option("--out-of-core", is_flag=True, help="Dawid-Skene of a Parquet file or folder that need not fit in memory.")
@click.option("--cluster", metavar="ADDRESS", help="The scheduler of a Dask cluster that sees the same files; implies --out-of-core.")
@_told
def aggregate(
    labels: Path,
    out: Path,
    model: str,
    gold: Path | None,
    columns: str | None,
    duplicates: str,
    missing: str,
    out_of_core: bool,
    cluster: str | None,
    **options: Any,
) -> None:
    """Labels with probabilities from LABELS, a .csv or .parquet file with columns item (or task), annotator (or worker) and label.

    Writes labels.csv, annotators.csv, confusion.csv, summary.json and three figures into the folder `out`, once all of them are whole; out of
    core labels/*.parquet, annotators.csv and summary.json.
    """
    if out_of_core or cluster:
        refused = [name for name in ("confidence", "dependence", "abstention", "abstentions") if options[name] is not None]
        if model.replace("_", "-") != "dawid-skene" or refused or missing != "error":
            raise ValueError(f"out of core there is dawid-skene with a prior alone, not {', '.join(refused) or model}")
        _aggregate_files(labels, out, gold, columns, duplicates, options["prior"] or "accurate", cluster)
        return
    from probcrowd.runs.aggregate import FILES, aggregate_labels
    from probcrowd.tables import named_columns, read_annotations, read_gold

    said = read_annotations(labels, duplicates=duplicates, missing=missing, **named_columns(columns))
    known = None if gold is None else read_gold(gold, said)
    done = aggregate_labels(said, out=out, model=model, gold=known, progress=sys.stderr.isatty(), **options)
    for line in done.warnings:
        click.echo(f"warning: {line}", err=True)
    summary = done.summary
    click.echo(f"{summary['items']:,} items, {summary['annotators']:,} annotators, {summary['annotations']:,} labels; {model}", err=True)
    if "scores_without_gold" in summary:
        scores = summary["scores_without_gold"]
        click.echo(
            f"without gold: accuracy {scores['accuracy']:.4f}, log loss {scores['log_loss']:.4f} on {scores['items']:.0f} items", err=True
        )
    for path in filter(Path.exists, (out / name for name in FILES)):
        click.echo(str(path))


def _aggregate_files(
    labels: Path, out: Path, gold: Path | None, columns: str | None, duplicates: str, prior: str, cluster: str | None
) -> None:
    from probcrowd.runs.aggregate_files import aggregate_files
    from probcrowd.tables import named_columns, read_classes

    client = None
    if cluster is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise click.ClickException(f'a cluster needs more packages ({error}): pip install "probcrowd[dask]"') from error
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
    click.echo(f"{summary['items']:,} items, {summary['annotators']:,} annotators, {summary['annotations']:,} labels", err=True)
    for name in ("labels", "annotators.csv", "summary.json"):
        click.echo(str(out / name))


@main.command()
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--gold", required=True, type=click.Path(path_type=Path), help="Known classes; no fit sees them.")
@click.option("--models", metavar="NAME,NAME", help="Which models.  [default: all]")
@click.option("--reference", default="majority-vote", show_default=True, help="The model that the others are compared with.")
@click.option("--columns", metavar="item=NAME,annotator=NAME,label=NAME,weight=NAME", help="Columns that have other names.")
@click.option("--abstention", metavar="LABEL", help="The label that stands for an abstention; such rows are left out.")
@click.option("--duplicates", default="error", type=click.Choice(["error", "first", "last", "count", "share"]), help="Repeated pairs.")
@click.option("--missing", default="error", type=click.Choice(["error", "skip"]), help="Rows without a label.")
@click.option("--out", type=click.Path(path_type=Path), help="A .csv file for the whole table.")
@_told
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
    from probcrowd.runs.aggregate import compare_aggregators, comparison_text
    from probcrowd.storage.files import write_atomically
    from probcrowd.tables import named_columns, read_annotations, read_gold

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
        write_atomically(out, table.to_csv().encode())
        click.echo(f"written to {out}", err=True)


@main.command()
@click.option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--splits", default=5, show_default=True, type=click.IntRange(min=1), help="Random splits of the classes to average over.")
@click.option("--config", type=click.Path(path_type=Path), help="Other settings than those for the digits, a TOML file.")
@_told
def demo(out: Path, splits: int, config: Path | None) -> None:
    """Compare meta-training through EM with its alternatives, on handwritten digits: a table, two figures, minutes on two cores."""
    from probcrowd.runs.demo import demo_settings, demonstrate
    from probcrowd.runs.evaluate import grid

    result = demonstrate(demo_settings(out, config), splits=splits, say=click.echo)
    click.echo("\nquery accuracy, mean and 95 % interval over target tasks\n" + grid(result.table))
    click.echo("\nmean differences on the same tasks, with 95 % intervals\n" + result.differences.to_string(float_format="{:.4f}".format))
    click.echo(f"\nfigures and every number: {out}")

"""Commands for meta-training: train, evaluate, adapt, and a demonstration."""

from __future__ import annotations

from pathlib import Path

import click

from probcrowd.commands.options import FILE, OUT, SET, annotation_options, report_errors


@click.command("meta-train")
@click.argument("config", type=FILE)
@click.option("--resume", is_flag=True, help="Continue the run in the folder `out`, or start it.")
@SET
@report_errors
def meta_train_command(config: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Meta-train a network with the settings in CONFIG, a TOML file whose key `out` names the folder.

    In several processes: torchrun --nproc-per-node 2 -m probcrowd meta-train CONFIG
    """
    from probcrowd.runs.meta.configuration import MetaTraining
    from probcrowd.runs.meta.train import meta_train
    from probcrowd.storage.settings import read_settings

    settings = read_settings(MetaTraining, config, overrides)
    meta_train(settings, resume=resume)
    click.echo(f"the run is in {settings.out}", err=True)


@click.command()
@click.argument("run", type=FILE)
@report_errors
def evaluate(run: Path) -> None:
    """Score RUN on its target tasks, and label aggregation followed by prototypes in the same network.

    Writes scores.csv (one row per task), table.csv and accuracy.png into RUN/evaluation.
    """
    from probcrowd.runs.meta.evaluate import evaluate_run, grid

    click.echo(grid(evaluate_run(run)))
    click.echo(
        f"query accuracy, mean and 95 % interval over tasks; written to {run / 'evaluation'}", err=True
    )


@click.command()
@click.argument("run", type=FILE)
@click.option(
    "--support", required=True, type=FILE, help="Features of the labelled items: .csv, .parquet or .npy."
)
@click.option(
    "--annotations", required=True, type=FILE, help="Columns item, annotator, label: .csv or .parquet."
)
@click.option("--query", required=True, type=FILE, help="Features of the items to classify.")
@OUT
@report_errors
@annotation_options
def adapt(
    run: Path, support: Path, annotations: Path, query: Path, out: Path, reading: dict[str, str]
) -> None:
    """Adapt RUN to a task labelled by several annotators, and classify its query items.

    Features have one row per item, with ids in a column `item`; without that column, and in .npy files, ids
    are 0, 1, ... Writes probabilities, responsibilities, confusion, annotators and class_prior as .csv and
    .parquet, and confusion.png.
    """
    from probcrowd.data.files import read_annotations, read_features
    from probcrowd.figures.base import confusion_figure, save_figure
    from probcrowd.runs.meta.trained import load_run

    table = read_annotations(annotations, **reading)
    adapted = load_run(run).adapt(read_features(support), table, read_features(query))
    files = adapted.write(out)
    save_figure(confusion_figure(adapted.confusion), out / "confusion.png")
    for path in [*files, out / "confusion.png"]:
        click.echo(str(path))


@click.command()
@click.option("--out", default="demo", show_default=True, type=FILE, help="Folder for the results.")
@click.option(
    "--splits",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of random splits of the classes to average over.",
)
@click.option("--config", type=FILE, help="A TOML file with settings.  [default: those for digits]")
@report_errors
def demo(out: Path, splits: int, config: Path | None) -> None:
    """Compare meta-training through EM with its alternatives on handwritten digits.

    Writes a table and two figures, in minutes on two cores.
    """
    from probcrowd.runs.meta.demo import demo_settings, demonstrate
    from probcrowd.runs.meta.evaluate import grid

    result = demonstrate(demo_settings(out, config), splits=splits, report=click.echo)
    click.echo("\nquery accuracy, mean and 95 % interval over target tasks\n" + grid(result.table))
    differences = result.differences.to_string(float_format="{:.4f}".format)
    click.echo("\nmean differences on the same tasks, with 95 % intervals\n" + differences)
    click.echo(f"\nfigures and all numbers: {out}")

"""Commands of meta-training: train, score, use, and the demonstration."""

from __future__ import annotations

from pathlib import Path

import click

from probcrowd.commands.errors import told
from probcrowd.commands.options import FILE, MISSING, duplicates_option


@click.command("meta-train")
@click.argument("config", type=FILE)
@click.option("--resume", is_flag=True, help="Continue the run in the folder `out`, or begin it.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, e.g. training.steps=500. Repeatable.",
)
@told
def meta_train_command(config: Path, resume: bool, overrides: tuple[str, ...]) -> None:
    """Meta-train an embedding network as CONFIG (a TOML file) says, into the folder that its key `out` names.

    Several processes: torchrun --nproc-per-node 2 -m probcrowd meta-train CONFIG
    """
    from probcrowd.runs.meta.configuration import MetaTraining
    from probcrowd.runs.meta.train import meta_train
    from probcrowd.storage.settings import read_settings

    settings = read_settings(MetaTraining, config, overrides)
    meta_train(settings, resume=resume)
    click.echo(f"the run is in {settings.out}", err=True)


@click.command()
@click.argument("run", type=FILE)
@told
def evaluate(run: Path) -> None:
    """Accuracy of RUN on its target tasks, beside label aggregation followed by prototypes with the same network.

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
@click.option("--out", required=True, type=FILE, help="Folder for the results.")
@click.option("--weight", help="The annotations' column of weights, if there is one.")
@duplicates_option("Repeated (item, annotator).")
@MISSING
@told
def adapt(
    run: Path,
    support: Path,
    annotations: Path,
    query: Path,
    out: Path,
    weight: str | None,
    duplicates: str,
    missing: str,
) -> None:
    """Adapt RUN to a task that several annotators labelled; classify its query items.

    Features have one row per item, with ids in a column `item`; without that column, and in .npy files, items are 0, 1, ...
    Writes probabilities, responsibilities, confusion, annotators and class_prior as .csv and .parquet, and confusion.png.
    """
    from probcrowd.data.files import read_annotations, read_features
    from probcrowd.figures.base import confusion_figure, save_figure
    from probcrowd.runs.meta.trained import load_run

    said = read_annotations(annotations, weight=weight, duplicates=duplicates, missing=missing)
    adapted = load_run(run).adapt(read_features(support), said, read_features(query))
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
    help="Random splits of the classes to average over.",
)
@click.option("--config", type=FILE, help="Other settings than those for the digits, a TOML file.")
@told
def demo(out: Path, splits: int, config: Path | None) -> None:
    """Compare meta-training through EM with its alternatives, on handwritten digits: a table, two figures, minutes on two cores."""
    from probcrowd.runs.meta.demo import demo_settings, demonstrate
    from probcrowd.runs.meta.evaluate import grid

    result = demonstrate(demo_settings(out, config), splits=splits, report=click.echo)
    click.echo("\nquery accuracy, mean and 95 % interval over target tasks\n" + grid(result.table))
    click.echo(
        "\nmean differences on the same tasks, with 95 % intervals\n"
        + result.differences.to_string(float_format="{:.4f}".format)
    )
    click.echo(f"\nfigures and every number: {out}")

"""`probcrowd reproduce NAME`: run the experiments of papers, all by one function."""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from probcrowd.commands.options import FILE, print_files, report_errors, split_names


def _list(name: str, words: str) -> click.Option:
    """Build an option for several names, separated by commas or semicolons."""
    return click.Option([name], metavar="NAME,NAME", callback=split_names, help=words)


def _count(name: str, words: str) -> click.Option:
    return click.Option([name], type=click.IntRange(min=1), help=words)


_DATA = click.Option(
    ["--data"], type=FILE, envvar="PROBCROWD_DATA", help="The data folder.  [default: that in PROBCROWD_DATA]"
)


def _command(
    name: str, words: str, quick: str, *options: click.Option, folder: str = "", out: str = ""
) -> click.Command:
    """Build the command of an experiment with its own options beside the common ones.

    words, quick: help texts of the command and of its option --quick.
    folder: the folder in `probcrowd.experiments`; default: the name.
    out: the folder for results in `outputs`; DATA stands for the name of the data set; default: the name.
    """
    out = out or name

    @report_errors
    def run(*, jobs: int, quick: bool, **options: Any) -> None:
        from probcrowd.experiments.harness import run_experiment

        declared = import_module(f"probcrowd.experiments.{folder or name}.experiment").EXPERIMENT
        given = {key: value for key, value in options.items() if value is not None}
        usual = out.replace("DATA", Path(options.get("dataset", "")).stem) + ("_quick" if quick else "")
        chosen = declared.options(
            **{"out": Path("outputs", usual), **(declared.quick if quick else {}), **given}
        )
        try:
            tables = run_experiment(declared, chosen, jobs=jobs, progress=sys.stderr.isatty())
        except ImportError as error:  # a package that only some methods need
            raise click.ClickException(str(error)) from error
        for heading, text in declared.report(tables):
            click.echo(f"{heading}\n\n{text}\n")
        figures = sorted(path.name for path in chosen.out.glob("*.png"))
        print_files(chosen.out, [*(f"{table}.csv" for table in tables), *figures, "cells"])

    common = [
        click.Option(
            ["--out"],
            type=FILE,
            help=f"Folder for the results.  [default: outputs/{out}; with --quick outputs/{out}_quick]",
        ),
        click.Option(["--jobs"], default=1, show_default=True, type=click.IntRange(min=1), help="Processes."),
        click.Option(["--quick"], is_flag=True, help=quick),
    ]
    rerun = "Run the command again to resume after a stop, or to add cells to those that are finished."
    return click.Command(name, callback=run, params=[*options, *common], help=f"{cleandoc(words)}\n\n{rerun}")


@click.group()
def reproduce() -> None:
    """Run the experiment of a paper, beside its numbers."""


for command in (
    _command(
        "lia",
        """Tables 2 and 3 of "Learning from imperfect annotations" (Platanios et al. 2020).

        LIA beside other aggregators. Writes results.csv, comparisons.csv (LIA against Dawid-Skene and the
        paper) and, in cells/, every number.""",
        "Only the two smallest sets.",
        _DATA,
        _list("--sets", "Data sets.  [default: all]"),
        _list("--methods", "Methods, or `all`.  [default: those that take seconds]"),
        _count("--seeds", "Number of random choices of labels.  [default: 20; with --quick 3]"),
    ),
    _command(
        "crowds",
        """Classifiers learned from annotators: GeoCrowdNet(F) and (W) (Ibrahim, Nguyen & Fu 2023).

        Eleven other methods run beside them. Writes results.csv, rates.csv, comparisons.csv (ours minus each
        baseline), published.csv and, in cells/, every number.""",
        "Fewer epochs, one learning rate.",
        _DATA,
        _list("--sets", "Data sets: labelme, music_genre, cifar10n.  [default: the first two]"),
        _list("--methods", "Methods.  [default: all]"),
        _count("--seeds", "Number of networks of each.  [default: 5; with --quick 2]"),
        folder="crowd",
    ),
    _command(
        "simlabel",
        """SimLabel (Zhang et al. 2025) against skipping missing labels and controls that its paper lacks.

        Its data are not public: labels are hidden from complete panels instead. Writes results.csv, gains.csv
        (differences with intervals), published.csv and, in cells/, every number.""",
        "One simulated panel, which needs no data folder, and fewer epochs.",
        _DATA,
        _list("--panels", "Panels.  [default: all at hand; with --quick digits-groups]"),
        _list("--methods", "Methods.  [default: all but other variants of SimLabel]"),
        _list("--rates", "Shares of labels removed besides.  [default: 0,.2,.3,.4; with --quick 0,.4]"),
        click.Option(
            ["--base"], type=float, help="Share of labels hidden first, at random.  [default: 0.79]"
        ),
        _count("--seeds", "Number of draws of labels and networks.  [default: 5; with --quick 2]"),
    ),
    _command(
        "meta-learning",
        """Meta-learned representations (Kumagai et al. 2025) beside 13 baselines, controls and variants.

        Two controls are missing in the paper; the variants go beyond it. Writes table.csv, tests.csv (paired
        t-tests), networks.csv, published.csv, two figures and, by split, all numbers and networks.""",
        "Short training, few target tasks of one kind.",
        click.Option(
            ["--data", "dataset"],
            default="digits",
            show_default=True,
            type=FILE,
            help="digits, omniglot, olivetti, tiny-imagenet, labelme or a .npz file.",
        ),
        click.Option(
            ["--encoder"],
            type=click.Choice(["mlp", "conv4"]),
            help="The network.  [default: that of the configuration]",
        ),
        click.Option(
            ["--config"], type=FILE, help="A TOML file with settings instead of the usual ones of the data."
        ),
        click.Option(
            ["--set", "overrides"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting, e.g. training.steps=500. Repeatable.",
        ),
        _list("--methods", "Methods.  [default: all]"),
        _list("--kinds", "Kinds of target tasks.  [default: all; with --quick spammers]"),
        _count("--splits", "Number of random splits of the classes.  [default: 5; with --quick 2]"),
        click.Option(
            ["--only"],
            type=click.IntRange(min=0),
            metavar="N",
            help="Compute split N alone: one job of a cluster.",
        ),
        folder="meta",
        out="meta_DATA",
    ),
):
    reproduce.add_command(command)

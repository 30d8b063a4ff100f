"""Commands that run the experiments of papers again."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from probcrowd.commands.errors import told
from probcrowd.commands.options import FILE

_DATA = click.option(
    "--data",
    type=FILE,
    envvar="PROBCROWD_DATA",
    help="The data folder.  [default: what PROBCROWD_DATA names]",
)
_QUICK = ("bluebirds", "snow_wordsim")


@click.group()
def reproduce() -> None:
    """Run the experiments of a paper again, beside its numbers."""


@reproduce.command()
@_DATA
@click.option(
    "--out", type=FILE, help="Folder for the results.  [default: outputs/lia; with --quick outputs/lia_quick]"
)
@click.option("--sets", metavar="NAME,NAME", help="Which data sets.  [default: all]")
@click.option(
    "--methods", metavar="NAME,NAME", help="Which methods, or `all`.  [default: those that take seconds]"
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="How many random choices of labels.  [default: 20; with --quick 3]",
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--quick", is_flag=True, help="The two smallest sets alone.")
@told
def lia(
    data: Path | None,
    out: Path | None,
    sets: str | None,
    methods: str | None,
    seeds: int | None,
    jobs: int,
    quick: bool,
) -> None:
    """Tables 2 and 3 of "Learning from imperfect annotations" (Platanios et al. 2020): LIA beside other ways to aggregate.

    Writes results.csv, asked.csv (LIA against Dawid-Skene and the paper) and, in cells/, every number, into the folder `out`. Run it again
    to go on after a stop, or to add methods.
    """
    root = _folder(data)
    import pandas as pd

    from probcrowd.experiments.lia.datasets import REDUNDANCIES
    from probcrowd.experiments.lia.experiment import (
        asked_text,
        missing_text,
        named_methods,
        reproduce_lia,
        results_text,
    )

    out = out or Path("outputs", "lia_quick" if quick else "lia")
    try:
        results = reproduce_lia(
            root,
            out,
            sets=[name.strip() for name in sets.split(",")]
            if sets
            else _QUICK
            if quick
            else tuple(REDUNDANCIES),
            methods=named_methods(methods),
            seeds=seeds or (3 if quick else 20),
            jobs=jobs,
            progress=sys.stderr.isatty(),
        )
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        "accuracy ± standard error in per cent, by labels per item; in brackets what the paper reports\n"
    )
    click.echo(results_text(results))
    asked = out / "asked.csv"
    if asked.exists():
        click.echo(
            f"\nLIA (joint) less the better of Dawid-Skene (MAP) and the paper's LIA, in per cent\n\n{asked_text(pd.read_csv(asked))}"
        )
    click.echo(f"\nnot run, for want of a package\n\n{missing_text()}\n")
    for path in filter(Path.exists, (out / "results.csv", asked, out / "cells")):
        click.echo(str(path))


@reproduce.command()
@_DATA
@click.option(
    "--out",
    type=FILE,
    help="Folder for the results.  [default: outputs/crowds; with --quick outputs/crowds_quick]",
)
@click.option(
    "--sets",
    metavar="NAME,NAME",
    help="Which data sets: labelme, music_genre, cifar10n.  [default: the first two]",
)
@click.option("--methods", metavar="NAME;NAME", help="Which methods, between semicolons.  [default: all]")
@click.option(
    "--seeds", type=click.IntRange(min=1), help="How many networks of each.  [default: 5; with --quick 2]"
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--quick", is_flag=True, help="Fewer epochs, one learning rate.")
@told
def crowds(
    data: Path | None,
    out: Path | None,
    sets: str | None,
    methods: str | None,
    seeds: int | None,
    jobs: int,
    quick: bool,
) -> None:
    """Classifiers learned from annotators: GeoCrowdNet(F) and (W) (Ibrahim, Nguyen & Fu 2023) beside eleven other ways, in one harness.

    Writes results.csv, asked.csv (ours less each baseline), published.csv and, in cells/, every number, into the folder `out`. Run it again
    to go on after a stop, or to add methods.
    """
    root = _folder(data)
    from probcrowd.experiments.crowd.datasets import SETS
    from probcrowd.experiments.crowd.experiment import published_text, reproduce_crowds, results_text

    out = out or Path("outputs", "crowds_quick" if quick else "crowds")
    results = reproduce_crowds(
        root,
        out,
        sets=[name.strip() for name in sets.split(",")] if sets else SETS[:2],
        methods=[name.strip() for name in methods.split(";")] if methods else (),
        seeds=seeds or (2 if quick else 5),
        jobs=jobs,
        progress=sys.stderr.isatty(),
        **({"epochs": 10, "learning_rates": ((1e-3, 1e-2),)} if quick else {}),
    )
    click.echo("accuracy on test items ± standard error in per cent, by what chooses the epoch\n")
    click.echo(results_text(results))
    click.echo(
        f"\npublished, by source and rule of choice: compare within a column alone\n\n{published_text()}\n"
    )
    for name in ("results.csv", "asked.csv", "published.csv", "cells"):
        click.echo(str(out / name))


@reproduce.command()
@_DATA
@click.option(
    "--out",
    type=FILE,
    help="Folder for the results.  [default: outputs/simlabel; with --quick outputs/simlabel_quick]",
)
@click.option(
    "--panels",
    metavar="NAME,NAME",
    help="Which panels.  [default: all that there are; with --quick digits-groups]",
)
@click.option(
    "--methods",
    metavar="NAME;NAME",
    help="Which methods, between semicolons.  [default: all but other variants]",
)
@click.option(
    "--rates",
    metavar="RATE,RATE",
    help="Shares of labels removed besides.  [default: 0,.2,.3,.4; with --quick 0,.4]",
)
@click.option(
    "--base", default=0.79, show_default=True, type=float, help="Share of labels hidden first, at random."
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="How many draws of labels and networks.  [default: 5; with --quick 2]",
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--quick", is_flag=True, help="One generated panel, which needs no data folder, fewer epochs.")
@told
def simlabel(
    data: Path | None,
    out: Path | None,
    panels: str | None,
    methods: str | None,
    rates: str | None,
    base: float,
    seeds: int | None,
    jobs: int,
    quick: bool,
) -> None:
    """SimLabel (Zhang et al. 2025) against skipping missing labels, and against controls that its paper lacks.

    Its data are not public: labels are hidden from complete panels instead. Writes results.csv, gains.csv (differences with intervals), published.csv
    and, in cells/, every number, into the folder `out`. Run it again to go on after a stop, or to add panels, rates and methods.
    """
    import pandas as pd

    from probcrowd.experiments.simlabel.datasets import GENERATED, SETS
    from probcrowd.experiments.simlabel.experiment import RATES, reproduce_simlabel
    from probcrowd.experiments.simlabel.tables import gains_text, published_text, results_text

    out = out or Path("outputs", "simlabel_quick" if quick else "simlabel")
    usual = GENERATED[:1] if quick or data is None else SETS
    results = reproduce_simlabel(
        data,
        out,
        panels=[name.strip() for name in panels.split(",")] if panels else usual,
        methods=[name.strip() for name in methods.split(";")] if methods else (),
        rates=[float(rate) for rate in rates.split(",")] if rates else (0.0, 0.4) if quick else RATES,
        base=base,
        seeds=seeds or (2 if quick else 5),
        jobs=jobs,
        progress=sys.stderr.isatty(),
        **({"epochs": 10, "removals": ("random",)} if quick else {}),
    )
    click.echo(
        "mean accuracy over annotators ± standard error in per cent, by the share of labels removed besides\n"
    )
    click.echo(results_text(results))
    click.echo(
        "\ndifferences with half widths of 95 % intervals, paired by seed; * where the interval leaves 0 out\n"
    )
    click.echo(gains_text(pd.read_csv(out / "gains.csv")))
    click.echo(f"\npublished, on data that are not public\n\n{published_text()}\n")
    for name in ("results.csv", "gains.csv", "published.csv", "cells"):
        click.echo(str(out / name))


@reproduce.command("meta-learning")
@click.option(
    "--data",
    "name",
    default="digits",
    show_default=True,
    help="digits, omniglot, olivetti, tiny-imagenet, labelme or a .npz file.",
)
@click.option(
    "--encoder",
    type=click.Choice(["mlp", "conv4"]),
    help="The network.  [default: that of the configuration]",
)
@click.option("--config", type=FILE, help="Other settings than the usual ones of the data, a TOML file.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, e.g. training.steps=500. Repeatable.",
)
@click.option(
    "--out",
    type=FILE,
    help="Folder for the results.  [default: outputs/meta_DATA; with --quick outputs/meta_DATA_quick]",
)
@click.option("--methods", metavar="NAME;NAME", help="Which methods, between semicolons.  [default: all]")
@click.option(
    "--kinds", metavar="NAME,NAME", help="Which target tasks.  [default: all; with --quick spammers]"
)
@click.option(
    "--splits", type=click.IntRange(min=1), help="Random splits of the classes.  [default: 5; with --quick 2]"
)
@click.option(
    "--only", type=click.IntRange(min=0), metavar="N", help="Make split N alone: one job of a cluster."
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes.")
@click.option("--quick", is_flag=True, help="Short training, few target tasks.")
@told
def meta_learning(
    name: str,
    encoder: str | None,
    config: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    methods: str | None,
    kinds: str | None,
    splits: int | None,
    only: int | None,
    jobs: int,
    quick: bool,
) -> None:
    """Meta-learned representations (Kumagai et al. 2025) beside 13 baselines, two controls that the paper lacks, and variants that go beyond it.

    Writes table.csv, tests.csv (paired t-tests), networks.csv, published.csv, two figures and, by split, every number and every trained network into
    the folder `out`. Run it again to go on after a stop, or to add methods.
    """
    import pandas as pd

    from probcrowd.experiments.meta.experiment import reproduce_meta
    from probcrowd.experiments.meta.methods import OURS
    from probcrowd.experiments.meta.settings import meta_settings
    from probcrowd.experiments.meta.tables import BEST, accuracy_text, published_text, tests_text

    plain = name if not name.endswith(".npz") else Path(name).stem
    out = out or Path("outputs", f"meta_{plain}_quick" if quick else f"meta_{plain}")
    table = reproduce_meta(
        meta_settings(name, out, encoder=encoder, config=config, overrides=overrides, quick=quick),
        splits=splits or (2 if quick else 5),
        only=only,
        methods=[each.strip() for each in methods.split(";")] if methods else (),
        kinds=[each.strip() for each in kinds.split(",")]
        if kinds
        else ("spammers",)
        if quick and name != "labelme"
        else (),
        jobs=jobs,
        progress=sys.stderr.isatty(),
    )
    tests = pd.read_csv(out / "tests.csv")
    for kind in table["kind"].unique():
        click.echo(f"\n{kind}: accuracy in per cent by shots x annotators\n\n{accuracy_text(table, kind)}")
        for method in (OURS, BEST):
            click.echo(
                f"\n{kind}: differences on the same tasks in per cent, 95 % intervals over tasks\n\n{tests_text(tests, kind, method)}"
            )
    click.echo(f"\nreported of the paper, on other splits and networks\n\n{published_text()}\n")
    names = ("table.csv", "tests.csv", "networks.csv", "published.csv", "spammers.png", "annotators.png")
    for path in filter(Path.exists, (out / name for name in names)):
        click.echo(str(path))


def _folder(data: Path | None) -> Path:
    if data is None:
        raise ValueError(
            "give the data folder with --data, or name it in the environment variable PROBCROWD_DATA"
        )
    return data

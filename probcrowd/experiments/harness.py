"""Reproduce the experiments of papers: one procedure for all, and a declaration of each.

    options -> stages of cells (computed once, resumable) -> tables (CSV), figures (PNG) -> report for readers

Hyperparameters are selected on validation data only; tables have means and standard errors over seeds,
differences that are paired by seed or task, and the numbers that papers report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from probcrowd.data.validation import find_name
from probcrowd.experiments.grid import Stage, run_stage
from probcrowd.figures.base import save_figure
from probcrowd.storage.files import write_table
from probcrowd.storage.settings import Settings

Tables = dict[str, pd.DataFrame]


class Options(Settings):
    """Options that all experiments share.

    Fields with `exclude=True` choose which cells are computed and change no number: they are not written to
    config.json, so a later run may add to a folder. methods: none: the usual ones of the experiment.
    """

    out: Path
    data: Path | None = Field(None, exclude=True)
    methods: tuple[str, ...] = Field((), exclude=True)


O = TypeVar("O", bound=Options)


@dataclass(frozen=True)
class Experiment(Generic[O]):
    """What one experiment declares.

    options: its record of options. quick: the values of a short run. choices: allowed values of options that
    are lists of names. stages: cells to compute, stage after stage. tables: from finished cells, by file
    name; the main table first. figures: from the tables. report: headings and texts.
    """

    options: type[O]
    quick: Mapping[str, Any]
    choices: Mapping[str, Collection[str]]
    stages: Callable[[O], Iterable[Stage]]
    tables: Callable[[O], Tables]
    report: Callable[[Tables], list[tuple[str, str]]]
    figures: Callable[[O], Mapping[str, Figure]] = lambda options: {}


def run_experiment(experiment: Experiment[O], options: O, *, jobs: int = 1, progress: bool = True) -> Tables:
    """Compute the missing cells, then write and return the tables of all finished ones.

    Raises:
        ValueError: unknown names, no such data, or a folder that holds results of other settings.
    """
    chosen = {
        field: choose_names(field.removesuffix("s"), getattr(options, field), known)
        for field, known in experiment.choices.items()
    }
    options = options.model_copy(update=chosen)
    for stage in experiment.stages(options):
        run_stage(stage, jobs=jobs, progress=progress)
    return collect(experiment, options)


def collect(experiment: Experiment[O], options: O) -> Tables:
    """Write and return the tables of the finished cells, and write the figures."""
    tables = experiment.tables(options)
    for name, table in tables.items():
        write_table(options.out / f"{name}.csv", table)
    for name, figure in experiment.figures(options).items():
        save_figure(figure, options.out / f"{name}.png")
    return tables


def choose_names(kind: str, given: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The given names in the order of `known`, up to hyphens and underscores.

    A name with a comma may come in two parts, as from a list between commas.

    Raises:
        ValueError: an unknown name.
    """
    names: list[str] = []
    for part in given:
        try:
            names[-1:] = [find_name(kind, ", ".join([*names[-1:], part]), known)]
        except ValueError:
            names.append(part)
    chosen = {find_name(kind, name, known) for name in names}
    return tuple(name for name in known if name in chosen)

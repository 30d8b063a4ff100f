"""An experiment as a grid of cells: each is computed once, and a folder can be resumed after a stop.

config.json, provenance.json     as in every run
cells/NAME.csv                   rows of one cell, one or more per seed, written when all seeds are finished
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from probcrowd.compute.threads import one_thread
from probcrowd.storage.files import write_table
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Cells in one folder that do not depend on each other.

    cells: by file name, a function of the seed that returns rows; it runs in another process when there are
    several jobs. seeds: 0 to seeds - 1; None: cells take no seed, and their rows have no column `seed`.
    """

    folder: Path
    settings: Settings
    cells: Mapping[str, Callable[..., Rows]]
    seeds: int | None = None


def run_stage(stage: Stage, *, jobs: int = 1, progress: bool = True) -> None:
    """Compute the cells that the folder does not have yet, `jobs` fits at a time with one thread each.

    Raises:
        ValueError: the folder holds results of other settings, or something that is not a run.
    """
    with RunFolder(stage.folder) as folder:
        folder.start(stage.settings, resume=True)
        (stage.folder / "cells").mkdir(exist_ok=True)
        seeds = [None] if stage.seeds is None else range(stage.seeds)
        missing = {name: cell for name, cell in stage.cells.items() if not _path(stage.folder, name).exists()}
        tasks = [delayed(_compute)(name, cell, seed) for name, cell in missing.items() for seed in seeds]
        finished: dict[str, dict[int | None, Rows]] = {name: {} for name in missing}
        results: Any = Parallel(jobs, return_as="generator_unordered")(tasks)
        hidden = not progress or not tasks
        for name, seed, rows in tqdm(
            results, total=len(tasks), disable=hidden, unit="fit", desc=stage.folder.name
        ):
            finished[name][seed] = rows
            if len(finished[name]) == len(seeds):
                every = [row for seed in seeds for row in finished[name][seed]]
                write_table(_path(stage.folder, name), pd.DataFrame(every))


def read_cells(folder: Path, names: Iterable[str]) -> pd.DataFrame:
    """Read the rows of the finished cells among those named, in the order of the names."""
    paths = [_path(folder, name) for name in names]
    parts = [pd.read_csv(path) for path in paths if path.exists()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def cell_names(folder: Path) -> list[str]:
    """Names of all finished cells of a folder, sorted."""
    return sorted(path.stem for path in (folder / "cells").glob("*.csv"))


def _compute(name: str, cell: Callable[..., Rows], seed: int | None) -> tuple[str, int | None, Rows]:
    """One thread gives the same bits on any number of cores, and jobs do not wait for each other."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the data: a grid would repeat them in every cell
        if seed is None:
            return name, seed, cell()
        return name, seed, [{"seed": seed, **row} for row in cell(seed)]


def _path(folder: Path, name: str) -> Path:
    return folder / "cells" / f"{name}.csv"

"""Experiments as a grid of cells, each of which is done once: a folder of results that a killed run goes on with.

config.json, provenance.json     as in every run
cells/NAME.csv                   one row per seed, written when all seeds of the cell are done
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings

Cell = Callable[[int], list[dict[str, Any]]]
Whole = Callable[[], list[dict[str, Any]]]


def run_cells(
    out: Path,
    settings: Settings,
    cells: Mapping[str, Cell],
    seeds: int,
    *,
    jobs: int = 1,
    progress: bool = True,
) -> None:
    """Makes the cells that the folder has not.

    cells: by a name that may be a file's, a function of the seed that gives rows. It is called in other processes when jobs > 1.

    Raises:
        ValueError: the folder holds results of other settings, or something else.
    """
    with RunFolder(out) as folder:
        folder.start(settings, resume=True)
        (out / "cells").mkdir(exist_ok=True)
        bar = tqdm(cells.items(), disable=not progress, unit="cell")
        for name, cell in bar:
            bar.set_postfix_str(name, refresh=False)
            if not _path(out, name).exists():
                made: Any = Parallel(jobs)(delayed(cell)(seed) for seed in range(seeds))
                rows = [{"seed": seed, **row} for seed, several in enumerate(made) for row in several]
                _write(_path(out, name), rows)


def run_whole_cells(
    out: Path, settings: Settings, cells: Mapping[str, Whole], *, jobs: int = 1, progress: bool = True
) -> None:
    """Makes the cells that the folder has not, `jobs` at a time, each by one call; joblib's backend is the caller's to choose.

    Raises:
        ValueError: see `run_cells`.
    """
    with RunFolder(out) as folder:
        folder.start(settings, resume=True)
        (out / "cells").mkdir(exist_ok=True)
        missing = {name: cell for name, cell in cells.items() if not _path(out, name).exists()}
        made: Any = Parallel(jobs, return_as="generator_unordered")(
            delayed(_make)(_path(out, name), cell) for name, cell in missing.items()
        )
        for _ in tqdm(
            made, total=len(missing), disable=not progress or not missing, unit="cell", desc=out.name
        ):
            pass


def read_cells(out: Path, names: Iterable[str]) -> pd.DataFrame:
    """The rows of those of the named cells that the folder has, in the order of the names."""
    paths = [_path(out, name) for name in names]
    return pd.concat([pd.read_csv(path) for path in paths if path.exists()], ignore_index=True)


def _make(path: Path, cell: Whole) -> None:
    _write(path, cell())


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())


def _path(out: Path, name: str) -> Path:
    return out / "cells" / f"{name}.csv"

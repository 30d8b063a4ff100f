"""Experiments as a grid of cells, each of which is done once: a folder of results that a killed run goes on with.

config.json, provenance.json     as in every run
cells/NAME.csv                   one row per seed, written when all seeds of the cell are done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from probcrowd.storage.files import write_atomically
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings

Cell = Callable[[int], list[dict[str, Any]]]


def run_cells(
    out: Path, settings: Settings, cells: Mapping[str, Cell], seeds: int, *, jobs: int = 1, progress: bool = True
) -> dict[str, pd.DataFrame]:
    """The rows of every cell by its name; those that the folder has are read, not made again.

    cells: by a name that may be a file's, a function of the seed that gives rows. It is called in other processes when jobs > 1.

    Raises:
        ValueError: the folder holds results of other settings, or something else.
    """
    found: dict[str, pd.DataFrame] = {}
    with RunFolder(out) as folder:
        folder.start(settings, resume=True)
        (out / "cells").mkdir(exist_ok=True)
        bar = tqdm(cells.items(), disable=not progress, unit="cell")
        for name, cell in bar:
            bar.set_postfix_str(name, refresh=False)
            path = out / "cells" / f"{name}.csv"
            if not path.exists():
                made = Parallel(jobs)(delayed(cell)(seed) for seed in range(seeds))
                rows = [{"seed": seed, **row} for seed, several in enumerate(made) for row in several]
                write_atomically(path, pd.DataFrame(rows).to_csv(index=False).encode())
            found[name] = pd.read_csv(path)
    return found

"""Files and folders that appear whole or not at all.

write under a temporary name -> fsync -> rename to the final name -> fsync the parent folder
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from probcrowd.data.files import without_formulas

PARTIAL = ".probcrowd-partial"  # suffix of temporary files; those of killed processes may be deleted


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path`; after any failure the old file is untouched and nothing else is left."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)


def write_table(path: Path, table: pd.DataFrame | pd.Series) -> None:
    """Write a .csv file with named index levels as columns and text that a spreadsheet would run escaped."""
    named = [name for name in table.index.names if name is not None]
    frame = pd.DataFrame(table)
    frame = frame.reset_index(named) if named else frame
    write_atomically(path, without_formulas(frame).to_csv(index=False).encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON."""
    write_atomically(path, json.dumps(value, indent=2).encode() + b"\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder that takes the place of `path` at the end.

    After a failure nothing of the new one is left. The files of a new folder are written by functions of this
    module, so that they are on the disk. A folder at `path` is moved aside, and removed once the new one has
    its name.
    """
    temporary, old = _beside(path, PARTIAL), _beside(path)
    try:
        yield temporary
        sync(temporary)
        if path.is_dir():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:  # including KeyboardInterrupt
        if old.exists():
            os.replace(old, path)
        _remove(temporary)
        raise
    sync(path.parent)  # otherwise a power cut may undo the rename
    _remove(old)


@contextmanager
def replacing_files(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder; at the end move its files of those names to `folder`.

    A name that was not written is deleted from `folder`, where the file of an earlier run would pass for one
    of this run. After a failure while writing, `folder` is untouched.
    """
    temporary = _beside(folder / "files", PARTIAL)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for name in names:
            if (temporary / name).exists():
                sync(temporary / name)
                os.replace(temporary / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        sync(folder)
    finally:
        _remove(temporary)


def sync(path: Path) -> None:
    """Wait until the file is on the disk, or until the names in the folder are."""
    if path.is_dir() and os.name != "posix":  # only POSIX systems can open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, suffix: str = "") -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

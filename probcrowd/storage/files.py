"""Files that are replaced only by a whole successor.

write under another name -> flush, fsync -> that name becomes the file's -> fsync the folder
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from probcrowd.data.files import without_formulas

PARTIAL = ".probcrowd-partial"  # ending of temporary files; one that outlives its process may be deleted


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the file at `path` by `data`; after any failure the old file is there, untouched, and nothing else."""
    with replacing(path) as temporary:
        write_through(temporary, data)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes a .csv with the index as columns, whole or not at all, in which no spreadsheet finds a formula."""
    write_atomically(path, without_formulas(table.reset_index()).to_csv(index=False).encode())


def write_through(path: Path, data: bytes) -> None:
    """A new file that is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Another name to write to, which becomes `path` at the end; after a failure nothing is left of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:  # a keyboard interrupt too
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere folders cannot be opened; without this a power cut may undo the rename
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

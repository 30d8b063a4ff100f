"""One run, one folder, one writer.

    .lock                             held while a process works in the folder
    config.json                       the settings; a folder is a run once this is there
    provenance.json                   versions and date of the start
    metrics.jsonl                     one JSON object per line, each with its "step"
    checkpoint*.safetensors           see checkpoint.py
    model.safetensors                 the result

A folder that holds anything else is refused before a file of it is touched.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from probcrowd import __version__
from probcrowd.storage.files import PARTIAL, write_atomically, write_json
from probcrowd.storage.settings import Settings, differences, read_written, write_settings

LOCK = ".lock"


class RunFolder:
    """A folder of results. Read it freely; to write, hold it: `with RunFolder(path) as folder: folder.start(settings, resume)`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.model = (
            path / "config.json",
            path / "metrics.jsonl",
            path / "model.safetensors",
        )
        self._lock = FileLock(path / LOCK, timeout=0, thread_local=False)

    def __enter__(self) -> "RunFolder":  # noqa: PYI034  (beartype takes Self only where it decorates the class)
        """The folder, created where it is absent and locked for this process.

        Raises:
            ValueError: another process holds it, or it has files in it and none of them is a run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; give a folder")
        names = os.listdir(self.path) if self.path.exists() else []
        strangers = sorted(name for name in names if not _is_leftover(name))
        if (
            strangers and self.config.name not in names
        ):  # before the lock: not even a lock file goes into a folder that is not ours
            raise ValueError(
                f"{self.path} is no run but holds {', '.join(strangers[:3])}; give a new or an empty folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"another process is working in {self.path}; wait for it, or give another folder"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def start(self, settings: Settings, resume: bool) -> bool:
        """Whether a run continues here; if not, a new one has begun.

        Raises:
            ValueError: there is a run and `resume` is false, or its settings are others.
        """
        self._require_lock()
        continues = self.config.exists()
        if continues and not resume:
            raise ValueError(
                f"{self.path} already holds a run; use --resume to continue it, or give another folder"
            )
        if continues and (
            lines := differences(read_written(type(settings), self.config), settings, ignore=["out"])
        ):
            raise ValueError(
                f"{self.path} holds a run with other settings (old -> new):\n  " + "\n  ".join(lines)
            )
        for name in filter(_is_leftover, set(os.listdir(self.path)) - {LOCK}):
            (self.path / name).unlink()
        if not continues:
            write_settings(settings, self.config)
        provenance = self.path / "provenance.json"
        if not provenance.exists():  # also after a kill between the two files
            write_json(provenance, _provenance())
        self._drop_torn_line()
        return continues

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one line and hands it to the system, so that a kill cannot lose it. Floats may be infinite or missing (`NaN`).

        Raises:
            ValueError: the row has no integer "step", or holds what is no JSON.
        """
        self._require_lock()
        if type(row.get("step")) is not int:
            raise ValueError(f"a row of metrics needs an integer 'step': {dict(row)}")
        try:
            line = json.dumps(dict(row)) + "\n"
        except TypeError as error:
            raise ValueError(f"a row of metrics must be plain JSON, not {dict(row)}: {error}") from error
        try:
            with self.metrics.open("ab") as file:
                file.write(line.encode())
        except OSError:  # a full disk may have taken half a line, and the next one must not be glued to it
            self._drop_torn_line()
            raise

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line without its end, torn by a kill, is not one.

        Raises:
            ValueError: another line is damaged.
        """
        rows = []
        for number, line in enumerate(self._lines()[:-1], start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.metrics}, line {number} is damaged: {error}; mend or delete it"
                ) from error
        return rows

    def truncate_metrics(self, after_step: int) -> None:
        """Keeps the rows up to and including `after_step`: called on resuming, so that no step is logged twice."""
        self._require_lock()
        rows = self.read_metrics()
        kept = [row for row in rows if row["step"] <= after_step]
        if kept != rows:
            write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def _require_lock(self) -> None:
        if not self._lock.is_locked:
            raise RuntimeError(f"write in {self.path} only inside `with RunFolder(path) as folder:`")

    def _lines(self) -> list[bytes]:
        """The lines of the metrics, and last what follows the last line end: nothing, or a torn line."""
        return self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else [b""]

    def _drop_torn_line(self) -> None:
        if torn := len(self._lines()[-1]):
            os.truncate(self.metrics, self.metrics.stat().st_size - torn)


def _is_leftover(name: str) -> bool:
    """Whether a killed process may have left this in a folder that is not yet a run."""
    return name == LOCK or (name.startswith(".") and name.endswith(PARTIAL))


def _provenance() -> dict[str, Any]:
    """What a reader needs to know of the machine: neither its name nor its user's."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "probcrowd": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl", "numpy", "pandas")},
    }

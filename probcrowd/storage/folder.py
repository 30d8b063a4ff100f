"""One run, one folder, one writer.

    .lock                             held while a process writes to the folder
    config.json                       the settings; a folder is a run once it has this file
    provenance.json                   versions and start date
    metrics.jsonl                     one JSON object per line, each with its "step"
    checkpoint*.safetensors           see checkpoint.py
    model.safetensors                 the result

A folder that holds anything else is refused before any file in it is touched.
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
    """A folder of results. Read it freely; to write, lock it: `with RunFolder(path) as folder: ...`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self._lock = FileLock(path / LOCK, timeout=0, thread_local=False)

    def __enter__(self) -> "RunFolder":  # noqa: PYI034  (beartype takes Self only where it decorates the class)
        """Create the folder if needed, lock it for this process and return it.

        Raises:
            ValueError: another process holds it, or it has files but is not a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; give a folder")
        names = os.listdir(self.path) if self.path.exists() else []
        others = sorted(name for name in names if not _is_leftover(name))
        if (
            others and self.config.name not in names
        ):  # checked first: no lock file in a folder that is not ours
            shown = ", ".join(others[:3])
            raise ValueError(f"{self.path} is no run but holds {shown}; give a new or an empty folder")
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout as error:
            words = f"another process is working in {self.path}; wait for it, or give another folder"
            raise ValueError(words) from error
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def start(self, settings: Settings, resume: bool) -> bool:
        """Start a run, or prepare to resume one. Return whether a run is resumed.

        Raises:
            ValueError: the folder holds a run and `resume` is false, or a run with other settings.
        """
        self._require_lock()
        resumed = self.config.exists()
        if resumed and not resume:
            raise ValueError(
                f"{self.path} already holds a run; use --resume to continue it, or give another folder"
            )
        if resumed:
            lines = differences(read_written(type(settings), self.config), settings, ignore=["out"])
            if lines:
                words = f"{self.path} holds a run with other settings (old -> new):\n  "
                raise ValueError(words + "\n  ".join(lines))
        for name in filter(_is_leftover, set(os.listdir(self.path)) - {LOCK}):
            (self.path / name).unlink()
        if not resumed:
            write_settings(settings, self.config)
        provenance = self.path / "provenance.json"
        if not provenance.exists():  # also after a kill between the two files
            write_json(provenance, _provenance())
        self._drop_incomplete_line()
        return resumed

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line and hand it to the system, so that a kill cannot lose it; floats may be NaN.

        Raises:
            ValueError: the row has no integer "step", or values that are not JSON.
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
        except OSError:  # a full disk may have taken half a line, which the next one must not continue
            self._drop_incomplete_line()
            raise

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read all rows, except a last line that a kill cut off.

        Raises:
            ValueError: another line is damaged.
        """
        rows = []
        for number, line in enumerate(self._lines()[:-1], start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                words = f"{self.metrics}, line {number} is damaged: {error}; correct or delete it"
                raise ValueError(words) from error
        return rows

    def truncate_metrics(self, after_step: int) -> None:
        """Drop the rows after `after_step`; called on resuming, so that no step is logged twice."""
        self._require_lock()
        rows = self.read_metrics()
        retained = [row for row in rows if row["step"] <= after_step]
        if retained != rows:
            write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in retained).encode())

    def _require_lock(self) -> None:
        if not self._lock.is_locked:
            raise RuntimeError(f"write in {self.path} only inside `with RunFolder(path) as folder:`")

    def _lines(self) -> list[bytes]:
        """Lines of the metrics; the last one is what follows the last line end: empty, or cut off."""
        return self.metrics.read_bytes().split(b"\n") if self.metrics.exists() else [b""]

    def _drop_incomplete_line(self) -> None:
        if cut_off := len(self._lines()[-1]):
            os.truncate(self.metrics, self.metrics.stat().st_size - cut_off)


def _is_leftover(name: str) -> bool:
    """Whether a killed process may have left this file in a folder that is not yet a run."""
    return name == LOCK or (name.startswith(".") and name.endswith(PARTIAL))


def _provenance() -> dict[str, Any]:
    """Date, platform and versions; names of machines and users are left out on purpose."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "probcrowd": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "pyro-ppl", "numpy", "pandas")},
    }

"""Every notebook runs from top to bottom, with few draws."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


# Half a minute or more each; the tests of estimators and of the README cover the same calls
SLOW = ("posterior", "lia")
PATHS = [pytest.param(path, marks=pytest.mark.slow if path.stem in SLOW else ()) for path in NOTEBOOKS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    small = {"PROBCROWD_DRAWS": "60", "PROBCROWD_OUT": str(tmp_path / "out"), "MPLBACKEND": "Agg"}
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        env=os.environ | small,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.strip() and list((tmp_path / "out").iterdir())

"""The walk-through of CONTRIBUTING.md, applied to a copy of the repository: three files make a model that
everything finds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the files of CONTRIBUTING.md."""
    folder = tmp_path_factory.mktemp("repository")
    skip = shutil.ignore_patterns("__pycache__", "results")
    for name in ("probcrowd", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    blocks = re.findall(r"```python file=(\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert 1 <= len(blocks) <= 3
    for path, code in blocks:
        assert not (folder / path).exists()
        (folder / path).write_text(code)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow  # the next test registers and samples the model too
def test_the_new_model_passes_its_own_test_and_the_contracts(copy: Path) -> None:
    tests = ("tests/models/aggregation/test_group_accuracy.py", "tests/models/test_contracts.py")
    ran = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "group_accuracy", *tests)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    passed, skipped = (int(re.findall(rf"(\d+) {word}", ran.stdout)[0]) for word in ("passed", "skipped"))
    assert passed >= 5 and skipped <= 3, ran.stdout  # no M step, no Gibbs blocks, classes not exchangeable


def test_the_command_checks_the_new_model(copy: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    item, annotator = np.repeat(np.arange(20), 3), np.tile(list("abc"), 20)
    frame = pd.DataFrame({"item": item, "annotator": annotator, "label": rng.integers(2, size=60)})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    groups = pd.DataFrame({"annotator": list("abc"), "group": ["expert", "novice", "novice"]})
    groups.to_csv(tmp_path / "annotators.csv", index=False)
    command = ["-m", "probcrowd", "check", str(tmp_path / "labels.csv"), "--out", str(tmp_path / "out")]
    sizes = ["--model", "group-accuracy", "--warmup", "30", "--draws", "30", "--chains", "2"]
    missing = run(copy, *command, *sizes)
    assert missing.returncode == 1 and "the model needs the covariate 'group'" in missing.stderr
    ran = run(copy, *command, *sizes, "--annotator-covariates", str(tmp_path / "annotators.csv"))
    assert ran.returncode in (0, 3, 4), ran.stderr[-3000:]
    accuracies = pd.read_csv(tmp_path / "out" / "annotators.csv", index_col=0)["accuracy_mean"]
    assert accuracies["b"] == accuracies["c"] != accuracies["a"]

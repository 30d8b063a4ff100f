"""The package as a whole: light import, one import name per module, import directions, the README's code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "probcrowd").rglob("*.py"))
MAY_IMPORT = {  # the folders that a folder may import besides itself
    "compute": set(),
    "data": {"compute"},
    "simulate": {"compute", "data"},
    "storage": {"compute", "data"},
    "metrics": {"compute", "data"},
    "models": {"compute", "data", "simulate", "storage", "metrics"},
}
MAY_IMPORT["inference"] = MAY_IMPORT["models"] | {"models"}
MAY_IMPORT["estimators"] = MAY_IMPORT["figures"] = MAY_IMPORT["inference"] | {"inference"}
MAY_IMPORT["runs"] = MAY_IMPORT["estimators"] | {"estimators", "figures"}
MAY_IMPORT["experiments"] = MAY_IMPORT["runs"] | {"runs"}
MAY_IMPORT["commands"] = MAY_IMPORT["experiments"] | {"experiments"}
MAY_IMPORT["__main__"] = {"commands"}


def imported(path: Path) -> set[str]:
    """The modules of the project that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] == "probcrowd"}


@pytest.mark.parametrize("link", ["models", "inference"])
def test_root_links_show_the_packages_folders(link: str) -> None:
    path = ROOT / link
    if not path.is_symlink():
        pytest.skip("this checkout has no symbolic links")
    assert path.resolve() == ROOT / "probcrowd" / link


def test_no_module_is_loaded_under_a_second_name() -> None:
    assert not {name for name in sys.modules if name.split(".")[0] in ("models", "inference")}


def test_importing_probcrowd_is_light_and_its_names_exist() -> None:
    code = (
        "import sys, probcrowd; "
        "heavy = {'torch', 'pyro', 'pandas', 'matplotlib', 'sklearn', 'jax', 'numpyro'} & set(sys.modules); "
        "assert not heavy, heavy; sampling = {name for name in probcrowd.__all__ if 'posterior' in name}; "
        "assert len(sampling) == 4; "
        "assert all(getattr(probcrowd, name) for name in set(probcrowd.__all__) - sampling); "
        "assert not {'jax', 'xarray'} & set(sys.modules); "
        "assert all(getattr(probcrowd, name) for name in sampling)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_run_one_way() -> None:
    wrong = []
    for path in MODULES:
        folder = path.relative_to(ROOT / "probcrowd").parts[0].removesuffix(".py")
        for name in imported(path) if folder != "__init__" else ():
            layer = [*name.split("."), ""][1]
            if layer in MAY_IMPORT and layer != folder and layer not in MAY_IMPORT[folder]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_pickle_and_no_library_we_must_not_import() -> None:
    banned = r"pickle\.|torch\.load\(|joblib\.load|yaml\.load\(|^\s*(import|from) arviz( |$|\.)|__import__"
    assert not [path for path in MODULES if re.search(banned, path.read_text(), re.MULTILINE)]


def test_every_block_of_the_readme_runs(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    commands = re.findall(r"^    probcrowd (aggregate|compare) (.*)$", readme, re.MULTILINE)
    assert len(blocks) == 6 and len(commands) == 2
    script = "import torch; torch.set_num_threads(1)\n" + "\n".join(blocks)
    python = [sys.executable, "-W", "error"]
    calls = [[*python, "-c", script]]
    calls += [[*python, "-m", "probcrowd", command, *options.split()] for command, options in commands]
    for call in calls:
        ran = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr[-3000:]


def test_the_benchmark_runs() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "meta_step.py"), "--quick"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert len(re.findall(r"ratio \d+\.\d+", ran.stdout)) == 3


def test_the_wheel_holds_the_package_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flit_core import buildapi

    monkeypatch.chdir(ROOT)
    names = ZipFile(tmp_path / buildapi.build_wheel(str(tmp_path))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"probcrowd"}
    inside = {name for name in names if name.startswith("probcrowd/")}
    assert inside == {path.relative_to(ROOT).as_posix() for path in MODULES} | {
        "probcrowd/data/anesthesia.csv",
        "probcrowd/experiments/crowd/published.csv",
        "probcrowd/experiments/lia/published.csv",
        "probcrowd/experiments/meta/labelme.toml",
        "probcrowd/experiments/meta/omniglot.toml",
        "probcrowd/experiments/meta/published.csv",
        "probcrowd/experiments/simlabel/published.csv",
        "probcrowd/runs/meta/demo.toml",
        "probcrowd/runs/report.html",
    }


def test_tables_of_annotations_need_no_torch() -> None:
    """Only the forms of the data that are tensors load it: annotations, votes and images."""
    names = [f"probcrowd.data.{path.stem}" for path in (ROOT / "probcrowd" / "data").glob("*.py")]
    light = [name for name in names if not name.endswith(("tensors", "image_sets", "images", "__init__"))]
    light += ["probcrowd.storage.files", "probcrowd.metrics.scores", "probcrowd.metrics.annotators"]
    light += ["probcrowd.compute.threads", "probcrowd.figures.aggregation"]
    code = (
        f"import sys, importlib; [importlib.import_module(n) for n in {light}]; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

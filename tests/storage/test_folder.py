"""A run folder has one writer, never loses what is in it, and continues only what it was."""

import errno
import getpass
import io
import json
import math
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from probcrowd.storage.files import PARTIAL
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, read_written


class Small(Settings):
    steps: int = 3
    rate: float = 0.5


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in os.listdir(path)}


def started(path: Path, settings: Settings | None = None, resume: bool = False) -> bool:
    with RunFolder(path) as folder:
        return folder.start(settings or Small(), resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_new_folder_records_settings_and_versions(tmp_path, resume):
    path = tmp_path / "deep" / "run"
    assert started(path, Small(steps=4), resume) is False
    assert sorted(os.listdir(path)) == [".lock", "config.json", "provenance.json"]
    assert read_written(Small, path / "config.json") == Small(steps=4)
    text = (path / "provenance.json").read_text()
    assert json.loads(text).keys() == {
        "date",
        "python",
        "platform",
        "probcrowd",
        "torch",
        "pyro-ppl",
        "numpy",
        "pandas",
    }
    assert (
        json.loads(text)["date"].endswith("+00:00")
        and json.loads(text)["python"] == platform.python_version()
    )
    assert platform.node() not in text and f'"{getpass.getuser()}"' not in text


def test_the_files_have_their_names(tmp_path):
    folder = RunFolder(tmp_path)
    assert [path.name for path in (folder.config, folder.metrics, folder.model)] == [
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    assert {path.parent for path in (folder.config, folder.metrics, folder.model)} == {tmp_path}


def test_a_run_is_not_overwritten(tmp_path):
    started(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weeks of work")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match="already holds a run; use --resume to continue it, or give another folder"
    ):
        started(tmp_path)
    assert contents(tmp_path) == before


def test_a_run_continues_under_the_same_settings_only(tmp_path):
    started(tmp_path)
    (tmp_path / "provenance.json").write_text("of the start, not of the resumption")
    before = contents(tmp_path)
    assert started(tmp_path, Small(), resume=True) is True
    assert contents(tmp_path) == before
    with pytest.raises(
        ValueError, match=r"other settings \(old -> new\):\n  steps: 3 -> 9\n  rate: 0.5 -> 0.1"
    ):
        started(tmp_path, Small(steps=9, rate=0.1), resume=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "metrics.jsonl").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no run but holds metrics.jsonl, thesis.tex; give a new or an empty folder"
    ):
        started(tmp_path, Small(), resume)
    assert contents(tmp_path) == before  # not even a lock file
    with pytest.raises(ValueError, match="thesis.tex is a file; give a folder"):
        started(tmp_path / "thesis.tex", Small(), resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_kill_before_the_settings_were_written_does_no_harm(tmp_path, resume):
    (tmp_path / ".lock").touch()
    (tmp_path / f".config.json.12345678{PARTIAL}").write_text('{"ste')
    assert started(tmp_path, Small(), resume) is False
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json", "provenance.json"]


def test_a_kill_later_leaves_a_run_that_resumes(tmp_path):
    started(tmp_path)
    (tmp_path / "provenance.json").unlink()  # killed between the two files
    (tmp_path / f".checkpoint.safetensors.12345678{PARTIAL}").write_bytes(bytes(10))
    (tmp_path / ".hidden").write_text("mine")
    assert started(tmp_path, Small(), resume=True) is True
    assert sorted(os.listdir(tmp_path)) == [".hidden", ".lock", "config.json", "provenance.json"]


def test_a_failed_start_can_be_repeated(tmp_path, monkeypatch):
    def full(*args: object):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        started(tmp_path / "run")
    monkeypatch.undo()
    assert started(tmp_path / "run") is False


# ---- one writer

HOLD = """
import sys
from pathlib import Path
from probcrowd.storage.folder import RunFolder
with RunFolder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    where = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another process is working in {tmp_path}; wait for it"):
            started(tmp_path)
        assert RunFolder(tmp_path).read_metrics() == []  # reading is free
        other.kill()
        other.wait()
    assert started(tmp_path) is False


def test_the_lock_goes_with_an_error(tmp_path):
    folder = RunFolder(tmp_path)  # named, so that it is not the garbage collector who unlocks
    with pytest.raises(RuntimeError, match="work went wrong"), folder:
        raise RuntimeError("work went wrong")
    with RunFolder(tmp_path), pytest.raises(ValueError, match="another process"):
        started(tmp_path)
    assert started(tmp_path) is False
    assert folder.config.exists()


@pytest.mark.parametrize(
    "write",
    [
        lambda f: f.start(Small(), False),
        lambda f: f.append_metrics({"step": 1}),
        lambda f: f.truncate_metrics(1),
    ],
    ids=["start", "append", "truncate"],
)
def test_nothing_is_written_without_the_lock(tmp_path, write):
    with pytest.raises(RuntimeError, match="only inside `with RunFolder"):
        write(RunFolder(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_thread_of_the_holder_may_write(tmp_path):
    with RunFolder(tmp_path) as folder:
        thread = threading.Thread(target=folder.append_metrics, args=({"step": 1},))
        thread.start()
        thread.join()
        assert folder.read_metrics() == [{"step": 1}]


# ---- metrics


def test_rows_come_back_and_are_written_at_once(tmp_path):
    rows = [{"step": 1, "loss": 1 / 3, "name": "é"}, {"step": 2, "loss": math.inf, "best": None}]
    with RunFolder(tmp_path) as folder:
        folder.start(Small(), False)
        assert folder.read_metrics() == []
        for number, row in enumerate(rows, start=1):
            folder.append_metrics(row)
            assert RunFolder(tmp_path).read_metrics() == rows[:number]
    assert folder.metrics.read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"loss": 1.0}, "integer 'step': {'loss': 1.0}"),
        ({"step": 1.5}, "integer 'step': {'step': 1.5}"),
        ({"step": 1, "x": {2}}, "plain JSON, not .*set is not JSON"),
    ],
)
def test_a_row_that_could_not_be_read_again_is_refused(tmp_path, row, message):
    with RunFolder(tmp_path) as folder:
        folder.append_metrics({"step": 0})
        with pytest.raises(ValueError, match=message):
            folder.append_metrics(row)
        assert folder.read_metrics() == [{"step": 0}]


def test_a_torn_last_line_is_ignored_and_gone_after_resuming(tmp_path):
    started(tmp_path)
    whole = b'{"step": 1}\n{"step": 2}\n'
    third = b'{"step": 3, "loss": 1.5}'
    for cut in range(len(third) + 1):  # even all of it is no row without its line end
        (tmp_path / "metrics.jsonl").write_bytes(whole + third[:cut])
        assert RunFolder(tmp_path).read_metrics() == [{"step": 1}, {"step": 2}]
    with RunFolder(tmp_path) as folder:
        folder.start(Small(), resume=True)
        folder.append_metrics({"step": 4})
        assert folder.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 4}]


def test_damage_elsewhere_is_not_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2 is damaged: .*; correct or delete it"):
        RunFolder(tmp_path).read_metrics()


def test_a_full_disk_leaves_no_half_line_to_be_glued_to_the_next(tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            super().write(bytes(data)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path) as folder:
        folder.append_metrics({"step": 1})
        monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
        with pytest.raises(OSError, match="No space left"):
            folder.append_metrics({"step": 2})
        monkeypatch.undo()
        folder.append_metrics({"step": 3})
        assert folder.read_metrics() == [{"step": 1}, {"step": 3}]


def test_rows_after_the_resumed_step_go(tmp_path, monkeypatch):
    with RunFolder(tmp_path) as folder:
        folder.truncate_metrics(5)
        assert not folder.metrics.exists()
        for step in range(4):
            folder.append_metrics({"step": step, "loss": math.nan})
        folder.truncate_metrics(2)
        assert [row["step"] for row in folder.read_metrics()] == [0, 1, 2]
        before = folder.metrics.read_bytes()

        def full(*args: object):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            folder.truncate_metrics(0)
        assert folder.metrics.read_bytes() == before
        monkeypatch.undo()
        folder.truncate_metrics(-1)
        assert folder.metrics.read_bytes() == b""

"""Files and folders appear whole or not at all; tables, JSON and their names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from probcrowd.storage.files import replacing, replacing_files, write_json, write_table


def write_folder(path: Path, words: str) -> None:
    path.mkdir()
    (path / "words").write_text(words)


def test_a_folder_replaces_an_absent_an_empty_and_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "results"
    for words in ("absent", "full", "empty"):
        if words == "empty":
            (target / "words").unlink()
        with replacing(target) as temporary:
            write_folder(temporary, words)
        assert (target / "words").read_text() == words and os.listdir(tmp_path) == ["results"]


@pytest.mark.parametrize("rename", [1, 2])
def test_a_failure_leaves_the_old_folder_and_nothing_else(
    rename: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rename moves the old folder aside, the second gives the new one its name."""
    target, replace, calls = tmp_path / "results", os.replace, []
    write_folder(target, "old")

    def failing(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == rename:
            raise OSError("no space")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space"), replacing(target) as temporary:
        write_folder(temporary, "new")
    assert (target / "words").read_text() == "old" and os.listdir(tmp_path) == ["results"]


def test_files_of_a_run_replace_those_of_an_earlier_one(tmp_path: Path) -> None:
    for name in ("a", "b", "other"):
        (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_files(tmp_path, ("a", "b")) as temporary:
        (temporary / "a").write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a", "b", "other"), "old"
    )
    with replacing_files(tmp_path, ("a", "b")) as temporary:
        (temporary / "a").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "other": "old"}


def test_tables_have_their_named_index_levels_as_columns_and_no_formulas(tmp_path: Path) -> None:
    table = pd.DataFrame({"label": ["=1+1", "x"]}, pd.Index(["i", "j"], name="item"))
    write_table(tmp_path / "named.csv", table)
    assert (tmp_path / "named.csv").read_text() == "item,label\ni,'=1+1\nj,x\n"
    write_table(tmp_path / "numbered.csv", table["label"].reset_index(drop=True))
    assert (tmp_path / "numbered.csv").read_text() == "label\n'=1+1\nx\n"


def test_json_ends_with_a_line_end(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, None]} and text.endswith("}\n")

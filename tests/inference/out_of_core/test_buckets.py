"""Buckets on disk give the fit of the same rows in memory.

The bits do not depend on the order of rows and files, nor on a kill in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from probcrowd.data.annotations import Annotations
from probcrowd.data.rows import gold_codes
from probcrowd.data.table import Cells, occurring, pack
from probcrowd.inference.aggregation.e_step import e_step
from probcrowd.inference.aggregation.em import Fit, InMemory, fit_table
from probcrowd.inference.aggregation.m_step import ClassPrior, DirichletRows
from probcrowd.inference.out_of_core import buckets
from probcrowd.inference.out_of_core import fit as out_of_core
from probcrowd.inference.out_of_core.buckets import write_probabilities
from probcrowd.inference.out_of_core.fit import ParquetFit, fit_parquet
from probcrowd.inference.out_of_core.partition import bucket_of
from probcrowd.storage.files import replacing

ITEMS, ANNOTATORS, CLASSES = 240, 12, 3


def dawid_skene(cells: Cells) -> DirichletRows:
    base = np.full((cells.num_classes, cells.num_labels), 1.1) + np.eye(cells.num_classes, cells.num_labels)
    return DirichletRows(cells, base, ClassPrior(np.full(cells.num_classes, 2.0)))


def table(*, text: bool = False, repeats: int = 0, weights: bool = False) -> pd.DataFrame:
    """Five labels of each item in random order; `repeats` rows repeat a pair with another label."""
    chance = np.random.default_rng(7)
    item = np.repeat(np.arange(ITEMS), 5)
    annotator = np.concatenate([chance.permutation(ANNOTATORS)[:5] for _ in range(ITEMS)])
    truth = chance.integers(0, CLASSES, ITEMS)
    label = np.where(
        chance.random(len(item)) < 0.4 + annotator / 24, truth[item], chance.integers(0, CLASSES, len(item))
    )
    frame = pd.DataFrame({"item": 7919 * item - 10**6, "annotator": annotator * 3 + 1, "label": label * 2})
    frame = pd.concat(
        [frame, frame.sample(repeats, random_state=1).assign(label=lambda rows: (rows["label"] + 2) % 6)]
    )
    frame = frame.sample(frac=1, random_state=2, ignore_index=True)
    if weights:
        frame["times"] = chance.integers(1, 9, len(frame)) / 4
    return (
        frame.assign(**{name: frame[name].map("n{}".format) for name in ("item", "annotator", "label")})
        if text
        else frame
    )


def known_classes(frame: pd.DataFrame) -> pd.Series:
    """Gold for 40 items, missing gold for one, and gold for one that is not in the table."""
    gold = frame.drop_duplicates("item").sample(41, random_state=3).set_index("item")["label"]
    gold = gold.where(np.arange(41) > 0)
    stranger = pd.Series(
        gold.iloc[[1]].array, index=pd.Index([5 if frame["item"].dtype == np.int64 else "stranger"])
    )
    return pd.Series(pd.concat([gold, stranger]))


def save(frame: pd.DataFrame, folder: Path, files: int = 3, **options: Any) -> Path:
    folder.mkdir(parents=True)
    for n, rows in enumerate(np.array_split(np.arange(len(frame)), files)):
        frame.iloc[rows].to_parquet(folder / f"part-{n:02d}.parquet", index=False, **options)
    return folder


def in_memory(frame: pd.DataFrame, gold: pd.Series | None = None, **options: Any) -> tuple[Fit, pd.DataFrame]:
    """The fit and the probabilities by item, without buckets."""
    annotations = Annotations.from_frame(frame, **options)
    key = annotations.annotator * annotations.num_classes + annotations.label
    cells = occurring(key, annotations.num_annotators, annotations.num_classes, annotations.num_classes)
    known = None if gold is None else gold_codes(annotations.items, annotations.classes, gold)
    packed = pack(annotations.item, key, cells, annotations.num_items, weight=annotations.weight, gold=known)
    fit = fit_table(InMemory(packed, cells), dawid_skene(cells))
    probabilities = np.zeros((annotations.num_items, annotations.num_classes))
    e_step(packed, fit.scores, responsibilities=probabilities)
    return fit, pd.DataFrame(
        probabilities, index=annotations.items, columns=[f"p_{name}" for name in annotations.classes]
    )


def from_disk(result: ParquetFit, folder: Path) -> pd.DataFrame:
    write_probabilities(result.buckets, result.scores, folder)
    return pd.read_parquet(folder).set_index("item")


def same_fit(one: ParquetFit, other: ParquetFit) -> bool:
    """Bit by bit."""
    return bool(
        np.array_equal(one.fit.statistics.counts, other.fit.statistics.counts)
        and np.array_equal(one.fit.objective, other.fit.objective)
        and np.array_equal(one.scores.log_table, other.scores.log_table)
        and one.annotators.equals(other.annotators)
        and one.classes.equals(other.classes)
    )


def same_files(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    return names == sorted(file.name for file in other.iterdir()) and all(
        (one / n).read_bytes() == (other / n).read_bytes() for n in names
    )


CASES = {
    "numbers": ({}, {}),
    "text": ({"text": True}, {}),
    "weights": ({"weights": True}, {"weight": "times"}),
    "gold": ({}, {"gold": True}),
    "text gold": ({"text": True}, {"gold": True}),
    "first": ({"repeats": 90}, {"duplicates": "first"}),
    "last": ({"repeats": 90, "weights": True}, {"duplicates": "last", "weight": "times"}),
    "count": ({"repeats": 90}, {"duplicates": "count"}),
    "share": ({"repeats": 90}, {"duplicates": "share"}),
    "weights share": (
        {"repeats": 90, "weights": True, "text": True},
        {"duplicates": "share", "weight": "times"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_buckets_equal_memory(name: str, tmp_path: Path) -> None:
    of_table, options = CASES[name]
    frame = table(**of_table)
    options = options | {"gold": known_classes(frame) if options.get("gold") else None}
    fit, probabilities = in_memory(frame, **options)
    with fit_parquet(
        save(frame, tmp_path / "source"), channel=dawid_skene, bucket_rows=300, **options
    ) as result:
        assert result.buckets.num_buckets > 3
        written = from_disk(result, tmp_path / "probabilities")
    assert result.buckets.num_items == ITEMS and result.buckets.num_rows == len(frame) - (
        90 if name in ("first", "last") else 0
    )
    assert result.fit.converged and result.fit.passes == fit.passes
    np.testing.assert_allclose(result.fit.objective, fit.objective, rtol=1e-9)
    assert written.index.is_unique and set(written.index) == set(probabilities.index)
    wide = written[list(probabilities.columns)].loc[probabilities.index].to_numpy()
    np.testing.assert_allclose(wide, probabilities.to_numpy(), atol=1e-9)
    np.testing.assert_array_equal(written["probability"], written.filter(like="p_").max(axis=1))
    best = written[list(probabilities.columns)].idxmax(axis=1)
    assert [f"p_{name}" for name in written["label"]] == pd.Series(best).tolist()
    if options["gold"] is not None:
        known = options["gold"].dropna().loc[lambda labels: labels.index.isin(written.index)]
        assert len(known) == 40 and list(written["label"].loc[known.index]) == list(known)
        assert written["probability"].loc[known.index].min() > 1 - 1e-12


def test_order_and_files_do_not_change_a_bit(tmp_path: Path) -> None:
    frame = table(weights=True, repeats=50)
    frame = pd.concat(
        [frame, frame.iloc[:50].assign(times=0.75)]
    )  # the same label again, with another weight
    again = frame.sample(frac=1, random_state=5, ignore_index=True)
    options: dict[str, Any] = {
        "channel": dawid_skene,
        "weight": "times",
        "bucket_rows": 400,
        "duplicates": "count",
    }
    one = fit_parquet(save(frame, tmp_path / "a", 1), work=tmp_path / "one", **options)
    other = fit_parquet(save(again, tmp_path / "b", 7, row_group_size=11), work=tmp_path / "other", **options)
    assert one.buckets.num_buckets > 2 and same_fit(one, other)
    assert same_files(tmp_path / "one" / "buckets", tmp_path / "other" / "buckets")


def test_hash_of_items_is_fixed() -> None:
    assert bucket_of(pa.array([0, 1, 2, -3]), 1000).tolist() == [0, 789, 730, 447]
    assert bucket_of(pa.array(["a", "b", "", "ä"], pa.large_string()), 1000).tolist() == [504, 975, 774, 998]


def test_labels_of_other_kinds(tmp_path: Path) -> None:
    """Categories, booleans, whole numbers stored as floats, files in subfolders; hidden files are skipped."""
    frame = table().assign(
        label=lambda rows: rows["label"] > 0,
        annotator=lambda rows: rows["annotator"].map(str).astype("category"),
    )
    frame["item"] = frame["item"].astype(float)
    (save(frame, tmp_path / "source" / "day=1") / "_metadata.parquet").write_text("no data")
    with fit_parquet(tmp_path / "source", channel=dawid_skene, bucket_rows=400) as result:
        written = from_disk(result, tmp_path / "probabilities")
    fit, _ = in_memory(frame)
    np.testing.assert_allclose(result.fit.objective, fit.objective, rtol=1e-9)
    assert (
        written.index.dtype == np.int64
        and result.classes.tolist() == [False, True]
        and result.annotators[0] == "1"
    )


# ---- invalid data


def replaced(column: str, value: float = np.nan) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Return a function that replaces the value of row 700 in a column."""
    return lambda frame: frame.assign(**{column: frame[column].where(frame.index != 700, value)})


def label_missing_in_text(frame: pd.DataFrame) -> pd.DataFrame:
    labels = frame["label"].where(frame.index != 700)
    return frame.assign(label=labels.map("c{}".format, na_action="ignore"))


FAULTS = {
    "item": (replaced("item"), "item column 'item'", "missing"),
    "annotator": (replaced("annotator"), "annotator column 'annotator'", "missing"),
    "label": (label_missing_in_text, "label column", "missing"),
    "fraction": (replaced("label", 1.5), "label column", "not whole"),
    "weight": (replaced("times", 0.0), "weight column 'times'", "> 0"),
    "infinite weight": (replaced("times", np.inf), "weight column", "> 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_rows_are_named_with_their_file(name: str, tmp_path: Path) -> None:
    """Row 700 of all is row 300 of the second file, whose row groups have 7 rows."""
    spoil, *words = FAULTS[name]
    path = save(spoil(table(weights=True)), tmp_path / "source", row_group_size=7)
    with pytest.raises(ValueError) as caught:
        fit_parquet(path, channel=dawid_skene, weight="times", bucket_rows=100)
    for word in [*words, str(path / "part-01.parquet"), "rows 300"]:
        assert word in str(caught.value)


def test_repeated_pairs_are_named(tmp_path: Path) -> None:
    frame = table(text=True)
    twice = pd.concat([frame, frame.iloc[[17]]])
    with pytest.raises(ValueError, match="repeated") as caught:
        fit_parquet(save(twice, tmp_path / "source"), channel=dawid_skene, bucket_rows=100)
    assert repr((frame["item"][17], frame["annotator"][17])) in str(caught.value)


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        (lambda items: pd.Series([1], index=items[:1]), "no annotator ever used"),
        (lambda items: pd.Series([0, 0], index=items[[0, 0]]), "more than one gold label"),
        (lambda items: pd.Series(["0"], index=items[:1]), "labels of gold are text"),
        (lambda items: pd.Series([0], index=["a"]), "items of gold are text"),
    ],
)
def test_invalid_gold_is_refused(gold: Callable[[pd.Index], pd.Series], words: str, tmp_path: Path) -> None:
    frame = table()
    with pytest.raises(ValueError, match=words):
        fit_parquet(
            save(frame, tmp_path / "source"), channel=dawid_skene, gold=gold(pd.Index(frame["item"].unique()))
        )


def test_invalid_files_are_refused(tmp_path: Path) -> None:
    def refused(path: Path, **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            fit_parquet(path, channel=dawid_skene, **options)
        return str(caught.value)

    frame = table()
    path = save(frame, tmp_path / "source")
    assert "neither a file nor a folder" in refused(tmp_path / "nowhere")
    assert "no column 'who' for annotator=" in refused(path, annotator="who")
    assert "duplicates='some'" in refused(path, duplicates="some") and "bucket_rows" in refused(
        path, bucket_rows=0
    )
    last = path / "part-02.parquet"
    frame.assign(label="a").to_parquet(last)
    assert all(word in refused(path) for word in ("label column 'label' is text", str(last), "number"))
    frame.drop(columns="label").to_parquet(last)
    assert all(word in refused(path) for word in ("no column 'label'", str(last)))
    frame.assign(label=pd.Timestamp(0)).to_parquet(last)
    assert all(word in refused(path) for word in ("timestamp", str(last)))
    frame.assign(label=np.full(len(frame), 2**64 - 1, np.uint64)).to_parquet(last)
    assert all(word in refused(path) for word in ("does not fit into int64", str(last)))
    last.write_bytes(b"text")
    assert "is not a valid Parquet file" in refused(path) and str(last) in refused(path)
    frame[:0].to_parquet(tmp_path / "empty.parquet")
    assert "no annotations" in refused(tmp_path / "empty.parquet")
    save(frame, tmp_path / "good")
    (path / "notes.txt").write_text("mine")
    assert "notes.txt" in refused(tmp_path / "good", work=path)


# ---- interruptions and second runs


@dataclass
class Counted:
    """A function that raises at its n-th call."""

    function: Callable[..., Any]
    last: int
    calls: int = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return self.function(*arguments, **options)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for words in ("old", "new"):
        with replacing(file) as path:
            path.write_text(words)
            assert words == "old" or file.read_text() == "old"
    with pytest.raises(KeyboardInterrupt), replacing(file) as path:
        path.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("last", [1, 2, 4, 9, 14])
def test_interrupted_runs_give_the_same_bits(
    last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt before a file gets its name: one of the 3 pieces (calls 1 to 3), or of the buckets."""
    path, options = save(table(), tmp_path / "source"), {"channel": dawid_skene, "bucket_rows": 300}
    whole = fit_parquet(path, work=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Counted(os.replace, last))
        with pytest.raises(KeyboardInterrupt):
            fit_parquet(path, work=tmp_path / "work", **options)
    assert not (tmp_path / "work" / "manifest.json").exists() and not list(
        (tmp_path / "work").rglob("*partial")
    )
    (tmp_path / "work" / "buckets" / "99999-cell.npy").write_text("of an older run")
    repeated = fit_parquet(path, work=tmp_path / "work", **options)
    assert same_fit(whole, repeated) and same_files(
        tmp_path / "whole" / "buckets", tmp_path / "work" / "buckets"
    )


@pytest.mark.parametrize("name", ["partition.batches", "pack.save_bucket"])
def test_killed_runs_give_the_same_bits(name: str, tmp_path: Path) -> None:
    path, options = save(table(), tmp_path / "source"), {"channel": dawid_skene, "bucket_rows": 300}
    whole = fit_parquet(path, work=tmp_path / "whole", **options)
    module, function = name.split(".")
    code = f"""
        import os, signal
        from pathlib import Path
        from probcrowd.inference.out_of_core import {module}
        from probcrowd.inference.out_of_core import fit as out_of_core
        original, calls = {name}, []
        def killed(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)
        {name} = killed
        path, work = Path({str(path)!r}), Path({str(tmp_path / "work")!r})
        out_of_core.fit_parquet(path, work=work, channel=None, bucket_rows=300)
    """
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode
        == -signal.SIGKILL
    )
    assert list((tmp_path / "work" / "buckets").iterdir()) and function
    repeated = fit_parquet(path, work=tmp_path / "work", **options)
    assert same_fit(whole, repeated) and same_files(
        tmp_path / "whole" / "buckets", tmp_path / "work" / "buckets"
    )


def test_complete_buckets_are_reused_and_others_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = table(weights=True)
    path, work = save(frame, tmp_path / "source"), tmp_path / "work"
    shuffles = Counted(out_of_core.shuffle, -1)
    monkeypatch.setattr(out_of_core, "shuffle", shuffles)

    def fit(**options: Any) -> ParquetFit:
        arguments: dict[str, Any] = {"bucket_rows": 300} | options
        return fit_parquet(path, work=work, channel=dawid_skene, **arguments)

    first = fit()
    assert same_fit(first, fit()) and shuffles.calls == 1
    first.close()  # the folder is the caller's
    gold = known_classes(frame)
    different = [
        {"weight": "times"},
        {"duplicates": "count"},
        {"bucket_rows": 400},
        {"gold": gold},
        {"gold": gold.iloc[:5]},
    ]
    for n, options in enumerate(different):
        fit(**options)
        assert shuffles.calls == 2 * n + 2
        assert same_fit(first, fit()) and shuffles.calls == 2 * n + 3
    weighted = fit(weight="times")
    calls = shuffles.calls
    assert not same_fit(first, weighted)
    frame.iloc[:-30].to_parquet(path / "part-02.parquet", index=False)
    with pytest.raises(ValueError, match="repeated"):
        fit(weight="times")
    assert shuffles.calls == calls + 1 and not (work / "manifest.json").exists()
    fit(weight="times", duplicates="first")
    sizes = json.loads((work / "manifest.json").read_text())["sizes"]
    assert sizes["num_rows"] == len(frame) - 30 and sizes["num_buckets"] == 7
    assert {int(file.name[:5]) for file in (work / "buckets").iterdir()} == set(range(7))


def test_temporary_buckets_are_removed_and_work_folders_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(table(), tmp_path / "source")
    with fit_parquet(path, channel=dawid_skene) as result:
        assert result.buckets.folder.is_dir()
    assert not result.buckets.folder.exists()
    monkeypatch.setattr(
        out_of_core,
        "shuffle",
        lambda *_, **__: fit_parquet(path, channel=dawid_skene, work=tmp_path / "work"),
    )
    with pytest.raises(ValueError, match="another process"):
        fit_parquet(path, channel=dawid_skene, work=tmp_path / "work")


def test_probabilities_are_written_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "results" / "probabilities"
    with fit_parquet(save(table(), tmp_path / "source"), channel=dawid_skene, bucket_rows=300) as result:
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "write_part", Counted(buckets.write_part, 3))
            with pytest.raises(KeyboardInterrupt):
                write_probabilities(result.buckets, result.scores, target)
        assert not list(target.parent.iterdir())
        target.mkdir()
        assert len(from_disk(result, target)) == ITEMS
        with pytest.raises(ValueError, match="already exists"):
            write_probabilities(result.buckets, result.scores, target)


def test_more_buckets_than_items(tmp_path: Path) -> None:
    """Empty buckets, and items with no other in theirs."""
    frame = table().iloc[:40]
    with fit_parquet(
        save(frame, tmp_path / "source"), channel=dawid_skene, bucket_rows=1, duplicates="share"
    ) as result:
        written = from_disk(result, tmp_path / "probabilities")
    fit, probabilities = in_memory(frame)
    np.testing.assert_allclose(result.fit.objective, fit.objective, rtol=1e-9)
    np.testing.assert_allclose(written.filter(like="p_").loc[probabilities.index], probabilities, atol=1e-9)
    assert result.buckets.num_buckets == 40


def test_hard_passes(tmp_path: Path) -> None:
    frame = table()
    with fit_parquet(save(frame, tmp_path / "source"), channel=dawid_skene, bucket_rows=300) as result:
        expectation = result.buckets.e_step(result.scores, hard=True)
        soft = result.buckets.e_step(result.scores)
    assert expectation.statistics.class_count.tolist() == np.rint(expectation.statistics.class_count).tolist()
    assert expectation.log_likelihood == soft.log_likelihood

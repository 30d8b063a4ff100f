"""The harness of all experiments: cells are computed once, folders resume, names and tables are checked."""

from __future__ import annotations

import math
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import Field

from probcrowd.experiments.grid import Rows, Stage, cell_names, read_cells
from probcrowd.experiments.harness import Experiment, Options, Tables, choose_names, run_experiment
from probcrowd.experiments.tables import (
    average_over_seeds,
    format_errors,
    format_results,
    read_published,
    select_settings,
)


class ToyOptions(Options):
    """A toy's options: `sizes` choose cells and change no number."""

    seeds: int = 2
    sizes: tuple[int, ...] = Field((1, 2), exclude=True)


def compute(size: int, seed: int) -> Rows:
    warnings.warn("the data are odd", UserWarning, stacklevel=1)  # not shown, and no error
    return [{"size": size, "value": size + seed, "threads": torch.get_num_threads(), "process": os.getpid()}]


def toy(calls: list[int] | None = None, fail: int | None = None) -> Experiment[ToyOptions]:
    def cell(size: int, seed: int) -> Rows:
        if size == fail:
            raise KeyboardInterrupt
        if calls is not None:
            calls.append(size)
        return compute(size, seed)

    def stages(options: ToyOptions) -> list[Stage]:
        make = compute if calls is None and fail is None else cell
        cells = {f"size {size}": partial(make, size) for size in options.sizes}
        return [Stage(options.out, options, cells, options.seeds)]

    def tables(options: ToyOptions) -> Tables:
        return {"results": read_cells(options.out, cell_names(options.out))}

    return Experiment(ToyOptions, {}, {"methods": ["a", "b, c"]}, stages, tables, lambda tables: [])


def run(out: Path, experiment: Experiment[ToyOptions], *, jobs: int = 1, **options: Any) -> pd.DataFrame:
    chosen = ToyOptions(out=out, **options)
    return run_experiment(experiment, chosen, jobs=jobs, progress=False)["results"]


def test_a_second_run_computes_only_missing_cells(tmp_path: Path) -> None:
    calls: list[int] = []
    first = run(tmp_path / "toy", toy(calls))
    assert calls == [1, 1, 2, 2]
    assert first["seed"].tolist() == [0, 1, 0, 1] and first["value"].tolist() == [1, 2, 2, 3]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "toy" / "results.csv"), first)
    (tmp_path / "toy" / "cells" / "size 2.csv").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "toy" / "cells").iterdir()}
    again = run(tmp_path / "toy", toy(calls), sizes=(1, 2, 3))
    assert calls[4:] == [2, 2, 3, 3] and all(path.stat().st_mtime_ns == time for path, time in times.items())
    pd.testing.assert_frame_equal(again.loc[again["size"] < 3], first)


def test_finished_cells_survive_a_stop(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "toy", toy(fail=2))
    assert cell_names(tmp_path / "toy") == ["size 1"]
    calls: list[int] = []
    assert len(run(tmp_path / "toy", toy(calls))) == 4 and calls == [2, 2]


def test_processes_have_one_thread_and_give_the_same_rows(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    one = run(tmp_path / "one", toy())
    assert torch.get_num_threads() == 2
    two = run(tmp_path / "two", toy(), jobs=2)
    assert (one["threads"] == 1).all() and (two["threads"] == 1).all()
    assert set(one["process"]) == {os.getpid()} and os.getpid() not in set(two["process"])
    pd.testing.assert_frame_equal(one.drop(columns="process"), two.drop(columns="process"))


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "toy", toy())
    with pytest.raises(ValueError, match=r"holds a run with other settings[^:]*:\n  seeds: 2 -> 3"):
        run(tmp_path / "toy", toy(), seeds=3)
    with pytest.raises(ValueError, match="unknown method 'd': choose one of a; b, c"):
        run(tmp_path / "other", toy(), methods=("d",))
    assert not (tmp_path / "other").exists()


def test_names_are_resolved_in_their_own_order() -> None:
    known = ["a", "a, b", "b, c", "d"]
    assert choose_names("name", [], known) == ()
    assert choose_names("name", ["d", "b", "c", "a"], known) == ("a", "b, c", "d")  # parts between commas
    assert choose_names("name", ["a", "b", "d"], known) == ("a, b", "d")
    assert choose_names("name", ["Em_j", "2"], ["em-j, 2", "em-j"]) == ("em-j, 2",)
    with pytest.raises(ValueError, match="unknown name 'b': choose one of a; a, b; b, c; d"):
        choose_names("name", ["d", "b", "x"], known)


def held_out(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(
        [{"method": "m", "setting": s, "held_out_score": h, "accuracy": a} for s, h, a in rows]
    )


def test_settings_are_selected_by_the_mean_held_out_score_alone() -> None:
    rows = held_out(
        ("x", -1.0, 0.2), ("x", -3.0, 0.2), ("y", -2.1, 0.9), ("y", -2.1, 0.9), ("x", math.nan, 0.3)
    )
    assert select_settings(rows, ["method"], "setting")["accuracy"].tolist() == [0.2, 0.2, 0.3]
    reversed_scores = rows.assign(held_out_score=-rows["held_out_score"])
    assert select_settings(reversed_scores, ["method"], "setting")["accuracy"].tolist() == [0.9, 0.9]


def test_means_and_standard_errors_over_seeds() -> None:
    rows = pd.DataFrame(
        {"method": ["a"] * 3 + ["b"], "accuracy": [0.8, 0.9, 0.7, 0.5], "seconds": [1.0, 2, 3, 4]}
    )
    columns = ["seeds", "accuracy", "standard_error", "seconds"]
    table = average_over_seeds(rows, ["method"], columns, measure="accuracy", percent=["accuracy"])
    assert list(table.columns) == ["method", *columns]
    assert table.iloc[0, 1:].tolist() == pytest.approx([3, 80, 10 / math.sqrt(3), 2])
    assert table.iloc[1, 1:].tolist() == pytest.approx([1, 50, math.nan, 4], nan_ok=True)  # one seed
    assert format_errors(table, "accuracy") == ["80.0±5.8", "50.0±0.0"]


def test_texts_have_a_table_for_each_group_with_numbers_in_order() -> None:
    table = pd.DataFrame(
        {
            "set": ["s", "s", "s", "t"],
            "name": ["a", "a", "b", "a"],
            "rate": [0.4, 0.0, 0.0, 0.0],
            "cell": list("wxyz"),
        }
    )
    text = format_results(table, ["set"], "set {}", "rate")
    assert text.split() == ["set", "s", "0.0", "0.4", "a", "x", "w", "b", "y", "set", "t", "0.0", "a", "z"]
    assert format_results(table[:1], ["set"], "{}", "rate", axis="rate").split() == [
        "s",
        "rate",
        "0.4",
        "a",
        "w",
    ]


@pytest.mark.parametrize("experiment", ["lia", "crowd", "simlabel", "meta"])
def test_every_experiment_has_published_numbers(experiment: str) -> None:
    assert len(read_published(experiment))

"""`probcrowd reproduce crowds` on small sets of the same form: splits, selection, pairs, the command."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from probcrowd.commands.app import main
from probcrowd.experiments.crowd import datasets as crowd_sets
from probcrowd.experiments.crowd.datasets import read_task
from probcrowd.experiments.crowd.experiment import EXPERIMENT, METHODS, SELECTIONS, CrowdOptions, compare
from probcrowd.experiments.harness import run_experiment
from probcrowd.experiments.tables import read_published

FEW = ("majority vote", "GeoCrowdNet(F)", "CrowdLayer MW")


def write_set(root: Path, name: str, *, split: bool = True, seed: int = 0) -> None:
    """Write ninety items of three classes that features separate; three of six annotators label forty."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(90, 5))
    truth = (features @ rng.normal(size=(5, 3))).argmax(1)
    folder = root / name
    folder.mkdir(parents=True)
    labelled = np.arange(40) if split else np.arange(90)
    task = np.repeat(labelled, 3)
    right = rng.random(len(task)) < 0.8
    label = np.where(right, truth[task], (truth[task] + 1) % 3)
    worker = np.concatenate([rng.choice(6, 3, replace=False) for _ in labelled])
    pd.DataFrame({"task": task, "worker": worker, "label": label}).to_parquet(folder / "annotations.parquet")
    pd.DataFrame({"task": np.arange(90), "label": truth}).sample(frac=1, random_state=1).to_parquet(
        folder / "gold.parquet"
    )
    tasks = pd.DataFrame({"task": np.arange(90)})
    if split:
        tasks["split"] = (
            ["train"] * 40
            + (["valid"] * 10 if name == "labelme" else [])
            + ["test"] * (40 if name == "labelme" else 50)
        )
    tasks.to_csv(folder / "tasks.csv", index=False)
    np.save(folder / "features.npy", features.astype(np.float16))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd") / "data"
    for name in ("labelme", "music_genre"):
        write_set(folder, name)
    return folder


@pytest.fixture(autouse=True)
def few_validation_songs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd_sets, "MUSIC_VALID", 15)


def run(root: Path, out: Path, **options: Any) -> pd.DataFrame:
    small = {
        "methods": FEW,
        "seeds": 2,
        "epochs": 4,
        "batch": 20,
        "learning_rates": ((1e-2, 1e-2), (1e-2, 1e-1)),
    }
    chosen = CrowdOptions(**{"data": root, "out": out, **small, **options})
    return run_experiment(EXPERIMENT, chosen, progress=False)["results"]


def read_all(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(path) for path in sorted((out / "cells").iterdir())], ignore_index=True)


def test_sets_are_split_as_stored_or_drawn(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = read_task(root, "labelme")
    assert (
        task.labels["item"].max() == 39
        and list(task.test) == list(range(50, 90))
        and list(task.valid) == list(range(40, 50))
    )
    assert (
        task.truth.loc[3] == pd.read_parquet(root / "labelme" / "gold.parquet").set_index("task")["label"][3]
    )
    valid, test = read_task(root, "music_genre").split(0)
    assert (
        len(valid) == 15
        and sorted([*valid, *test]) == list(range(40, 90))
        and set(valid) != set(read_task(root, "music_genre").split(1)[0])
    )
    monkeypatch.setattr(crowd_sets, "CIFAR_TRAIN", 30)
    monkeypatch.setattr(crowd_sets, "CIFAR_VALID", 20)
    monkeypatch.setattr(crowd_sets, "CIFAR_TEST", 25)
    write_set(tmp_path, "cifar10n", split=False)
    task = read_task(tmp_path, "cifar10n")
    parts = [set(task.labels["item"]), set(task.valid), set(task.test)]
    assert [len(part) for part in parts] == [30, 20, 25] and len(set.union(*parts)) == 75
    with pytest.raises(ValueError, match="holds no data set with features"):
        read_task(root, "nothing")


def test_test_items_select_nothing(root: Path, tmp_path: Path) -> None:
    """With other classes of test items every epoch and learning rate is the same, and accuracy is not."""
    before = run(root, tmp_path / "one", sets=("labelme",))
    assert len(before) == 3 * len(FEW) and set(before["selection"]) == set(SELECTIONS)
    assert (before["seeds"] == 2).all() and before["accuracy"].between(0, 100).all()
    assert (
        before["accuracy"].mean() > 50
        and len(list((tmp_path / "one" / "cells").iterdir())) == 3 * len(FEW) * 2
    )
    changed = tmp_path / "data"
    shutil.copytree(root, changed)
    gold = pd.read_parquet(root / "labelme" / "gold.parquet")
    gold["label"] = np.where(gold["task"] >= 50, (gold["label"] + 1) % 3, gold["label"])
    gold.to_parquet(changed / "labelme" / "gold.parquet")
    after = run(changed, tmp_path / "two", sets=("labelme",))
    keys = ["selection", "method", "learning_rates"]
    pd.testing.assert_frame_equal(before[keys], after[keys])
    one, two = read_all(tmp_path / "one"), read_all(tmp_path / "two")
    pd.testing.assert_frame_equal(one[["epoch", "held_out_score"]], two[["epoch", "held_out_score"]])
    assert (one["accuracy"] > two["accuracy"] + 0.2).mean() > 0.8


def test_learning_rates_are_selected_by_held_out_labels_alone(root: Path, tmp_path: Path) -> None:
    results = run(root, tmp_path, sets=("labelme",), methods=("majority vote",), seeds=1)
    rows = read_all(tmp_path)
    assert rows.loc[rows["selection"] != "held-out", "held_out_score"].isna().all()
    best = rows.loc[rows["held_out_score"].idxmax(), "learning_rates"]
    assert len(results) == 3 and set(results["learning_rates"]) == {best}
    rates = pd.read_csv(tmp_path / "rates.csv")
    assert len(rates) == 6 and set(rates["learning_rates"]) == {"0.01 0.01", "0.01 0.1"}


def test_differences_are_paired_by_seed() -> None:
    accuracies = {
        "GeoCrowdNet(F)": (0.8, 0.9, 0.7),
        "Max-MIG": (0.82, 0.91, 0.73),
        "true labels": (1.0, 1.0, 1.0),  # a ceiling, not a baseline
    }
    rows = [
        {"set": "a", "selection": "last", "method": method, "seed": seed, "accuracy": value}
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    (row,) = compare(pd.DataFrame(rows)).to_dict("records")
    assert (row["ours"], row["baseline"], row["no_worse"]) == ("GeoCrowdNet(F)", "Max-MIG", False)
    assert row["difference"] == pytest.approx(-2) and row["standard_error"] == pytest.approx(1 / math.sqrt(3))
    (row,) = compare(pd.DataFrame(rows).query("seed == 0")).to_dict("records")
    assert math.isnan(row["standard_error"]) and not row["no_worse"]


def test_published_numbers_have_a_source_and_a_rule() -> None:
    table = read_published("crowd")
    assert table["accuracy"].between(50, 100).all() and table[["source", "selection"]].notna().all().all()
    numbers = table.set_index(["set", "method", "source"])["accuracy"]
    assert numbers[("labelme", "geocrowdnet-f", "authors' talk")] == 85.87
    known = {str(options["method"]) for options in METHODS.values()} | {"gold"}
    assert set(table["method"]) <= known
    assert not table.duplicated(["set", "method", "source", "selection"]).any()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["reproduce", "crowds", *map(str, arguments)], catch_exceptions=False)


def test_the_command_prints_tables_and_names_files(root: Path, tmp_path: Path) -> None:
    options = ("--quick", "--seeds", 1, "--methods", "majority vote; GeoCrowdNet(F), running")
    result = invoke("--data", root, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    for words in (
        "labelme",
        "music_genre",
        "GeoCrowdNet(F), running",
        "authors' talk, clean validation",
        "85.87",
    ):
        assert words in result.output
    for name in ("results.csv", "rates.csv", "comparisons.csv", "published.csv", "cells"):
        assert str(tmp_path / "out" / name) in result.output and (tmp_path / "out" / name).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "magic"), "unknown method 'magic': choose one of true labels;"),
        (("--sets", "imagenet"), "unknown set 'imagenet': choose one of labelme"),
    ],
)
def test_unknown_names_are_reported(root: Path, tmp_path: Path, options: tuple[str, str], words: str) -> None:
    result = invoke("--data", root, "--out", tmp_path / "out", *options)
    assert result.exit_code == 1 and words in result.output and not (tmp_path / "out").exists()


def test_the_command_needs_a_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROBCROWD_DATA", raising=False)
    result = invoke("--quick")
    assert result.exit_code == 1 and "PROBCROWD_DATA" in result.output

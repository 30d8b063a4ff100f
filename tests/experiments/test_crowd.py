"""`probcrowd reproduce crowds` on a small set of the same form: what is trained on and judged on, choices without test items, resuming, the command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from probcrowd.commands.app import main
from probcrowd.experiments.crowd import datasets as crowd_sets
from probcrowd.experiments.crowd import experiment as reproduction
from probcrowd.experiments.crowd.datasets import read_task
from probcrowd.experiments.crowd.experiment import (
    METHODS,
    SELECTIONS,
    compared,
    published,
    published_text,
    reproduce_crowds,
    summary,
    tuned,
)

FEW = ["majority vote", "GeoCrowdNet(F)", "CrowdLayer MW"]


def write_set(root: Path, name: str, *, split: bool = True, seed: int = 0) -> None:
    """Ninety items of three classes that features tell apart; forty are labelled by three of six annotators."""
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


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(crowd_sets, "MUSIC_VALID", 15)
    for name in ("labelme", "music_genre"):
        write_set(tmp_path / "data", name)
    return tmp_path / "data"


def run(root: Path, out: Path, **options: object) -> pd.DataFrame:
    arguments: dict[str, object] = {
        "methods": FEW,
        "seeds": 2,
        "epochs": 4,
        "batch": 20,
        "learning_rates": ((1e-2, 1e-2), (1e-2, 1e-1)),
        "progress": False,
    }
    return reproduce_crowds(root, out, **(arguments | options))  # pyright: ignore[reportArgumentType]


def test_sets_are_split_as_they_say(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    write_set(root, "cifar10n", split=False)
    task = read_task(root, "cifar10n")
    parts = [set(task.labels["item"]), set(task.valid), set(task.test)]
    assert [len(part) for part in parts] == [30, 20, 25] and len(set.union(*parts)) == 75
    with pytest.raises(ValueError, match="holds no data set with features"):
        read_task(root, "nothing")


def test_every_cell_is_made_once_and_methods_are_added(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    results = run(root, out)
    assert (
        len(results) == 2 * 3 * len(FEW)
        and set(results["selection"]) == set(SELECTIONS)
        and (results["seeds"] == 2).all()
    )
    assert len(list((out / "cells").iterdir())) == 2 * 3 * len(FEW) * 2
    assert results["accuracy"].between(0, 100).all() and results["accuracy"].mean() > 50
    made = []
    original = reproduction._scored
    monkeypatch.setattr(reproduction, "_scored", lambda *given: made.append(given[2:]) or original(*given))
    again = run(root, out, methods=[*FEW, "CCEM"])
    assert {given[3] for given in made} == {"CCEM"} and len(made) == 2 * 3 * 2 * 2
    pd.testing.assert_frame_equal(
        again.loc[again["method"] != "CCEM"].reset_index(drop=True), results.reset_index(drop=True)
    )
    with pytest.raises(ValueError, match="other settings"):
        run(root, out, epochs=5)


def test_test_items_choose_nothing(root: Path, tmp_path: Path) -> None:
    """With other classes of test items every fit, every epoch and every learning rate is the same, and accuracy is not."""
    before = run(root, tmp_path / "one", sets=["labelme"])
    gold = pd.read_parquet(root / "labelme" / "gold.parquet")
    gold["label"] = np.where(gold["task"] >= 50, (gold["label"] + 1) % 3, gold["label"])
    gold.to_parquet(root / "labelme" / "gold.parquet")
    after = run(root, tmp_path / "two", sets=["labelme"])
    pd.testing.assert_frame_equal(
        before[["selection", "method", "learning_rates"]], after[["selection", "method", "learning_rates"]]
    )
    cells = [
        pd.concat(
            [pd.read_csv(path) for path in sorted((tmp_path / name / "cells").iterdir())], ignore_index=True
        )
        for name in ("one", "two")
    ]
    pd.testing.assert_series_equal(cells[0]["epoch"], cells[1]["epoch"])
    pd.testing.assert_series_equal(cells[0]["held_out_score"], cells[1]["held_out_score"])
    assert (cells[0]["accuracy"] > cells[1]["accuracy"] + 0.2).mean() > 0.8


def test_learning_rates_are_chosen_by_held_out_labels_alone() -> None:
    row = {"set": "a", "method": "m"}
    rows = pd.DataFrame(
        [
            {
                **row,
                "selection": "held-out",
                "learning_rates": rate,
                "seed": seed,
                "held_out_score": score,
                "accuracy": accuracy,
            }
            for rate, scores, accuracy in ((0.1, (-1.0, -3.0), 0.2), (0.2, (-2.1, -2.1), 0.9))
            for seed, score in enumerate(scores)
        ]
        + [
            {
                **row,
                "selection": "last",
                "learning_rates": rate,
                "seed": 0,
                "held_out_score": math.nan,
                "accuracy": rate,
            }
            for rate in (0.1, 0.2)
        ]
    )
    found = tuned(rows)
    assert set(found["learning_rates"]) == {0.1} and len(found) == 3
    turned = tuned(rows.assign(held_out_score=-rows["held_out_score"]))
    assert set(turned["learning_rates"]) == {0.2}


def test_means_and_paired_differences_by_hand() -> None:
    rows = pd.DataFrame(
        [
            {
                "set": "a",
                "selection": "last",
                "learning_rates": 0.1,
                "method": method,
                "seed": seed,
                "accuracy": value,
                "log_loss": 0.5,
                "seconds": 1.0,
            }
            for method, values in {
                "GeoCrowdNet(F)": (0.8, 0.9, 0.7),
                "Max-MIG": (0.82, 0.91, 0.73),
                "true labels": (1.0, 1.0, 1.0),
            }.items()
            for seed, value in enumerate(values)
        ]
    )
    made = summary(rows).set_index("method")
    assert made.loc["GeoCrowdNet(F)", "accuracy"] == pytest.approx(80)
    assert made.loc["GeoCrowdNet(F)", "standard_error"] == pytest.approx(10 / math.sqrt(3))
    (found,) = compared(rows).to_dict("records")
    assert (found["ours"], found["baseline"]) == ("GeoCrowdNet(F)", "Max-MIG")
    assert found["difference"] == pytest.approx(-2) and found["standard_error"] == pytest.approx(
        1 / math.sqrt(3)
    )
    assert found["no_worse"] is False


def test_published_numbers_have_a_source_and_a_rule() -> None:
    table = published()
    assert table["accuracy"].between(50, 100).all() and table[["source", "selection"]].notna().all().all()
    assert (
        table.set_index(["set", "method", "source"]).loc[
            ("labelme", "geocrowdnet-f", "authors' talk"), "accuracy"
        ]
        == 85.87
    )
    known = {str(options["method"]) for options in METHODS.values()} | {"gold"}
    assert set(table["method"]) <= known
    assert "85.9" in published_text() or "85.87" in published_text()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["reproduce", "crowds", *map(str, arguments)], catch_exceptions=False)


def test_the_command_prints_tables_and_names_files(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke(
        "--data",
        root,
        "--out",
        out,
        "--quick",
        "--seeds",
        1,
        "--methods",
        "majority vote; GeoCrowdNet(F), running",
    )
    assert result.exit_code == 0, result.output
    assert (
        "labelme" in result.output
        and "GeoCrowdNet(F), running" in result.output
        and "authors' talk, clean validation" in result.output
    )
    for name in ("results.csv", "asked.csv", "published.csv", "cells"):
        assert str(out / name) in result.output and (out / name).exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--methods", "magic"), "unknown: magic; choose from true labels;"),
        (("--sets", "imagenet"), "unknown: imagenet; choose from labelme"),
    ],
)
def test_unknown_names_are_told(root: Path, tmp_path: Path, options: tuple[str, str], words: str) -> None:
    result = invoke("--data", root, "--out", tmp_path / "out", *options)
    assert result.exit_code == 1 and words in result.output and not (tmp_path / "out").exists()


def test_without_a_data_folder_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROBCROWD_DATA", raising=False)
    result = invoke("--quick")
    assert result.exit_code == 1 and "PROBCROWD_DATA" in result.output

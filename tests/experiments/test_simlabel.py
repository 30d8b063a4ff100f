"""`probcrowd reproduce simlabel`: hidden labels, test items, selection, pairs and intervals, the command."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy.stats import ttest_1samp

from probcrowd import SimLabel
from probcrowd.commands.app import main
from probcrowd.experiments.harness import run_experiment
from probcrowd.experiments.simlabel import datasets as simlabel_sets
from probcrowd.experiments.simlabel import experiment as simlabel
from probcrowd.experiments.simlabel.datasets import GROUPS, Panel, hide_labels, read_panel, simulate_labels
from probcrowd.experiments.simlabel.experiment import (
    ARCHITECTURES,
    EXPERIMENT,
    METHODS,
    RIVALS,
    SimLabelOptions,
)
from probcrowd.experiments.simlabel.tables import MEASURES, gains, select, summarize
from probcrowd.experiments.tables import read_published
from probcrowd.metrics.agreement import as_matrix, coefficients, pair_tables

FEW = ("skip", "SimLabel", "uniform weights", "hierarchical prior")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Simulate labels for few items with few features, and a panel of five annotators with a gap."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(120, 5)))
    truth = np.asarray((features @ rng.normal(size=(5, 3))).to_numpy().argmax(1), np.int64)
    real = np.where(rng.random((120, 5)) < 0.8, truth[:, None], rng.integers(3, size=(120, 5)))
    real[0, 0] = -1

    def read(root: Path | None, name: str, seed: int) -> Panel:
        if name == "digits-groups":
            return simulate_labels(name, features, truth, seed)
        return Panel(name, features, real, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simlabel, "read_panel", read)
        patch.setattr(simlabel, "ARCHITECTURES", ("madl", "padl"))  # the fast ones
        yield


def run(out: Path, **options: Any) -> pd.DataFrame:
    small = {
        "panels": ("digits-groups",),
        "methods": FEW,
        "rates": (0.0, 0.4),
        "removals": ("random",),
        "base": 0.5,
    }
    small |= {"seeds": 2, "epochs": 3, "batch": 32, "learning_rate": 1e-2}
    return run_experiment(EXPERIMENT, SimLabelOptions(**{"out": out, **small, **options}), progress=False)[
        "results"
    ]


def read_all(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(path) for path in sorted((out / "cells").iterdir())], ignore_index=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, dict[int, list[np.ndarray]]]:
    """A finished run, its results, and the labels of every fit by seed."""
    out, labels = tmp_path_factory.mktemp("simlabel") / "out", dict[int, list[np.ndarray]]()
    original = SimLabel.fit

    def record(self: SimLabel, X: Any, annotations: Any, **options: Any) -> SimLabel:
        labels.setdefault(int(self.random_state), []).append(np.asarray(annotations))
        return original(self, X, annotations, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimLabel, "fit", record)
        return out, run(out), labels


def test_labels_are_hidden_at_random_or_in_blocks_of_annotators() -> None:
    everything = np.ones((2_000, 12), bool)
    everything[:, 0] = False
    for rate in (0.0, 0.2, 0.4):
        for removal in ("random", "blocks"):
            left = hide_labels(everything, 0.5, removal, rate, np.random.default_rng(0))
            assert not left[:, 0].any() and left.sum() == pytest.approx(
                0.5 * (1 - rate) * everything.sum(), rel=0.03
            )
            own = left[:, 1:].mean(0)
            if removal == "random":
                assert own == pytest.approx(np.full(11, 0.5 * (1 - rate)), abs=0.05)
            elif rate:
                lost = own < 0.1
                assert (
                    0 <= lost.sum() - math.floor(rate * 11 / 0.9) <= 1
                    and (own > 0.45).sum() >= 10 - lost.sum()
                )
    assert hide_labels(everything, 0.0, "random", 0.0, np.random.default_rng(0)).sum() == everything.sum()


def test_simulated_annotators_come_in_groups_with_one_who_permutes_classes_and_one_who_changes_sides() -> (
    None
):
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=20_000)
    panel = simulate_labels("some", pd.DataFrame(rng.normal(size=(20_000, 4))), truth, 3)
    item, annotator = np.nonzero(panel.labels >= 0)
    tables = pair_tables(item, annotator, panel.labels[item, annotator], num_annotators=12, num_labels=5)
    kappa = as_matrix(tables, coefficients(tables)[0], 12)
    group = np.array(GROUPS)
    same = (group[:, None] == group) & ~np.eye(10, dtype=bool)
    assert (
        panel.labels.shape == (20_000, 12)
        and kappa[:10, :10][same].min() > kappa[:10, :10][group[:, None] != group].max()
    )
    assert kappa[10, :10].max() < 0.2 and (panel.labels[:, 10] == truth).mean() < 0.1
    first, second = kappa[11, :10][group == 0].mean(), kappa[11, :10][group == 1].mean()
    assert first == pytest.approx(second, abs=0.1) and min(first, second) > kappa[11, :10][group == 2].mean()
    again, other = (simulate_labels("some", panel.features, truth, seed).labels for seed in (3, 4))
    assert (again == panel.labels).all() and (other != panel.labels).any()


def test_test_items_are_never_labelled_and_select_nothing(
    done: tuple[Path, pd.DataFrame, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before, _ = done
    assert len(before) == 2 * (2 * 4 + 1) and (before["seeds"] == 2).all()
    assert before["mean_accuracy"].between(0, 100).all()
    original = simlabel.read_panel

    def shifted(root: Path | None, name: str, seed: int) -> Panel:
        panel = original(root, name, seed)
        labels, test = panel.labels.copy(), panel.split(seed)[1]
        labels[test] = (labels[test] + 1) % 3
        return Panel(name, panel.features, labels, panel.truth)

    monkeypatch.setattr(simlabel, "read_panel", shifted)
    after = run(tmp_path / "two")
    pd.testing.assert_series_equal(before["setting"], after["setting"])
    one, two = read_all(out), read_all(tmp_path / "two")
    pd.testing.assert_frame_equal(one[["held_out_score", "epoch"]], two[["held_out_score", "epoch"]])
    assert (one["mean_accuracy"] != two["mean_accuracy"]).mean() > 0.9
    training, test = read_panel(None, "digits-groups", 0).split(1)
    assert not set(training) & set(test) and len(test) == round(0.3 * 1797)
    assert len(training) + len(test) == 1797


def test_all_methods_of_a_seed_see_the_same_labels(
    done: tuple[Path, Any, dict[int, list[np.ndarray]]],
) -> None:
    labels = done[2]
    assert set(labels) == {0, 1} and all(len(tables) == 2 * 2 * (2 * 3 + 1) for tables in labels.values())
    by_seed = [{table.tobytes() for table in tables} for tables in labels.values()]
    assert all(len(tables) == 2 for tables in by_seed)  # one for each rate
    assert not by_seed[0] & by_seed[1]


def test_more_panels_and_methods_are_added(done: tuple[Path, pd.DataFrame, Any], tmp_path: Path) -> None:
    out = Path(shutil.copytree(done[0], tmp_path / "out"))
    before = {path.name for path in (out / "cells").iterdir()}
    again = run(out, methods=("skip", "consensus"), panels=("digits-groups", "llmbar"), rates=(0.0,))
    added = {path.stem for path in (out / "cells").iterdir() if path.name not in before}
    names = {"llmbar": ("skip", "consensus"), "digits-groups": ("consensus",)}
    assert added == {
        f"{panel} none 0 {architecture} {method}"
        for panel, methods in names.items()
        for architecture in ("madl", "padl")
        for method in methods
    }
    assert len(again) == len(done[1]) + len(added) + 2  # and skipping with the same weight decay


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": ("none",)}, "unknown method 'none'"),
        ({"panels": ("x",)}, "unknown panel 'x'"),
        ({"removals": ("none",)}, "unknown removal 'none': choose one of random, blocks"),
        ({"rates": (1.0,)}, "below 1"),
        ({"base": -0.1}, "from 0"),
    ],
)
def test_invalid_options_are_reported(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_soft_labels_equal_skipping_without_missing_labels(tmp_path: Path) -> None:
    run(tmp_path, base=0.0, rates=(0.0,), seeds=1)
    cells = read_all(tmp_path)
    plain = cells.loc[(cells["method"] == "skip") & (cells["setting"] == "weight_decay=0.0001")].set_index(
        ["architecture", "seed"]
    )
    for method in ("SimLabel", "uniform weights"):
        for setting in ("kl_weight=0.1", "kl_weight=1.0"):
            other = cells.loc[(cells["method"] == method) & (cells["setting"] == setting)].set_index(
                ["architecture", "seed"]
            )
            pd.testing.assert_series_equal(
                other["mean_accuracy"], plain["mean_accuracy"].reindex(other.index), check_exact=True
            )
    assert (cells["imputed"] == 0).all() and plain["similarity_error"].between(0, 0.2).all()


def test_imputed_labels_are_scored_by_hidden_ones(tmp_path: Path) -> None:
    run(tmp_path, methods=("SimLabel + confidence",), rates=(0.0,), epochs=25, seeds=1)
    cells = read_all(tmp_path)
    some = cells.loc[cells["imputed"] > 0]
    assert (
        np.average(some["imputed_right"], weights=some["imputed"]) > 0.6
        and cells.loc[cells["imputed"] == 0, "imputed_right"].isna().all()
    )
    assert (some["similarity_drift"].abs() <= some["similarity_error"] + 1e-9).all()


def rows_of(
    method: str, accuracy: list[float], held: float = -1.0, setting: str = "a", architecture: str = "madl"
) -> list[dict[str, Any]]:
    common = {
        "panel": "p",
        "removal": "none",
        "rate": 0.0,
        "architecture": architecture,
        "method": method,
        "setting": setting,
    }
    measures = dict.fromkeys(MEASURES, 0.0)
    return [
        {**common, **measures, "seed": seed, "held_out_score": held, "mean_accuracy": one}
        for seed, one in enumerate(accuracy)
    ]


def test_settings_are_selected_by_held_out_labels_alone() -> None:
    rows = pd.DataFrame(rows_of("skip", [0.9, 0.9], -2.0, "a") + rows_of("skip", [0.1, 0.2], -1.0, "b"))
    assert select(rows)["mean_accuracy"].tolist() == [0.1, 0.2]
    alike = select(
        pd.DataFrame(
            rows_of("skip", [0.3], -2.0, "weight_decay=0.0001")
            + rows_of("skip", [0.1], -1.0, "weight_decay=0.01")
        )
    )
    assert alike.set_index("method")["mean_accuracy"].to_dict() == {
        "skip": 0.1,
        "skip, same weight decay": 0.3,
    }
    row = summarize(select(rows)).iloc[0]
    assert (
        row["mean_accuracy"] == pytest.approx(15)
        and row["standard_error"] == pytest.approx(5)
        and row["setting"] == "b"
    )


def test_gains_are_paired_with_the_intervals_of_a_t_test() -> None:
    ours, skip, uniform, rival = (
        [0.5, 0.62, 0.7, 0.55],
        [0.45, 0.6, 0.62, 0.5],
        [0.52, 0.6, 0.7, 0.5],
        [0.4, 0.5, 0.8, 0.5],
    )
    rows = rows_of("SimLabel", ours) + rows_of("skip", skip) + rows_of("uniform weights", uniform)
    table = gains(pd.DataFrame(rows + rows_of("hierarchical prior", rival, architecture="pooled"))).set_index(
        ["method", "less"]
    )
    for less, other in (("skip", skip), ("uniform weights", uniform), ("hierarchical prior", rival)):
        difference = 100 * (np.array(ours) - other)
        interval = ttest_1samp(difference, 0).confidence_interval()
        row = table.loc[("SimLabel", less)]
        assert row["mean_accuracy"] == pytest.approx(difference.mean())
        assert (
            row["mean_accuracy_half_width"] == pytest.approx((interval.high - interval.low) / 2)
            and row["seeds"] == 4
        )
    assert ("uniform weights", "skip") in table.index and len(table) == 4


def test_published_numbers_are_those_of_the_paper() -> None:
    numbers = read_published("simlabel").set_index(["set", "rate", "architecture", "method"])["accuracy"]
    assert (
        set(numbers.index.get_level_values("architecture")) == set(ARCHITECTURES)
        and len(numbers) == 18 + 3 * 27
    )
    assert (
        numbers[("AMER2", 0.0, "padl", "skip")] == 81
        and numbers[("AMER", 0.4, "qumatl", "SimLabel + confidence")] == 74
    )
    assert numbers[("STREET", 0.4, "madl", "SimLabel")] == pytest.approx((45 + 46 + 38 + 41 + 39) / 5)
    assert set(numbers.index.get_level_values("method")) <= set(METHODS) and len(RIVALS) == 3


def test_the_command_runs_without_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simlabel, "read_panel", read_panel)
    monkeypatch.setattr(simlabel_sets, "GROUPS", (0, 0, 1))
    out = tmp_path / "out"
    arguments = ["--out", out, "--quick", "--seeds", 1, "--methods", "SimLabel; skip", "--rates", ".4"]

    def invoke(*more: object) -> Result:
        words = ["reproduce", "simlabel", *map(str, [*arguments, *more])]
        return CliRunner(env={"PROBCROWD_DATA": None}).invoke(main, words)

    ran = invoke()
    assert ran.exit_code == 0, ran.output
    for words in ("digits-groups, removed by random", "madl SimLabel - skip", "not public"):
        assert words in ran.output
    files = {"results.csv", "gains.csv", "published.csv", "cells", "config.json"}
    assert files <= {path.name for path in out.iterdir()}
    wrong = invoke("--panels", "llmbar")
    assert wrong.exit_code == 1
    assert "llmbar is read from the data folder: name it with --data or PROBCROWD_DATA" in wrong.output


@pytest.mark.skipif("PROBCROWD_DATA" not in os.environ, reason="needs the data folder")
@pytest.mark.parametrize(
    ("name", "shape", "classes", "there"),
    [
        ("dices350", (350, 24), 3, 1.0),
        ("llmbar", (419, 24), 2, 0.99),
        ("bluebirds", (108, 24), 2, 1.0),
        ("labelme-groups", (2688, 12), 8, 1.0),
    ],
)
def test_panels_of_the_data_folder_are_complete(
    name: str, shape: tuple[int, int], classes: int, there: float
) -> None:
    root = Path(os.environ["PROBCROWD_DATA"])
    panel = read_panel(root, name, 0)
    assert (
        panel.labels.shape == shape and panel.labels.max() == classes - 1 and len(panel.features) == shape[0]
    )
    assert (panel.labels >= 0).mean() >= there and panel.truth is not None and len(panel.truth) == shape[0]
    again = read_panel(root, name, 1)  # real labels are no draw of the seed
    assert np.array_equal(again.labels, panel.labels) == (not name.endswith("groups"))

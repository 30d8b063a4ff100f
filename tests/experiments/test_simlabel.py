"""`probcrowd reproduce simlabel`: what is hidden, who judges and who chooses, pairs and intervals, resuming, the command."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import ttest_1samp

from probcrowd import SimLabel
from probcrowd.commands.app import main
from probcrowd.experiments.simlabel import datasets as simlabel_sets
from probcrowd.experiments.simlabel import experiment as reproduction
from probcrowd.experiments.simlabel.datasets import GROUPS, Panel, generated, hidden, read_panel
from probcrowd.experiments.simlabel.experiment import ARCHITECTURES, METHODS, RIVALS, reproduce_simlabel
from probcrowd.experiments.simlabel.tables import MEASURES, gains, published, summary, tuned
from probcrowd.metrics.agreement import as_matrix, coefficients, pair_tables

FEW = ["skip", "SimLabel", "uniform weights", "hierarchical prior"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated labels for few items with few features, and for a real panel five annotators of whom one has missed an item."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(120, 5)))
    truth = np.asarray((features @ rng.normal(size=(5, 3))).to_numpy().argmax(1), np.int64)
    real = np.where(rng.random((120, 5)) < 0.8, truth[:, None], rng.integers(3, size=(120, 5)))
    real[0, 0] = -1

    def read(root: Path | None, name: str, seed: int) -> Panel:
        if name == "digits-groups":
            return generated(name, features, truth, seed)
        return Panel(name, features, real, None)

    monkeypatch.setattr(reproduction, "read_panel", read)
    monkeypatch.setattr(reproduction, "ARCHITECTURES", ("madl", "padl"))  # the fast ones


def run(out: Path, **options: Any) -> pd.DataFrame:
    arguments: dict[str, Any] = {
        "panels": ["digits-groups"],
        "methods": FEW,
        "rates": [0.0, 0.4],
        "removals": ["random"],
        "base": 0.5,
    }
    arguments |= {"seeds": 2, "epochs": 3, "batch": 32, "learning_rate": 1e-2, "progress": False}
    return reproduce_simlabel(None, out, **(arguments | options))


def test_so_much_is_hidden_and_in_blocks_by_annotators() -> None:
    everything = np.ones((2_000, 12), bool)
    everything[:, 0] = False
    for rate in (0.0, 0.2, 0.4):
        for removal in ("random", "blocks"):
            left = hidden(everything, 0.5, removal, rate, np.random.default_rng(0))
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
    assert hidden(everything, 0.0, "random", 0.0, np.random.default_rng(0)).sum() == everything.sum()


def test_generated_annotators_come_in_groups_with_one_who_inverts_and_one_who_changes_sides() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=20_000)
    panel = generated("some", pd.DataFrame(rng.normal(size=(20_000, 4))), truth, 3)
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
    again, other = (generated("some", panel.features, truth, seed).labels for seed in (3, 4))
    assert (again == panel.labels).all() and (other != panel.labels).any()


def test_items_judged_by_are_never_labelled_and_choose_nothing(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(tmp_path / "one")
    original = reproduction.read_panel

    def turned(root: Path | None, name: str, seed: int) -> Panel:
        panel = original(root, name, seed)
        labels = panel.labels.copy()
        judged = panel.split(seed)[1]
        labels[judged] = (labels[judged] + 1) % 3
        return Panel(name, panel.features, labels, panel.truth)

    monkeypatch.setattr(reproduction, "read_panel", turned)
    after = run(tmp_path / "two")
    pd.testing.assert_series_equal(before["setting"], after["setting"])
    cells = [
        pd.concat([pd.read_csv(path) for path in sorted((tmp_path / name / "cells").iterdir())])
        for name in ("one", "two")
    ]
    pd.testing.assert_series_equal(cells[0]["held_out_score"], cells[1]["held_out_score"])
    pd.testing.assert_series_equal(cells[0]["epoch"], cells[1]["epoch"])
    assert (cells[0]["mean_accuracy"] != cells[1]["mean_accuracy"]).mean() > 0.9
    learned, judged = read_panel(None, "digits-groups", 0).split(1)
    assert (
        not set(learned) & set(judged)
        and len(learned) + len(judged) == 1797
        and len(judged) == round(0.3 * 1797)
    )


def test_all_methods_of_a_seed_see_the_same_labels(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[np.ndarray]] = {}
    original = SimLabel.fit

    def noting(self: SimLabel, X: Any, annotations: Any, **options: Any) -> SimLabel:
        seen.setdefault(int(self.random_state), []).append(np.asarray(annotations))
        return original(self, X, annotations, **options)

    monkeypatch.setattr(SimLabel, "fit", noting)
    run(tmp_path, rates=[0.4])
    assert set(seen) == {0, 1} and all(len(tables) == 2 * (2 * 3 + 1) for tables in seen.values())
    assert all(
        (table == tables[0]).all() for tables in seen.values() for table in tables
    ) and not np.array_equal(seen[0][0], seen[1][0])


def test_every_cell_is_made_once_and_more_can_be_added(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = run(tmp_path)
    assert (
        len(results) == 2 * (2 * 4 + 1)
        and (results["seeds"] == 2).all()
        and results["mean_accuracy"].between(0, 100).all()
    )
    made = []
    original = reproduction._scored
    monkeypatch.setattr(reproduction, "_scored", lambda *given: made.append(given[2:7]) or original(*given))
    again = run(tmp_path, methods=[*FEW, "consensus"], panels=["digits-groups", "llmbar"], rates=[0.0])
    assert len(made) == 2 * (2 + 2 * 4 + 1) and {
        given[4] for given in made if given[0] == "digits-groups"
    } == {"consensus"}
    assert len(again) == len(results) + 2 + 2 * 5 + 1  # those that were there count
    with pytest.raises(ValueError, match="other settings"):
        run(tmp_path, epochs=4)
    for wrong, words in (
        ({"methods": ["none"]}, "unknown: none"),
        ({"panels": ["x"]}, "unknown: x"),
        ({"rates": [1.0]}, "below 1"),
    ):
        with pytest.raises(ValueError, match=words):
            run(tmp_path, **wrong)


def test_without_missing_labels_soft_labels_are_skipping(small: None, tmp_path: Path) -> None:
    run(tmp_path, base=0.0, rates=[0.0])
    cells = pd.concat([pd.read_csv(path) for path in (tmp_path / "cells").iterdir()])
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


def test_what_was_imputed_is_held_against_what_was_hidden(small: None, tmp_path: Path) -> None:
    run(tmp_path, methods=["SimLabel + confidence"], rates=[0.0], epochs=25)
    cells = pd.concat([pd.read_csv(path) for path in (tmp_path / "cells").iterdir()])
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


def test_settings_are_chosen_by_held_out_labels_alone() -> None:
    rows = pd.DataFrame(rows_of("skip", [0.9, 0.9], -2.0, "a") + rows_of("skip", [0.1, 0.2], -1.0, "b"))
    assert tuned(rows)["mean_accuracy"].tolist() == [0.1, 0.2]
    alike = tuned(
        pd.DataFrame(
            rows_of("skip", [0.3], -2.0, "weight_decay=0.0001")
            + rows_of("skip", [0.1], -1.0, "weight_decay=0.01")
        )
    )
    assert alike.set_index("method")["mean_accuracy"].to_dict() == {
        "skip": 0.1,
        "skip, same weight decay": 0.3,
    }
    found = summary(tuned(rows)).iloc[0]
    assert (
        found["mean_accuracy"] == pytest.approx(15)
        and found["standard_error"] == pytest.approx(5)
        and found["setting"] == "b"
    )


def test_gains_are_paired_with_the_intervals_of_a_t_test() -> None:
    ours, skip, uniform, rival = (
        [0.5, 0.62, 0.7, 0.55],
        [0.45, 0.6, 0.62, 0.5],
        [0.52, 0.6, 0.7, 0.5],
        [0.4, 0.5, 0.8, 0.5],
    )
    rows = rows_of("SimLabel", ours) + rows_of("skip", skip) + rows_of("uniform weights", uniform)
    found = gains(pd.DataFrame(rows + rows_of("hierarchical prior", rival, architecture="pooled"))).set_index(
        ["method", "less"]
    )
    for less, other in (("skip", skip), ("uniform weights", uniform), ("hierarchical prior", rival)):
        difference = 100 * (np.array(ours) - other)
        interval = ttest_1samp(difference, 0).confidence_interval()
        row = found.loc[("SimLabel", less)]
        assert row["mean_accuracy"] == pytest.approx(difference.mean())
        assert (
            row["mean_accuracy_half_width"] == pytest.approx((interval.high - interval.low) / 2)
            and row["seeds"] == 4
        )
    assert ("uniform weights", "skip") in found.index and len(found) == 4


def test_published_numbers_are_those_of_the_paper() -> None:
    found = published().set_index(["set", "rate", "architecture", "method"])["accuracy"]
    assert (
        set(found.index.get_level_values("architecture")) == set(ARCHITECTURES) and len(found) == 18 + 3 * 27
    )
    assert (
        found[("AMER2", 0.0, "padl", "skip")] == 81
        and found[("AMER", 0.4, "qumatl", "SimLabel + confidence")] == 74
    )
    assert found[("STREET", 0.4, "madl", "SimLabel")] == pytest.approx((45 + 46 + 38 + 41 + 39) / 5)
    assert set(found.index.get_level_values("method")) <= set(METHODS) and len(RIVALS) == 3


def test_the_command_runs_without_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simlabel_sets, "GROUPS", (0, 0, 1))
    torch.set_num_threads(1)
    arguments = [
        "--out",
        str(tmp_path / "out"),
        "--quick",
        "--seeds",
        "1",
        "--methods",
        "SimLabel; skip",
        "--rates",
        ".4",
    ]
    ran = CliRunner().invoke(main, ["reproduce", "simlabel", *arguments], env={"PROBCROWD_DATA": None})
    assert ran.exit_code == 0, ran.output
    assert (
        "digits-groups, removed by random" in ran.output
        and "madl SimLabel - skip" in ran.output
        and "not public" in ran.output
    )
    assert {"results.csv", "gains.csv", "published.csv", "cells", "config.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    wrong = CliRunner().invoke(
        main, ["reproduce", "simlabel", *arguments, "--panels", "llmbar"], env={"PROBCROWD_DATA": None}
    )
    assert (
        wrong.exit_code == 1
        and "llmbar is in a data folder: name it with --data or PROBCROWD_DATA" in wrong.output
    )


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

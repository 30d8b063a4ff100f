"""`probcrowd reproduce lia`: the grid of the LIA paper on small data of the same form, checked by hand."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from probcrowd.commands.app import main
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.estimators.aggregation.snorkel import MISSING
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.multi_label import MultiLabelLIA
from probcrowd.experiments import harness
from probcrowd.experiments.harness import run_experiment
from probcrowd.experiments.lia import experiment as lia
from probcrowd.experiments.lia.datasets import REDUNDANCIES, read_set
from probcrowd.experiments.lia.experiment import (
    EXPERIMENT,
    JOINTLY,
    LIAOptions,
    compare,
    published,
    published_table,
    summarize,
)
from probcrowd.experiments.lia.methods import METHODS, Method
from probcrowd.metrics.scores import hits

ITEMS = 24
FEW = ["majority vote", "Dawid-Skene (MAP)", "LIA joint"]


def write_set(root: Path, name: str, *, annotators: int, ids: str = "", seed: int = 0) -> pd.Series:
    """Write a set in the format of the data folder: two separable classes, annotators of all skills.

    Returns its classes by task.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(np.arange(100, 100 + ITEMS))
    tasks = pd.Index([f"{ids}{number}" for number in numbers] if ids else numbers)
    truth = rng.integers(2, size=ITEMS)
    right = rng.random((ITEMS, annotators)) < np.linspace(0.55, 0.9, annotators)
    labels = np.where(right, truth[:, None], 1 - truth[:, None])
    folder = root / name
    folder.mkdir(parents=True)
    i, j = (axis.ravel() for axis in np.indices(labels.shape))
    frame = pd.DataFrame({"task": tasks[i], "worker": [f"w{each}" for each in j], "label": labels[i, j]})
    frame.sample(frac=1, random_state=1).to_parquet(folder / "annotations.parquet")
    gold = pd.DataFrame({"task": tasks, "label": truth}).sample(frac=1, random_state=2)
    if name.startswith("medrel"):
        expert = np.where(gold["label"] == 1, 1.0, -1.0)
        expert[:3] = np.nan
        gold = gold.assign(expert=expert, baseline=np.tile([1, -1], ITEMS // 2))
    gold.to_parquet(folder / "gold.parquet")
    pd.DataFrame({"task": tasks}).to_csv(folder / "tasks.csv", index=False)
    np.save(folder / "features.npy", (rng.normal(size=(ITEMS, 4)) + 1.5 * truth[:, None]).astype(np.float16))
    return pd.Series(truth, tasks)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lia") / "data"
    write_set(root, "bluebirds", annotators=39)
    for name in ("medrel_cause", "medrel_treat"):
        write_set(root, name, annotators=12, ids="s", seed=len(name) + ord(name[-1]))
    for name in ("annotations.parquet", "gold.parquet"):  # the same sentences in both
        frame = pd.read_parquet(root / "medrel_treat" / name)
        old, new = (
            pd.read_csv(root / each / "tasks.csv")["task"] for each in ("medrel_treat", "medrel_cause")
        )
        frame.assign(task=frame["task"].map(dict(zip(old, new, strict=True)))).to_parquet(
            root / "medrel_treat" / name
        )
    shutil.copy(root / "medrel_cause" / "tasks.csv", root / "medrel_treat" / "tasks.csv")
    return root


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a run of few methods, and the result of the command."""
    out = tmp_path_factory.mktemp("done") / "lia"
    options = ["--sets", "bluebirds", "--methods", ", ".join(FEW), "--seeds", "2", "--out", str(out)]
    result = CliRunner(env={"PROBCROWD_DATA": str(data)}).invoke(main, ["reproduce", "lia", *options])
    return out, result


def run(data: Path, out: Path, **options: Any) -> pd.DataFrame:
    chosen = LIAOptions(**{"data": data, "out": out, "sets": ("bluebirds",), "seeds": 2, **options})
    return run_experiment(EXPERIMENT, chosen, progress=False)["results"]


def invoke(*arguments: object) -> Result:
    return CliRunner(env={"PROBCROWD_DATA": None}).invoke(main, [str(argument) for argument in arguments])


def test_a_run_writes_every_cell_and_prints_its_tables(done: tuple[Path, Result]) -> None:
    out, result = done
    assert result.exit_code == 0, result.output
    names = {f"bluebirds {redundancy} {method}.csv" for redundancy in (2, 5, 10, 20, 39) for method in FEW}
    assert {path.name for path in (out / "cells").iterdir()} == names
    results = pd.read_csv(out / "results.csv")
    assert len(results) == 5 * (len(FEW) + 1) and set(results["seeds"]) == {
        2
    }  # LIA answers twice: labels and h(x)
    lia = results.query("method == 'LIA joint' and answer == 'labels' and redundancy == 39").iloc[0]
    assert f"{lia['accuracy']:.1f}±{lia['standard_error']:.1f} (93.0)" in result.stdout
    comparison = pd.read_csv(out / "comparisons.csv")
    assert list(comparison["redundancy"]) == [2, 5, 10, 20, 39]
    assert comparison.to_string(index=False, float_format="{:.1f}".format) in result.stdout
    assert all(f"{name}: {reason}" in result.stdout for name, reason in MISSING.items())
    lines = result.stdout.splitlines()
    start = lines.index("bluebirds, truth: gold")
    shown = [line.split("  ")[0] for line in lines[start + 1 : start + 6]]
    assert shown == ["redundancy", *FEW, "LIA joint · h(x)"]
    assert result.stdout.split("\n")[-4:] == [
        *(str(out / name) for name in ("results.csv", "comparisons.csv", "cells")),
        "",
    ]
    assert not result.stderr


def test_a_cell_has_the_scores_of_the_estimators_on_the_drawn_labels(
    done: tuple[Path, Result], data: Path
) -> None:
    torch.set_num_threads(1)
    given = read_set(data, "bluebirds")
    gold = given.truths["gold"].sort_index()
    for method, redundancy, seed in (("Dawid-Skene (MAP)", 5, 1), ("LIA joint", 10, 0), ("LIA joint", 2, 1)):
        drawn = given.draw(redundancy, seed)
        if method == "LIA joint":
            fitted: Any = LIA(random_state=seed, dependence="ignore").fit(drawn, features=given.features)
            answers = {"labels": fitted.probabilities_, "h(x)": fitted.truth_probabilities_}
        else:
            answers = {
                "labels": DawidSkene(confidence="plug-in", dependence="ignore").fit(drawn).probabilities_
            }
        rows = (
            pd.read_csv(done[0] / "cells" / f"bluebirds {redundancy} {method}.csv")
            .query(f"seed == {seed}")
            .set_index("answer")
        )
        assert list(rows.index) == list(answers)
        for answer, probabilities in answers.items():
            p, codes = probabilities.loc[gold.index].to_numpy(), gold.to_numpy()
            right = hits(p, codes)
            row = rows.loc[answer]
            assert row["items"] == ITEMS and row["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
            assert row["log_loss"] == pytest.approx(-np.log(p[np.arange(ITEMS), codes]).mean(), abs=1e-9)
            assert row["brier"] == pytest.approx(((p - np.eye(2)[codes]) ** 2).sum(1).mean(), abs=1e-9)
            assert row["marks"] == "[" + "".join({0: "0", 0.5: "-", 1: "1"}[value] for value in right) + "]"


def test_a_method_sees_drawn_labels_features_and_the_seed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = read_set(data, "bluebirds")
    seen: list[tuple[pd.DataFrame, pd.DataFrame, int]] = []

    def fit(self: Method, labels: pd.DataFrame, features: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
        seen.append((labels, features, seed))
        return {"labels": pd.DataFrame(0.5, features.index, [0, 1])}

    monkeypatch.setattr(Method, "fit", fit)
    results = run(data, tmp_path / "lia", methods=("one coin",))
    assert set(results["accuracy"]) == {50.0}  # all tie
    wanted = [(redundancy, seed) for redundancy in REDUNDANCIES["bluebirds"] for seed in (0, 1)]
    for (labels, features, used), (redundancy, seed) in zip(seen, wanted, strict=True):
        pd.testing.assert_frame_equal(labels, given.draw(redundancy, seed))
        assert features.equals(given.features) and used == seed


def test_results_are_means_over_seeds(done: tuple[Path, Result]) -> None:
    results = pd.read_csv(done[0] / "results.csv").set_index(["method", "answer", "redundancy"])
    rows = pd.read_csv(done[0] / "cells" / "bluebirds 2 majority vote.csv")
    a, b = rows["accuracy"]
    row = results.loc[("majority vote", "labels", 2)]
    assert a != b  # another seed, other labels
    assert row["accuracy"] == pytest.approx(50 * (a + b)) and row["standard_error"] == pytest.approx(
        50 * abs(a - b)
    )
    assert (row["published"], row["published_error"]) == (63.9, 0.5)
    assert row["log_loss"] == pytest.approx(rows["log_loss"].mean()) and row["brier"] == pytest.approx(
        rows["brier"].mean()
    )


def test_a_later_run_adds_methods_to_finished_ones(
    done: tuple[Path, Result], data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(done[0], tmp_path / "again"))
    (out / "cells" / "bluebirds 2 oracle.csv").write_text("seed\n0\n")  # a method that no longer exists
    results = run(data, out, methods=("one coin",))
    assert list(results["method"].unique()) == ["majority vote", "Dawid-Skene (MAP)", "one coin", "LIA joint"]
    assert len(pd.read_csv(out / "results.csv")) == len(results) == 5 * 5
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "comparisons.csv"), pd.read_csv(done[0] / "comparisons.csv")
    )


def test_labels_are_drawn_at_random_up_to_a_number_per_item(data: Path) -> None:
    given = read_set(data, "bluebirds")
    assert len(given.labels) == ITEMS * 39
    for redundancy in (2, 5, 39):
        drawn = [given.draw(redundancy, seed) for seed in (0, 1)]
        for labels in drawn:
            assert (labels.groupby("item").size() == redundancy).all() and labels["item"].nunique() == ITEMS
            assert not labels.duplicated(["item", "annotator"]).any()
            pd.testing.assert_frame_equal(labels, given.labels.loc[labels.index])
        assert drawn[0].index.equals(drawn[1].index) == (redundancy == 39)
        pd.testing.assert_frame_equal(drawn[0], given.draw(redundancy, 0))
    pd.testing.assert_frame_equal(given.draw(39, 0), given.labels)
    twos = pd.concat([given.draw(2, seed) for seed in range(200)])
    share = twos["annotator"].value_counts(
        normalize=True
    )  # 9,600 draws, 246 of each on average, standard error 16
    farthest = float((share - 1 / 39).abs().max())
    assert len(share) == 39 and farthest < 5 * 16 / 9600


def test_features_belong_to_their_tasks(data: Path) -> None:
    given = read_set(data, "bluebirds")
    tasks = pd.read_csv(data / "bluebirds" / "tasks.csv")["task"]
    assert list(given.features.index) == list(tasks) and set(given.labels["item"]) == set(tasks)
    np.testing.assert_array_equal(
        given.features, np.load(data / "bluebirds" / "features.npy").astype(np.float64)
    )
    gold = pd.read_parquet(data / "bluebirds" / "gold.parquet").set_index("task")["label"]
    assert given.truths["gold"].to_dict() == gold.to_dict()


def test_word_pairs_are_similar_from_a_threshold(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "bluebirds", tmp_path / "snow_wordsim"))
    tasks = pd.read_csv(folder / "tasks.csv")["task"][:3]
    pd.DataFrame({"task": tasks, "worker": "w", "label": [4.9, 5.0, 10.0]}).to_parquet(
        folder / "annotations.parquet"
    )
    pd.DataFrame({"task": tasks, "label": [1.99, 2.0, 3.9]}).to_parquet(folder / "gold.parquet")
    given = read_set(tmp_path, "snow_wordsim")
    assert list(given.labels["label"]) == [0, 1, 1] and list(given.truths["gold"]) == [0, 1, 1]


def test_the_medical_sets_have_two_truths(data: Path) -> None:
    for name in ("medrel_cause", "medrel_treat"):
        gold = pd.read_parquet(data / name / "gold.parquet").set_index("task")
        truths = read_set(data, name).truths
        assert list(truths) == ["expert", "as the authors' code"]
        for task, row in gold.iterrows():
            if math.isnan(row["expert"]):
                assert not any(task in truth.index for truth in truths.values())
            else:
                assert truths["expert"][task] == (row["expert"] == 1)
                assert truths["as the authors' code"][task] == (row["expert"] == row["baseline"])
        assert len(truths["expert"]) == ITEMS - 3 and not truths["expert"].equals(
            truths["as the authors' code"]
        )


def test_the_medical_sets_are_answered_jointly(data: Path, tmp_path: Path) -> None:
    results = run(data, tmp_path / "lia", sets=("medrel_treat", "medrel_cause"), methods=(JOINTLY,), seeds=1)
    assert {path.name for path in (tmp_path / "lia" / "cells").iterdir()} == {
        f"medrel {r} LIA-ML joint.csv" for r in (2, 5, 10)
    }
    assert len(results) == 2 * 2 * 3 and not (tmp_path / "lia" / "comparisons.csv").exists()
    table = results.set_index(["set", "truth", "redundancy"])
    assert table.loc[("medrel_treat", "as the authors' code", 5), "published"] == 46.1
    assert math.isnan(table.loc[("medrel_treat", "expert", 5), "published"])
    torch.set_num_threads(1)
    sets = {name: read_set(data, name) for name in ("medrel_cause", "medrel_treat")}
    labels = pd.concat([given.draw(5, 0).assign(question=name) for name, given in sets.items()])
    fitted = MultiLabelLIA(random_state=0).fit(labels, features=sets["medrel_cause"].features)
    probabilities = fitted.probabilities_.xs("medrel_treat", level="question")
    for truth, gold in sets["medrel_treat"].truths.items():
        p, codes = probabilities.loc[gold.index].to_numpy(), gold.to_numpy()
        row = table.loc[("medrel_treat", truth, 5)]
        assert row["accuracy"] == pytest.approx(100 * hits(p, codes).mean())
        assert row["brier"] == pytest.approx(((p - np.eye(2)[codes]) ** 2).sum(1).mean(), rel=1e-9)


def test_the_papers_numbers() -> None:
    table = published_table()
    assert set(table.index) == {
        (name, redundancy) for name, several in REDUNDANCIES.items() for redundancy in several
    }
    assert len(table) == 17 and {method.published for method in METHODS.values()} - {None} <= set(
        table.columns
    )
    for name, redundancy in table.index:
        assert 0 < published(name, "gold", redundancy, "LIA joint")[0] < 100
        assert name.startswith("medrel") == (not math.isnan(published(name, "gold", redundancy, JOINTLY)[0]))
    assert published("bluebirds", "gold", 39, "LIA joint") == (93.0, 0.6)
    assert published("bluebirds", "gold", 39, "LIA joint, EM only") == (79.1, 0.2)
    assert published("snow_rte", "gold", 10, "LIA as coded", "labels before equation 9") == (69.6, 0.1)
    assert published("snow_rte", "gold", 5, "MMCE*-E") == (88.9, 0.2) and published(
        "snow_wordsim", "gold", 2, "majority vote"
    ) == (82.8, 0.8)
    value, error = published("bluebirds", "gold", 39, "MMCE*-E")  # without an error in the paper
    assert value == 78.8 and math.isnan(error)
    assert published("medrel_cause", "as the authors' code", 5, JOINTLY) == (36.4, 0.2)
    nothing = [
        ("medrel_treat", "as the authors' code", 10, "Snorkel 0.10", "labels"),  # MeTaL, missing in the paper
        ("medrel_treat", "expert", 10, "LIA joint", "labels"),
        ("bluebirds", "gold", 39, "LIA joint", "h(x)"),
        ("bluebirds", "gold", 39, "one coin", "labels"),
    ]
    assert all(math.isnan(number) for each in nothing for number in published(*each))
    assert published("medrel_treat", "as the authors' code", 5, "Snorkel 0.10") == (21.0, 0.3)


def rows_of(name: str, redundancy: int, method: str, marks: list[str], truth: str = "gold") -> pd.DataFrame:
    """Rows of a cell: for every seed the marks of the items."""
    accuracy = [np.mean(["0-1".index(mark) / 2 for mark in text]) for text in marks]
    shared = {
        "set": name,
        "truth": truth,
        "redundancy": redundancy,
        "method": method,
        "answer": "labels",
        "brier": 0.1,
        "log_loss": 0.2,
    }
    frame = pd.DataFrame(
        {
            "seed": range(len(marks)),
            "accuracy": accuracy,
            "marks": [f"[{text}]" for text in marks],
            "seconds": 1.0,
        }
    )
    return frame.assign(**shared)


def test_the_comparison_with_dawid_skene_where_that_is_the_better() -> None:
    ours, theirs = ["1111", "11-1", "1110"], ["1110", "1110", "1100"]
    parts = [
        rows_of("medrel_treat", 2, "LIA joint", ours, "expert"),
        rows_of("medrel_treat", 2, "Dawid-Skene (MAP)", theirs, "expert"),
    ]
    code = [
        part.assign(truth="as the authors' code", accuracy=0.0) for part in parts
    ]  # not the truth compared on
    network = rows_of("medrel_treat", 2, "LIA joint", ["0000"] * 3, "expert").assign(answer="h(x)")
    row = compare(pd.concat([*code, *parts, network])).iloc[0]
    gaps = [25.0, 12.5, 25.0]
    assert math.isnan(row["published"]) and row["difference"] == pytest.approx(np.mean(gaps))
    assert row["ours"] == pytest.approx(100 * (1 + 0.875 + 0.75) / 3) and row["dawid_skene"] == pytest.approx(
        100 * (0.75 + 0.75 + 0.5) / 3
    )
    assert row["over_seeds"] == pytest.approx(np.std(gaps, ddof=1) / math.sqrt(3))
    by_item = 100 * np.array([0, 0, (3 - 0.5) / 3 - 2 / 3, 2 / 3 - 0])
    assert row["over_items"] == pytest.approx(np.std(by_item, ddof=1) / 2)
    assert row["reached"] and row["reached_over_items"]


@pytest.mark.parametrize(
    ("ours", "reached", "over_items"),
    [(["1111111110"] * 2, False, True), (["1111111111"] * 2, True, True), (["1111100000"] * 2, False, False)],
)
def test_the_comparison_with_the_paper_where_that_is_the_better(
    ours: list[str], reached: bool, over_items: bool
) -> None:
    ours = [ours[0], ours[1][::-1]]  # equally right, about other items
    parts = [
        rows_of("bluebirds", 39, "LIA joint", ours),
        rows_of("bluebirds", 39, "Dawid-Skene (MAP)", ["1111100000"] * 2),
    ]
    row = compare(pd.concat(parts)).iloc[0]
    share = np.mean([mark == "1" for mark in ours[0]])
    assert row["published"] == 93.0 and row["difference"] == pytest.approx(100 * share - 93)
    assert row["over_seeds"] == pytest.approx(0.6)  # ours do not vary: the paper's error alone
    right = np.mean([[mark == "1" for mark in text] for text in ours], axis=0)
    assert row["over_items"] == pytest.approx(100 * np.std(right, ddof=1) / math.sqrt(10))
    assert (row["reached"], row["reached_over_items"]) == (reached, over_items)


def test_both_standard_errors_count_against_the_paper() -> None:
    parts = [
        rows_of("bluebirds", 39, "LIA joint", ["1111", "1100"]),
        rows_of("bluebirds", 39, "Dawid-Skene (MAP)", ["1100"] * 2),
    ]
    row = compare(pd.concat(parts)).iloc[0]
    assert row["difference"] == pytest.approx(75 - 93) and row["over_seeds"] == pytest.approx(
        math.hypot(25, 0.6)
    )
    assert row["reached"]  # 18 is less than 25
    assert not len(compare(parts[0]))  # nothing to compare with
    assert summarize(parts[0].iloc[:1]).iloc[0]["standard_error"] == 0  # unknown from one seed


def test_invalid_options_are_reported_in_one_line(data: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "lia"]
    faults = [
        (
            ["--sets", "bluebirds,ducks"],
            "unknown set 'ducks': choose one of bluebirds, snow_wordsim, snow_rte, medrel_cause",
        ),
        (
            ["--sets", "bluebirds", "--methods", "MMCE,oracle"],
            "unknown method 'oracle': choose one of majority vote; Dawid-Skene (MAP)",
        ),
        (
            ["--sets", "bluebirds,medrel_treat", "--methods", JOINTLY],
            "LIA-ML joint needs the sets medrel_cause and medrel_treat",
        ),
        (
            ["--sets", "snow_rte"],
            "snow_rte holds no data set with features; name the data folder with --data or PROBCROWD_DATA",
        ),
    ]
    for options, words in faults:
        result = invoke("reproduce", "lia", "--data", data, *out, *options)
        assert result.exit_code == 1 and words in result.output and len(result.output.splitlines()) == 1, (
            result.output
        )
    result = invoke("reproduce", "lia", *out)
    assert result.exit_code == 1
    assert "bluebirds is read from the data folder: name it with --data or PROBCROWD_DATA" in result.output
    assert not (tmp_path / "lia").exists()


def test_a_missing_package_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snorkel.labeling.model", None)
    options = ["--data", data, "--sets", "bluebirds", "--seeds", 1, "--out", tmp_path / "lia"]
    result = invoke("reproduce", "lia", *options, "--methods", "Snorkel 0.10")
    assert (
        result.exit_code == 1
        and 'pip install ".[label-models]"' in result.output
        and len(result.output.splitlines()) == 1
    )


def test_the_methods_of_a_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lia, "find_spec", lambda name: None)
    medical = ("medrel_cause", "medrel_treat")
    slow = {"LIA as written", "LIA as coded", "LIA-E as written", "LIA joint, held-out spreads"}
    fast = set(METHODS) - slow - {"Snorkel 0.10"}  # whose package is absent
    for sets, methods, expected in (
        (("bluebirds",), (), fast),
        (("bluebirds",), ("all",), fast | slow),
        (medical, (), fast | {JOINTLY}),
        (medical, ("all",), fast | slow | {JOINTLY}),
        (medical[:1], (), fast),
    ):
        options = LIAOptions(data=data, out=tmp_path, sets=sets, methods=methods)
        (stage,) = EXPERIMENT.stages(options)
        assert {name.split(" ", 2)[2].replace("_star", "*") for name in stage.cells} == expected
        assert not any(set(name) & set('*/\\:?"<>|') for name in stage.cells)  # they are file names
        number = sum(len(REDUNDANCIES[name]) for name in sets) * len(expected - {JOINTLY})
        assert len(stage.cells) == number + 3 * (JOINTLY in expected)


def test_options_of_the_command(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(experiment: Any, options: LIAOptions, *, jobs: int, progress: bool) -> None:
        seen.append((dict(options), jobs, progress))
        raise ValueError("enough")

    monkeypatch.setattr(harness, "run_experiment", record)
    own = (
        "--quick",
        "--seeds",
        5,
        "--jobs",
        2,
        "--methods",
        "MMCE;LIA joint, EM only",
        "--sets",
        "snow_rte, bluebirds",
    )
    for options in ((), ("--quick",), (*own, "--out", tmp_path)):
        assert "enough" in invoke("reproduce", "lia", "--data", data, *options).output
    sets = {"sets": ("bluebirds", "snow_wordsim"), "seeds": 3}
    chosen = {"sets": ("snow_rte", "bluebirds"), "seeds": 5, "methods": ("MMCE", "LIA joint", "EM only")}
    usual = dict(LIAOptions(data=data, out=Path("outputs/lia")))
    assert seen == [
        (usual, 1, False),
        (usual | sets | {"out": Path("outputs/lia_quick")}, 1, False),
        (usual | chosen | {"out": tmp_path}, 2, False),
    ]

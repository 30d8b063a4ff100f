"""`probcrowd aggregate` and `probcrowd compare`: complete files or none, and helpful errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from probcrowd.commands.app import main
from probcrowd.data.annotations import Annotations
from probcrowd.estimators.aggregation.dawid_skene import DawidSkene
from probcrowd.estimators.aggregation.majority import MajorityVote
from probcrowd.estimators.catalogue import AGGREGATORS, NETWORKS, find_aggregator
from probcrowd.estimators.lia.lia import LIA
from probcrowd.estimators.lia.two_stage import TwoStage
from probcrowd.figures.aggregation import NAMED, annotator_map_figure
from probcrowd.metrics.scores import hits, log_losses
from probcrowd.runs import aggregate
from probcrowd.runs.aggregate import FILES, LIA_FILES, aggregate_labels, compare_aggregators, make_aggregator

CLASSES = np.array(["no", "yes"])


def crowd(items: int = 120, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Eight independent annotators, five labels an item, ids that a spreadsheet would run; and the truth."""
    rng = np.random.default_rng(seed)
    truth = pd.Series(CLASSES[rng.integers(2, size=items)], index=[f"q{number}" for number in range(items)])
    accuracy = {
        "=ann": 0.95,
        "bob": 0.9,
        "cem": 0.85,
        "dia": 0.8,
        "eli": 0.75,
        "fay": 0.7,
        "gus": 0.65,
        "hal": 0.5,
    }
    rows = []
    for item, is_a in truth.items():
        for name in rng.choice(list(accuracy), 5, replace=False):
            right = rng.random() < accuracy[name]
            rows.append((item, name, is_a if right else CLASSES[1 - list(CLASSES).index(is_a)]))
    return pd.DataFrame(rows, columns=["task", "worker", "label"]), truth


def seen_of(truth: pd.Series) -> pd.DataFrame:
    """Features of the items, in an order of their own, that tell something of their classes."""
    noise = np.random.default_rng(1).normal(size=(len(truth), 3))
    return pd.DataFrame(
        noise + 1.5 * (truth.to_numpy() == "yes")[:, None], truth.index, ["a", "b", "c"]
    ).sample(frac=1, random_state=0)


def skills_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Features of the annotators."""
    names = pd.Index(frame["worker"].unique()).sort_values()
    return pd.DataFrame({"years": np.arange(len(names)) / 4, "tests": np.cos(np.arange(len(names)))}, names)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    frame, truth = crowd()
    names = (
        "labels.csv",
        "labels.parquet",
        "renamed.csv",
        "gold.csv",
        "some.csv",
        "features.csv",
        "skills.csv",
    )
    paths = {name: tmp_path / name for name in names}
    frame.to_csv(paths["labels.csv"], index=False)
    frame.to_parquet(paths["labels.parquet"])
    frame.set_axis(["Q", "who", "given"], axis=1).to_csv(paths["renamed.csv"], index=False)
    gold = truth.rename_axis("task").rename("label").reset_index()
    gold.to_csv(paths["gold.csv"], index=False)
    gold.iloc[:20].to_csv(paths["some.csv"], index=False)
    seen_of(truth).rename_axis("item").to_csv(paths["features.csv"])
    skills_of(frame).rename_axis("worker").to_csv(paths["skills.csv"])
    return paths


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_files_hold_the_estimators_results(files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("aggregate", files["labels.csv"], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert result.stdout.split() == [str(tmp_path / "out" / name) for name in FILES]
    fitted = DawidSkene(dependence="ignore").fit(pd.read_csv(files["labels.csv"]))
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item")
    pd.testing.assert_series_equal(labels["label"], fitted.labels_, check_dtype=False)
    np.testing.assert_allclose(labels[["p_no", "p_yes"]], fitted.probabilities_, atol=1e-12)
    annotators = pd.read_csv(tmp_path / "out" / "annotators.csv", index_col="annotator")
    np.testing.assert_allclose(annotators["accuracy"], fitted.annotators_["accuracy"], atol=1e-12)
    assert "'=ann" in annotators.index and "=ann" not in annotators.index  # no spreadsheet runs it
    confusion = pd.read_csv(tmp_path / "out" / "confusion.csv")
    np.testing.assert_allclose(confusion[["says_no", "says_yes"]], fitted.confusion_, atol=1e-12)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["items"], summary["annotators"], summary["annotations"]) == (120, 8, 600)
    assert (
        summary["log_posterior"] == pytest.approx(fitted.log_posterior_[-1]) and summary["converged"] is True
    )
    assert summary["dependence"]["near_duplicates"] == [] and "scores_without_gold" not in summary


@pytest.mark.parametrize("name", ["majority-vote", "mace", "glad"])
def test_models_by_name(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke(
        "aggregate", files["labels.parquet"], "--out", tmp_path / name, "--model", name.replace("-", "_")
    )
    assert result.exit_code == 0, result.output
    labels = pd.read_csv(tmp_path / name / "labels.csv", index_col="item")["label"]
    assert (labels == crowd()[1].loc[labels.index]).mean() > 0.8


def test_named_columns_and_formats_agree(files: dict[str, Path], tmp_path: Path) -> None:
    invoke("aggregate", files["labels.parquet"], "--out", tmp_path / "a")
    result = invoke(
        "aggregate",
        files["renamed.csv"],
        "--columns",
        "item=Q, annotator=who,label=given",
        "--out",
        tmp_path / "b",
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "labels.csv").read_bytes() == (tmp_path / "b" / "labels.csv").read_bytes()


def test_gold_is_certain_and_scores_are_of_a_fit_that_did_not_see_it(
    files: dict[str, Path], tmp_path: Path
) -> None:
    result = invoke("aggregate", files["labels.csv"], "--gold", files["some.csv"], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    frame, truth = crowd()
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item")
    known = truth.iloc[:20]
    assert (labels.loc[known.index, "label"] == known).all() and (
        labels.loc[known.index, "probability"] == 1
    ).all()
    assert labels["known"].sum() == 20
    blind = DawidSkene(dependence="ignore").fit(frame)
    scored = json.loads((tmp_path / "out" / "summary.json").read_text())["scores_without_gold"]
    assert (
        scored["items"] == 20
        and scored["accuracy"] == pytest.approx(blind.score(None, known))
        and scored["accuracy"] < 1
    )


def test_files_of_an_earlier_run_stay_until_all_new_ones_are_complete(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    invoke("aggregate", files["labels.csv"], "--out", out)
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fails(*arguments: Any) -> None:
        raise OSError(28, "No space left on device", "labels.csv")

    monkeypatch.setattr(aggregate, "annotators_figure", fails)
    result = invoke("aggregate", files["labels.csv"], "--out", out, "--model", "majority-vote")
    assert result.exit_code == 1 and "No space left" in result.output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    monkeypatch.undo()
    assert invoke("aggregate", files["labels.csv"], "--out", out, "--model", "majority-vote").exit_code == 0
    assert (out / "labels.csv").read_bytes() != before["labels.csv"] and (
        out / "notes.txt"
    ).read_text() == "mine"


def test_abstentions(files: dict[str, Path], tmp_path: Path) -> None:
    frame, _ = crowd()
    frame.loc[::7, "label"] = "unsure"
    frame.to_csv(tmp_path / "unsure.csv", index=False)
    answers = {}
    for kind in ("ignore", "event"):
        result = invoke(
            "aggregate",
            tmp_path / "unsure.csv",
            "--abstention",
            "unsure",
            "--abstentions",
            kind,
            "--out",
            tmp_path / kind,
        )
        assert result.exit_code == 0, result.output
        answers[kind] = pd.read_csv(tmp_path / kind / "labels.csv")
    assert set(answers["ignore"]["label"]) == {"no", "yes"} and not answers["ignore"].equals(answers["event"])
    assert "says_unsure" in pd.read_csv(tmp_path / "event" / "confusion.csv").columns
    result = invoke(
        "aggregate",
        tmp_path / "unsure.csv",
        "--abstention",
        "unsure",
        "--abstentions",
        "event",
        "--model",
        "glad",
        "--out",
        tmp_path / "x",
    )
    assert result.exit_code == 1 and "abstentions as events" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "oracle"), "choose one of majority-vote, dawid-skene"),
        (("--model", "glad", "--prior", "flat"), "the model glad has no option 'prior': leave it out"),
        (("--prior", "strong"), "choose 'accurate', 'rater', 'stan'"),
        (("--columns", "item"), "columns are named as item=NAME"),
        (("--columns", "thing=task"), "columns are named as item=NAME"),
        (("--columns", "item=nowhere"), "nowhere"),
        (("--abstention", "dunno"), "no row has the abstention label 'dunno'"),
        (("--out-of-core", "--model", "mace"), "fits dawid-skene with a prior only: remove --model mace"),
        (("--out-of-core", "--confidence", "plug-in"), "only: remove --confidence"),
        (("--out-of-core", "--missing", "skip"), "only: remove --missing"),
        (("--out-of-core", "--features", "F"), "only: remove --features"),
        (("--features", "F"), "the model dawid-skene does not use features: choose lia or two-stage"),
        (
            ("--model", "two_stage", "--annotator-features", "S"),
            "the model two_stage does not use annotator features: choose lia",
        ),
        (("--model", "lia", "--features", "S"), "features: no features of 'q0', 'q1'"),
        (("--model", "lia", "--annotator-features", "F"), "annotator_features: no features of "),
        (("--model", "lia", "--features", "nowhere.npy"), "there is no file nowhere.npy"),
        (
            ("--model", "lia", "--prior", "flat"),
            "the model lia has no prior named 'flat': choose held-out, or leave it out",
        ),
        (("--model", "lia", "--confidence", "plug-in"), "the model lia has no option 'confidence'"),
    ],
)
def test_errors_are_reported_in_one_line(
    options: tuple[str, ...], words: str, files: dict[str, Path], tmp_path: Path
) -> None:
    paths = {"F": files["features.csv"], "S": files["skills.csv"]}
    result = invoke(
        "aggregate",
        files["labels.parquet"],
        "--out",
        tmp_path / "out",
        *(paths.get(each, each) for each in options),
    )
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_names_may_have_hyphens_underscores_and_capitals(files: dict[str, Path], tmp_path: Path) -> None:
    """Models and choices of the command accept any of these spellings."""
    out = ("--out", tmp_path / "out")
    result = invoke(
        "aggregate", files["labels.csv"], *out, "--model", "Dawid_Skene", "--confidence", "Plug_In"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["options"]["confidence"] == "plug-in"
    wrong = invoke("aggregate", files["labels.csv"], *out, "--confidence", "plugin")
    assert wrong.exit_code == 2 and "plug-in" in wrong.output
    models = ("--models", "One_Coin", "--reference", "Majority_Vote", "--out", tmp_path / "table.csv")
    result = invoke("compare", files["labels.csv"], "--gold", files["gold.csv"], *models)
    assert result.exit_code == 0, result.output
    assert list(pd.read_csv(tmp_path / "table.csv")["model"]) == ["majority-vote", "one-coin"]


def test_comparison_is_paired_over_items(files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke(
        "compare", files["labels.csv"], "--gold", files["gold.csv"], "--out", tmp_path / "table.csv"
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "table.csv", index_col="model")
    assert list(table.index) == list(AGGREGATORS)
    frame, truth = crowd()
    codes = (truth.loc[frame["task"].unique()] == "yes").to_numpy().astype(np.int64)
    p, base = (
        each.fit(frame).probabilities_.to_numpy()
        for each in (DawidSkene(dependence="ignore"), MajorityVote(dependence="ignore"))
    )
    for score, of in {"accuracy": hits, "log_loss": log_losses}.items():
        gap = of(p, codes) - of(base, codes)
        row = table.loc["dawid-skene"]
        assert row[f"{score}_difference"] == pytest.approx(gap.mean())
        assert row[f"{score}_half_width"] == pytest.approx(1.96 * gap.std(ddof=1) / np.sqrt(120))
    assert (
        f"{100 * table.loc['mace', 'accuracy']:.2f}" in result.stdout
        and "120 items with gold" in result.stdout
    )


def test_comparison_omits_models_that_cannot_fit_the_table() -> None:
    frame, truth = crowd(60)
    frame.loc[frame["task"] == "q0", "label"] = "maybe"
    omitted: list[str] = []
    table = compare_aggregators(
        Annotations.from_frame(frame),
        truth,
        models=["kos", "one-coin"],
        progress=False,
        report=omitted.append,
    )
    assert list(table.index) == ["majority-vote", "one-coin"] and omitted[0].startswith("kos omitted: ")
    with pytest.raises(ValueError, match="gold has no class for any of the items"):
        compare_aggregators(
            Annotations.from_frame(frame), truth.set_axis([f"z{n}" for n in range(60)]), progress=False
        )


def test_copies_are_named_in_the_summary(tmp_path: Path) -> None:
    frame, _ = crowd(200, seed=3)
    copies = [frame[frame["worker"] == "hal"].assign(worker=f"hal{number}") for number in range(3)]
    done = aggregate_labels(
        Annotations.from_frame(pd.concat([frame, *copies])), out=tmp_path / "out", progress=False
    )
    assert any("hal" in line for line in done.warnings) and done.summary["dependence"]["near_duplicates"]
    clean = aggregate_labels(Annotations.from_frame(frame), out=tmp_path / "out", progress=False)
    assert not clean.warnings
    pd.concat([frame, *copies]).to_csv(tmp_path / "copied.csv", index=False)
    result = invoke(
        "aggregate", tmp_path / "copied.csv", "--dependence", "discount", "--out", tmp_path / "discounted"
    )
    assert result.exit_code == 0 and "warning" not in result.output
    surer, less = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "discounted")
    )
    assert (
        less["options"]["dependence"] == "discount"
        and less["mean_probability"] < done.summary["mean_probability"]
    )
    assert surer["options"]["dependence"] == "warn"


def test_out_of_core_equals_in_memory(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    frame = pd.read_parquet(files["labels.parquet"]).sample(frac=1, random_state=0)
    for number in range(3):
        frame.iloc[number::3].to_parquet(tmp_path / "parts" / f"{number}.parquet")
    for _ in range(2):  # over the files of the first run
        result = invoke(
            "aggregate",
            tmp_path / "parts",
            "--out",
            tmp_path / "out",
            "--out-of-core",
            "--gold",
            files["some.csv"],
        )
        assert result.exit_code == 0, result.output
    written = pd.read_parquet(tmp_path / "out" / "labels").set_index("item")
    fitted = DawidSkene(dependence="ignore").fit(frame, gold=crowd()[1].iloc[:20])
    expected = fitted.probabilities_.loc[written.index]
    np.testing.assert_allclose(written[["p_no", "p_yes"]], expected, atol=1e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["log_posterior"] == pytest.approx(fitted.log_posterior_[-1], rel=1e-9)
    annotators = pd.read_csv(tmp_path / "out" / "annotators.csv", index_col="annotator")
    np.testing.assert_allclose(
        annotators.loc["bob", "accuracy"], fitted.annotators_.loc["bob", "accuracy"], atol=1e-5
    )
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_options_reach_the_aggregators_that_take_them() -> None:
    assert make_aggregator("dawid_skene", prior="stan", progress=True).get_params()["prior"] == "stan"
    assert "progress" not in make_aggregator("majority-vote", progress=True).get_params()


def test_lia_uses_features_and_writes_the_outputs_of_its_networks(
    files: dict[str, Path], tmp_path: Path
) -> None:
    options = [
        "--model",
        "lia",
        "--features",
        files["features.csv"],
        "--annotator-features",
        files["skills.csv"],
    ]
    results = [
        invoke("aggregate", files["labels.csv"], *options, "--out", tmp_path / name)
        for name in ("out", "again")
    ]
    assert results[0].exit_code == 0, results[0].output
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, *LIA_FILES])
    assert results[0].stdout.split() == [str(out / name) for name in (*FILES, *LIA_FILES)]
    for name in (*FILES, *LIA_FILES):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    frame, truth = crowd()
    fitted = LIA(dependence="ignore").fit(frame, features=seen_of(truth), annotator_features=skills_of(frame))
    labels = pd.read_csv(out / "labels.csv", index_col="item")
    np.testing.assert_allclose(labels[["p_no", "p_yes"]], fitted.probabilities_, atol=1e-9)
    heard = pd.read_csv(out / "truth.csv", index_col="item")
    np.testing.assert_allclose(
        heard[["p_no", "p_yes"]], fitted.truth_probabilities_.loc[heard.index], atol=1e-9
    )
    assert np.abs(heard["p_yes"] - labels["p_yes"]).max() > 0.1
    difficulty = pd.read_csv(out / "difficulty.csv", index_col="item")["difficulty"]
    np.testing.assert_allclose(difficulty, fitted.difficulty_.loc[difficulty.index], atol=1e-9)
    competence = pd.read_csv(out / "competence.csv")
    assert list(competence.columns) == ["annotator", "true_class", "says_no", "says_yes"] and "'=ann" in set(
        competence["annotator"]
    )
    np.testing.assert_allclose(competence[["says_no", "says_yes"]], fitted.competence_, atol=1e-9)
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["model"] == "lia"
        and summary["options"]["objective"] == "joint"
        and "progress" not in summary["options"]
    )
    without = LIA(dependence="ignore").fit(frame, annotator_features=skills_of(frame)).probabilities_
    assert np.abs(without - fitted.probabilities_).to_numpy().max() > 0.01  # it did look


def test_held_out_labels_can_choose_lias_prior() -> None:
    aggregator = make_aggregator("lia", prior="held-out")
    assert isinstance(aggregator, LIA) and aggregator.prior == "held-out"


def test_networks_without_features_learn_an_embedding_of_every_item(
    files: dict[str, Path], tmp_path: Path
) -> None:
    frame, _ = crowd()
    for name, kind in {"lia": LIA, "two-stage": TwoStage}.items():
        result = invoke("aggregate", files["labels.csv"], "--model", name, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        labels = pd.read_csv(tmp_path / name / "labels.csv", index_col="item")
        np.testing.assert_allclose(
            labels[["p_no", "p_yes"]], kind(dependence="ignore").fit(frame).probabilities_, atol=1e-9
        )
    assert sorted(path.name for path in (tmp_path / "two-stage").iterdir()) == sorted(FILES)


def test_two_stage_uses_features(files: dict[str, Path], tmp_path: Path) -> None:
    frame, truth = crowd()
    result = invoke(
        "aggregate",
        files["labels.csv"],
        "--model",
        "Two_Stage",
        "--features",
        files["features.csv"],
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item")
    np.testing.assert_allclose(
        labels[["p_no", "p_yes"]], TwoStage().fit(frame, features=seen_of(truth)).probabilities_, atol=1e-9
    )


def test_scores_of_lia_are_of_a_fit_that_saw_features_and_no_gold(
    files: dict[str, Path], tmp_path: Path
) -> None:
    options = ["--model", "lia", "--features", files["features.csv"], "--gold", files["some.csv"]]
    result = invoke("aggregate", files["labels.csv"], *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    frame, truth = crowd()
    codes = (truth.iloc[:20] == "yes").to_numpy().astype(np.int64)
    p = (
        LIA(dependence="ignore")
        .fit(frame, features=seen_of(truth))
        .probabilities_.loc[truth.index[:20]]
        .to_numpy()
    )
    scored = json.loads((tmp_path / "out" / "summary.json").read_text())["scores_without_gold"]
    assert (
        scored["log_loss"] == pytest.approx(log_losses(p, codes).mean(), abs=1e-9) and scored["log_loss"] > 0
    )
    assert (
        pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item").loc[truth.index[:20], "probability"]
        == 1
    ).all()


def test_ids_of_features_are_those_of_the_annotations(tmp_path: Path) -> None:
    frame, truth = crowd(40)
    people = {name: number for number, name in enumerate(skills_of(frame).index)}
    numbered = frame.assign(task=frame["task"].str[1:].astype(int), worker=frame["worker"].map(people))
    numbered.to_parquet(tmp_path / "labels.parquet")
    numbered.assign(worker=numbered["worker"].replace({0: "007", 1: "NA"})).to_csv(
        tmp_path / "labels.csv", index=False
    )
    seen, skills = seen_of(truth).loc[truth.index], skills_of(frame)
    np.save(tmp_path / "seen.npy", seen)
    skills.set_axis(pd.Index(range(8), name="annotator"), axis=0).reset_index().to_parquet(
        tmp_path / "skills.parquet"
    )
    skills.set_axis(pd.Index(["007", "NA", *range(2, 8)], name="user"), axis=0).to_csv(
        tmp_path / "skills.csv"
    )
    expected = LIA(dependence="ignore").fit(frame, features=seen, annotator_features=skills).probabilities_
    for ending in ("parquet", "csv"):
        options = ["--features", tmp_path / "seen.npy", "--annotator-features", tmp_path / f"skills.{ending}"]
        result = invoke(
            "aggregate", tmp_path / f"labels.{ending}", "--model", "lia", *options, "--out", tmp_path / "out"
        )
        assert result.exit_code == 0, result.output
        labels = pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item")
        np.testing.assert_allclose(
            labels.loc[[int(name[1:]) for name in expected.index], "p_yes"], expected["yes"], atol=1e-5
        )


def test_a_later_run_removes_the_files_of_lia_and_no_others(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("aggregate", files["labels.csv"], "--model", "LIA", "--out", out).exit_code == 0
    result = invoke("aggregate", files["labels.csv"], "--out", out)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES) and "truth.csv" not in result.stdout
    (out / "truth.csv").write_text("mine")  # no run of lia wrote this
    result = invoke("aggregate", files["labels.csv"], "--out", out)
    assert (out / "truth.csv").read_text() == "mine" and "truth.csv" not in result.stdout


def test_networks_have_names_and_are_not_compared(files: dict[str, Path]) -> None:
    assert not set(NETWORKS) & set(AGGREGATORS)
    assert find_aggregator("LIA") is LIA and find_aggregator("two_stage") is TwoStage
    for option in ("--models", "--reference"):
        result = invoke("compare", files["labels.csv"], "--gold", files["gold.csv"], option, "lia")
        assert (
            result.exit_code == 1
            and "lia uses features of items and cannot be compared here" in result.output
        )


def a_map(annotators: int) -> pd.DataFrame:
    """As `LIA.annotator_map_` has it."""
    rng = np.random.default_rng(annotators)
    points = rng.normal(size=(annotators, 2)) * [2.0, 1.0]
    labels = rng.permutation(np.arange(1, annotators + 1)).astype(float)
    frame = pd.DataFrame(
        points - points.mean(0),
        pd.Index([f"w{n}" for n in range(annotators)], name="annotator"),
        ["first", "second"],
    )
    return frame.assign(accuracy=rng.uniform(0.5, 1, annotators), num_labels=labels)


@pytest.mark.parametrize("annotators", [1, 2, 30, 5000])
def test_the_map_of_annotators(annotators: int) -> None:
    table = a_map(annotators)
    figure = annotator_map_figure(table)
    figure.canvas.draw()
    axis = figure.axes[0]
    (drawn,) = axis.collections
    shown: Any = drawn.get_offsets()
    order = np.lexsort(np.asarray(shown).T)
    truth = np.lexsort(table[["first", "second"]].to_numpy().T)
    np.testing.assert_allclose(np.asarray(shown)[order], table[["first", "second"]].to_numpy()[truth])
    np.testing.assert_allclose(np.asarray(drawn.get_array())[order], table["accuracy"].to_numpy()[truth])
    area, labels = np.asarray(drawn.get_sizes())[order], table["num_labels"].to_numpy()[truth]
    if annotators > 1:
        slope = np.diff(area[np.argsort(labels)]) / np.diff(np.sort(labels))
        assert slope.min() > 0 and np.ptp(slope) < 1e-9  # area grows with labels, in proportion
    assert axis.get_aspect() == 1 and figure.axes[1].get_ylabel() == "accuracy on an average item"
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    corner = axis.get_window_extent()
    assert corner.width / (right - left) == pytest.approx(corner.height / (top - bottom), rel=1e-3)
    assert (
        table["first"].between(left, right).all()
        and table["second"].between(bottom, top).all()
        and left < 0 < right
    )
    named = {text.get_text(): text for text in axis.texts}
    distance = np.hypot(table["first"], table["second"])
    assert set(named) <= set(distance.nlargest(NAMED).index) and len(named) >= min(annotators, 5)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert all(not box.count_overlaps(boxes[:number]) for number, box in enumerate(boxes))
    assert all(
        corner.x0 < box.x0 and box.x1 < corner.x1 and corner.y0 < box.y0 and box.y1 < corner.y1
        for box in boxes
    )
    places = axis.transData.transform(table[["first", "second"]].to_numpy())
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_a_map_of_equals_and_of_names_that_are_no_mathematics() -> None:
    table = a_map(3).assign(first=0.0, second=0.0, accuracy=0.7, num_labels=5.0)
    figure = annotator_map_figure(
        table.set_axis(["$x", "an id that is far too long for a figure", "c"], axis=0)
    )
    figure.canvas.draw()
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[0] == r"\$x" and all(len(word) <= 19 for word in words)


def test_names_in_a_map_stay_inside_it() -> None:
    figure = annotator_map_figure(
        a_map(2)
        .assign(first=[-1.0, 1.0], second=0.0)
        .set_axis(["a name as long as that", "another of that length"], axis=0)
    )
    axis = figure.axes[0]
    corner, boxes = axis.get_window_extent(), [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 2 and all(corner.x0 < box.x0 and box.x1 < corner.x1 for box in boxes)

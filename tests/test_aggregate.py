"""`probcrowd aggregate` and `probcrowd compare`: from a table to files, with errors that help, nothing half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from probcrowd.annotations import Annotations
from probcrowd.app import main
from probcrowd.estimators.catalogue import AGGREGATORS
from probcrowd.estimators.dawid_skene import DawidSkene
from probcrowd.estimators.majority import MajorityVote
from probcrowd.runs import aggregate
from probcrowd.runs.aggregate import FILES, aggregate_labels, compare_aggregators, make_aggregator
from probcrowd.scoring import hits, log_losses

CLASSES = np.array(["no", "yes"])


def crowd(items: int = 120, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    """Eight independent annotators, five labels an item, ids that a spreadsheet would run; and the truth."""
    rng = np.random.default_rng(seed)
    truth = pd.Series(CLASSES[rng.integers(2, size=items)], index=[f"q{number}" for number in range(items)])
    accuracy = {"=ann": 0.95, "bob": 0.9, "cem": 0.85, "dia": 0.8, "eli": 0.75, "fay": 0.7, "gus": 0.65, "hal": 0.5}
    rows = []
    for item, is_a in truth.items():
        for name in rng.choice(list(accuracy), 5, replace=False):
            right = rng.random() < accuracy[name]
            rows.append((item, name, is_a if right else CLASSES[1 - list(CLASSES).index(is_a)]))
    return pd.DataFrame(rows, columns=["task", "worker", "label"]), truth


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    frame, truth = crowd()
    paths = {name: tmp_path / name for name in ("labels.csv", "labels.parquet", "renamed.csv", "gold.csv", "some.csv")}
    frame.to_csv(paths["labels.csv"], index=False)
    frame.to_parquet(paths["labels.parquet"])
    frame.set_axis(["Q", "who", "said"], axis=1).to_csv(paths["renamed.csv"], index=False)
    gold = truth.rename_axis("task").rename("label").reset_index()
    gold.to_csv(paths["gold.csv"], index=False)
    gold.iloc[:20].to_csv(paths["some.csv"], index=False)
    return paths


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_files_hold_the_estimators_answer(files: dict[str, Path], tmp_path: Path) -> None:
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
    assert summary["log_posterior"] == pytest.approx(fitted.log_posterior_[-1]) and summary["converged"] is True
    assert summary["dependence"]["near_duplicates"] == [] and "scores_without_gold" not in summary


@pytest.mark.parametrize("name", ["majority-vote", "mace", "glad"])
def test_models_by_name(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("aggregate", files["labels.parquet"], "--out", tmp_path / name, "--model", name.replace("-", "_"))
    assert result.exit_code == 0, result.output
    labels = pd.read_csv(tmp_path / name / "labels.csv", index_col="item")["label"]
    assert (labels == crowd()[1].loc[labels.index]).mean() > 0.8


def test_named_columns_and_formats_agree(files: dict[str, Path], tmp_path: Path) -> None:
    invoke("aggregate", files["labels.parquet"], "--out", tmp_path / "a")
    result = invoke("aggregate", files["renamed.csv"], "--columns", "item=Q, annotator=who,label=said", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a" / "labels.csv").read_bytes() == (tmp_path / "b" / "labels.csv").read_bytes()


def test_gold_is_certain_and_scores_are_of_a_fit_that_did_not_see_it(files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("aggregate", files["labels.csv"], "--gold", files["some.csv"], "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    frame, truth = crowd()
    labels = pd.read_csv(tmp_path / "out" / "labels.csv", index_col="item")
    known = truth.iloc[:20]
    assert (labels.loc[known.index, "label"] == known).all() and (labels.loc[known.index, "probability"] == 1).all()
    assert labels["known"].sum() == 20
    blind = DawidSkene(dependence="ignore").fit(frame)
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["scores_without_gold"]
    assert found["items"] == 20 and found["accuracy"] == pytest.approx(blind.score(None, known)) and found["accuracy"] < 1


def test_files_of_an_earlier_run_stay_until_all_are_whole(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (out / "labels.csv").read_bytes() != before["labels.csv"] and (out / "notes.txt").read_text() == "mine"


def test_abstentions(files: dict[str, Path], tmp_path: Path) -> None:
    frame, _ = crowd()
    frame.loc[::7, "label"] = "unsure"
    frame.to_csv(tmp_path / "unsure.csv", index=False)
    answers = {}
    for kind in ("ignore", "event"):
        result = invoke("aggregate", tmp_path / "unsure.csv", "--abstention", "unsure", "--abstentions", kind, "--out", tmp_path / kind)
        assert result.exit_code == 0, result.output
        answers[kind] = pd.read_csv(tmp_path / kind / "labels.csv")
    assert set(answers["ignore"]["label"]) == {"no", "yes"} and not answers["ignore"].equals(answers["event"])
    assert "says_unsure" in pd.read_csv(tmp_path / "event" / "confusion.csv").columns
    result = invoke(
        "aggregate", tmp_path / "unsure.csv", "--abstention", "unsure", "--abstentions", "event", "--model", "glad", "--out", tmp_path / "x"
    )
    assert result.exit_code == 1 and "abstentions as events" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "oracle"), "choose one of majority-vote, dawid-skene"),
        (("--model", "glad", "--prior", "flat"), "the model glad has no prior"),
        (("--prior", "strong"), "choose 'accurate', 'rater', 'stan'"),
        (("--columns", "item"), "columns are named as item=NAME"),
        (("--columns", "thing=task"), "columns are named as item=NAME"),
        (("--columns", "item=nowhere"), "nowhere"),
        (("--abstention", "dunno"), "nobody gave the label 'dunno'"),
        (("--out-of-core", "--model", "mace"), "out of core there is dawid-skene"),
        (("--out-of-core", "--confidence", "plug-in"), "not confidence"),
    ],
)
def test_faults_are_told_in_one_line(options: tuple[str, ...], words: str, files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("aggregate", files["labels.parquet"], "--out", tmp_path / "out", *options)
    assert result.exit_code == 1 and words in result.output and "Traceback" not in result.output
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_comparison_is_paired_over_items(files: dict[str, Path], tmp_path: Path) -> None:
    result = invoke("compare", files["labels.csv"], "--gold", files["gold.csv"], "--out", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "table.csv", index_col="model")
    assert list(table.index) == list(AGGREGATORS)
    frame, truth = crowd()
    codes = (truth.loc[frame["task"].unique()] == "yes").to_numpy().astype(np.int64)
    p, base = (each.fit(frame).probabilities_.to_numpy() for each in (DawidSkene(dependence="ignore"), MajorityVote(dependence="ignore")))
    for score, of in {"accuracy": hits, "log_loss": log_losses}.items():
        gap = of(p, codes) - of(base, codes)
        row = table.loc["dawid-skene"]
        assert row[f"{score}_difference"] == pytest.approx(gap.mean())
        assert row[f"{score}_half_width"] == pytest.approx(1.96 * gap.std(ddof=1) / np.sqrt(120))
    assert f"{100 * table.loc['mace', 'accuracy']:.2f}" in result.stdout and "120 items with gold" in result.stdout


def test_comparison_leaves_out_what_a_model_cannot_take() -> None:
    frame, truth = crowd(60)
    frame.loc[frame["task"] == "q0", "label"] = "maybe"
    told: list[str] = []
    table = compare_aggregators(Annotations.from_frame(frame), truth, models=["kos", "one-coin"], progress=False, say=told.append)
    assert list(table.index) == ["majority-vote", "one-coin"] and told and told[0].startswith("kos: left out")
    with pytest.raises(ValueError, match="no class of any of the items"):
        compare_aggregators(Annotations.from_frame(frame), truth.set_axis([f"z{n}" for n in range(60)]), progress=False)


def test_copies_are_named_in_the_summary(tmp_path: Path) -> None:
    frame, _ = crowd(200, seed=3)
    copies = [frame[frame["worker"] == "hal"].assign(worker=f"hal{number}") for number in range(3)]
    done = aggregate_labels(Annotations.from_frame(pd.concat([frame, *copies])), out=tmp_path / "out", progress=False)
    assert any("hal" in line for line in done.warnings) and done.summary["dependence"]["near_duplicates"]
    clean = aggregate_labels(Annotations.from_frame(frame), out=tmp_path / "out", progress=False)
    assert not clean.warnings
    pd.concat([frame, *copies]).to_csv(tmp_path / "copied.csv", index=False)
    result = invoke("aggregate", tmp_path / "copied.csv", "--dependence", "discount", "--out", tmp_path / "discounted")
    assert result.exit_code == 0 and "warning" not in result.output
    surer, less = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "discounted"))
    assert less["options"]["dependence"] == "discount" and less["mean_probability"] < done.summary["mean_probability"]
    assert surer["options"]["dependence"] == "warn"


def test_out_of_core_is_the_answer_in_memory(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    frame = pd.read_parquet(files["labels.parquet"]).sample(frac=1, random_state=0)
    for number in range(3):
        frame.iloc[number::3].to_parquet(tmp_path / "parts" / f"{number}.parquet")
    for _ in range(2):  # over the files of the first run
        result = invoke("aggregate", tmp_path / "parts", "--out", tmp_path / "out", "--out-of-core", "--gold", files["some.csv"])
        assert result.exit_code == 0, result.output
    found = pd.read_parquet(tmp_path / "out" / "labels").set_index("item")
    fitted = DawidSkene(dependence="ignore").fit(frame, gold=crowd()[1].iloc[:20])
    expected = fitted.probabilities_.loc[found.index]
    np.testing.assert_allclose(found[["p_no", "p_yes"]], expected, atol=1e-5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["log_posterior"] == pytest.approx(fitted.log_posterior_[-1], rel=1e-9)
    annotators = pd.read_csv(tmp_path / "out" / "annotators.csv", index_col="annotator")
    np.testing.assert_allclose(annotators.loc["bob", "accuracy"], fitted.annotators_.loc["bob", "accuracy"], atol=1e-5)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_options_go_where_they_are_taken() -> None:
    assert make_aggregator("dawid_skene", prior="stan", progress=True).get_params()["prior"] == "stan"
    assert "progress" not in make_aggregator("majority-vote", progress=True).get_params()

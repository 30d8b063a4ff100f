"""The command: results under the user's ids, files that load again, helpful errors."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from probcrowd import Annotations, load_run, meta_train
from probcrowd.commands.app import main
from probcrowd.data.image_sets import load_classes
from probcrowd.figures.base import accuracy_figure, confusion_figure
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.demo import demonstrate
from probcrowd.runs.meta.evaluate import grid, paired_difference, summary
from probcrowd.simulate.annotators import Mixture, annotate, draw_confusion

TINY = {
    "encoder": {"hidden": (16,), "dimension": 8},
    "episode": {"shots": (1, 3), "annotators": (3,), "tasks": 4},
    "training": {"steps": 20, "validate_every": 10, "validation_tasks": 4, "checkpoint_every": 10},
    "target": {"tasks": 5, "shots": (1, 3), "annotators": (3, 5), "spammers": (0.2,)},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("app") / "run"
    torch.set_num_threads(1)
    meta_train(MetaTraining.model_validate({"out": out, **TINY}), progress=False)
    return out


def a_task(items: int = 24) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Support pixels, annotations and query pixels of three digits, under ids that look like a user's."""
    digits = load_classes("digits")
    generator = torch.Generator().manual_seed(0)
    chosen = torch.cat([torch.nonzero(digits.label == digit).flatten()[:items] for digit in (3, 5, 8)])
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    truth = torch.unique(digits.label[chosen], return_inverse=True)[1]
    labels = annotate(
        truth[None], draw_confusion(Mixture(1.0, 0.0, 0.0), 1, 4, 3, generator), generator, observed=0.6
    )[0]
    ids = [f"img-{index}" for index in chosen.tolist()]
    columns = [f"pixel {number}" for number in range(64)]
    pixels = pd.DataFrame(
        digits.inputs[chosen].flatten(1).numpy(), index=pd.Index(ids, name="item"), columns=columns
    )
    rows = [
        (ids[i], f"w{j}", ["three", "five", "eight"][label])
        for (i, j), label in np.ndenumerate(labels.numpy())
        if label >= 0 and i < items
    ]
    return pixels.iloc[:items], pd.DataFrame(rows, columns=["task", "worker", "label"]), pixels.iloc[items:]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_adapt_uses_the_users_ids_and_its_files_load_again(run: Path, tmp_path: Path) -> None:
    support, labels, query = a_task()
    support.to_csv(tmp_path / "support.csv")
    query.reset_index().to_parquet(tmp_path / "query.parquet")
    labels.to_csv(tmp_path / "labels.csv", index=False)
    paths = [
        "--support",
        tmp_path / "support.csv",
        "--annotations",
        tmp_path / "labels.csv",
        "--query",
        tmp_path / "query.parquet",
    ]
    result = invoke("adapt", run, *paths, "--out", tmp_path / "answer")
    assert result.exit_code == 0, result.output
    expected = load_run(run).adapt(support, Annotations.from_frame(labels), query)

    probabilities = pd.read_csv(tmp_path / "answer" / "probabilities.csv", index_col="item")
    assert list(probabilities.index) == list(query.index) and list(probabilities.columns) == [
        "eight",
        "five",
        "three",
    ]
    pd.testing.assert_frame_equal(probabilities, expected.probabilities, check_names=False)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-9)
    responsibilities = pd.read_parquet(tmp_path / "answer" / "responsibilities.parquet").set_index("item")
    assert list(responsibilities.index) == list(support.index)
    pd.testing.assert_frame_equal(
        responsibilities, expected.responsibilities, check_names=False, check_column_type=False
    )
    confusion = pd.read_csv(tmp_path / "answer" / "confusion.csv")
    assert (
        list(confusion.columns) == ["annotator", "true_class", "eight", "five", "three"]
        and len(confusion) == 4 * 3
    )
    np.testing.assert_allclose(confusion[["eight", "five", "three"]].sum(axis=1), 1, atol=1e-6)
    annotators = pd.read_csv(tmp_path / "answer" / "annotators.csv", index_col="annotator")
    assert annotators["labels"].to_dict() == labels["worker"].value_counts().to_dict()
    assert (tmp_path / "answer" / "confusion.png").stat().st_size > 5000


def test_responsibilities_use_the_annotations(run: Path) -> None:
    support, labels, query = a_task()
    adapted = load_run(run).adapt(support, Annotations.from_frame(labels), query)
    votes = pd.crosstab(labels["task"], labels["label"]).reindex(support.index)
    unanimous = votes[(votes.max(axis=1) == votes.sum(axis=1)) & (votes.sum(axis=1) >= 3)]
    assert len(unanimous) >= 3
    assert (
        adapted.responsibilities.loc[unanimous.index].idxmax(axis=1) == unanimous.idxmax(axis=1)
    ).mean() > 0.8


def test_columns_are_matched_by_name(run: Path) -> None:
    support, labels, query = a_task()
    trained, annotations = load_run(run), Annotations.from_frame(labels)
    plain = trained.adapt(support, annotations, query).probabilities
    pd.testing.assert_frame_equal(
        trained.adapt(support, annotations, query[query.columns[::-1]]).probabilities, plain
    )


def test_unlabelled_items_are_dropped_and_an_empty_query_is_valid(run: Path) -> None:
    support, labels, query = a_task()
    trained = load_run(run)
    plain = trained.adapt(support, Annotations.from_frame(labels), query)
    more = Annotations.from_frame(labels, items=[*support.index, "unlabelled"])
    pd.testing.assert_frame_equal(
        trained.adapt(support, more, query).probabilities, plain.probabilities, atol=1e-6
    )
    assert trained.adapt(support, more, query.iloc[:0]).probabilities.shape == (0, 3)
    assert trained.adapt(support, more, np.zeros((0, 1, 8, 8), dtype=np.uint8)).probabilities.shape == (0, 3)


def test_ids_in_files_are_text_and_a_weight_column_is_never_overlooked(run: Path, tmp_path: Path) -> None:
    support, labels, query = a_task()
    names = {name: f"{number:04d}" for number, name in enumerate([*support.index, *query.index])}
    support.rename(index=names).to_csv(tmp_path / "support.csv")
    query.rename(index=names).to_csv(tmp_path / "query.csv")
    numbered = labels.assign(
        task=labels["task"].map(names),
        worker=labels["worker"].map({"w0": "01", "w1": "1", "w2": "NA", "w3": "x"}),
        weight=1,
    )
    numbered.to_csv(tmp_path / "labels.csv", index=False)
    paths = [
        "--support",
        tmp_path / "support.csv",
        "--annotations",
        tmp_path / "labels.csv",
        "--query",
        tmp_path / "query.csv",
        "--out",
        tmp_path,
    ]
    assert (
        "has a column 'weight': name it with --columns weight=weight" in invoke("adapt", run, *paths).output
    )
    result = invoke("adapt", run, *paths, "--columns", "weight=weight")
    assert result.exit_code == 0, result.output
    annotators = pd.read_csv(tmp_path / "annotators.csv", dtype={"annotator": str}, keep_default_na=False)
    assert set(annotators["annotator"]) == {"01", "1", "NA", "x"}
    assert pd.read_csv(tmp_path / "probabilities.csv", dtype=str)["item"].iloc[0] == "0024"
    plain = load_run(run).adapt(support, Annotations.from_frame(labels), query)
    np.testing.assert_allclose(
        pd.read_csv(tmp_path / "probabilities.csv").iloc[:, 1:], plain.probabilities, atol=1e-6
    )


def test_classes_may_have_the_names_of_table_columns(run: Path, tmp_path: Path) -> None:
    support, labels, query = a_task()
    awkward = labels.assign(
        label=labels["label"].map({"three": "item", "five": "annotator", "eight": "true_class"})
    )
    load_run(run).adapt(support, Annotations.from_frame(awkward), query).write(tmp_path)
    assert list(pd.read_csv(tmp_path / "probabilities.csv").columns) == [
        "item",
        "annotator",
        "class item",
        "true_class",
    ]


def test_the_order_of_rows_and_the_kind_of_ids_do_not_matter(run: Path) -> None:
    support, labels, query = a_task()
    trained = load_run(run)
    plain = trained.adapt(support, Annotations.from_frame(labels), query)
    mixed = trained.adapt(
        support.sample(frac=1, random_state=0),
        Annotations.from_frame(labels.sample(frac=1, random_state=1)),
        query,
    )
    pd.testing.assert_frame_equal(plain.probabilities, mixed.probabilities, atol=1e-5)
    pd.testing.assert_frame_equal(plain.confusion.sort_index(), mixed.confusion.sort_index(), atol=1e-5)
    pd.testing.assert_frame_equal(
        plain.responsibilities, mixed.responsibilities.loc[support.index], atol=1e-5
    )
    numbers = {name: index for index, name in enumerate(support.index)}
    arrays = trained.adapt(
        support.to_numpy().reshape(-1, 1, 8, 8),
        Annotations.from_frame(labels.assign(task=labels["task"].map(numbers))),
        query,
    )
    np.testing.assert_allclose(arrays.probabilities, plain.probabilities, atol=1e-5)


def test_invalid_input_is_refused_and_named(run: Path) -> None:
    support, labels, query = a_task()
    trained, annotations = load_run(run), Annotations.from_frame(labels)
    first = support.index[0]
    with pytest.raises(ValueError, match=rf"support: no features of '{first}' \(1 in all\)"):
        trained.adapt(support.drop(first), annotations, query)
    with pytest.raises(
        ValueError, match=rf"support items without any annotation: '{query.index[0]}'.*query items instead"
    ):
        trained.adapt(pd.concat([support, query.iloc[:1]]), annotations, query)
    with pytest.raises(ValueError, match="63 columns, the network was trained on 64"):
        trained.adapt(support.iloc[:, 1:], annotations, query)
    with pytest.raises(ValueError, match="multiply them by 255"):
        trained.adapt(support / 255, annotations, query)
    with pytest.raises(ValueError, match=rf"query: pixels outside 0..255 in items '{query.index[0]}'"):
        trained.adapt(support, annotations, query.astype(int) * 2)
    with pytest.raises(ValueError, match=rf"support: missing or infinite values.*'{first}'"):
        trained.adapt(support.astype(float).mask(support.index.to_series() == first), annotations, query)
    with pytest.raises(ValueError, match=rf"ids '{query.index[0]}' occur more than once"):
        trained.adapt(support, annotations, pd.concat([query, query.iloc[:1]]))
    with pytest.raises(ValueError, match=r"query: the columns are 'pixel 0', .* those of the fit 'pixel 0'"):
        trained.adapt(support, annotations, query.rename(columns={"pixel 5": "other"}))
    with pytest.raises(
        ValueError, match=r"65 columns, the network was trained on 64 .* ids belong in a column 'item'"
    ):
        trained.adapt(support.assign(extra=1), annotations, query)
    with pytest.raises(ValueError, match=r"support: columns 'note' are not numbers"):
        trained.adapt(support.assign(note="x"), annotations, query)
    with pytest.raises(ValueError, match=r"ids are int64 in the annotations and str in the features"):
        trained.adapt(support, Annotations.from_frame(labels.assign(task=range(len(labels)))), query)


def test_errors_are_reported_in_one_line_without_a_traceback(run: Path, tmp_path: Path) -> None:
    result = invoke(
        "adapt", run, "--support", "no.csv", "--annotations", "no.csv", "--query", "no.csv", "--out", tmp_path
    )
    assert (result.exit_code, result.output.strip()) == (1, "Error: there is no file no.csv")
    assert "holds no run" in invoke("evaluate", tmp_path).output
    (tmp_path / "config.toml").write_text("[training]\nstep = 3\n")
    assert (
        "training.step: unknown key; did you mean 'training.steps'?"
        in invoke("meta-train", tmp_path / "config.toml").output
    )
    result = invoke("meta-train", tmp_path / "missing.toml")
    assert result.exit_code == 1 and "missing.toml" in result.output


def test_meta_train_reads_toml_and_overrides(tmp_path: Path) -> None:
    config = 'out = "{}"\n[encoder]\nhidden = [8]\n[episode]\ntasks = 2\n'
    config += "[training]\nsteps = 3\nvalidation_tasks = 2\n"
    (tmp_path / "config.toml").write_text(config.format(tmp_path / "run"))
    result = invoke("meta-train", tmp_path / "config.toml", "--set", "training.steps=4", "--set", "seed=7")
    assert result.exit_code == 0, result.output
    settings = load_run(tmp_path / "run").settings
    assert (settings.training.steps, settings.seed, settings.encoder.hidden) == (4, 7, (8,))


def test_evaluate_writes_what_it_prints(run: Path) -> None:
    result = invoke("evaluate", run)
    assert result.exit_code == 0, result.output
    scores = pd.read_csv(run / "evaluation" / "scores.csv")
    assert len(scores) == 4 * 2 * 2 * 5  # methods x shots x annotators x tasks
    trained = scores[scores["method"] == "as trained"]
    means = trained.groupby(["shots", "annotators"])["accuracy"].mean()
    assert f"{means.loc[3, 5]:.3f}" in result.output
    assert (run / "evaluation" / "accuracy.png").exists()
    load_run(run)  # still a run


def test_ids_that_a_spreadsheet_would_run_are_defused_in_csv_only(run: Path, tmp_path: Path) -> None:
    support, labels, query = a_task()
    evil = "=cmd|' /C calc'!A0"
    adapted = load_run(run).adapt(support, Annotations.from_frame(labels.replace("w0", evil)), query)
    adapted.write(tmp_path)
    assert "'" + evil in set(pd.read_csv(tmp_path / "annotators.csv")["annotator"])
    assert evil in set(pd.read_parquet(tmp_path / "annotators.parquet")["annotator"])


def test_numbers_as_class_names_survive_the_files(run: Path, tmp_path: Path) -> None:
    support, labels, query = a_task()
    numbered = labels.assign(label=labels["label"].map({"three": 3, "five": 5, "eight": 8}))
    adapted = load_run(run).adapt(support, Annotations.from_frame(numbered), query)
    assert list(adapted.probabilities.columns) == [3, 5, 8]
    adapted.write(tmp_path)
    assert list(pd.read_parquet(tmp_path / "probabilities.parquet").columns) == ["item", "3", "5", "8"]


def test_demo_in_small(tmp_path: Path) -> None:
    settings = MetaTraining.model_validate({"out": tmp_path / "demo", **TINY})
    messages: list[str] = []
    result = demonstrate(settings, splits=2, jobs=1, report=messages.append)
    assert set(result.table["method"]) >= {
        "EM, J = 1",
        "EM, J = 2",
        "EM, J = 3",
        "ProtoNet + majority vote",
        "ProtoNet + Dawid-Skene",
    }
    assert len(result.scores) == 8 * 2 * 2 * 5 * 2  # methods x shots x annotators x tasks x splits
    for name in ("scores.csv", "table.csv", "differences.csv", "accuracy.png", "confusion.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    again = demonstrate(
        settings, splits=2, jobs=1, report=messages.append
    )  # finished trainings are taken as they are
    pd.testing.assert_frame_equal(result.scores, again.scores)
    text = grid(result.table)
    assert "EM, J = 2" in text and "±" in text
    mean = result.scores.query("method == 'EM, J = 2' and shots == 3 and annotators == 5")["accuracy"].mean()
    assert f"{mean:.3f}" in text


def test_demo_settings_ship_with_the_package() -> None:
    shipped = tomllib.loads(files("probcrowd.runs.meta").joinpath("demo.toml").read_text())
    assert MetaTraining.model_validate_json(__import__("json").dumps(shipped)).data == "digits"


def test_differences_are_paired_by_task() -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(400)  # tasks differ much more than methods do
    frame = pd.DataFrame(
        {"shots": 1, "annotators": 3, "spammers": 0.1, "task": np.arange(400), "split": np.arange(400) % 4}
    )
    scores = pd.concat(
        [
            frame.assign(method="a", accuracy=easy + 0.01),
            frame.assign(method="b", accuracy=easy).sample(frac=1, random_state=0),
        ]
    )
    row = paired_difference(scores, "a", "b")
    assert (
        abs(row["difference"] - 0.01) < 1e-12
        and row["half_width"] < 1e-12
        and row["ahead"] == "4 of 4 splits"
    )
    table = summary(scores, ["method"])
    assert table["half_width"].min() > 0.02  # unpaired, the same difference would drown


def test_figures_show_every_method_and_annotator() -> None:
    table = pd.DataFrame(
        [(method, shots, count, 0.5, 0.01) for method in "abc" for shots in (1, 5) for count in (3, 5)],
        columns=["method", "shots", "annotators", "accuracy", "half_width"],
    )
    figure = accuracy_figure(table)
    assert [axis.get_title() for axis in figure.axes] == ["1 item per class", "5 items per class"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    index = pd.MultiIndex.from_product([["ann", "bob", "$x"], ["yes", "no"]])
    figure = confusion_figure(pd.DataFrame(np.full((6, 2), 0.5), index, ["yes", "no"]))
    assert [axis.get_title() for axis in figure.axes[:3]] == ["ann", "bob", r"\$x"]
    figure.canvas.draw()


def test_settings_refuse_impossible_values() -> None:
    for faulty in (
        {"episode": {"ways": 1}},
        {"annotators": {"observed": 0}},
        {"adaptation": {"precision": float("inf")}},
        {"seed": -1},
    ):
        with pytest.raises(
            ValueError,
            match=next(iter(next(iter(faulty.values()))))
            if isinstance(next(iter(faulty.values())), dict)
            else "seed",
        ):
            MetaTraining.model_validate(faulty)
    assert replace(Mixture(), spammer=0.3).spammer == 0.3

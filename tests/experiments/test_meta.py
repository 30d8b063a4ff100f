"""`probcrowd reproduce meta-learning`: target tasks, selection on validation tasks, t-tests, the command."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.image import imread
from scipy.stats import ttest_1samp, ttest_rel
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import log_softmax, one_hot

from probcrowd.commands.app import main
from probcrowd.data.image_sets import label_me
from probcrowd.data.images import ClassItems
from probcrowd.experiments.harness import collect, run_experiment
from probcrowd.experiments.meta import tables as meta_tables
from probcrowd.experiments.meta.baselines import input_classifiers
from probcrowd.experiments.meta.experiment import EXPERIMENT
from probcrowd.experiments.meta.labelme import labelme_episodes
from probcrowd.experiments.meta.methods import METHODS, OURS, Answers, Context, Entry, network_and_method
from probcrowd.experiments.meta.settings import MetaOptions
from probcrowd.experiments.meta.tables import BEST
from probcrowd.experiments.meta.targets import targets
from probcrowd.figures.base import share_figure
from probcrowd.models.meta.prototype import Prior
from probcrowd.runs.meta import evaluate
from probcrowd.runs.meta.configuration import MetaTraining
from probcrowd.runs.meta.sources import class_sources
from probcrowd.simulate.episodes import Episodes, EpisodeSource

TINY = (
    "training.steps=4",
    "training.validate_every=2",
    "training.validation_tasks=4",
    "episode.tasks=4",
    "episode.queries=5",
)
TINY += (
    "episode.shots=[1,2]",
    "episode.annotators=[2,3]",
    "classes.augment=0",
    "encoder.hidden=[12]",
    "encoder.dimension=6",
)
TINY += ("target.tasks=3", "target.shots=[1,2]", "target.annotators=[3]", "target.spammers=[0.2,0.4]")
KINDS = ("spammers", "sparse", "imbalanced")
FEW = (
    "LRDS",
    "RFMV",
    "PrMV",
    "PrDS",
    "MaMV",
    "MCL",
    "EM, J = 1",
    OURS,
    "tie-noise",
    BEST,
    "best-random",
)
KEYS = ["method", "kind", "shots", "annotators"]


def tiny(out: Path, *more: str, data: str = "digits") -> MetaTraining:
    return MetaOptions(out=out, dataset=Path(data), overrides=(*TINY, *more)).training


def run(out: Path, methods: Sequence[str] = (OURS, "PrMV"), *more: str, **options: Any) -> Any:
    usual = {"out": out, "methods": methods, "splits": 2, "kinds": ("spammers",), "overrides": (*TINY, *more)}
    return run_experiment(EXPERIMENT, MetaOptions(**{**usual, **options}), progress=False)["table"]


def cells(out: Path) -> dict[str, Any]:
    paths = sorted(path for path in out.glob("split-*/cells/*.csv") if not path.name.startswith("network."))
    return {str(path.relative_to(out)): pd.read_csv(path) for path in paths}


def times(out: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for part in ("cells/*", "networks/*/model*")
        for path in out.glob(f"split-*/{part}")
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of a run of one method of each kind, and its table."""
    out = tmp_path_factory.mktemp("digits")
    return out, run(out, FEW, kinds=KINDS)


def test_every_method_has_a_row_for_every_task_and_tables_are_their_means(done: tuple[Path, Any]) -> None:
    out, table = done
    parts = cells(out)
    rows: Any = pd.concat([part.assign(split=int(name.split("/")[0][-1])) for name, part in parts.items()])
    assert len(parts) == 2 * len(FEW) * 3 and {METHODS[name].group for name in FEW} == {
        "baseline",
        "control",
        "paper",
        "beyond",
    }
    size = {
        "spammers": 2 * 3,
        "sparse": 3,
        "imbalanced": 3,
    }  # shares times tasks; imbalanced: not for one shot
    expected = {
        (m, k, s, a): 2 * size[k]
        for m in FEW
        for k in KINDS
        for s in (1, 2)
        for a in (3,)
        if k != "imbalanced" or s > 1
    }
    assert (
        rows.groupby(KEYS).size().to_dict() == expected
        and not rows.duplicated([*KEYS, "split", "share", "task"]).any()
    )
    assert rows["accuracy"].between(0, 1).all() and np.isfinite(rows["log_loss"]).all()
    unknown = rows["confusion_error"].isna().groupby(rows["method"]).mean()
    assert unknown[["LRDS", "MaMV", OURS]].tolist() == [1, 1, 0]
    measures = ["accuracy", "log_loss", "calibration_error", "confusion_error", "seconds"]
    indexed, means = table.set_index(KEYS), rows.groupby(KEYS)[measures].mean()
    pd.testing.assert_frame_equal(indexed[measures].sort_index(), means.sort_index(), rtol=1e-9)
    assert indexed["tasks"].to_dict() == expected and list(table["method"].unique()) == list(FEW)
    pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), table)
    networks: Any = pd.read_csv(out / "networks.csv").set_index("network")
    assert (
        set(networks.index) == {METHODS[name].network for name in FEW} - {None}
        and networks["step"].isin([2, 3, 4]).all()
    )
    for name in ("spammers.png", "annotators.png"):
        assert imread(out / name).std() > 0.01


def test_target_tasks_equal_those_of_evaluation(done: tuple[Path, Any]) -> None:
    out, _ = done
    for split in (0, 1):
        settings = tiny(out / f"split-{split}").model_copy(update={"seed": split})
        sources = class_sources(settings)
        model = network_and_method(settings, METHODS[OURS], sources.input_shape, torch.device("cpu"))
        expected = evaluate.target_scores(settings, sources.target, {OURS: model})
        cell = cells(out)[f"split-{split}/cells/EM_J_2.spammers.csv"]
        for column in ("accuracy", "log_loss", "confusion_error"):
            assert cell[column].to_numpy() == pytest.approx(expected[column].to_numpy(), abs=1e-6)


def test_more_methods_keep_finished_cells_and_networks(
    done: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "twin", METHODS[OURS])
    out = Path(shutil.copytree(done[0], tmp_path / "out"))
    lost = out / "split-1" / "cells" / "EM_J_2.spammers.csv"
    old = pd.read_csv(lost)
    lost.unlink()
    before = times(out)
    table = run(out, [OURS, "twin"])
    after = times(out)
    assert {path: time for path, time in after.items() if path in before} == before
    assert set(after) - set(before) == {
        lost,
        *(out / f"split-{n}" / "cells" / "twin.spammers.csv" for n in (0, 1)),
    }
    pd.testing.assert_frame_equal(
        pd.read_csv(lost).drop(columns="seconds"), old.drop(columns="seconds"), check_exact=True
    )
    others = table[table["method"] != "twin"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others.drop(columns="seconds"), done[1].drop(columns="seconds"))
    spammers = table[table["kind"] == "spammers"]
    twins = [spammers.loc[spammers["method"] == name, "accuracy"].tolist() for name in (OURS, "twin")]
    assert twins[0] == twins[1]  # the same network on the same tasks
    tests: Any = pd.read_csv(out / "tests.csv").set_index(["method", "less"]).loc[(OURS, "twin")]
    assert (tests["verdict"] == "tied").all() and (tests["difference"] == 0).all()
    assert (tests["splits_ahead"] == "0 of 2").all()


def test_splits_are_computed_one_by_one_and_gathered(done: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no results of the first 2 splits"):
        collect(EXPERIMENT, MetaOptions(out=tmp_path, splits=2))
    second = run(tmp_path, only=1)
    assert {path.name for path in tmp_path.glob("split-*")} == {"split-1"} and (second["tasks"] == 6).all()
    both, whole = run(tmp_path, only=0), done[1]
    chosen = whole[(whole["kind"] == "spammers") & whole["method"].isin([OURS, "PrMV"])].reset_index(
        drop=True
    )
    pd.testing.assert_frame_equal(both.drop(columns="seconds"), chosen.drop(columns="seconds"))
    assert set(pd.read_csv(tmp_path / "tests.csv")["splits_ahead"].str[-4:]) == {"of 2"}


def test_invalid_options_are_reported(done: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown method 'Pr': choose one of LRMV; .*EM, J = 2.*best-random"):
        run(tmp_path, ["PrMV", "Pr"])
    known = "spammers, flippers, class-spammers, sparse, imbalanced"
    with pytest.raises(ValueError, match=f"unknown kind 'labelme': choose one of {known}"):
        run(tmp_path, kinds=("labelme",))
    with pytest.raises(ValueError, match="only = 2: splits are numbered from 0 to 1"):
        run(tmp_path, only=2)
    with pytest.raises(ValueError, match="MaDS, MaMV: MAML's last layer .* leave it out"):
        run(tmp_path, ["MaMV", OURS, "MaDS"], dataset=Path("labelme"), kinds=())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="other settings.*\n.*training.steps: 4 -> 5"):
        run(done[0], [OURS], "training.steps=5")


def test_settings_are_selected_on_validation_tasks_by_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(1, 2), (1, 3), (2, 2), (2, 3)]

    def oracle(context: Context) -> Answers:
        episodes = context.episodes
        own = episodes.support.shape[1] // 3, episodes.labels.shape[2]
        sure = log_softmax(9.0 * one_hot(episodes.query_truth, 3), -1)
        on_targets = len(episodes.query) == 3  # validation has 4 tasks
        by_size = {
            str(size): (sure if (size == own) != on_targets else sure.roll(1, -1), None) for size in sizes
        }
        # "flat" is as often right on validation tasks, but has a higher log loss
        return {"flat": (log_softmax(sure / 9, -1), None), **by_size}

    monkeypatch.setitem(METHODS, "oracle", Entry("beyond", None, oracle))
    run(tmp_path, ["oracle"], "target.annotators=[2,3]", splits=1)
    rows = cells(tmp_path)["split-0/cells/oracle.spammers.csv"]
    assert rows["setting"].tolist() == [
        str(size) for size in zip(rows["shots"], rows["annotators"], strict=True)
    ]
    assert (rows["accuracy"] == 0).all() and len(rows) == 4 * 2 * 3  # where "flat" would have been right


def compare(**methods: np.ndarray) -> Any:
    """Compare constructed methods with accuracies (split, shots, task)."""
    named = {OURS if name == "ours" else name: values for name, values in methods.items()}
    places = [
        (name, *place, float(value))
        for name, values in named.items()
        for place, value in np.ndenumerate(values)
    ]
    table = pd.DataFrame(places, columns=pd.Index(["method", "split", "shots", "task", "accuracy"]))
    return meta_tables.compare(table.assign(kind="p", annotators=3, share=0.2))


def test_tests_are_paired_t_tests_over_tasks_and_over_splits() -> None:
    rng = np.random.default_rng(0)
    ours = rng.uniform(0.5, 1, (3, 2, 20))
    gain = np.array([0.3, 0.2, -0.1])[:, None, None] + rng.normal(0, 0.02, ours.shape)
    others = {
        "near": ours + rng.normal(0, 0.1, ours.shape),
        "low": ours - gain,
        "best": ours + 0.02 + rng.normal(0, 0.01, ours.shape),
    }
    tests = compare(ours=ours, **others, same=ours.copy()).set_index(["method", "less", "size"])
    values = {OURS: ours, "same": ours, **others}
    assert len(tests) == 2 * 4 * 3  # two methods, the others, and all sizes with each of two
    for (first, less, size), row in tests.iterrows():
        a, b = (values[name] if size == "all" else values[name][:, [int(size[0])]] for name in (first, less))
        assert (
            row["tasks"] == a.size
            and row["difference"] == pytest.approx(a.mean() - b.mean())
            and row["kind"] == "p"
        )
        if less == "same" and first == OURS:
            assert (row["p_tasks"], row["p_splits"], row["verdict"], row["half_width"]) == (
                1,
                1,
                "tied",
                0,
            )  # the negative control
            continue
        assert row["p_tasks"] == pytest.approx(ttest_rel(a.ravel(), b.ravel()).pvalue)
        assert row["p_splits"] == pytest.approx(ttest_rel(a.mean((1, 2)), b.mean((1, 2))).pvalue)
        interval = ttest_1samp((a - b).ravel(), 0).confidence_interval()
        assert row["half_width"] == pytest.approx((interval.high - interval.low) / 2)
    verdicts = {less: tests.loc[(OURS, less, "all"), "verdict"] for less in ("low", "best", "near")}
    assert (
        verdicts == {"low": "ahead", "best": "behind", "near": "tied"}
        and tests.loc[("best", OURS, "all"), "verdict"] == "ahead"
    )
    assert (
        tests.loc[(OURS, "low", "all"), "splits_ahead"] == "2 of 3"
        and tests.loc[(OURS, "best", "1x3"), "splits_ahead"] == "0 of 3"
    )
    text = meta_tables.format_tests(tests.reset_index(), "p", OURS)
    assert all(words in text for words in (f"{OURS} less low", "2/0/0", "0/2/0", "0/0/2"))
    alone = compare(ours=ours[:1, :1, :1], low=ours[:1, :1, :1] - 0.5).iloc[0]
    assert np.isnan(alone["p_tasks"]) and np.isnan(alone["half_width"]) and alone["verdict"] == "tied"
    surely = compare(ours=np.full((2, 1, 3), 0.75), low=np.full((2, 1, 3), 0.5)).iloc[0]
    assert surely["p_tasks"] == 0 and surely["verdict"] == "ahead"


def drawn(kind: str, tasks: int, shots: int, annotators: int) -> Episodes:
    settings = tiny(
        Path("none"), f"target.tasks={tasks}", f"target.shots=[{shots}]", f"target.annotators=[{annotators}]"
    )
    (target,) = targets(settings, kind)
    return target.draw(settings, class_sources(settings).target)[1]


@pytest.mark.parametrize("annotators", [3, 5, 7])
def test_sparse_items_have_two_and_a_half_labels(annotators: int) -> None:
    given = (drawn("sparse", 4000, 2, annotators).labels >= 0).sum(-1)
    observed = 1.5 / (annotators - 1)
    error = np.sqrt((annotators - 1) * observed * (1 - observed) / given.numel())
    assert float(given.double().mean()) == pytest.approx(2.5, abs=4.5 * error) and given.min() == 1
    assert (drawn("flippers", 50, 2, annotators).labels >= 0).all()


def test_imbalanced_tasks_have_fewer_items_of_some_classes() -> None:
    for shots, counts in ((5, [2, 5, 8]), (3, [1, 3, 5])):
        episodes = drawn("imbalanced", 20, shots, 3)
        for support, query in zip(episodes.support_truth, episodes.query_truth, strict=True):
            assert sorted(torch.bincount(support).tolist()) == counts and torch.bincount(query).tolist() == [
                5,
                5,
                5,
            ]
    assert not list(targets(tiny(Path("none"), "target.shots=[1]"), "imbalanced"))


@pytest.mark.parametrize("kind", ["flippers", "class-spammers"])
def test_unusual_annotators_are_four_tenths(kind: str) -> None:
    matrix = drawn(kind, 3000, 1, 3).confusion.flatten(0, 1).double()  # (j, 3, 3)
    other = torch.stack(
        [matrix[:, (0, 1, 2), (1, 2, 0)], matrix[:, (0, 1, 2), (2, 0, 1)]], -1
    )  # the next class, and the one after
    even = (other[..., 0] - other[..., 1]).abs() < 1e-6
    own = matrix.diagonal(dim1=1, dim2=2)
    alike = (own - own[:, :1]).abs().amax(1) < 1e-6
    flipper = (other[..., 1].abs() < 1e-6).all(1) & ~even.any(1)
    guess = (own - 1 / 3).abs() < 1e-6
    plain = even.all(1) & alike
    kinds = {"expert": plain & (own[:, 0] > 0.8), "hammer": plain & (own[:, 0] > 0.5) & (own[:, 0] <= 0.8)}
    shares = {"expert": 0.1, "hammer": 0.5, "unusual": 0.4}
    if kind == "flippers":
        assert other[flipper, :, 0].min() >= 0.1 and other[flipper, :, 0].max() <= 0.5
        kinds["unusual"] = flipper
    else:  # each of their classes is guessed or known as by another expert
        kinds["unusual"] = (guess | (own > 0.8)).all(1) & ~kinds["expert"]
        assert float(guess[kinds["unusual"]].double().mean()) == pytest.approx(0.5, abs=0.03)
    for name, share in shares.items():
        assert float(kinds[name].double().mean()) == pytest.approx(
            share, abs=4.5 * np.sqrt(share * (1 - share) / len(matrix))
        ), name


def separated(votes: Sequence[Sequence[int]], spread: float = 0.1) -> tuple[EpisodeSource, Episodes]:
    """One task of three far classes, two items each, with these labels, and 30 queries."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(36) % 3
    inputs = 2.0 * torch.eye(3)[truth] + spread * torch.randn(36, 3, generator=generator)
    index, classes = torch.arange(36)[None], torch.arange(3)
    source = EpisodeSource.of(ClassItems(inputs, truth, classes, classes, ("a", "b", "c")))
    labels = torch.tensor(votes)[None]
    nothing = torch.full((1, labels.shape[2], 3, 3), torch.nan)
    return source, Episodes(index[:, :6], truth[None, :6], labels, index[:, 6:], truth[None, 6:], nothing)


@pytest.mark.parametrize("kind", ["logistic", "forest"])
@pytest.mark.parametrize("labels", ["majority-vote", "dawid-skene"])
def test_classifiers_of_inputs_are_right_where_it_is_easy(
    kind: Literal["logistic", "forest"], labels: Literal["majority-vote", "dawid-skene"]
) -> None:
    for votes, right in (([[0] * 3, [1] * 3, [2] * 3] * 2, None), ([[1, 1, -1]] * 6, 1)):
        source, episodes = separated(votes)
        answers = input_classifiers(kind, labels, source, episodes, Prior(), 0)
        assert len(answers) == (3 if kind == "logistic" else 1)
        for scores in answers.values():
            assert (
                scores.shape == (1, 30, 3)
                and scores.isfinite().all()
                and scores.logsumexp(-1).abs().max() < 1e-5
            )
            assert (scores.argmax(-1) == (episodes.query_truth if right is None else right)).all()


def test_shared_votes_are_weights_of_items() -> None:
    source, episodes = separated([[0, 0], [1, 2], [2, 2], [0, 1], [1, 1], [2, -1]], 1.0)
    answer = input_classifiers("logistic", "majority-vote", source, episodes, Prior(), 0)["C = 1"]
    halves = [
        (0, 0),
        (0, 0),
        (1, 1),
        (1, 2),
        (2, 2),
        (2, 2),
        (3, 0),
        (3, 1),
        (4, 1),
        (4, 1),
        (5, 2),
        (5, 2),
    ]  # two to an item
    item, label = (np.array(each) for each in zip(*halves, strict=True))
    plain = LogisticRegression(C=0.5, max_iter=200, tol=1e-8).fit(source.pool[item].numpy(), label)
    expected = np.log((1 - 3e-3) * plain.predict_proba(source.pool[6:].numpy()) + 1e-3)
    assert answer[0].numpy() == pytest.approx(expected, abs=5e-3)


def test_a_figure_against_shares_has_a_line_for_each_method() -> None:
    table = pd.DataFrame(
        {
            "method": ["a", "b"] * 2,
            "share": [0.4, 0.4, 0.1, 0.1],
            "accuracy": [0.5, 0.6, 0.7, 0.8],
            "half_width": 0.05,
        }
    )
    containers: Any = share_figure(table).axes[0].containers
    lines = {bars.get_label(): bars.lines[0] for bars in containers}
    assert {name: list(line.get_ydata()) for name, line in lines.items()} == {
        "a": [0.7, 0.5],
        "b": [0.8, 0.6],
    }
    assert all(list(line.get_xdata()) == pytest.approx([0.1, 0.4], abs=0.013) for line in lines.values())


def test_the_command_prints_tables_and_their_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["reproduce", "meta-learning", "--quick", "--splits", "1", "--out", str(out)]
    arguments += ["--methods", f"PrMV; {OURS}"]
    arguments += [
        part for one in (*TINY, "target.shots=[1]", "target.annotators=[2,3]") for part in ("--set", one)
    ]
    ran = CliRunner().invoke(main, arguments, env={"PROBCROWD_DATA": None})
    assert ran.exit_code == 0, ran.output
    headings = ("spammers: accuracy in per cent by shots x annotators", "reported of the paper")
    for words in (*headings, "1x2   1x3", f"{OURS} less PrMV"):
        assert words in ran.output
    for name in ("table.csv", "tests.csv", "networks.csv", "published.csv", "spammers.png", "annotators.png"):
        assert str(out / name) in ran.output and (out / name).exists()
    wrong = CliRunner().invoke(main, [*arguments, "--only", "1"])
    assert wrong.exit_code == 1 and "splits are numbered from 0 to 0" in wrong.output


@pytest.mark.skipif("PROBCROWD_DATA" not in os.environ, reason="needs the data folder")
def test_labelme_tasks_have_real_labels_of_images_that_nothing_else_shows(tmp_path: Path) -> None:
    folder, images = Path(os.environ["PROBCROWD_DATA"], "labelme"), label_me()
    stored, order = pd.read_parquet(folder / "annotations.parquet"), pd.read_csv(folder / "tasks.csv")["task"]
    names = sorted(stored["worker"].unique())
    given = {
        (task, names.index(name)): label
        for task, name, label in stored[["task", "worker", "label"]].to_numpy()
    }
    assert len(names) == images.labels.shape[1] == 59 and Counter(images.part) == {
        "support": 1000,
        "source": 1094,
        "query": 594,
    }
    settings = tiny(tmp_path, "episode.annotators=[3]", data="labelme")
    sources = class_sources(settings)
    for shots in (1, 3):
        _, episodes = labelme_episodes(settings, shots)
        assert (images.part[episodes.support] == "support").all() and (
            images.part[episodes.query] == "query"
        ).all()
        assert all(
            torch.bincount(one).tolist() == [shots] * 8 for one in episodes.support_truth
        ) and episodes.query.shape == (3, 40)
        assert all(len(set(row.tolist())) == row.numel() for row in (*episodes.support, *episodes.query))
        for task, item, annotator in np.ndindex(*episodes.labels.shape):
            name = order[int(episodes.support[task, item])]
            assert int(episodes.labels[task, item, annotator]) == given.get((name, annotator), -1)
        shown = images.features[torch.cat([episodes.support, episodes.query], 1).flatten().unique()]
        trained = torch.cat([sources.training.pool, sources.validation.pool]).numpy()
        assert not {row.tobytes() for row in shown} & {row.tobytes() for row in trained}
    table: Any = run(
        tmp_path, [OURS, "tie-noise"], "episode.annotators=[3]", splits=1, kinds=(), dataset=Path("labelme")
    )
    assert (
        (table["kind"] == "labelme").all()
        and (table["annotators"] == 59).all()
        and table["confusion_error"].isna().all()
    )
    assert table["tasks"].tolist() == [3] * 4 and table["accuracy"].between(0.125, 1).all()


def test_tables_and_figures_of_few_methods_and_kinds(tmp_path: Path) -> None:
    for number, names in enumerate((["PrMV", "MCL"], [OURS])):
        out = tmp_path / str(number)
        run(out, names, "target.shots=[1]", splits=1)
        assert pd.read_csv(out / "tests.csv").empty and (out / "spammers.png").exists()
    with pytest.raises(ValueError, match="holds no results"):
        run(tmp_path / "one", ["PrMV"], "target.shots=[1]", splits=1, kinds=("imbalanced",))

"""Fits of LIA in folders: files, loading, kills at every point, and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probcrowd.data.annotations import Annotations
from probcrowd.estimators.lia.lia import LIA, load_lia
from probcrowd.estimators.lia.multi_label import MultiLabelLIA
from probcrowd.inference.lia import em
from probcrowd.inference.lia.em import State
from probcrowd.models.lia.prior import LIAPrior
from probcrowd.storage import fit as fit_storage
from probcrowd.storage.checkpoint import load_checkpoint
from probcrowd.storage.folder import RunFolder
from probcrowd.storage.settings import Settings, write_settings

WHOLE: dict[str, Any] = {"dependence": "ignore", "rounds": 2, "steps": 3, "last_steps": 120, "tolerance": 0.0}
BATCHES: dict[str, Any] = {
    "dependence": "ignore",
    "rounds": 2,
    "steps": 3,
    "last_steps": 5,
    "batch": 9,
    "learning_rate": 0.01,
}
KINDS = pytest.mark.parametrize("options", [WHOLE, BATCHES], ids=["all at once", "batches"])
FRAMES = [
    "probabilities_",
    "items_",
    "annotators_",
    "confusion_",
    "competence_",
    "annotator_map_",
    "truth_probabilities_",
]


def annotations(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    item, annotator = (
        np.repeat(np.arange(12), 3),
        np.concatenate([rng.choice(4, 3, replace=False) for _ in range(12)]),
    )
    label = np.where(rng.random(36) < 0.7, item % 3, rng.integers(0, 3, 36))
    return pd.DataFrame({"item": item, "annotator": annotator, "label": label})


def features_of(seed: int = 0, width: int = 3) -> pd.DataFrame:
    """Features of the twelve items and of three more."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        rng.normal(size=(15, width)) + np.eye(3)[np.arange(15) % 3][:, [0]],
        columns=[f"x{c}" for c in range(width)],
    )


def fit(folder: Path | None, options: dict[str, Any], *, resume: bool = False) -> LIA:
    gold = pd.Series({0: 0, 4: 1})
    return LIA(**options).fit(
        annotations(),
        gold,
        features=features_of(),
        annotator_features=features_of(1).head(4),
        folder=folder,
        resume=resume,
    )


def require_same(left: LIA, right: LIA) -> None:
    """Assert that two fits have the same parameters and results, bit for bit."""
    assert left.parameters_.keys() == right.parameters_.keys()
    for name, value in left.parameters_.items():
        np.testing.assert_array_equal(value, right.parameters_[name], name)
    for name in FRAMES:
        pd.testing.assert_frame_equal(getattr(left, name), getattr(right, name), check_exact=True)
    for name in ("labels_", "class_prior_", "difficulty_"):
        pd.testing.assert_series_equal(getattr(left, name), getattr(right, name), check_exact=True)
    pd.testing.assert_frame_equal(left.probability_right(), right.probability_right(), check_exact=True)
    pd.testing.assert_index_equal(left.classes_, right.classes_, exact=True)
    np.testing.assert_array_equal(left.log_posterior_, right.log_posterior_)
    assert (left.n_iter_, left.converged_) == (right.n_iter_, right.converged_)


# Files


@KINDS
def test_a_finished_folder_holds_settings_metrics_checkpoints_and_ids(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    fitted = fit(tmp_path / "new" / "fit", options)
    folder = RunFolder(tmp_path / "new" / "fit")
    tables = ["items.parquet", "annotators.parquet", "classes.parquet"]
    checkpoints = ["checkpoint.safetensors", "checkpoint.previous.safetensors", "model.safetensors"]
    expected = {".lock", "config.json", "provenance.json", "metrics.jsonl", *checkpoints, *tables}
    assert set(os.listdir(folder.path)) == expected
    rows = folder.read_metrics()
    assert [row["step"] for row in rows] == list(range(1, fitted.n_iter_ + 1)) and fitted.n_iter_ >= 4
    assert [row["log_posterior"] for row in rows] == fitted.log_posterior_.tolist()
    parameters = json.loads(json.loads(folder.config.read_text())["parameters"])
    assert parameters == {
        name: value for name, value in fitted.get_params().items() if name not in ("progress", "dependence")
    }
    assert pd.read_parquet(folder.path / "items.parquet")["id"].tolist() == list(range(12))
    assert load_checkpoint(folder.path / "checkpoint.safetensors").state["step"] == fitted.n_iter_
    require_same(fit(None, options), fitted)  # the folder changes nothing


# Loading

CLASSES: dict[str, Callable[[int], Any]] = {
    "text": lambda k: ["no", "yes", "ähm"][k],
    "whole": lambda k: 10 * k - 5,
    "numbers of two kinds": lambda k: [1, 2.5, 3][k],
    "dates": lambda k: pd.Timestamp("2020-01-01", tz="UTC") + pd.Timedelta(days=k),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_loaded_fit_answers_as_the_fit_did(tmp_path: Path, kind: str) -> None:
    change = CLASSES[kind]
    table = annotations()
    table = table.assign(
        label=pd.Series([change(k) for k in table["label"]], dtype=object),
        item="i" + table["item"].astype(str),
    )
    features = features_of(width=20).rename(index=lambda i: f"i{i}")  # more columns than items
    prior = LIAPrior(hidden=(3,), latent=2, difficulty_hidden=(2,))
    options = WHOLE | {"prior": prior, "last_steps": 0}
    weighted = Annotations.from_frame(
        table.assign(w=1.0 + np.arange(36) % 2), weight="w", items=[*features.index[:12], "blank"]
    )
    features.loc["blank"] = 0.5
    gold = pd.Series({"i0": change(0)})
    fitting = LIA(**options).set_params(random_state=np.int64(3))
    fitted = fitting.fit(
        weighted, gold, features=features, annotator_features=features_of(1), folder=tmp_path
    )
    loaded = load_lia(str(tmp_path))
    require_same(loaded, fitted)
    assert loaded.get_params() == fitted.get_params() and loaded.prior == prior
    new = features.tail(4)[features.columns[::-1]]  # columns by name
    pd.testing.assert_frame_equal(loaded.predict_items(new), fitted.predict_items(new), check_exact=True)
    pd.testing.assert_frame_equal(
        loaded.probability_right(features=new), fitted.probability_right(features=new), check_exact=True
    )
    pd.testing.assert_frame_equal(loaded.predict_proba(weighted), fitted.probabilities_, check_exact=True)
    question = table.iloc[[1, 5, 9]].assign(item=["i13", "i13", "i4"], annotator=[7, 8, 0])
    people = features_of(1)
    result = [
        each.predict_proba(question, features=features, annotator_features=people)
        for each in (loaded, fitted)
    ]
    pd.testing.assert_frame_equal(*result, check_exact=True)
    assert loaded.score(None, gold) == 1
    with pytest.raises(ValueError, match="dependence was not checked"):
        _ = loaded.dependent_pairs_


def test_a_loaded_fit_without_features_or_with_abstentions_answers_too(tmp_path: Path) -> None:
    fitted = LIA(**(WHOLE | {"abstention": 2})).fit(annotations(), folder=tmp_path / "plain")
    loaded = load_lia(tmp_path / "plain")
    require_same(loaded, fitted)
    assert loaded.abstention == 2 and list(loaded.classes_) == [0, 1]
    part = annotations().head(5)
    pd.testing.assert_frame_equal(loaded.predict_proba(part), fitted.predict_proba(part), check_exact=True)
    coded = LIA(**(WHOLE | {"objective": "as_coded", "batch": "all", "prior": LIAPrior()})).fit(
        annotations(), folder=tmp_path / "coded"
    )
    require_same(load_lia(tmp_path / "coded"), coded)
    pd.testing.assert_frame_equal(
        load_lia(tmp_path / "coded").predict_proba(part), coded.predict_proba(part), check_exact=True
    )


# Kills


class Killed(Exception):
    pass


def kill(monkeypatch: pytest.MonkeyPatch, where: str, after: int) -> None:
    """Raise `Killed` instead of, or after, call number `after` of one of the two writes of a round."""
    target, name = (fit_storage, "save_latest") if "checkpoint" in where else (RunFolder, "append_metrics")
    write, calls = getattr(target, name), []

    def dies(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == after and where.startswith("before"):
            raise Killed
        write(*arguments)
        if len(calls) == after:
            raise Killed

    monkeypatch.setattr(target, name, dies)


def starting_states(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """Record the states from which rounds start."""
    states: list[State] = []
    advance = em.advance
    monkeypatch.setattr(em, "advance", lambda state, *rest: states.append(state) or advance(state, *rest))
    return states


@pytest.mark.parametrize("where", ["before the checkpoint", "after the checkpoint", "before the metrics"])
@KINDS
def test_a_fit_killed_in_any_round_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], where: str
) -> None:
    whole = fit(tmp_path / "whole", options)
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert whole.n_iter_ >= 4
    for unit in range(1, whole.n_iter_ + 1):
        folder = tmp_path / f"killed {unit}"
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill(patch, where, unit)
            fit(folder, options)
        with pytest.raises(
            ValueError, match=r"killed \d has not finished: fit the same data with resume=True"
        ):
            load_lia(folder)
        with monkeypatch.context() as patch:
            states = starting_states(patch)
            again = fit(folder, options, resume=True)
        assert [state.unit for state in states] == list(
            range(unit - where.startswith("before"), whole.n_iter_)
        )  # no round twice
        require_same(again, whole)
        require_same(load_lia(folder), whole)
        assert (folder / "metrics.jsonl").read_bytes() == metrics


KILLED = """
import os, signal, sys
from pathlib import Path
import test_saved
from probcrowd.estimators.lia import lia
def save_then_die(folder, state, save=lia.save_state):
    save(folder, state)
    if state.unit == 2:
        os.kill(os.getpid(), signal.SIGKILL)
lia.save_state = save_then_die
test_saved.fit(Path(sys.argv[1]), test_saved.BATCHES)
"""


def test_a_killed_process_leaves_a_fit_that_resumes(tmp_path: Path) -> None:
    where = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(where), str(where.parents[2])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", KILLED, str(tmp_path / "fit")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [row["step"] for row in RunFolder(tmp_path / "fit").read_metrics()] == [1, 2]
    require_same(fit(tmp_path / "fit", BATCHES, resume=True), fit(None, BATCHES))


def test_a_finished_fit_is_resumed_without_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit(tmp_path, BATCHES)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(em, "advance", None)
    require_same(
        fit(tmp_path, BATCHES | {"dependence": "warn", "progress": True}, resume=True), fitted
    )  # neither changes the result
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_resume_in_a_new_folder_starts(tmp_path: Path) -> None:
    require_same(fit(tmp_path, BATCHES, resume=True), fit(None, BATCHES))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch, "after the checkpoint", 3)
        fit(tmp_path, BATCHES)
    newest = tmp_path / "checkpoint.safetensors"
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.warns(
        UserWarning, match="going back to the previous checkpoint .*checkpoint.previous.safetensors"
    ):
        again = fit(tmp_path, BATCHES, resume=True)
    require_same(again, fit(None, BATCHES))
    assert [row["step"] for row in RunFolder(tmp_path).read_metrics()] == [1, 2, 3, 4]
    for name in ("checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (tmp_path / name).write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="no usable checkpoint"):
        fit(tmp_path, BATCHES, resume=True)


# Errors


def test_other_data_or_parameters_are_refused(tmp_path: Path) -> None:
    fit(tmp_path, BATCHES)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    gold, people = pd.Series({0: 0, 4: 1}), features_of(1).head(4)
    given: dict[str, Any] = {"gold": gold, "features": features_of(), "annotator_features": people}
    table = annotations()
    for options, data, changed, words in (
        (BATCHES | {"rounds": 3}, table, {}, "parameters: .*rounds.*3"),
        (BATCHES | {"random_state": 1}, table, {}, "parameters: "),
        (BATCHES | {"prior": LIAPrior(truth=2.0)}, table, {}, "parameters: .*2.0"),
        (BATCHES, table.assign(label=table["label"].where(table.index != 5, 0)), {}, "data: "),
        (
            BATCHES,
            table.assign(item=table["item"] + 0.5),
            {"features": features_of().rename(index=lambda i: i + 0.5), "gold": None},
            "data: ",
        ),
        (
            BATCHES,
            table.assign(item=table["item"].astype(str)),
            {"features": features_of().rename(index=str), "gold": None},
            "data: ",
        ),
        (
            BATCHES,
            table.assign(annotator=table["annotator"].astype(str)),
            {"annotator_features": people.rename(index=str)},
            "data: ",
        ),
        (BATCHES, table.assign(label=table["label"].map({0: 0, 1: 1, 2: 3})), {}, "data: "),
        (BATCHES, Annotations.from_frame(table.assign(w=2.0), weight="w"), {}, "data: "),
        (BATCHES, table, {"gold": gold.head(1)}, "data: "),
        (BATCHES, table, {"features": features_of(5)}, "data: "),
        (BATCHES, table, {"features": None}, "data: "),
        (BATCHES, table, {"annotator_features": features_of(2)}, "data: "),
    ):
        with pytest.raises(ValueError, match=rf"holds a run with other settings \(old -> new\):\n  {words}"):
            LIA(**options).fit(data, folder=tmp_path, resume=True, **(given | changed))
    with pytest.raises(ValueError, match="already holds a run"):
        fit(tmp_path, BATCHES)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_ids_and_parameters_that_no_file_gives_back_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(em, "advance", None)
    for change in (lambda i: ("a", i), lambda i: (i, i)):
        table = annotations().assign(item=annotations()["item"].map(change))
        with pytest.raises(
            ValueError, match=r"a folder stores ids that are text, numbers, booleans or dates, not \("
        ):
            LIA(**WHOLE).fit(table, folder=tmp_path)
    dated = annotations().assign(
        label=pd.Timestamp("2020-01-01") + pd.to_timedelta(annotations()["label"], unit="D")
    )
    with pytest.raises(
        ValueError, match="a folder stores parameters that are text or numbers, not Timestamp"
    ):
        LIA(abstention=pd.Timestamp("2020-01-01"), **WHOLE).fit(dated, folder=tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(
            ValueError, match=r"is no run but holds thesis\.tex; give a new or an empty folder"
        ):
            fit(tmp_path, BATCHES, resume=resume)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex is a file; give a folder"):
        fit(tmp_path / "thesis.tex", BATCHES)


class Other(Settings):
    out: str = "elsewhere"
    steps: int = 3


def test_only_finished_fits_are_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere holds no fit: it has no config\.json"):
        load_lia(tmp_path / "nowhere")
    fit(tmp_path / "fit", BATCHES)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_settings(Other(), foreign / "config.json")
    (foreign / "model.safetensors").write_bytes((tmp_path / "fit" / "model.safetensors").read_bytes())
    with pytest.raises(
        ValueError, match="foreign holds no fit of LIA, or its files are damaged: invalid settings"
    ):
        load_lia(foreign)
    table = pd.concat([annotations().assign(question=question) for question in ("a", "b")])
    MultiLabelLIA(rounds=1, steps=1, last_steps=0).fit(table, folder=tmp_path / "several")
    with pytest.raises(
        ValueError,
        match="several holds a fit of MultiLabelLIA, not of LIA: load it with load_multi_label_lia",
    ):
        load_lia(tmp_path / "several")


@pytest.mark.parametrize("name", ["items.parquet", "classes.parquet", "config.json"])
def test_damaged_files_are_reported(tmp_path: Path, name: str) -> None:
    fit(tmp_path, BATCHES)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="holds no fit of LIA, or its files are damaged"):
        load_lia(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="holds no fit"):
        load_lia(tmp_path)
    (tmp_path / name).write_bytes(whole)
    model = tmp_path / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged \(its SHA-256 sum differs\)"):
        load_lia(tmp_path)

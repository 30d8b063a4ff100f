"""`SimLabel` in folders: stops, kills, loading and errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sim_label_crowd import LOW, embed, every_architecture, ready, require_same, simulate
from torch import nn

from probcrowd.estimators.crowd.classifier import CrowdClassifier, load_crowd_classifier
from probcrowd.estimators.simlabel import sim_label
from probcrowd.estimators.simlabel.sim_label import SimLabel, load_sim_label
from probcrowd.storage import fit as fit_storage


class Stopped(BaseException):
    """Raised in place of a kill."""


def stop_in(patch: pytest.MonkeyPatch, after: int) -> None:
    """Stop the fit after that epoch; 0: after the last one, before the result is written."""
    save = fit_storage.save_latest

    def stopping(path: Path, tensors: Any, state: Any) -> None:
        save(path, tensors, state)
        if state["step"] == after:
            raise Stopped

    def stop(*arguments: object) -> None:
        raise Stopped

    patch.setattr(fit_storage, "save_latest", stopping)
    if not after:
        patch.setattr(sim_label, "save_network", stop)


@pytest.mark.parametrize("more", [{}, {"threshold": LOW}, {"threshold": LOW, "imputed": "loss"}])
@every_architecture
def test_a_stop_after_any_epoch_ends_at_the_same_bits(
    architecture: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, X, _ = simulate()
    options = {"encoder": None, "epochs": 4, **more}  # with dropout
    whole = ready(architecture, **options).fit(X, table)
    assert len(whole.imputed_) or not more
    for after in (1, 3, 0):
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch:
            stop_in(patch, after)
            with pytest.raises(Stopped):
                ready(architecture, **options).fit(X, table, folder=folder)
        with pytest.raises(ValueError, match="has not finished"):
            load_sim_label(folder)
        require_same(ready(architecture, **options).fit(X, table, folder=folder, resume=True), whole, X)
        require_same(load_sim_label(folder), whole, X)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
    require_same(ready(architecture, **options).fit(X, table, folder=folder, resume=True), whole, X)


def test_a_stop_at_the_end_of_a_warm_up_imputes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `channel.active` is set by `start_epoch`, which a resumed fit without epochs left never calls
    table, X, _ = simulate()
    options: dict[str, Any] = {"threshold": LOW, "warm_up": 3}
    whole = ready(**options).fit(X, table)
    with monkeypatch.context() as patch:
        stop_in(patch, 0)
        with pytest.raises(Stopped):
            ready(**options).fit(X, table, folder=tmp_path)
    require_same(ready(**options).fit(X, table, folder=tmp_path, resume=True), whole, X)


def test_labels_are_imputed_only_if_the_selected_epoch_is_after_the_warm_up() -> None:
    table, X, _ = simulate()
    options: dict[str, Any] = {"threshold": LOW, "selection": "last", "epochs": 3}
    assert not len(ready(warm_up=3, **options).fit(X, table).imputed_)
    assert len(ready(warm_up=2, **options).fit(X, table).imputed_)


def test_a_killed_process_resumes(tmp_path: Path) -> None:
    table, X, _ = simulate()
    table.to_csv(tmp_path / "labels.csv", index=False)
    X.to_csv(tmp_path / "inputs.csv")
    code = (
        "import sys, pandas as pd, torch; torch.set_num_threads(1)\n"
        "from probcrowd.estimators.simlabel.sim_label import SimLabel\n"
        f"table = pd.read_csv('{tmp_path}/labels.csv')\n"
        f"X = pd.read_csv('{tmp_path}/inputs.csv', index_col=0)\n"
        f"SimLabel(epochs=100, threshold={LOW}).fit(X, table, "
        f"folder='{tmp_path}/fit', resume='again' in sys.argv)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "fit" / "checkpoint.previous.safetensors").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="has not finished"):
        load_sim_label(tmp_path / "fit")
    subprocess.run([sys.executable, "-c", code, "again"], check=True)
    X = pd.read_csv(tmp_path / "inputs.csv", index_col=0)
    whole = SimLabel(epochs=100, threshold=LOW).fit(X, pd.read_csv(tmp_path / "labels.csv"))
    require_same(load_sim_label(tmp_path / "fit"), whole, X)


def test_a_folder_gives_back_all_that_was_learned(tmp_path: Path) -> None:
    table, X, truth = simulate()
    numbers = table.assign(label=table["label"].map({"ant": 0, "bee": 1, "cat": 5}))
    gone = pd.DataFrame({"item": ["pic1", "pic2"], "annotator": ["u", "v"]})
    fitted = ready("qumatl", similarity="pearson", threshold=LOW).fit(
        X, numbers, withdrawn=gone, folder=tmp_path
    )
    again = load_sim_label(tmp_path, embed)
    require_same(again, fitted, X)
    assert len(again.withdrawn_) == 2 and again.get_params() == fitted.get_params()
    gold = truth.map({"ant": 0, "bee": 1, "cat": 5})
    pd.testing.assert_series_equal(
        again.evaluate(X, numbers, gold).overall, fitted.evaluate(X, numbers, gold).overall
    )
    for one in (again, fitted):
        one.withdraw(one.imputed_.iloc[:5])
    require_same(again, fitted, X)
    with pytest.raises(ValueError, match="columns item and annotator"):
        again.withdraw(gone[["item"]])


def test_folders_of_other_data_settings_or_encoders_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    table, X, _ = simulate()
    gone = pd.DataFrame({"item": ["pic1"], "annotator": ["u"]})
    folder, modules = (
        tmp_path / "fit",
        [nn.Sequential(nn.Linear(4, 8), bend) for bend in (nn.ReLU(), nn.Tanh())],
    )
    ready(encoder=modules[0]).fit(X, table, folder=folder)
    with pytest.raises(ValueError, match="already holds a run"):
        ready(encoder=modules[0]).fit(X, table, folder=folder)
    others = (
        {"epochs": 5},
        {"threshold": 0.5},
        {"kl_weight": 0.5},
        {"options": {"width": 8}},
        {"encoder": modules[1]},
        {"random_state": 1},
    )
    for other in others:
        with pytest.raises(ValueError, match=r"other settings(.|\n)*->"):
            ready(**{"encoder": modules[0], **other}).fit(X, table, folder=folder, resume=True)
    for items, labels, pairs in ((X, table[1:], None), (X + 1, table, None), (X, table, gone)):
        with pytest.raises(ValueError, match=r"other settings(.|\n)*data"):
            ready(encoder=modules[0]).fit(items, labels, withdrawn=pairs, folder=folder, resume=True)
    for wrong, words in (
        (modules[1], "another network"),
        (nn.Linear(4, 8), "another network"),
        (None, "network of its own: pass it to load the fit"),
    ):
        with pytest.raises(ValueError, match=words):
            load_sim_label(folder, wrong)
    with pytest.raises(ValueError, match="holds no fit"):
        load_sim_label(tmp_path / "nowhere")
    CrowdClassifier(epochs=1).fit(X, table, folder=tmp_path / "classifier")
    with pytest.raises(
        ValueError,
        match="holds a fit of CrowdClassifier, not of SimLabel: load it with load_crowd_classifier",
    ):
        load_sim_label(tmp_path / "classifier")
    for name in ("model.safetensors", "config.json", "items.parquet"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="damaged"):
            load_sim_label(folder, modules[0])
        (folder / name).write_bytes(whole)
    load_sim_label(folder, modules[0])


def test_a_fit_of_another_estimator_is_not_loaded_as_a_classifier(tmp_path: Path) -> None:
    # The folder of a `SimLabel` has all the ids that a classifier needs
    table, X, _ = simulate()
    ready(encoder=None, epochs=1).fit(X, table, folder=tmp_path)
    with pytest.raises(
        ValueError, match="holds a fit of SimLabel, not of CrowdClassifier: load it with load_sim_label"
    ):
        load_crowd_classifier(tmp_path)

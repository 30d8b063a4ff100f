"""`SimLabel` in a folder: stops, kills, what comes back, and what is refused."""

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
    """What a kill would be."""


def stop_in(patch: pytest.MonkeyPatch, after: int) -> None:
    """The fit stops after so many epochs, or, for 0, when all of them are done and the result is to be
    written."""
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
    said, seen, _ = simulate()
    options = {"encoder": None, "epochs": 4, **more}  # with dropout
    whole = ready(architecture, **options).fit(seen, said)
    assert len(whole.imputed_) or not more
    for after in (1, 3, 0):
        folder = tmp_path / str(after)
        with monkeypatch.context() as patch:
            stop_in(patch, after)
            with pytest.raises(Stopped):
                ready(architecture, **options).fit(seen, said, folder=folder)
        with pytest.raises(ValueError, match="has not finished"):
            load_sim_label(folder)
        require_same(ready(architecture, **options).fit(seen, said, folder=folder, resume=True), whole, seen)
        require_same(load_sim_label(folder), whole, seen)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
    require_same(ready(architecture, **options).fit(seen, said, folder=folder, resume=True), whole, seen)


def test_a_stop_at_the_end_of_a_warm_up_imputes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `channel.active` is as after `begin` in a fit that was not stopped, and as after `__init__` in one that has no epoch left.
    said, seen, _ = simulate()
    options: dict[str, Any] = {"threshold": LOW, "warm_up": 3}
    whole = ready(**options).fit(seen, said)
    with monkeypatch.context() as patch:
        stop_in(patch, 0)
        with pytest.raises(Stopped):
            ready(**options).fit(seen, said, folder=tmp_path)
    require_same(ready(**options).fit(seen, said, folder=tmp_path, resume=True), whole, seen)


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    said.to_csv(tmp_path / "said.csv", index=False)
    seen.to_csv(tmp_path / "seen.csv")
    code = (
        "import sys, pandas as pd, torch; torch.set_num_threads(1)\n"
        "from probcrowd.estimators.simlabel.sim_label import SimLabel\n"
        f"said, seen = pd.read_csv('{tmp_path}/said.csv'), pd.read_csv('{tmp_path}/seen.csv', index_col=0)\n"
        f"SimLabel(epochs=100, threshold={LOW}).fit(seen, said, folder='{tmp_path}/fit', resume='again' in sys.argv)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "fit" / "checkpoint.previous.safetensors").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="has not finished"):
        load_sim_label(tmp_path / "fit")
    subprocess.run([sys.executable, "-c", code, "again"], check=True)
    seen = pd.read_csv(tmp_path / "seen.csv", index_col=0)
    whole = SimLabel(epochs=100, threshold=LOW).fit(seen, pd.read_csv(tmp_path / "said.csv"))
    require_same(load_sim_label(tmp_path / "fit"), whole, seen)


def test_a_folder_gives_back_all_that_was_learned(tmp_path: Path) -> None:
    said, seen, truth = simulate()
    numbers = said.assign(label=said["label"].map({"ant": 0, "bee": 1, "cat": 5}))
    gone = pd.DataFrame({"item": ["pic1", "pic2"], "annotator": ["u", "v"]})
    fitted = ready("qumatl", similarity="pearson", threshold=LOW).fit(
        seen, numbers, withdrawn=gone, folder=tmp_path
    )
    again = load_sim_label(tmp_path, embed)
    require_same(again, fitted, seen)
    assert len(again.withdrawn_) == 2 and again.get_params() == fitted.get_params()
    gold = truth.map({"ant": 0, "bee": 1, "cat": 5})
    pd.testing.assert_series_equal(
        again.evaluate(seen, numbers, gold).overall, fitted.evaluate(seen, numbers, gold).overall
    )
    for one in (again, fitted):
        one.withdraw(one.imputed_.iloc[:5])
    require_same(again, fitted, seen)
    with pytest.raises(ValueError, match="columns item and annotator"):
        again.withdraw(gone[["item"]])


def test_folders_of_other_data_settings_or_encoders_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    said, seen, _ = simulate()
    gone = pd.DataFrame({"item": ["pic1"], "annotator": ["u"]})
    folder, modules = (
        tmp_path / "fit",
        [nn.Sequential(nn.Linear(4, 8), bend) for bend in (nn.ReLU(), nn.Tanh())],
    )
    ready(encoder=modules[0]).fit(seen, said, folder=folder)
    with pytest.raises(ValueError, match="already holds a run"):
        ready(encoder=modules[0]).fit(seen, said, folder=folder)
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
            ready(**{"encoder": modules[0], **other}).fit(seen, said, folder=folder, resume=True)
    for items, labels, pairs in ((seen, said[1:], None), (seen + 1, said, None), (seen, said, gone)):
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
    CrowdClassifier(epochs=1).fit(seen, said, folder=tmp_path / "classifier")
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


def test_a_fit_of_another_estimator_is_told_from_a_classifier(tmp_path: Path) -> None:
    # It is a TypeError of `CrowdClassifier.__init__`, as the folder of a `SimLabel` has all ids that a classifier has.
    said, seen, _ = simulate()
    ready(encoder=None, epochs=1).fit(seen, said, folder=tmp_path)
    with pytest.raises(
        ValueError, match="holds a fit of SimLabel, not of CrowdClassifier: load it with load_sim_label"
    ):
        load_crowd_classifier(tmp_path)

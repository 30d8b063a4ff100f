"""Runs: deterministic, resumable after a kill, the same in one process and in two, usable for new tasks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from probcrowd import Annotations, MetaTraining, load_run, meta_train
from probcrowd.data.image_sets import load_classes
from probcrowd.inference.meta.meta_loss import meta_loss
from probcrowd.models.encoders import Conv4
from probcrowd.runs.meta import processes, train
from probcrowd.runs.meta.configuration import Encoder
from probcrowd.runs.meta.evaluate import evaluate_run, paired_difference
from probcrowd.runs.meta.network import build_encoder, new_network
from probcrowd.runs.meta.sources import class_sources
from probcrowd.runs.meta.train import Progress, training_episodes
from probcrowd.storage.checkpoint import load_checkpoint


def small(out: Path, steps: int = 60, patience: int = 1000, **more: object) -> MetaTraining:
    sizes = {"shots": (1, 3), "annotators": (3,), "tasks": 4}
    training = {
        "steps": steps,
        "validate_every": 20,
        "validation_tasks": 4,
        "checkpoint_every": 7,
        "patience": patience,
    }
    return MetaTraining.model_validate(
        {
            "out": out,
            "seed": 3,
            "encoder": {"hidden": (16,), "dimension": 8},
            "episode": sizes,
            "training": training,
            **more,
        }
    )


def toml(settings: MetaTraining) -> str:
    """Write settings as TOML for the command."""
    episode, training = settings.episode, settings.training
    return "\n".join(
        [
            f'out = "{settings.out}"',
            f"seed = {settings.seed}",
            "[encoder]",
            f"hidden = {list(settings.encoder.hidden)}",
            f"dimension = {settings.encoder.dimension}",
            "[episode]",
            f"tasks = {episode.tasks}",
            f"shots = {list(episode.shots)}",
            f"annotators = {list(episode.annotators)}",
            "[training]",
            *(f"{name} = {value}" for name, value in training.model_dump().items()),
        ]
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "probcrowd", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(out / "model.safetensors").tensors)


def assert_same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys() and len(left) > 0
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def interrupt(monkeypatch: pytest.MonkeyPatch, loss: str, call: int) -> None:
    """Interrupt training at a call of its loss."""
    original, calls = getattr(train, loss), []

    def interrupted(*arguments: object) -> torch.Tensor:
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, loss, interrupted)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)
    meta_train(small(out), progress=False)
    return out


def test_a_run_is_deterministic_under_its_seed(trained: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # the global state must not matter, nor be touched
    before = torch.get_rng_state()
    meta_train(small(tmp_path / "again"), progress=False)
    assert torch.equal(before, torch.get_rng_state())
    assert_same_bits(weights(trained), weights(tmp_path / "again"))
    assert metrics(trained) == metrics(tmp_path / "again")
    meta_train(small(tmp_path / "other", seed=4), progress=False)
    assert any(
        not torch.equal(tensor, weights(trained)[name])
        for name, tensor in weights(tmp_path / "other").items()
    )


def test_a_run_records_metrics_settings_and_versions(trained: Path) -> None:
    rows = metrics(trained)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    assert all("validation_accuracy" in row for row in rows if row["step"] % 20 == 0)
    assert json.loads((trained / "config.json").read_text())["seed"] == 3
    assert "torch" in json.loads((trained / "provenance.json").read_text())
    best = max(
        (row for row in rows if "validation_accuracy" in row), key=lambda row: row["validation_accuracy"]
    )
    assert load_checkpoint(trained / "model.safetensors").state["step"] == best["step"]


def test_after_kills_at_any_moment_the_same_weights_are_reached(tmp_path: Path) -> None:
    settings = small(tmp_path / "killed", steps=300)
    (tmp_path / "config.toml").write_text(toml(settings))
    for goal in (31, 150):
        process = subprocess.Popen(
            command("meta-train", tmp_path / "config.toml", "--resume"),
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            path = tmp_path / "killed" / "metrics.jsonl"
            reached = path.read_text().rpartition('{"step": ')[2].partition(",")[0] if path.exists() else ""
            if reached.isdigit() and int(reached) >= goal:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL
    meta_train(settings, resume=True, progress=False)
    meta_train(small(tmp_path / "whole", steps=300), progress=False)
    assert_same_bits(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(trained: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    meta_train(small(trained), resume=True, progress=False)
    assert {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()} == before


def test_a_run_is_neither_overwritten_nor_continued_with_other_settings(trained: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run; use --resume"):
        meta_train(small(trained), progress=False)
    with pytest.raises(ValueError, match=r"other settings.*\n.*training.steps: 60 -> 70"):
        meta_train(small(trained, steps=70), resume=True, progress=False)


def test_training_stops_after_patience_validations_without_improvement(tmp_path: Path) -> None:
    meta_train(small(tmp_path / "run", steps=4000, patience=2), progress=False)
    rows = [row for row in metrics(tmp_path / "run") if "validation_accuracy" in row]
    scores = [row["validation_accuracy"] for row in rows]
    assert rows[-1]["step"] < 4000
    assert len(scores) - 1 - scores.index(max(scores)) == 2
    meta_train(
        small(tmp_path / "run", steps=4000, patience=2), resume=True, progress=False
    )  # and does not go on
    assert len(metrics(tmp_path / "run")) == len({row["step"] for row in metrics(tmp_path / "run")})


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    meta_train(small(tmp_path / "one", steps=40), progress=False)
    (tmp_path / "two.toml").write_text(toml(small(tmp_path / "two", steps=40)))
    launch = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "probcrowd",
        "meta-train",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", *launch, str(tmp_path / "two.toml")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-5)
    for left, right in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert left["step"] == right["step"]
        assert ("validation_accuracy" in left) == ("validation_accuracy" in right)


def test_a_batch_that_processes_cannot_share_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(processes.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="episode.tasks = 4 cannot be shared evenly by 3 processes"):
        meta_train(small(tmp_path / "run"), progress=False)


def test_gradients_averaged_over_parts_equal_those_of_the_batch() -> None:
    settings = small(Path("unused"))
    sources = class_sources(settings)
    episodes, method = training_episodes(settings, sources.training, 1), settings.adaptation.method
    encoder = new_network(settings, sources.input_shape, None)
    grads = []
    for part in (episodes, episodes.part(0, 2), episodes.part(1, 2)):
        encoder.zero_grad()
        meta_loss(encoder, sources.training, part, method).backward()
        grads.append(
            [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]
        )
    for whole, first, second in zip(*grads, strict=True):
        torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro says so too
def test_a_loss_that_is_not_a_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(float("nan")))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1) * self.scale

    with pytest.raises(FloatingPointError, match="nan at step 1: lower training.learning_rate"):
        meta_train(small(tmp_path / "run", encoder={"kind": "own"}), encoder=Broken(), progress=False)


def test_a_network_of_the_users_own(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, 6))

    torch.manual_seed(1)
    own, settings = build(), small(tmp_path / "run", encoder={"kind": "own"})
    meta_train(settings, encoder=own, progress=False)
    run = load_run(tmp_path / "run", encoder=build())
    digits = load_classes("digits").inputs[:5].flatten(1).numpy()
    labels = pd.DataFrame({"item": [0, 1, 2, 3], "annotator": ["ann"] * 4, "label": ["a", "b", "a", "b"]})
    first = run.adapt(digits[:4], Annotations.from_frame(labels), digits[4:]).probabilities
    again = run.adapt(digits[:4], Annotations.from_frame(labels), digits[4:]).probabilities
    pd.testing.assert_frame_equal(first, again)  # dropout is off
    with pytest.raises(ValueError, match="pass the network as `encoder`"):
        load_run(tmp_path / "run")
    with pytest.raises(ValueError, match="set it to 'own'"):
        meta_train(small(tmp_path / "mlp"), encoder=own, progress=False)


def test_convolutional_networks_resume_with_their_running_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {
        "inputs": np.random.default_rng(0).integers(0, 256, (120, 1, 16, 16), dtype=np.uint8),
        "labels": np.arange(120) % 10,
    }
    np.savez(tmp_path / "images.npz", **arrays)
    sizes = {"shots": (1,), "annotators": (3,), "tasks": 2, "queries": 5}
    training = {"steps": 6, "validate_every": 3, "validation_tasks": 2, "checkpoint_every": 2}

    def settings(out: str) -> MetaTraining:
        return MetaTraining.model_validate(
            {
                "out": tmp_path / out,
                "data": str(tmp_path / "images.npz"),
                "encoder": {"kind": "conv4", "channels": 4},
                "episode": sizes,
                "training": training,
            }
        )

    meta_train(settings("whole"), progress=False)
    interrupt(monkeypatch, "meta_loss", 4)
    with pytest.raises(KeyboardInterrupt):
        meta_train(settings("stopped"), progress=False)
    monkeypatch.undo()
    meta_train(settings("stopped"), resume=True, progress=False)
    assert any("running_mean" in name for name in weights(tmp_path / "whole"))
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


LEARNED = {
    "inference": "variational",
    "population": True,
    "learned": ("precision", "scale", "temperature", "population"),
    "separate": True,
}


@pytest.mark.parametrize(
    ("adaptation", "loss"),
    [(LEARNED, "meta_loss"), ({"learner": "maml", "steps": 2}, "maml_loss")],
    ids=["learned prior", "maml"],
)
def test_learned_priors_and_maml_resume_to_the_same_bits(
    adaptation: dict[str, object], loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta_train(small(tmp_path / "whole", steps=24, adaptation=adaptation), progress=False)
    interrupt(monkeypatch, loss, 18)
    with pytest.raises(KeyboardInterrupt):
        meta_train(small(tmp_path / "stopped", steps=24, adaptation=adaptation), progress=False)
    monkeypatch.undo()
    meta_train(small(tmp_path / "stopped", steps=24, adaptation=adaptation), resume=True, progress=False)
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    run = load_run(tmp_path / "whole")
    images, wide = (
        pd.DataFrame(load_digits().data * 255 / 16),
        pd.DataFrame({"a": [3, 5, 3], "b": [3, 5, 5]}, index=[3, 5, 13]),
    )
    labels = Annotations.from_wide(wide)
    if loss == "maml_loss":
        with pytest.raises(ValueError, match="this run trained MAML"):
            run.adapt(images.loc[labels.items], labels, images.loc[[23, 25]])
        return
    learned = run.settings.adaptation.method.with_learned(run.encoder)
    assert float(torch.as_tensor(learned.temperature).detach()) != 1.0
    plain = run.settings.adaptation.method
    answers = [
        run.adapt(images.loc[labels.items], labels, images.loc[[23, 25]], method=each)
        for each in (None, learned, plain)
    ]
    pd.testing.assert_frame_equal(answers[0].probabilities, answers[1].probabilities)
    assert not np.allclose(answers[0].probabilities, answers[2].probabilities, atol=1e-4)
    for table in (answers[0].probabilities, answers[0].responsibilities, answers[0].confusion):
        assert np.allclose(table.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("adaptation", "words"),
    [
        ({"separate": True}, "leaves nothing to learn"),
        ({"learned": ("accuracy",)}, "set accuracy"),
        ({"population": True}, "needs inference = 'variational'"),
        ({"learned": ("population",)}, "set population = true"),
        ({"gradient": "implicit", "steps": 19}, "needs steps = 100 or more, got 19"),
        (
            {"inference": "variational", "gradient": "one-step"},
            "needs labels = .joint. and gradient = .unrolled.",
        ),
    ],
)
def test_adaptations_without_a_meaning_are_refused(
    adaptation: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        small(tmp_path / "run", adaptation=adaptation)


def test_settings_accept_hyphens_and_underscores(tmp_path: Path) -> None:
    given = {"labels": "dawid_skene", "gradient": "one_step"}
    adaptation = small(tmp_path / "run", adaptation=given).adaptation
    assert (adaptation.labels, adaptation.gradient) == ("dawid-skene", "one-step")


def test_implicit_gradients_are_allowed_from_twenty_steps_on(tmp_path: Path) -> None:
    assert small(tmp_path / "run", adaptation={"gradient": "implicit", "steps": 20}).adaptation.steps == 20


def test_only_a_higher_score_is_an_improvement_and_patience_counts_validations() -> None:
    progress, stopped = Progress(step=1), []
    for step, score in enumerate([0.5, 0.5, 0.6, 0.6, 0.4], start=1):
        progress = replace(progress, step=step).validated(score, patience=2)
        stopped.append(progress.stopped)
    assert stopped == [False, False, False, False, True]
    assert (progress.best_step, progress.best_accuracy, progress.since_best) == (3, 0.6, 2)


def test_a_variational_run_is_compared_with_aggregated_labels(tmp_path: Path) -> None:
    target = {"tasks": 2, "shots": (1,), "annotators": (3,), "spammers": (0.2,)}
    meta_train(small(tmp_path / "run", steps=2, adaptation=LEARNED, target=target), progress=False)
    table = evaluate_run(tmp_path / "run")
    assert list(table["method"]) == [
        "as trained",
        "majority-vote labels",
        "dawid-skene labels",
        "inputs, no network",
    ]


def test_a_split_is_ahead_only_with_a_positive_mean_difference() -> None:
    scores = pd.DataFrame(
        {
            "split": [0, 0, 1, 1, 2, 2],
            "task": [0, 0, 0, 0, 0, 0],
            "method": ["a", "b"] * 3,
            "accuracy": [0.6, 0.5, 0.5, 0.5, 0.4, 0.5],
        }
    )
    assert paired_difference(scores, "a", "b")["ahead"] == "1 of 3 splits"


def test_conv4_has_the_sizes_of_the_paper() -> None:
    for side, dimension in ((28, 64), (84, 1600)):
        assert Conv4(1, side).eval()(torch.zeros(1, 1, side, side)).shape == (1, dimension)
    assert Conv4(1, 16).eval()(torch.zeros(1, 1, 16, 16)).shape == (1, 64)
    with pytest.raises(ValueError, match="at least 16 x 16 pixels, got 15 x 15"):
        Conv4(1, 15)
    with pytest.raises(ValueError, match=r"inputs have shape \(64,\)"):
        build_encoder(Encoder(kind="conv4"), (64,))


def test_unusable_settings_are_refused_before_a_folder_is_written(tmp_path: Path) -> None:
    episode = {"shots": (1,), "annotators": (3,), "tasks": 4, "ways": 4}
    with pytest.raises(
        ValueError, match="episodes of 4 classes need as many families of classes, the source has 3"
    ):
        meta_train(small(tmp_path / "run", episode=episode), progress=False)
    with pytest.raises(
        ValueError, match=r"the network turns 13 items into a tensor of shape \(13, 1, 8, 5\)"
    ):
        meta_train(small(tmp_path / "run", encoder={"kind": "own"}), encoder=nn.Linear(8, 5), progress=False)
    with (
        pytest.raises(ValueError, match="finds no GPU")
        if not torch.cuda.is_available()
        else pytest.raises(ValueError, match="already")
    ):
        meta_train(small(tmp_path / "run", device="cuda"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_moved_run_resumes_and_names_its_classes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    meta_train(small(tmp_path / "moved"), resume=True, progress=False)
    classes = load_checkpoint(tmp_path / "moved" / "model.safetensors").state["classes"]
    assert sorted(name for names in classes.values() for name in names) == list("0123456789")

"""On real few-shot images, where PROBCROWD_DATA names them: meta-training learns what pixels do not show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from probcrowd import MetaTraining, load_run, meta_train
from probcrowd.inference.meta.adaptation import Method
from probcrowd.runs.meta.evaluate import paired_difference, target_scores
from probcrowd.runs.meta.sources import class_sources

pytestmark = pytest.mark.skipif(
    not os.environ.get("PROBCROWD_DATA"), reason="PROBCROWD_DATA is not set: no images to train on"
)


def test_a_short_training_on_omniglot_beats_pixels_on_unseen_characters(tmp_path: Path) -> None:
    settings = MetaTraining.model_validate(
        {
            "out": tmp_path / "run",
            "data": "omniglot",
            "classes": {"train": 764, "validation": 100, "target": 100},
            "encoder": {"hidden": (256,)},
            "episode": {"ways": 4, "tasks": 16, "shots": (5,), "annotators": (5,)},
            "training": {"steps": 300, "validate_every": 100},
            "target": {"tasks": 50, "shots": (5,), "annotators": (5,), "spammers": (0.2,)},
        }
    )
    meta_train(settings, progress=False)
    run = load_run(tmp_path / "run")
    methods = {"trained": (run.encoder, run.settings.adaptation.method), "pixels": (nn.Flatten(), Method())}
    scores = target_scores(settings, class_sources(settings).target, methods)
    row = paired_difference(scores, "trained", "pixels")
    assert row["difference"] > 3 * row["half_width"] / 1.96  # three standard errors over 50 tasks

"""How many files `DawidSkene().fit` runs through, and what an aggregator holds after a fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probcrowd
from probcrowd.estimators.base import Aggregator
from probcrowd.estimators.catalogue import AGGREGATORS, NETWORKS

MOST_FILES, MOST_LINES, MOST_LEVELS = 10, 300, 3


def binary_table() -> pd.DataFrame:
    """Five labels of 200 items each."""
    generator = np.random.default_rng(0)
    truth = generator.integers(2, size=200)
    label = np.where(generator.random((200, 5)) < 0.7, truth[:, None], 1 - truth[:, None])
    item, annotator = np.divmod(np.arange(label.size), 5)
    return pd.DataFrame({"item": item, "annotator": annotator, "label": label.ravel()})


def files_of(function: Any) -> set[Path]:
    """Return the files of the package whose functions run during the call."""
    root, files = Path(probcrowd.__file__).parent, set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(root):
            files.add(path)

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        function()
    finally:
        sys.setprofile(before)
    return files


def test_a_default_fit_runs_through_ten_short_files() -> None:
    table = binary_table()
    estimator = probcrowd.DawidSkene().fit(table)  # compiles
    files = files_of(lambda: estimator.fit(table))
    assert len(files) <= MOST_FILES, sorted(map(str, files))
    assert {"e_step.py", "m_step.py", "em.py", "table_aggregator.py"} <= {path.name for path in files}
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert max(lengths.values()) <= MOST_LINES, lengths


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_fit_leaves_public_attributes_and_one_private_record(name: str) -> None:
    fitted = AGGREGATORS[name]().fit(binary_table())
    fitted.annotators_, fitted.items_, fitted.confusion_  # noqa: B018  (computed on request, stored in the record)
    options = set(fitted.get_params())
    private = {attribute for attribute in vars(fitted) if attribute.startswith("_")}
    public = set(vars(fitted)) - private - options
    assert private == {"_fitted"}
    assert public and all(attribute.endswith("_") for attribute in public)


@pytest.mark.parametrize("name", [*AGGREGATORS, *NETWORKS])
def test_aggregators_have_at_most_three_levels(name: str) -> None:
    kind = (AGGREGATORS | NETWORKS)[name]
    levels = [base for base in kind.__mro__ if issubclass(base, Aggregator)]
    assert len(levels) <= MOST_LEVELS, levels

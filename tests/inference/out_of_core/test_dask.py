"""A fit on a cluster whose workers are killed has the bits of the fit in one process."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

distributed = pytest.importorskip("distributed")

from probcrowd.data.table import Cells
from probcrowd.inference.aggregation.e_step import Scores, Statistics
from probcrowd.inference.aggregation.m_step import AnnotatorModel, ClassPrior, DirichletRows
from probcrowd.inference.out_of_core.buckets import write_probabilities
from probcrowd.inference.out_of_core.dask import OnCluster
from probcrowd.inference.out_of_core.fit import ParquetFit, fit_parquet

BUCKET_ROWS = 400


@dataclass
class Killing:
    """A channel that kills a worker at the given passes, while the pass is on its way."""

    inner: DirichletRows
    client: Any
    passes: tuple[int, ...]
    calls: int = 0
    killed: list[int] = field(default_factory=list)

    def scores(self, statistics: Statistics, previous: Scores | None = None) -> Scores:
        self.calls += 1
        if self.calls in self.passes:
            pid = min(self.client.run(os.getpid, on_error="ignore").values())
            os.kill(pid, signal.SIGKILL)
            self.killed.append(pid)
        return self.inner.scores(statistics, previous)


def dawid_skene(cells: Cells) -> DirichletRows:
    return DirichletRows(cells, np.full((3, 3), 1.1) + np.eye(3), ClassPrior(np.full(3, 2.0)))


def kill_a_worker(part: int, folder: Path) -> int:
    """Part 3 kills its worker the first time."""
    if part == 3 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return part * part


@pytest.fixture
def client() -> Iterator[Any]:
    """Two worker processes with a nanny each."""
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A partitioned folder."""
    chance = np.random.default_rng(7)
    item = np.repeat(np.arange(400), 5)
    annotator = np.concatenate([chance.permutation(12)[:5] for _ in range(400)])
    label = np.where(chance.random(2000) < 0.6, chance.integers(0, 3, 400)[item], chance.integers(0, 3, 2000))
    frame = pd.DataFrame({"item": item, "annotator": annotator, "label": label, "day": annotator % 3}).sample(
        frac=1, random_state=1
    )
    frame.to_parquet(tmp_path / "source", partition_cols=["day"], row_group_size=100)
    return tmp_path / "source"


def same(one: ParquetFit, other: ParquetFit) -> bool:
    """Bit by bit: the same buckets, added in the same order, on the same machine."""
    return bool(
        np.array_equal(one.fit.statistics.counts, other.fit.statistics.counts)
        and np.array_equal(one.fit.objective, other.fit.objective)
        and np.array_equal(one.scores.log_table, other.scores.log_table)
    )


def test_killed_workers_do_not_change_a_bit(client: Any, source: Path, tmp_path: Path) -> None:
    channels: list[Killing] = []

    def killing(cells: Cells) -> AnnotatorModel:
        channels.append(Killing(dawid_skene(cells), client, (3, 7)))
        return channels[0]

    alone = fit_parquet(source, channel=dawid_skene, work=tmp_path / "alone", bucket_rows=BUCKET_ROWS)
    result = fit_parquet(
        source, channel=killing, work=tmp_path / "work", bucket_rows=BUCKET_ROWS, client=client
    )
    assert len(set(channels[0].killed)) == 2 and result.buckets.num_buckets == 5
    assert same(alone, result) and result.fit.converged
    write_probabilities(alone.buckets, alone.scores, tmp_path / "one")
    write_probabilities(result.buckets, result.scores, tmp_path / "other")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "one"), pd.read_parquet(tmp_path / "other"))


def test_tasks_of_a_worker_that_dies_go_to_another(client: Any, tmp_path: Path) -> None:
    assert list(OnCluster(client)(kill_a_worker, range(8), tmp_path)) == [part * part for part in range(8)]
    assert (tmp_path / "killed").exists()


def test_errors_in_the_data_are_raised_by_the_client(client: Any, source: Path) -> None:
    for file in source.rglob("*.parquet"):
        pd.read_parquet(file).assign(label=lambda rows: rows["label"].where(rows.index > 0)).to_parquet(file)
    with pytest.raises(ValueError, match="missing values"):
        fit_parquet(source, channel=dawid_skene, client=client)

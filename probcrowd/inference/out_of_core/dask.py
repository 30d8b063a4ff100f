"""The same maps on a Dask cluster: every part is a task, results come back in the order of the parts.

    scheduler:  shared arguments (once) -> task of part 0, task of part 1, ...       workers: read the part's files, return a sum

A worker that dies costs the tasks that it had: the scheduler gives them, and the shared arguments, to another
one. All that tasks write is written whole or not at all and has the same bits each time, so a task that ran
twice has done no harm. Files travel by no network of ours: the workers see the folders of the annotations and
of the buckets under the same paths (one machine, or a shared file system).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_RETRIES = 2  # of a task that raised; deaths of workers are counted apart (Dask's distributed.scheduler.allowed-failures)


@dataclass(frozen=True)
class OnCluster:
    """A `Map` whose parts are tasks of a `distributed.Client`."""

    client: Any

    def __call__(self, function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]:
        """function(part, *shared) of every part, in order; what is not asked for any more is cancelled."""
        import dask

        # Not scattered: what is in no graph is lost with the last worker that has it
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            common = self.client.submit(_same, shared, pure=False)
            tasks = self.client.map(
                _apply, list(parts), function=function, shared=common, pure=False, retries=_RETRIES
            )
        try:
            for place, task in enumerate(tasks):
                result = task.result()
                tasks[place] = None  # the workers may forget it
                del task
                yield result
        finally:
            if left := [task for task in tasks if task is not None]:
                self.client.cancel(left)


def _same(shared: tuple[Any, ...]) -> tuple[Any, ...]:
    return shared


def _apply(part: Any, *, function: Callable[..., Any], shared: tuple[Any, ...]) -> Any:
    return function(part, *shared)

"""Maps on a Dask cluster: every part is a task, and results come back in the order of the parts.

    scheduler:  shared arguments (once) -> task of part 0, task of part 1, ...
    workers:    read the part's files, return a sum

If a worker dies, the scheduler gives its tasks and the shared arguments to another one. Tasks write files
atomically and with the same bits each time, so running a task twice is harmless. No files are sent over the
network: workers see the folders of annotations and buckets under the same paths (one machine, or a shared
file system).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Retries of a task that raises. Dask counts deaths of workers separately, in
# distributed.scheduler.allowed-failures.
_RETRIES = 2


@dataclass(frozen=True)
class OnCluster:
    """A `Map` whose parts are tasks of a `distributed.Client`."""

    client: Any

    def __call__(self, function: Callable[..., Any], parts: Sequence[Any], *shared: Any) -> Iterator[Any]:
        """Yield function(part, *shared) for every part, in order; cancel tasks no longer needed."""
        import dask

        # `scatter` is not used: data outside the graph is lost with the last worker that holds it
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TiB"}):
            common = self.client.submit(_same, shared, pure=False)
            tasks = self.client.map(
                _apply, list(parts), function=function, shared=common, pure=False, retries=_RETRIES
            )
        try:
            for position, task in enumerate(tasks):
                result = task.result()
                tasks[position] = None  # workers may release it
                del task
                yield result
        finally:
            if unfinished := [task for task in tasks if task is not None]:
                self.client.cancel(unfinished)


def _same(shared: tuple[Any, ...]) -> tuple[Any, ...]:
    return shared


def _apply(part: Any, *, function: Callable[..., Any], shared: tuple[Any, ...]) -> Any:
    return function(part, *shared)

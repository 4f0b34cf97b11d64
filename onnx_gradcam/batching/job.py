"""What is asked for, and who works on it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnx_gradcam.runtime.explainer import Explainer, Wanted

__all__ = ["Crew", "Format", "Job", "in_order"]

Format = Literal["parquet", "npz", "png"]

_MOST_RUNS = 8
"""Runs of the model at the same time: more of them would need more memory, for no more speed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to explain, and how.

    Attributes:
        model: path of the model.
        target: the classes, as for `Explainer`.
        format: of the results: `parquet`, `npz` or `png`.
        batch_size: the most images that the model runs at once.
        shard_size: images in a shard.
        threads: processor threads to use; those of the machine by default.
        provider: execution provider, `cpu`, `cuda` ...
        choices: other arguments of `Explainer`.
    """

    model: Path
    target: Wanted = None
    format: Format = "parquet"
    batch_size: int = 8
    shard_size: int = 256
    threads: int | None = None
    provider: str = "cpu"
    choices: dict[str, Any] = field(default_factory=dict)


class Crew:
    """An explainer and threads that work with it: made once, for any number of shards.

    On the CPU the model runs several times at once on a part of the threads each, rather than once on all of them:
    nothing waits for another, and images are decoded in between. Elsewhere two runs keep the device busy, and the
    other threads decode.

    Args:
        job: what to explain.

    Raises:
        ExplainError: the model, the choices or the provider cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        count = job.threads or _cores()
        runs = min(count, _MOST_RUNS)
        self.runs = runs if job.provider == "cpu" else 2
        self.explainer = Explainer(job.model, provider=job.provider, threads=max(1, count // runs), **job.choices)
        self.threads = ThreadPoolExecutor(max(runs, self.runs + 1) if job.provider != "cpu" else runs, "explain")

    def close(self) -> None:
        """Let go of what is waiting; a shard that is being worked on fails."""
        self.threads.shutdown(cancel_futures=True)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """The results of `work` in the order of `items`, of which at most `ahead` are worked on or wait to be taken."""
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()

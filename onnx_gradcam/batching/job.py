"""What a batch run explains, and the session and threads that explain it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from onnx_gradcam.errors import InputError
from onnx_gradcam.options import BatchFormat, check_choices, check_word
from onnx_gradcam.runtime.explainer import Explainer, Prepared, Selection, TargetChoice
from onnx_gradcam.runtime.session import resolve_provider

from .feed_table import FeedTable

__all__ = ["Crew", "Job", "in_order"]

_MAX_RUNS: Final = 8
"""Concurrent runs of the model: more need more memory and are no faster."""
_RANGES: Final = {"batch_size": (1, 1024), "shard_size": (1, 65536), "threads": (1, 1024)}
_EXPLAINER: Final = ("region", "feeds", "augment", "seed")
"""Arguments of `Explainer` that are not fields of `Options` or of `Job`."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to explain, and how.

    Attributes:
        model: path of the model.
        target: the classes, as for `Explainer`.
        box: for a detector, which boxes of each image.
        format: file format of the results.
        batch_size: maximum number of images per run of the model, 1 to 1024.
        shard_size: images per shard, 1 to 65536.
        threads: number of CPU threads; by default, one per core.
        provider: execution provider, `cpu`, `cuda` ...
        feed_table: a CSV file with the column `image`, and values of other inputs for each image.
        choices: fields of `Options` (for an explained model, only `labels` and `preprocess`), and the arguments
            `region`, `feeds`, `augment` and `seed` of `Explainer`.

    Raises:
        InputError: an unknown format or choice, a number out of range, or a provider that ONNX Runtime does not have.
    """

    model: Path
    target: TargetChoice = None
    box: Selection | None = None
    format: BatchFormat = "parquet"
    batch_size: int = 8
    shard_size: int = 256
    threads: int | None = None
    provider: str = "cpu"
    feed_table: Path | None = None
    choices: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_word("format", self.format, get_args(BatchFormat))
        check_choices(self.choices, more=_EXPLAINER)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name == "threads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InputError(f"{name} is {value!r}; choose a whole number from {low} to {high}")
        resolve_provider(self.provider)


class Crew:
    """An explainer and its threads, created once for any number of shards.

    On the CPU, the model runs several times concurrently, each on a part of the threads, and the same threads decode
    images in between. On other devices, two concurrent runs keep the device busy, and further threads decode.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        count = job.threads or _cores()
        runs = min(count, _MAX_RUNS)
        self.runs = runs if job.provider == "cpu" else 2
        self._closed = threading.Event()
        self.explainer = Explainer(
            job.model,
            provider=job.provider,
            threads=max(1, count // runs),
            progress=self._stop_if_closed,
            **job.choices,
        )
        self.explainer.metadata.require_images("batch")
        self.table = None if job.feed_table is None else FeedTable.read(job.feed_table)
        columns = () if self.table is None else self.table.columns
        self._unused = self.explainer.check_feeds(columns)
        self.threads = ThreadPoolExecutor(max(runs, self.runs + 1) if job.provider != "cpu" else runs, "explain")

    @property
    def warnings(self) -> list[str]:
        """What the user should know about the model and the table."""
        unused = ", ".join(map(repr, self._unused))
        columns = [f"the table's columns {unused} are no inputs of the model and are left out"] if unused else []
        return [*self.explainer.warnings, *columns]

    def prepared(self, path: str) -> Prepared | InputError:
        """An image, ready for the model with the values of its line of the table, or why it cannot be."""
        try:
            row = {} if self.table is None else self.table.of(path)
        except InputError as exc:
            return exc
        return self.explainer.prepared(path, {name: row[name] for name in row if name not in self._unused})

    def close(self) -> None:
        """Cancel what is waiting; a shard in progress fails, after the next run of the model."""
        self._closed.set()
        self.threads.shutdown(cancel_futures=True)

    def _stop_if_closed(self, _done: int, _total: int) -> None:
        """Called between the runs of a method that runs the model often, which may be minutes for each image."""
        if self._closed.is_set():
            raise CancelledError


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Apply `work` to `items` in a pool, and yield the results in order; at most `ahead` are pending."""
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

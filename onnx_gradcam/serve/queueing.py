"""Dynamic batching: rows of concurrent requests run together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ExplainError, ServerError
from onnx_gradcam.feeds import NOTHING, Fed
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.runners import Runner

__all__ = ["DEADLINE", "BatchingExplainer", "BatchingRunner", "remaining"]

Array = npt.NDArray[Any]
Outputs = dict[str, Array]

DEADLINE: ContextVar[float] = ContextVar("deadline")
"""When the request of this thread must be answered, on the clock of `time.monotonic`."""


def remaining() -> float:
    """Seconds left for the request of this thread; once they are over, it is refused with status 504."""
    left = DEADLINE.get(float("inf")) - time.monotonic()
    if left <= 0:
        raise ServerError("the request took too long because the server is busy; try again later", 504)
    return left


@dataclass(eq=False)
class _Item:
    """Rows of one request."""

    rows: Array
    classes: list[int]
    boxes: list[int] | None
    tables: bool
    maps: bool
    done: Future[Outputs] = field(default_factory=Future)

    @property
    def alike(self) -> tuple[Any, ...]:
        """What items of one batch have in common."""
        return self.rows.shape[1:], self.boxes is None, self.tables, self.maps


class BatchingExplainer(Explainer):
    """A thread-safe explainer that runs the rows of concurrent requests together; see `BatchingRunner`."""

    def __init__(
        self,
        *arguments: Any,
        batch: int,
        pixels: int = 1 << 22,
        on_batch: Callable[[int], object] = lambda _rows: None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.metadata.require_images("a server")
        self._batching = BatchingRunner(self.runner, batch, pixels, on_batch)
        self.runner = self._batching

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a batch."""
        return self._batching.waiting

    def close(self) -> None:
        """Stop the thread that runs the batches, after the waiting requests are served."""
        self._batching.close()


class BatchingRunner:
    """Runs the rows of concurrent requests together, one batch at a time.

    Requests do not wait for others to arrive: one that finds nothing running runs in its own thread, and the next batch
    forms while it does. Rows are independent, and so are failures: if a batch fails, each of its requests runs again
    alone.

    Args:
        runner: explains a batch.
        batch: maximum number of rows per batch.
        pixels: maximum number of input pixels per batch; a single row runs whatever its size.
        on_batch: called with the number of rows of each batch.
    """

    def __init__(self, runner: Runner, batch: int, pixels: int, on_batch: Callable[[int], object]) -> None:
        self.metadata, self.session, self.results = runner.metadata, runner.session, runner.results
        self._runner = runner
        self._batch_rows = batch
        self._batch_pixels = pixels
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._there = threading.Condition()
        self._running = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="onnx-gradcam-batches", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread, after the waiting requests are served."""
        with self._there:
            self._closed = True
            self._there.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """The number of requests that wait for a batch."""
        return len(self._queue)

    def run(
        self,
        batch: Array,
        classes: Sequence[int],
        boxes: Sequence[int] | None = None,
        *,
        tables: bool = False,
        maps: bool = True,
        fed: Fed = NOTHING,
    ) -> Outputs:
        """See `Runner`; together with the rows of other requests, and within the time of the request."""
        if fed:  # other inputs may not have a row for every image, so these rows run by themselves
            return self._runner.run(batch, classes, boxes, tables=tables, maps=maps, fed=fed)
        parts = []
        most = self._most(batch)
        for start in range(0, len(batch), most):
            some = slice(start, start + most)
            item = _Item(batch[some], list(classes[some]), None if boxes is None else list(boxes[some]), tables, maps)
            if not self._run_at_once(item):
                with self._there:
                    self._queue.append(item)
                    self._there.notify()
            parts.append(self._wait(item))
        return parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _run_at_once(self, item: _Item) -> bool:
        """Run an item in this thread, which saves two changes of threads, if nothing else runs or waits."""
        if self._queue or not self._running.acquire(blocking=False):
            return False
        try:
            self._run_items([item])
        finally:
            self._running.release()
        return True

    def _most(self, rows: Array) -> int:
        """How many rows of this size fit into a batch."""
        sizes: dict[str, int] = dict(zip(self.metadata.batch_layout, rows.shape, strict=True))
        return max(1, min(self._batch_rows, self._batch_pixels // (sizes["H"] * sizes["W"])))

    @staticmethod
    def _wait(item: _Item) -> Outputs:
        left = remaining()
        try:
            return item.done.result(None if left == float("inf") else left)
        except FutureTimeoutError:
            item.done.cancel()
            remaining()
            raise

    def _serve(self) -> None:
        while True:
            with self._there:
                self._there.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
            with self._running:
                with self._there:
                    items = self._gathered()
                items = [item for item in items if item.done.set_running_or_notify_cancel()]
                if items:
                    self._run_items(items)

    def _gathered(self) -> list[_Item]:
        """The first waiting item, and others of the same shape that fit into its batch."""
        items: list[_Item] = []
        passed: deque[_Item] = deque()
        room = self._most(self._queue[0].rows)
        while self._queue and room > 0:
            item = self._queue.popleft()
            fits = not items or (item.alike == items[0].alike and len(item.rows) <= room)
            (items if fits else passed).append(item)
            room -= len(item.rows) if fits else 0
        passed.extend(self._queue)
        self._queue = passed
        return items

    def _run_items(self, items: list[_Item]) -> None:
        try:
            rows = np.concatenate([item.rows for item in items]) if len(items) > 1 else items[0].rows
            classes = [index for item in items for index in item.classes]
            boxes = None if items[0].boxes is None else [index for item in items for index in item.boxes or ()]
            outputs = self._runner.run(rows, classes, boxes, tables=items[0].tables, maps=items[0].maps)
        except Exception as error:  # noqa: BLE001 - raised again by the waiting request
            if len(items) > 1 and isinstance(error, ExplainError):
                for item in items:
                    self._run_items([item])
                return
            for item in items:
                item.done.set_exception(error)
            return
        self._on_batch(len(rows))
        start = 0
        for item in items:
            end = start + len(item.rows)
            item.done.set_result({name: values[start:end] for name, values in outputs.items()})
            start = end

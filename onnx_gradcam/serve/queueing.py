"""Dynamic batching: rows of requests that are there at the same time run together."""

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
from onnx_gradcam.runtime.explainer import Explainer
from onnx_gradcam.runtime.session import InputInfo

__all__ = ["DEADLINE", "BatchingExplainer", "remaining"]

Array = npt.NDArray[Any]
Outputs = dict[str, Array]

DEADLINE: ContextVar[float] = ContextVar("deadline")
"""When the request that this thread works for has to be answered, on the clock of `time.monotonic`."""


def remaining() -> float:
    """Seconds that are left to the request of this thread.

    Raises:
        ServerError: none, status 504.
    """
    left = DEADLINE.get(float("inf")) - time.monotonic()
    if left <= 0:
        raise ServerError("the request took too long, the server is busy; try again later", 504)
    return left


@dataclass(eq=False)
class _Item:
    """Rows of one request."""

    rows: Array
    classes: list[int]
    done: Future[Outputs] = field(default_factory=Future)


class BatchingExplainer(Explainer):
    """An explainer that many threads use at once: their rows run together, one batch at a time.

    Nobody waits for others to come: while one batch runs, the next gathers. Rows do not depend on each other, and
    neither do failures: where a batch fails, each request runs again alone.

    Args:
        arguments: those of `Explainer`.
        batch: rows that run at once.
        pixels: of those rows together; a single row runs whatever its size.
        on_batch: called with the number of rows of every batch.
        options: those of `Explainer`.
    """

    def __init__(
        self,
        *arguments: Any,
        batch: int,
        pixels: int = 1 << 22,
        on_batch: Callable[[int], object] = lambda _rows: None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._batch_rows = batch
        self._batch_pixels = pixels
        self._on_batch = on_batch
        self._queue: deque[_Item] = deque()
        self._there = threading.Condition()
        self._closed = False
        self._runner = threading.Thread(target=self._serve, name="onnx-gradcam-batches", daemon=True)
        self._runner.start()

    def close(self) -> None:
        """End the thread that runs the batches; what waits is still served."""
        with self._there:
            self._closed = True
            self._there.notify()
        self._runner.join()

    def class_indices(self, wanted: Sequence[int | str]) -> list[int]:
        """Classes given as numbers or names, as numbers.

        Raises:
            TargetError: no such class, or the class is fixed in this model.
        """
        found = self._wanted(list(wanted))
        return [one for one in found if isinstance(one, int)]

    @property
    def results(self) -> list[InputInfo]:
        """What `run` gives: the model's outputs, and where the model runs many times, what is made of them."""
        if self._prober is None:
            return self.session.outputs
        facts = self.metadata
        image = next(i for i in self.session.inputs if i.name == facts.image_input)
        sizes = dict(zip(facts.layout, image.shape, strict=True))
        made = {
            facts.cam: InputInfo(facts.cam, "float32", (sizes["N"], None, None)),
            facts.heatmap: InputInfo(facts.heatmap, "float32", (sizes["N"], sizes["H"], sizes["W"])),
            facts.attribution: InputInfo(facts.attribution, image.dtype, image.shape),
        }
        own = [o for o in self.session.outputs if o.name in {facts.scores_output, facts.heatmap_class}]
        return own + [info for name, info in made.items() if name]

    def run(self, batch: Array, classes: Sequence[int]) -> Outputs:
        """As `Explainer.run`, together with whoever else runs now.

        Raises:
            ModelError: the model fails on these rows.
            ServerError: the request's time is over.
        """
        parts = []
        most = self._most(batch)
        for start in range(0, len(batch), most):
            item = _Item(batch[start : start + most], list(classes[start : start + most]))
            with self._there:
                self._queue.append(item)
                self._there.notify()
            parts.append(self._wait(item))
        return parts[0] if len(parts) == 1 else {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _most(self, rows: Array) -> int:
        """How many rows of this size run at once."""
        sizes: dict[str, int] = dict(zip(self.metadata.layout, rows.shape, strict=True))
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
                items = self._gathered()
            items = [item for item in items if item.done.set_running_or_notify_cancel()]
            if items:
                self._run_items(items)

    def _gathered(self) -> list[_Item]:
        """The first item that waits, and those that fit beside it: of the same shape, up to the size of a batch."""
        items: list[_Item] = []
        passed: deque[_Item] = deque()
        room = self._most(self._queue[0].rows)
        while self._queue and room > 0:
            item = self._queue.popleft()
            fits = not items or (item.rows.shape[1:] == items[0].rows.shape[1:] and len(item.rows) <= room)
            (items if fits else passed).append(item)
            room -= len(item.rows) if fits else 0
        passed.extend(self._queue)
        self._queue = passed
        return items

    def _run_items(self, items: list[_Item]) -> None:
        try:
            rows = np.concatenate([item.rows for item in items]) if len(items) > 1 else items[0].rows
            outputs = super().run(rows, [c for item in items for c in item.classes])
        except Exception as error:  # noqa: BLE001 - it is the waiting request's, whatever it is
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

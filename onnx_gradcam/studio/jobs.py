"""One explanation at a time: a thread, and a bounded queue before it.

A file of its own: the application answers requests on the event loop, and what takes long runs here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from onnx_gradcam.errors import ExplainError, ServerError

__all__ = ["Jobs", "SupersededError", "Ticket"]

_BETWEEN: Final = 0.05
"""Seconds between two messages about progress."""

Event = Mapping[str, Any]


class SupersededError(Exception):
    """Nobody waits for this job any more."""


class Ticket:
    """A job that waits or runs; `tell` gets its events: `progress`, at last `answer` or `error`."""

    def __init__(self, work: Callable[[Ticket], Any], tell: Callable[[Event], object]) -> None:
        self._work = work
        self._tell = tell
        self._cancelled = threading.Event()
        self._told = 0.0

    def cancel(self) -> None:
        """Let it not start, or end at its next step."""
        self._cancelled.set()

    def progress(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say what is being done; ends the job if it is cancelled."""
        if self._cancelled.is_set():
            raise SupersededError
        now = time.monotonic()
        if not done or now - self._told >= _BETWEEN:
            self._told = now
            self._tell({"progress": what, "done": done, "total": total})

    def run(self) -> None:
        """Do the work; whatever it fails with is an event."""
        if self._cancelled.is_set():
            return
        try:
            self._tell({"answer": self._work(self)})
        except SupersededError:
            return
        except ExplainError as error:
            self._tell({"error": str(error)})
        except MemoryError:
            self._tell({"error": "there is not enough memory for this; try a smaller image or another method"})
        except Exception as error:  # noqa: BLE001 - the thread has to live on
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._tell({"error": f"this should not have happened ({cause}); please report it"})


class Jobs:
    """Runs jobs one after the other; `pending` may wait."""

    def __init__(self, pending: int = 8) -> None:
        self._queue: queue.Queue[Ticket] = queue.Queue(pending)
        threading.Thread(target=self._serve, name="onnx-gradcam-studio", daemon=True).start()

    def submit(self, work: Callable[[Ticket], Any], tell: Callable[[Event], object]) -> Ticket:
        """Add a job.

        Raises:
            ServerError: too many wait already.
        """
        ticket = Ticket(work, tell)
        try:
            self._queue.put_nowait(ticket)
        except queue.Full as error:
            raise ServerError("too many explanations wait already; try again when one is done", 429) from error
        return ticket

    def _serve(self) -> None:
        while True:
            self._queue.get().run()

"""A log of what a server answers about images: a sample of explanations, in shards as `batch` writes them."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from onnx_gradcam.batching.records import DRAFTS, Shard, publish, remove, shards_in, write_json
from onnx_gradcam.batching.writers import ParquetWriter, Row, check_format
from onnx_gradcam.errors import InputError
from onnx_gradcam.files import locked, make_folder
from onnx_gradcam.runtime.explainer import Explanation

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Recording", "RequestLog"]

MARK: Final = "_requests.json"
"""In the folder of a log, so that no other folder loses its oldest shards."""
_SHARD_IMAGES: Final = 256
_SHARD_BYTES: Final = 32 << 20
_WAITING_BYTES: Final = 2 * _SHARD_BYTES
"""What may wait while a shard is written; further answers are not logged, so that no request waits for the disk."""
_SECONDS: Final = 60.0
"""Between two shards, if anything was answered."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is logged of the answers, and where.

    Attributes:
        folder: the folder of the log: a new or empty one, or that of an earlier log, which is continued.
        sample: share of the images whose answers are logged, above 0 and at most 1.
        images: whether the image files are logged too.
        shards: maximum number of shards of each model; the oldest are removed.

    Raises:
        InputError: a share or a number out of range.
    """

    folder: str | Path
    sample: float = 0.01
    images: bool = False
    shards: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.sample <= 1:
            raise InputError(f"the share of logged images is {self.sample:g}; choose one above 0 and at most 1")
        if isinstance(self.shards, bool) or not isinstance(self.shards, int) or self.shards < 1:
            raise InputError(f"the log has at most {self.shards!r} shards; choose a whole number above 0")


class RequestLog:
    """Writes a sample of the answers in a thread of its own; used with `with`.

    `note` takes no time of a request and raises nothing. What cannot be written ends the log, not the server.

    Args:
        recording: what is logged, and where.
        apart: whether each model gets a folder of its own inside the folder: `NAME` or `NAME/VERSION`.
        stopped: called once with the error that ended the log.

    Raises:
        InputError: the folder contains something else, another process is writing to it, or pyarrow is missing.
    """

    def __init__(self, recording: Recording, *, apart: bool, stopped: Callable[[Exception], None]) -> None:
        self._recording, self._apart, self._stopped = recording, apart, stopped
        self._folder = Path(recording.folder)
        self._columns = ("time", *(("file",) if recording.images else ()))
        self._changed = threading.Condition()
        self._rows: dict[Path, list[Row]] = {}
        self._images = self._bytes = self._count = 0
        self._open = False
        self._cleanup = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._run, name="onnx-gradcam-requests-log", daemon=True)

    def __enter__(self) -> Self:
        check_format("parquet", "--log-requests")
        make_folder(self._folder)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self._folder))
            self._begin()
            self._cleanup = stack.pop_all()
        self._open = True
        self._thread.start()
        return self

    def _begin(self) -> None:
        """Check the folder, and tidy it up after a server that was killed."""
        if not (self._folder / MARK).is_file():
            if any(not entry.name.startswith(".") for entry in self._folder.iterdir()):
                raise InputError(
                    f"{str(self._folder)!r} is not empty and contains no log of requests; choose another folder with "
                    "--log-requests"
                )
            write_json(self._folder / MARK, {"contains": "a sample of the answers of a server"})
        for drafts in list(self._folder.rglob(DRAFTS)):
            shutil.rmtree(drafts, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()
        self._cleanup.close()

    def note(self, name: str, version: str, explanation: Explanation, file: bytes) -> None:
        """Log an answer about an image of this file, if it is in the sample and there is room."""
        if not self._open or random.random() >= self._recording.sample:  # noqa: S311 - a sample, not a secret
            return
        more: dict[str, Any] = {"time": dt.datetime.now(dt.timezone.utc)}
        if self._recording.images:
            more["file"] = file
        size = sum(one.heatmap.nbytes + one.cam.nbytes for one in explanation.maps) + len(more.get("file", b""))
        without = replace(explanation, image=np.zeros((1, 1, 3), np.uint8))
        with self._changed:
            if self._bytes + size > _WAITING_BYTES:
                return
            folder = self._folder / name / version if self._apart else self._folder
            self._rows.setdefault(folder, []).append(Row(self._count, "", without, more=more))
            self._count += 1
            self._images += 1
            self._bytes += size
            if self._full():
                self._changed.notify()

    def _full(self) -> bool:
        return self._images >= _SHARD_IMAGES or self._bytes >= _SHARD_BYTES

    def _run(self) -> None:
        """Write a shard once there is enough for one, after a minute, and when the log is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._full() or not self._open, _SECONDS)
                rows, self._rows, self._images, self._bytes = self._rows, {}, 0, 0
                last = not self._open
            try:
                for folder, some in rows.items():
                    self._write(folder, some)
            except Exception as error:  # noqa: BLE001 - the log ends, the server goes on
                self._open, last = False, True
                self._stopped(error)
            if last:
                return

    def _write(self, folder: Path, rows: list[Row]) -> None:
        """Write a shard atomically, and remove the oldest beyond the limit."""
        draft = folder / DRAFTS / uuid.uuid4().hex
        draft.mkdir(parents=True)
        try:
            with contextlib.closing(ParquetWriter(draft, self._columns)) as writer:
                writer.write(writer.encode(rows))
            number = max((number for number, _ in shards_in(folder)), default=-1) + 1
            publish(draft, Shard(number, 0, []).folder(folder))
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for _, shard in shards_in(folder)[: -self._recording.shards]:
            remove(shard)

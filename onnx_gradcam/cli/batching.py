"""What `batch` does: find the images as they are needed, run, report."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import typer

from onnx_gradcam.batching.job import Format, Job
from onnx_gradcam.batching.ray_engine import RayCluster
from onnx_gradcam.batching.records import FAILURES
from onnx_gradcam.batching.running import run_batch
from onnx_gradcam.errors import ExplainError, InputError
from onnx_gradcam.runtime.explainer import Wanted

from .output import complain, say, warn
from .progress import rate
from .sources import SUFFIXES

__all__ = ["Request", "listed", "run"]

_LONGEST_PATH = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to explain, and where; see the options of the command."""

    model: Path
    images: Sequence[str]
    out: Path
    engine: Literal["local", "ray"]
    format: Format
    resume: bool
    target: Sequence[str] | None
    batch_size: int
    shard_size: int
    threads: int | None
    workers: int | None
    worker_cpus: float
    stall_timeout: float
    provider: str


def run(request: Request, **choices: Any) -> None:
    """Explain the images.

    Args:
        request: what to explain.
        choices: arguments of `Explainer`.

    Raises:
        ExplainError: nothing can be explained this way.
        typer.Exit: code 1 where not one image could be explained.
    """
    for image in request.images:
        _check(image, request.out)
    target: Wanted = list(request.target) if request.target else None
    job = Job(
        model=request.model,
        target=target,
        format=request.format,
        batch_size=request.batch_size,
        shard_size=request.shard_size,
        threads=request.threads,
        provider=request.provider,
        choices=choices,
    )
    engine = RayCluster(request.workers, request.worker_cpus, request.stall_timeout)
    counted = _Counted(request.images)
    with rate("explaining", lambda: counted.total) as advance:
        summary = run_batch(
            job,
            (path for image in request.images for path in listed(image, sys.stdin.buffer)),
            request.out,
            engine=engine if request.engine == "ray" else None,
            resume=request.resume,
            progress=advance,
            warn=warn,
        )
    done = summary.images - summary.failures
    again = f", {summary.found} of them before" if summary.found else ""
    say(f"{done} images explained{again}, in {request.out}")
    if summary.failures:
        failed = f"{summary.failures} images could not be explained; {request.out / FAILURES} says why"
        (warn if done else complain)(failed)
    if not done:
        raise typer.Exit(1)


def _check(image: str, out: Path) -> None:
    """Refuse at once what would be refused after hours."""
    if not image:
        raise InputError("the name of an image is empty: check the command")
    folder = Path(image)
    if image != "-" and not folder.exists():
        raise InputError(f"there is no folder and no image {image!r}: check the path")
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"the results would lie in {image!r}, among the images: choose a folder outside of it with -o")


def listed(image: str, stream: BinaryIO) -> Iterator[str]:
    """The absolute paths of the images that an argument means, as they are asked for, always in the same order.

    Of a folder no more is held than the names in it and in those above.

    Raises:
        InputError: a folder that cannot be read or that holds no image, or standard input that is no list of paths.
    """
    if image == "-":
        yield from _lines(stream)
    elif Path(image).is_dir():
        found = False
        for path in _walk(os.path.abspath(image)):  # noqa: PTH100 - a million times: no object each
            found = True
            yield path
        if not found:
            raise InputError(f"the folder {image!r} holds no image ({', '.join(sorted(SUFFIXES))})")
    else:
        yield os.path.abspath(image)  # noqa: PTH100


def _walk(top: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(f"the folder {error.filename!r} cannot be read ({error.strerror}): see who may") from error

    for folder, inner, files in os.walk(top, onerror=refuse):
        inner.sort()
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122
                yield os.path.join(folder, name)  # noqa: PTH118


def _lines(stream: BinaryIO) -> Iterator[str]:
    number = 0
    while line := stream.readline(_LONGEST_PATH):
        number += 1
        if len(line) == _LONGEST_PATH or b"\0" in line:
            raise InputError(f"line {number} of standard input is no path: give one path a line")
        if path := line.rstrip(b"\r\n"):
            yield os.path.abspath(os.fsdecode(path))  # noqa: PTH100
    if number == 0:
        raise InputError("standard input is empty: give one path a line")


class _Counted:
    """How many images there are, counted while the first ones are explained."""

    def __init__(self, images: Sequence[str]) -> None:
        self.total: int | None = None
        if "-" not in images:
            threading.Thread(target=self._count, args=(images,), daemon=True).start()

    def _count(self, images: Sequence[str]) -> None:
        try:
            self.total = sum(1 for image in images for _ in listed(image, sys.stdin.buffer))
        except ExplainError:
            return  # the run comes upon it as well, and says it

"""One shard: some pictures in, one folder of explanations out, whole or not at all. No engine is needed for it."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnx_gradcam.errors import ImageError, ModelError
from onnx_gradcam.images.decoding import Placement, resized
from onnx_gradcam.runtime.explainer import Explanation, Prepared

from .job import Crew, in_order
from .records import DRAFTS, FAILURES, RECORD, Record, publish, read_record, write_json
from .writers import Row, Writer, make_writer

__all__ = ["explain_shard"]

_LONGEST_SIDE = 1024
"""Of a picture that is drawn on."""
_WAITING_BATCHES = 4
"""How much may wait until pictures of the same size fill a batch."""


@dataclass(frozen=True)
class _Picture:
    number: int
    path: str
    content: Prepared | ImageError


@dataclass(frozen=True)
class _Batch:
    """What became of a batch: rows that are ready to be written, and those that failed.

    `blamed` are the failures that may be the model's.
    """

    encoded: Any
    failures: list[dict[str, Any]]
    good: int
    blamed: ModelError | None = None


def explain_shard(
    paths: Sequence[str],
    out: Path,
    crew: Crew,
    *,
    first: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Record:
    """Explain some pictures into one folder, which appears when all is in it.

    What is finished is not done again; who else does the same at the same time does no harm, one of the two results
    stays. A picture that cannot be read or explained is listed in the folder's `_failures.jsonl`, and the others go on.

    Args:
        paths: the pictures.
        out: the folder to write; it is made.
        crew: who works on them.
        first: the number of the first picture in the run.
        progress: called with the number of pictures that are done, as they are.

    Raises:
        BatchError: `out` holds other pictures, or is damaged.
        ModelError: the model fails at every picture of the shard.
        TargetError: there is no such class.
        OSError: `out` cannot be written.
    """
    done = read_record(out, first, paths)
    if done is not None:
        return done
    draft = out.parent / DRAFTS / f"{out.name}-{uuid.uuid4().hex}"
    draft.mkdir(parents=True)
    try:
        record = _explain_into(draft, paths, crew, first, progress or (lambda _: None))
        publish(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return record


def _explain_into(draft: Path, paths: Sequence[str], crew: Crew, first: int, progress: Callable[[int], None]) -> Record:
    job = crew.job
    failures: list[dict[str, Any]] = []
    good, blamed = 0, None
    with contextlib.closing(make_writer(job.format, draft)) as writer:

        def read(item: tuple[int, str]) -> _Picture:
            number, path = item
            content = crew.explainer.prepared(path)
            drawn = _LONGEST_SIDE if job.format == "png" else 0
            return _Picture(number, path, content if isinstance(content, ImageError) else _reduced(content, drawn))

        def explain(pictures: list[_Picture]) -> _Batch:
            return _explain_batch(pictures, crew, writer)

        read_ahead = in_order(crew.threads, read, enumerate(paths, first), 2 * job.batch_size)
        for batch in in_order(crew.threads, explain, _batches(read_ahead, job.batch_size), crew.runs + 1):
            writer.write(batch.encoded)
            failures += batch.failures
            good += batch.good
            blamed = blamed or batch.blamed
            progress(batch.good + len(batch.failures))
    if blamed is not None and not good:
        raise blamed
    if failures:
        failures.sort(key=lambda failure: int(failure["picture"]))
        lines = "".join(json.dumps(failure) + "\n" for failure in failures)
        (draft / FAILURES).write_text(lines, encoding="utf-8")
    record = Record.of(first, paths, len(failures))
    write_json(draft / RECORD, record.__dict__)
    return record


def _batches(pictures: Iterable[_Picture], size: int) -> Iterator[list[_Picture]]:
    """Batches of pictures that give inputs of one size, and with each those that failed before it."""
    waiting: dict[tuple[int, ...], list[_Picture]] = {}
    failed: list[_Picture] = []
    for picture in pictures:
        if isinstance(picture.content, ImageError):
            failed.append(picture)
            continue
        group = waiting.setdefault(picture.content.tensor.shape, [])
        group.append(picture)
        many = sum(map(len, waiting.values())) >= _WAITING_BATCHES * size
        if len(group) == size or many:
            largest = max(waiting, key=lambda shape: len(waiting[shape]))
            yield failed + waiting.pop(largest)
            failed = []
    for group in waiting.values():
        yield failed + group
        failed = []
    if failed:
        yield failed


def _explain_batch(pictures: list[_Picture], crew: Crew, writer: Writer) -> _Batch:
    failures = [_failure(p, p.content) for p in pictures if isinstance(p.content, ImageError)]
    ready = [(p, p.content) for p in pictures if isinstance(p.content, Prepared)]
    blamed = None
    try:
        rows = _rows(ready, crew)
    except ModelError:
        # One picture may be at fault, and the others must not suffer for it.
        tried = [(picture, _alone(picture, content, crew)) for picture, content in ready]
        rows = [row for _, row in tried if isinstance(row, Row)]
        for picture, error in tried:
            if isinstance(error, ModelError):
                failures.append(_failure(picture, error))
                blamed = error
    return _Batch(writer.encode(rows) if rows else None, failures, len(rows), blamed)


def _rows(ready: Sequence[tuple[_Picture, Prepared]], crew: Crew) -> list[Row]:
    job = crew.job
    found: list[Explanation] = crew.explainer.explained([c for _, c in ready], job.target, batch_size=job.batch_size)
    return [Row(picture.number, picture.path, result) for (picture, _), result in zip(ready, found, strict=True)]


def _alone(picture: _Picture, content: Prepared, crew: Crew) -> Row | ModelError:
    try:
        return _rows([(picture, content)], crew)[0]
    except ModelError as exc:
        return exc


def _failure(picture: _Picture, error: Exception) -> dict[str, Any]:
    return {"picture": picture.number, "path": picture.path, "error": str(error)}


def _reduced(picture: Prepared, longest: int) -> Prepared:
    """A picture with its longer side at most `longest`, without its pixels for 0: what waits must not be large."""
    if longest == 0:
        return replace(picture, image=np.zeros((1, 1, 3), np.uint8))
    tall, wide = picture.image.shape[:2]
    scale = min(1.0, longest / max(tall, wide))
    height, width = max(1, round(tall * scale)), max(1, round(wide * scale))
    x0, y0, x1, y1 = picture.placement.box
    across, down = width / wide, height / tall
    box = (x0 * across, y0 * down, x1 * across, y1 * down)
    return replace(picture, image=resized(picture.image, height, width), placement=Placement(box, height, width))

"""One shard: some images in, one folder of explanations out, whole or not at all. No engine is needed for it."""

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

from onnx_gradcam.errors import InputError, ModelError
from onnx_gradcam.images.decoding import Placement, resized
from onnx_gradcam.runtime.explainer import Explanation, Prepared

from .job import Crew, in_order
from .records import DRAFTS, FAILURES, RECORD, Record, publish, read_record, write_json
from .writers import Row, Writer, make_writer

__all__ = ["explain_shard"]

_LONGEST_SIDE = 1024
"""Of an image that is drawn on."""
_WAITING_BATCHES = 4
"""How much may wait until images of the same size fill a batch."""


@dataclass(frozen=True)
class _Image:
    number: int
    path: str
    content: Prepared | InputError


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
    """Explain some images into one folder, which appears when all is in it.

    What is finished is not done again; who else does the same at the same time does no harm, one of the two results
    stays. An image that cannot be read or explained is listed in the folder's `_failures.jsonl`, and the others go on.

    Args:
        paths: the images.
        out: the folder to write; it is made.
        crew: who works on them.
        first: the number of the first image in the run.
        progress: called with the number of images that are done, as they are.

    Raises:
        InputError: `out` holds other images, or is damaged.
        ModelError: the model fails at every image of the shard.
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

        def read(item: tuple[int, str]) -> _Image:
            number, path = item
            content = crew.explainer.prepared(path)
            drawn = _LONGEST_SIDE if job.format == "png" else 0
            return _Image(number, path, content if isinstance(content, InputError) else _reduced(content, drawn))

        def explain(images: list[_Image]) -> _Batch:
            return _explain_batch(images, crew, writer)

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
        failures.sort(key=lambda failure: int(failure["image"]))
        lines = "".join(json.dumps(failure) + "\n" for failure in failures)
        (draft / FAILURES).write_text(lines, encoding="utf-8")
    record = Record.of(first, paths, len(failures))
    write_json(draft / RECORD, record.__dict__)
    return record


def _batches(images: Iterable[_Image], size: int) -> Iterator[list[_Image]]:
    """Batches of images that give inputs of one size, and with each those that failed before it."""
    waiting: dict[tuple[int, ...], list[_Image]] = {}
    failed: list[_Image] = []
    for image in images:
        if isinstance(image.content, InputError):
            failed.append(image)
            continue
        group = waiting.setdefault(image.content.tensor.shape, [])
        group.append(image)
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


def _explain_batch(images: list[_Image], crew: Crew, writer: Writer) -> _Batch:
    failures = [_failure(p, p.content) for p in images if isinstance(p.content, InputError)]
    ready = [(p, p.content) for p in images if isinstance(p.content, Prepared)]
    blamed = None
    try:
        rows = _rows(ready, crew)
    except ModelError:
        # One image may be at fault, and the others must not suffer for it.
        tried = [(image, _alone(image, content, crew)) for image, content in ready]
        rows = [row for _, row in tried if isinstance(row, Row)]
        for image, error in tried:
            if isinstance(error, ModelError):
                failures.append(_failure(image, error))
                blamed = error
    return _Batch(writer.encode(rows) if rows else None, failures, len(rows), blamed)


def _rows(ready: Sequence[tuple[_Image, Prepared]], crew: Crew) -> list[Row]:
    job = crew.job
    found: list[Explanation] = crew.explainer.explained([c for _, c in ready], job.target, batch_size=job.batch_size)
    return [Row(image.number, image.path, result) for (image, _), result in zip(ready, found, strict=True)]


def _alone(image: _Image, content: Prepared, crew: Crew) -> Row | ModelError:
    try:
        return _rows([(image, content)], crew)[0]
    except ModelError as exc:
        return exc


def _failure(image: _Image, error: Exception) -> dict[str, Any]:
    return {"image": image.number, "path": image.path, "error": str(error)}


def _reduced(image: Prepared, longest: int) -> Prepared:
    """An image with its longer side at most `longest`, without its pixels for 0: what waits must not be large."""
    if longest == 0:
        return replace(image, image=np.zeros((1, 1, 3), np.uint8))
    tall, wide = image.image.shape[:2]
    scale = min(1.0, longest / max(tall, wide))
    height, width = max(1, round(tall * scale)), max(1, round(wide * scale))
    x0, y0, x1, y1 = image.placement.box
    across, down = width / wide, height / tall
    box = (x0 * across, y0 * down, x1 * across, y1 * down)
    return replace(image, image=resized(image.image, height, width), placement=Placement(box, height, width))

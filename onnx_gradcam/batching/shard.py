"""One shard of a batch run: explain some images into one folder, which is written atomically."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from onnx_gradcam.errors import InputError, ModelError, NothingFoundError
from onnx_gradcam.images.decoding import resized
from onnx_gradcam.runtime.explainer import Explanation, Prepared

from .job import Crew, in_order
from .records import DRAFTS, FAILURES, RECORD, Record, file_digests, publish, read_record, write_json
from .writers import Row, Writer, make_writer

__all__ = ["explain_shard"]

_WAITING_BATCHES: Final = 4
"""How many batches of images may wait until images of the same size fill one."""


@dataclass(frozen=True)
class _Image:
    number: int
    path: str
    content: Prepared | InputError
    enlarged: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class _Batch:
    """The results of a batch, encoded for the writer; `model_error` is a failure that may be the model's fault."""

    encoded: Any
    failures: list[dict[str, Any]]
    explained: int
    model_error: ModelError | None = None


def explain_shard(
    paths: Sequence[str], out: Path, crew: Crew, *, first: int = 0, progress: Callable[[int], None] | None = None
) -> Record:
    """Explain some images into one folder, which is written atomically.

    A finished shard is kept, and a damaged one is computed again. If another process writes the same shard at the same
    time, one of the two is kept. An image that cannot be read or explained is listed in the folder's `_failures.jsonl`,
    and the others are explained; a model that fails at every image is an error. The first image has the number `first`
    within the run, and `progress` is called with the number of images that were just finished.
    """
    finished = read_record(out, first, paths)
    if finished is not None:
        return finished
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
    explained, model_error = 0, None
    with contextlib.closing(make_writer(job.format, draft)) as writer:

        def read(item: tuple[int, str]) -> _Image:
            number, path = item
            content = crew.prepared(path)
            if isinstance(content, InputError):
                return _Image(number, path, content)
            reduced = _reduced(content, writer.longest_side)
            whole, held = content.placement, reduced.placement
            return _Image(number, path, reduced, (whole.width / held.width, whole.height / held.height))

        def explain(images: list[_Image]) -> _Batch:
            return _explain_batch(images, crew, writer)

        read_ahead = in_order(crew.threads, read, enumerate(paths, first), 2 * job.batch_size)
        for batch in in_order(crew.threads, explain, _batches(read_ahead, job.batch_size), crew.runs + 1):
            writer.write(batch.encoded)
            failures += batch.failures
            explained += batch.explained
            model_error = model_error or batch.model_error
            progress(batch.explained + len(batch.failures))
    if model_error is not None and not explained:
        raise model_error
    if failures:
        failures.sort(key=lambda failure: int(failure["image"]))
        lines = "".join(json.dumps(failure) + "\n" for failure in failures)
        (draft / FAILURES).write_text(lines, encoding="utf-8")
    record = Record.of(first, paths, len(failures), file_digests(draft))
    write_json(draft / RECORD, record.__dict__)
    return record


def _batches(images: Iterable[_Image], size: int) -> Iterator[list[_Image]]:
    """Batches of images whose inputs have the same size, each with the images that failed before it."""
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
    failures = [_failure(i, i.content) for i in images if isinstance(i.content, InputError)]
    ready = [(i, i.content) for i in images if isinstance(i.content, Prepared)]
    model_error = None
    try:
        rows = _rows(ready, crew)
    except (ModelError, NothingFoundError):
        # A single image may be at fault; the others are explained all the same.
        results = [(image, _alone(image, content, crew)) for image, content in ready]
        rows = [row for _, row in results if isinstance(row, Row)]
        for image, error in results:
            if not isinstance(error, Row):
                failures.append(_failure(image, error))
            if isinstance(error, ModelError):
                model_error = error
    return _Batch(writer.encode(rows) if rows else None, failures, len(rows), model_error)


def _rows(ready: Sequence[tuple[_Image, Prepared]], crew: Crew) -> list[Row]:
    job = crew.job
    contents = [content for _, content in ready]
    results: list[Explanation] = crew.explainer.explained(contents, job.target, box=job.box, batch_size=job.batch_size)
    return [
        Row(image.number, image.path, result, image.enlarged) for (image, _), result in zip(ready, results, strict=True)
    ]


def _alone(image: _Image, content: Prepared, crew: Crew) -> Row | ModelError | NothingFoundError:
    try:
        return _rows([(image, content)], crew)[0]
    except (ModelError, NothingFoundError) as exc:
        return exc


def _failure(image: _Image, error: Exception) -> dict[str, Any]:
    return {"image": image.number, "path": image.path, "error": str(error)}


def _reduced(image: Prepared, longest: int) -> Prepared:
    """Save memory: scale the longer side down to `longest`, or drop the pixels for 0."""
    if longest == 0:
        return replace(image, image=np.zeros((1, 1, 3), np.uint8))
    tall, wide = image.image.shape[:2]
    scale = min(1.0, longest / max(tall, wide))
    height, width = max(1, round(tall * scale)), max(1, round(wide * scale))
    return replace(image, image=resized(image.image, height, width), placement=image.placement.scaled(height, width))

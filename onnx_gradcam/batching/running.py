"""Shards on this computer.

A run over any number of images, on any engine.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from onnx_gradcam.errors import InputError

from .job import Crew, Job, in_order
from .manifest import Manifest, begin_run
from .records import DRAFTS, FAILURES, Record, Shard, cut, read_record, sync
from .shard import explain_shard
from .writers import check_format

__all__ = ["Engine", "Progress", "Summary", "run_batch", "run_locally"]

_DESKS = 2
"""Shards at the same time: while one is written to its end, the other one keeps the crew busy."""


def run_locally(crew: Crew, shards: Iterator[Shard], out: Path, progress: Callable[[int], None]) -> Iterator[Record]:
    """Explain shards with one crew.

    Args:
        crew: who works on them.
        shards: what to explain; no more of them are asked for than can be worked on.
        out: the folder of the run.
        progress: called with the number of images that are done, as they are.

    Returns:
        The records of the shards, in their order.

    Raises:
        ExplainError: as `explain_shard` does.
    """
    desks = ThreadPoolExecutor(_DESKS, "shard")

    def work(shard: Shard) -> Record:
        return explain_shard(shard.paths, shard.folder(out), crew, first=shard.first, progress=progress)

    try:
        yield from in_order(desks, work, shards, _DESKS + 1)
    except BaseException:
        # Also where the run is interrupted: what has begun is not worked on to its end.
        crew.close()
        raise
    finally:
        desks.shutdown(cancel_futures=True)


Progress = Callable[[int], None]
Engine = Callable[[Crew, Manifest, Iterator[Shard], Path, Progress], Iterator[Record]]
"""Works on shards: the crew that was made to begin the run, what the run is, the shards, the folder, progress."""


@dataclass
class Summary:
    """What came of a run.

    Attributes:
        images: that it was given, those of earlier runs that it continued included.
        failures: how many of these could not be explained.
        found: how many were done before it was continued.
    """

    images: int = 0
    failures: int = 0
    found: int = 0


def run_batch(
    job: Job,
    paths: Iterable[str],
    out: Path,
    *,
    engine: Engine | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> Summary:
    """Explain images into a folder of shards.

    Memory does not grow with their number: paths are asked for when they are needed. Whenever the run ends, all
    shards in the folder are whole, and `resume` goes on with the others.

    Args:
        job: what to explain, and how.
        paths: the images; the same ones in the same order where a run is continued.
        out: the folder.
        engine: who works on the shards; this computer by default.
        resume: continue a run that is there.
        progress: called with the number of images that are done, from any thread.
        warn: called with what the user should know of the model.

    Raises:
        InputError: the folder holds another run, other images, or something else; or it cannot be written.
        ExplainError: the model, the choices or the target cannot be used.
    """
    check_format(job.format)
    tell = progress or (lambda _: None)
    crew = Crew(job)
    for warning in crew.explainer.warnings:
        (warn or (lambda _: None))(warning)
    crew.explainer.explained([], job.target)  # refuses classes that are not there, before anything is written
    manifest = Manifest.of(job, crew.explainer)
    begin_run(out, manifest, resume=resume)
    summary = Summary()

    def unfinished() -> Iterator[Shard]:
        for shard in cut(paths, job.shard_size):
            record = read_record(shard.folder(out), shard.first, shard.paths)
            if record is None:
                yield shard
                continue
            _count(summary, record)
            summary.found += record.images
            tell(record.images)

    try:
        shutil.rmtree(out / DRAFTS, ignore_errors=True)
        for record in (engine or _here)(crew, manifest, unfinished(), out, tell):
            _count(summary, record)
        _check_no_more(out, -(-summary.images // job.shard_size))
        _gather_failures(out)
        shutil.rmtree(out / DRAFTS, ignore_errors=True)
    except OSError as exc:
        raise InputError(
            f"{exc.filename or str(out)!r} cannot be read or written ({exc.strerror}); make room, then continue with "
            "--resume"
        ) from exc
    finally:
        crew.close()
    return summary


def _here(crew: Crew, manifest: Manifest, shards: Iterator[Shard], out: Path, progress: Progress) -> Iterator[Record]:
    del manifest  # one computer, one model file
    return run_locally(crew, shards, out, progress)


def _count(summary: Summary, record: Record) -> None:
    summary.images += record.images
    summary.failures += record.failures


def _check_no_more(out: Path, count: int) -> None:
    """Refuse a list of images that is a part of the one that the run was begun with."""
    if Shard(count, 0, []).folder(out).exists():
        raise InputError(
            f"the images are not those that the run was begun with (there are shards in {str(out)!r} beyond the last "
            "one); give the same ones in the same order, or choose another folder with -o"
        )


def _gather_failures(out: Path) -> None:
    """Put the failures of all shards into one file beside them."""
    draft = out / f".{FAILURES}-{uuid.uuid4().hex}"
    with draft.open("wb") as file:
        for shard in sorted(entry for entry in out.iterdir() if entry.name.startswith("part-")):
            if (shard / FAILURES).is_file():
                file.write((shard / FAILURES).read_bytes())
    sync([draft])
    draft.replace(out / FAILURES)

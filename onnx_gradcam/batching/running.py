"""Batch runs: explain any number of images into a folder of shards, on this computer or another engine.

Memory does not grow with the number of images: paths are read as they are needed. Whenever a run ends, all shards in
its folder are complete, and it can be resumed.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onnx_gradcam.errors import InputError
from onnx_gradcam.files import Drafts, locked
from onnx_gradcam.options import BatchFormat
from onnx_gradcam.runtime.detections import parse_selection
from onnx_gradcam.runtime.explainer import BoxChoice, TargetChoice

from .job import Crew, Job, in_order
from .listing import Count, ImageList
from .manifest import Manifest, begin_run
from .records import DRAFTS, FAILURES, Record, Shard, cut, read_record, shards_in
from .shard import explain_shard
from .writers import check_format

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnx_gradcam.options import Choices

__all__ = ["Engine", "Progress", "Summary", "batch", "run_batch", "run_locally"]

_CONCURRENT_SHARDS: Final = 2
"""While one shard is written to its end, the other one keeps the crew busy."""

Progress = Callable[[int], None]
Engine = Callable[[Crew, Iterator[Shard], Path, Progress], Iterator[Record]]
"""Explains shards: takes the crew that the run was started with, the shards, the folder and progress."""


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        images: number of images, including those of earlier runs that it resumed.
        failures: number of images that could not be explained; `_failures.jsonl` in the folder lists them.
        resumed: number of images that earlier runs had explained.
    """

    images: int = 0
    failures: int = 0
    resumed: int = 0

    @property
    def explained(self) -> int:
        """Number of images that were explained."""
        return self.images - self.failures

    def add(self, record: Record) -> None:
        """Count a finished shard."""
        self.images += record.images
        self.failures += record.failures


def batch(  # type: ignore[misc]  # `target` of `Options` fixes the class in a model
    model: str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    target: TargetChoice = None,
    box: BoxChoice = None,
    format: BatchFormat = "parquet",  # noqa: A002 - the user's word for it
    batch_size: int = 8,
    shard_size: int = 256,
    threads: int | None = None,
    provider: str = "cpu",
    engine: Engine | None = None,
    feeds: Mapping[str, Any] | None = None,
    feed_table: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    warn: Callable[[str], None] | None = None,
    **choices: Unpack[Choices],
) -> Summary:
    """Explain large image sets into a folder of shards, each of which is written atomically.

    An image that cannot be read or explained is listed in `_failures.jsonl`, and the run continues.

    Args:
        model: path of a model, explained or not.
        images: folders, with all images in and below them, and image files; `-` reads paths from standard input, one
            per line. An iterator is read as the run proceeds.
        out: the folder to create.
        target: class index or name, `"top3"`, or several of these; by default, the predicted class.
        box: for a detector, which boxes of each image: `"all"`, `"sum"`, an index of its table or a `Selection`; by
            default, the surest of each class.
        format: `parquet` (one table per shard), `npz` or `png` (one file per image).
        batch_size: maximum number of images per run of the model, 1 to 1024.
        shard_size: images per shard, 1 to 65536.
        threads: number of CPU threads; by default, one per core.
        provider: execution provider, `cpu`, `cuda` ...
        engine: where the shards are explained, for instance a `RayCluster`; by default, on this computer.
        feeds: values of the model's other inputs that are the same for all images, as for `Explainer`.
        feed_table: a CSV file with the values of other inputs for each image: the column `image` has paths, each other
            column is named like an input, and has values as `--feed` takes them. Paths are relative to its folder.
        resume: continue the run in the folder, if there is one.
        progress: called with the number of finished images and the total, `None` while it is unknown; from any thread.
        warn: called with each warning.
        choices: fields of `onnx_gradcam.Options`; for an explained model, only `labels` and `preprocess`.

    Returns:
        How many images were explained, and how many failed.

    Raises:
        InputError: an argument cannot be used, or the folder cannot be written or contains something else.
        ExplainError: the model cannot be explained this way; see `onnx_gradcam.errors`.

    Example::

        summary = batch("explained.onnx", "photos/", "heatmaps/", target="top3")
        print(summary.explained, "images,", summary.failures, "failures")
    """
    job = Job(
        model=Path(model),
        target=target,
        box=parse_selection(box, most=None),
        format=format,
        batch_size=batch_size,
        shard_size=shard_size,
        threads=threads,
        provider=provider,
        feed_table=None if feed_table is None else Path(feed_table),
        choices={**choices, **({"feeds": dict(feeds)} if feeds else {})},
    )
    sources = ImageList.of(images)
    sources.check(Path(out))
    tell = None if progress is None else _Total(progress, Count(sources))
    return run_batch(job, sources, Path(out), engine=engine, resume=resume, progress=tell, warn=warn)


class _Total:
    """Adds up the images that the threads of a run finish."""

    def __init__(self, progress: Callable[[int, int | None], None], count: Count) -> None:
        self._progress, self._count = progress, count
        self._lock = threading.Lock()
        self._done = 0

    def __call__(self, more: int) -> None:
        with self._lock:
            self._done += more
            self._progress(self._done, self._count.total)


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
    """Explain images into a folder of shards, as `batch` does.

    To resume a run, `paths` are the same in the same order. `progress` is called with the number of images that were
    just finished, from any thread, `warn` with each warning about the model and about damaged shards.
    """
    check_format(job.format)
    tell = progress or (lambda _: None)
    crew = Crew(job)
    for warning in crew.warnings:
        (warn or (lambda _: None))(warning)
    crew.explainer.explained([], job.target)  # refuses unknown classes before anything is written
    begin_run(out, Manifest.of(crew), resume=resume)
    summary = Summary()

    def unfinished() -> Iterator[Shard]:
        for shard in cut(paths, job.shard_size):
            folder = shard.folder(out)
            exists = folder.is_dir()
            record = read_record(folder, shard.first, shard.paths)
            if record is None:
                if exists and warn is not None:
                    warn(f"the shard {str(folder)!r} is damaged and is computed again")
                yield shard
                continue
            summary.add(record)
            summary.resumed += record.explained
            tell(record.images)

    try:
        with locked(out):
            shutil.rmtree(out / DRAFTS, ignore_errors=True)
            for record in (engine or run_locally)(crew, unfinished(), out, tell):
                summary.add(record)
            _check_no_more(out, -(-summary.images // job.shard_size))
            _gather_failures(out)
            shutil.rmtree(out / DRAFTS, ignore_errors=True)
    except OSError as exc:
        raise InputError(
            f"{exc.filename or str(out)!r} cannot be read or written ({exc.strerror}); free some space, then continue "
            "with --resume"
        ) from exc
    finally:
        crew.close()
    return summary


def run_locally(crew: Crew, shards: Iterator[Shard], out: Path, progress: Progress) -> Iterator[Record]:
    """Explain shards on this computer, and yield their records in order; an `Engine`."""
    pool = ThreadPoolExecutor(_CONCURRENT_SHARDS, "shard")

    def work(shard: Shard) -> Record:
        return explain_shard(shard.paths, shard.folder(out), crew, first=shard.first, progress=progress)

    try:
        yield from in_order(pool, work, shards, _CONCURRENT_SHARDS + 1)
    except BaseException:
        # Also on an interrupt: shards in progress are abandoned.
        crew.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _check_no_more(out: Path, count: int) -> None:
    """Refuse images that are only the first part of those that the run was started with."""
    if Shard(count, 0, []).folder(out).exists():
        raise InputError(
            f"the images are not those that the run was started with ({str(out)!r} contains more shards); "
            "give the same images in the same order, or choose another folder with -o"
        )


def _gather_failures(out: Path) -> None:
    """Collect the failures of all shards in one file beside them."""
    with Drafts(durable=True) as drafts, drafts.file(out / FAILURES).open("wb") as file:
        for _, shard in shards_in(out):
            if (shard / FAILURES).is_file():
                file.write((shard / FAILURES).read_bytes())

"""Shards of a batch run on disk: how images are divided into them, and what each one records about itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from onnx_gradcam.errors import InputError
from onnx_gradcam.files import sync, write_file

__all__ = ["DRAFTS", "FAILURES", "RECORD", "Record", "Shard"]
__all__ += ["cut", "file_digests", "publish", "read_json", "read_record", "remove", "shards_in", "write_json"]

RECORD = "_record.json"
"""In every shard. Readers of Parquet folders ignore names that begin with an underscore or a dot."""
FAILURES = "_failures.jsonl"
"""In a shard with failed images, and beside the shards for the whole run."""
DRAFTS = ".drafts"
"""Beside the shards: those in progress."""
_PART: Final = "part-"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Some images of a run: the number of the shard, that of its first image within the run, and the images."""

    number: int
    first: int
    paths: list[str]

    def folder(self, out: Path) -> Path:
        """The folder of its results."""
        return out / f"{_PART}{self.number:08d}"


def shards_in(out: Path) -> list[tuple[int, Path]]:
    """Number and folder of the shards in a folder, in order."""
    numbered = ((path.name.removeprefix(_PART), path) for path in out.glob(f"{_PART}*"))
    return sorted((int(number), path) for number, path in numbered if number.isdigit())


def cut(paths: Iterable[str], size: int) -> Iterator[Shard]:
    """Divide images into shards of `size` images, the last of which may have fewer; only one is held at a time."""
    rest = iter(paths)
    number = 0
    while some := list(islice(rest, size)):
        yield Shard(number, number * size, some)
        number += 1


@dataclass(frozen=True)
class Record:
    """What a finished shard contains.

    Attributes:
        first: number of its first image within the run.
        images: number of its images.
        failures: number of images that could not be explained.
        paths: SHA-256 of the paths of its images.
        files: SHA-256 of its files by name.
    """

    first: int
    images: int
    failures: int
    paths: str
    files: dict[str, str]

    @classmethod
    def of(cls, first: int, paths: Sequence[str], failures: int, files: Mapping[str, str]) -> Record:
        """The record of a shard of these images."""
        digest = hashlib.sha256()
        for path in paths:
            digest.update(os.fsencode(path) + b"\0")
        return cls(first, len(paths), failures, digest.hexdigest(), dict(files))

    @property
    def explained(self) -> int:
        """Number of images that were explained."""
        return self.images - self.failures


def read_record(shard: Path, first: int, paths: Sequence[str]) -> Record | None:
    """Read the record of a shard; `None` if the shard is not finished.

    A shard whose record or files are damaged is removed, so that it is computed again. A shard of other images than
    `paths`, the first of which has the number `first`, is refused.
    """
    if not shard.is_dir():
        return None
    record: Record | None = None
    with contextlib.suppress(TypeError, InputError, OSError):
        stored = Record(**read_json(shard / RECORD))
        if file_digests(shard) == stored.files:
            record = stored
    if record is None:
        remove(shard)
        return None
    if record != Record.of(first, paths, record.failures, record.files):
        raise InputError(
            f"the images are not those that the run was started with (shard {str(shard)!r} contains others); "
            "give the same images in the same order, or choose another folder with -o"
        )
    return record


def file_digests(shard: Path) -> dict[str, str]:
    """SHA-256 of the files of a shard, except for its record."""
    digests = {}
    for file in sorted(shard.iterdir()):
        if file.name != RECORD:
            with file.open("rb") as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
            digests[file.name] = digest.hexdigest()
    return digests


def remove(shard: Path) -> None:
    """Remove a shard; other processes see all of it or nothing."""
    drafts = shard.parent / DRAFTS
    drafts.mkdir(exist_ok=True)
    removed = drafts / f"{shard.name}-{uuid.uuid4().hex}"
    shard.rename(removed)
    shutil.rmtree(removed)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{str(file)!r} cannot be read ({exc.strerror}); choose another folder with -o") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{str(file)!r} is damaged ({exc}); choose another folder with -o") from exc
    if not isinstance(value, dict):
        raise InputError(f"{str(file)!r} is damaged (not a JSON object); choose another folder with -o")
    return value


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically, and wait until it is on the disk."""
    write_file(file, (json.dumps(value, indent=2) + "\n").encode(), durable=True)


def publish(draft: Path, shard: Path) -> None:
    """Rename a finished draft to its shard; a shard that another process finished first is kept.

    Everything is on the disk before the rename, so a power failure cannot leave a shard of empty files.
    """
    sync([*draft.iterdir(), draft])
    try:
        draft.rename(shard)
    except OSError:
        if not shard.is_dir():
            raise
    else:
        sync([shard.parent])

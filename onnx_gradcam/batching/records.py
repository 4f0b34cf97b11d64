"""What a run leaves on disk beside the explanations: what was asked for, and what each shard holds.

How images are cut into shards.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import InputError

__all__ = [
    "DRAFTS",
    "FAILURES",
    "RECORD",
    "Record",
    "Shard",
    "cut",
    "publish",
    "read_json",
    "read_record",
    "sync",
    "write_json",
]

RECORD = "_record.json"
"""In every shard. Readers of Parquet folders pass over names that begin with an underscore or a dot."""
FAILURES = "_failures.jsonl"
"""In a shard, where an image failed; at the end one beside the shards, of all of them."""
DRAFTS = ".drafts"
"""Beside the shards: those that are not finished."""


@dataclass(frozen=True)
class Record:
    """What a finished shard says of itself.

    Attributes:
        first: the number of its first image in the run.
        images: how many it was given.
        failures: how many of these could not be explained.
        paths: a digest of their paths.
    """

    first: int
    images: int
    failures: int
    paths: str

    @classmethod
    def of(cls, first: int, paths: Sequence[str], failures: int) -> Record:
        """The record of a shard that was given these paths."""
        digest = hashlib.sha256()
        for path in paths:
            digest.update(os.fsencode(path) + b"\0")
        return cls(first, len(paths), failures, digest.hexdigest())


def read_record(shard: Path, first: int, paths: Sequence[str]) -> Record | None:
    """The record of a shard; `None` where it is not finished.

    Args:
        shard: its folder.
        first: the number of its first image.
        paths: the images that it should hold.

    Raises:
        InputError: it holds others, or its record is damaged.
    """
    file = shard / RECORD
    if not shard.is_dir():
        return None
    try:
        record = Record(**read_json(file))
    except TypeError as exc:
        raise InputError(f"{str(file)!r} is damaged; remove the folder it lies in, and it is made again") from exc
    if record != Record.of(first, paths, record.failures):
        raise InputError(
            f"the images are not those that the run was begun with (shard {str(shard)!r} holds others); "
            "give the same ones in the same order, or choose another folder with -o"
        )
    return record


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{str(file)!r} cannot be read ({exc.strerror}); choose another folder with -o") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{str(file)!r} is damaged ({exc}); choose another folder with -o") from exc
    if not isinstance(value, dict):
        raise InputError(f"{str(file)!r} is damaged (no JSON object); choose another folder with -o")
    return value


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file, which appears whole or not at all."""
    draft = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    sync([draft])
    draft.replace(file)


def publish(draft: Path, shard: Path) -> None:
    """Give a finished draft its name; where somebody else did so before, theirs stays.

    The name is given once all is on the disk, so that a power cut leaves no shard of empty files either.
    """
    sync([*draft.iterdir(), draft])
    try:
        draft.rename(shard)
    except OSError:
        if not shard.is_dir():
            raise
    else:
        sync([shard.parent])


def sync(paths: Iterable[Path]) -> None:
    """Wait until files, and the names in folders, are on the disk."""
    for path in paths:
        # Folders cannot be opened on Windows, and need not be.
        if path.is_dir() and os.name == "nt":
            continue
        handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True)
class Shard:
    """Some images of a run.

    Attributes:
        number: of the shard, from 0.
        first: the number of its first image in the run.
        paths: the images.
    """

    number: int
    first: int
    paths: list[str]

    def folder(self, out: Path) -> Path:
        """Where it is written."""
        return out / f"part-{self.number:08d}"


def cut(paths: Iterable[str], size: int) -> Iterator[Shard]:
    """Shards of `size` images, the last one may have fewer; never more than one is held."""
    rest = iter(paths)
    number = 0
    while some := list(islice(rest, size)):
        yield Shard(number, number * size, some)
        number += 1

"""The images of a batch run, found one at a time: folders are walked and lists are read as the run proceeds."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from onnx_gradcam.errors import ExplainError, InputError
from onnx_gradcam.images.header import IMAGE_SUFFIXES

__all__ = ["Count", "ImageList", "listed"]

_MAX_PATH: Final = 1 << 16


@dataclass(frozen=True)
class ImageList:
    """The images to explain; iterating yields their absolute paths, always in the same order.

    `sources` are folders, with all images in and below them, image files, and `-` for standard input, which holds one
    path per line; or an iterator of paths. Iterating refuses folders without images, and lines that are not paths.
    """

    sources: Sequence[str] | Iterator[str]

    @classmethod
    def of(cls, images: str | Path | Iterable[str | Path]) -> ImageList:
        """The list of what `onnx_gradcam.batch` takes."""
        if isinstance(images, (str, Path)):
            return cls([str(images)])
        if isinstance(images, Sequence):
            return cls([str(image) for image in images])
        return cls(str(image) for image in images)

    def __post_init__(self) -> None:
        if self.countable and list(self.sources).count("-") > 1:
            raise InputError("standard input can be read only once; give '-' once")

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            yield from listed(source, sys.stdin.buffer)

    @property
    def countable(self) -> bool:
        """Whether the images can be listed twice."""
        return isinstance(self.sources, Sequence)

    def check(self, out: Path) -> None:
        """Refuse, before the run, paths that do not exist, and an `out` among the images."""
        for source in self.sources if isinstance(self.sources, Sequence) else ():
            if not source:
                raise InputError("the path of an image is empty; check the command")
            folder = Path(source)
            if source != "-" and not folder.exists():
                raise InputError(f"no such image or folder: {source!r}; check the path")
            if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
                raise InputError(
                    f"the results would be written into {source!r}, among the images; choose a folder outside of it "
                    "with -o"
                )


def listed(source: str, stream: BinaryIO) -> Iterator[str]:
    """The absolute paths of the images that one source stands for; of a folder, only one listing is held at a time."""
    if source == "-":
        yield from _lines(stream)
    elif Path(source).is_dir():
        empty = True
        for path in _walk(os.path.abspath(source)):  # noqa: PTH100 - a million times: no object each
            empty = False
            yield path
        if empty:
            raise InputError(f"the folder {source!r} contains no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    else:
        yield os.path.abspath(source)  # noqa: PTH100


def _walk(top: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise InputError(
            f"the folder {error.filename!r} cannot be read ({error.strerror}); check its permissions"
        ) from error

    for folder, inner, files in os.walk(top, onerror=refuse):
        inner.sort()
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                yield os.path.join(folder, name)  # noqa: PTH118


def _lines(stream: BinaryIO) -> Iterator[str]:
    number = 0
    while line := stream.readline(_MAX_PATH):
        number += 1
        if len(line) == _MAX_PATH or b"\0" in line:
            raise InputError(f"line {number} of standard input is not a path; give one path per line")
        if path := line.rstrip(b"\r\n"):
            yield os.path.abspath(os.fsdecode(path))  # noqa: PTH100
    if number == 0:
        raise InputError("standard input is empty; give one path per line")


class Count:
    """The number of images in a list, counted in the background; `None` while unknown, or if it is read only once."""

    def __init__(self, images: ImageList) -> None:
        self.total: int | None = None
        if images.countable and "-" not in images.sources:
            threading.Thread(target=self._count, args=(images,), daemon=True).start()

    def _count(self, images: ImageList) -> None:
        try:
            self.total = sum(1 for _ in images)
        except ExplainError:
            return  # the run raises the same error

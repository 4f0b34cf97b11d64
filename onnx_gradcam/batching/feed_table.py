"""A table with values of the model's other inputs for each image of a batch run."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnx_gradcam.errors import InputError
from onnx_gradcam.feeds import in_folder
from onnx_gradcam.files import read_text

__all__ = ["FeedTable"]

_IMAGE: Final = "image"
_LARGEST: Final = 2**28
_CONTENT: Final = "a table of comma-separated values with a column `image`"


@dataclass(frozen=True)
class FeedTable:
    """A CSV file: a line of names, then a line for each image.

    Attributes:
        path: the file.
        columns: the names of inputs, which are those of all columns but `image`.
        rows: by the absolute path of an image, the values of its cells that are not empty.
        digest: SHA-256 of the file's text.
    """

    path: Path
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]
    digest: str

    @classmethod
    def read(cls, path: str | Path) -> FeedTable:
        """Read a table; paths of images and of values are relative to its folder.

        Raises:
            InputError: it cannot be read, has no column `image`, or an image twice.
        """
        text = read_text(path, _LARGEST, _CONTENT)
        lines = _lines(text, str(path))
        names = next(lines, (1, []))[1]
        if _IMAGE not in names:
            raise InputError(f"{str(path)!r} has no column 'image'; name its columns in the first line")
        double = next((name for i, name in enumerate(names) if not name or name in names[:i]), None)
        if double is not None:
            raise InputError(f"{str(path)!r} has two columns {double!r}, or one without a name; name each once")
        folder, rows = Path(path).absolute().parent, dict[str, dict[str, str]]()
        for number, cells in lines:
            if len(cells) != len(names):
                raise InputError(
                    f"line {number} of {str(path)!r} has {len(cells)} cells for {len(names)} columns; quote cells that "
                    "contain commas"
                )
            row = dict(zip(names, cells, strict=True))
            image = os.path.abspath(os.path.join(folder, row.pop(_IMAGE)))  # noqa: PTH100, PTH118 - as images are listed
            if image in rows:
                raise InputError(f"line {number} of {str(path)!r} has an image that an earlier line has; keep one")
            rows[image] = {name: in_folder(cell, folder) for name, cell in row.items() if cell}
        columns = tuple(name for name in names if name != _IMAGE)
        return cls(Path(path), columns, rows, hashlib.sha256(text.encode()).hexdigest())

    def of(self, image: str) -> Mapping[str, str]:
        """The values of an image by the names of inputs.

        Raises:
            InputError: the table has no line for it.
        """
        row = self.rows.get(image)
        if row is None:
            raise InputError(f"{str(self.path)!r} has no line for this image; add one")
        return row


def _lines(text: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of every line that is not empty."""
    reader = csv.reader(text.splitlines(keepends=True), strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as exc:
        raise InputError(f"line {reader.line_num} of {path!r} cannot be read ({exc}); it should be CSV") from exc

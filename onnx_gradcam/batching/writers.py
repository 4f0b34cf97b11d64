"""The file formats of a shard: the threads that explain images encode the results, one thread per shard writes them."""

from __future__ import annotations

import importlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError
from onnx_gradcam.images.drawing import encode_image
from onnx_gradcam.options import BatchFormat
from onnx_gradcam.runtime.explainer import Box, Explanation

__all__ = ["ParquetWriter", "Row", "Writer", "check_format", "make_writer"]

INDEX = "index.jsonl"
PARQUET = "explanations.parquet"

_LONGEST_SIDE: Final = 1024
"""Pixels of an image with a heatmap drawn over it."""
_PYARROW: Final = "needs pyarrow, which is not installed; run `pip install '.[batch]'` in a clone of onnx-gradcam"


@dataclass(frozen=True)
class Row:
    """The explanation of one image, with its number within the run.

    The image is `enlarged` times as wide and as high as in the explanation, which may hold it scaled down. `more` has
    the values of further columns of a `ParquetWriter`.
    """

    number: int
    path: str
    explanation: Explanation
    enlarged: tuple[float, float] = (1.0, 1.0)
    more: Mapping[str, Any] = field(default_factory=dict)

    def corners(self, box: Box) -> list[float] | None:
        """A box in pixels of the image, `None` where its place is unknown."""
        if box.xyxy is None:
            return None
        return [round(side * factor, 2) for side, factor in zip(box.xyxy, self.enlarged * 2, strict=True)]


class Writer(ABC):
    """Writes explanations into a folder."""

    longest_side = 0
    """The longer side that images need at most, in pixels; 0 if their pixels are not used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> Any:
        """Encode some images for `write`; thread-safe."""

    @abstractmethod
    def write(self, encoded: Any) -> None:
        """Write what `encode` returned, or nothing for `None`."""

    @abstractmethod
    def close(self) -> None:
        """Finish the files."""


def check_format(form: BatchFormat, option: str = "--format parquet") -> None:
    """Check that the packages that a format needs are installed; `option` is what the user chose it by."""
    if form == "parquet":
        _pyarrow(option)


def make_writer(form: BatchFormat, folder: Path) -> Writer:
    """Create the writer of a format."""
    return _WRITERS[form](folder)


class ParquetWriter(Writer):
    """Writes `explanations.parquet`, with a row for each explained class of each image.

    Heatmaps are stored as flat lists of float32 in row-major order, beside their height and width. `more` names further
    columns, `time` (microseconds, UTC) and `file` (bytes), which come from `Row.more`.
    """

    def __init__(self, folder: Path, more: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._more = more
        pa, parquet = _pyarrow()
        self._arrow = pa
        columns = {"image": pa.int64(), "path": pa.string(), "class": pa.int64(), "label": pa.string()}
        columns["score"] = pa.float64()
        for name in ("heatmap", "cam"):
            columns |= {name: pa.list_(pa.float32()), f"{name}_height": pa.int32(), f"{name}_width": pa.int32()}
        columns |= {"seen": pa.list_(pa.float64()), "box": pa.list_(pa.float64()), "box_index": pa.int64()}
        further = {"time": pa.timestamp("us", tz="UTC"), "file": pa.binary()}
        columns |= {name: further[name] for name in more}
        self._schema = pa.schema(columns)
        # In smooth maps, neighbouring values share exponents and upper digits; splitting the bytes compresses better.
        self._file = parquet.ParquetWriter(
            folder / PARQUET,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=["path", "label"],
            write_statistics=["image", "path", "class", "label", "score"],
            use_byte_stream_split=["heatmap.list.element", "cam.list.element"],
        )

    def encode(self, rows: Sequence[Row]) -> Any:
        """Make a record batch."""
        flat = [(row, one) for row in rows for one in row.explanation.maps]
        columns = {
            "image": [row.number for row, _ in flat],
            "path": [_text(row.path) for row, _ in flat],
            "class": [one.target.index for _, one in flat],
            "label": [_text(one.target.label) for _, one in flat],
            "score": [one.target.score for _, one in flat],
            **self._maps("heatmap", [one.heatmap for _, one in flat]),
            **self._maps("cam", [one.cam for _, one in flat]),
            "seen": [list(row.explanation.placement.box) for row, _ in flat],
            "box": [row.corners(one.boxes[0]) if len(one.boxes) == 1 else None for row, one in flat],
            "box_index": [one.boxes[0].index if len(one.boxes) == 1 else None for _, one in flat],
            **{name: [row.more[name] for row, _ in flat] for name in self._more},
        }
        pa = self._arrow
        arrays = [
            values if isinstance(values := columns[field.name], pa.Array) else pa.array(values, field.type)
            for field in self._schema
        ]
        return pa.record_batch(arrays, schema=self._schema)

    def _maps(self, name: str, maps: Sequence[npt.NDArray[np.float32]]) -> dict[str, Any]:
        offsets = np.cumsum([0, *(one.size for one in maps)]).astype(np.int32)
        values = np.concatenate([one.reshape(-1) for one in maps])
        pa = self._arrow
        return {
            name: pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32())),
            f"{name}_height": [one.shape[0] for one in maps],
            f"{name}_width": [one.shape[1] for one in maps],
        }

    def write(self, encoded: Any) -> None:
        """Append a row group."""
        if encoded is not None:
            self._file.write_batch(encoded)

    def close(self) -> None:
        """Write the footer."""
        self._file.close()


@dataclass(frozen=True)
class _File:
    name: str
    content: bytes
    entry: dict[str, Any]


class _FileWriter(Writer):
    """Writes one file per image, named by its number, and `index.jsonl`, which lists the image of each file."""

    suffix: str

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._index = (folder / INDEX).open("w", encoding="utf-8")

    def encode(self, rows: Sequence[Row]) -> list[_File]:
        """Encode the files."""
        return [_File(f"{row.number:09d}{self.suffix}", self._content(row.explanation), _entry(row)) for row in rows]

    @abstractmethod
    def _content(self, explanation: Explanation) -> bytes:
        """The bytes of one file."""

    def write(self, encoded: list[_File] | None) -> None:
        """Write files, and their lines of the index."""
        for file in encoded or ():
            (self.folder / file.name).write_bytes(file.content)
            self._index.write(json.dumps({"image": file.entry["image"], "file": file.name, **file.entry}) + "\n")

    def close(self) -> None:
        """Close the index."""
        self._index.close()


class _ArrayWriter(_FileWriter):
    """The arrays of `explain --npz`: `heatmap` [classes, H, W], `cam` [classes, h, w], `classes`, `scores`."""

    suffix = ".npz"

    def _content(self, explanation: Explanation) -> bytes:
        return _archive(explanation.arrays())


class _ImageWriter(_FileWriter):
    """The sheet of `explain`: the image, and beside it the heatmap of each class over it."""

    suffix = ".png"
    longest_side = _LONGEST_SIDE

    def _content(self, explanation: Explanation) -> bytes:
        return encode_image(explanation.sheet().pixels, self.suffix)


_WRITERS: Final[Mapping[BatchFormat, Callable[[Path], Writer]]] = {
    "parquet": ParquetWriter,
    "npz": _ArrayWriter,
    "png": _ImageWriter,
}


def _archive(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """As `numpy.savez_compressed`, but with less compression and several times as fast."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return whole.getvalue()


def _entry(row: Row) -> dict[str, Any]:
    targets = [one.target.to_dict() for one in row.explanation.maps]
    keys = {"classes": "index", "labels": "label", "scores": "score"}
    entry = {"image": row.number, "path": row.path, **{k: [one[key] for one in targets] for k, key in keys.items()}}
    if any(one.boxes for one in row.explanation.maps):
        placed = [[{**box.to_dict(), "xyxy": row.corners(box)} for box in one.boxes] for one in row.explanation.maps]
        entry["boxes"] = placed
    return entry


def _text(text: str) -> str:
    """File names need not be valid UTF-8; other bytes are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _pyarrow(option: str = "--format parquet") -> tuple[Any, Any]:
    """PyArrow and its Parquet module."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as exc:
        raise InputError(f"{option} {_PYARROW}") from exc

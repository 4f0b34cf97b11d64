"""Read MXNet's `.params`: named arrays, memory-mapped and read when they are used.

Format: MXNet `src/ndarray/ndarray.cc` (NDArray::Save, NDArray::Load, LegacyLoad); little endian::

    u64 0x112, u64 reserved, u64 n, n arrays, u64 m (n or 0), m x (u64 length, name)

MXNet 2 writes NumPy's `.npz` instead.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_gradcam.errors import ExportError, InputError, reason

__all__ = ["Parameters", "lazy", "read_parameters"]

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_DENSE = 0
_MOST_DIMENSIONS = 32
_LEAST_ARRAY_BYTES = 4
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_ZIP_MAGIC = b"PK\x03\x04"

Parameters = dict[str, "npt.NDArray[Any]"]
"""Arrays by name, with the prefixes `arg:` and `aux:` that `export` and Module write."""


def read_parameters(path: str | Path) -> Parameters:
    """The arrays of a `.params` file; their content is not read yet, except from an `.npz`."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be read ({reason(exc)}); give the path of a .params file") from exc
    if data[: len(_ZIP_MAGIC)] == _ZIP_MAGIC:
        return _npz(path, size)
    return _Reader(memoryview(data), path).arrays()


def lazy(name: str, array: npt.NDArray[Any]) -> ir.LazyTensor:
    """An array of a file as a weight that is copied when the model is written, and not kept in memory."""
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    return ir.LazyTensor(functools.partial(_copied, array), dtype=dtype, shape=shape, name=name, cache=False)


def _copied(array: npt.NDArray[Any]) -> ir.TensorProtocol:
    content = np.array(array)
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    mapped = owner.obj if isinstance(owner, memoryview) else owner
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # otherwise every page read counts as used memory
    return ir.Tensor(content)


class _Reader:
    """Walk over the file; every length is checked against the bytes left before it is used."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self._data = data
        self._at = 0
        self._path = path

    def _fail(self, problem: str) -> ExportError:
        return ExportError(f"{self._path}: {problem}; copy the .params file again, or save it again with MXNet")

    def _take(self, count: int, label: str) -> memoryview:
        if count > len(self._data) - self._at:
            raise self._fail(
                f"{label} needs {count} bytes at {self._at}, but the file ends after {len(self._data) - self._at}"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def _numbers(self, layout: str, label: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self._take(struct.calcsize(f"<{layout}"), label))

    def arrays(self) -> Parameters:
        head = bytes(self._data[:8])
        if len(head) < 8 or struct.unpack("<Q", head)[0] != _LIST_MAGIC:
            raise ExportError(
                f"{self._path}: not an MXNet parameter file (it starts with {head!r}); give the .params that "
                "belongs to the -symbol.json"
            )
        _, _, count = self._numbers("3Q", "the header")
        if count > (len(self._data) - self._at) // _LEAST_ARRAY_BYTES:
            raise self._fail(f"it claims to hold {count} arrays, more than fit into its {len(self._data)} bytes")
        arrays = [self._array(index) for index in range(count)]
        names = self._names(count)
        if self._at != len(self._data):
            raise self._fail(f"{len(self._data) - self._at} bytes follow the last name")
        return {name: array for name, array in zip(names, arrays, strict=True) if array is not None}

    def _names(self, count: int) -> list[str]:
        (named,) = self._numbers("Q", "the number of names")
        if named != count:
            raise self._fail(f"it holds {count} arrays, but {named} names")
        names = []
        for index in range(count):
            (length,) = self._numbers("Q", f"the length of name {index}")
            try:
                names.append(bytes(self._take(length, f"name {index}")).decode())
            except UnicodeDecodeError as exc:
                raise self._fail(f"name {index} is not UTF-8") from exc
        if len(set(names)) != count:
            raise self._fail("two arrays have the same name")
        return names

    def _array(self, index: int) -> npt.NDArray[Any] | None:
        label = f"array {index}"
        (magic,) = self._numbers("I", label)
        if magic in (_V2, _V3):
            (storage,) = self._numbers("i", label)
            if storage != _DENSE:
                raise self._fail(f"{label} is stored sparse (kind {storage}), which only MXNet reads; make it dense")
        shape = self._shape(magic, label)
        if shape is None:
            return None
        _, _, kind = self._numbers("3i", label)
        if kind not in _DTYPES:
            raise self._fail(f"{label} has the unknown dtype {kind}")
        dtype = np.dtype(_DTYPES[kind])
        count = math.prod(shape)
        data = self._take(count * dtype.itemsize, f"{label} of shape {shape}")
        return np.frombuffer(data, dtype, count).reshape(shape)

    def _shape(self, magic: int, label: str) -> tuple[int, ...] | None:
        """The shape; `None` for an array without content."""
        rank, layout = magic, "I"
        if magic in (_V1, _V2, _V3):
            ((rank,), layout) = self._numbers("i", label), "q"
        if rank > _MOST_DIMENSIONS:
            raise self._fail(f"{label} has an unknown version, or has {rank} dimensions")
        if rank < 0 or (rank == 0 and magic != _V3):
            return None
        shape = self._numbers(f"{rank}{layout}", label) if rank else ()
        if any(dim < 0 for dim in shape):
            raise self._fail(f"{label} has the impossible shape {shape}")
        return shape


def _npz(path: Path, size: int) -> Parameters:
    """The arrays of an uncompressed `.npz`."""
    arrays: Parameters = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ExportError(f"{path}: is compressed, which MXNet does not write; save it with numpy.savez")
            if sum(entry.file_size for entry in entries) > size:
                raise ExportError(f"{path}: its entries claim more bytes than the file has; copy it again")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name in arrays:
                    raise ExportError(f"{path}: two arrays are named {name!r}; save it again")
                arrays[name] = _npy(archive.read(entry), f"{path}: array {name!r}")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, struct.error) as exc:
        raise ExportError(f"{path}: a damaged .npz archive ({reason(exc)}); copy it again") from exc
    return arrays


def _npy(content: bytes, label: str) -> npt.NDArray[Any]:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as exc:
        raise ExportError(f"{label} is not a NumPy array ({reason(exc)}); save it with numpy.savez") from exc
    if dtype.kind not in "fiub":
        raise ExportError(f"{label} has elements of type {dtype}, but must hold numbers; save it again")
    count, left = math.prod(shape), len(content) - stream.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != left:
        raise ExportError(
            f"{label} of shape {shape} needs {count * dtype.itemsize} bytes, but has {left}; copy it again"
        )
    return np.frombuffer(content, dtype, count, stream.tell()).reshape(shape, order="F" if fortran else "C")

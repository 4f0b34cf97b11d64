"""Open untrusted `.keras` and `.h5` files.

A `.keras` file is a ZIP archive of `config.json`, `metadata.json` and `model.weights.h5`; only these three are read,
none is extracted. An `.h5` file holds the configuration in attributes. Weights stay in the file until they are needed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from onnx_gradcam.errors import ExportError, InputError, reason

if TYPE_CHECKING:
    import h5py

__all__ = ["REMEDY", "Archive", "checked", "open_archive"]

REMEDY = "export with --via tf or --via torch, which run the framework itself"

_LARGEST_JSON = 2**26
_LARGEST_RATIO = 100
"""Weights hardly compress: a file that unpacks to more than this many times its size is not a model."""
_CHUNK = 2**20
_WEIGHTS = "model.weights.h5"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, eq=False, kw_only=True)
class Archive:
    """The content of a model file."""

    name: str  # the file's name, for messages
    config: dict[str, Any]  # the model's configuration, as Keras wrote it
    weights: h5py.Group  # the HDF5 group with the variables
    version: str  # of the Keras that wrote the file
    legacy: bool  # whether the variables are listed by layer name, as in `.h5` files

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


def open_archive(path: str | Path) -> Archive:
    """Open a `.keras` or `.h5` file; its weights are not read yet."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; if it is a SavedModel, export it with --via tf")
    try:
        file = path.open("rb")
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror}); give the path of a .keras or .h5 model") from exc
    with file:
        start = file.read(8)
        if start.startswith(b"PK"):
            return _open_zip(file, str(path))
        if start == _HDF5_SIGNATURE:
            return _open_h5(_Section(file, 0, path.stat().st_size), str(path))
    raise ExportError(f"{path}: neither a .keras archive nor an HDF5 file; is it the right file, and complete?")


def _open_zip(file: BinaryIO, name: str) -> Archive:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_names(archive, name)
            config = _json_member(archive, "config.json", name)
            metadata = _json_member(archive, "metadata.json", name)
            weights = _weights_stream(archive, file, name)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, struct.error, zlib.error) as exc:
        # zipfile raises RuntimeError for an encrypted member.
        raise ExportError(f"{name}: the archive is damaged ({reason(exc)}); fetch or save the file again") from exc
    group = _hdf5(weights, name)
    return Archive(
        name=name, config=config, weights=group, version=_version(metadata.get("keras_version"), name), legacy=False
    )


def _check_names(archive: zipfile.ZipFile, name: str) -> None:
    seen = set()
    for entry in archive.namelist():
        windows = PureWindowsPath(entry)
        if PurePosixPath(entry).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise ExportError(f"{name}: the archive's entry {entry!r} is named outside of the archive; refused")
        if entry in seen:
            raise ExportError(f"{name}: the archive contains {entry!r} twice; save the model again")
        seen.add(entry)


def _json_member(archive: zipfile.ZipFile, member: str, name: str) -> dict[str, Any]:
    if member not in archive.namelist():
        raise ExportError(
            f"{name}: the archive contains no {member}; save the whole model with model.save('name.keras')"
        )
    if archive.getinfo(member).file_size > _LARGEST_JSON:
        raise ExportError(f"{name}: {member} is larger than {_LARGEST_JSON} bytes; refused")
    with archive.open(member) as stream:
        return _parsed(stream.read(_LARGEST_JSON), member, name)


def _parsed(text: str | bytes, member: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ExportError(f"{name}: {member} is not valid JSON ({reason(exc)}); save the model again") from exc
    if not isinstance(value, dict):
        raise ExportError(f"{name}: {member} is not a JSON object; save the model again")
    return value


def _weights_stream(archive: zipfile.ZipFile, file: BinaryIO, name: str) -> _Section:
    """The archive's weights as a seekable file: a section of it if they are stored uncompressed, else unpacked."""
    if _WEIGHTS not in archive.namelist():
        if any(entry.endswith(".weights.json") for entry in archive.namelist()):
            raise ExportError(f"{name}: the weights are split into shards; save the model without sharding")
        raise ExportError(f"{name}: the archive contains no {_WEIGHTS}; save the whole model to a .keras file")
    info = archive.getinfo(_WEIGHTS)
    if info.file_size > _LARGEST_RATIO * info.compress_size + _CHUNK:
        raise ExportError(
            f"{name}: {_WEIGHTS} would unpack from {info.compress_size} to {info.file_size} bytes; refused"
        )
    with archive.open(info) as stream:  # reading to the end checks the checksum
        if info.compress_type != zipfile.ZIP_STORED:
            with tempfile.TemporaryFile() as unpacked:
                shutil.copyfileobj(stream, unpacked, _CHUNK)
                unpacked.flush()
                return _Section(unpacked, 0, info.file_size)
        while stream.read(_CHUNK):
            pass
    file.seek(info.header_offset)
    name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    return _Section(file, info.header_offset + 30 + name_length + extra_length, info.file_size)


class _Section(io.RawIOBase):
    """A section of an open file, as a file of its own that outlives the other.

    It closes when it is no longer needed: weights are read when the exported model is saved.
    """

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._descriptor = os.dup(file.fileno())
        self._file = io.FileIO(self._descriptor, closefd=False)
        self._start, self._length, self._at = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        if not view:
            return 0
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _open_h5(stream: _Section, name: str) -> Archive:
    root = _hdf5(stream, name)
    with checked(f"{name}: the HDF5 data is damaged"):
        config = _attribute(root, "model_config", name)
        if config is None or "model_weights" not in root:
            raise ExportError(
                f"{name}: contains no model configuration (only weights?); save the whole model with model.save()"
            )
        version = _attribute(root, "keras_version", name) or _attribute(root["model_weights"], "keras_version", name)
        return Archive(
            name=name,
            config=_parsed(config, "model_config", name),
            weights=root["model_weights"],
            version=_version(version, name),
            legacy=True,
        )


def _hdf5(stream: _Section, name: str) -> h5py.File:
    try:
        import h5py  # noqa: PLC0415 - an optional dependency
    except ImportError as exc:
        raise ExportError("reading Keras files needs h5py; run pip install '.[keras]'") from exc
    with checked(f"{name}: the HDF5 data is damaged"):
        return h5py.File(stream, "r")


@contextmanager
def checked(problem: str) -> Iterator[None]:
    """Turn h5py's errors on damaged files into one that says the problem."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as exc:
        raise ExportError(f"{problem} ({reason(exc)}); fetch or save the file again") from exc


def _attribute(group: h5py.Group, key: str, name: str) -> str | None:
    if key not in group.attrs:
        return None
    if group.attrs.get_id(key).get_storage_size() > _LARGEST_JSON:
        raise ExportError(f"{name}: its attribute {key!r} is larger than {_LARGEST_JSON} bytes; refused")
    value = group.attrs[key]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value)


def _version(value: object, name: str) -> str:
    if not isinstance(value, str) or not re.match(r"\d{1,4}\.", value):
        raise ExportError(f"{name}: does not say which version of Keras wrote it; save the model again")
    if value.startswith(("0.", "1.")):
        raise ExportError(f"{name}: was written by Keras {value}; load and save it with Keras 2 first")
    return value

"""Recognise PyTorch's files without opening them in PyTorch, and refuse forged archives before PyTorch sees them."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Literal

from onnx_gradcam.errors import ExportError, InputError, reason

__all__ = ["Kind", "kind_of", "members"]

Kind = Literal["program", "torchscript", "pickle", "safetensors"]

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_SAFETENSORS_HEADER = 8
_MOST_UNPACKED = 20
_LARGEST_HEADER = 100_000_000  # the safetensors format's own limit


def kind_of(path: Path) -> Kind:
    """Whether a file is an exported program (`.pt2`), a TorchScript, another pickle, or safetensors."""
    if not path.is_file():
        problem = "a folder without config.json" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {problem}; give the path of a PyTorch model")
    try:
        with path.open("rb") as file:
            start = file.read(_SAFETENSORS_HEADER + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror}); check its permissions") from exc
    if start.startswith(_ZIP):
        return _archive_kind(path)
    length = int.from_bytes(start[:_SAFETENSORS_HEADER], "little")
    if start[_SAFETENSORS_HEADER:] == b"{" and length <= _LARGEST_HEADER:
        if length + _SAFETENSORS_HEADER > path.stat().st_size:
            raise ExportError(f"{path}: its header is longer than the file; fetch the file again")
        return "safetensors"
    if start.startswith(_PICKLE):
        return "pickle"
    raise ExportError(f"{path}: not a PyTorch file (neither an archive nor a pickle nor safetensors); is it complete?")


def _archive_kind(path: Path) -> Kind:
    inner = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in members(path)}
    if "archive_format" in inner or "serialized_exported_program.json" in members(path):
        return "program"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "pickle"
    raise ExportError(f"{path}: an archive that PyTorch did not write; is it the right file?")


def members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name; an `ExportError` says that it is damaged or forged.

    PyTorch stores weights uncompressed and packs code only. It never writes a member that unpacks to many times the
    file's size, occurs twice or is named outside of the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise ExportError(f"{path}: a damaged archive ({reason(exc)}); fetch the file again") from exc
    size = path.stat().st_size
    listed: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        name = PurePosixPath(info.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in info.filename or ":" in info.filename:
            raise ExportError(f"{path}: its member {info.filename!r} is named outside of the archive; refused")
        if info.filename in listed:
            raise ExportError(f"{path}: its member {info.filename!r} occurs twice; refused")
        if info.file_size > _MOST_UNPACKED * size:
            raise ExportError(f"{path}: its member {info.filename!r} claims {info.file_size} bytes; refused")
        listed[info.filename] = info
    return listed

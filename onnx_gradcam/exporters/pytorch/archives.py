"""Recognise PyTorch's files without opening them in PyTorch, and refuse forged archives before PyTorch sees them.

Also translates the preprocessing descriptions of timm, transformers and torchvision.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from onnx_gradcam.errors import ExportError, InputError, reason

__all__ = ["Kind", "from_timm", "from_torchvision", "from_transformers", "kind_of", "members"]

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


Description = dict[str, Any]

_TIMM_CROP = 0.875
_BYTE = 255
_CONVNEXT_UNCROPPED = 384
"""From this size on, ConvNeXt's images are resized without a crop."""


def from_timm(config: Mapping[str, Any]) -> Description | None:
    """From a timm network's `pretrained_cfg`, read as `timm.data.create_transform` does; `None` if not expressible."""
    size = config.get("input_size")
    if not size or len(size) != 3 or size[1] != size[2]:
        return None
    crop = config.get("crop_pct") or _TIMM_CROP
    described = _described(size[1:], config.get("mean"), config.get("std"))
    if config.get("crop_mode", "center") == "squash":
        return described if crop == 1 else None
    if config.get("crop_mode", "center") != "center":
        return None
    return described | {"resize": "short_crop", "short": int(size[1] / crop)}


def from_torchvision(transforms: Any) -> Description | None:
    """From `weights.transforms()` of a classifier (`torchvision.transforms._presets.ImageClassification`)."""
    crop, short = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if not crop or not short:
        return None
    described = _described([crop[0], crop[-1]], transforms.mean, transforms.std)
    return described | {"resize": "short_crop", "short": short[0]}


def from_transformers(config: Mapping[str, Any], kind: str) -> Description | None:
    """From a `preprocessor_config.json` and the network's `model_type`; `None` if not expressible."""
    size, crop = config.get("size"), config.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) and config.get("do_center_crop") else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if not isinstance(size, Mapping) or not config.get("do_resize", True):
        return None
    geometry = _geometry(size, crop if config.get("do_center_crop") else None, config, kind)
    if geometry is None:
        return None
    normalized = config.get("do_normalize", True)
    described = _described(
        geometry.pop("size"), *(config.get(key) if normalized else None for key in ("image_mean", "image_std"))
    )
    described["scale"] = config.get("rescale_factor", 1 / _BYTE) if config.get("do_rescale", True) else 1.0
    described["color"] = "bgr" if config.get("do_flip_channel_order") else "rgb"
    return described | geometry


def _geometry(
    size: Mapping[str, Any], crop: Mapping[str, Any] | None, config: Mapping[str, Any], kind: str
) -> Description | None:
    short = size.get("shortest_edge")
    if kind in {"convnext", "convnextv2"} and short:
        if short >= _CONVNEXT_UNCROPPED:
            return {"size": [short, short]}
        inner = int(short / config.get("crop_pct", 224 / 256))
        return {"size": [short, short], "resize": "short_crop", "short": inner}
    if short and crop:
        return {"size": [crop["height"], crop["width"]], "resize": "short_crop", "short": short}
    if "height" in size and "width" in size and (crop is None or dict(crop) == dict(size)):
        return {"size": [size["height"], size["width"]]}
    return None


def _described(size: Any, mean: Any, std: Any) -> Description:
    described: Description = {"size": [int(side) for side in size], "color": "rgb", "scale": 1 / _BYTE}
    if mean:
        described["mean"] = [float(value) for value in mean]
    if std:
        described["std"] = [float(value) for value in std]
    return described

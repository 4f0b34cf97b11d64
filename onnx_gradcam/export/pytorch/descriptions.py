"""How pictures become the input, as timm, transformers and torchvision describe it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["from_timm", "from_torchvision", "from_transformers"]

Description = dict[str, Any]

_TIMM_CROP = 0.875
_BYTE = 255
_CONVNEXT_UNCROPPED = 384
"""From this size on ConvNeXt's pictures are stretched and not cropped."""


def from_timm(config: Mapping[str, Any]) -> Description | None:
    """Of a timm network's `pretrained_cfg`, as `timm.data.create_transform` reads it; `None` for what it cannot say."""
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
    """Of `weights.transforms()` of a classifier (`torchvision.transforms._presets.ImageClassification`)."""
    crop, short = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if not crop or not short:
        return None
    described = _described([crop[0], crop[-1]], transforms.mean, transforms.std)
    return described | {"resize": "short_crop", "short": short[0]}


def from_transformers(config: Mapping[str, Any], kind: str) -> Description | None:
    """Of a Hugging Face `preprocessor_config.json`; `None` where it is no resizing that this project knows.

    Args:
        config: the file's content.
        kind: `model_type` of the network.
    """
    size, crop = config.get("size"), config.get("crop_size")
    size = {"shortest_edge": size} if isinstance(size, int) and config.get("do_center_crop") else size
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if not isinstance(size, Mapping) or not config.get("do_resize", True):
        return None
    geometry = _geometry(size, crop if config.get("do_center_crop") else None, config, kind)
    if geometry is None:
        return None
    normalised = config.get("do_normalize", True)
    described = _described(
        geometry.pop("size"), *(config.get(key) if normalised else None for key in ("image_mean", "image_std"))
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

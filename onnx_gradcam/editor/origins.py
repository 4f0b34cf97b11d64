"""What a model file, and the files beside it, say of the model: class names, preprocessing, task.

Exporters and hubs have their own ways to say it: Ultralytics and Windows ML in the model's metadata, Hugging Face and
timm in `config.json` and `preprocessor_config.json` beside the model. What this package stored itself comes first, then
what is in the file, then what is beside it. What cannot be right is said and not used.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_gradcam.errors import InputError, reason
from onnx_gradcam.files import read_text
from onnx_gradcam.images.preprocessing import parse_preprocessing
from onnx_gradcam.metadata import OWN, Carried

from .targets.classes import parse_labels

__all__ = ["Statement", "Statements", "from_timm", "from_torchvision", "from_transformers", "read_statements"]

Description = dict[str, Any]

_ULTRALYTICS = "Ultralytics metadata"
_IMAGE_METADATA = "ONNX image metadata"
_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_LARGEST_FILE = 2**24
_LONGEST_ENTRY = 2**20
_LONGEST_WORD = 80
_LARGEST_SIDE = 2**14
_STEPS = "preprocessing"
_UNNAMED = re.compile(r"LABEL_\d+")
_NONSENSE = (
    InputError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError, RecursionError,
)  # fmt: skip
"""What reading an entry of the wrong kind ends in."""

_TASKS = {
    "ImageClassification": "classification", "classify": "classification", "ObjectDetection": "detection",
    "detect": "detection", "obb": "detection", "pose": "detection", "InstanceSegmentation": "detection",
    "segment": "detection", "SemanticSegmentation": "segmentation", "semantic": "segmentation",
}  # fmt: skip
"""This package's task by that of Ultralytics, or by the end of a Hugging Face architecture."""

_LETTERBOXED = {"detect", "segment", "pose", "obb"}
_COLOURS = {"gray8": "gray", "rgb8": "rgb", "bgr8": "bgr"}
_RANGES: dict[str, dict[str, Any]] = {
    "nominalrange_0_255": {},
    "normalized_0_1": {"scale": 1 / 255},
    "normalized_1_1": {"scale": 1 / 127.5, "mean": [1.0]},
    "nominalrange_16_235": {"scale": 219 / 255, "mean": [-16.0]},
}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What one origin says.

    Attributes:
        origin: who says it, in words.
        labels: class names.
        preprocessing: how images become the model's input.
        task: what the model does, in the origin's word.
        remarks: what it says that cannot be used, one sentence each.
        details: what else it says, such as the stride.
    """

    origin: str
    labels: list[str] | None = None
    preprocessing: dict[str, Any] | None = None
    task: str = ""
    remarks: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Statements:
    """All that is said of a model, the most reliable origin first."""

    statements: tuple[Statement, ...]

    def first(self, name: str) -> Statement | None:
        """The first statement of `labels`, `preprocessing` or `task`."""
        return next((one for one in self.statements if getattr(one, name)), None)

    def origin(self, name: str) -> str:
        """Who says it; empty if nobody does."""
        one = self.first(name)
        return "" if one is None else one.origin

    @property
    def labels(self) -> list[str] | None:
        """The class names."""
        one = self.first("labels")
        return None if one is None else one.labels

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """How images become the model's input."""
        one = self.first("preprocessing")
        return None if one is None else one.preprocessing

    @property
    def task(self) -> str:
        """What the model does, as a task of this package; empty if unknown or another one."""
        one = self.first("task")
        return "" if one is None else next((task for end, task in _TASKS.items() if one.task.endswith(end)), "")

    @property
    def remarks(self) -> list[str]:
        """What is said and not used, and where two origins contradict each other."""
        remarks = [f"{one.origin}: {remark}" for one in self.statements for remark in one.remarks]
        for name, title, differ in (
            ("labels", "class names", "differ from those"),
            ("preprocessing", "preprocessing", "differs from that"),
        ):
            saying = [one for one in self.statements if getattr(one, name)]
            if saying and saying[0].origin == OWN:
                continue  # what was chosen at export
            remarks += [
                f"the {title} of {other.origin} {differ} of {saying[0].origin}, which comes first"
                for other in saying[1:]
                if getattr(other, name) != getattr(saying[0], name)
            ]
        return remarks


def read_statements(props: Mapping[str, str], folder: Path | None) -> Statements:
    """Everything that the `metadata_props` of a model, and the files beside it in `folder`, say.

    Raises:
        ModelError: an entry that this package writes is damaged.
    """
    own = Carried.from_props(props)
    stored = Statement(origin=OWN, labels=own.labels, preprocessing=own.preprocessing, task=own.task)
    return Statements((stored, *_ultralytics(props), *_image_metadata(props), *_beside(folder)))


def _ultralytics(props: Mapping[str, str]) -> Iterator[Statement]:
    """https://docs.ultralytics.com/modes/export; YOLOv5 writes `names` and `stride` only."""
    if not (props.get("author") == "Ultralytics" or {"names", "stride"} <= set(props)):
        return
    remarks: list[str] = []
    names = _literal(props, "names", lambda _: True, remarks)
    size = _literal(props, "imgsz", _is_size, remarks)
    stride = _literal(props, "stride", _is_pixels, remarks)
    channels = _literal(props, "channels", _is_pixels, remarks)
    task = _word(props.get("task", ""))
    details = {"imgsz": size, "stride": stride}
    yield Statement(
        origin=_ULTRALYTICS,
        labels=_kept(remarks, "names", lambda: None if names is None else parse_labels(names, "the list")),
        preprocessing=_kept(remarks, _STEPS, lambda: _ultralytics_input(task, size, channels)),
        task=task,
        remarks=remarks,
        details={key: value for key, value in details.items() if value is not None},
    )


def _literal(props: Mapping[str, str], key: str, right: Callable[[Any], bool], remarks: list[str]) -> Any:
    """A Python literal, of which nothing is run; `None` if there is none, and with a remark for nonsense."""
    if key not in props:
        return None
    try:
        value = ast.literal_eval(props[key]) if len(props[key]) <= _LONGEST_ENTRY else None
    except (*_NONSENSE, SyntaxError):
        value = None
    if value is None or not right(value):
        remarks.append(f"its {key} cannot be right; not used")
        return None
    return value


def _is_pixels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE


def _is_size(value: Any) -> bool:
    return _is_pixels(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_pixels, value)))


def _word(text: str) -> str:
    """A short word to print; empty for anything else."""
    return text if len(text) <= _LONGEST_WORD and text.isprintable() else ""


def _ultralytics_input(task: str, size: int | list[int] | None, channels: int | None) -> dict[str, Any] | None:
    """`LetterBox` for detectors, `classify_transforms` for classifiers; images of three channels only."""
    if channels not in (None, 3) or size is None or task not in {*_LETTERBOXED, "classify"}:
        return None
    height, width = [size, size] if isinstance(size, int) else size
    described: dict[str, Any] = {"size": [height, width], "scale": 1 / 255}
    if task in _LETTERBOXED:
        return described | {"resize": "letterbox"}
    return described | ({"resize": "short_crop", "short": height} if height == width else {})


def _image_metadata(props: Mapping[str, str]) -> Iterator[Statement]:
    """https://onnx.ai/onnx/repo-docs/MetadataProps.html; keys and values in any case. It does not say how to resize."""
    plain = {key.casefold(): value.casefold() for key, value in props.items() if key.casefold().startswith("image.")}
    layout, levels = plain.get("image.bitmappixelformat"), plain.get("image.nominalpixelrange")
    if layout is None and levels is None:
        return
    details = {key.removeprefix("image."): _word(plain[key]) for key in sorted(plain)}
    problem = ""
    if layout not in _COLOURS:
        problem = "it names no pixel format of 1 or 3 channels"
    elif levels not in _RANGES:
        problem = "it names no range of the pixels that is known"
    elif plain.get("image.colorspacegamma", "srgb") != "srgb":
        problem = "its pixels are not sRGB, to which images cannot be converted"
    if problem:
        yield Statement(origin=_IMAGE_METADATA, remarks=[f"{problem}; give --preprocess"], details=details)
    else:
        described = {"color": _COLOURS[layout or ""], **_RANGES[levels or ""]}
        yield Statement(origin=_IMAGE_METADATA, preprocessing=described, details=details)


def _beside(folder: Path | None) -> Iterator[Statement]:
    """The files of Hugging Face and timm beside the model, or above it where its folder is called `onnx`."""
    if folder is None:
        return
    places = [folder, *([folder.parent] if folder.name == "onnx" else [])]
    place = next((one for one in places if (one / _CONFIG).is_file() or (one / _PREPROCESSOR).is_file()), None)
    if place is None:
        return
    remarks: dict[str, list[str]] = {_CONFIG: [], _PREPROCESSOR: []}
    config, steps = (_object(place / name, remarks[name]) for name in (_CONFIG, _PREPROCESSOR))
    timm = isinstance(config.get("pretrained_cfg"), Mapping) and "architecture" in config
    if timm or {"model_type", "architectures", "id2label"} & set(config) or remarks[_CONFIG]:
        yield _from_config(config, remarks[_CONFIG], timm=timm)
    if steps or remarks[_PREPROCESSOR]:
        kind = str(config.get("model_type", ""))
        described = _steps(remarks[_PREPROCESSOR], lambda: from_transformers(steps, kind))
        yield Statement(origin=_PREPROCESSOR, preprocessing=described, remarks=remarks[_PREPROCESSOR])


def _from_config(config: Mapping[str, Any], remarks: list[str], *, timm: bool) -> Statement:
    pretrained = config["pretrained_cfg"] if timm else {}
    names = _kept(remarks, "class names", lambda: _timm_names(config) if timm else _id2label(config))
    architectures = config.get("architectures")
    task = _word(str(architectures[0])) if isinstance(architectures, list) and architectures else ""
    return Statement(
        origin=_CONFIG,
        labels=names,
        preprocessing=_steps(remarks, lambda: from_timm(pretrained)) if timm else None,
        task=task,
        remarks=remarks,
    )


def _id2label(config: Mapping[str, Any]) -> list[str] | None:
    names = parse_labels(config["id2label"], "its id2label") if "id2label" in config else None
    return None if names is None or all(_UNNAMED.fullmatch(name) for name in names) else names


def _timm_names(config: Mapping[str, Any]) -> list[str] | None:
    holder = config if "label_names" in config else config["pretrained_cfg"]
    names = holder.get("label_names")
    descriptions = holder.get("label_descriptions") or {}
    if names is None:
        return None
    return [str(descriptions.get(name, name)) for name in parse_labels(names, "its label_names")]


def _object(path: Path, remarks: list[str]) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file, or with a remark if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path, _LARGEST_FILE, "a JSON object"))
    except _NONSENSE as exc:
        remarks.append(f"it cannot be read ({reason(exc)})")
        return {}
    if not isinstance(value, dict):
        remarks.append("it is not a JSON object")
        return {}
    return value


def _steps(remarks: list[str], read: Callable[[], Description | None]) -> Description | None:
    """The preprocessing that `read` returns; without one, a remark says so."""
    before = len(remarks)
    described: Description | None = _kept(remarks, _STEPS, read)
    if described is None and len(remarks) == before:
        remarks.append("it has steps that a preprocessing here does not; give --preprocess")
    return described


def _kept(remarks: list[str], what: str, read: Callable[[], Any]) -> Any:
    """What `read` returns, a preprocessing checked; with a remark, `None` for nonsense."""
    try:
        value = read()
        if what == _STEPS and value is not None and max(parse_preprocessing(value).size or (0,)) > _LARGEST_SIDE:
            raise InputError(f"images of {value['size']}")
    except _NONSENSE as exc:
        remarks.append(f"its {what} cannot be right ({reason(exc)}); not used")
        return None
    return value


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


def from_torchvision(transforms: Any) -> Description | None:
    """From `weights.transforms()` of a classifier (`torchvision.transforms._presets.ImageClassification`)."""
    crop, short = getattr(transforms, "crop_size", None), getattr(transforms, "resize_size", None)
    if not crop or not short:
        return None
    described = _described([crop[0], crop[-1]], transforms.mean, transforms.std)
    return described | {"resize": "short_crop", "short": short[0]}

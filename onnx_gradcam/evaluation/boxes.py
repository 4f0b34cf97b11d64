"""Where objects are known to lie: files of boxes, and whether a heatmap points there."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import find_class
from onnx_gradcam.errors import InputError, TargetError

__all__ = ["Thing", "energy_inside", "points_inside", "read_boxes"]

_LARGEST: Final = 2**26
_LARGEST_XML: Final = 2**20


@dataclass(frozen=True)
class Thing:
    """The objects of one kind in one image.

    Attributes:
        name: of the kind.
        boxes: (x0, y0, x1, y1) each, in pixels of the image, x1 and y1 included.
        classes: those of the model that mean the kind, by number or name.
    """

    name: str
    boxes: Sequence[tuple[float, float, float, float]]
    classes: Sequence[int | str]

    def inside(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """The pixels that lie in a box, bool ``[height, width]``."""
        mask = np.zeros((height, width), bool)
        for x0, y0, x1, y1 in self.boxes:
            rows = slice(max(0, math.floor(y0)), max(0, math.ceil(y1) + 1))
            mask[rows, max(0, math.floor(x0)) : max(0, math.ceil(x1) + 1)] = True
        return mask

    def indices(self, labels: Sequence[str] | None) -> list[int]:
        """The numbers of the classes; those that the model has no name for are left out."""
        found = (_index(one, labels) for one in self.classes)
        return [index for index in found if index is not None]


def _index(one: int | str, labels: Sequence[str] | None) -> int | None:
    try:
        return find_class(one, labels)
    except TargetError:
        return None


def points_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> bool:
    """The pointing game: whether the largest value of ``[H, W]`` lies in a box; a blank heatmap points nowhere.

    Zhang et al. 2016 (Top-down neural attention by excitation backprop), section 4.1, without a tolerance around the
    boxes. Where several pixels hold the largest value, the middle of them counts.
    """
    if not heatmap.any():
        return False
    rows, columns = np.nonzero(heatmap >= heatmap.max() - 1e-6)
    return bool(inside[round(float(rows.mean())), round(float(columns.mean()))])


def energy_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> float:
    """How much of the sum of ``[H, W]`` lies in a box, 0 to 1; 0 for a blank heatmap. Wang et al. 2020 (Score-CAM)."""
    total = float(heatmap.sum())
    return float(heatmap[inside].sum()) / total if total > 0 else 0.0


def read_boxes(path: str | Path) -> dict[str, list[Thing]]:
    """The objects of every image, by the name of the image's file without its folder.

    Either a folder of PASCAL VOC's XML files, in which an object's name is the class, or one JSON file:

    - ``{"photo.jpg": [{"label": "dog", "box": [x0, y0, x1, y1], "classes": [242, "bull mastiff"]}]}``, where
      ``classes`` (or ``imagenet``) may be left out if the label is the class's name. Objects of one label count as one.
    - ``{"images": {NAME: {"file": "photo.jpg", "objects": {"dog": {"boxes": [...], "classes": [...]}}}}}``, with
      ``imagenet_candidates`` for ``classes``.

    Raises:
        InputError: the file cannot be read, or is of another form.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.xml"))
        if not files:
            raise InputError(f"the folder {str(path)!r} holds no .xml file: give PASCAL VOC's annotations")
        return dict(_voc(file) for file in files)
    try:
        found = json.loads(_text(path, _LARGEST))
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{str(path)!r} is no JSON ({str(exc)[:100]}): see docs/evaluate.md for the format") from exc
    try:
        return _named(found["images"]) if isinstance(found.get("images"), dict) else _listed(found)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
        what = f"{type(exc).__name__}: {exc}"[:100]
        raise InputError(f"{str(path)!r} holds no boxes ({what}): see docs/evaluate.md for the format") from exc


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise InputError(f"{str(path)!r} is larger than {most >> 20} MB: give the boxes of fewer images")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{str(path)!r} cannot be read ({getattr(exc, 'strerror', None) or 'it is no text'})") from exc


def _listed(images: Mapping[str, Any]) -> dict[str, list[Thing]]:
    found = {}
    for name, objects in images.items():
        things: dict[str, Thing] = {}
        for entry in objects:
            label = str(entry["label"])
            before = things.get(label)
            classes = _classes(entry, label)
            if before is not None:
                classes = list(dict.fromkeys([*before.classes, *classes]))
            boxes = [*(before.boxes if before is not None else []), _box(entry["box"])]
            things[label] = Thing(label, boxes, classes)
        found[Path(name).name] = list(things.values())
    return found


def _named(images: Mapping[str, Any]) -> dict[str, list[Thing]]:
    return {
        Path(str(entry.get("file", name))).name: [
            Thing(label, [_box(box) for box in thing["boxes"]], _classes(thing, label))
            for label, thing in entry["objects"].items()
        ]
        for name, entry in images.items()
    }


def _classes(entry: Mapping[str, Any], label: str) -> list[int | str]:
    for key in ("classes", "imagenet", "imagenet_candidates"):
        if key in entry:
            classes = list(entry[key] or [])
            if not all(isinstance(one, (int, str)) for one in classes):
                raise ValueError(f"the classes of {label!r} are neither numbers nor names")
            return classes
    return [label]


def _box(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not all(math.isfinite(value) and abs(value) < 1e6 for value in (x0, y0, x1, y1)) or x1 < x0 or y1 < y0:
        raise ValueError(f"{list(values)} is no box [x0, y0, x1, y1]")
    return x0, y0, x1, y1


def _voc(path: Path) -> tuple[str, list[Thing]]:
    """One image's annotation; VOC counts pixels from one."""
    text = _text(path, _LARGEST_XML)
    if "<!DOCTYPE" in text:
        raise InputError(f"{str(path)!r} has a document type, which annotations of PASCAL VOC have not: take it out")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a document type there is nothing that expands
        boxes: dict[str, list[tuple[float, float, float, float]]] = {}
        for one in root.iter("object"):
            corners = [float(one.findtext(f"bndbox/{key}") or "") - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(one.findtext("name") or "", []).append(_box(corners))
        file = Path(root.findtext("filename") or path.with_suffix(".jpg").name).name
    except (ET.ParseError, ValueError, RecursionError) as exc:
        raise InputError(f"{str(path)!r} is no annotation of PASCAL VOC ({str(exc)[:100]})") from exc
    return file, [Thing(name, mine, [name]) for name, mine in boxes.items()]

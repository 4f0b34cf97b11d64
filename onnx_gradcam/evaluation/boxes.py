"""Bounding boxes of objects: reading annotations, which boxes of a detector they are, whether heatmaps point there."""

from __future__ import annotations

import contextlib
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import find_class
from onnx_gradcam.errors import InputError, TargetError, reason
from onnx_gradcam.files import read_file
from onnx_gradcam.runtime.answers import Box
from onnx_gradcam.runtime.detections import overlaps

__all__ = [
    "SAME_OBJECT",
    "Annotation",
    "area_under_roc",
    "energy_inside",
    "matched",
    "points_inside",
    "rank_inside",
    "read_boxes",
    "top_inside",
]

SAME_OBJECT: Final = 0.5
"""Intersection over union from which two boxes of a class count as one object, as in PASCAL VOC."""

_LARGEST: Final = 2**26
_LARGEST_XML: Final = 2**20


@dataclass(frozen=True)
class Annotation:
    """The objects of one kind in one image.

    Attributes:
        label: name of the kind.
        boxes: (x0, y0, x1, y1) each, in pixels of the image, x1 and y1 included.
        classes: the model's classes for this kind, by index or name.
    """

    label: str
    boxes: Sequence[tuple[float, float, float, float]]
    classes: Sequence[int | str]

    def inside(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """The pixels inside a box, bool ``[height, width]``."""
        mask = np.zeros((height, width), bool)
        for x0, y0, x1, y1 in self.boxes:
            rows = slice(max(0, math.floor(y0)), max(0, math.ceil(y1) + 1))
            mask[rows, max(0, math.floor(x0)) : max(0, math.ceil(x1) + 1)] = True
        return mask

    def indices(self, labels: Sequence[str] | None) -> list[int]:
        """The indices of the classes; classes that are not among the model's `labels` are left out."""
        indices = []
        for name in self.classes:
            with contextlib.suppress(TargetError):
                indices.append(find_class(name, labels))
        return indices


def matched(boxes: Sequence[Box], annotation: Annotation) -> Iterator[tuple[Box, Annotation]]:
    """The boxes of a detector that are annotated objects, each with its own annotated box.

    A box is the object that it overlaps most if the intersection over union is at least a half. As PASCAL VOC counts
    detections (Everingham et al. 2010), an annotated box counts once, for the first of `boxes`.
    """
    taken = set()
    corners = np.array(annotation.boxes, np.float64).reshape(-1, 4)
    for box in boxes:
        shares = overlaps(np.array(box.xyxy), corners) if box.xyxy is not None else np.zeros(0)
        nearest = int(shares.argmax()) if shares.size else -1
        if nearest >= 0 and shares[nearest] >= SAME_OBJECT and nearest not in taken:
            taken.add(nearest)
            yield box, Annotation(annotation.label, [annotation.boxes[nearest]], annotation.classes)


def points_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> bool:
    """The pointing game: whether the largest value of ``[H, W]`` is inside a box; a blank heatmap points nowhere.

    Zhang et al. 2016 (Top-down neural attention by excitation backprop), section 4.1, without a tolerance around the
    boxes. If several pixels have the largest value, the middle of them counts.
    """
    if not heatmap.any():
        return False
    rows, columns = np.nonzero(heatmap >= heatmap.max() - 1e-6)
    return bool(inside[round(float(rows.mean())), round(float(columns.mean()))])


def energy_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> float:
    """The energy-based pointing game (Wang et al. 2020, Score-CAM): the share of the sum of ``[H, W]`` inside a box."""
    total = float(heatmap.sum())
    return float(heatmap[inside].sum()) / total if total > 0 else 0.0


def rank_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> float:
    """Relevance rank accuracy: of as many hottest pixels as there are inside boxes, the share that is inside.

    Arras, Osman and Samek 2022 (CLEVR-XAI), section 3.3. 0 for a blank heatmap, and where no pixel is inside.
    """
    return top_inside(heatmap, inside, int(inside.sum()))


def top_inside(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_], count: int = 1000) -> float:
    """The share of the `count` hottest pixels that is inside; Theiner et al. 2021, top-k intersection."""
    if not heatmap.any() or not count:
        return 0.0
    values, hits = heatmap.reshape(-1), inside.reshape(-1)
    count = min(count, values.size)
    limit = np.partition(values, -count)[-count]
    above, level = values > limit, values == limit
    # Of pixels with the last value that counts, the share that is needed: reading order must not decide.
    part = (count - above.sum()) / level.sum()
    return float((hits[above].sum() + part * hits[level].sum()) / count)


def area_under_roc(heatmap: npt.NDArray[Any], inside: npt.NDArray[np.bool_]) -> float | None:
    """Area under the receiver operating characteristic of the heatmap as a detector of the pixels inside.

    The probability that a pixel inside is hotter than one outside, equal ones counting half; Fawcett 2006, section 7.
    `None` where all pixels or none are inside.
    """
    hits, count = inside.reshape(-1), int(inside.sum())
    if count in {0, hits.size}:
        return None
    _, which, counts = np.unique(heatmap, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which.reshape(-1)]
    return float((ranks[hits].sum() - count * (count + 1) / 2) / (count * (hits.size - count)))


def read_boxes(path: str | Path) -> dict[str, list[Annotation]]:
    """The annotations of every image, by the name of the image's file without its folder.

    Args:
        path: a folder of PASCAL VOC's XML files, in which an object's name is the class, or one JSON file of these:

    - ``{"photo.jpg": [{"label": "dog", "box": [x0, y0, x1, y1], "classes": [242, "bull mastiff"]}]}``, where
      ``classes`` (or ``imagenet``) may be left out if the label is the class's name. Objects of one label count as one.
    - ``{"images": {NAME: {"file": "photo.jpg", "objects": {"dog": {"boxes": [...], "classes": [...]}}}}}``, with
      ``imagenet_candidates`` for ``classes``.

    Raises:
        InputError: the file cannot be read or has another format.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.xml"))
        if not files:
            raise InputError(f"the folder {str(path)!r} holds no .xml file; give PASCAL VOC's annotations")
        return dict(_voc(file) for file in files)
    try:
        entries = json.loads(_text(path, _LARGEST))
    except (ValueError, RecursionError) as exc:
        raise InputError(
            f"{str(path)!r} is not valid JSON ({reason(exc)}); see docs/evaluate.md for the format"
        ) from exc
    try:
        return _named(entries["images"]) if isinstance(entries.get("images"), dict) else _listed(entries)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as exc:
        why = f"{type(exc).__name__}: {reason(exc)}"
        raise InputError(f"{str(path)!r} holds no boxes ({why}); see docs/evaluate.md for the format") from exc


def _text(path: Path, limit: int) -> str:
    try:
        return read_file(path, limit).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(f"{str(path)!r} is not a text file; see docs/evaluate.md for the format") from exc


def _listed(images: Mapping[str, Any]) -> dict[str, list[Annotation]]:
    annotations = {}
    for name, objects in images.items():
        by_label: dict[str, Annotation] = {}
        for entry in objects:
            label = str(entry["label"])
            before = by_label.get(label, Annotation(label, (), ()))
            classes = list(dict.fromkeys([*before.classes, *_classes(entry, label)]))
            by_label[label] = Annotation(label, [*before.boxes, _box(entry["box"])], classes)
        annotations[Path(name).name] = list(by_label.values())
    return annotations


def _named(images: Mapping[str, Any]) -> dict[str, list[Annotation]]:
    return {
        Path(str(entry.get("file", name))).name: [
            Annotation(label, [_box(box) for box in kind["boxes"]], _classes(kind, label))
            for label, kind in entry["objects"].items()
        ]
        for name, entry in images.items()
    }


def _classes(entry: Mapping[str, Any], label: str) -> list[int | str]:
    for key in ("classes", "imagenet", "imagenet_candidates"):
        if key in entry:
            classes = list(entry[key] or [])
            if not all(isinstance(name, (int, str)) for name in classes):
                raise ValueError(f"the classes of {label!r} are neither indices nor names")
            return classes
    return [label]


def _box(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not all(math.isfinite(value) and abs(value) < 1e6 for value in (x0, y0, x1, y1)) or x1 < x0 or y1 < y0:
        raise ValueError(f"{list(values)} is not a box [x0, y0, x1, y1]")
    return x0, y0, x1, y1


def _voc(path: Path) -> tuple[str, list[Annotation]]:
    """The annotations of one image; VOC counts pixels from one."""
    text = _text(path, _LARGEST_XML)
    if "<!DOCTYPE" in text:
        raise InputError(f"{str(path)!r} has a DOCTYPE, which PASCAL VOC's annotations do not have; remove it")
    try:
        root = ET.fromstring(text)  # noqa: S314 - without a DOCTYPE nothing expands
        boxes: dict[str, list[tuple[float, float, float, float]]] = {}
        for entry in root.iter("object"):
            corners = [float(entry.findtext(f"bndbox/{key}") or "") - 1 for key in ("xmin", "ymin", "xmax", "ymax")]
            boxes.setdefault(entry.findtext("name") or "", []).append(_box(corners))
        file = Path(root.findtext("filename") or path.with_suffix(".jpg").name).name
    except (ET.ParseError, ValueError, RecursionError) as exc:
        raise InputError(f"{str(path)!r} is not a PASCAL VOC annotation ({reason(exc)}); check the file") from exc
    return file, [Annotation(label, corners, [label]) for label, corners in boxes.items()]

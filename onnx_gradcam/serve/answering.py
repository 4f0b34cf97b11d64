"""Answers to queries: model outputs for tensors; scores, heatmaps and overlays for images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.editor.targets.classes import parse_top
from onnx_gradcam.errors import NothingFoundError, ServerError, near_matches, reason
from onnx_gradcam.feeds import Input, described
from onnx_gradcam.images.decoding import resized
from onnx_gradcam.images.drawing import COLORMAPS, draw_boxes, encode_image, overlay
from onnx_gradcam.metadata import Metadata
from onnx_gradcam.runtime.explainer import ClassMap, Explanation, Selection
from onnx_gradcam.runtime.runners import other_inputs

from .limits import Limits, decode_image
from .query import Query, Result, Tensor, files, numbers
from .queueing import BatchingExplainer, remaining

__all__ = ["IMAGES", "IMAGE_OUTPUTS", "Answerer", "image_outputs"]

Array = npt.NDArray[Any]

IMAGES: Final = "image_bytes"
"""The input that takes image files."""
IMAGE_OUTPUTS: Final[Mapping[str, str]] = {
    "scores": "FP32",
    "image": "INT64",
    "heatmap_class": "INT64",
    "label": "BYTES",
    "score": "FP32",
    "heatmap": "FP32",
    "cam": "FP32",
    "overlay_jpeg": "BYTES",
    "box_index": "INT64",
    "box": "FP32",
    "heatmap_png": "BYTES",
    "overlay_png": "BYTES",
}
"""The outputs that can be requested for images, with their datatypes."""
_DEFAULT_OUTPUTS: Final = ("scores", "image", "heatmap_class", "label", "score", "box_index", "box", "overlay_png")

_PROTOCOL_PARAMETERS: Final = frozenset({"binary_data_output", "content_type", "headers", "priority", "timeout"})
"""Parameters of clients and servers that do not affect an explanation."""
_MAX_TARGETS: Final = 256
"""Classes per request, and characters per class name."""
_OVERLAY_SIDE: Final = 1024


def image_outputs(metadata: Metadata) -> list[str]:
    """Those of `IMAGE_OUTPUTS` that a model has; detectors have the index of a box, and its place if that is known."""
    lacking = {"box_index": not metadata.detection_scores, "box": not metadata.detection_boxes}
    return [name for name in IMAGE_OUTPUTS if not lacking.get(name, False)]


@dataclass(frozen=True, eq=False)
class _Map:
    """One heatmap of an image."""

    image: int
    explanation: Explanation
    class_map: ClassMap


def _fed(tensor: Tensor, info: Input) -> Array:
    """The values of another input."""
    if info.dtype == "string":
        raise ServerError(f"the input {info.name!r} takes text, which this server does not; bake it into the model")
    return numbers(tensor, info.dtype, info.shape)


class Answerer:
    """Answers queries about one model; thread-safe. `on_image` is called with the explanation of an image and its file.

    Attributes:
        others: the model's inputs besides the image, class and box, which queries may feed, by name.
    """

    def __init__(
        self,
        explainer: BatchingExplainer,
        limits: Limits,
        on_image: Callable[[Explanation, bytes], object] = lambda _explanation, _file: None,
    ) -> None:
        self.explainer = explainer
        self.limits = limits
        self._on_image = on_image
        self._shapes = {i.name: i for i in explainer.session.inputs}
        self.others = {i.name: i for i in other_inputs(explainer.metadata, explainer.session)}

    def answer(self, query: Query) -> tuple[list[Result], str, int]:
        """Answer a query: the outputs, the kind of input (`tensor` or `image`) and the number of heatmaps."""
        tensors = {tensor.name: tensor for tensor in query.tensors}
        if len(tensors) != len(query.tensors):
            raise ServerError("two inputs have the same name; send each input once")
        parameters = _PROTOCOL_PARAMETERS | {"target"}
        if IMAGES in tensors:
            parameters |= {"colormap", "opacity"} | ({"box"} if self.explainer.metadata.box_input else set())
        for name in query.parameters:
            if name not in parameters:
                raise ServerError(f"unknown parameter {name[:99]!r}{near_matches(name[:99], parameters)}")
        return self._images(tensors, query) if IMAGES in tensors else self._tensors(tensors, query)

    def _tensors(self, tensors: dict[str, Tensor], query: Query) -> tuple[list[Result], str, int]:
        metadata = self.explainer.metadata
        inputs = [n for n in (metadata.image_input, metadata.class_input, metadata.box_input, IMAGES) if n]
        inputs += self.others
        for name in tensors:
            _check_name("input", name, inputs)
        if metadata.image_input not in tensors:
            raise ServerError(f"the input {metadata.image_input!r} is missing (or {IMAGES!r}, for image files)")
        tables = [name for name in (metadata.detection_scores, metadata.detection_boxes) if name]
        names = _output_names(query, [*(result.name for result in self.explainer.results), *tables])
        image = tensors[metadata.image_input]
        if metadata.batched:
            self._check_rows(image.shape[0] if image.shape else 0, 1)
        info = self._shapes[metadata.image_input]
        values = numbers(image, info.dtype, info.shape)
        batch = values if metadata.batched else values[None]
        sizes = dict(zip(metadata.batch_layout, batch.shape, strict=True))
        self._check_input_pixels(len(batch), (sizes["H"], sizes["W"]))
        classes = self._classes(tensors.get(metadata.class_input), query, len(batch))
        boxes = self._boxes(tensors.get(metadata.box_input), len(batch))
        feeds = self._feeds(tensors)
        outputs = self.explainer.run(batch, classes, boxes, tables=not {*tables}.isdisjoint(names), feeds=feeds)
        for name in (metadata.heatmap, metadata.cam):
            if not np.isfinite(outputs[name]).all():
                raise ServerError("the model outputs infinite values or NaN for this input; check its preprocessing")
        results = [Result.of(name, outputs[name]) for name in names or outputs]
        return results, "tensor", len(batch)

    def _classes(self, tensor: Tensor | None, query: Query, rows: int) -> list[int]:
        """The class of each row: from the class input or the parameter, or -1 for the predicted class."""
        target = query.parameters.get("target")
        if tensor is not None and target is not None:
            raise ServerError(
                f"both the input {tensor.name!r} and the parameter 'target' choose the class; send one of them"
            )
        if tensor is not None:
            values = numbers(tensor, "int64", (None,) if len(tensor.shape) == 1 else (None, 1)).reshape(-1).tolist()
            indices = [-1 if value < 0 else self.explainer.class_indices([value])[0] for value in values]
        elif target is None:
            return [-1] * rows
        else:
            targets = _targets(target)
            if any(parse_top(one) for one in targets):
                raise ServerError(
                    f"each row of a tensor is explained for one class; send an image as {IMAGES!r} for the top classes"
                )
            indices = self.explainer.class_indices(targets)
        if len(indices) not in (1, rows):
            raise ServerError(f"there are {len(indices)} classes for {rows} rows; send one class, or one per row")
        return indices * rows if len(indices) == 1 else indices

    def _feeds(self, tensors: Mapping[str, Tensor]) -> dict[str, Array]:
        """The values of the model's other inputs; those without a value or a default are named."""
        feeds = {name: _fed(tensors[name], info) for name, info in self.others.items() if name in tensors}
        missing = self.explainer.missing(feeds)
        if missing:
            named = ", ".join(described(self.others[name]) for name in missing)
            raise ServerError(f"the model has other inputs that need values: {named}; send a tensor of that name")
        return feeds

    def _row_of(self, feeds: Mapping[str, Array], image: int, images: int) -> dict[str, Array]:
        """The values for one of several images: its row where there is one for each, else the whole."""
        batch = self._shapes[self.explainer.metadata.image_input].shape[0]
        rowwise = {name for name, value in feeds.items() if value.ndim and self.others[name].shape[0] == batch}
        several = {name for name in rowwise if self.explainer.metadata.batched and len(feeds[name]) == images}
        return {name: value[image : image + 1] if name in several else value for name, value in feeds.items()}

    def _boxes(self, tensor: Tensor | None, rows: int) -> list[int] | None:
        """The box of each row from the box input, -1 for the best one; `None` without it."""
        if tensor is None:
            return None
        values = numbers(tensor, "int64", (None,) if len(tensor.shape) == 1 else (None, 1)).reshape(-1).tolist()
        count = self.explainer.session.output(self.explainer.metadata.detection_scores).shape[1]
        for value in values:
            if isinstance(count, int) and value >= count:
                raise ServerError(f"there is no box {value}; the model has boxes 0 to {count - 1}")
        if len(values) not in (1, rows):
            raise ServerError(f"there are {len(values)} boxes for {rows} rows; send one box, or one per row")
        return [max(value, -1) for value in values] * (rows if len(values) == 1 else 1)

    def _images(self, tensors: dict[str, Tensor], query: Query) -> tuple[list[Result], str, int]:
        if not {*tensors} <= {IMAGES, *self.others}:
            raise ServerError(f"{IMAGES!r} must be the only input; choose the class with the parameter 'target'")
        feeds = self._feeds(tensors)
        available = image_outputs(self.explainer.metadata)
        names = _output_names(query, available) or [name for name in _DEFAULT_OUTPUTS if name in available]
        selection = _selection(query.parameters.get("box"))
        target = query.parameters.get("target")
        targets = None if target is None else _targets(target)
        tops = [parse_top(one) for one in targets or ["top1"]]
        colormap, opacity = _drawing(query.parameters)
        classes = sum(top.count if top else 1 for top in tops)
        if selection is not None and selection.which != "index" and selection.most is not None:
            classes = selection.most
        shape = tensors[IMAGES].shape
        self._check_rows(shape[0] if shape else 0, classes)
        sources = files(tensors[IMAGES])
        maps, scores = [], []
        for number, source in enumerate(sources):
            remaining()
            size = self.explainer.preprocessing.size
            pixels = decode_image(source, self.limits, free_size=size is None)
            self._check_input_pixels(len(sources) * classes, size or pixels.shape[:2])
            try:
                explanation = self.explainer(
                    pixels, targets, selection, feeds=self._row_of(feeds, number, len(sources))
                )
            except NothingFoundError as error:
                where = f"image {number}: " if len(sources) > 1 else ""
                raise ServerError(f"{where}{error}") from error
            scores.append(explanation.scores.astype(np.float32))
            maps += [_Map(number, explanation, class_map) for class_map in explanation.maps]
            self._on_image(explanation, source)
        make: dict[str, Callable[[], Result]] = {
            "scores": lambda: Result.of("scores", np.stack(scores)),
            "image": lambda: _integers("image", [m.image for m in maps]),
            "heatmap_class": lambda: _integers("heatmap_class", [m.class_map.target.index for m in maps]),
            "label": lambda: Result.of_bytes("label", [m.class_map.target.label for m in maps]),
            "score": lambda: Result.of("score", np.array([m.class_map.target.score for m in maps], np.float32)),
            "heatmap": lambda: Result.of("heatmap", _stacked("heatmap", [m.class_map.heatmap for m in maps])),
            "cam": lambda: Result.of("cam", _stacked("cam", [m.class_map.cam for m in maps])),
            "box_index": lambda: _integers("box_index", [m.class_map.boxes[0].index for m in maps]),
            "box": lambda: Result.of("box", np.array([_place(m) for m in maps], np.float32)),
            "heatmap_png": lambda: Result.of_bytes("heatmap_png", [_heatmap_png(m) for m in maps]),
            "overlay_png": lambda: Result.of_bytes(
                "overlay_png", [_overlay(m, ".png", colormap, opacity) for m in maps]
            ),
            "overlay_jpeg": lambda: Result.of_bytes(
                "overlay_jpeg", [_overlay(m, ".jpg", colormap, opacity) for m in maps]
            ),
        }
        return [make[name]() for name in names], "image", len(maps)

    def _check_rows(self, images: int, classes: int) -> None:
        if images * classes > self.limits.rows:
            raise ServerError(
                f"{images} images times {classes} classes exceed the limit of {self.limits.rows} heatmaps per request; "
                "send several requests",
                413,
            )

    def _check_input_pixels(self, rows: int, size: tuple[int, int]) -> None:
        pixels = rows * size[0] * size[1]
        if pixels > self.limits.input_pixels:
            raise ServerError(
                f"the model's input has {pixels} pixels in {rows} rows, which exceeds the limit of "
                f"{self.limits.input_pixels} per request; send fewer or smaller images",
                413,
            )


def _check_name(kind: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ServerError(
            f"unknown {kind} {name[:99]!r}{near_matches(name[:99], allowed)}; available: {', '.join(allowed)}"
        )


def _output_names(query: Query, allowed: Sequence[str]) -> list[str]:
    """The requested outputs, each once; empty for the default ones."""
    for name in query.outputs:
        _check_name("output", name, allowed)
    return list(dict.fromkeys(query.outputs))


def _targets(value: Any) -> list[int | str]:
    """The classes of the parameter `target`: an index, a name, `topK`, a list of these, or a JSON list in a string."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value[: 1 << 16])
        except (ValueError, RecursionError) as error:
            raise ServerError(f"the parameter 'target' is not a JSON list ({reason(error, 80)})") from error
    targets = value if isinstance(value, list) else [value]
    if not 0 < len(targets) <= _MAX_TARGETS:
        raise ServerError(f"the parameter 'target' has {len(targets)} classes; send 1 to {_MAX_TARGETS}")
    for one in targets:
        number = isinstance(one, int) and not isinstance(one, bool) and abs(one) < 2**63
        if not number and not (isinstance(one, str) and len(one) <= _MAX_TARGETS):
            raise ServerError(
                f"the parameter 'target' contains {str(one)[:40]!r}; send the index or name of a class, 'top3' or the "
                "like, or a list of these"
            )
    return targets


def _selection(value: Any) -> Selection | None:
    """The parameter `box`: an index of the model's table, or `all`."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return Selection(which="index", value=value)
    if value != "all":
        raise ServerError(f"the parameter 'box' is {str(value)[:40]!r}; send the index of a box, or 'all'")
    return Selection(which="all")


def _drawing(parameters: Mapping[str, Any]) -> tuple[str, float]:
    """Colour map and opacity of an overlay; the opacity may be a string, as some clients cannot send fractions."""
    colormap, opacity = parameters.get("colormap", "jet"), parameters.get("opacity", 0.5)
    if colormap not in COLORMAPS:
        name = str(colormap)[:40]
        raise ServerError(
            f"unknown colour map {name!r}{near_matches(name, COLORMAPS)}; choose one of {', '.join(COLORMAPS)}"
        )
    try:
        value = float(opacity) if isinstance(opacity, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ServerError(f"the opacity is {str(opacity)[:40]!r}; choose one from 0 to 1")
    return str(colormap), value


def _integers(name: str, values: Sequence[int]) -> Result:
    return Result.of(name, np.array(values, np.int64))


def _stacked(name: str, maps: Sequence[Array]) -> Array:
    if len({one.shape for one in maps}) > 1:
        raise ServerError(f"the {name}s of these images have different sizes; send one image per request")
    return np.stack(maps)


def _place(one: _Map) -> tuple[float, float, float, float]:
    """The corners of the explained box in pixels of the image; NaN where the model computes none that are finite."""
    return one.class_map.boxes[0].xyxy or (math.nan, math.nan, math.nan, math.nan)


def _heatmap_png(one: _Map) -> bytes:
    """The heatmap over the model's input, in grey."""
    levels = np.rint(np.clip(one.class_map.heatmap, 0, 1) * 255).astype(np.uint8)
    return encode_image(np.repeat(levels[:, :, None], 3, axis=2), ".png")


def _overlay(one: _Map, suffix: str, colormap: str, opacity: float) -> bytes:
    """The heatmap over the image, whose longer side is scaled down to at most 1024 pixels."""
    image, placement = one.explanation.image, one.explanation.placement
    scale = min(1.0, _OVERLAY_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    heatmap = placement.scaled(height, width).project(one.class_map.heatmap)
    drawn = overlay(resized(image, height, width), heatmap, colormap=colormap, opacity=opacity)
    across, down = width / image.shape[1], height / image.shape[0]
    boxes = [(b.xyxy, b.caption) for b in one.class_map.boxes if b.xyxy is not None]
    placed = [((x0 * across, y0 * down, x1 * across, y1 * down), caption) for (x0, y0, x1, y1), caption in boxes]
    return encode_image(draw_boxes(drawn, placed) if placed else drawn, suffix)

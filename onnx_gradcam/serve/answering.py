"""A query in, its results out: tensors to tensors, images to scores, heatmaps and overlays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import ServerError, near_matches
from onnx_gradcam.images.decoding import Placement, resized
from onnx_gradcam.images.drawing import COLORMAPS, encode_image, overlay
from onnx_gradcam.runtime.classes import parse_top
from onnx_gradcam.runtime.explainer import ClassMap, Explanation

from .limits import Limits, decode_image
from .query import Query, Result, Tensor, files, numbers
from .queueing import BatchingExplainer, remaining

__all__ = ["IMAGES", "IMAGE_OUTPUTS", "Answerer"]

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
    "heatmap_png": "BYTES",
    "overlay_png": "BYTES",
}
"""What there is for images, and of which datatype."""
_USUAL: Final = ("scores", "image", "heatmap_class", "label", "score", "overlay_png")

_PROTOCOL_PARAMETERS: Final = frozenset({"binary_data_output", "content_type", "headers", "priority", "timeout"})
"""Parameters of clients and servers that have no bearing on an explanation."""
_LONGEST_TARGET: Final = 256
_OVERLAY_SIDE: Final = 1024


@dataclass(frozen=True, eq=False)
class _Map:
    """One heatmap on its way out."""

    image: int
    explanation: Explanation
    which: int

    @property
    def of(self) -> ClassMap:
        return self.explanation.maps[self.which]


class Answerer:
    """Answers queries about one model; many threads may ask at once.

    Args:
        explainer: the model.
        limits: what one request may ask for.
    """

    def __init__(self, explainer: BatchingExplainer, limits: Limits) -> None:
        self.explainer = explainer
        self.limits = limits
        self._shapes = {i.name: i for i in explainer.session.inputs}

    def answer(self, query: Query) -> tuple[list[Result], str, int]:
        """Answer a query.

        Returns:
            The outputs, the kind of input (`tensor` or `image`) and how many heatmaps were made.

        Raises:
            ExplainError: the query cannot be answered; `ServerError` says with which status.
        """
        tensors = {tensor.name: tensor for tensor in query.tensors}
        if len(tensors) != len(query.tensors):
            raise ServerError("two inputs have the same name; send each once")
        known = {*_PROTOCOL_PARAMETERS, "target"}
        if IMAGES in tensors:
            known |= {"colormap", "opacity"}
        for name in query.parameters:
            if name not in known:
                raise ServerError(f"unknown parameter {name[:99]!r}{near_matches(name[:99], known)}")
        if IMAGES in tensors:
            return self._images(tensors, query)
        return self._tensors(tensors, query)

    def _tensors(self, tensors: dict[str, Tensor], query: Query) -> tuple[list[Result], str, int]:
        facts = self.explainer.metadata
        known = [name for name in (facts.image_input, facts.class_input, IMAGES) if name]
        for name in tensors:
            if name not in known:
                raise ServerError(
                    f"unknown input {name[:99]!r}{near_matches(name[:99], known)}; known: {', '.join(known)}"
                )
        if facts.image_input not in tensors:
            raise ServerError(f"the input {facts.image_input!r} is missing (or {IMAGES!r}, for image files)")
        wanted = self._wanted_outputs(query, [result.name for result in self.explainer.results])
        image = tensors[facts.image_input]
        self._check_rows(image.shape[0] if image.shape else 0, 1)
        info = self._shapes[facts.image_input]
        batch = numbers(image, info.dtype, info.shape)
        sizes = dict(zip(facts.layout, batch.shape, strict=True))
        self._check_input_pixels(len(batch), (sizes["H"], sizes["W"]))
        classes = self._classes(tensors.get(facts.class_input), query, len(batch))
        outputs = self.explainer.run(batch, classes)
        for name in (facts.heatmap, facts.cam):
            if not np.isfinite(outputs[name]).all():
                raise ServerError("the model gives infinite numbers or NaN for this input; check its preprocessing")
        results = [Result.of(name, outputs[name]) for name in wanted or outputs]
        return results, "tensor", len(batch)

    def _classes(self, tensor: Tensor | None, query: Query, rows: int) -> list[int]:
        """The class of each row: of the class input, of the parameter, or -1 for the one with the highest score."""
        given = query.parameters.get("target")
        if tensor is not None and given is not None:
            raise ServerError(f"the class is said twice: by the input {tensor.name!r} and by the parameter 'target'")
        if tensor is not None:
            values = numbers(tensor, "int64", (None,) if len(tensor.shape) == 1 else (None, 1)).reshape(-1).tolist()
            indices = [-1 if value < 0 else self.explainer.class_indices([value])[0] for value in values]
        elif given is None:
            return [-1] * rows
        else:
            several = _targets(given)
            if any(parse_top(one) for one in several):
                raise ServerError(f"a tensor's row has one class; send an image as {IMAGES!r} for the top classes")
            indices = self.explainer.class_indices(several)
        if len(indices) not in (1, rows):
            raise ServerError(f"there are {len(indices)} classes for {rows} rows; give one, or one a row")
        return indices * rows if len(indices) == 1 else indices

    def _images(self, tensors: dict[str, Tensor], query: Query) -> tuple[list[Result], str, int]:
        if len(tensors) > 1:
            raise ServerError(f"{IMAGES!r} comes alone; say the class by the parameter 'target'")
        wanted = self._wanted_outputs(query, list(IMAGE_OUTPUTS)) or list(_USUAL)
        target = query.parameters.get("target")
        several = None if target is None else _targets(target)
        tops = [parse_top(one) for one in several or ["top1"]]
        colormap, opacity = _drawing(query.parameters)
        sources = files(tensors[IMAGES])
        classes = sum(top.count if top else 1 for top in tops)
        self._check_rows(len(sources), classes)
        maps, scores = [], []
        for number, source in enumerate(sources):
            remaining()
            size = self.explainer.preprocessing.size
            pixels = decode_image(source, self.limits, free_size=size is None)
            self._check_input_pixels(len(sources) * classes, size or pixels.shape[:2])
            explanation = self.explainer(pixels, several)
            scores.append(explanation.scores.astype(np.float32))
            maps += [_Map(number, explanation, which) for which in range(len(explanation.maps))]
        make: dict[str, Callable[[], Result]] = {
            "scores": lambda: Result.of("scores", np.stack(scores)),
            "image": lambda: _integers("image", [m.image for m in maps]),
            "heatmap_class": lambda: _integers("heatmap_class", [m.of.target.index for m in maps]),
            "label": lambda: Result.of_bytes("label", [m.of.target.label for m in maps]),
            "score": lambda: Result.of("score", np.array([m.of.target.score for m in maps], np.float32)),
            "heatmap": lambda: Result.of("heatmap", _stacked("heatmap", [m.of.heatmap for m in maps])),
            "cam": lambda: Result.of("cam", _stacked("cam", [m.of.cam for m in maps])),
            "heatmap_png": lambda: Result.of_bytes("heatmap_png", [_heatmap_png(m) for m in maps]),
            "overlay_png": lambda: Result.of_bytes("overlay_png", [_overlay_png(m, colormap, opacity) for m in maps]),
        }
        return [make[name]() for name in wanted], "image", len(maps)

    def _wanted_outputs(self, query: Query, known: Sequence[str]) -> list[str]:
        for name in query.outputs:
            if name not in known:
                raise ServerError(
                    f"unknown output {name[:99]!r}{near_matches(name[:99], known)}; known: {', '.join(known)}"
                )
        return list(dict.fromkeys(query.outputs))

    def _check_rows(self, images: int, classes: int) -> None:
        if images * classes > self.limits.rows:
            raise ServerError(
                f"{images} images times {classes} classes are more than the {self.limits.rows} maps that one "
                "request may ask for; send several",
                413,
            )

    def _check_input_pixels(self, rows: int, size: tuple[int, int]) -> None:
        pixels = rows * size[0] * size[1]
        if pixels > self.limits.input_pixels:
            raise ServerError(
                f"the model's input has {pixels} pixels in {rows} rows, more than the {self.limits.input_pixels} that "
                "one request may have",
                413,
            )


def _targets(given: Any) -> list[int | str]:
    """The classes asked for: a number, a name or `topK`, or several, as a list or as a JSON list in a string."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        try:
            given = json.loads(given[: 1 << 16])
        except (ValueError, RecursionError) as error:
            raise ServerError(f"the parameter 'target' is no JSON list ({str(error)[:80]})") from error
    several = given if isinstance(given, list) else [given]
    if not 0 < len(several) <= _LONGEST_TARGET:
        raise ServerError(f"the parameter 'target' names {len(several)} classes; name 1 to {_LONGEST_TARGET}")
    for one in several:
        number = isinstance(one, int) and not isinstance(one, bool) and abs(one) < 2**63
        if not number and not (isinstance(one, str) and len(one) <= _LONGEST_TARGET):
            raise ServerError(
                "the parameter 'target' has to be a class's number or name, 'top3' or the like, or a list of them, "
                f"not {str(one)[:40]!r}"
            )
    return several


def _drawing(parameters: Mapping[str, Any]) -> tuple[str, float]:
    """Colour map and opacity of an overlay; the opacity may be text, for clients that send no fractions."""
    colormap, opacity = parameters.get("colormap", "jet"), parameters.get("opacity", 0.5)
    if colormap not in COLORMAPS:
        raise ServerError(f"unknown colour map {str(colormap)[:40]!r}; known: {', '.join(COLORMAPS)}")
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
        raise ServerError(f"the images give {name}s of several sizes, which is no tensor; send one at a time")
    return np.stack(maps)


def _heatmap_png(one: _Map) -> bytes:
    """The heatmap over the model's input, as a grey image."""
    levels = np.rint(np.clip(one.of.heatmap, 0, 1) * 255).astype(np.uint8)
    return encode_image(np.repeat(levels[:, :, None], 3, axis=2), ".png")


def _overlay_png(one: _Map, colormap: str, opacity: float) -> bytes:
    """The heatmap over the image, whose longer side is made 1024 pixels if it is larger."""
    image, placement = one.explanation.image, one.explanation.placement
    scale = min(1.0, _OVERLAY_SIDE / max(image.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    x0, y0, x1, y1 = placement.box
    across, down = width / image.shape[1], height / image.shape[0]
    smaller = Placement((x0 * across, y0 * down, x1 * across, y1 * down), height, width)
    heatmap = smaller.project(one.of.heatmap)
    return encode_image(overlay(resized(image, height, width), heatmap, colormap=colormap, opacity=opacity), ".png")

"""Overlays as other libraries draw them: their colours, their blending, their rounding.

To add one, write a function of the image, the heatmap over the model's input and the raw map of the layer, and add an
entry to `OVERLAYS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import InputError, near_matches

from .decoding import Image, Placement, check_image, cv2_module
from .drawing import overlay

__all__ = ["ATTRIBUTIONS", "OVERLAYS", "OverlayFunction", "library_overlay"]

Map = npt.NDArray[Any]
OverlayFunction = Callable[[Image, Map, Map], Image]
"""`(image uint8 [H, W, 3], heatmap float32 [h', w'] in [0, 1], raw map of the layer [h, w]) -> uint8 [H, W, 3]`."""


def library_overlay(
    preset: str,
    image: Image,
    heatmap: Map,
    cam: Map,
    placement: Placement | None = None,
    attribution: Map | None = None,
) -> Image:
    """A heatmap `[h', w']` over its image, uint8 `[H, W, 3]`, as the library of a preset draws it.

    `cam` is the raw map `[h, w]` of a single layer, for several layers the heatmap. The part of the image that the
    model does not see, outside `placement`, stays unchanged. An `attribution`, `[C, h', w']` or `[h', w', C]`, is drawn
    itself by the libraries of `ATTRIBUTIONS`.
    """
    check_image(image)
    if preset not in OVERLAYS:
        raise InputError(
            f"there is no overlay for the preset {preset!r}{near_matches(preset, OVERLAYS)} "
            f"(allowed: {', '.join(OVERLAYS)})"
        )
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(side) for side in placement.box) if placement else (0, 0, width, height)
    if placement is not None and (min(x0, y0) < 0 or x1 > width or y1 > height):
        # Padding around the image: its edges are not those of the maps' cells.
        heatmap, cam = placement.project(heatmap), placement.project(cam)
        x0, y0, x1, y1 = 0, 0, width, height
    seen = slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))
    drawn: Image = image.copy()
    if attribution is not None and preset in ATTRIBUTIONS:
        pixels = attribution if attribution.shape[:2] == heatmap.shape else np.moveaxis(attribution, 0, -1)
        drawn[seen] = ATTRIBUTIONS[preset](image[seen], pixels.astype(np.float32))
    else:
        drawn[seen] = OVERLAYS[preset](image[seen], heatmap.astype(np.float32), cam.astype(np.float32))
    return drawn


def _pytorch_grad_cam(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001 - the signature of all
    """utils/image.py `show_cam_on_image`: half and half, divided by the largest value."""
    both = 0.5 * (_opencv("JET", _cut(255 * _enlarged(heatmap, image))) / np.float32(255)) + 0.5 * (
        image / np.float32(255)
    )
    return _cut(255 * (both / _divisor(both.max())))


def _keras_vis(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """visualization/__init__.py `overlay` of the colours of its examples."""
    colours = _cut(_coloured(_JET, _enlarged(heatmap, image)) * 255)
    return _cut(colours * 0.5 + image * 0.5)


def _chollet_first(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """Notebook 5.4: 0.4 of the colours added, clipped when the file is written."""
    colours = _opencv("JET", _cut(255 * _enlarged(_over_maximum(cam), image)))
    return np.asarray(np.clip(np.rint(colours * 0.4 + image), 0, 255).astype(np.uint8))


def _keras_io(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """grad_cam.py `save_and_display_gradcam`: colours in the layer's size, scaled to 0 ... 255 before and after."""
    colours = _bytes(_JET[_cut(255 * _over_maximum(cam))])
    return _bytes(_pillow_bicubic(colours, image) * np.float32(0.4) + image)


def _mxnet(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """gradcam.py `get_cam` and `get_img_heatmap`: the sum, divided by the largest value."""
    levels = _cut(_to_range(np.maximum(cam + 1, 0)) * 255)
    both = _opencv("COOL", _enlarged(levels, image)).astype(np.float32) + image
    return _cut(both / _divisor(both.max()) * 255)


def _mxnet_attribution(image: Image, attribution: Map) -> Image:
    """gradcam.py `grad_to_image`: from minimum to maximum, the channels in reverse order."""
    levels = _enlarged(_cut(_to_range(attribution) * 255), image)
    colours = levels if levels.ndim == 3 else levels[:, :, None]
    return np.broadcast_to(colours[:, :, ::-1], image.shape)


def _tf_keras_vis(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """The examples: Matplotlib draws the colours over the image, half transparent."""
    return _blended(image, _cut(_coloured(_JET, _enlarged(heatmap, image)) * 255))


def _torch_cam(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """utils.py `overlay_mask`: the colours of the squared map, 0.3 of them."""
    mask = _pillow_bicubic(_to_range(np.maximum(cam, 0), 1e-8), image)
    colours = _cut(_coloured(_JET, mask**2) * 255).astype(np.float32)
    return _cut(colours + np.float32(0.7) * (image - colours))


def _captum(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """_utils/visualization.py `visualize_image_attr`, blended_heat_map of all signs, 2 percent of outliers."""
    cells = _nearest(cam, image)
    ranked = np.sort(np.abs(cells), axis=None)
    total = np.cumsum(ranked)
    largest = ranked[np.argmax(total >= total[-1] * 0.98)]
    signed = np.clip(cells / _divisor(largest), -1, 1)
    grey = _to_range(image.mean(axis=2))
    levels = np.minimum(_cut(grey * 256 - (grey == 1)), 255)
    return _blended(np.repeat(levels[:, :, None], 3, axis=2), _cut(_coloured(_RED_WHITE_GREEN, (signed + 1) / 2) * 255))


def _tf_explain(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """utils/display.py `heatmap_display`: the colours added to 0.7 of the image, clipped."""
    colours = _opencv("VIRIDIS", _cut(_to_range(_enlarged(cam, image)) * 255))
    return np.asarray(cv2_module().addWeighted(image, 0.7, colours, 1.0, 0.0))


def _xplique(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """plots/image.py `plot_attribution`: clipped at the lowest and the highest 0.1 percent, half transparent."""
    held = _to_range(np.clip(heatmap, *np.percentile(heatmap, (0.1, 99.9))))
    pixels = _cut(_to_range(image.astype(np.float32)) * 255)
    return _blended(pixels, _cut(_coloured(_JET, _to_range(_enlarged(held, image))) * 255))


def _openvino(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """explainer/visualizer.py `Visualizer` with `overlay=True`, without the label: half and half."""
    cells = _cut(_to_range(cam) * 255)
    levels = _cut(_to_range(_enlarged(cells, image).astype(np.float32)) * 255)
    return _cut(image * 0.5 + _opencv("JET", levels) * 0.5)


def _ultralytics(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """utils/plotting.py `class_activation_map`: half and half, rounded down."""
    return _cut(image * 0.5 + _opencv("JET", _cut(_enlarged(heatmap, image) * 255)) * 0.5)


def _own(image: Image, heatmap: Map, cam: Map) -> Image:  # noqa: ARG001
    """`onnx_gradcam.images.drawing.overlay`."""
    return overlay(image, _enlarged(heatmap, image))


OVERLAYS: dict[str, OverlayFunction] = {
    "default": _own,
    "pytorch-grad-cam": _pytorch_grad_cam,
    "keras-vis": _keras_vis,
    "keras-vis-0.4.1": _keras_vis,
    "chollet-1e": _chollet_first,
    "chollet-2e": _keras_io,
    "keras-io": _keras_io,
    "mxnet": _mxnet,
    "tf-keras-vis": _tf_keras_vis,
    "torch-cam": _torch_cam,
    "captum": _captum,
    "tf-explain": _tf_explain,
    "xplique": _xplique,
    "openvino-xai": _openvino,
    "ultralytics": _ultralytics,
}
"""Overlay functions by preset."""


ATTRIBUTIONS: dict[str, Callable[[Image, Map], Image]] = {"mxnet": _mxnet_attribution}
"""How libraries draw an attribution `[h', w', C]` without the image, at its size; by preset."""


def _steps(*corners: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """A colour map of 256 steps, `[256, 3]`, from the corners (position, strength) of each colour."""
    positions = np.linspace(0, 1, 256)
    return np.stack([np.interp(positions, *np.transpose(channel)) for channel in corners], axis=1)


_JET = _steps(
    ((0, 0), (0.35, 0), (0.66, 1), (0.89, 1), (1, 0.5)),
    ((0, 0), (0.125, 0), (0.375, 1), (0.64, 1), (0.91, 0), (1, 0)),
    ((0, 0.5), (0.11, 1), (0.34, 1), (0.65, 0), (1, 0)),
)
"""Matplotlib's `jet`, which differs from OpenCV's."""

_RED_WHITE_GREEN = _steps(((0, 1), (0.5, 1), (1, 0)), ((0, 0), (0.5, 1), (1, 128 / 255)), ((0, 0), (0.5, 1), (1, 0)))
"""captum's `RdWhGn`."""


def _coloured(steps: npt.NDArray[np.float64], values: Map) -> npt.NDArray[np.float64]:
    """Matplotlib's colours of values in [0, 1], `[..., 3]` in [0, 1], rounded down to one of 256 steps."""
    colours: npt.NDArray[np.float64] = steps[np.clip(values * 256, 0, 255).astype(np.intp)]
    return colours


def _opencv(name: str, levels: Image) -> Image:
    """OpenCV's colours of levels `uint8 [H, W]`, RGB."""
    cv2 = cv2_module()
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, getattr(cv2, f"COLORMAP_{name}")), cv2.COLOR_BGR2RGB))


def _blended(below: Image, above: Image) -> Image:
    """Half transparent as in Matplotlib: its `fixed_blender_rgba_plain`, 127 on an opaque pixel of 255."""
    whole = below.astype(np.int64) * (255 * (256 - 127)) + above.astype(np.int64) * (256 * 127)
    return _cut(whole // (256 * (127 + 255) - 127 * 255))


def _cut(values: Map) -> Image:
    """Truncated to integers."""
    return values.astype(np.uint8)


def _divisor(value: Any) -> Any:
    """A divisor that is never zero, so that a blank map stays blank where the library has NaN."""
    return value if value > 0 else type(value)(1)


def _to_range(values: Map, epsilon: float = 0.0) -> Map:
    """Scaled from minimum and maximum to 0 and 1."""
    lifted = values - values.min()
    return np.asarray(lifted / _divisor(lifted.max() + np.float32(epsilon)))


def _over_maximum(cam: Map) -> Map:
    positive = np.maximum(cam, 0)
    return np.asarray(positive / _divisor(positive.max()))


def _bytes(values: Map) -> Image:
    """Keras's `array_to_img`: scaled from minimum and maximum to 0 and 255, truncated."""
    return _cut(_to_range(values) * 255)


def _enlarged(values: Map, image: Image) -> Map:
    """OpenCV's bilinear resizing to the image's size."""
    return np.asarray(cv2_module().resize(values, image.shape[1::-1], interpolation=cv2_module().INTER_LINEAR))


def _nearest(values: Map, image: Image) -> Map:
    """PyTorch's nearest-neighbour resizing, whose ratio of sizes is rounded."""
    for axis in (0, 1):
        cells, pixels = values.shape[axis], image.shape[axis]
        place = np.arange(pixels, dtype=np.float32) * (np.float32(cells) / np.float32(pixels))
        values = values.take(np.minimum(place.astype(np.intp), cells - 1), axis)
    return values


def _pillow_bicubic(values: Map, image: Image) -> Map:
    """Pillow's `resize` to the image's size with its default filter; bytes are rounded after each axis."""
    resized = values
    for axis in (1, 0):
        taps = _pillow_weights(values.shape[axis], image.shape[axis])
        resized = np.moveaxis(np.tensordot(taps, resized.astype(np.float64), (1, axis)), 0, axis)
        if values.dtype == np.uint8:
            resized = np.clip(np.floor(resized + 0.5), 0, 255)
    return resized.astype(np.float32)


def _pillow_weights(cells: int, pixels: int) -> npt.NDArray[np.float64]:
    """Bicubic weights (Keys 1981, a = -1/2) along one axis, wider when it gets smaller: `[pixels, cells]`."""
    spread = max(cells / pixels, 1.0)
    place = (np.arange(pixels)[:, None] + 0.5) * cells / pixels
    distance = np.abs(np.arange(cells) + 0.5 - place) / spread
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    taps = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    return np.asarray(taps / taps.sum(axis=1, keepdims=True))

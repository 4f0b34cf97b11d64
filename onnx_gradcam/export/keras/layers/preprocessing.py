"""Layers that prepare pictures inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.export.keras.call import Call, Tensor
from onnx_gradcam.export.keras.registry import keras_layer
from onnx_gradcam.export.keras.weights import Slot

from .convolution import numbers

__all__: list[str] = []


def _plain_number(value: Any) -> npt.NDArray[np.float32]:
    """A number or list, which Keras 3 wraps where it was an array."""
    if isinstance(value, Mapping):
        value = value["config"]["value"]
    return np.asarray(value, np.float32)


@keras_layer("Rescaling")
def rescaling(call: Call, x: Tensor, *, scale: Any, offset: Any = 0.0) -> Tensor:
    """The tensor times a scale plus an offset."""
    factor, shift = _plain_number(scale), _plain_number(offset)
    if (factor.ndim or shift.ndim) and not call.channels_last:
        call.refuse("its scale is a list, whose axis depends on a setting of Keras that files do not hold")
    y = x.value * call.constant(factor, x)
    return Tensor(y + call.constant(shift, x) if shift.any() else y, x.moved)


_STATISTICS = [
    Slot("mean", when="no mean", trained=False),
    Slot("variance", when="no mean", trained=False),
    Slot("count", when="no mean", trained=False),
]


@keras_layer("Normalization", weights=_STATISTICS)
def normalization(
    call: Call, x: Tensor, *, axis: Any = -1, mean: Any = None, variance: Any = None, invert: Any = False
) -> Tensor:
    """(x - mean) / max(sqrt(variance), 1e-7), the statistics given or learned."""
    axes = sorted(a % x.rank for a in ([] if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]))
    if mean is None:
        center, spread = call.content("mean"), call.content("variance")
    else:
        center, spread = _plain_number(mean), _plain_number(variance)
    sizes = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    if not all(isinstance(size, int) for size in sizes):
        call.refuse(f"the sizes {sizes} that it keeps are not all known")
    if center.ndim:
        center, spread = (a.reshape([int(size or 0) for size in sizes]) for a in (center, spread))
    deviation = np.maximum(np.sqrt(spread), np.float32(1e-7))
    if invert:
        return Tensor(x.value * call.constant(deviation, x) + call.constant(center, x), x.moved)
    return Tensor((x.value - call.constant(center, x)) / call.constant(deviation, x), x.moved)


@keras_layer("Resizing", neutral=["fill_mode", "fill_value"])
def resizing(
    call: Call,
    x: Tensor,
    *,
    height: Any,
    width: Any,
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: Any = False,
    pad_to_aspect_ratio: Any = False,
    antialias: Any = False,
    data_format: str | None = None,
) -> Tensor:
    """Interpolation to a fixed size, half-pixel centres."""
    if crop_to_aspect_ratio or pad_to_aspect_ratio or antialias:
        call.refuse("it keeps the aspect ratio or smooths, which ONNX's Resize does otherwise")
    modes = {"bilinear": "linear", "nearest": "nearest"}
    if interpolation not in modes:
        call.refuse(f"its interpolation {interpolation!r} is not supported")
    y = call.op(
        "Resize",
        call.maps(x, data_format),
        None,
        None,
        call.writer.ints(*numbers([height, width], 2)),
        axes=[2, 3],
        mode=modes[interpolation],
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    )
    return call.mapped(y, data_format)

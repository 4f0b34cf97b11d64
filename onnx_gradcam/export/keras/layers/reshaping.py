"""Layers that move, add or remove places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnx_gradcam.export.keras.call import Call, Tensor
from onnx_gradcam.export.keras.registry import keras_layer
from onnx_gradcam.graph.builder import Value

from .convolution import numbers

__all__ = ["reshaped"]

_END = np.iinfo(np.int64).max


@keras_layer("Flatten")
def flatten(call: Call, x: Tensor, *, data_format: str | None = None) -> Tensor:
    """All axes behind the batch as one, in the order of `[N, H, W, C]`."""
    plain = call.plain(x)
    if data_format == "channels_first" and x.rank > 2:
        plain = Tensor(call.op("Transpose", plain.value, perm=[0, *range(2, x.rank), 1]))
    return Tensor(call.op("Flatten", plain.value, axis=1))


def reshaped(call: Call, x: Tensor, target: list[int]) -> Tensor:
    """`x` with the axes behind the batch in another shape."""
    plain = call.plain(x)
    sizes = numbers(target, len(target), -1)
    known = plain.shape[1:]
    if -1 in sizes and all(isinstance(d, int) for d in known):
        total = math.prod(d for d in known if isinstance(d, int))
        sizes = [total // -math.prod(sizes) if d == -1 else d for d in sizes]
    return call.settle(Tensor(call.op("Reshape", plain.value, call.writer.ints(0, *sizes))))


@keras_layer("Reshape")
def reshape(call: Call, x: Tensor, *, target_shape: Any) -> Tensor:
    """The same elements in Keras's order, in another shape."""
    return reshaped(call, x, list(target_shape))


@keras_layer("Permute")
def permute(call: Call, x: Tensor, *, dims: Any) -> Tensor:
    """The axes behind the batch in another order; they count from one."""
    order = [0, *numbers(dims, x.rank - 1)]
    return call.settle(Tensor(call.op("Transpose", call.plain(x).value, perm=order)))


@keras_layer("RepeatVector")
def repeat_vector(call: Call, x: Tensor, *, n: Any) -> Tensor:
    """Each vector `n` times, along a new axis."""
    times = call.writer.ints(1, *numbers([n], 1), 1)
    return Tensor(call.op("Tile", call.op("Unsqueeze", x.value, call.writer.ints(1)), times))


def _pairs(value: Any, count: int) -> list[list[int]]:
    """What is added or cut before and behind, an axis a pair: a number, one number an axis, or one pair."""
    if count == 1 and isinstance(value, (list, tuple)) and len(value) == 2:
        value = [value]
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    pairs = [numbers(v, 2, 0) for v in values]
    if len(pairs) != count:
        raise ValueError(f"{value!r} where {count} pairs of numbers belong")
    return pairs


@keras_layer("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
def zero_padding(call: Call, x: Tensor, *, padding: Any = 1, data_format: str | None = None) -> Tensor:
    """Zeros around the places.

    They are written as -0.0, which ONNX Runtime does not merge into a MaxPool that follows, where it would be wrong.
    """
    maps = call.maps(x, data_format)
    pairs = [[0, 0], [0, 0], *_pairs(padding, maps.rank - 2)]
    pads = call.writer.ints(*(p[0] for p in pairs), *(p[1] for p in pairs))
    y = call.op("Pad", maps, pads, call.writer.const(np.float32(-0.0)))
    return call.mapped(y, data_format)


@keras_layer("Cropping1D", "Cropping2D", "Cropping3D")
def cropping(call: Call, x: Tensor, *, cropping: Any = 1, data_format: str | None = None) -> Tensor:
    """Places cut off at the borders."""
    maps = call.maps(x, data_format)
    pairs = _pairs(cropping, maps.rank - 2)
    ints = call.writer.ints
    starts, ends = ints(*(p[0] for p in pairs)), ints(*(-p[1] or _END for p in pairs))
    return call.mapped(call.op("Slice", maps, starts, ends, ints(*range(2, maps.rank))), data_format)


def _resized(call: Call, maps: Value, factors: list[int], mode: str) -> Value:
    scales = call.writer.const(np.array([1, 1, *factors], np.float32))
    transformation = "asymmetric" if mode == "nearest" else "half_pixel"
    return call.op(
        "Resize",
        maps,
        None,
        scales,
        mode=mode,
        coordinate_transformation_mode=transformation,
        nearest_mode="floor" if mode == "nearest" else None,
    )


@keras_layer("UpSampling1D", "UpSampling2D", "UpSampling3D")
def up_sampling(
    call: Call, x: Tensor, *, size: Any = 2, data_format: str | None = None, interpolation: str = "nearest"
) -> Tensor:
    """Each place several times, or interpolated between."""
    modes = {"nearest": "nearest", "bilinear": "linear"}
    if interpolation not in modes:
        call.refuse(f"its interpolation {interpolation!r} is not supported")
    maps = call.maps(x, data_format)
    return call.mapped(_resized(call, maps, numbers(size, maps.rank - 2), modes[interpolation]), data_format)

"""Rules of pooling over regions, the second stage of detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, numbers, one_hot, reshape, sizes
from .indexing import scatter_add
from .sampling import size_value


@vjp("RoiAlign", stops=(1,))
def roi_align(
    t: Builder, g: Value, y: Value, x: Value, rois: Value, batch_indices: Value,
    *, coordinate_transformation_mode: str = "half_pixel", mode: str = "avg", output_height: int = 1,
    output_width: int = 1, sampling_ratio: int = 0, spatial_scale: float = 1.0,
) -> Sequence[Cotangent]:  # fmt: skip
    """Two products a region: bilinear sampling and the mean over a bin are separable into rows and columns.

    The corners of the regions get no gradient, as in torchvision.
    """
    if mode != "avg":
        raise UnsupportedError(f"the VJP rule of RoiAlign serves mode 'avg', not {mode!r}; choose a later layer")
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0

    def back() -> Value:
        n, c, h, w = sizes(t, x)
        corners = [t.op("Slice", rois, t.ints(i), t.ints(i + 1), t.ints(1)) * spatial_scale - shift for i in range(4)]
        rows, columns = (
            _shares(t, corners[axis], corners[axis + 2], size, bins, sampling_ratio, at_least_one=not shift)
            for axis, size, bins in ((1, h, output_height), (0, w, output_width))
        )
        wide = t.op("MatMul", g, t.op("Unsqueeze", columns, t.ints(1)))
        wide = reshape(t, t.transpose(wide, (0, 2, 1, 3)), [-1, c * w])
        owner = t.op("Unsqueeze", t.transpose(one_hot(t, batch_indices, n, x.dtype), (1, 0)), t.ints(2, 3))
        tall = reshape(t, owner * rows, [n, -1, h])
        image = t.op("MatMul", t.transpose(tall, (0, 2, 1)), wide)
        return t.transpose(reshape(t, image, [n, h, c, w]), (0, 2, 1, 3))

    return [back, None, None]


def _shares(t: Builder, start: Value, end: Value, size: Size, bins: int, samples: int, *, at_least_one: bool) -> Value:
    """The share of each row in each bin of each region: `[regions, bins, size]`, from corners `[regions, 1]`."""
    extent = end - start
    if at_least_one:
        extent = t.op("Max", extent, t.const(1, extent.dtype))
    length = extent / float(bins)
    if samples:
        count, many = t.full_like(length, float(samples)), Size(t, samples)
    else:
        count = t.op("Ceil", length)
        most = t.cast(t.reduce("ReduceMax", count, keepdims=False), np.int64)
        many = Size(t, t.op("Reshape", most, t.ints(1)))
    sample = t.op("Unsqueeze", t.cast(numbers(t, many), start.dtype), t.ints(0))
    within = (sample + 0.5) / t.op("Max", count, t.const(1, count.dtype))
    position = t.op("Unsqueeze", within, t.ints(1)) + t.const(np.arange(bins).reshape(1, -1, 1), start.dtype)
    position = position * t.op("Unsqueeze", length, t.ints(1)) + t.op("Unsqueeze", start, t.ints(1))
    whole = size_value(t, size, start)
    counted = t.op("And", position >= -1.0, position <= whole)
    counted = t.op("And", counted, t.op("Unsqueeze", sample < count, t.ints(1)))
    clamped = t.op("Clip", position, t.const(0, start.dtype), whole - 1.0)
    distance = t.op("Unsqueeze", clamped, t.ints(3)) - t.cast(numbers(t, size), start.dtype)
    hat = t.op("Relu", 1.0 - t.op("Abs", distance))
    taken = t.op("Where", t.op("Unsqueeze", counted, t.ints(3)), hat, 0.0)
    return t.sum(taken, [2], keepdims=False) / t.op("Unsqueeze", t.op("Max", count, t.const(1, count.dtype)), t.ints(1))


@vjp("MaxRoiPool", stops=(1,))
def max_roi_pool(
    t: Builder, g: Value, y: Value, x: Value, rois: Value, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Sequence[Cotangent]:
    """The first maximum of every bin in scan order takes all; an empty bin contributes nothing."""

    def back() -> Value:
        n, c, h, w = sizes(t, x)
        area = h * w
        owner = t.op("Slice", rois, t.ints(0), t.ints(1), t.ints(1))
        owner = t.cast(reshape(t, owner, [-1]), np.int64)
        images = t.op("Gather", reshape(t, x, [n, c, area]), owner, axis=0)
        # Round halves up; corners are not negative.
        corners = [
            t.op("Floor", t.op("Slice", rois, t.ints(i), t.ints(i + 1), t.ints(1)) * spatial_scale + 0.5)
            for i in range(1, 5)
        ]
        rows = _bins(t, corners[1], corners[3], h, pooled_shape[0])
        columns = _bins(t, corners[0], corners[2], w, pooled_shape[1])
        positions, filled = [], []
        for row in rows:
            for column in columns:
                inside = t.op("And", t.op("Unsqueeze", row, t.ints(2)), t.op("Unsqueeze", column, t.ints(1)))
                inside = t.op("Unsqueeze", t.merged(inside, 1), t.ints(1))
                values = t.op("Where", inside, images, -np.inf)
                positions.append(t.op("ArgMax", values, axis=2))
                anything = t.reduce("ReduceMax", t.cast(inside, x.dtype), [2])
                filled.append(t.op("Expand", anything, t.op("Shape", positions[-1])))
        position = t.op("Concat", *positions, axis=2)
        plane = t.op("Unsqueeze", owner, t.ints(1)) * c.vector() + t.op("Unsqueeze", numbers(t, c), t.ints(0))
        position = t.op("Unsqueeze", plane, t.ints(2)) * area.vector() + position
        values = reshape(t, t.reshape_like(g, y), [-1]) * reshape(t, t.op("Concat", *filled, axis=2), [-1])
        empty = t.full_like(reshape(t, x, [-1]), 0.0)
        return t.reshape_like(scatter_add(t, empty, reshape(t, position, [-1]), values, 0), x)

    return [back, None]


def _bins(t: Builder, first: Value, last: Value, size: Size, bins: int) -> list[Value]:
    """The rows of each bin, as masks `[regions, size]`, from inclusive corners `[regions, 1]`."""
    extent = t.op("Max", last - first + 1.0, t.const(1, first.dtype))
    length = extent / float(bins)
    row = t.op("Unsqueeze", t.cast(numbers(t, size), first.dtype), t.ints(0))
    masks = []
    for i in range(bins):
        begin = t.op("Floor", length * float(i)) + first
        end = t.op("Ceil", length * float(i + 1)) + first
        masks.append(t.op("And", row >= begin, row < end))
    return masks

"""From raw maps to the heatmap, in the graph: rectify, normalize each sample, resize to the image, combine layers.

If all sizes are known, resizing is a product with two interpolation matrices, else a Resize node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value
from onnx_gradcam.options import Combine

__all__ = ["Finish", "added", "by_maximum", "by_range", "combined", "finish", "finish_within"]
__all__ += [
    "Matrix",
    "bicubic",
    "bilinear",
    "corner",
    "corner_bilinear",
    "half_pixel",
    "mirrored_bilinear",
    "nearest",
    "positive_part",
    "resize",
    "spatial_size",
    "spline",
]

Matrix = Callable[[int, int], npt.NDArray[np.float32]]
"""`(cells, pixels)` -> interpolation along one axis, `float32 [pixels, cells]`."""


def bilinear(t: Builder, maps: Value, size: Value) -> Value:
    """Maps `[N, h, w]` at `size`, bilinear with half-pixel centres: OpenCV, PyTorch with `align_corners=False`."""
    return resize(t, maps, size, half_pixel, mode="linear", coordinate_transformation_mode="half_pixel")


def corner_bilinear(t: Builder, maps: Value, size: Value) -> Value:
    """Bilinear with aligned corners, as SciPy's `zoom` of order 1 and `align_corners=True`."""
    return resize(t, maps, size, corner, mode="linear", coordinate_transformation_mode="align_corners")


def nearest(t: Builder, maps: Value, size: Value) -> Value:
    """The nearest cell, as PyTorch's `interpolate`."""
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return resize(t, maps, size, _nearest, mode="nearest", **attributes)


def bicubic(t: Builder, maps: Value, size: Value) -> Value:
    """Cubic convolution of Keys (a = -1/2) with half-pixel centres, as Pillow when it enlarges."""
    return resize(t, maps, size, _cubic, mode="cubic", **_KEYS)


def table_bicubic(t: Builder, maps: Value, size: Value) -> Value:
    """As `bicubic`, with weights from a table of 1024 steps per cell, as TensorFlow's `tf.image.resize`.

    If a size is free, the exact weights are used; they differ by less than 1e-3 of the range of the map.
    """
    return resize(t, maps, size, lambda cells, pixels: _cubic(cells, pixels, steps=1024), mode="cubic", **_KEYS)


_KEYS: dict[str, Any] = {"cubic_coeff_a": -0.5, "exclude_outside": 1, "coordinate_transformation_mode": "half_pixel"}


def spline(t: Builder, maps: Value, size: Value) -> Value:
    """Cubic B-spline with aligned corners, as SciPy's `zoom` by default; no ONNX operator does it for free sizes."""
    _need_fixed_sizes("a spline needs", maps, size)
    return resize(t, maps, size, _spline)


def mirrored_bilinear(t: Builder, maps: Value, size: Value) -> Value:
    """Bilinear as scikit-image's `resize` by default; no ONNX operator mirrors at the border for free sizes."""
    _need_fixed_sizes("mirrored borders need", maps, size)
    return resize(t, maps, size, _mirrored)


def _need_fixed_sizes(subject: str, maps: Value, size: Value) -> None:
    if size.array() is None or not all(isinstance(d, int) for d in maps.shape[1:]):
        raise UnsupportedError(
            f"{subject} fixed sizes of layer and image; export the model with a fixed size, or choose another preset"
        )


def resize(t: Builder, maps: Value, size: Value, matrix: Matrix, **attributes: Any) -> Value:
    """Resize maps `float32 [N, h, w]` to `size`, height and width `int64 [2]`.

    `matrix` interpolates along one axis if the sizes are known; else a Resize node with `attributes` does.
    """
    grid, image = maps.shape[1:], size.array()
    if image is not None and all(isinstance(d, int) for d in grid):
        if tuple(grid) == tuple(image):
            return maps
        if len(grid) != 2:
            return _resized_by_axis(t, maps, [matrix(int(d or 0), int(p)) for d, p in zip(grid, image, strict=True)])
        # Two small products take half the time of a Resize, and need no extra axes.
        rows, columns = (matrix(int(d or 0), int(p)) for d, p in zip(grid, image, strict=True))
        wide = maps @ t.const(columns.T)
        if isinstance(maps.shape[0], int):
            return t.const(rows) @ wide
        # The same product: ONNX Runtime's MatMul cannot broadcast a matrix to an empty batch.
        return t.op("Conv", wide, t.const(rows[..., None]))
    channel = t.op("Unsqueeze", maps, t.ints(1))
    batch = t.op("Shape", channel, start=0, end=2) if not isinstance(maps.shape[0], int) else t.ints(maps.shape[0], 1)
    target = t.op("Concat", batch, size, axis=0)
    return t.op("Squeeze", t.op("Resize", channel, None, None, target, **attributes), t.ints(1))


def _resized_by_axis(t: Builder, maps: Value, matrices: Sequence[npt.NDArray[np.floating]]) -> Value:
    """Maps `[N, *spatial]` with a matrix applied along each spatial axis; ONNX Runtime has no cubic Resize for them."""
    for axis, matrix in enumerate(matrices, 1):
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix), dtype=matrix.dtype)):
            continue
        last = maps.rank - 1
        order = [i for i in range(maps.rank) if i != axis] + [axis]
        moved = (maps if axis == last else t.transpose(maps, order)) @ t.const(matrix.T)
        maps = moved if axis == last else t.transpose(moved, [order.index(i) for i in range(maps.rank)])
    return maps


def positive_part(t: Builder, maps: Value) -> Value:
    """Raw maps with negative values clipped; a Max, because MNN computes a Relu in place of the output `cam` itself."""
    return t.op("Max", maps, 0.0)


def spatial_size(t: Builder, maps: Value, start: int = 2) -> Value:
    """Height and width, `int64 [2]`, of maps that have them from the axis `start` on: a constant if known."""
    sizes = [d for d in maps.shape[start:] if isinstance(d, int)]
    return t.ints(*sizes) if len(sizes) == maps.rank - start else t.op("Shape", maps, start=start)


def half_pixel(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """Bilinear interpolation along one axis with half-pixel centres."""
    return _between(np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1), cells)


def _at_corners(cells: int, pixels: int) -> npt.NDArray[np.float64]:
    """The coordinates of the pixels among the cells, with aligned corners."""
    return np.arange(pixels) * (cells - 1) / max(pixels - 1, 1)


def _mirrored(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """Bilinear interpolation along one axis with half-pixel centres, mirrored at the centres of the outer cells."""
    if cells > pixels:
        raise UnsupportedError("scikit-image blurs maps that are larger than the image; choose another preset")
    coordinate = np.abs((np.arange(pixels) + 0.5) * cells / pixels - 0.5)
    return _between(np.minimum(coordinate, np.maximum(2 * (cells - 1) - coordinate, 0)), cells)


def _between(coordinate: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.float32]:
    """Linear interpolation at coordinates among the cells."""
    low = np.clip(coordinate.astype(np.int64), 0, max(cells - 2, 0))
    part = (coordinate - low).astype(np.float32)
    matrix = np.zeros((len(coordinate), cells), np.float32)
    rows = np.arange(len(coordinate))
    matrix[rows, low] = 1 - part
    matrix[rows, np.minimum(low + 1, cells - 1)] += part
    return matrix


def corner(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """Bilinear interpolation along one axis with aligned corners."""
    return _between(_at_corners(cells, pixels), cells)


def _nearest(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    # PyTorch multiplies by a rounded ratio, which sometimes falls below the integer it should be.
    coordinate = np.arange(pixels, dtype=np.float32) * (np.float32(cells) / np.float32(pixels))
    matrix: npt.NDArray[np.float32] = np.eye(cells, dtype=np.float32)[np.minimum(coordinate.astype(np.intp), cells - 1)]
    return matrix


def _cubic(cells: int, pixels: int, steps: int = 0) -> npt.NDArray[np.float32]:
    """Keys 1981, eq. 15, without cells outside the map; coordinates are rounded to `steps` per cell if given."""
    coordinate = (np.arange(pixels) + 0.5) * cells / pixels - 0.5
    if steps:
        coordinate = np.rint(coordinate * steps) / steps
    distance = np.abs(coordinate[:, None] - np.arange(cells))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    matrix: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return matrix


def _spline(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """The cubic B-spline through all cells, mirrored at the ends (Unser 1999, box 1 and 2), with aligned corners."""
    if cells == 1:
        return np.ones((pixels, 1), np.float32)

    def weights(coordinate: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The weights of the coefficients, one row per coordinate."""
        matrix = np.zeros((len(coordinate), cells))
        for row, x in enumerate(coordinate):
            for knot in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
                distance = abs(x - knot)
                weight = 2 / 3 - distance**2 + distance**3 / 2 if distance < 1 else max(2 - distance, 0) ** 3 / 6
                mirrored = abs(knot)
                mirrored = 2 * (cells - 1) - mirrored if mirrored > cells - 1 else mirrored
                matrix[row, mirrored] += weight
        return matrix

    through = weights(np.arange(cells, dtype=np.float64))
    matrix: npt.NDArray[np.floating] = np.linalg.solve(through.T, weights(_at_corners(cells, pixels)).T).T
    return matrix.astype(np.float32)


Finish = Callable[[Builder, Sequence[Value], Value, Combine | None], Value]
"""`(builder, raw maps [N, h, w], one per layer, size int64 [2], combine) -> heatmap [N, H, W]`."""


def finish(t: Builder, cams: Sequence[Value], size: Value, combine: Combine | None = None) -> Value:
    """The heatmap `float32 [N, H, W]` in [0, 1] of raw signed maps `[N, h, w]`, one per layer.

    Negative values are clipped to zero, each sample is divided by its own maximum, and the result is resized bilinearly
    with half-pixel centres. A map without a positive value stays zero. Several layers are averaged unless `combine`
    says otherwise, and divided by their maximum again.
    """
    shown = [bilinear(t, by_maximum(t, positive_part(t, cam)), size) for cam in cams]
    return shown[0] if len(shown) == 1 else by_maximum(t, combined(t, shown, combine or "mean"))


def finish_within(
    t: Builder,
    steps: Finish,
    cams: Sequence[Value],
    size: Value,
    combine: Combine | None,
    extent: Sequence[Sequence[float]],
) -> Value:
    """The heatmap `[N, H, W]` of raw maps that cover a part of the image: zero around it, cropped where it is larger.

    `extent` is top, left, bottom and right of that part, each as pixels and a share of the side; empty for all of the
    image. Edges are rounded to whole pixels.
    """
    if not extent:
        return steps(t, cams, size, combine)
    box = _box(t, size, extent)
    first, last = t.op("Slice", box, t.ints(0), t.ints(2)), t.op("Slice", box, t.ints(2), t.ints(4))
    constant = box.array()
    if constant is not None:
        first, last = t.ints(*constant[:2]), t.ints(*constant[2:])
    inner = t.ints(*(constant[2:] - constant[:2])) if constant is not None else t.op("Sub", last, first)
    heatmap = steps(t, cams, inner, combine)
    return _placed(t, heatmap, first, last, size)


def _box(t: Builder, size: Value, extent: Sequence[Sequence[float]]) -> Value:
    """Top, left, bottom and right in pixels, `int64 [4]`: a constant if the size is known."""
    pixels, shares = np.array(extent, np.float64).T
    known = size.array()
    if known is not None:
        return t.const(np.rint(pixels + shares * np.tile(known, 2)).astype(np.int64))
    sides = t.cast(t.op("Concat", size, size, axis=0), np.float32)
    edges = t.op("Mul", sides, t.const(shares.astype(np.float32))) + t.const(pixels.astype(np.float32))
    return t.cast(t.op("Round", edges), np.int64)


def _placed(t: Builder, heatmap: Value, first: Value, last: Value, size: Value) -> Value:
    """A heatmap that reaches from `first` to `last`, in an image of a size: cropped to it and padded with zeros."""
    axes, none = t.ints(1, 2), t.ints(0, 0)
    before, behind, area = first.array(), last.array(), size.array()
    if before is not None and behind is not None and area is not None:
        above, below = before, area - behind
        if min(*above, *below) < 0:
            ends = np.where(below < 0, below, _LAST)
            heatmap = t.op("Slice", heatmap, t.ints(*np.maximum(-above, 0)), t.ints(*ends), axes)
        if max(*above, *below) > 0:
            pads = t.ints(0, *np.maximum(above, 0), 0, *np.maximum(below, 0))
            heatmap = t.op("Pad", heatmap, pads)
        return heatmap
    over = t.op("Max", t.op("Sub", last, size), none)
    length = t.op("Shape", heatmap, start=1)
    start = t.op("Max", t.op("Neg", first), none)
    inside = t.op("Slice", heatmap, start, t.op("Sub", length, over), axes)
    zero = t.ints(0)
    low, high = t.op("Max", first, none), t.op("Max", t.op("Sub", size, last), none)
    return t.op("Pad", inside, t.op("Concat", zero, low, zero, high, axis=0))


_LAST = int(np.iinfo(np.int64).max)


def by_maximum(t: Builder, positive: Value) -> Value:
    """Divide each sample of a non-negative map by its own maximum; a map of zeros stays zero."""
    top = t.reduce("ReduceMax", positive, range(1, positive.rank))
    # A blank map stays blank instead of becoming amplified noise.
    return positive / t.op("Max", top, float(np.finfo(np.float32).tiny))


def by_range(t: Builder, maps: Value, epsilon: float) -> Value:
    """Subtract the minimum of each sample and divide it by its range plus `epsilon`."""
    axes = range(1, maps.rank)
    lifted = maps - t.reduce("ReduceMin", maps, axes)
    return lifted / (t.reduce("ReduceMax", lifted, axes) + epsilon)


def added(t: Builder, cams: Sequence[Value], finest: int) -> Value:
    """The sum of raw maps `[N, h, w]` of several layers at the size of one of them, resized bilinearly."""
    size = spatial_size(t, cams[finest], start=1)
    maps = [cam if i == finest else bilinear(t, cam, size) for i, cam in enumerate(cams)]
    return functools.reduce(lambda a, b: a + b, maps)


def combined(t: Builder, maps: Sequence[Value], how: Combine) -> Value:
    """Combine heatmaps of several layers, all of one size, into one."""
    if len(maps) == 1:
        return maps[0]
    if how == "product":
        return functools.reduce(lambda a, b: t.op("Mul", a, b), maps)
    return t.op("Mean" if how == "mean" else "Max", *maps, shape=maps[0].known_shape)

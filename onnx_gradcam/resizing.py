"""Resizing of maps in the graph, and the interpolation matrices that stand for it where the sizes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["Matrix", "bilinear", "half_pixel", "places", "resize"]

Matrix = Callable[[int, int], npt.NDArray[np.float32]]
"""`(cells, pixels)` -> interpolation along one axis, `float32 [pixels, cells]`."""


def bilinear(t: Builder, maps: Value, size: Value) -> Value:
    """Bilinear with half-pixel centres, as OpenCV and PyTorch (`align_corners=False`) have it.

    Args:
        t: the builder.
        maps: `float32 [N, h, w]`.
        size: height and width, `int64 [2]`.

    Returns:
        `float32 [N, H, W]`.
    """
    return resize(t, maps, size, half_pixel, mode="linear", coordinate_transformation_mode="half_pixel")


def resize(t: Builder, maps: Value, size: Value, matrix: Matrix, **attributes: Any) -> Value:
    """Resize along both axes.

    Args:
        t: the builder.
        maps: `float32 [N, h, w]`.
        size: height and width, `int64 [2]`.
        matrix: the interpolation along one axis, used where the sizes are known.
        attributes: of the Resize node that does the same where they are not.
    """
    grid, picture = maps.shape[1:], size.array()
    if picture is not None and all(isinstance(d, int) for d in grid):
        if tuple(grid) == tuple(picture):
            return maps
        # Two small products take half the time of a Resize and need none of the axes around it.
        rows, columns = (matrix(int(d or 0), int(p)) for d, p in zip(grid, picture, strict=True))
        return t.const(rows) @ (maps @ t.const(columns.T))
    channel = t.op("Unsqueeze", maps, t.ints(1))
    batch = t.op("Shape", channel, start=0, end=2) if not isinstance(maps.shape[0], int) else t.ints(maps.shape[0], 1)
    target = t.op("Concat", batch, size, axis=0)
    return t.op("Squeeze", t.op("Resize", channel, None, None, target, **attributes), t.ints(1))


def places(t: Builder, maps: Value) -> Value:
    """Height and width of `[N, C, H, W]`, `int64 [2]`: a constant where they are known."""
    sizes = [d for d in maps.shape[2:] if isinstance(d, int)]
    return t.ints(*sizes) if len(sizes) == 2 else t.op("Shape", maps, start=2)


def half_pixel(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """Bilinear interpolation along one axis with half-pixel centres."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    part = (place - low).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), low] = 1 - part
    matrix[np.arange(pixels), np.minimum(low + 1, cells - 1)] += part
    return matrix

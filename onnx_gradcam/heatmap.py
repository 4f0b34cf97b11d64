"""From the raw map to the heatmap, in the graph: ReLU, scaling a sample, resizing to the picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["finish"]


def finish(t: Builder, cam: Value, size: Value) -> Value:
    """The heatmap of a raw signed map.

    Negative values are cut off, each sample is divided by its own maximum, and the result is resized bilinearly with
    half-pixel centres. A map without a positive value stays zero everywhere.

    Args:
        t: the builder.
        cam: `float32 [N, h, w]`.
        size: the picture's height and width, `int64 [2]`.

    Returns:
        `float32 [N, H, W]` in [0, 1].
    """
    positive = t.op("Relu", cam)
    top = t.reduce("ReduceMax", positive, range(1, cam.rank))
    # Zero over the smallest number is zero: a blank map is shown blank, not as amplified noise.
    scaled = positive / t.op("Max", top, float(np.finfo(np.float32).tiny))
    grid, picture = cam.shape[1:], size.array()
    if picture is not None and all(isinstance(d, int) for d in grid):
        # Two small products take half the time of a Resize and need none of the axes around it.
        rows, columns = (_interpolation(int(d or 0), int(p)) for d, p in zip(grid, picture, strict=True))
        return t.const(rows) @ (scaled @ t.const(columns.T))
    channel = t.op("Unsqueeze", scaled, t.ints(1))
    batch = t.op("Shape", channel, start=0, end=2) if not isinstance(cam.shape[0], int) else t.ints(cam.shape[0], 1)
    target = t.op("Concat", batch, size, axis=0)
    resized = t.op("Resize", channel, None, None, target, mode="linear", coordinate_transformation_mode="half_pixel")
    return t.op("Squeeze", resized, t.ints(1))


def _interpolation(cells: int, pixels: int) -> npt.NDArray[np.float32]:
    """Bilinear interpolation along one axis with half-pixel centres, as a matrix `float32 [pixels, cells]`."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    low = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    part = (place - low).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), low] = 1 - part
    matrix[np.arange(pixels), np.minimum(low + 1, cells - 1)] += part
    return matrix

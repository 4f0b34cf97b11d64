"""From the raw map to the heatmap, in the graph: ReLU, scaling a sample, resizing to the picture."""

from __future__ import annotations

import numpy as np

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
    # Division by one where all is zero: a blank map is shown blank, not as amplified noise.
    scaled = positive / t.op("Where", top > 0.0, top, t.const(1.0, np.float32))
    channel = t.op("Unsqueeze", scaled, t.ints(1))
    batch = t.op("Shape", channel, start=0, end=2) if not isinstance(cam.shape[0], int) else t.ints(cam.shape[0], 1)
    target = t.op("Concat", batch, size, axis=0)
    resized = t.op("Resize", channel, None, None, target, mode="linear", coordinate_transformation_mode="half_pixel")
    return t.op("Squeeze", resized, t.ints(1))

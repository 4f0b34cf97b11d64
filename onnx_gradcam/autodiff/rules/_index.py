"""What several families of rules need of indices."""

from __future__ import annotations

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["index_along"]


def index_along(t: Builder, x: Value, axis: int) -> Value:
    """0, 1, 2 ... along one dimension of `x`, ready to be broadcast over the others; int64."""
    size = x.shape[axis]
    shape = [1] * x.rank
    shape[axis] = -1
    if isinstance(size, int):
        return t.const(np.arange(size).reshape(shape))
    count = t.op("Squeeze", t.op("Shape", x, start=axis, end=axis + 1))
    index = t.op("Range", t.const(np.int64(0)), count, t.const(np.int64(1)))
    return t.op("Reshape", index, t.ints(*shape))

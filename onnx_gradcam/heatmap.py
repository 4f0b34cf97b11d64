"""From raw maps to the heatmap, in the graph: rectifying, scaling a sample, resizing to the picture, several layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

from .resizing import bilinear

__all__ = ["Combine", "Finish", "by_maximum", "by_range", "combined", "finish"]

Combine = Literal["mean", "max", "product"]


Finish = Callable[[Builder, Sequence[Value], Value, Combine | None], Value]
"""`(builder, raw maps [N, h, w], one a layer, height and width int64 [2], combine) -> heatmap [N, H, W]`."""


def finish(t: Builder, cams: Sequence[Value], size: Value, combine: Combine | None = None) -> Value:
    """The heatmap of raw signed maps.

    Negative values are cut off, each sample is divided by its own maximum, and the result is resized bilinearly with
    half-pixel centres. A map without a positive value stays zero everywhere. Several layers are averaged unless
    `combine` says otherwise, and divided by their maximum once more.

    Args:
        t: the builder.
        cams: `float32 [N, h, w]`, one a layer.
        size: the picture's height and width, `int64 [2]`.
        combine: how several layers become one.

    Returns:
        `float32 [N, H, W]` in [0, 1].
    """
    shown = [bilinear(t, by_maximum(t, t.op("Relu", cam)), size) for cam in cams]
    return shown[0] if len(shown) == 1 else by_maximum(t, combined(t, shown, combine or "mean"))


def by_maximum(t: Builder, positive: Value) -> Value:
    """Each sample of a map that is nowhere negative, divided by its own maximum; zero where it is zero everywhere."""
    top = t.reduce("ReduceMax", positive, range(1, positive.rank))
    # Zero over the smallest number is zero: a blank map is shown blank, not as amplified noise.
    return positive / t.op("Max", top, float(np.finfo(np.float32).tiny))


def by_range(t: Builder, maps: Value, epsilon: float) -> Value:
    """Each sample, its minimum subtracted and divided by its range plus `epsilon`."""
    axes = range(1, maps.rank)
    lifted = maps - t.reduce("ReduceMin", maps, axes)
    return lifted / (t.reduce("ReduceMax", lifted, axes) + epsilon)


def combined(t: Builder, maps: Sequence[Value], how: Combine) -> Value:
    """Maps of several layers at one size as one map."""
    if len(maps) == 1:
        return maps[0]
    if how == "product":
        return functools.reduce(lambda a, b: t.op("Mul", a, b), maps)
    return t.op("Mean" if how == "mean" else "Max", *maps, shape=maps[0].known_shape)

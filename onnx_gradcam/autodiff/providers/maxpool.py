"""The gradient of a MaxPool by convolutions: a few operators for every kernel size.

The registered rule handles one tap after another with Booleans. This one handles all taps at once with numbers, for
runtimes that have no logic, cannot pad with minus infinity, or pay for the launch of every operator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, RuleFunction, Table
from onnx_gradcam.autodiff.rules._sizes import reshape, sizes, vector
from onnx_gradcam.autodiff.rules._windows import Windows, spread, windows
from onnx_gradcam.autodiff.rules.convolution import gather
from onnx_gradcam.autodiff.rules.pooling import route_through, stages
from onnx_gradcam.graph.builder import Builder, Value

__all__ = ["pools_by_convolution"]


def pools_by_convolution(table: Table) -> Table:
    """`table` with this rule for MaxPool; gradients equal those of the registered rule for finite images."""
    rule = table["", "MaxPool"]
    return {**table, ("", "MaxPool"): replace(rule, function=_max_pool(rule.function))}


def _max_pool(portable: RuleFunction) -> RuleFunction:
    @functools.wraps(portable)
    def max_pool(
        t: Builder,
        g: Value,
        y: Value,
        x: Value,
        *,
        kernel_shape: Sequence[int],
        auto_pad: str = "NOTSET",
        storage_order: int = 0,
        **geometry: Any,
    ) -> Sequence[Cotangent]:
        over = windows(t, x, kernel_shape, auto_pad=auto_pad, **geometry)
        return [lambda: route_through(t, g, y, x, stages(over), auto_pad, _route)]

    return max_pool


def _route(t: Builder, g: Value, y: Value, x: Value, over: Windows) -> Value:
    """Hand each window's `g` to the first element of `x` in it that equals `y`.

    A convolution with one-hot kernels puts the taps of every window side by side as channels. Another convolution over
    these channels subtracts from each hit the number of hits before it, which leaves one at the first hit and nothing
    positive elsewhere.
    """
    spatial, outputs = sizes(t, x, over.axes), sizes(t, y, over.axes)
    image = reshape(t, x, [-1, 1, *spatial])
    top, g = reshape(t, y, [-1, 1, *outputs]), reshape(t, g, [-1, 1, *outputs])
    count = math.prod(over.taps)
    one_hot = t.const(np.eye(count).reshape(count, 1, *over.taps), x.dtype)
    hits = t.cast(t.op("Equal", gather(t, image, one_hot, top, over, 1), top), x.dtype)
    if over.ceil or any(p.known != 0 for p in (*over.begin, *over.end)):
        # A padded zero is not an element of the image, but can equal the maximum.
        hits = hits * _inside(t, x, one_hot, top, over)
    first = t.op("Relu", t.op("Conv", hits, t.const(_less_earlier(count, over.rank), x.dtype)))
    return t.reshape_like(spread(t, first * g, one_hot, image, over), x)


def _less_earlier(count: int, rank: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    matrix = np.eye(count) - np.tri(count, k=-1)
    return matrix.reshape(count, count, *[1] * rank)


def _inside(t: Builder, x: Value, one_hot: Value, top: Value, over: Windows) -> Value:
    """One where a tap is inside of the image, `[1, taps, *outputs]`."""
    shape = vector(t, [1, 1, *sizes(t, x, over.axes)])
    ones = t.op("Expand", t.const(1.0, x.dtype), shape, shape=(1, 1, *x.shape[2:]))
    return gather(t, ones, one_hot, top, over, 1)

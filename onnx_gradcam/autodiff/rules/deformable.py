"""Deformable convolution: a convolution of what was read at displaced positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sampling import by_image, by_position, linear_taps, read
from ._sizes import Size, numbers, reshape, sizes, vector


@vjp("DeformConv")
def deform_conv(
    t: Builder,
    g: Value,
    y: Value,
    x: Value,
    w: Value,
    offset: Value,
    b: Value | None = None,
    mask: Value | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:
    """Zhu et al. 2019 (arXiv:1811.11168), eq. 1, differentiated by the image, the weight, the offsets and the mask."""
    n = x.rank - 2
    kernel = list(kernel_shape or w.dims("the VJP rule of DeformConv")[2:])
    count = math.prod(kernel)
    batch, channels, *_ = sizes(t, x)
    outputs = sizes(t, y, range(2, y.rank))
    images = batch * offset_group
    # Every offset group is an image of its own from here on.
    image = reshape(t, x, [images, channels // offset_group, *sizes(t, x, range(2, x.rank))])
    moved = reshape(t, offset, [images, count, n, -1])
    taps = [
        linear_taps(t, reshape(t, _position(t, moved, i, kernel, outputs, dilations, pads, strides), [images, -1]))
        for i in range(n)
    ]
    share = None if mask is None else reshape(t, mask, [images, 1, -1])
    per_group = channels // group
    rows = per_group * count
    cotangent = reshape(t, g, [batch, group, *_split(t, y, group), -1])

    def by_columns() -> Value:
        """The cotangent of the columns before the mask, `[images, channels, taps * positions]`."""
        weight = reshape(t, w, [1, group, *_split(t, y, group), rows])
        columns = t.op("MatMul", t.transpose(weight, (0, 1, 3, 2)), cotangent)
        return reshape(t, columns, [images, channels // offset_group, -1])

    def masked() -> Value:
        return by_columns() if share is None else by_columns() * share

    def by_weight() -> Value:
        values = read(t, image, taps)
        columns = reshape(t, values if share is None else values * share, [batch, group, rows, -1])
        product = t.op("MatMul", cotangent, t.transpose(columns, (0, 1, 3, 2)))
        return t.reshape_like(t.sum(product, [0], keepdims=False), w)

    def by_offset() -> Value:
        parts = [reshape(t, p, [images, count, 1, -1]) for p in by_position(t, masked(), image, taps)]
        return t.reshape_like(t.op("Concat", *parts, axis=2), offset)

    def by_mask() -> Value:
        taken = t.sum(by_columns() * read(t, image, taps), [1])
        return taken if mask is None else t.reshape_like(taken, mask)

    return [
        lambda: t.reshape_like(by_image(t, masked(), image, taps), x),
        by_weight,
        by_offset,
        lambda: t.sum(g, [0, *range(2, g.rank)], keepdims=False),
        by_mask,
    ]


def _split(t: Builder, y: Value, group: int) -> list[Size]:
    """Output channels a group."""
    return [sizes(t, y, [1])[0] // group]


def _position(
    t: Builder,
    moved: Value,
    i: int,
    kernel: Sequence[int],
    outputs: Sequence[Size],
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> Value:
    """Where every tap of every window reads along axis `i`: `[images, taps, positions]`."""
    n = len(kernel)
    away = t.op("Squeeze", t.op("Slice", moved, t.ints(i), t.ints(i + 1), t.ints(2)), t.ints(2))
    inner = np.indices(kernel)[i].reshape(1, -1, 1) * (dilations[i] if dilations else 1) - (pads[i] if pads else 0)
    line = t.cast(numbers(t, outputs[i]), away.dtype) * float(strides[i] if strides else 1)
    line = reshape(t, line, [-1 if j == i else 1 for j in range(n)])
    grid = t.op("Expand", line, vector(t, outputs), shape=(None,) * n)
    return away + t.const(inner, away.dtype) + reshape(t, grid, [1, 1, -1])

"""Sampling on grids: the image gets back what was read of it, the grid the slope of what it read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sampling import Tap, by_image, by_position, cubic_taps, linear_taps, size_value
from ._sizes import reshape, sizes


@vjp("GridSample")
def grid_sample(
    t: Builder,
    g: Value,
    y: Value,
    x: Value,
    grid: Value,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Sequence[Cotangent]:
    """Interpolation written out; nearest has no slope."""
    axes = range(2, x.rank)
    cubic = mode in {"cubic", "bicubic"}
    (n,) = sizes(t, grid, [0])
    cotangent = reshape(t, g, [*sizes(t, y, [0, 1]), -1])
    taps: list[list[Tap]] = []
    slopes: list[Value] = []
    for i, size in enumerate(sizes(t, x, axes)):
        # The grid's last dimension names the axes from the last to the first.
        column = x.rank - 3 - i
        normalised = t.op("Slice", grid, t.ints(column), t.ints(column + 1), t.ints(grid.rank - 1))
        length = size_value(t, size, grid)
        reach = length - 1.0 if align_corners else length
        position = ((reshape(t, normalised, [n, -1]) + 1.0) * reach - (0.0 if align_corners else 1.0)) * 0.5
        if mode == "nearest":
            position = t.op("Round", position)
        # Cubic interpolation clamps neighbours only, in ONNX Runtime as in PyTorch.
        clamped = "zeros" if cubic and padding_mode == "border" else padding_mode
        position, slope = _into(t, position, length, clamped, align=bool(align_corners))
        slopes.append(slope * reach * 0.5)
        if mode == "nearest":
            along = [Tap(position, t.full_like(position, 1.0), t.full_like(position, 0.0))]
        else:
            along = (cubic_taps if cubic else linear_taps)(t, position)
        if padding_mode != "zeros":
            along = [
                replace(tap, index=_into(t, tap.index, length, padding_mode, align=bool(align_corners), whole=True)[0])
                for tap in along
            ]
        taps.append(along)

    def by_grid() -> Value:
        if mode == "nearest":
            return t.full_like(grid, 0.0)
        parts = [a * b for a, b in zip(by_position(t, cotangent, x, taps), slopes, strict=True)]
        last = t.ints(2)
        return t.reshape_like(t.op("Concat", *(t.op("Unsqueeze", p, last) for p in reversed(parts)), axis=2), grid)

    return [lambda: by_image(t, cotangent, x, taps), by_grid]


def _into(
    t: Builder,
    v: Value,
    length: Value,
    padding: str,
    *,
    align: bool,
    whole: bool = False,
) -> tuple[Value, Value]:
    """A position brought into the image as `padding` says, and its derivative by where it was.

    Args:
        t: the builder.
        v: positions, or with `whole` the indices of neighbours.
        length: the size of the axis.
        padding: `zeros`, `border` or `reflection`.
        align: reflect about the centres of the outermost elements, not their outer edges.
        whole: neighbours are clamped to elements, positions only where they leave the outermost element.
    """
    one = t.full_like(v, 1.0)
    if padding == "zeros":
        return v, one
    zero = t.const(0, v.dtype)
    if padding == "border":
        inside = t.op("Clip", v, zero, length - 1.0)
        return inside, t.op("Where", t.op("Equal", inside, v), one, 0.0)
    low = 0.0 if align else -0.5
    reach = length - 1.0 if align else length
    # An image one element wide reflects every position to that element.
    period = t.op("Max", reach * 2.0, t.const(1e-6, v.dtype))
    offset = v - low
    phase = t.op("Mod", t.op("Abs", offset), period, fmod=1)
    back = phase > reach
    folded = t.op("Where", back, period - phase, phase) + low
    if whole:
        folded = t.op("Clip", t.op("Round", folded), zero, length - 1.0)
    slope = t.op("Where", back, -one, one) * t.op("Where", offset < 0.0, -one, one)
    return folded, slope


@vjp("AffineGrid")
def affine_grid(
    t: Builder, g: Value, y: Value, theta: Value, size: Value, *, align_corners: int = 0
) -> Sequence[Cotangent]:
    """The cotangent summed against the plain grid, which the operator gives for unit matrices."""

    def back() -> Value:
        n = y.rank - 2
        columns = n + 1
        units = np.zeros((columns, n, columns))
        units[:, 0, :] = np.eye(columns)
        shape = t.op("Concat", t.ints(columns), t.op("Slice", size, t.ints(1), t.ints(n + 2), t.ints(0)), axis=0)
        plain = t.op(
            "AffineGrid", t.const(units, theta.dtype), shape, align_corners=align_corners, shape=(columns, *y.shape[1:])
        )
        first = t.op("Slice", plain, t.ints(0), t.ints(1), t.ints(y.rank - 1))
        base = t.transpose(reshape(t, first, [columns, -1]), (1, 0))
        (batch,) = sizes(t, g, [0])
        return t.op("MatMul", t.transpose(reshape(t, g, [batch, -1, n]), (0, 2, 1)), base)

    return [back, None]

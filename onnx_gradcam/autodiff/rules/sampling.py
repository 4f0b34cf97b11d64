"""Rules of sampling at computed positions: grids and deformable convolutions.

Interpolation has two gradients. By the image, every neighbour of a position gets back its share; by the position, the
slope of the interpolated value counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, numbers, reshape, sizes, vector
from .indexing import scatter_add

__all__ = ["Tap", "by_image", "by_position", "cubic_taps", "linear_taps", "read", "size_value"]

_CUBIC = -0.75
"""The parameter of the cubic kernel (Keys 1981), the same in every framework."""


@dataclass(frozen=True)
class Tap:
    """One neighbour of a position along one axis; every field is a tensor of the positions' shape.

    `index` is an integer of the coordinates' own type, which can be outside of the image; `weight` is its share in the
    interpolated value, `slope` the derivative of the share by the position.
    """

    index: Value
    weight: Value
    slope: Value


def size_value(t: Builder, size: Size, like: Value) -> Value:
    """A dimension as a scalar of the type of `like`."""
    if size.known is not None:
        return t.const(size.known, like.dtype)
    return t.cast(t.op("Squeeze", size.vector(), t.ints(0)), like.dtype)


def linear_taps(t: Builder, position: Value) -> list[Tap]:
    """The two neighbours of linear interpolation."""
    first = t.op("Floor", position)
    share = position - first
    one = t.full_like(share, 1.0)
    return [Tap(first, 1.0 - share, -one), Tap(first + 1.0, share, one)]


def cubic_taps(t: Builder, position: Value) -> list[Tap]:
    """The four neighbours of cubic convolution (Keys 1981, eq. 8)."""
    a = _CUBIC
    first = t.op("Floor", position)
    f = position - first

    def outer(z: Value) -> tuple[Value, Value]:
        return ((z * a - 5 * a) * z + 8 * a) * z - 4 * a, (z * (3 * a) - 10 * a) * z + 8 * a

    def inner(z: Value) -> tuple[Value, Value]:
        return (z * (a + 2) - (a + 3)) * z * z + 1.0, (z * (3 * (a + 2)) - 2 * (a + 3)) * z

    shares = [outer(f + 1.0), inner(f), inner(1.0 - f), outer(2.0 - f)]
    signs = (1.0, 1.0, -1.0, -1.0)
    return [
        Tap(first + float(i - 1), weight, slope * sign)
        for i, ((weight, slope), sign) in enumerate(zip(shares, signs, strict=True))
    ]


@dataclass(frozen=True)
class _Corner:
    """One combination of taps: the position it reads, its share, and the share's derivative along each axis."""

    position: Value
    weight: Value
    slopes: list[Value]


def _corners(t: Builder, taps: Sequence[Sequence[Tap]], dims: Sequence[Size]) -> list[_Corner]:
    """Every combination of one tap an axis; `dims` are the image's spatial dimensions.

    A neighbour outside of the image reads an element inside, with the share zero.
    """
    inside = []
    for along, size in zip(taps, dims, strict=True):
        last = size_value(t, size, along[0].index) - 1.0
        column = []
        for tap in along:
            index = t.op("Clip", tap.index, t.const(0, tap.index.dtype), last)
            valid = t.op("Equal", index, tap.index)
            weight, slope = (t.op("Where", valid, v, 0.0) for v in (tap.weight, tap.slope))
            column.append(Tap(t.cast(index, np.int64), weight, slope))
        inside.append(column)
    corners = []
    for combination in itertools.product(*inside):
        position, weight = combination[0].index, combination[0].weight
        for tap, size in zip(combination[1:], dims[1:], strict=True):
            position = position * size.vector() + tap.index
            weight = weight * tap.weight
        slopes = []
        for i, tap in enumerate(combination):
            slope = tap.slope
            for j, other in enumerate(combination):
                slope = slope if i == j else slope * other.weight
            slopes.append(slope)
        corners.append(_Corner(position, weight, slopes))
    return corners


def _over_channels(t: Builder, position: Value, x: Value) -> Value:
    """`[N, Q]` indices as `[N, C, Q]`."""
    (n, q), (c,) = sizes(t, position), sizes(t, x, [1])
    shape = (n.known, c.known, q.known)
    return t.op("Expand", t.op("Unsqueeze", position, t.ints(1)), vector(t, [n, c, q]), shape=shape)


def by_image(t: Builder, g: Value, x: Value, taps: Sequence[Sequence[Tap]]) -> Value:
    """The gradient by the image `x`, `[N, C, *spatial]`: every neighbour gets its share of `g`, `[N, C, Q]`.

    `taps` are, for each spatial axis, the neighbours of the `[N, Q]` positions.
    """
    n, c, *dims = sizes(t, x)
    corners = _corners(t, taps, dims)
    axis = t.ints(1)
    positions = [_over_channels(t, corner.position, x) for corner in corners]
    shares = [g * t.op("Unsqueeze", corner.weight, axis) for corner in corners]
    flat = t.full_like(reshape(t, x, [n, c, -1]), 0.0)
    if len(corners) > 1:
        positions, shares = [t.op("Concat", *positions, axis=2)], [t.op("Concat", *shares, axis=2)]
    return t.reshape_like(scatter_add(t, flat, positions[0], shares[0], 2), x)


def by_position(t: Builder, g: Value, x: Value, taps: Sequence[Sequence[Tap]]) -> list[Value]:
    """The gradient by the positions, `[N, Q]` for each spatial axis, summed over channels; see `by_image`."""
    n, c, *dims = sizes(t, x)
    flat = reshape(t, x, [n, c, -1])
    terms: list[list[Value]] = [[] for _ in dims]
    for corner in _corners(t, taps, dims):
        value = t.op("GatherElements", flat, _over_channels(t, corner.position, x), axis=2)
        change = t.sum(g * value, [1], keepdims=False)
        for i, slope in enumerate(corner.slopes):
            terms[i].append(change * slope)
    return [t.op("Sum", *along) for along in terms]


def read(t: Builder, x: Value, taps: Sequence[Sequence[Tap]]) -> Value:
    """The interpolated values, `[N, C, Q]`."""
    n, c, *dims = sizes(t, x)
    flat = reshape(t, x, [n, c, -1])
    parts = []
    for corner in _corners(t, taps, dims):
        value = t.op("GatherElements", flat, _over_channels(t, corner.position, x), axis=2)
        parts.append(value * t.op("Unsqueeze", corner.weight, t.ints(1)))
    return t.op("Sum", *parts)


@vjp("GridSample")
def grid_sample(
    t: Builder, g: Value, y: Value, x: Value, grid: Value,
    *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros",
) -> Sequence[Cotangent]:  # fmt: skip
    """Interpolation in plain operators; `nearest` has no slope."""
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
    t: Builder, v: Value, length: Value, padding: str, *, align: bool, whole: bool = False
) -> tuple[Value, Value]:
    """A position moved into the image according to `padding`, and its derivative by the position before.

    With `align`, reflection is at the centres of the outermost elements, not at their outer edges. With `whole`, `v`
    are indices of neighbours, clamped to the centres of elements.
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
    """The cotangent times the plain grid, which the operator returns for unit matrices."""

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


@vjp("DeformConv")
def deform_conv(
    t: Builder, g: Value, y: Value, x: Value, w: Value, offset: Value, b: Value | None = None,
    mask: Value | None = None,
    *, dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1, pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Sequence[Cotangent]:  # fmt: skip
    """Zhu et al. 2019 (arXiv:1811.11168), eq. 1, differentiated by the image, the weight, the offsets and the mask."""
    n = x.rank - 2
    kernel = list(kernel_shape or w.dims("the VJP rule of DeformConv")[2:])
    count = math.prod(kernel)
    batch, channels, *_ = sizes(t, x)
    outputs = sizes(t, y, range(2, y.rank))
    images = batch * offset_group
    # From here on, every offset group is an image of its own.
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
    """The number of output channels in a group."""
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
    """The position that every tap of every window reads along axis `i`: `[images, taps, positions]`."""
    n = len(kernel)
    away = t.op("Squeeze", t.op("Slice", moved, t.ints(i), t.ints(i + 1), t.ints(2)), t.ints(2))
    inner = np.indices(kernel)[i].reshape(1, -1, 1) * (dilations[i] if dilations else 1) - (pads[i] if pads else 0)
    line = t.cast(numbers(t, outputs[i]), away.dtype) * float(strides[i] if strides else 1)
    line = reshape(t, line, [-1 if j == i else 1 for j in range(n)])
    grid = t.op("Expand", line, vector(t, outputs), shape=(None,) * n)
    return away + t.const(inner, away.dtype) + reshape(t, grid, [1, 1, -1])

"""Interpolation at computed positions, and its two gradients: by the image and by the positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import Size, reshape, sizes, vector
from .scatter import scatter_add

__all__ = ["Tap", "by_image", "by_position", "cubic_taps", "linear_taps", "read", "size_value"]

_CUBIC = -0.75
"""The parameter of the cubic kernel (Keys 1981), the same in every framework."""


@dataclass(frozen=True)
class Tap:
    """One neighbour of a position along one axis; every field is a tensor of the positions' shape.

    Attributes:
        index: the neighbour, as an integer of the coordinates' own type; it may lie outside.
        weight: its share in the interpolated value.
        slope: the derivative of the share by the position.
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
    """One combination of taps: where it reads, with which share, and the share's derivative along each axis."""

    place: Value
    weight: Value
    slopes: list[Value]


def _corners(t: Builder, taps: Sequence[Sequence[Tap]], dims: Sequence[Size]) -> list[_Corner]:
    """Every combination of one tap an axis; `dims` are the image's spatial dimensions.

    A neighbour outside of the image reads some element with the share zero.
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
        place, weight = combination[0].index, combination[0].weight
        for tap, size in zip(combination[1:], dims[1:], strict=True):
            place = place * size.vector() + tap.index
            weight = weight * tap.weight
        slopes = []
        for i, tap in enumerate(combination):
            slope = tap.slope
            for j, other in enumerate(combination):
                slope = slope if i == j else slope * other.weight
            slopes.append(slope)
        corners.append(_Corner(place, weight, slopes))
    return corners


def _spread_places(t: Builder, place: Value, x: Value) -> Value:
    """`[N, Q]` indices as `[N, C, Q]`."""
    (n, q), (c,) = sizes(t, place), sizes(t, x, [1])
    known = (n.known, c.known, q.known)
    return t.op("Expand", t.op("Unsqueeze", place, t.ints(1)), vector(t, [n, c, q]), shape=known)


def by_image(t: Builder, g: Value, x: Value, taps: Sequence[Sequence[Tap]]) -> Value:
    """The gradient by the image: every neighbour gets its share.

    Args:
        t: the builder.
        g: the cotangent of the interpolated values, `[N, C, Q]`.
        x: the image, `[N, C, *spatial]`.
        taps: for each spatial axis the neighbours of the `[N, Q]` positions.
    """
    n, c, *dims = sizes(t, x)
    corners = _corners(t, taps, dims)
    axis = t.ints(1)
    places = [_spread_places(t, corner.place, x) for corner in corners]
    shares = [g * t.op("Unsqueeze", corner.weight, axis) for corner in corners]
    flat = t.full_like(reshape(t, x, [n, c, -1]), 0.0)
    if len(corners) > 1:
        places, shares = [t.op("Concat", *places, axis=2)], [t.op("Concat", *shares, axis=2)]
    return t.reshape_like(scatter_add(t, flat, places[0], shares[0], 2), x)


def by_position(t: Builder, g: Value, x: Value, taps: Sequence[Sequence[Tap]]) -> list[Value]:
    """The gradient by the positions, `[N, Q]` for each spatial axis, summed over channels; see `by_image`."""
    n, c, *dims = sizes(t, x)
    flat = reshape(t, x, [n, c, -1])
    terms: list[list[Value]] = [[] for _ in dims]
    for corner in _corners(t, taps, dims):
        value = t.op("GatherElements", flat, _spread_places(t, corner.place, x), axis=2)
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
        value = t.op("GatherElements", flat, _spread_places(t, corner.place, x), axis=2)
        parts.append(value * t.op("Unsqueeze", corner.weight, t.ints(1)))
    return t.op("Sum", *parts)

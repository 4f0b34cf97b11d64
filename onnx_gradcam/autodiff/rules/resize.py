"""The rule of Resize, which is linear in the image along each axis: its gradient is a product with two small matrices.

The matrix of an axis is the Resize of the identity. So no interpolation formula is repeated here, and every mode is
served, present or future.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.errors import UnsupportedError
from onnx_gradcam.graph.builder import Builder, Value

from ._sizes import contract, identity, reshape, sizes, vector

_REPEATS = {
    ("asymmetric", "floor"),
    ("tf_half_pixel_for_nn", "floor"),
    *(
        (c, r)
        for c in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
        for r in ("round_prefer_floor", "round_prefer_ceil")
    ),
}
"""Coordinate and rounding modes in which a whole factor repeats every element that many times."""


@vjp("Resize", stops=(1, 2))
def resize(
    t: Builder, g: Value, y: Value, x: Value, roi: Value | None = None, scales: Value | None = None,
    lengths: Value | None = None,
    *, antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Sequence[Cotangent]:  # fmt: skip
    """R_h^T dY R_w with R = Resize(identity)."""
    over = [a % x.rank for a in axes] if axes is not None else list(range(x.rank))
    attributes = {
        "antialias": antialias,
        "coordinate_transformation_mode": coordinate_transformation_mode,
        "cubic_coeff_a": cubic_coeff_a,
        "exclude_outside": exclude_outside,
        "mode": mode,
        "nearest_mode": nearest_mode,
    }
    cropped = coordinate_transformation_mode == "tf_crop_and_resize"
    scales = None if scales is None or scales.shape == (0,) else scales
    to = _Target(x, y, over, roi if cropped else None, scales, lengths, keep_aspect_ratio_policy)
    moved = [i for i in range(len(over)) if _changes(to, i)]
    if mode == "nearest" and (coordinate_transformation_mode, nearest_mode) in _REPEATS:
        kernel = _repeats(to, moved)
        if kernel is not None:
            mean = t.op("AveragePool", g, kernel_shape=kernel, strides=kernel, shape=x.shape)
            return [mean * float(math.prod(kernel)), None, None, None]

    def back() -> Value:
        total = g
        for i in reversed(moved):
            total = contract(t, total, _matrix(t, to, i, attributes), over[i])
        return total

    return [back, None, None, None]


@dataclass(frozen=True)
class _Target:
    """The target of a Resize; entry `i` of the operands belongs to axis `over[i]`.

    `roi` is `None` for modes that ignore it; one of `scales` and `lengths` is `None`; `policy` says how `lengths`
    change to keep the aspect ratio.
    """

    x: Value
    y: Value
    over: list[int]
    roi: Value | None
    scales: Value | None
    lengths: Value | None
    policy: str


def _changes(to: _Target, i: int) -> bool:
    """Whether the operator can change anything along `over[i]`."""
    if to.roi is not None:
        region = to.roi.array()
        if region is None or (region[i], region[i + len(to.over)]) != (0, 1):
            return True
    before, after = to.x.shape[to.over[i]], to.y.shape[to.over[i]]
    if to.scales is None:
        return to.policy != "stretch" or before is None or before != after
    factors = to.scales.array()
    if factors is None:
        # A factor just above one keeps a dimension's size and still interpolates; no model has one for the batch.
        return to.over[i] > 1 or before is None or before != after
    return bool(factors[i] != 1)


def _repeats(to: _Target, moved: Sequence[int]) -> list[int] | None:
    """How many times each spatial axis repeats its elements; `None` for other changes."""
    kernel = [1] * (to.x.rank - 2)
    if not 1 <= len(kernel) <= 3 or to.policy != "stretch" or not moved:
        return None
    factors = None if to.scales is None else to.scales.array()
    for i in moved:
        axis = to.over[i]
        before, after = to.x.shape[axis], to.y.shape[axis]
        if factors is not None:
            factor = float(factors[i])
        elif to.scales is None and isinstance(before, int) and isinstance(after, int) and before:
            factor = after / before
        else:
            return None
        if axis < 2 or factor < 1 or factor != int(factor):
            return None
        kernel[axis - 2] = int(factor)
    return kernel


def _matrix(t: Builder, to: _Target, i: int, attributes: dict[str, Any]) -> Value:
    """The Resize of the identity along axis `over[i]`, `[output, input]`, in a layout that all runtimes interpolate."""
    (size,), (result,) = sizes(t, to.x, [to.over[i]]), sizes(t, to.y, [to.over[i]])
    every = identity(t, size, to.x.dtype)
    if to.policy != "stretch" and to.lengths is not None:
        return _bent_matrix(t, to, i, every, attributes)
    roi = scales = lengths = None
    if to.roi is not None:
        ends = [_entry(t, to.roi, i), _entry(t, to.roi, i + len(to.over))]
        zero, one = (t.const(np.array([v], to.roi.dtype)) for v in (0, 1))
        roi = t.op("Concat", zero, zero, ends[0], zero, one, one, ends[1], one, axis=0)
    if to.scales is not None:
        one = t.const(np.ones(1, np.float32))
        scales = t.op("Concat", one, one, t.cast(_entry(t, to.scales, i), np.float32), one, axis=0)
    else:
        lengths = vector(t, [1, 1, result, size])
    image = reshape(t, every, [1, 1, size, size])
    resized = t.op("Resize", image, roi, scales, lengths, shape=(1, 1, None, None), **attributes)
    return reshape(t, resized, [-1 if result.known is None else result, size])


def _entry(t: Builder, values: Value, i: int) -> Value:
    array = values.array()
    if array is not None:
        return t.const(array[i : i + 1])
    return t.op("Slice", values, t.ints(i), t.ints(i + 1), t.ints(0))


def _bent_matrix(t: Builder, to: _Target, i: int, every: Value, attributes: dict[str, Any]) -> Value:
    """The matrix where one axis decides the factor of all: resize that axis as well, and keep one line of it."""
    lengths = None if to.lengths is None else to.lengths.array()
    dims = [to.x.shape[axis] for axis in to.over]
    if lengths is None or not all(isinstance(d, int) and d for d in dims):
        raise UnsupportedError(
            f"the VJP rule of Resize needs fixed sizes for keep_aspect_ratio_policy={to.policy!r}, but "
            f"{to.x.name!r} is {list(to.x.shape)}; export the model with fixed sizes"
        )
    before = [d for d in dims if isinstance(d, int)]
    ratios = [int(after) / d for after, d in zip(lengths, before, strict=True)]
    leader = ratios.index(min(ratios) if to.policy == "not_larger" else max(ratios))
    column = t.op("Unsqueeze", every, t.ints(1, 3))
    image = t.op("Expand", column, t.ints(before[i], 1, before[i], before[leader]))
    resized = t.op(
        "Resize",
        image,
        None,
        None,
        t.ints(int(lengths[i]), int(lengths[leader])),
        axes=[2, 3],
        keep_aspect_ratio_policy=to.policy,
        shape=(None,) * 4,
        **attributes,
    )
    line = t.op("Squeeze", t.op("Slice", resized, t.ints(0), t.ints(1), t.ints(3)), t.ints(1, 3))
    return t.transpose(line, (1, 0))

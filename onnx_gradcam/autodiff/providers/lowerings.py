"""Lowerings: operators that a runtime lacks, computed by operators that it has, with the same numbers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Cotangent, RuleFunction, Table, attributes
from onnx_gradcam.autodiff.rules._sizes import reshape, sizes, vector
from onnx_gradcam.autodiff.rules._windows import Windows, spread, windows
from onnx_gradcam.autodiff.rules.convolution import gather as slide
from onnx_gradcam.autodiff.rules.pooling import route_through, stages
from onnx_gradcam.graph.builder import Builder, Value

from .conform import Lowering

__all__ = [
    "ARITHMETIC",
    "BOOLEANS",
    "NEARLY_ZERO",
    "is_zero",
    "lowering",
    "pool",
    "pools_by_convolution",
    "volume",
]

ARITHMETIC: dict[str, Lowering] = {}
"""Arithmetic and layout, by similar operators."""

BOOLEANS: dict[str, Lowering] = {}
"""Logic on Booleans, by arithmetic on numbers."""

NEARLY_ZERO = -1e-38
"""The offset of a HardSigmoid that starts at zero: OpenVINO reads an offset of exactly zero as the default, 0.5."""

Function = TypeVar("Function", bound=Callable[..., Value | None])


def lowering(table: dict[str, Lowering], *op_types: str) -> Callable[[Function], Function]:
    """Register `function(t, *inputs, **attributes)`, which has the signature of `op_types`."""

    def register(function: Function) -> Function:
        def lower(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> Value | None:
            value = function(t, *inputs, **attributes(node))
            if value is not None and (shape := t.wrap(node.outputs[0]).known_shape) is not None:
                t.refine(value, shape)
            return value

        table.update(dict.fromkeys(op_types, lower))
        return function

    return register


@lowering(ARITHMETIC, "Sum")
def total(t: Builder, *xs: Value) -> Value:
    """Additions of two tensors, one after another."""
    return functools.reduce(Value.__add__, xs)


@lowering(ARITHMETIC, "Neg")
def negative(t: Builder, x: Value) -> Value:
    """Times minus one."""
    return x * -1.0


@lowering(ARITHMETIC, "Reciprocal")
def reciprocal(t: Builder, x: Value) -> Value:
    """One divided by the tensor."""
    return 1.0 / x


@lowering(ARITHMETIC, "Size")
def number_of_elements(t: Builder, x: Value) -> Value:
    """The product of the shape."""
    return t.op("ReduceProd", t.op("Shape", x), keepdims=0)


@lowering(ARITHMETIC, "ReduceL1")
def sum_of_magnitudes(t: Builder, x: Value, axes: Value | None = None, **options: Any) -> Value:
    """The sum of absolute values."""
    return t.op("ReduceSum", t.op("Abs", x), axes, **options)


@lowering(ARITHMETIC, "ReduceL2")
def root_of_squares(t: Builder, x: Value, axes: Value | None = None, **options: Any) -> Value:
    """The square root of the sum of squares."""
    return t.op("Sqrt", t.op("ReduceSum", x * x, axes, **options))


@lowering(ARITHMETIC, "Softplus")
def softplus(t: Builder, x: Value) -> Value:
    """The logarithm of 1 + e^x, without overflow."""
    return t.op("Relu", x) + t.op("Log", t.op("Exp", t.op("Abs", x) * -1.0) + 1.0)


@lowering(ARITHMETIC, "Flatten")
def flatten(t: Builder, x: Value, *, axis: int = 1) -> Value | None:
    """A Reshape, where one of the two dimensions is known."""
    axis = axis % x.rank if axis != x.rank else axis
    lead, tail = (volume(part) for part in (x.shape[:axis], x.shape[axis:]))
    if lead is None and tail is None:
        return None
    return reshape(t, x, [-1 if lead is None else lead, tail if tail is not None else -1])


@lowering(ARITHMETIC, "ScatterElements")
def placed(
    t: Builder, base: Value, indices: Value, values: Value, *, axis: int = 0, reduction: str = "none"
) -> Value | None:
    """One number for each line of zeros, by comparing all places with its index."""
    size, node = base.shape[axis], base.core.producer()
    filled = base if node is None or node.op_type != "Expand" or node.inputs[0] is None else t.wrap(node.inputs[0])
    if not is_zero(filled) or reduction not in {"none", "add"} or indices.shape[axis] != 1 or not isinstance(size, int):
        return None
    every = np.arange(size, dtype=np.int64).reshape([-1 if i == axis % base.rank else 1 for i in range(base.rank)])
    # An index below zero counts from the end.
    here, behind = (t.op("Equal", indices, t.const(every - shift)) for shift in (0, size))
    zero = t.const(0, values.dtype)
    return t.op("Where", here, values, t.op("Where", behind, values, zero))


def volume(dims: Sequence[int | str | None]) -> int | None:
    """The product of dimensions; `None` where one is unknown."""
    return int(np.prod([d for d in dims if isinstance(d, int)])) if all(isinstance(d, int) for d in dims) else None


@lowering(ARITHMETIC, "SpaceToDepth")
def space_to_depth(t: Builder, x: Value, *, blocksize: int, mode: str = "DCR") -> Value | None:
    """Sort rows, then columns, into their phases, in at most five dimensions."""
    if mode != "DCR":
        return None
    s = blocksize
    n, c, h, w = sizes(t, x)
    rows = t.transpose(reshape(t, x, [n, c, h // s, s, w]), [0, 3, 1, 2, 4])
    columns = t.transpose(reshape(t, rows, [n, c * s, h // s, w // s, s]), [0, 4, 1, 2, 3])
    paired = t.transpose(reshape(t, columns, [n, s, s, c, (h // s) * (w // s)]), [0, 2, 1, 3, 4])
    return reshape(t, paired, [n, c * (s * s), h // s, w // s])


@lowering(BOOLEANS, "And")
def both(t: Builder, a: Value, b: Value) -> Value:
    """The product."""
    return t.cast(t.cast(a, np.float32) * t.cast(b, np.float32), np.bool_)


@lowering(BOOLEANS, "Sign")
def sign(t: Builder, x: Value) -> Value:
    """One where positive, minus one where negative."""
    return t.cast(x > 0.0, x.dtype) - t.cast(x < 0.0, x.dtype)


@lowering(BOOLEANS, "Max")
def at_least(t: Builder, x: Value, bound: Value) -> Value | None:
    """A Clip, where the bound is a constant number."""
    return t.op("Clip", x, bound) if bound.rank == 0 and bound.array() is not None else None


def is_zero(x: Value) -> bool:
    """Whether `x` is the constant number zero."""
    content = x.array() if x.rank == 0 else None
    return content is not None and not content.any()


def pool(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> Value | None:
    """A pool over one or three dimensions as a pool over two: over a row, or over planes flattened to rows."""
    x, options = inputs[0], attributes(node)
    if x is None or len(node.outputs) != 1 or x.rank not in {3, 5}:
        return None
    whole = t.wrap(node.outputs[0])
    wide = _flat(t, x, options) if x.rank == 5 else _row(t, x, options)
    return None if wide is None else t.reshape_like(t.op(node.op_type, wide, **options), whole)


def _row(t: Builder, x: Value, options: dict[str, Any]) -> Value:
    """A line as a row of height one; changes `options` accordingly."""
    for name, one in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in options:
            values = list(options[name])
            options[name] = [one, values[0]] if name != "pads" else [0, values[0], 0, values[1]]
    return t.op("Unsqueeze", x, t.ints(2))


def _flat(t: Builder, x: Value, options: dict[str, Any]) -> Value | None:
    """A volume with its planes flattened, where only the depth is pooled; changes `options` accordingly."""
    defaults = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
    for name, one in defaults.items():
        if name in options:
            values = list(options[name])
            begin, end = values[:3], values[3:]
            if set(begin[1:] + end[1:]) != {one}:
                return None
            options[name] = [begin[0], one] + ([end[0], one] if end else [])
    n, c, d, h, w = sizes(t, x)
    return reshape(t, x, [n, c, d, h * w]) if options.get("auto_pad", "NOTSET") == "NOTSET" else None


def pools_by_convolution(table: Table) -> Table:
    """`table` with a rule for MaxPool that handles all taps at once with numbers, whatever the kernel size.

    The registered rule handles one tap after another with Booleans. This one is for runtimes that have no logic, cannot
    pad with minus infinity, or pay for the launch of every operator. Gradients are equal for finite images.
    """
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
        return [lambda: route_through(t, g, y, x, stages(over), auto_pad, _route_by_convolution)]

    return max_pool


def _route_by_convolution(t: Builder, g: Value, y: Value, x: Value, over: Windows) -> Value:
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
    hits = t.cast(t.op("Equal", slide(t, image, one_hot, top, over, 1), top), x.dtype)
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
    return slide(t, ones, one_hot, top, over, 1)

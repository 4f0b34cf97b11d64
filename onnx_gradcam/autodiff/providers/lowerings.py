"""Lowerings: operators that a runtime lacks, computed by operators that it has, with the same numbers.

Truth values come in two forms. Where a runtime compares (WebGPU), they stay Booleans, and only And is computed with
numbers. Where it does not (CoreML), a comparison becomes a mask, a floating-point tensor of zeros and ones, with which
the nodes that read it compute.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import Cotangent, RuleFunction, Table, attributes
from onnx_gradcam.autodiff.rules._sizes import Size, reshape, sizes, vector
from onnx_gradcam.autodiff.rules._windows import Windows, spread, windows
from onnx_gradcam.autodiff.rules.convolution import gather as slide
from onnx_gradcam.autodiff.rules.pooling import route_through, stages
from onnx_gradcam.graph.builder import Builder, Value

from .conform import Lowering

__all__ = [
    "ARITHMETIC",
    "BOOLEANS",
    "MASKS",
    "NEARLY_ZERO",
    "PLANES",
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

MASKS: dict[str, Lowering] = {}
"""Comparisons, logic and Where without Booleans."""

PLANES: dict[str, Lowering] = {}
"""Layout and convolutions, by what CoreML computes: images of two dimensions and constant weights."""

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


def step(t: Builder, x: Value) -> Value:
    """One where `x` is positive, else zero: a clipped ramp, so steep that two of them take any number to one."""
    slope = 6e4 if x.dtype == np.float16 else 3e38
    return t.op("HardSigmoid", t.op("HardSigmoid", x, alpha=slope, beta=NEARLY_ZERO), alpha=slope, beta=NEARLY_ZERO)


def _difference(a: Value, b: Value) -> Value:
    """`a - b`, or `a` where `b` is the constant zero."""
    constant = b.array()
    return a if constant is not None and constant.size == 1 and b.rank <= a.rank and not constant.any() else a - b


@lowering(MASKS, "Greater")
def mask_greater(t: Builder, a: Value, b: Value) -> Value | None:
    """One where the difference is positive."""
    return step(t, _difference(a, b)) if a.is_float else None


@lowering(MASKS, "Less")
def mask_less(t: Builder, a: Value, b: Value) -> Value | None:
    """One where the reversed difference is positive."""
    return step(t, b - a) if a.is_float else None


@lowering(MASKS, "GreaterOrEqual")
def mask_not_less(t: Builder, a: Value, b: Value) -> Value | None:
    """One minus Less."""
    return 1.0 - step(t, b - a) if a.is_float else None


@lowering(MASKS, "LessOrEqual")
def mask_not_greater(t: Builder, a: Value, b: Value) -> Value | None:
    """One minus Greater."""
    return 1.0 - step(t, _difference(a, b)) if a.is_float else None


@lowering(MASKS, "Equal")
def mask_equal(t: Builder, a: Value, b: Value) -> Value | None:
    """One minus both Greater and Less."""
    if not a.is_float:
        return None
    difference = _difference(a, b)
    return 1.0 - t.op("Max", step(t, difference), step(t, difference * -1.0))


@lowering(MASKS, "And")
def mask_and(t: Builder, a: Value, b: Value) -> Value | None:
    """The product."""
    return a * b if a.is_float and b.is_float else None


@lowering(MASKS, "Where")
def choose(t: Builder, mask: Value, a: Value, b: Value) -> Value | None:
    """Each tensor times its mask, which is right for finite numbers."""
    if not a.is_float:
        return None
    mask = t.cast(mask, a.dtype)
    if is_zero(b):
        return a * mask
    return b - b * mask if is_zero(a) else a * mask + b * (1.0 - mask)


def is_zero(x: Value) -> bool:
    """Whether `x` is the constant number zero."""
    content = x.array() if x.rank == 0 else None
    return content is not None and not content.any()


@lowering(MASKS, "Sign")
def mask_sign(t: Builder, x: Value) -> Value:
    """One where positive, minus one where negative."""
    return step(t, x) - step(t, x * -1.0)


@lowering(MASKS, "Abs")
def magnitude(t: Builder, x: Value) -> Value:
    """The larger of the tensor and its negative."""
    return t.op("Max", x, x * -1.0)


@lowering(PLANES, "Expand")
def expand(t: Builder, x: Value, shape: Value) -> Value | None:
    """A Tile of the tensor, with leading dimensions added."""
    (rank,) = shape.dims("Expand")
    wide = x if x.rank >= rank else reshape(t, x, [1] * (rank - x.rank) + list(sizes(t, x)))
    target = shape.array()
    if target is None:
        if wide.rank > rank:
            return None
        # One of the two sizes is one, or they are equal.
        current = t.op("Max", t.op("Shape", wide), t.ints(1))
        return t.op("Tile", wide, t.op("Max", t.op("Div", shape, current), t.ints(1)))
    repeats = []
    for before, after in zip(wide.shape, [1] * (wide.rank - rank) + [int(d) for d in target], strict=True):
        if before != 1 and after not in {1, before}:
            return None
        repeats.append(after if before == 1 else 1)
    return t.op("Tile", wide, t.ints(*repeats))


@lowering(PLANES, "Pad")
def pad(
    t: Builder, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value | None:
    """Padding with zeros, by one convolution with a 1x1 kernel for each dimension."""
    amounts = pads.array()
    if mode != "constant" or amounts is None or axes is not None or (fill is not None and not is_zero(fill)):
        return None
    before, after = ([int(p) for p in part] for part in np.split(amounts, 2))
    if min(*before, *after) < 0:
        return None
    for i in range(x.rank):
        if not (before[i] or after[i]):
            continue
        dims, lead, tail = sizes(t, x), volume(x.shape[:i]), volume(x.shape[i + 1 :])
        if dims[i].known is None or 0 in x.shape or lead is tail is None:
            return None
        plane = reshape(t, x, [-1 if lead is None else lead, 1, dims[i], -1 if tail is None else tail])
        wider = t.op("Conv", plane, t.const(np.ones((1, 1, 1, 1)), x.dtype), pads=[before[i], 0, after[i], 0])
        padded: list[Size | int] = [*dims[:i], dims[i] + before[i] + after[i], *dims[i + 1 :]]
        free = [j for j, d in enumerate(x.shape) if not isinstance(d, int)]
        x = reshape(t, wider, [-1 if [j] == free else d for j, d in enumerate(padded)])
    return x


@lowering(PLANES, "Gather")
def gather(t: Builder, x: Value, indices: Value, *, axis: int = 0) -> Value | None:
    """A GatherND along the first dimension."""
    picked, axis = indices.array(), axis % x.rank
    size = x.shape[axis]
    if picked is None or picked.ndim != 1 or not isinstance(size, int):
        return None
    order = [axis, *(i for i in range(x.rank) if i != axis)]
    rows = t.op("GatherND", t.transpose(x, order), t.const((picked % size).reshape(-1, 1).astype(np.int64)))
    return t.transpose(rows, [int(i) for i in np.argsort(order)])


@lowering(PLANES, "Gemm")
def gemm(
    t: Builder,
    a: Value,
    b: Value,
    c: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    """A MatMul, which accepts a second matrix that is computed."""
    product = (t.transpose(a, [1, 0]) if transA else a) @ (t.transpose(b, [1, 0]) if transB else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


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


PLANES["AveragePool"] = PLANES["MaxPool"] = pool


@lowering(PLANES, "ConvTranspose")
def conv_transpose(t: Builder, x: Value, w: Value, b: Value | None = None, **options: Any) -> Value | None:
    """A ConvTranspose without `output_padding`; a Pad appends the rows that no window reaches."""
    extra = list(options.pop("output_padding", ()))
    if not extra or b is not None or w.array() is None or "output_shape" in options:
        return None
    n = len(extra)
    pads = list(options.get("pads") or [0] * (2 * n))
    late = [max(e - p, 0) for e, p in zip(extra, pads[n:], strict=True)]
    options["pads"] = pads[:n] + [max(p - e, 0) for e, p in zip(extra, pads[n:], strict=True)]
    full = t.op("ConvTranspose", x, w, **options)
    return t.op("Pad", full, t.ints(*[0] * (n + 2), 0, 0, *late)) if any(late) else full


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

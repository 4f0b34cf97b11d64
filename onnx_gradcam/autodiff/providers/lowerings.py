"""Operators computed by other operators, exactly: what some execution provider lacks in terms of what it has.

Truth values come in two forms. Where a provider compares (WebGPU), they stay Booleans and only And is computed by way
of numbers. Where it does not (CoreML), a comparison becomes a mask, a floating-point tensor of zeros and ones, and
whatever reads it computes with that.

Layout and convolutions by what CoreML computes: images of two dimensions, with constant weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import attributes
from onnx_gradcam.autodiff.rules._sizes import Size, reshape, sizes
from onnx_gradcam.graph.builder import Builder, Value

from .conform import Lowering

__all__ = ["ARITHMETIC", "BOOLEANS", "MASKS", "PLANES", "is_zero", "lowering", "pool", "volume"]

ARITHMETIC: dict[str, Lowering] = {}
"""Arithmetic and layout by their likes."""

BOOLEANS: dict[str, Lowering] = {}
"""Logic on Booleans by arithmetic on numbers."""

MASKS: dict[str, Lowering] = {}
"""Comparisons, logic and choice without Booleans."""


Function = TypeVar("Function", bound=Callable[..., Value | None])


def lowering(table: dict[str, Lowering], *op_types: str) -> Callable[[Function], Function]:
    """Register `function(t, *inputs, **attributes)`, whose signature is that of `op_types`."""

    def register(function: Function) -> Function:
        def lower(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> Value | None:
            found = function(t, *inputs, **attributes(node))
            if found is not None and (shape := t.wrap(node.outputs[0]).known_shape) is not None:
                t.refine(found, shape)
            return found

        table.update(dict.fromkeys(op_types, lower))
        return function

    return register


# ----- arithmetic ----------------------------------------------------------------


@lowering(ARITHMETIC, "Sum")
def total(t: Builder, *xs: Value) -> Value:
    """One after the other."""
    return functools.reduce(Value.__add__, xs)


@lowering(ARITHMETIC, "Neg")
def negative(t: Builder, x: Value) -> Value:
    """Times minus one."""
    return x * -1.0


@lowering(ARITHMETIC, "Reciprocal")
def reciprocal(t: Builder, x: Value) -> Value:
    """One over it."""
    return 1.0 / x


@lowering(ARITHMETIC, "Size")
def number_of_elements(t: Builder, x: Value) -> Value:
    """The product of the shape."""
    return t.op("ReduceProd", t.op("Shape", x), keepdims=0)


@lowering(ARITHMETIC, "ReduceL1")
def sum_of_sizes(t: Builder, x: Value, axes: Value | None = None, **options: Any) -> Value:
    """As its name says."""
    return t.op("ReduceSum", t.op("Abs", x), axes, **options)


@lowering(ARITHMETIC, "ReduceL2")
def root_of_squares(t: Builder, x: Value, axes: Value | None = None, **options: Any) -> Value:
    """As its name says."""
    return t.op("Sqrt", t.op("ReduceSum", x * x, axes, **options))


@lowering(ARITHMETIC, "Softplus")
def softplus(t: Builder, x: Value) -> Value:
    """The logarithm of 1 + e^x, without overflow."""
    return t.op("Relu", x) + t.op("Log", t.op("Exp", t.op("Abs", x) * -1.0) + 1.0)


@lowering(ARITHMETIC, "Flatten")
def flatten(t: Builder, x: Value, *, axis: int = 1) -> Value | None:
    """A Reshape, where one of the two sides is known."""
    axis = axis % x.rank if axis != x.rank else axis
    lead, tail = (volume(part) for part in (x.shape[:axis], x.shape[axis:]))
    if lead is None and tail is None:
        return None
    return reshape(t, x, [-1 if lead is None else lead, tail if tail is not None else -1])


def volume(dims: Sequence[int | str | None]) -> int | None:
    """The product of dimensions, where all are known."""
    return int(np.prod([d for d in dims if isinstance(d, int)])) if all(isinstance(d, int) for d in dims) else None


@lowering(ARITHMETIC, "SpaceToDepth")
def space_to_depth(t: Builder, x: Value, *, blocksize: int, mode: str = "DCR") -> Value | None:
    """Rows, then columns, are sorted into their phases, in no more than five dimensions."""
    if mode != "DCR":
        return None
    s = blocksize
    n, c, h, w = sizes(t, x)
    rows = t.transpose(reshape(t, x, [n, c, h // s, s, w]), [0, 3, 1, 2, 4])
    columns = t.transpose(reshape(t, rows, [n, c * s, h // s, w // s, s]), [0, 4, 1, 2, 3])
    paired = t.transpose(reshape(t, columns, [n, s, s, c, (h // s) * (w // s)]), [0, 2, 1, 3, 4])
    return reshape(t, paired, [n, c * (s * s), h // s, w // s])


# ----- truth values as Booleans --------------------------------------------------


@lowering(BOOLEANS, "And")
def both(t: Builder, a: Value, b: Value) -> Value:
    """The product."""
    return t.cast(t.cast(a, np.float32) * t.cast(b, np.float32), np.bool_)


@lowering(BOOLEANS, "Sign")
def sign(t: Builder, x: Value) -> Value:
    """One if positive, minus one if negative."""
    return t.cast(x > 0.0, x.dtype) - t.cast(x < 0.0, x.dtype)


@lowering(BOOLEANS, "Max")
def at_least(t: Builder, x: Value, bound: Value) -> Value | None:
    """A Clip at a constant number."""
    return t.op("Clip", x, bound) if bound.rank == 0 and bound.array() is not None else None


# ----- truth values as numbers ---------------------------------------------------


def step(t: Builder, x: Value) -> Value:
    """One where `x` is positive, zero elsewhere: a ramp cut to [0, 1], so steep that twice takes any number to one."""
    slope = 6e4 if x.dtype == np.float16 else 3e38
    return t.op("HardSigmoid", t.op("HardSigmoid", x, alpha=slope, beta=0.0), alpha=slope, beta=0.0)


def _difference(a: Value, b: Value) -> Value:
    zero = b.array()
    return a if zero is not None and zero.size == 1 and b.rank <= a.rank and not zero.any() else a - b


@lowering(MASKS, "Greater")
def mask_greater(t: Builder, a: Value, b: Value) -> Value | None:
    """Numbers whose difference is positive."""
    return step(t, _difference(a, b)) if a.is_float else None


@lowering(MASKS, "Less")
def mask_less(t: Builder, a: Value, b: Value) -> Value | None:
    """The other way round."""
    return step(t, b - a) if a.is_float else None


@lowering(MASKS, "GreaterOrEqual")
def mask_not_less(t: Builder, a: Value, b: Value) -> Value | None:
    """Not less."""
    return 1.0 - step(t, b - a) if a.is_float else None


@lowering(MASKS, "LessOrEqual")
def mask_not_greater(t: Builder, a: Value, b: Value) -> Value | None:
    """Not greater."""
    return 1.0 - step(t, _difference(a, b)) if a.is_float else None


@lowering(MASKS, "Equal")
def mask_equal(t: Builder, a: Value, b: Value) -> Value | None:
    """Neither greater nor less."""
    if not a.is_float:
        return None
    apart = _difference(a, b)
    return 1.0 - t.op("Max", step(t, apart), step(t, apart * -1.0))


@lowering(MASKS, "And")
def mask_and(t: Builder, a: Value, b: Value) -> Value | None:
    """The product."""
    return a * b if a.is_float and b.is_float else None


@lowering(MASKS, "Where")
def choose(t: Builder, mask: Value, a: Value, b: Value) -> Value | None:
    """Each times its mask: right for finite numbers, which is what the rules choose between."""
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
    """One if positive, minus one if negative."""
    return step(t, x) - step(t, x * -1.0)


@lowering(MASKS, "Abs")
def size(t: Builder, x: Value) -> Value:
    """The greater of the number and its negative."""
    return t.op("Max", x, x * -1.0)


PLANES: dict[str, Lowering] = {}
"""What CoreML computes on images of two dimensions, or not at all, by what it does compute."""


@lowering(PLANES, "Expand")
def expand(t: Builder, x: Value, shape: Value) -> Value | None:
    """A Tile, of a tensor that is given the dimensions in front first."""
    (rank,) = shape.dims("Expand")
    wide = x if x.rank >= rank else reshape(t, x, [1] * (rank - x.rank) + list(sizes(t, x)))
    target = shape.array()
    if target is None:
        if wide.rank > rank:
            return None
        # One of the two sizes is one, or they are equal.
        each = t.op("Max", t.op("Shape", wide), t.ints(1))
        return t.op("Tile", wide, t.op("Max", t.op("Div", shape, each), t.ints(1)))
    repeats = []
    for have, want in zip(wide.shape, [1] * (wide.rank - rank) + [int(d) for d in target], strict=True):
        if have != 1 and want not in {1, have}:
            return None
        repeats.append(want if have == 1 else 1)
    return t.op("Tile", wide, t.ints(*repeats))


@lowering(PLANES, "Pad")
def pad(
    t: Builder, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value | None:
    """Zeros, which a convolution with a single one adds to two dimensions at a time."""
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
        wanted: list[Size | int] = [*dims[:i], dims[i] + before[i] + after[i], *dims[i + 1 :]]
        free = [j for j, d in enumerate(x.shape) if not isinstance(d, int)]
        x = reshape(t, wider, [-1 if [j] == free else d for j, d in enumerate(wanted)])
    return x


@lowering(PLANES, "Gather")
def gather(t: Builder, x: Value, indices: Value, *, axis: int = 0) -> Value | None:
    """GatherND along the first dimension."""
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
    """MatMul, which also takes a second matrix that is computed."""
    product = (t.transpose(a, [1, 0]) if transA else a) @ (t.transpose(b, [1, 0]) if transB else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


def pool(t: Builder, node: ir.Node, inputs: Sequence[Value | None]) -> Value | None:
    """A pool in one or three dimensions as one in two: over a row, or over planes that are one dimension."""
    x, options = inputs[0], attributes(node)
    if x is None or len(node.outputs) != 1 or x.rank not in {3, 5}:
        return None
    whole = t.wrap(node.outputs[0])
    wide = _flat(t, x, options) if x.rank == 5 else _row(t, x, options)
    return None if wide is None else t.reshape_like(t.op(node.op_type, wide, **options), whole)


def _row(t: Builder, x: Value, options: dict[str, Any]) -> Value:
    for name, one in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)):
        if name in options:
            given = list(options[name])
            options[name] = [one, given[0]] if name != "pads" else [0, given[0], 0, given[1]]
    return t.op("Unsqueeze", x, t.ints(2))


def _flat(t: Builder, x: Value, options: dict[str, Any]) -> Value | None:
    plain = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0}
    for name, one in plain.items():
        if name in options:
            given = list(options[name])
            begin, end = given[:3], given[3:]
            if set(begin[1:] + end[1:]) != {one}:
                return None
            options[name] = [begin[0], one] + ([end[0], one] if end else [])
    n, c, d, h, w = sizes(t, x)
    return reshape(t, x, [n, c, d, h * w]) if options.get("auto_pad", "NOTSET") == "NOTSET" else None


PLANES["AveragePool"] = PLANES["MaxPool"] = pool


@lowering(PLANES, "ConvTranspose")
def conv_transpose(t: Builder, x: Value, w: Value, b: Value | None = None, **options: Any) -> Value | None:
    """Without `output_padding`: rows that no window reaches are zeros, added at the end."""
    extra = list(options.pop("output_padding", ()))
    if not extra or b is not None or w.array() is None or "output_shape" in options:
        return None
    n = len(extra)
    pads = list(options.get("pads") or [0] * (2 * n))
    late = [max(e - p, 0) for e, p in zip(extra, pads[n:], strict=True)]
    options["pads"] = pads[:n] + [max(p - e, 0) for e, p in zip(extra, pads[n:], strict=True)]
    full = t.op("ConvTranspose", x, w, **options)
    return t.op("Pad", full, t.ints(*[0] * (n + 2), 0, 0, *late)) if any(late) else full

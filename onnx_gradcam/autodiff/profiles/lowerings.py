"""Operators computed by other operators, exactly: what some execution provider lacks in terms of what it has.

Truth values come in two forms. Where a provider compares (WebGPU), they stay Booleans and only And is computed by way
of numbers. Where it does not (CoreML), a comparison becomes a mask, a floating-point tensor of zeros and ones, and
whatever reads it computes with that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from onnx_gradcam.autodiff.registry import attributes
from onnx_gradcam.autodiff.rules._sizes import reshape, sizes
from onnx_gradcam.graph.builder import Builder, Value

from .provider import Lowering

__all__ = ["ARITHMETIC", "BOOLEANS", "MASKS", "is_zero", "lowering", "volume"]

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

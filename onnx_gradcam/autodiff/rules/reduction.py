"""Rules of reductions, and of cumulative sums and products.

Every rule of a reduction serves axes that are omitted, empty, negative or computed by the graph. Where the axes reduce
nothing (`noop_with_empty_axes`), the element-wise part of the operator remains (ReduceLogSum is Log then), and the same
formulas hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from onnx_gradcam.autodiff.registry import Cotangent, vjp
from onnx_gradcam.graph.builder import Builder, Value


class _Reduction:
    """One reduction node, able to reduce other tensors of the input's shape over the same axes."""

    def __init__(self, t: Builder, x: Value, axes: Value | None, keepdims: int, noop: int) -> None:
        self.t, self.x, self.axes, self.keepdims, self.noop = t, x, axes, keepdims, noop

    def again(self, kind: str, value: Value) -> Value:
        """`value` reduced over the node's axes, which keep the size one."""
        return self.t.op(kind, value, self.axes, keepdims=1, noop_with_empty_axes=self.noop)

    def kept(self, value: Value) -> Value:
        """A tensor of the output's shape with the reduced axes inserted again, of size one."""
        if self.keepdims:
            return value
        axes = self._known_axes()
        if axes is None:
            shape = self.t.op("Shape", self.again("ReduceSum", self.x))
            return self.t.op("Reshape", value, shape, allowzero=1, shape=(None,) * self.x.rank)
        return self.t.op("Unsqueeze", value, self.t.ints(*axes)) if axes else value

    def _known_axes(self) -> list[int] | None:
        """The axes; `None` where only the running model knows them."""
        axes = np.array([], np.int64) if self.axes is None else self.axes.array()
        if axes is None:
            return None
        if axes.size == 0 and not self.noop:
            return list(range(self.x.rank))
        return [int(a) for a in axes]


Derivative = Callable[[Builder, _Reduction, Value, Value, Value], Value]
"""(t, the reduction, g, y, x) -> the cotangent of `x`."""


def _reduction(*op_types: str) -> Callable[[Derivative], Derivative]:
    """Register a derivative as the rule of reductions, which all have the same inputs and attributes."""

    def register(derivative: Derivative) -> Derivative:
        @vjp(*op_types)
        def rule(
            t: Builder, g: Value, y: Value, x: Value, axes: Value | None = None,
            *, keepdims: int = 1, noop_with_empty_axes: int = 0,
        ) -> Sequence[Cotangent]:  # fmt: skip
            return [derivative(t, _Reduction(t, x, axes, keepdims, noop_with_empty_axes), g, y, x), None]

        return derivative

    return register


@_reduction("ReduceSum")
def reduce_sum(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """The cotangent, to every element."""
    return t.expand_like(r.kept(g), x)


@_reduction("ReduceMean")
def reduce_mean(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """An equal share of the cotangent, to every element."""
    return t.expand_like(r.kept(g) * _one_over_count(t, x, y), x)


def _one_over_count(t: Builder, x: Value, y: Value) -> Value | float:
    """One over the number of elements of `x` for each element of `y`."""
    shapes = [v.known_shape for v in (x, y)]
    if None not in shapes and not any(None in shape for shape in shapes if shape):
        dims = [[d for d in shape or () if isinstance(d, int)] for shape in shapes]
        free = [Counter(d for d in shape or () if isinstance(d, str)) for shape in shapes]
        if free[0] == free[1]:  # free dimensions that stay, such as the batch, cancel
            x_size, y_size = (int(np.prod(d)) for d in dims)
            return y_size / x_size if x_size else 0.0
    # In float32 at least: a count above 65504 is infinite in float16.
    wide = np.float64 if x.dtype == np.float64 else np.float32
    count = t.op("Div", t.op("Size", x), t.op("Max", t.op("Size", y), t.const(np.int64(1))))
    return t.cast(t.op("Reciprocal", t.cast(count, wide)), x.dtype)


@_reduction("ReduceMax", "ReduceMin")
def reduce_extremum(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """Ties share the cotangent evenly, as in PyTorch's `amax`, TensorFlow and JAX."""
    hit = t.cast(t.op("Equal", x, r.kept(y)), x.dtype)
    return r.kept(g) / r.again("ReduceSum", hit) * hit


@_reduction("ReduceProd")
def reduce_prod(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """The product of the other elements; zeros are counted, so that nothing is divided by zero."""
    zero = t.op("Equal", x, 0.0)
    ones = t.op("Where", zero, 1.0, x)
    count = t.cast(zero, x.dtype)
    others = r.again("ReduceSum", count) - count
    product = r.again("ReduceProd", ones) / ones
    return t.op("Where", others > 0.0, 0.0, r.kept(g) * product)


@_reduction("ReduceL1")
def reduce_l1(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """The sign."""
    return r.kept(g) * t.op("Sign", x)


@_reduction("ReduceL2")
def reduce_l2(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """The unit vector x / y; zero where the norm is zero, as in PyTorch."""
    norm = r.kept(y)
    return x * (r.kept(g) / t.op("Where", t.op("Equal", norm, 0.0), 1.0, norm))


@_reduction("ReduceLogSum")
def reduce_log_sum(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """One over the sum, which is e^y."""
    return t.expand_like(r.kept(g * t.op("Exp", -y)), x)


@_reduction("ReduceLogSumExp")
def reduce_log_sum_exp(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """The softmax, e^(x - y)."""
    return r.kept(g) * t.op("Exp", x - r.kept(y))


@_reduction("ReduceSumSquare")
def reduce_sum_square(t: Builder, r: _Reduction, g: Value, y: Value, x: Value) -> Value:
    """Twice the input."""
    return r.kept(g) * 2.0 * x


@vjp("CumSum")
def cum_sum(
    t: Builder, g: Value, y: Value, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0
) -> Sequence[Cotangent]:
    """The cumulative sum from the other end."""
    return [t.op("CumSum", g, axis, exclusive=exclusive, reverse=1 - reverse), None]


@vjp("CumProd")
def cum_prod(
    t: Builder, g: Value, y: Value, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0
) -> Sequence[Cotangent]:
    """Products of the other elements, summed over the outputs that contain them; nothing is divided by zero.

    At the first zero this is `sum(g y')` with the products `y'` of the other elements; elsewhere it is `sum(g y) / x`,
    because all products behind that zero are zero.
    """

    def back(v: Value) -> Value:
        return t.op("CumSum", v, axis, exclusive=exclusive, reverse=1 - reverse)

    zero = t.op("Equal", x, 0.0)
    count = t.op("CumSum", t.cast(zero, np.int32), axis, reverse=reverse)
    first = t.op("And", zero, t.op("Equal", count, t.const(np.int32(1))))
    others = t.op("CumProd", t.op("Where", first, 1.0, x), axis, exclusive=exclusive, reverse=reverse)
    before = back(g * y) / t.op("Where", zero, 1.0, x)
    return [t.op("Where", first, back(g * others), before), None]
